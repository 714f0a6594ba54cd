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

/// The date.
#[cfg(not(any(test, feature = "test-util")))]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// The date, moved along with a paused clock: it depends on the clock and on nothing else, so that a
/// simulation can be repeated.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn wall() -> SystemTime {
    static ORIGIN: std::sync::OnceLock<(Instant, SystemTime)> = std::sync::OnceLock::new();
    let (origin, date) = *ORIGIN.get_or_init(|| (Instant::now(), SystemTime::now()));
    let now = now();
    match now.checked_duration_since(origin) {
        Some(after) => date + after,
        None => date - (origin - now),
    }
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
