//! The signals that stop a worker: SIGTERM, which Kubernetes sends, and SIGINT, Ctrl-C.

use std::{future::pending, io};

use tokio::select;
use tracing::warn;

/// Resolves at the first SIGTERM or SIGINT (on Windows at Ctrl-C), to give to
/// [`Worker::run_until`](crate::Worker::run_until), which then waits for a second one to abort.
///
/// From the first poll on, these signals no longer end the process by themselves.
pub async fn shutdown_signal() -> SecondSignal {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            warn!(%error, "signals cannot be received; the worker stops only on request");
            return pending().await;
        }
    };
    signals.received().await;
    SecondSignal(Some(signals))
}

/// What follows the first signal: another one, or nothing.
#[derive(Debug)]
pub struct SecondSignal(Option<Signals>);

impl SecondSignal {
    pub(super) async fn received(self) {
        match self.0 {
            Some(mut signals) => signals.received().await,
            None => pending().await,
        }
    }
}

/// A future of one's own stops the worker once; nothing aborts it.
impl From<()> for SecondSignal {
    fn from((): ()) -> Self {
        Self(None)
    }
}

#[cfg(unix)]
#[derive(Debug)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn received(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
