//! The health file: touched at every sign of progress, by one task, a few times a second at most.
//!
//! Writing may block on a sick disk, so it happens on a blocking thread; progress never waits for it.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{select, sync::Notify};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{clock, worker::faults::Faults};

/// Touches more frequent than this are one.
const SPACING: Duration = Duration::from_millis(200);

/// Says that there was progress. Cheap, never waits; does nothing without a configured file.
#[derive(Clone, Debug)]
pub(super) struct HealthFile {
    path: Option<Arc<PathBuf>>,
    progress: Arc<Notify>,
}

impl HealthFile {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path: path.map(Arc::new), progress: Arc::new(Notify::new()) }
    }

    /// There was progress.
    pub(super) fn touch(&self) {
        if self.path.is_some() {
            self.progress.notify_one();
        }
    }

    /// Makes sure that the file can be written, without leaving a fresh one: an earlier run's file is removed.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        fs::OpenOptions::new().create(true).append(true).open(path.as_path())?;
        fs::remove_file(path.as_path())
    }

    /// Writes until `stop`, then removes the file: a stopped worker has no health.
    pub(super) async fn run(self, stop: CancellationToken) {
        let Some(path) = self.path else { return };
        let mut faults = Faults::default();
        loop {
            select! {
                biased;
                () = stop.cancelled() => break,
                () = self.progress.notified() => {}
            }
            match blocking(touch, &path).await {
                Ok(()) => {
                    if let Some(count) = faults.over() {
                        debug!(count, "the health file can be written again");
                    }
                }
                Err(error) if faults.failed() => {
                    warn!(path = %path.display(), %error, "health file not written");
                }
                Err(_) => {}
            }
            select! {
                biased;
                () = stop.cancelled() => break,
                () = clock::sleep(SPACING) => {}
            }
        }
        if let Err(error) = blocking(fs::remove_file, &path).await {
            debug!(%error, "health file not removed");
        }
    }
}

impl std::fmt::Display for HealthFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("none"),
        }
    }
}

fn touch(path: PathBuf) -> io::Result<()> {
    let file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.set_modified(clock::date())
}

async fn blocking(work: fn(PathBuf) -> io::Result<()>, path: &Arc<PathBuf>) -> io::Result<()> {
    let path = PathBuf::clone(path);
    tokio::task::spawn_blocking(move || work(path)).await.map_err(io::Error::other)?
}
