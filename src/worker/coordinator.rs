//! The coordinator: looks at the lease table, repairs it, claims what `balance` says, starts and reaps
//! the shards' tasks. It decides nothing itself and holds no record.

mod asked;
mod claims;
mod exits;
mod heartbeats;
mod retention;
mod sight;
mod strangers;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rand::{RngExt, rngs::StdRng};
use tokio::{select, sync::Semaphore, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::JoinMap};
use tracing::{debug, info, trace, warn};

use crate::{
    clock,
    config::{Config, InitialPosition, ShardOrder},
    core::{
        audit::HoleWatch,
        backoff::Backoff,
        balance::{self, Limits, Plan, Planner},
        census::census,
        cleanup::Cleanup,
        health::Phase,
        lease::{Claimant, HandOff, LeaseKey, WorkerId},
        lease_view::LeaseView,
        look_schedule::{Bounds, LookSchedule, Shown},
        metrics::Metric,
        shard::ShardId,
        shard_sync::{self, Begin},
    },
    error::WorkerError,
    io::{BoxError, LeaseError, LeaseStore, RecordSource},
    worker::{
        Report,
        consumer::{Delivery, Exit, ExitHow},
        events::{Event, Sender},
        faults::{FaultLogs, Faults},
        freeze::Gate,
        health::Vitals,
        health_file::HealthFile,
        meter::{Meter, one_if},
        reader,
        renewer::cause,
        shard_link::ShardLink,
        spans::Tracer,
        startup,
    },
};

use self::{heartbeats::Keeper, sight::Sight, strangers::Strangers};

/// A hole in the hash keys is filled when it was seen in that many looks in a row: a look is no snapshot.
/// KCL: `leasesRecoveryAuditorInconsistencyConfidenceThreshold`.
const LOOKS_BEFORE_REPAIR: u32 = 3;
/// Calls to the table under way at one time.
const CALLS_AT_ONCE: usize = 64;

/// What a coordinator works with.
pub(super) struct Parts {
    pub(super) me: WorkerId,
    /// This process, by a number drawn at random: two may have one worker's id.
    pub(super) process: u64,
    pub(super) table: String,
    pub(super) config: Arc<Config>,
    pub(super) source: Arc<dyn RecordSource>,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) delivery: Delivery,
    pub(super) vitals: Vitals,
    pub(super) tracer: Option<Arc<Tracer>>,
    pub(super) health_file: Option<HealthFile>,
    pub(super) meter: Arc<Meter>,
    pub(super) events: Sender,
    pub(super) ready: CancellationToken,
    pub(super) rng: StdRng,
    pub(super) gate: Gate,
}

pub(super) struct Coordinator {
    parts: Parts,
    stop: CancellationToken,
    identity: Arc<str>,
    /// How long the stream keeps records, if that is known.
    retention: Option<Duration>,
    /// Shards whose processing is so far behind that it was told, and whether records are gone.
    overdue: BTreeMap<LeaseKey, bool>,
    /// How much this host's clock is ahead of the stream's, at most.
    ahead: Duration,
    begin: Begin,
    view: LeaseView,
    holes: HoleWatch,
    cleanup: Cleanup,
    memory: Arc<Semaphore>,
    consumers: JoinMap<LeaseKey, Exit>,
    links: BTreeMap<LeaseKey, Arc<ShardLink>>,
    /// How many claims were made, to tell each from every other.
    claims_made: u64,
    /// When shards may be listed for the audit again.
    list_after: Instant,
    /// Parents without a row that are not listed, or were not to be made again: their children may begin.
    settled_parents: BTreeSet<ShardId>,
    /// Shards whose rows were seen claimed: their parents had ended.
    claimed: BTreeSet<ShardId>,
    /// When shards may be listed for parents without a row again.
    parents_after: Instant,
    /// Until then no row is made: the stream has turned out to be another one.
    repair_after: Instant,
    strangers: Strangers,
    sight: Sight,
    pulse: Keeper,
    looks: LookSchedule,
    /// When the look was asked for that the view is of.
    seen_at: Instant,
    /// When the table was looked at last. What stands still in the view since then proves nothing.
    looked_at: Instant,
    /// Leases are moving until then, as far as we know: looks come more often.
    lively_until: Instant,
    /// Leases and requests that are given back, by tasks of their own.
    given_back: JoinSet<()>,
    /// Requests for leases that are still with their holders.
    asked: BTreeMap<LeaseKey, HandOff>,
    /// Until when their holders are likely to hand them over.
    asked_until: Instant,
    /// The number of the one that is looked at next.
    asked_turn: usize,
    /// Shards that the user's code could not go on with, until when to leave them to others.
    avoided: BTreeMap<LeaseKey, (Instant, Backoff)>,
    left_over: BTreeSet<LeaseKey>,
    /// Rows of faults of looks, of writes, and of listings of the shards.
    faults: Faults,
    write_faults: Faults,
    table_faults: Faults,
    list_faults: Faults,
    /// Those of the shards.
    fault_logs: FaultLogs,
    backoff: Backoff,
    report: Report,
    stopped_by: Option<BoxError>,
}

