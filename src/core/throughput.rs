//! How much a shard brings, as a moving average: the weight of its lease when leases are balanced by
//! throughput.
//!
//! Only computes; it is fed with what was delivered, and read whenever the lease is written anyway. Unit and
//! place are the Java KCL's (`throughputKBps`), whose average halves at each renewal; ours has a time instead,
//! because our writes come at irregular times.

use std::time::{Duration, Instant};

/// What is this old counts for about a third.
const MEMORY: Duration = Duration::from_secs(60);
/// A shorter sample says nothing.
const SHORTEST: Duration = Duration::from_secs(1);

/// The average of one shard.
#[derive(Debug)]
pub(crate) struct Meter {
    bytes: usize,
    since: Instant,
    kbps: Option<f64>,
}

impl Meter {
    /// Begins at `now`, with the average that another holder left, if any.
    pub(crate) fn new(kbps: Option<f64>, now: Instant) -> Self {
        Self { bytes: 0, since: now, kbps }
    }

    /// Takes note of records that were delivered.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The average up to `now`, in KiB/s.
    pub(crate) fn read(&mut self, now: Instant) -> f64 {
        let past = now.saturating_duration_since(self.since);
        if past >= SHORTEST {
            let rate = self.bytes as f64 / 1024.0 / past.as_secs_f64();
            let known = self.kbps.unwrap_or(rate);
            let share = 1.0 - (-past.as_secs_f64() / MEMORY.as_secs_f64()).exp();
            self.kbps = Some(known + share * (rate - known));
            (self.bytes, self.since) = (0, now);
        }
        // Three digits after the point, so that an idle shard's rate becomes 0 and its text stays short.
        (self.kbps.unwrap_or(0.0) * 1000.0).round() / 1000.0
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_sample_is_the_average() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        meter.add(10 * 1024);
        assert_eq!(meter.read(start + 5 * SECOND), 2.0);
    }

    #[test]
    fn a_new_holder_goes_on_from_what_is_known() {
        let start = Instant::now();
        let mut meter = Meter::new(Some(100.0), start);
        assert_eq!(meter.read(start), 100.0);
        let soon = meter.read(start + 5 * SECOND);
        assert!((90.0..95.0).contains(&soon), "{soon}");
    }

    #[test]
    fn a_sample_shorter_than_a_second_waits_until_it_is_one() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        meter.add(1024);
        assert_eq!(meter.read(start + SECOND - Duration::from_millis(1)), 0.0);
        assert_eq!(meter.read(start + SECOND), 1.0);
    }

    #[test]
    fn the_average_follows_a_steady_rate_and_forgets_an_old_one_within_minutes() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        let mut at = |second: u32, bytes: usize| {
            meter.add(bytes);
            meter.read(start + second * SECOND)
        };
        for second in 1..=600 {
            at(second, 2048);
        }
        assert_eq!(at(601, 2048), 2.0);
        let minute = (602..=661).map(|second| at(second, 0)).last().expect("a rate");
        assert!((0.7..0.8).contains(&minute), "{minute}");
        assert_eq!((662..=1800).map(|second| at(second, 0)).last(), Some(0.0));
    }
}
