//! Liveness by the age of a file: what a Kubernetes probe asks.
//!
//! A worker with [`Config::health_file`](crate::Config::health_file) touches the file when it has
//! initialised, at each read of a shard (an empty one too), when it hands records to the processor,
//! during retry waits, and at each look at the lease table while it holds no shard.

use std::{fs, io, path::Path, time::Duration};

/// What the health file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Touched within the allowed age.
    Fresh {
        /// How long ago.
        age: Duration,
    },
    /// Touched longer ago than allowed: a restart would help.
    Stale {
        /// How long ago.
        age: Duration,
    },
    /// There is no such file: the worker has not initialised yet, or has stopped.
    Missing,
}

impl Verdict {
    /// Whether a probe should succeed.
    pub fn is_fresh(self) -> bool {
        matches!(self, Self::Fresh { .. })
    }
}

/// Looks at the health file at `path`: fresh if it was touched within `max_age`.
///
/// A time of touching in the future, after the clock was set back, counts as now.
///
/// ```
/// # use std::time::Duration;
/// use kinesis_consumer::health;
/// let verdict = health::check("/tmp/no-such-file", Duration::from_secs(5))?;
/// assert_eq!(verdict, health::Verdict::Missing);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// If the file is there but cannot be looked at.
pub fn check(path: impl AsRef<Path>, max_age: Duration) -> io::Result<Verdict> {
    let touched = match fs::metadata(path) {
        Ok(metadata) => metadata.modified()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Verdict::Missing),
        Err(error) => return Err(error),
    };
    let age = crate::clock::date().duration_since(touched).unwrap_or_default();
    Ok(if age <= max_age { Verdict::Fresh { age } } else { Verdict::Stale { age } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_fresh_until_it_is_older_than_allowed() {
        let path = std::env::temp_dir().join(format!("kinesis-consumer-health-{}", std::process::id()));
        let file = fs::File::create(&path).expect("a writable temporary folder");
        let max = Duration::from_secs(5);
        assert!(check(&path, max).expect("readable").is_fresh());
        file.set_modified(crate::clock::date() - Duration::from_secs(6)).expect("settable");
        assert!(matches!(check(&path, max).expect("readable"), Verdict::Stale { age } if age > max));
        file.set_modified(crate::clock::date() + Duration::from_secs(60)).expect("settable");
        assert!(check(&path, max).expect("readable").is_fresh());
        fs::remove_file(&path).expect("removable");
        assert_eq!(check(&path, max).expect("readable"), Verdict::Missing);
    }
}
