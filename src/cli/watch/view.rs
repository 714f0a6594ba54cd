//! What `watch` looks like: workers with their shards as cells, the shards one by one, the latest moves.

use std::time::{Duration, Instant};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, BorderType, Cell, Paragraph, Row, Table},
};

use super::model::Model;
use crate::{
    cli::{lag::Behind, lease_json, output::time},
    core::{lease::Lease, lease_state::State},
};

/// Lags from which a cell is yellow, and red.
const LATE: Duration = Duration::from_secs(10);
const VERY_LATE: Duration = Duration::from_secs(60);
const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, now: Instant) {
    let workers = model.workers(now).len() as u16 + 1;
    let free = model.states(now).iter().any(|(_, state)| matches!(state, State::Free | State::Waiting(_)));
    let [head, fleet, shards, moves, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length((workers + u16::from(free) + 2).min(frame.area().height / 3)),
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, model, now);
    draw_fleet(frame, fleet, model, now);
    draw_shards(frame, shards, model, now);
    draw_moves(frame, moves, model);
    let keys = match &model.fault {
        Some(fault) => Line::from(vec![Span::from(" ").bold(), Span::from(fault.as_str()).fg(Color::Red)]),
        None => {
            Line::from(" q quit   \u{2191}\u{2193} scroll   cells: a shard each, coloured by its lag").dim()
        }
    };
    frame.render_widget(keys, foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model, now: Instant) {
    let unfinished = model.states(now).iter().filter(|(_, state)| *state != State::Finished).count();
    let lag = model.most_behind().map_or_else(|| "lag ?".to_owned(), |lag| format!("lag {}", time(lag)));
    let text = vec![
        Span::from(format!(" {} ", model.table)).bold().reversed(),
        Span::from(format!("  {unfinished} shards  {} workers  ", model.workers(now).len())),
        Span::from(lag).fg(colour(model.most_behind())),
        Span::from(format!("  {} moves  ", model.moved)),
        Span::from(model.looked_at.clone()).dim(),
    ];
    frame.render_widget(Line::from(text), area);
}

/// A line a worker, and in it a cell for each of its shards.
fn draw_fleet(frame: &mut Frame<'_>, area: Rect, model: &Model, now: Instant) {
    let states = model.states(now);
    let cells = |mine: &dyn Fn(&Lease, &State) -> bool| {
        let cell = |(lease, state): &(&Lease, State)| match (mine(lease, state), state) {
            (false, _) => Span::from("\u{b7}").dim(),
            (true, State::HandOff { .. }) => Span::from("\u{25b6}").fg(Color::Cyan),
            (true, State::Expired(_)) => Span::from("\u{2716}").fg(Color::Red),
            (true, State::Waiting(_)) => Span::from("\u{25a1}").dim(),
            (true, State::Free) => Span::from("\u{25a1}").fg(Color::Yellow),
            (true, _) => Span::from("\u{25a0}").fg(colour(model.behind(&lease.key).and_then(Behind::time))),
        };
        let shown = states.iter().filter(|(_, state)| *state != State::Finished).map(cell);
        Cell::from(Line::from(shown.collect::<Vec<_>>()))
    };
    let mut rows: Vec<Row<'_>> = model
        .workers(now)
        .into_iter()
        .map(|worker| {
            let style = if worker.alive { Style::new() } else { Style::new().fg(Color::Red) };
            Row::new([
                Cell::from(worker.id.to_string()).style(style),
                cells(&|lease, state| lease.holder() == Some(&worker.id) && *state != State::Finished),
                Cell::from(worker.leases.to_string()),
                Cell::from(worker.lag.map_or_else(|| "?".into(), time)).fg(colour(worker.lag)),
                Cell::from(format!("{:.0}", worker.writes)),
                Cell::from(if worker.alive { "" } else { "silent" }).style(style),
            ])
        })
        .collect();
    let free = |state: &State| matches!(state, State::Free | State::Waiting(_));
    let nobodys = states.iter().filter(|(_, state)| free(state)).count();
    if nobodys > 0 {
        rows.push(Row::new([
            Cell::from("nobody").dim(),
            cells(&|_, state| free(state)),
            Cell::from(nobodys.to_string()),
        ]));
    }
    let widths = [
        Constraint::Max(28),
        Constraint::Fill(1),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(6),
    ];
    let header = Row::new(["WORKER", "SHARDS", "LEASES", "LAG", "WRITES/MIN", ""]).dim();
    frame.render_widget(
        Table::new(rows, widths).header(header).column_spacing(2).block(block("workers")),
        area,
    );
}

fn draw_shards(frame: &mut Frame<'_>, area: Rect, model: &Model, now: Instant) {
    let rows = model.states(now).into_iter().skip(model.top).map(|(lease, state)| {
        let behind = model.behind(&lease.key);
        let word = Cell::from(state.word()).style(match &state {
            State::Expired(_) => Style::new().fg(Color::Red),
            State::Free | State::Left(_) | State::HandOff { .. } => Style::new().fg(Color::Yellow),
            State::Finished | State::Waiting(_) => Style::new().dim(),
            State::Held(_) => Style::new(),
        });
        Row::new([
            Cell::from(lease.key.to_string()),
            word,
            Cell::from(lease.holder().map_or_else(|| "-".into(), ToString::to_string)),
            Cell::from(behind.map_or_else(|| "?".into(), Behind::word))
                .fg(colour(behind.and_then(Behind::time))),
            Cell::from(bars(&model.curve(&lease.key))).fg(Color::Blue),
            Cell::from(lease_json::checkpoint(lease)).dim(),
        ])
    });
    let widths = [
        Constraint::Length(20),
        Constraint::Length(8),
        Constraint::Max(28),
        Constraint::Length(10),
        Constraint::Length(24),
        Constraint::Fill(1),
    ];
    let header = Row::new(["SHARD", "STATE", "HOLDER", "BEHIND", "", "CHECKPOINT"]).dim();
    frame.render_widget(
        Table::new(rows, widths).header(header).column_spacing(2).block(block("shards")),
        area,
    );
}

fn draw_moves(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let line = |(at, what): &(String, String)| {
        Line::from(vec![Span::from(format!("{at}  ")).dim(), Span::from(what.clone())])
    };
    let lines: Vec<Line<'_>> = model.moves.iter().take(area.height.into()).map(line).collect();
    frame.render_widget(Paragraph::new(lines).block(block("moves")), area);
}

fn block(title: &'static str) -> Block<'static> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(Color::DarkGray))
        .title(format!(" {title} "))
}

