//! The picture of a drill: three panels over one time axis, as SVG.

use std::fmt::Write;

/// One look at the fleet.
pub(crate) struct Sample {
    /// In seconds from the start.
    pub(crate) at: f64,
    /// Leases of each worker.
    pub(crate) leases: Vec<f64>,
    /// In seconds.
    pub(crate) lag: f64,
    /// So far.
    pub(crate) moves: f64,
}

pub(crate) struct Picture<'a> {
    pub(crate) workers: &'a [&'a str],
    /// When what was done.
    pub(crate) marks: Vec<(f64, String)>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) caption: String,
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 76.0;
const PANEL: f64 = 130.0;
const GAP: f64 = 50.0;
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

/// A line through one value of every sample.
struct Line<'a> {
    name: &'a str,
    colour: &'a str,
    values: Vec<f64>,
}

impl Picture<'_> {
    pub(crate) fn svg(&self) -> String {
        let height = TOP + 3.0 * (PANEL + GAP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
            self.caption
        );
        let leases = self.workers.iter().enumerate().map(|(n, name)| Line {
            name,
            colour: COLOURS[n % COLOURS.len()],
            values: self.samples.iter().map(|sample| sample.leases[n]).collect(),
        });
        self.panel(&mut svg, 0, "leases of each worker", &leases.collect::<Vec<_>>());
        let one = |value: fn(&Sample) -> f64| {
            [Line { name: "", colour: "#555", values: self.samples.iter().map(value).collect() }]
        };
        self.panel(&mut svg, 1, "lag: age of the oldest record not processed, in seconds", &one(|s| s.lag));
        self.panel(&mut svg, 2, "leases moved between workers, so far", &one(|s| s.moves));
        svg + "</svg>\n"
    }

    fn length(&self) -> f64 {
        self.samples.last().map_or(1.0, |sample| sample.at.max(1.0))
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * at / self.length()
    }

    fn panel(&self, svg: &mut String, row: u32, title: &str, lines: &[Line<'_>]) {
        let top = TOP + f64::from(row) * (PANEL + GAP);
        let bottom = top + PANEL;
        let most = lines.iter().flat_map(|line| &line.values).fold(1.0_f64, |most, value| most.max(*value));
        // The middle is a whole number, too.
        let most = 2.0 * (most / 2.0).ceil();
        // What was done is written between the first title and its panel.
        let above = if row == 0 { 24.0 } else { 8.0 };
        let y = |value: f64| bottom - PANEL * value / most;
        let mut add = |text: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = svg.write_fmt(text);
        };
        add(format_args!("<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}</text>\n", top - above));
        for value in [0.0, most / 2.0, most] {
            let (x, y) = (LEFT - 8.0, y(value));
            let right = WIDTH - RIGHT;
            add(format_args!("<text x=\"{x}\" y=\"{}\" text-anchor=\"end\">{value}</text>\n", y + 4.0));
            add(format_args!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\n"
            ));
        }
        for (at, what) in &self.marks {
            let x = self.x(*at);
            add(format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#888\" stroke-dasharray=\"3 3\"/>\n"
            ));
            if row == 0 {
                add(format_args!(
                    "<text x=\"{:.1}\" y=\"{}\" fill=\"#666\">{what}</text>\n",
                    x + 4.0,
                    top - 6.0
                ));
            }
        }
        for at in (0..=self.length() as u32).step_by(5) {
            let x = self.x(f64::from(at));
            add(format_args!(
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{at} s</text>\n",
                bottom + 16.0
            ));
        }
        for (n, Line { name, colour, values }) in lines.iter().enumerate() {
            let mut path = String::new();
            for (sample, value) in self.samples.iter().zip(values) {
                let _ = write!(path, "{:.1},{:.1} ", self.x(sample.at), y(*value));
            }
            add(format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>\n",
                path.trim_end()
            ));
            let x = WIDTH - RIGHT - 60.0 + 24.0 * n as f64;
            add(format_args!(
                "<text x=\"{x}\" y=\"{}\" fill=\"{colour}\" font-weight=\"bold\">{name}</text>\n",
                top - above
            ));
        }
    }
}
