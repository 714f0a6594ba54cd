//! The files for probes: one whose time of change is that of the slowest part's progress, and the status
//! beside it, which says why.
//!
//! A sick disk may block, so writing happens on a blocking thread, and what cannot be written stops nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use crate::{
    clock,
    core::health::Health,
    health::{Status, status_path},
    worker::faults::Faults,
};

/// A status that does not change is written again after this.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// A part without progress for longer is told at every turn: a status that stands still then means that the
/// process does.
const SLOW: Duration = Duration::from_millis(500);

/// Where a worker's health is written to.
#[derive(Clone, Debug)]
pub(super) struct HealthFile {
    pub(super) path: PathBuf,
    pub(super) worker: String,
    pub(super) max_age: Duration,
}

impl HealthFile {
    /// Removes what an earlier run left, and makes sure that the file can be written.
    ///
    /// # Errors
    /// If the path cannot be right. A disk that is full may have room later, and is no error.
    pub(super) fn prepare(&self) -> io::Result<()> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
        let made = fs::OpenOptions::new().create(true).append(true).open(&self.path).map(drop);
        match made.and_then(|()| fs::remove_file(&self.path)) {
            Err(error)
                if matches!(
                    error.kind(),
                    NotFound | PermissionDenied | NotADirectory | IsADirectory | ReadOnlyFilesystem
                ) =>
            {
                return Err(error);
            }
            Err(error) => debug!(%error, "health file not made yet"),
            Ok(()) => {}
        }
        let _ = fs::remove_file(status_path(&self.path));
        Ok(())
    }

    pub(super) fn writer(self) -> Writer {
        Writer { file: self, faults: Faults::once(), told: None }
    }
}

/// Writes the files.
#[derive(Debug)]
pub(super) struct Writer {
    file: HealthFile,
    faults: Faults,
    /// The last status written, and when.
    told: Option<(Health, Instant)>,
}

impl Writer {
    /// Sets the time of the file, unless the worker is still starting, and the status if it has changed.
    pub(super) async fn write(&mut self, health: &Health, touch: bool) {
        let now = clock::now();
        let is_told = self.told.as_ref().is_some_and(|(told, at)| {
            let unchanged = Health { age: health.age, ..told.clone() } == *health;
            unchanged && health.age < SLOW && now < *at + STATUS_INTERVAL
        });
        let status = (!is_told).then(|| {
            Status {
                health: health.clone(),
                worker: self.file.worker.clone(),
                pid: std::process::id(),
                max_age: self.file.max_age,
            }
            .to_json()
        });
        let touched = touch.then(|| clock::date().checked_sub(health.age).unwrap_or(std::time::UNIX_EPOCH));
        let path = self.file.path.clone();
        let written = blocking(move || {
            // The status first: a probe that finds the file stale finds the reason.
            status.map_or(Ok(()), |status| replace(&status_path(&path), &status))?;
            let Some(touched) = touched else { return Ok(()) };
            fs::OpenOptions::new().create(true).append(true).open(&path)?.set_modified(touched)
        });
        match written.await {
            Ok(()) => {
                if !is_told {
                    self.told = Some((health.clone(), now));
                }
                if let Some(count) = self.faults.over() {
                    info!(count, "the health file can be written again");
                }
            }
            Err(error) => {
                self.told = None;
                if self.faults.failed().is_some() {
                    warn!(path = %self.file.path.display(), %error, "health file not written; trying again");
                }
            }
        }
    }

    /// Removes both: a stopped worker has no health.
    pub(super) async fn remove(self) {
        let path = self.file.path;
        let removed = blocking(move || {
            let _ = fs::remove_file(status_path(&path));
            fs::remove_file(path)
        });
        if let Err(error) = removed.await {
            debug!(%error, "health file not removed");
        }
    }
}

/// Writes a file so that whoever reads it meanwhile finds the old text or the new one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