fn colour(lag: Option<Duration>) -> Color {
    match lag {
        None => Color::Gray,
        Some(lag) if lag >= VERY_LATE => Color::Red,
        Some(lag) if lag >= LATE => Color::Yellow,
        Some(_) => Color::Green,
    }
}

/// A curve, one bar a value; the highest bar is the highest value, or ten seconds.
fn bars(values: &[u64]) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(LATE.as_millis() as u64);
    let bar = |value: &u64| BARS[(value.saturating_mul(BARS.len() as u64 - 1) / most) as usize];
    values.iter().map(bar).collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use std::fs;

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        cli::watch::svg,
        core::lease::{Checkpoint, WorkerId},
        io::Rows,
    };

    const FAILOVER: Duration = Duration::from_secs(10);

    /// A fleet of three, of which one fell silent a while ago; a shard was split, one lease moves.
    fn example() -> (Model, Instant) {
        let (mut model, start) = (Model::new("cart-worker", FAILOVER), Instant::now());
        for look in 0..=12_u64 {
            let rows: Vec<Lease> = (0..14_u64).map(|n| row(n, look)).collect();
            let date = format!("2026-11-22T08:30:{:02}Z", look * 4);
            model.look(
                Rows { leases: rows.clone(), ..Rows::default() },
                start + FAILOVER / 2 * look as u32,
                &date,
            );
            let lag = |n: u64| match n {
                0 => Behind::Finished,
                3 | 9 => behind(look * 4_000 + 15_000 * (n / 9)),
                _ => behind((n * 37 + look * 113) % 900),
            };
            model.measured(rows.into_iter().zip(0..).map(|(row, n)| (row, lag(n))).collect());
        }
        (model, start + FAILOVER * 6)
    }

    fn behind(millis: u64) -> Behind {
        match millis {
            0 => Behind::No,
            _ => Behind::By { time: Duration::from_millis(millis), oldest: None },
        }
    }

    fn row(n: u64, look: u64) -> Lease {
        let worker = |n: u64| {
            WorkerId::from(
                ["cart-worker-6f9d-x2k", "cart-worker-6f9d-p8m", "cart-worker-6f9d-w4z"][n as usize % 3],
            )
        };
        let shard = format!("shardId-{n:012}").as_str().into();
        let number = format!("495903382714902566085596925383615{:06}", look * 1000 + n);
        let checkpoint = Checkpoint::At(crate::Position::at(number.parse().expect("digits")));
        let mut lease = Lease { owner: Some(worker(n)), counter: look, ..Lease::new(&shard, checkpoint) };
        match n {
            0 => (lease.checkpoint, lease.owner) = (Checkpoint::ShardEnd, None),
            // A child whose parent is being read, and a shard that nobody has room for.
            13 => {
                (lease.checkpoint, lease.owner) = (Checkpoint::TrimHorizon, None);
                lease.parents = ["shardId-000000000003".into()].into();
            }
            12 => (lease.checkpoint, lease.owner) = (Checkpoint::TrimHorizon, None),
            // The second worker is silent from the fourth look on, and two of its leases were taken.
            4 if look > 8 => lease.owner = Some(worker(0)),
            10 if look > 9 => lease.owner = Some(worker(2)),
            _ if n % 3 == 1 => lease.counter = look.min(4),
            8 if look > 11 => (lease.checkpoint_owner, lease.owner) = (Some(worker(2)), Some(worker(0))),
            _ => {}
        }
        lease
    }

    fn drawn() -> ratatui::buffer::Buffer {
        let (model, now) = example();
        let mut terminal = Terminal::new(TestBackend::new(118, 34)).expect("a terminal");
        terminal.draw(|frame| draw(frame, &model, now)).expect("drawn");
        terminal.backend().buffer().clone()
    }

    #[test]
    fn the_view_shows_who_holds_what_who_is_silent_and_what_moved() {
        let text = svg::text(&drawn());
        for expected in [
            "cart-worker-6f9d-p8m",
            "silent",
            "hand-off",
            "waiting",
            "finished",
            "expired",
            "nobody",
            "lag 1 m",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }

    /// `UPDATE=1 cargo test --lib the_picture` draws it again.
    #[test]
    fn the_picture_in_the_docs_is_what_the_view_draws() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/leasectl-watch.svg");
        let picture = svg::picture(&drawn());
        if std::env::var_os("UPDATE").is_some() {
            fs::write(path, &picture).expect("written");
        }
        assert!(
            fs::read_to_string(path).expect("docs/leasectl-watch.svg") == picture,
            "the picture is old: see above"
        );
        assert!(picture.len() < 100 << 10, "{} bytes", picture.len());
    }

    #[test]
    fn a_small_terminal_and_an_empty_table_are_drawn_too() {
        let model = Model::new("t", FAILOVER);
        for (width, height) in [(118, 34), (20, 5), (3, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
            terminal.draw(|frame| draw(frame, &model, Instant::now())).expect("drawn");
        }
    }

    #[test]
    fn a_curve_is_drawn_to_its_highest_value_or_ten_seconds() {
        assert_eq!(bars(&[0, 5_000, 10_000]), "▁▄█");
        assert_eq!(bars(&[0, 60_000]), "▁█");
        assert_eq!(bars(&[]), "");
    }
}
