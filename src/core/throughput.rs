//! How much a shard brings, as a moving average: the weight of its lease when leases are balanced by
//! throughput.
//!
//! Only computes; it is fed with what was delivered, and read whenever the lease is written anyway. Unit and
//! place are the Java KCL's (`throughputKBps`), whose average halves at each renewal; ours has a time instead,
//! because our writes come at irregular times.

use std::time::{Duration, Instant};

/// What is this old counts for about a third. Bursts of some minutes move the average little, and leases must
/// not follow them.
const MEMORY: Duration = Duration::from_secs(600);
/// What the average of another holder, of which nobody knows how long it was taken, counts for.
const INHERITED: Duration = Duration::from_secs(120);
/// A shorter sample says nothing.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often a row that rests is held against the average.
pub(crate) const COMPARE_INTERVAL: Duration = Duration::from_secs(60);
/// A difference of that part is worth a write, if it is this much in KiB/s.
const WORTH_A_WRITE: (f64, f64) = (0.1, 0.1);

/// Whether a row that says `stored` is to be written because its shard brings `kbps`.
pub(crate) fn is_off(stored: Option<f64>, kbps: f64) -> bool {
    let stored = stored.unwrap_or(0.0);
    (kbps - stored).abs() > (stored.abs() * WORTH_A_WRITE.0).max(WORTH_A_WRITE.1)
}

/// The average of one shard.
#[derive(Debug)]
pub(crate) struct Meter {
    bytes: usize,
    since: Instant,
    kbps: f64,
    /// The time that the average stands for. Below its full memory each moment counts alike, so that a backlog
    /// that is read first does not count for long.
    known_for: Duration,
}

impl Meter {
    /// Begins at `now`, with the average that another holder left, if any.
    pub(crate) fn new(kbps: Option<f64>, now: Instant) -> Self {
        let known_for = kbps.map_or(Duration::ZERO, |_| INHERITED);
        Self { bytes: 0, since: now, kbps: kbps.unwrap_or(0.0), known_for }
    }

    /// Takes note of records that were delivered.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether anything is known yet.
    pub(crate) fn is_known(&self) -> bool {
        !self.known_for.is_zero()
    }

    /// The average up to `now`, in KiB/s; 0 if nothing is known yet.
    pub(crate) fn read(&mut self, now: Instant) -> f64 {
        let past = now.saturating_duration_since(self.since);
        if past >= SHORTEST {
            let rate = self.bytes as f64 / 1024.0 / past.as_secs_f64();
            self.known_for += past;
            let alike = past.as_secs_f64() / self.known_for.as_secs_f64();
            let fading = 1.0 - (-past.as_secs_f64() / MEMORY.as_secs_f64()).exp();
            self.known_for = self.known_for.min(MEMORY);
            self.kbps += alike.max(fading) * (rate - self.kbps);
            (self.bytes, self.since) = (0, now);
        }
        // Three digits after the point, so that an idle shard's rate becomes 0 and its text stays short.
        (self.kbps * 1000.0).round() / 1000.0
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
        assert!((95.0..97.0).contains(&soon), "{soon}");
    }

    #[test]
    fn a_sample_shorter_than_a_second_waits_until_it_is_one() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        meter.add(1024);
        assert_eq!(meter.read(start + SECOND - Duration::from_millis(1)), 0.0);
        assert!(!meter.is_known());
        assert_eq!(meter.read(start + SECOND), 1.0);
        assert!(meter.is_known());
    }

    #[test]
    fn one_sample_of_a_long_time_leaves_little_of_what_was_before() {
        let start = Instant::now();
        let mut meter = Meter::new(Some(100.0), start);
        meter.read(start + MEMORY);
        let later = meter.read(start + MEMORY * 6);
        assert!(later < 1.0, "{later}");
    }

    #[test]
    fn a_backlog_that_is_read_first_counts_for_no_longer_than_it_took() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        meter.add(2000 * 1024);
        assert_eq!(meter.read(start + SECOND), 2000.0);
        let later = (2..=200).map(|second| {
            meter.add(10 * 1024);
            meter.read(start + second * SECOND)
        });
        assert!(later.last().is_some_and(|kbps| (19.0..21.0).contains(&kbps)));
    }

    #[test]
    fn bursts_of_a_minute_move_the_average_by_a_few_hundredths_of_their_height() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        let mut at = |second: u32| {
            meter.add(if (second / 60).is_multiple_of(2) { 1000 * 1024 } else { 0 });
            meter.read(start + second * SECOND)
        };
        let all: Vec<f64> = (1..=7200).map(&mut at).collect();
        assert!(all[3600..].iter().all(|kbps| (450.0..550.0).contains(kbps)));
    }

    #[test]
    fn a_row_is_off_by_more_than_a_tenth_and_more_than_a_trifle() {
        for (stored, kbps, off) in [
            (Some(100.0), 110.0, false),
            (Some(100.0), 111.0, true),
            (Some(100.0), 89.0, true),
            (Some(0.5), 0.42, false),
            (Some(0.5), 0.39, true),
            (None, 0.05, false),
            (None, 1.0, true),
        ] {
            assert_eq!(is_off(stored, kbps), off, "{stored:?} {kbps}");
        }
    }

    #[test]
    fn the_average_follows_a_steady_rate_and_forgets_an_old_one_within_an_hour() {
        let start = Instant::now();
        let mut meter = Meter::new(None, start);
        let mut at = |second: u32, bytes: usize| {
            meter.add(bytes);
            meter.read(start + second * SECOND)
        };
        for second in 1..=1200 {
            at(second, 2048);
        }
        assert_eq!(at(1201, 2048), 2.0);
        let ten_minutes = (1202..=1801).map(|second| at(second, 0)).last().expect("a rate");
        assert!((0.7..0.8).contains(&ten_minutes), "{ten_minutes}");
        let hour = (1802..=4800).map(|second| at(second, 0)).last().expect("a rate");
        assert!(hour < 0.01, "{hour}");
    }
}
