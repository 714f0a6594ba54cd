//! Claims and requests: takes the leases that `balance` chose, and starts their shards.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::Coordinator;
use crate::{
    clock,
    config::{InitialPosition, OnShutdown, ShardOrder},
    core::{
        balance::{Claim, Reason},
        lease::{Checkpoint, HandOff, Lease, LeaseKey},
        metrics::Metric,
        race::Race,
    },
    error::WorkerError,
    io::LeaseError,
    worker::{
        consumer::Consumer,
        coordinator::CALLS_AT_ONCE,
        events::Event,
        held_lease::{HeldLease, Taker},
        reader,
        renewer::cause,
        shard_link::{ShardLink, Terms},
    },
};

/// How many leases that were asked for are looked at in one turn.
pub(super) const ASKED_AT_ONCE: usize = 8;

impl Coordinator {
    /// Writes the claims and starts what was won. True if a race was lost.
    pub(super) async fn claim(&mut self, claims: Vec<Claim>) -> Result<bool, WorkerError> {
        let mut lost_race = false;
        let (requests, mut claims): (Vec<Claim>, Vec<Claim>) =
            claims.into_iter().partition(|claim| claim.ask);
        self.ask(requests).await;
        // A race that is lost holds up nothing that nobody else can claim.
        claims.sort_by_key(Claim::is_anyones);
        let mut race = Race::new(CALLS_AT_ONCE);
        let mut waiting = claims.into_iter().peekable();
        let mut under_way = JoinSet::new();
        loop {
            while let Some(claim) = waiting.next_if(|claim| {
                let racing = !race.is_lost() && under_way.len() < race.at_once();
                if claim.is_anyones() { racing } else { under_way.len() < CALLS_AT_ONCE }
            }) {
                let Some(seen) = self.view.get(&claim.key).cloned() else { continue };
                let taker = self.taker();
                let absent = self.absent_parents(&seen);
                let unsure = self.unsure_parents(&seen, &absent);
                // Whether a parent without a row is to be read first is still to be found out.
                let settled = |parent: &LeaseKey| self.settled_parents.contains(&parent.shard());
                if seen.counter == 0
                    && seen.checkpoint == Checkpoint::TrimHorizon
                    && !absent.iter().all(settled)
                {
                    debug!(lease = %claim.key, "not claimed before its parents are known");
                    continue;
                }
                let call = claim.is_anyones().then(|| race.begin());
                under_way.spawn(self.parts.gate.pass(async move {
                    let won = claim_one(&seen, &unsure, &taker).await;
                    (claim, call, won)
                }));
            }
            let Some(done) = under_way.join_next().await else { return Ok(lost_race) };
            let (claim, call, won) = done.expect("claims do not panic and are not aborted");
            self.parts.vitals.turn();
            if let Some(call) = call {
                // A call that failed was lost to nobody; with few at once an outage would last for long here.
                race.over(call, !matches!(won, Ok(None)));
            }
            match won {
                Ok(Some((row, held))) => {
                    self.write_faults.over();
                    self.start(claim, row, held);
                }
                Ok(None) => {
                    debug!(lease = %claim.key, "another worker was faster");
                    self.parts.meter.record(Metric::UntakenLeases, 1.0);
                    lost_race = true;
                }
                Err(LeaseError::Denied { operation, source }) if self.links.is_empty() => {
                    let what = format!("{operation}: {}", cause(source.as_ref()));
                    return Err(WorkerError::Denied { what, source });
                }
                Err(error) => {
                    self.parts.meter.record(Metric::UntakenLeases, 1.0);
                    if let Some(faults) = self.write_faults.failed() {
                        warn!(lease = %claim.key, faults, %error, cause = cause(&error), "lease not claimed; trying again");
                    }
                }
            }
        }
    }

    /// This worker, as one that claims a lease to work on it.
    fn taker(&mut self) -> Taker {
        Taker { heart: self.pulse.heart(), ..self.taker_of_one() }
    }

    /// The same, but for a lease that is only to be given up: it is not to live by the heartbeat.
    pub(super) fn taker_of_one(&mut self) -> Taker {
        let (me, store) = (self.claimant(), self.parts.store.clone());
        Taker { me, store, failover_time: self.parts.config.failover_time, heart: None }
    }

