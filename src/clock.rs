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

/// The date, moved along with a paused clock.
pub(crate) fn wall() -> SystemTime {
    let (tokio, real) = (now(), Instant::now());
    match tokio.checked_duration_since(real) {
        Some(ahead) => SystemTime::now() + ahead,
        None => SystemTime::now() - (real - tokio),
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
