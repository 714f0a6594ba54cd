//! Claims and requests: takes the leases that `balance` chose, and starts their shards.

use std::{collections::BTreeSet, sync::Arc};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{select, task::JoinSet};
use tracing::{debug, info, warn};

use super::Coordinator;
use crate::{
    clock,
    config::{InitialPosition, OnShutdown, ShardOrder},
    core::{
        balance::Claim,
        lease::{Checkpoint, Lease, LeaseKey},
        metrics::Metric,
        race::Race,
    },
    io::LeaseError,
    worker::{
        consumer::Consumer,
        coordinator::CALLS_AT_ONCE,
        events::Event,
        held_lease::{HeldLease, PATIENCE, Taker},
        reader,
        renewer::cause,
        shard_link::{ShardLink, Terms},
    },
};

impl Coordinator {
    /// Writes the claims and starts what was won. True if a race was lost.
    ///
    /// Every permission was tried at the start. What is refused now may be granted again, as a credential that
    /// has run out: a fault like others.
    pub(super) async fn claim(&mut self, claims: Vec<Claim>) -> bool {
        let (requests, claims): (Vec<Claim>, Vec<Claim>) = claims.into_iter().partition(|claim| claim.ask);
        // What was handed over has nobody who works on it.
        let lost_race = self.take(claims).await;
        self.ask(requests).await;
        lost_race
    }

    /// Claims leases that nobody has to be asked for. True if a race was lost.
    pub(super) async fn take(&mut self, mut claims: Vec<Claim>) -> bool {
        let mut lost_race = false;
        // A race that is lost holds up nothing that nobody else can claim.
        claims.sort_by_key(Claim::is_anyones);
        let mut race = Race::new(CALLS_AT_ONCE);
        let mut waiting = claims.into_iter().peekable();
        let mut under_way = JoinSet::new();
        loop {
            while let Some(claim) = waiting.next_if(|claim| {
                let racing = !race.is_lost() && under_way.len() < race.at_once();
                let has_room = if claim.is_anyones() { racing } else { under_way.len() < CALLS_AT_ONCE };
                has_room && !self.stop.is_cancelled()
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
            let done = select! {
                biased;
                () = self.stop.cancelled() => {
                    self.give_up_won(under_way);
                    return false;
                }
                done = under_way.join_next() => done,
            };
            let Some(done) = done else { return lost_race };
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
                Err(error) => {
                    self.parts.meter.record(Metric::UntakenLeases, 1.0);
                    if let Some(faults) = self.write_faults.failed() {
                        warn!(lease = %claim.key, faults, %error, cause = cause(&error), "lease not claimed; trying again");
                    }
                }
            }
        }
    }

    /// Gives up what is still won by claims that were under way when the worker was to stop.
    fn give_up_won(&mut self, mut under_way: JoinSet<(Claim, Option<usize>, Won)>) {
        let gate = self.parts.gate.clone();
        self.given_back.spawn(self.parts.gate.pass(async move {
            let mut releases = JoinSet::new();
            while let Some(Ok((claim, _, won))) = under_way.join_next().await {
                releases
                    .spawn(gate.pass(async move { give_back(won, &claim.key, "claimed too late").await }));
            }
            while releases.join_next().await.is_some() {}
        }));
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

    /// Reads rows side by side. Those that cannot be read are left out; none is read any more after a stop.
    pub(super) async fn read_rows(&mut self, keys: Vec<LeaseKey>) -> Vec<(LeaseKey, Option<Lease>)> {
        let mut under_way = JoinSet::new();
        let mut waiting = keys.into_iter();
        let mut rows = Vec::new();
        loop {
            for key in waiting.by_ref().take(CALLS_AT_ONCE - under_way.len()) {
                self.looks.read(1.0);
                let store = self.parts.store.clone();
                under_way.spawn(self.parts.gate.pass(async move {
                    let row = store.get(&key).await;
                    (key, row)
                }));
            }
            match self.stop.run_until_cancelled(under_way.join_next()).await.flatten() {
                Some(Ok((key, Ok(row)))) => rows.push((key, row)),
                Some(_) => {}
                None => break,
            }
        }
        // In an order that does not depend on which answer comes first.
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        rows
    }

    /// Where looks are rare: reads the row of a shard that ended here and those of its children, and claims
    /// what may begin now, as after a look.
    pub(super) async fn take_children(&mut self, ended: &LeaseKey) {
        self.fetch(vec![ended.clone()]).await;
        let children = |lease: &Lease| lease.children.iter().map(LeaseKey::from).collect();
        let children: BTreeSet<LeaseKey> = self.view.get(ended).map(children).unwrap_or_default();
        self.fetch(children.iter().cloned().collect()).await;
        // Another parent may have ended since the last look.
        let parents =
            children.iter().filter_map(|child| self.view.get(child)).flat_map(|child| &child.parents);
        let parents: BTreeSet<LeaseKey> =
            parents.map(LeaseKey::from).filter(|parent| parent != ended).collect();
        self.fetch(parents.into_iter().collect()).await;
        self.balance(self.looked_at, Some(&children)).await;
    }

    /// Takes in rows as they are now. What cannot be read is seen at the next look.
    pub(super) async fn fetch(&mut self, keys: Vec<LeaseKey>) {
        for (key, row) in self.read_rows(keys).await {
            self.view.confirm(&key, row, clock::now());
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

/// What a claim came to: the lease as it is held now, or nothing if another worker was faster.
pub(super) type Won = Result<Option<(Lease, HeldLease)>, LeaseError>;

/// Gives up a lease that was won and that nobody works on here. What fails for long expires.
pub(super) async fn give_back(won: Won, key: &LeaseKey, why: &'static str) {
    if let Ok(Some((_, held))) = won {
        let released = held.write_until(clock::now() + PATIENCE, |tenure| tenure.release(None)).await;
        debug!(lease = %key, released = released.is_ok(), why, "lease given back");
    }
}

/// Claims a lease. A parent whose row was not seen may be one that could not be read: the shard begins
/// only if the row is truly gone, or finished. Otherwise the race counts as lost.
pub(super) async fn claim_one(seen: &Lease, unsure_parents: &[LeaseKey], taker: &Taker) -> Won {
    for parent in unsure_parents {
        if taker.store.get(parent).await?.is_some_and(|row| !row.is_finished()) {
            return Ok(None);
        }
    }
    HeldLease::claim(seen, taker).await
}
