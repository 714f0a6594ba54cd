//! Publishes what was measured: levels every few seconds, everything once a minute, beside the work and
//! never in its way.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{select, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock,
    core::metrics::{Metric, schedule},
    io::MetricsError,
    worker::{faults::Faults, meter::Meter, renewer::cause},
};

/// How often levels and lags are taken.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the last values may take when the worker has ended: it comes on top of `shutdown_timeout`.
const LAST_FLUSH: Duration = Duration::from_secs(2);
/// The wait before the last values are tried again.
const LAST_RETRY: Duration = Duration::from_millis(250);

/// Publishes until `stop`, then once more.
pub(super) async fn run(meter: Arc<Meter>, stop: CancellationToken) {
    if meter.is_off() {
        return;
    }
    let phase = schedule::phase(&meter.origin().worker);
    let mut reporter = Reporter { log: meter.sinks().iter().map(|_| Log::default()).collect(), meter };
    let mut next_sample = clock::now() + SAMPLE_INTERVAL;
    let mut next_flush = clock::now() + schedule::wait(date(), phase, false);
    loop {
        select! {
            biased;
            () = stop.cancelled() => break,
            () = clock::sleep_until(next_flush) => {
                reporter.meter.sample();
                select! {
                    biased;
                    // What was not published yet goes with the last values.
                    () = stop.cancelled() => break,
                    _ = reporter.flush() => {}
                }
                next_flush = clock::now() + schedule::wait(date(), phase, true);
                next_sample = clock::now() + SAMPLE_INTERVAL;
            }
            () = clock::sleep_until(next_sample) => {
                reporter.meter.sample();
                next_sample = clock::now() + SAMPLE_INTERVAL;
            }
        }
    }
    reporter.meter.end();
    let last = async {
        while !reporter.flush().await {
            clock::sleep(LAST_RETRY).await;
        }
    };
    if time::timeout(LAST_FLUSH, last).await.is_err() {
        info!("the last metrics were not published in time");
    }
}

struct Reporter {
    meter: Arc<Meter>,
    /// Of each sink.
    log: Vec<Log>,
}

struct Log {
    faults: Faults,
    denied: Faults,
    dropped: Faults,
}

impl Default for Log {
    fn default() -> Self {
        Self { faults: Faults::default(), denied: Faults::once(), dropped: Faults::default() }
    }
}

impl Reporter {
    /// Lets every sink publish. True if all did, or never will.
    async fn flush(&mut self) -> bool {
        let mut all = true;
        for (sink, log) in self.meter.sinks().iter().zip(&mut self.log) {
            match sink.flush().await {
                Ok(()) => {
                    if let Some(count) = log.faults.over() {
                        info!(count, "metrics are published again");
                    }
                    log.denied.over();
                }
                // Not to be cured here: said once.
                Err(error @ MetricsError::Denied(_)) => {
                    if log.denied.failed().is_some() {
                        warn!(%error, cause = cause(&error), "metrics are not published");
                    }
                }
                Err(error) => {
                    all &= matches!(error, MetricsError::Refused(_));
                    if let Some(faults) = log.faults.failed() {
                        warn!(faults, %error, cause = cause(&error), "metrics are not published; the next ones go with them");
                    }
                }
            }
            let dropped = sink.dropped();
            if dropped > 0 {
                self.meter.record(Metric::MetricsDropped, dropped as f64);
                if log.dropped.failed().is_some() {
                    warn!(dropped, "measured values were dropped");
                }
            }
        }
        all
    }
}

fn date() -> Duration {
    clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
