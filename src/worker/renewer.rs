//! Keeps one lease: renews it in time, writes what was acknowledged, and notices when work stands still.
//!
//! In the task of the shard's consumer, apart from the user's code, and waiting for no channel: nothing there
//! delays a renewal. A checkpoint
//! counts as a renewal; an idle lease costs two writes in `failover_time`, or none if the worker has a
//! heartbeat of its own. KCL: `DynamoDBLeaseRenewer`,
//! which renews three times in it and again for each checkpoint.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use tokio::select;
use tracing::{info, warn};

use crate::{
    clock,
    config::Config,
    core::{
        backoff::Backoff,
        balance::Balance,
        throughput::{self, COMPARE_INTERVAL},
    },
    error::LeaseLost,
    worker::{held_lease::WriteError, shard_link::ShardLink},
};

/// Runs until the lease is no longer held, and says why.
pub(super) async fn keep(link: &ShardLink, config: &Config, rng: &mut impl Rng) -> LeaseLost {
    let mut faults = link.fault_logs.renewals.row();
    let mut backoff = Backoff::new(config.renew_after() / 50, config.renew_after());
    // Leases that were claimed together are renewed apart, from the first time on.
    let mut early = config.renew_after().mul_f64(rng.random_range(0.0..1.0));
    let mut not_before = clock::now();
    // A row that rests would go on to say what its shard brought long ago.
    let weighed = config.balance == Balance::Throughput;
    let mut compare_at = weighed.then(|| clock::now() + COMPARE_INTERVAL.mul_f64(rng.random_range(0.2..1.0)));
    loop {
        let write = link.write_due();
        // What is to be written soon anyway renews: not a moment before it is due.
        let early_now = if write.is_some() { Duration::ZERO } else { early };
        let due = || {
            let renewal = link.held.renewal_due(config.renew_after() - early_now);
            write.map_or(renewal, |write| write.min(renewal)).max(not_before)
        };
        let stall = link.owed_since().map(|since| since + config.stall_timeout);
        let wake = [stall, compare_at].into_iter().flatten().fold(due(), Instant::min);
        select! {
            biased;
            why = link.held.lost() => return why,
            () = clock::sleep_until(wake) => {}
            () = link.changed.notified() => continue,
        }
        if stall.is_some_and(|stall| clock::now() >= stall) {
            warn!(shard = %link.shard, timeout = ?config.stall_timeout, "no progress; the lease is given up");
            // First the work ends; then the row goes back, so that another worker can try at once.
            link.held.lose(LeaseLost::Stalled);
            return LeaseLost::Stalled;
        }
        let mut off = false;
        if compare_at.is_some_and(|at| clock::now() >= at) {
            compare_at = Some(clock::now() + COMPARE_INTERVAL);
            let stored = link.held.row().await.throughput_kbps;
            off = link.throughput_kbps().is_some_and(|kbps| throughput::is_off(stored, kbps));
        }
        // A heartbeat or a look may have put the renewal off meanwhile.
        if clock::now() < due() && !off {
            continue;
        }
        if weighed && let Some(kbps) = link.throughput_kbps() {
            link.held.measured(kbps).await;
        }
        let result = match link.unwritten() {
            Some(_) => link.flush().await,
            None => link.renew().await,
        };
        match result {
            Ok(()) => {
                if let Some(count) = faults.over() {
                    info!(shard = %link.shard, count, "lease writes succeed again");
                }
                backoff.reset();
                early = config.renew_after().mul_f64(rng.random_range(0.0..0.02));
                not_before = clock::now();
            }
            Err(WriteError::Lost(why)) => return why,
            // Only that the table does not answer: the watermark never goes back.
            Err(error) => {
                let left = link.held.valid_until().saturating_duration_since(clock::now());
                if let Some(faults) = faults.failed() {
                    warn!(faults, shard = %link.shard, %error, cause = cause(&error), ?left, "lease not renewed; trying again");
                }
                // More and more often towards the end: a table that throttles most calls costs no lease.
                let delay = backoff.next(rng).min(left / 8).max(config.renew_after() / 50);
                not_before = clock::now() + delay;
            }
        }
    }
}

/// The innermost cause of an error: what AWS or the network said.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use crate::io::LeaseError;

    #[test]
    fn the_cause_of_an_error_is_what_its_innermost_source_says() {
        let refused = std::io::Error::other("connection refused");
        let call = LeaseError::Unavailable { operation: "renew", source: Box::new(refused) };
        assert_eq!(super::cause(&call), "connection refused");
    }
}
