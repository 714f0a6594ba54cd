//! Heartbeats: this worker's own, if it has one; those of others, read again when they seem silent and
//! deleted when they are over.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use super::{Coordinator, claims};
use crate::{
    clock,
    config::{Config, Heartbeat},
    core::{
        audit::is_foreign,
        lease::{Lease, LeaseKey},
        lease_view::LeaseView,
        look_schedule::LookSchedule,
    },
    error::LeaseLost,
    io::Rows,
    worker::{coordinator::CALLS_AT_ONCE, held_lease::HeldLease, pulse::Heart, renewer::cause},
};

/// Worker rows that one worker deletes in one look: all workers see the same ones.
const FORGOTTEN_AT_ONCE: usize = 4;

/// Takes in one look, and what it cost, but for the rows of other streams than `identity`: they are nobody's here,
/// not even to be cleaned up. Returns the leases in doubt, as [`LeaseView::observe`] does.
pub(super) fn take_in(
    view: &mut LeaseView,
    looks: &mut LookSchedule,
    mut rows: Rows,
    identity: &str,
    now: Instant,
) -> Vec<LeaseKey> {
    trace!(name: "take_in", leases = rows.leases.len());
    looks.looked(rows.leases.len() + rows.workers.len(), rows.read_units, now);
    rows.leases.retain(|lease| !is_foreign(lease, identity));
    let doubtful = view.observe(rows.leases, now);
    view.observe_workers(rows.workers, now);
    trace!(name: "taken_in", doubtful = doubtful.len());
    doubtful
}

/// The worker's own heartbeat, and the task that keeps it.
#[derive(Debug)]
pub(super) struct Keeper {
    /// None if each lease is renewed by itself.
    heart: Option<Arc<Heart>>,
    task: JoinSet<()>,
    stop: CancellationToken,
}

impl Keeper {
    pub(super) fn new(config: &Config) -> Self {
        let heart = (config.heartbeat == Heartbeat::Worker).then(Arc::default);
        Self { heart, task: JoinSet::new(), stop: CancellationToken::new() }
    }

    /// Whether this worker is to have a heartbeat.
    pub(super) fn is_wanted(&self) -> bool {
        self.heart.is_some()
    }

    pub(super) fn heart(&self) -> Option<Arc<Heart>> {
        self.heart.clone()
    }

    /// Ends the heartbeat and deletes its row, if the table answers by then.
    pub(super) async fn end(&mut self, patience: Duration) {
        self.stop.cancel();
        let over = async { while self.task.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = over => {}
            () = clock::sleep(patience) => {}
        }
    }
}

impl Coordinator {
    /// Begins a heartbeat, if this worker should have one and has none that beats. Leases that are claimed
    /// without one renew themselves, and go over to it later.
    pub(super) async fn beat(&mut self) {
        let Some(heart) = self.pulse.heart() else { return };
        while self.pulse.task.try_join_next().is_some() {}
        if heart.current().is_some() {
            return;
        }
        let failover_time = self.parts.config.failover_time;
        let parts = &mut self.parts;
        match heart.begin(&parts.me, parts.process, &*parts.store, failover_time).await {
            Ok(Some(pulse)) => {
                self.write_faults.over();
                debug!(worker = %pulse.incarnation(), "heartbeat begins");
                let (store, beat_after) = (parts.store.clone(), parts.config.renew_after());
                let (stop, mut rng) = (self.pulse.stop.clone(), StdRng::seed_from_u64(parts.rng.random()));
                let keep = async move { pulse.keep(&*store, beat_after, &mut rng, &stop).await };
                self.pulse.task.spawn(parts.gate.pass(keep));
            }
            Ok(None) => debug!("no heartbeat yet; trying again"),
            Err(error) => {
                if let Some(count) = self.write_faults.failed() {
                    warn!(%error, cause = cause(&error), count, "no heartbeat yet; trying again");
                }
            }
        }
    }

    /// Gives up leases that live by our heartbeat although we do not work on them: a claim whose reply was
    /// lost, a release that failed, user code that does not let go. As long as we live nobody else may.
    pub(super) async fn disown(&mut self) {
        let Some(pulse) = self.pulse.heart().and_then(|heart| heart.current()) else { return };
        let stray = |lease: &&Lease| {
            let working = self.links.get(&lease.key).is_some_and(|link| {
                // Released: it is being given up.
                link.held.why_lost().is_none_or(|why| why == LeaseLost::Released) || link.held.is_given_up()
            });
            let ours = lease.lives_by() == Some(pulse.incarnation()) && !lease.is_finished();
            ours && !working && !self.asked.contains_key(&lease.key)
        };
        let stray: Vec<Lease> = self.view.leases().filter(stray).take(CALLS_AT_ONCE).cloned().collect();
        for lease in stray {
            let taker = self.taker_of_one();
            self.given_back.spawn(self.parts.gate.pass(async move {
                claims::give_back(HeldLease::claim(&lease, &taker).await, &lease.key, "it was nobody's")
                    .await;
            }));
        }
    }

    /// Reads the rows of workers whose heartbeats seem to stand still: the look may be stale. A read that
    /// fails is repeated at the next look, and until then the worker counts as alive.
    pub(super) async fn confirm_silence(&mut self) {
        let failover_time = self.parts.config.failover_time;
        let suspects = self.view.heartbeats.suspects(self.view.leases(), failover_time, clock::now());
        let mut under_way = JoinSet::new();
        for incarnation in suspects.into_iter().take(CALLS_AT_ONCE) {
            let store = self.parts.store.clone();
            under_way.spawn(self.parts.gate.pass(async move {
                let row = store.worker(&incarnation).await;
                (incarnation, row)
            }));
        }
        while let Some(Some(read)) = self.stop.run_until_cancelled(under_way.join_next()).await {
            let (incarnation, row) = read.expect("reads do not panic and are not aborted");
            self.looks.read(1.0);
            match row {
                Ok(row) => self.view.heartbeats.confirm(&incarnation, row.as_ref(), clock::now()),
                Err(error) => debug!(worker = %incarnation, %error, "heartbeat not read; trying again"),
            }
        }
    }

    /// Deletes rows of workers that are over and that no lease lives by; the rest at the next looks.
    pub(super) async fn forget_workers(&self) {
        let (view, patience) = (&self.view, self.parts.config.failover_time * 2);
        let stale = view.heartbeats.forgettable(view.leases(), patience, clock::now());
        for row in stale.into_iter().take(FORGOTTEN_AT_ONCE) {
            match self.parts.store.forget(&row).await {
                Ok(deleted) => debug!(worker = %row.incarnation, deleted, "silent worker's row"),
                Err(error) => {
                    debug!(worker = %row.incarnation, %error, "silent worker's row not deleted; trying again");
                    return;
                }
            }
        }
    }
}
