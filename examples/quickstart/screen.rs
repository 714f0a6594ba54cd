//! What you see: lines that stay, and below them the fleet as it is now.
//!
//! On a terminal the lower part is drawn again in place. Elsewhere, as in a log, it is printed every few
//! seconds. Colour only where it is wanted (`NO_COLOR`), and never the only sign of anything.

use std::{
    collections::BTreeSet,
    env,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use tokio::time::Instant;

use crate::ledger::{Ledger, State};

const REDRAW: Duration = Duration::from_millis(250);
const REPRINT: Duration = Duration::from_secs(5);
/// A shard at its tip is read once a second; a lag above this is worth a look.
const LAGGING: Duration = Duration::from_secs(3);

#[derive(Clone, Copy)]
enum Colour {
    Bold = 1,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// What a line of the verdict says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Only a figure.
    None,
    Good,
    /// It happened, but above its limit: on a busy machine no failure.
    Late,
    Bad,
}

pub(crate) struct Screen {
    started: Instant,
    terminal: bool,
    colour: bool,
    /// Lines of the fleet that stand on the terminal now.
    drawn: usize,
    last: Instant,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = io::stdout().is_terminal() && !dumb;
        let now = Instant::now();
        Self { started: now, terminal, colour: terminal && !set("NO_COLOR"), drawn: 0, last: now }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        let at = format!("{:5.1} s", self.started.elapsed().as_secs_f64());
        let erased = self.erase();
        self.write(&format!("{erased}{at}  {line}\n"))
    }

    /// A line of the verdict.
    pub(crate) fn figure(&mut self, sign: Sign, what: &str, figure: &str, note: &str) -> io::Result<()> {
        let sign = match sign {
            Sign::None => "    ".to_owned(),
            Sign::Good => self.paint(Colour::Green, "ok  "),
            Sign::Late => self.paint(Colour::Yellow, "late"),
            Sign::Bad => self.paint(Colour::Red, "FAIL"),
        };
        let line = format!("   {sign}  {what:<32}{figure:>8}  {note}");
        let erased = self.erase();
        self.write(&format!("{erased}{}\n", line.trim_end()))
    }

    /// The fleet as it is now, unless it was shown just before.
    pub(crate) fn show(&mut self, ledger: &mut Ledger) -> io::Result<()> {
        let pause = if self.terminal { REDRAW } else { REPRINT };
        if self.last.elapsed() < pause {
            return Ok(());
        }
        self.last = Instant::now();
        let lines = self.lines(ledger);
        let erased = self.erase();
        if self.terminal {
            self.drawn = lines.len();
        }
        let text: String = lines.iter().map(|line| format!("{}\n", line.trim_end())).collect();
        // Long lines are cut and not wrapped: the number of lines must hold.
        let (cut, wrap) = if self.terminal { ("\x1b[?7l", "\x1b[?7h") } else { ("", "") };
        self.write(&format!("{erased}{cut}{text}{wrap}"))
    }

    fn lines(&self, ledger: &mut Ledger) -> Vec<String> {
        let mut lines = Vec::new();
        let workers: Vec<(String, u32, State)> =
            ledger.workers.iter().map(|(name, worker)| (name.clone(), worker.pid, worker.state)).collect();
        for (name, pid, state) in workers {
            let shards = ledger.shards_of(&name);
            let state = match state {
                State::Running => format!("{:<11}", format!("pid {pid}")),
                State::Killed => self.paint(Colour::Red, "killed     "),
                State::Stopping => self.paint(Colour::Yellow, "stopping   "),
                State::Stopped => "stopped    ".to_owned(),
            };
            let rate = ledger.rate(&name);
            let figures = match shards.is_empty() && rate < 1.0 {
                true => String::new(),
                false => format!(
                    "{rate:4.0} records/s  {}  shards {}",
                    self.lag(ledger.lag(&shards)),
                    numbers(&shards)
                ),
            };
            lines.push(format!("         {}  {state} {figures}", self.paint(Colour::Bold, &name)));
        }
        let free = ledger.free_shards();
        if !free.is_empty() {
            let lag = self.lag(ledger.lag(&free));
            lines.push(format!("         --  unowned                   {lag}  shards {}", numbers(&free)));
        }
        let again = if ledger.repeats > 0 { format!(", {} again", ledger.repeats) } else { String::new() };
        lines.push(format!(
            "         {} put, {} processed{again}, {} out of order",
            ledger.put, ledger.processed, ledger.out_of_order
        ));
        lines
    }

    fn lag(&self, lag: Duration) -> String {
        let text = format!("lag {:4.1} s", lag.as_secs_f64());
        if lag > LAGGING { self.paint(Colour::Yellow, &text) } else { text }
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
    }

    /// Goes back to where the fleet begins, and clears it.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            drawn => format!("\x1b[{drawn}A\x1b[J"),
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// The shards by their numbers: `shardId-000000000012` is 12. Three in a row are written as 12-14.
pub(crate) fn numbers(shards: &BTreeSet<String>) -> String {
    let number = |shard: &String| shard.rsplit('-').next().and_then(|digits| digits.parse::<u64>().ok());
    let mut numbers: Vec<u64> = shards.iter().filter_map(number).collect();
    numbers.sort_unstable();
    let rows = numbers.chunk_by(|a, b| a + 1 == *b).flat_map(|row| match row {
        [first, _, .., last] => vec![format!("{first}-{last}")],
        short => short.iter().map(u64::to_string).collect(),
    });
    let text = rows.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}