impl Coordinator {
    /// Checks everything, then coordinates until `stop`, then drains. Dropping it stops hard.
    pub(super) async fn run(mut parts: Parts, stop: CancellationToken) -> Result<Report, WorkerError> {
        let (started, first_start) = (clock::now(), clock::wall());
        parts.vitals.turn_until(started + startup::PATIENCE);
        let found = select! {
            biased;
            () = stop.cancelled() => return Ok(Report::default()),
            found = startup::check(&parts.config, &parts.table, &*parts.source, &*parts.store, &mut parts.rng) => found,
        };
        parts.meter.record(Metric::StartSuccess, one_if(found.is_ok()));
        let found = found?;
        let millis = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        let begin = match parts.config.initial_position {
            InitialPosition::TrimHorizon => Begin::TrimHorizon,
            // A time that has not come yet at the stream would skip what arrives until then.
            InitialPosition::Latest => Begin::Latest { pinned_millis: millis(first_start - found.ahead) },
            InitialPosition::AtTimestamp(at) => Begin::Timestamp { millis: millis(at) },
        };
        let mut settled_parents = shard_sync::absent_parents(found.rows.leases.iter());
        for shard in &found.listed {
            settled_parents.remove(&shard.id);
        }
        let mut view = LeaseView::default();
        let bounds = Bounds {
            budget: parts.config.scan_budget,
            shortest: parts.config.look_interval(),
            stillness: parts.config.failover_time + parts.config.rejoin_grace,
        };
        let mut looks = LookSchedule::new(bounds, clock::now());
        heartbeats::take_in(&mut view, &mut looks, found.rows, &found.identity, clock::now());
        parts.vitals.turn();
        let retry = (parts.config.look_interval() / 2, parts.config.longest_look_interval());
        let mut coordinator = Self {
            identity: found.identity,
            retention: found.retention,
            overdue: BTreeMap::new(),
            ahead: found.ahead,
            begin,
            view,
            holes: HoleWatch::new(LOOKS_BEFORE_REPAIR),
            cleanup: Cleanup::default(),
            memory: Arc::new(reader::budget(parts.config.memory_budget)),
            consumers: JoinMap::new(),
            links: BTreeMap::new(),
            claims_made: 0,
            given_back: JoinSet::new(),
            asked: BTreeMap::new(),
            asked_until: started,
            asked_turn: 0,
            list_after: started,
            settled_parents,
            claimed: BTreeSet::new(),
            parents_after: started,
            repair_after: started,
            strangers: Strangers::default(),
            sight: Sight::default(),
            pulse: Keeper::new(&parts.config),
            looks,
            seen_at: found.seen_at,
            looked_at: started,
            lively_until: started,
            avoided: BTreeMap::new(),
            left_over: BTreeSet::new(),
            faults: Faults::default(),
            write_faults: Faults::default(),
            table_faults: Faults::default(),
            fault_logs: FaultLogs::default(),
            list_faults: Faults::default(),
            backoff: Backoff::new(retry.0, retry.1),
            report: Report::default(),
            stopped_by: None,
            parts,
            stop,
        };
        coordinator.await_strangers().await?;
        let result = coordinator.coordinate().await;
        coordinator.drain().await;
        coordinator.report.ran_for = clock::now().saturating_duration_since(started);
        match (result, coordinator.stopped_by) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(error)) => Err(WorkerError::Processor(error)),
            (Ok(()), None) => Ok(coordinator.report),
        }
    }

    async fn coordinate(&mut self) -> Result<(), WorkerError> {
        let stop = self.stop.clone();
        if stop.is_cancelled() {
            return Ok(());
        }
        self.parts.vitals.phase(Phase::Opening);
        // The start-up checks were the first look.
        let mut next = self.act().await?;
        // Kept from turn to turn: looks may come more often.
        let mut look_at_asked = clock::now();
        loop {
            if self.asked.is_empty() {
                look_at_asked = clock::now() + asked::ASKED_INTERVAL;
            }
            if !self.parts.ready.is_cancelled() && self.links.values().all(|link| link.is_open_or_over()) {
                self.parts.ready.cancel();
                self.parts.vitals.phase(Phase::Running);
            }
            self.parts.vitals.turn_until(next);
            let opening = self.links.values().find(|link| !link.is_open_or_over()).cloned();
            select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some((key, exit)) = self.consumers.join_next() => {
                    let finished = matches!(&exit, Ok(Exit { how: ExitHow::Finished, .. }));
                    if self.on_exit(key.clone(), exit) {
                        return Ok(());
                    }
                    // What ended may have freed a child or a lease: look at once.
                    if finished && self.looks.are_rare() {
                        self.take_children(&key).await;
                        self.lively_until = clock::now() + self.looks.lively_for();
                        next = next.min(self.next_look());
                    } else {
                        next = self.looks.soonest(clock::now());
                    }
                }
                () = opened(opening.as_deref()), if !self.parts.ready.is_cancelled() => {}
                () = clock::sleep_until(look_at_asked), if !self.asked.is_empty() => {
                    if self.look_at_asked().await {
                        next = self.looks.soonest(clock::now());
                    }
                    look_at_asked = clock::now() + self.asked_pause();
                }
                () = clock::sleep_until(next) => {
                    self.parts.vitals.turn();
                    next = self.look().await?;
                }
            }
        }
    }

    /// One look at the table and what follows from it. Says when to look again.
    async fn look(&mut self) -> Result<Instant, WorkerError> {
        let began = clock::now();
        let Some(scanned) = self.stop.run_until_cancelled(self.parts.store.scan()).await else {
            return Ok(began);
        };
        match scanned {
            Ok(rows) => {
                self.parts.vitals.table_answers(true);
                if let Some(count) = self.faults.over() {
                    info!(count, "the lease table can be read again");
                }
                self.backoff.reset();
                self.seen_at = began;
                self.tell_foreign(&rows);
                let doubtful =
                    heartbeats::take_in(&mut self.view, &mut self.looks, rows, &self.identity, clock::now());
                self.confirm(doubtful).await;
                self.confirm_silence().await;
                let next = self.act().await;
                self.parts.meter.looked(began, next.is_ok());
                next
            }
            Err(error) => {
                self.parts.meter.looked(began, false);
                if let Some(faults) = self.faults.failed() {
                    warn!(faults, %error, cause = cause(&error), "the lease table cannot be read; trying again");
                }
                self.parts.vitals.table_answers(false);
                if matches!(error, LeaseError::NoTable { .. }) {
                    self.remake_table().await;
                }
                let now = clock::now();
                self.looks.failed(now);
                Ok(self.looks.soonest(now).max(now + self.backoff.next(&mut self.parts.rng)))
            }
        }
    }

    async fn act(&mut self) -> Result<Instant, WorkerError> {
        while self.given_back.try_join_next().is_some() {}
        self.show_rows();
        self.watch_retention().await;
        self.look_for_strangers()?;
        let look_soon = self.repair().await;
        self.disown().await;
        self.looked_at = clock::now();
        self.keep_in_sight(self.looked_at);
        let lost_race = self.balance(self.looked_at, None).await;
        self.tidy_up().await;
        self.looks.hold(self.links.len(), clock::now());
        Ok(match () {
            // Not all those that lost in the same moment again.
            () if lost_race || look_soon => {
                let pause = self.parts.rng.random_range(0.5..1.5);
                self.look_after((self.parts.config.look_interval() / 4).mul_f64(pause))
            }
            () if self.holes.is_doubtful() => self.look_after(self.parts.config.look_interval()),
            () => self.next_look(),
        })
    }

    /// Claims what follows from the view as it was at `now`, the time of the last look; `only` those, if there has
    /// been none since it was balanced. True if a race was lost.
    async fn balance(&mut self, now: Instant, only: Option<&BTreeSet<LeaseKey>>) -> bool {
        // Whoever went on for this long has recovered.
        self.avoided.retain(|_, (until, _)| now < *until + Duration::from_secs(600));
        let held: BTreeSet<LeaseKey> = self.links.keys().cloned().collect();
        let avoided = self.avoided.iter().filter(|(_, (until, _))| now < *until);
        let avoided: BTreeSet<LeaseKey> = avoided.map(|(key, _)| key.clone()).collect();
        let limits = self.limits();
        let Parts { me, process, rng, .. } = &mut self.parts;
        let planner = Planner { me, process: *process, held: &held, asked: &self.asked, avoided: &avoided };
        trace!(name: "plan", held = held.len());
        let mut plan = balance::plan(&self.view, planner, &limits, now, rng);
        trace!(name: "planned", claims = plan.claims.len());
        let blind = self.sight.is_blind();
        plan.claims.retain(|claim| !blind && only.is_none_or(|only| only.contains(&claim.key)));
        let Plan { total, workers, needed, .. } = plan;
        debug!(total, workers, needed, held = held.len(), claims = plan.claims.len(), "look");
        if !self.parts.meter.is_off() {
            let unowned = census(&self.view, &held, &limits, now);
            self.parts.meter.planned(&plan, unowned);
        }
        self.tell_left_over(&plan);
        if !plan.claims.is_empty() {
            self.lively_until = now + self.looks.lively_for();
        }
        if !plan.claims.is_empty() || !held.is_empty() {
            self.beat().await;
        }
        self.claim(plan.claims).await
    }

    /// What bounds the claims of this look.
    fn limits(&self) -> Limits {
        let config = &self.parts.config;
        let steals = config.max_leases_to_steal_at_one_time.unwrap_or(usize::MAX);
        Limits {
            max_leases: config.max_leases_for_worker.unwrap_or(usize::MAX),
            // Those asked for and not handed over yet are among them.
            max_steals: steals.saturating_sub(self.asked.len()),
            failover_time: config.failover_time,
            parents_first: config.shard_order == ShardOrder::ParentsFirst,
            rejoin_grace: config.rejoin_grace,
            balance: config.balance,
            patience: self.looks.patience().min(self.parts.config.failover_time),
            looks_at_expired: self.looks.looks_in_time(),
            looks_at_free: self.looks.looks_in_time().filter(|_| self.looks.is_paired()),
            hand_off_timeout: config.shutdown_timeout + config.failover_time,
        }
    }

    /// When to look again if that should not wait, but for `pause`.
    fn look_after(&self, pause: Duration) -> Instant {
        let now = clock::now();
        self.looks.soonest(now).max(now + pause)
    }

    /// When to look again: by the read budget, and when a peer's lease would expire.
    fn next_look(&mut self) -> Instant {
        let now = clock::now();
        let config = &self.parts.config;
        let stillness = config.failover_time + config.rejoin_grace;
        let expiry = self.view.next_expiry(&self.parts.me, stillness, now);
        let shown = Shown { lively: now < self.lively_until, expiry };
        self.looks.next(shown, self.parts.rng.random_range(0.0..1.0), now)
    }

    /// Shows each holding its row: it may be over, or another worker may ask for it.
    fn show_rows(&mut self) {
        let mut is_new = false;
        for (key, link) in &self.links {
            let was_asked = link.held.is_asked();
            if link.held.observe(self.view.get(key)) {
                link.changed.notify_one();
            }
            is_new |= link.held.is_asked() && !was_asked;
        }
        // Whoever asks for one lease often asks for another soon; but code may hold on to one for long.
        if is_new {
            self.lively_until = clock::now() + self.looks.lively_for();
        }
    }

    /// The name of the next claim.
    fn claimant(&mut self) -> Claimant {
        self.claims_made += 1;
        Claimant::new(&self.parts.me, self.parts.process, self.claims_made)
    }

    fn tell_left_over(&mut self, plan: &Plan) {
        let left_over: BTreeSet<LeaseKey> = plan.left_over.iter().cloned().collect();
        if left_over != self.left_over && !left_over.is_empty() {
            let names: Vec<&str> = left_over.iter().take(20).map(LeaseKey::as_str).collect();
            warn!(count = left_over.len(), leases = ?names, "free leases, but max_leases_for_worker is reached");
            let shards: Vec<ShardId> = left_over.iter().map(LeaseKey::shard).collect();
            self.parts.events.send(Event::LeftOver { shards });
        }
        self.left_over = left_over;
    }
}

/// Resolves when reading of the shard has begun or its lease is gone; never without a shard.
async fn opened(link: Option<&ShardLink>) {
    match link {
        Some(link) => select! {
            () = link.opened.cancelled() => {}
            () = link.let_go.cancelled() => {}
        },
        None => std::future::pending().await,
    }
}