    /// Asks holders for their leases. A request that fails or comes too late is made again at the next look.
    pub(super) async fn ask(&mut self, requests: Vec<Claim>) {
        let mut race = Race::new(CALLS_AT_ONCE);
        let mut waiting = requests.into_iter();
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < race.at_once() && !race.is_lost() {
                let Some(request) = waiting.next() else { break };
                let call = race.begin();
                let seen = self.view.get(&request.key).cloned();
                let Some((seen, ask)) = seen.and_then(|seen| Some((seen.clone(), seen.ask(&self.parts.me)?)))
                else {
                    continue;
                };
                let store = self.parts.store.clone();
                under_way.spawn(self.parts.gate.pass(async move {
                    let result = store.hand_off(&ask).await;
                    (seen, ask, call, result)
                }));
            }
            let Some(done) = under_way.join_next().await else { return };
            let (seen, ask, call, result) = done.expect("requests do not panic and are not aborted");
            self.parts.vitals.turn();
            match result {
                Ok(()) => {
                    debug!(lease = %ask.key(), from = %ask.from(), "lease asked for");
                    race.over(call, true);
                    self.parts.meter.asked(ask.key());
                    self.view.note(seen.after_request(&ask), clock::now());
                    self.asked.insert(ask.key().clone(), ask);
                }
                Err(LeaseError::Conflict(_)) => {
                    debug!(lease = %ask.key(), "the lease changed before it was asked for");
                    race.over(call, false);
                }
                Err(error) => {
                    if let Some(faults) = self.write_faults.failed() {
                        warn!(lease = %ask.key(), faults, %error, cause = cause(&error), "lease not asked for; trying again");
                    }
                    race.over(call, true);
                    // It may have been asked for all the same: the next look tells.
                    if matches!(error, LeaseError::Unavailable { .. }) {
                        self.asked.insert(ask.key().clone(), ask);
                    }
                }
            }
        }
    }

    /// Takes back all requests, each by a task of its own.
    pub(super) fn withdraw_all(&mut self, tasks: &mut JoinSet<()>) {
        for (_, ask) in std::mem::take(&mut self.asked) {
            let taker = self.taker_of_one();
            tasks.spawn(self.parts.gate.pass(withdraw(ask, taker)));
        }
    }

    /// Looks at leases that were asked for, and starts those that have been handed over. Says whether any
    /// request is over, so that there may be more to ask for.
    pub(super) async fn look_at_asked(&mut self) -> Result<bool, WorkerError> {
        let me = self.parts.me.clone();
        let before = self.asked.len();
        let mut arrived = Vec::new();
        // Each in its turn: a slow holder keeps none of the others waiting.
        let from = self.asked_through.take().map_or(Bound::Unbounded, Bound::Excluded);
        let turn = self.asked.range((from, Bound::Unbounded)).take(ASKED_AT_ONCE);
        let asked: Vec<HandOff> = turn.map(|(_, ask)| ask.clone()).collect();
        if asked.len() == ASKED_AT_ONCE {
            self.asked_through = asked.last().map(|ask| ask.key().clone());
        }
        for ask in asked {
            self.looks.read(1.0);
            let Ok(row) = self.parts.store.get(ask.key()).await else { continue };
            match row {
                Some(row) if row.is_coming_to(&me) && !row.is_left() => {}
                // Its holder stopped before it saw the request.
                Some(row) if row.is_coming_to(&me) => {
                    let reason = Reason::Stolen { from: ask.from().clone() };
                    arrived.push(Claim { key: row.key.clone(), reason, ask: false });
                    self.view.note(row, clock::now());
                }
                Some(row)
                    if row.holder() == Some(&me)
                        && !row.is_finished()
                        && !row.is_namesakes(&me, self.parts.process) =>
                {
                    let reason = Reason::HandedOver { from: ask.from().clone() };
                    arrived.push(Claim { key: row.key.clone(), reason, ask: false });
                    self.view.note(row, clock::now());
                }
                // Ended, taken by another worker, or deleted: the rules of every look apply again.
                _ => {
                    self.asked.remove(ask.key());
                }
            }
        }
        self.claim(arrived).await?;
        self.parts.meter.still_asked(self.asked.keys());
        Ok(self.asked.len() < before)
    }

    /// Where looks are rare: reads the row of a shard that ended here and those of its children, and claims
    /// what may begin now, as after a look.
    pub(super) async fn take_children(&mut self, ended: &LeaseKey) -> Result<(), WorkerError> {
        self.fetch(ended).await;
        let children = |lease: &Lease| lease.children.iter().map(LeaseKey::from).collect();
        let children: BTreeSet<LeaseKey> = self.view.get(ended).map(children).unwrap_or_default();
        for child in &children {
            self.fetch(child).await;
            // Another parent may have ended since the last look.
            let parents = self.view.get(child).map(|child| child.parents.clone()).unwrap_or_default();
            for parent in parents.iter().map(LeaseKey::from).filter(|parent| parent != ended) {
                self.fetch(&parent).await;
            }
        }
        self.balance(self.looked_at, Some(&children)).await.map(drop)
    }

    async fn fetch(&mut self, key: &LeaseKey) {
        self.looks.read(1.0);
        // What cannot be read now is seen at the next look.
        if let Ok(row) = self.parts.store.get(key).await {
            self.view.confirm(key, row, clock::now());
        }
    }

    /// The parents of a shard that has not begun which may not have ended: those whose rows are `absent`; and
    /// all of a lease that was reset, since a look may show its row as it is now and theirs as they were before.
    fn unsure_parents(&self, lease: &Lease, absent: &[LeaseKey]) -> Vec<LeaseKey> {
        let was_reset = lease.reset_millis.is_some() && lease.checkpoint.position().is_none();
        match was_reset && self.parts.config.shard_order == ShardOrder::ParentsFirst {
            true => lease.parents.iter().map(LeaseKey::from).collect(),
            false => absent.to_vec(),
        }
    }

    /// The parents of a shard that has not begun whose rows were not in the last look.
    pub(super) fn absent_parents(&self, lease: &Lease) -> Vec<LeaseKey> {
        if lease.checkpoint.position().is_some() {
            return Vec::new();
        }
        let absent = |key: &LeaseKey| self.view.get(key).is_none();
        lease.parents.iter().map(LeaseKey::from).filter(absent).collect()
    }

    pub(super) fn start(&mut self, claim: Claim, row: Lease, held: HeldLease) {
        let parts = &mut self.parts;
        self.asked.remove(&claim.key);
        info!(shard = %claim.key, reason = ?claim.reason, checkpoint = %row.checkpoint, "lease taken");
        self.view.note(row.clone(), clock::now());
        let configured = match parts.config.initial_position {
            InitialPosition::AtTimestamp(at) => Some(at),
            _ => None,
        };
        let start = reader::start_of(&row, self.view.pinned_start(), configured, self.ahead);
        let checkpoint_interval = parts.config.checkpoint_interval;
        let terms = Terms {
            keep_on_drain: parts.config.on_shutdown == OnShutdown::Keep,
            checkpoint_interval,
            first_interval: checkpoint_interval.mul_f64(parts.rng.random_range(0.0..1.0)),
        };
        let meter = parts.meter.taken(&claim.key, &row.key.shard());
        let link = ShardLink::new(held, &row, parts.store.clone(), meter, terms)
            .with_fault_logs(self.fault_logs.clone())
            .with_tracer(parts.tracer.clone())
            .with_gate(parts.gate.clone());
        let link = Arc::new(link);
        self.links.insert(claim.key.clone(), link.clone());
        parts.vitals.hold(claim.key.clone(), &link);
        let shard = link.shard.clone();
        let consumer = Consumer {
            link,
            // Rows of the KCL's do not say: the start found them to be of the stream that it found.
            stream: row.stream.clone().unwrap_or_else(|| self.identity.clone()),
            row,
            start,
            source: parts.source.clone(),
            config: parts.config.clone(),
            memory: self.memory.clone(),
            delivery: parts.delivery.clone(),
            rng: StdRng::seed_from_u64(parts.rng.random()),
            gate: parts.gate.clone(),
        };
        self.consumers.spawn(claim.key, parts.gate.pass(consumer.run()));
        parts.events.send(Event::LeaseTaken { shard, reason: claim.reason });
    }
}

