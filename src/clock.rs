//! The one clock: tokio's, so that a paused runtime moves everything.
//!
//! Lease logic uses only [`now`], which is monotonic. [`wall`] is for what is a date: the arrival time
//! of a record, the time at which an application first started.
#![expect(clippy::disallowed_methods, reason = "this is the place")]

use std::time::{Duration, Instant, SystemTime};

/// The monotonic time.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The date: the operating system's, or one that moves along with a clock that was paused. The latter depends
/// on that clock and on nothing else, so that a simulation can be repeated.
///
/// It is the clock that decides, not a feature: binaries are built with the features of tests too, and theirs
/// must follow a date that is set.
pub(crate) fn wall() -> SystemTime {
    static ORIGIN: std::sync::OnceLock<(Instant, SystemTime)> = std::sync::OnceLock::new();
    let Some(now) = moved() else { return SystemTime::now() };
    let (origin, date) = *ORIGIN.get_or_init(|| (Instant::now(), SystemTime::now()));
    match now.checked_duration_since(origin) {
        Some(after) => date + after,
        None => date - (origin - now),
    }
}

/// The time of a clock that was paused or moved; none while it runs as the operating system's does.
fn moved() -> Option<Instant> {
    let before = Instant::now();
    let now = now();
    let after = Instant::now();
    (now < before || after < now).then_some(now)
}

/// The date, of the operating system alone: for ages of files.
pub(crate) fn date() -> SystemTime {
    SystemTime::now()
}

/// Waits until `deadline`.
pub(crate) async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline.into()).await;
}

/// Waits that long.
pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_runs_has_the_date_of_the_operating_system() {
        for _ in 0..1000 {
            assert_eq!(moved(), None);
        }
        let (before, date, after) = (SystemTime::now(), wall(), SystemTime::now());
        assert!(before <= date && date <= after);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_takes_the_date_along() {
        let before = wall();
        sleep(Duration::from_secs(3600)).await;
        assert!(moved().is_some());
        assert_eq!(wall().duration_since(before).ok(), Some(Duration::from_secs(3600)));
    }
}
