//! What happened, when, and to whom: to compare two runs, and to read after a failure.

use std::fmt;

/// One thing that happened, `at` milliseconds of simulated time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub(crate) at: u64,
    pub(crate) who: String,
    pub(crate) what: String,
}

/// Everything that happened, in order. Costs nothing unless it is on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Trace {
    on: bool,
    pub(crate) lines: Vec<Line>,
}

impl Trace {
    pub(crate) fn new(on: bool) -> Self {
        Self { on, lines: Vec::new() }
    }

    pub(crate) fn note(&mut self, at: u64, who: &str, what: impl FnOnce() -> String) {
        if self.on {
            self.lines.push(Line { at, who: who.into(), what: what() });
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>9}  {:<8}  what", "seconds", "who")?;
        for Line { at, who, what } in &self.lines {
            writeln!(f, "{:>5}.{:03}  {who:<8}  {what}", at / 1000, at % 1000)?;
        }
        Ok(())
    }
}

/// The text without the times at which streams were made, `arn:…:stream/name:time`: a date is another in each run.
pub(crate) fn undated(text: &str) -> String {
    let undated = |part: &str| match part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len()) {
        digits @ 10.. => part[digits..].to_owned(),
        _ => part.to_owned(),
    };
    text.split(':').map(undated).collect::<Vec<_>>().join(":")
}

/// The short form of a shard's id: its number.
pub(crate) fn short(id: &str) -> String {
    match id.strip_prefix("shardId-") {
        Some(number) => format!("#{}", number.trim_start_matches('0').parse().unwrap_or(0_u64)),
        None => id.to_owned(),
    }
}

#[test]
fn a_text_says_the_same_in_every_run() {
    let of = "made for an earlier stream (arn:aws:kinesis:us-east-1:000000000000:stream/stream:1795405576, now 17)";
    assert_eq!(undated(of), "made for an earlier stream (arn:aws:kinesis:us-east-1::stream/stream:, now 17)");
    assert_eq!(undated("ends: shardId-000000000001: 1.5 s"), "ends: shardId-000000000001: 1.5 s");
}
