//! Publishes what was measured: levels every few seconds, everything once a minute, beside the work and
//! never in its way.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{select, sync::watch, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock,
    core::metrics::{Metric, schedule},
    io::{MetricsError, MetricsSink},
    worker::{faults::Faults, freeze::Gate, meter::Meter, renewer::cause},
};

/// How often levels and lags are taken.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the last values may take when the worker has ended: it comes on top of `shutdown_timeout`.
const LAST_FLUSH: Duration = Duration::from_secs(2);
/// The wait before the last values are tried again.
const LAST_RETRY: Duration = Duration::from_millis(250);

/// Measures and publishes until `stop`, then once more.
pub(super) async fn run(meter: Arc<Meter>, gate: Gate, stop: CancellationToken) {
    if meter.is_off() {
        return;
    }
    let (flushes, last) = (watch::Sender::new(()), CancellationToken::new());
    // Each for itself: a sink that hangs keeps no other from publishing, nor the levels from being taken.
    let mut publishers = JoinSet::new();
    for sink in meter.sinks() {
        let publisher = Publisher { sink: sink.clone(), meter: meter.clone(), log: Log::default() };
        publishers.spawn(gate.pass(publisher.run(flushes.subscribe(), last.clone())));
    }
    let phase = schedule::phase(&meter.origin().worker);
    let mut next_sample = clock::now() + SAMPLE_INTERVAL;
    let mut next_flush = clock::now() + schedule::wait(date(), phase, false);
    loop {
        select! {
            biased;
            () = stop.cancelled() => break,
            () = clock::sleep_until(next_flush) => {
                meter.sample();
                flushes.send_replace(());
                next_flush = clock::now() + schedule::wait(date(), phase, true);
            }
            () = clock::sleep_until(next_sample) => meter.sample(),
        }
        next_sample = clock::now() + SAMPLE_INTERVAL;
    }
    meter.end();
    last.cancel();
    while let Some(over) = publishers.join_next().await {
        if let Err(error) = over {
            warn!(%error, "a sink of metrics panicked; nothing was published by it since");
        }
    }
}

/// Lets one sink publish.
struct Publisher {
    sink: Arc<dyn MetricsSink>,
    meter: Arc<Meter>,
    log: Log,
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

impl Publisher {
    /// Publishes when it is time to, until the `last` values are there.
    async fn run(mut self, mut flushes: watch::Receiver<()>, last: CancellationToken) {
        let each = async {
            while flushes.changed().await.is_ok() {
                self.flush().await;
            }
        };
        select! {
            biased;
            // What was not published yet goes with the last values.
            () = last.cancelled() => {}
            () = each => {}
        }
        let last = async {
            while !self.flush().await {
                clock::sleep(LAST_RETRY).await;
            }
        };
        if time::timeout(LAST_FLUSH, last).await.is_err() {
            info!("the last metrics were not published in time");
        }
    }

    /// True if the sink published, or never will.
    async fn flush(&mut self) -> bool {
        let Self { sink, meter, log } = self;
        let published = sink.flush().await;
        let over = match &published {
            Ok(()) => {
                if let Some(count) = log.faults.over() {
                    info!(count, "metrics are published again");
                }
                log.denied.over();
                true
            }
            // Not to be cured here: said once.
            Err(error @ MetricsError::Denied(_)) => {
                if log.denied.failed().is_some() {
                    warn!(%error, cause = cause(error), "metrics are not published");
                }
                true
            }
            Err(error) => {
                if let Some(faults) = log.faults.failed() {
                    warn!(faults, %error, cause = cause(error), "metrics are not published; the next ones go with them");
                }
                matches!(error, MetricsError::Refused(_))
            }
        };
        let dropped = sink.dropped();
        if dropped > 0 {
            meter.record(Metric::MetricsDropped, dropped as f64);
            if log.dropped.failed().is_some() {
                warn!(dropped, "measured values were dropped");
            }
        }
        over
    }
}

fn date() -> Duration {
    clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
