//! How far the processing of one shard is behind its tip.
//!
//! What a read reports is true for the moment of that read. Until all of its records are acknowledged, with all
//! before them, its lag is what the read reported and the time since: it grows while work stands still, as the
//! KCL's, which is published with a batch that was processed, does not.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::core::shard::Position;

/// The lag of one shard, from its reads and the watermark.
#[derive(Debug)]
pub(crate) struct Lag {
    /// The last read, or the beginning.
    last: Read,
    /// Reads whose records are not all done, oldest first, each with the last of its records.
    open: VecDeque<(Read, Position)>,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    behind: Duration,
    at: Instant,
}

impl Lag {
    /// Of a shard whose work begins now: nothing is known, but that it is not read since then.
    pub(crate) fn new(now: Instant) -> Self {
        Self { last: Read { behind: Duration::ZERO, at: now }, open: VecDeque::new() }
    }

    /// A read was answered at `now`, its end that far behind the tip; `last` is the last record that it brought.
    pub(crate) fn on_read(&mut self, behind: Duration, last: Option<Position>, now: Instant) {
        self.last = Read { behind, at: now };
        self.open.extend(last.map(|last| (self.last, last)));
    }

    /// Everything up to here is done.
    pub(crate) fn on_done(&mut self, through: &Position) {
        while self.open.front().is_some_and(|(_, last)| last <= through) {
            self.open.pop_front();
        }
    }

    /// The lag at `now`: never less than that of the oldest record that is not done.
    pub(crate) fn at(&self, now: Instant) -> Duration {
        let oldest = self.open.front().map_or(&self.last, |(read, _)| read);
        oldest.behind + now.saturating_duration_since(oldest.at)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(number: u64) -> Position {
        Position::at(number.to_string().parse().expect("digits"))
    }

    #[test]
    fn at_the_tip_it_is_the_time_since_the_last_read() {
        let start = Instant::now();
        let mut lag = Lag::new(start);
        assert_eq!(lag.at(start + SECOND), SECOND);
        lag.on_read(Duration::ZERO, None, start + SECOND * 2);
        assert_eq!(lag.at(start + SECOND * 3), SECOND);
    }

    #[test]
    fn it_grows_while_a_batch_is_stuck_although_the_next_was_read() {
        let start = Instant::now();
        let mut lag = Lag::new(start);
        lag.on_read(SECOND * 50, Some(at(5)), start);
        lag.on_read(SECOND * 40, Some(at(9)), start + SECOND);
        assert_eq!(lag.at(start + SECOND * 100), SECOND * 150);
        lag.on_done(&at(4));
        assert_eq!(lag.at(start + SECOND * 100), SECOND * 150, "one is left");
        lag.on_done(&at(8));
        assert_eq!(lag.at(start + SECOND * 100), SECOND * 139);
        lag.on_done(&at(9));
        lag.on_read(Duration::ZERO, None, start + SECOND * 101);
        assert_eq!(lag.at(start + SECOND * 101), Duration::ZERO);
    }
}