/// Takes back a request that has not been met; a lease that was handed over in this moment is given up.
/// What fails here expires.
async fn withdraw(ask: HandOff, taker: Taker) {
    let (key, store) = (ask.key().clone(), taker.store.clone());
    if store.hand_off(&ask.withdrawn()).await.is_ok() {
        debug!(lease = %key, "request withdrawn");
        return;
    }
    let Ok(Some(row)) = store.get(&key).await else { return };
    if row.owner.as_ref() == Some(taker.me.worker())
        && row.checkpoint_owner.is_none()
        && let Ok(Some((_, held))) = HeldLease::claim(&row, &taker).await
    {
        let released = held.write(|tenure| tenure.release(None)).await;
        debug!(lease = %key, released = released.is_ok(), "handed over too late");
    }
}

/// Claims a lease. A parent whose row was not seen may be one that could not be read: the shard begins
/// only if the row is truly gone, or finished. Otherwise the race counts as lost.
pub(super) async fn claim_one(
    seen: &Lease,
    unsure_parents: &[LeaseKey],
    taker: &Taker,
) -> Result<Option<(Lease, HeldLease)>, LeaseError> {
    for parent in unsure_parents {
        if taker.store.get(parent).await?.is_some_and(|row| !row.is_finished()) {
            return Ok(None);
        }
    }
    HeldLease::claim(seen, taker).await
}
