//! Health for probes: liveness by the age of a file, the reason in another one beside it.
//!
//! A worker with [`Config::health_file`](crate::Config::health_file) sets the file's time of change to the
//! moment of its slowest part's last progress, once a second. As long as all wait with reason (for records,
//! for a retry, for a throttle, for AWS to come back, for a lease) that is now. So the file is fresh
//! exactly while a restart would not help, and one stuck shard is not masked by the others.
//!
//! Beside it, at the same path with `.json` added, stands the [`Status`]: why, which shard, and whether
//! the worker is ready.
//!
//! Three ways to ask, which agree:
//!
//! | where | probe |
//! |---|---|
//! | an image without a shell | `consumer healthcheck --file /run/health`, by [`cli`](fn@cli) |
//! | an image with `find`, GNU's or BusyBox's | `test -n "$(find /run -maxdepth 1 -name health -mmin -1)"` |
//! | your own code | [`check`], or [`WorkerHandle::health`](crate::WorkerHandle::health) |

mod cli;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::cli::{cli, probe};
pub use crate::core::health::{Health, Reason, State};

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

/// The status file: how the worker was when it was last written, which is whenever that changes, and at
/// least every ten seconds. As JSON it is one object, the fields of [`Health`] among the others:
///
/// ```json
/// {"state":"stale","reason":"processor_stuck","shard":"shardId-000000000003","age_millis":31002,
///  "ready":true,"leases":12,"worker":"pod-7-x1y2","pid":1,"max_age":"30s"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// How the worker was.
    #[serde(flatten)]
    pub health: Health,
    /// Its id.
    pub worker: String,
    /// Its process.
    pub pid: u32,
    /// Its `health_max_age`.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

impl Status {
    /// Reads the status beside the health file at `path`; none if there is none.
    ///
    /// # Errors
    /// If it is there but cannot be read or understood.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        match fs::read(status_path(path.as_ref())) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).expect("plain data with text keys");
        text.push(b'\n');
        text
    }
}

/// Where the status of a health file stands.
pub(crate) fn status_path(health_file: &Path) -> PathBuf {
    let mut path = health_file.as_os_str().to_owned();
    path.push(".json");
    path.into()
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

    #[test]
    fn the_status_is_one_flat_object_and_is_read_back() {
        let health = Health {
            state: State::Stale,
            reason: Reason::ProcessorStuck,
            shard: Some("shardId-000000000003".into()),
            age: Duration::from_millis(31_002),
            ready: true,
            leases: 12,
        };
        let max_age = Duration::from_secs(30);
        let status = Status { health, worker: "pod-7".into(), pid: 1, max_age };
        let text = String::from_utf8(status.to_json()).expect("text");
        let expected = r#"{"state":"stale","reason":"processor_stuck","shard":"shardId-000000000003","#
            .to_owned()
            + r#""age_millis":31002,"ready":true,"leases":12,"worker":"pod-7","pid":1,"max_age":"30s"}"#
            + "\n";
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Status>(&text).expect("valid"), status);
    }
}
