//! A terminal's cells as a picture, for the documentation.

use std::fmt::Write;

use ratatui::{
    buffer::{Buffer, Cell},
    style::{Color, Modifier},
};

const CELL: (usize, usize) = (8, 17);
const MARGIN: usize = 10;
const BACKGROUND: &str = "#16181d";

/// The text of all lines.
pub(super) fn text(buffer: &Buffer) -> String {
    let width = buffer.area.width.into();
    buffer
        .content
        .chunks(width)
        .map(|line| line.iter().map(Cell::symbol).collect::<String>() + "\n")
        .collect()
}

/// An SVG of the cells: one text a run of equal style.
pub(super) fn picture(buffer: &Buffer) -> String {
    let (width, height) = (usize::from(buffer.area.width), usize::from(buffer.area.height));
    let size = (width * CELL.0 + 2 * MARGIN, height * CELL.1 + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" width=\"{}\" height=\"{}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\" xml:space=\"preserve\">\n",
        size.0, size.1, size.0, size.1
    );
    for (y, line) in buffer.content.chunks(width).enumerate() {
        let mut x = 0;
        while x < width {
            let style = (line[x].fg, line[x].modifier);
            let run = line[x..].iter().take_while(|cell| (cell.fg, cell.modifier) == style).count();
            let symbols: String = line[x..x + run].iter().map(Cell::symbol).collect();
            draw(&mut svg, (x, y), &symbols, style);
            x += run;
        }
    }
    svg + "</g>\n</svg>\n"
}

fn draw(svg: &mut String, at: (usize, usize), symbols: &str, (fg, modifier): (Color, Modifier)) {
    let reversed = modifier.contains(Modifier::REVERSED);
    if symbols.trim().is_empty() && !reversed {
        return;
    }
    let (left, top) = (MARGIN + at.0 * CELL.0, MARGIN + at.1 * CELL.1);
    let length = symbols.chars().count() * CELL.0;
    let mut colour = colour(fg);
    if reversed {
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{length}\" height=\"{}\" fill=\"{colour}\"/>",
            CELL.1
        );
        colour = BACKGROUND;
    }
    let weight = if modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
    let dim = if modifier.contains(Modifier::DIM) { " opacity=\"0.6\"" } else { "" };
    let escaped = symbols.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" textLength=\"{length}\" fill=\"{colour}\"{weight}{dim}>{escaped}</text>",
        top + 13
    );
}

fn colour(colour: Color) -> &'static str {
    match colour {
        Color::Red => "#f7768e",
        Color::Yellow => "#e0af68",
        Color::Green => "#9ece6a",
        Color::Blue => "#7aa2f7",
        Color::Cyan => "#7dcfff",
        Color::DarkGray => "#4b5263",
        _ => "#c0caf5",
    }
}
