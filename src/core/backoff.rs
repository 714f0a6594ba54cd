//! Back-off: how long to wait before the next try of what failed.
//!
//! Decides delays only; who waits, for what, and when to give up is the caller's. The delays are
//! spread over the whole growing interval ("full jitter", from the AWS Architecture Blog), so that
//! workers that failed together do not come back together.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Growing random delays: the n-th in a row is anywhere from `min` to `min` times two to the n, and never
/// above `max`.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `min` to `max`; always `min` if `max` is lower. With a `min` of zero there is no delay.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), ceiling: min, failures: 0 }
    }

    /// Takes note of a failure and draws the delay before the next try.
    pub(crate) fn next(&mut self, rng: &mut impl Rng) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        rng.random_range(self.min..=self.ceiling)
    }

    /// Takes note of a success: the next delay is short again.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.min;
        self.failures = 0;
    }

    /// How many failures there were since the last success.
    #[cfg(test)]
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

/// For code and services that may need a while: from 100 ms to 30 s.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn mean(delays: impl ExactSizeIterator<Item = Duration>) -> Duration {
        let count = u32::try_from(delays.len()).expect("few");
        delays.sum::<Duration>() / count
    }

    #[test]
    fn delays_grow_until_the_maximum_and_start_over_after_a_success() {
        let mut rng = StdRng::seed_from_u64(1);
        let runs: Vec<Vec<Duration>> = (0..1000)
            .map(|_| {
                let mut backoff = Backoff::default();
                let mut delays: Vec<_> = (0..12).map(|_| backoff.next(&mut rng)).collect();
                assert_eq!(backoff.failures(), 12);
                backoff.reset();
                delays.push(backoff.next(&mut rng));
                delays
            })
            .collect();
        let means: Vec<u128> =
            (0..13).map(|n| mean(runs.iter().map(|delays| delays[n])).as_millis()).collect();
        assert!(means[..9].is_sorted(), "{means:?}");
        assert!((140..160).contains(&means[0]) && (140..160).contains(&means[12]), "{means:?}");
        assert!((14_000..16_000).contains(&means[11]), "{means:?}");
    }

    #[test]
    fn two_that_fail_together_do_not_return_together() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut backoffs = vec![Backoff::default(); 100];
        let mut delays: Vec<_> = backoffs.iter_mut().map(|backoff| backoff.next(&mut rng)).collect();
        delays.sort();
        delays.dedup();
        assert_eq!(delays.len(), 100);
    }

    proptest! {
        #[test]
        fn no_delay_is_outside_of_the_limits(min: u32, max: u32, tries in 1..100_usize, seed: u64) {
            let (min, max) = (Duration::from_millis(min.into()), Duration::from_millis(max.into()));
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(min, max);
            for _ in 0..tries {
                let delay = backoff.next(&mut rng);
                prop_assert!(min <= delay && delay <= max.max(min));
            }
        }

        #[test]
        fn the_longest_durations_do_not_overflow(seed: u64) {
            let mut backoff = Backoff::new(Duration::from_secs(u64::MAX / 3), Duration::MAX);
            let mut rng = StdRng::seed_from_u64(seed);
            (0..5).for_each(|_| assert!(backoff.next(&mut rng) > Duration::ZERO));
        }
    }
}
