//! The coordinator: looks at the lease table, repairs it, claims what `balance` says, starts and reaps
//! the shards' tasks. It decides nothing itself and holds no record.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    select,
    sync::Semaphore,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::JoinMap};
use tracing::{debug, error, info, warn};

use crate::{
    clock,
    config::{Config, InitialPosition, OnShutdown},
    core::{
        audit::{self, Coverage, HoleWatch},
        backoff::Backoff,
        balance::{self, Claim, Limits, Plan, Planner, Reason},
        lease::{HandOff, Lease, LeaseKey, WorkerId},
        lease_view::LeaseView,
        shard::{HashKeyRange, ShardId},
        shard_sync::{self, Begin},
    },
    error::{LeaseLost, WorkerError},
    io::{BoxError, LeaseError, LeaseStore, RecordSource, ShardFilter},
    worker::{
        Report,
        consumer::{Consumer, Delivery, Exit, ExitHow},
        events::{Event, Sender},
        faults::Faults,
        freeze::Gate,
        health::HealthFile,
        held_lease::HeldLease,
        reader,
        renewer::cause,
        shard_link::ShardLink,
        startup,
    },
};

/// A hole in the hash keys is filled when it was seen in that many looks in a row: a look is no snapshot.
/// KCL: `leasesRecoveryAuditorInconsistencyConfidenceThreshold`.
const LOOKS_BEFORE_REPAIR: u32 = 3;
/// How often shards are listed to audit rows without a range.
const LIST_INTERVAL: Duration = Duration::from_secs(60);
/// Claims under way at one time.
const CLAIMS_AT_ONCE: usize = 64;
/// How often a lease that was asked for is looked at.
const ASKED_INTERVAL: Duration = Duration::from_millis(150);
/// How many of them at one time.
const ASKED_AT_ONCE: usize = 8;
/// A row is about this large; for the read budget.
const ROW_BYTES: f64 = 512.0;
/// Rows in doubt that are read again in one look.
const CONFIRMED_AT_ONCE: usize = 8;
/// One read unit of an eventually consistent scan.
const READ_UNIT_BYTES: f64 = 8192.0;

/// What a coordinator works with.
pub(super) struct Parts {
    pub(super) me: WorkerId,
    pub(super) table: String,
    pub(super) config: Arc<Config>,
    pub(super) source: Arc<dyn RecordSource>,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) delivery: Delivery,
    pub(super) health: HealthFile,
    pub(super) events: Sender,
    pub(super) ready: CancellationToken,
    pub(super) rng: StdRng,
    pub(super) gate: Gate,
}

pub(super) struct Coordinator {
    parts: Parts,
    identity: Arc<str>,
    begin: Begin,
    view: LeaseView,
    holes: HoleWatch,
    memory: Arc<Semaphore>,
    consumers: JoinMap<LeaseKey, Exit>,
    links: BTreeMap<LeaseKey, Arc<ShardLink>>,
    /// When shards may be listed for the audit again.
    list_after: Instant,
    /// Leases under our own id that we do not hold, by counter, and how often it moved.
    namesakes: BTreeMap<LeaseKey, (u64, u32)>,
    /// Leases are moving until then, as far as we know: looks come more often.
    lively_until: Instant,
    /// Requests for leases that are still with their holders.
    asked: BTreeMap<LeaseKey, HandOff>,
    /// Shards that the user's code could not go on with, until when to leave them to others.
    avoided: BTreeMap<LeaseKey, (Instant, Backoff)>,
    left_over: BTreeSet<LeaseKey>,
    faults: Faults,
    backoff: Backoff,
    report: Report,
    stopped_by: Option<BoxError>,
}

impl Coordinator {
    /// Checks everything, then coordinates until `stop`, then drains. Dropping it stops hard.
    pub(super) async fn run(mut parts: Parts, stop: CancellationToken) -> Result<Report, WorkerError> {
        let started = clock::now();
        let found = select! {
            biased;
            () = stop.cancelled() => return Ok(Report::default()),
            found = startup::check(&parts.config, &parts.table, &*parts.source, &*parts.store, &mut parts.rng) => found?,
        };
        let millis = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        let begin = match parts.config.initial_position {
            InitialPosition::TrimHorizon => Begin::TrimHorizon,
            InitialPosition::Latest => Begin::Latest { pinned_millis: millis(clock::wall()) },
            InitialPosition::AtTimestamp(at) => Begin::Timestamp { millis: millis(at) },
        };
        let mut view = LeaseView::default();
        view.observe(found.leases, clock::now());
        parts.health.touch();
        let retry = (parts.config.look_interval() / 2, parts.config.longest_look_interval());
        let mut coordinator = Self {
            identity: found.identity,
            begin,
            view,
            holes: HoleWatch::new(LOOKS_BEFORE_REPAIR),
            memory: Arc::new(reader::budget(parts.config.memory_budget)),
            consumers: JoinMap::new(),
            links: BTreeMap::new(),
            asked: BTreeMap::new(),
            list_after: started,
            namesakes: BTreeMap::new(),
            lively_until: started,
            avoided: BTreeMap::new(),
            left_over: BTreeSet::new(),
            faults: Faults::default(),
            backoff: Backoff::new(retry.0, retry.1),
            report: Report::default(),
            stopped_by: None,
            parts,
        };
        coordinator.await_namesake(&stop).await?;
        let result = coordinator.coordinate(&stop).await;
        coordinator.drain().await;
        coordinator.report.ran_for = clock::now().saturating_duration_since(started);
        match (result, coordinator.stopped_by) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(error)) => Err(WorkerError::Processor(error)),
            (Ok(()), None) => Ok(coordinator.report),
        }
    }

    /// Rows under our own id are those of our predecessor, or of a live namesake. We have written nothing
    /// yet, so a counter that moves is the proof of a namesake; one that stands still makes the lease expire.
    async fn await_namesake(&mut self, stop: &CancellationToken) -> Result<(), WorkerError> {
        let me = self.parts.me.clone();
        let counters = |view: &LeaseView| -> BTreeMap<LeaseKey, u64> {
            let ours = |lease: &&Lease| lease.holder() == Some(&me) && !lease.is_finished();
            view.leases().filter(ours).map(|lease| (lease.key.clone(), lease.counter)).collect()
        };
        let before = counters(&self.view);
        if before.is_empty() {
            return Ok(());
        }
        info!(worker = %me, leases = before.len(), "leases under this worker's id: waiting to see that no other process renews them");
        // A live holder renews within half of the failover time; its write may be delayed by as much.
        let until = clock::now() + self.parts.config.failover_time;
        while clock::now() < until && !stop.is_cancelled() {
            let pause = self.parts.config.look_interval().min(until - clock::now());
            select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = clock::sleep(pause) => {}
            }
            self.parts.health.touch();
            // A failed look proves nothing; the next one may.
            let Ok(leases) = self.parts.store.list().await else { continue };
            self.view.observe(leases, clock::now());
            let moved =
                |(key, counter): (&LeaseKey, &u64)| before.get(key).is_some_and(|then| then < counter);
            if counters(&self.view).iter().any(moved) {
                return Err(WorkerError::WorkerIdInUse(me.to_string()));
            }
        }
        Ok(())
    }

    async fn coordinate(&mut self, stop: &CancellationToken) -> Result<(), WorkerError> {
        if stop.is_cancelled() {
            return Ok(());
        }
        // The start-up checks were the first look.
        let mut next = self.act(stop).await?;
        // Kept from turn to turn: looks may come more often.
        let mut look_at_asked = clock::now();
        loop {
            if self.asked.is_empty() {
                look_at_asked = clock::now() + ASKED_INTERVAL;
            }
            if !self.parts.ready.is_cancelled() && self.links.values().all(|link| link.is_open_or_over()) {
                self.parts.ready.cancel();
            }
            let opening = self.links.values().find(|link| !link.is_open_or_over()).cloned();
            select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some((key, exit)) = self.consumers.join_next() => {
                    if self.on_exit(key, exit) {
                        return Ok(());
                    }
                    // What ended may have freed a child or a lease: look at once.
                    next = clock::now();
                }
                () = opened(opening.as_deref()), if !self.parts.ready.is_cancelled() => {}
                () = clock::sleep_until(look_at_asked), if !self.asked.is_empty() => {
                    look_at_asked = clock::now() + ASKED_INTERVAL;
                    if self.look_at_asked().await? {
                        next = clock::now();
                    }
                }
                () = clock::sleep_until(next) => next = self.look(stop).await?,
            }
        }
    }

    /// One look at the table and what follows from it. Says when to look again.
    async fn look(&mut self, stop: &CancellationToken) -> Result<Instant, WorkerError> {
        match self.parts.store.list().await {
            Ok(leases) => {
                if let Some(count) = self.faults.over() {
                    info!(count, "the lease table can be read again");
                }
                self.backoff.reset();
                let doubtful = self.view.observe(leases, clock::now());
                self.confirm(doubtful).await;
                self.act(stop).await
            }
            Err(error) => {
                if self.faults.failed() {
                    warn!(%error, cause = cause(&error), "the lease table cannot be read; trying again");
                }
                // The outage is not ours to cure: a restart would not help.
                self.touch_if_idle();
                if matches!(error, LeaseError::NoTable { .. }) {
                    self.remake_table(stop).await;
                }
                Ok(clock::now() + self.backoff.next(&mut self.parts.rng))
            }
        }
    }

    /// Reads rows again that showed an older counter than known. Without it a row that was deleted and made
    /// anew would never be claimed, or claimed from its living holder once the counters meet.
    async fn confirm(&mut self, doubtful: Vec<LeaseKey>) {
        // Our own are confirmed by their writes.
        let others = doubtful.into_iter().filter(|key| !self.links.contains_key(key));
        for key in others.take(CONFIRMED_AT_ONCE).collect::<Vec<_>>() {
            if let Ok(row) = self.parts.store.get(&key).await {
                self.view.confirm(&key, row, clock::now());
            }
        }
    }

    async fn act(&mut self, stop: &CancellationToken) -> Result<Instant, WorkerError> {
        self.touch_if_idle();
        self.show_rows();
        self.look_for_namesake()?;
        self.repair(stop).await?;
        let now = clock::now();
        // Whoever went on for this long has recovered.
        self.avoided.retain(|_, (until, _)| now < *until + Duration::from_secs(600));
        let held: BTreeSet<LeaseKey> = self.links.keys().cloned().collect();
        let avoided = self.avoided.iter().filter(|(_, (until, _))| now < *until);
        let avoided: BTreeSet<LeaseKey> = avoided.map(|(key, _)| key.clone()).collect();
        let limits = Limits {
            max_leases: self.parts.config.max_leases_for_worker.unwrap_or(usize::MAX),
            // Those asked for and not handed over yet are among them.
            max_steals: self
                .parts
                .config
                .max_leases_to_steal_at_one_time
                .unwrap_or(usize::MAX)
                .saturating_sub(self.asked.len()),
            failover_time: self.parts.config.failover_time,
            patience: self.period() * 2,
            hand_off_timeout: self.parts.config.shutdown_timeout + self.parts.config.failover_time,
        };
        let planner = Planner { me: &self.parts.me, held: &held, asked: &self.asked, avoided: &avoided };
        let plan = balance::plan(&self.view, planner, &limits, now, &mut self.parts.rng);
        let Plan { total, workers, needed, .. } = plan;
        debug!(total, workers, needed, held = held.len(), claims = plan.claims.len(), "look");
        self.tell_left_over(&plan);
        if !plan.claims.is_empty() {
            self.lively_until = now + self.period() * 3;
        }
        let lost_race = self.claim(plan.claims).await?;
        self.clean_up().await;
        Ok(if lost_race { clock::now() + self.parts.config.look_interval() / 4 } else { self.next_look() })
    }

    fn touch_if_idle(&self) {
        if self.links.is_empty() {
            self.parts.health.touch();
        }
    }

    /// The time between two looks that the read budget affords.
    fn period(&self) -> Duration {
        let config = &self.parts.config;
        let units = (self.view.rows().count() as f64 * ROW_BYTES / READ_UNIT_BYTES).ceil().max(1.0);
        let afforded = Duration::from_secs_f64((units / config.scan_budget).min(3600.0));
        afforded.clamp(config.look_interval(), config.longest_look_interval())
    }

    /// When to look again: by the read budget, and when a peer's lease would expire.
    fn next_look(&mut self) -> Instant {
        let lively = clock::now() < self.lively_until;
        let period = if lively { self.period() / 4 } else { self.period() };
        let jitter = self.parts.rng.random_range(0.85..1.15);
        let config = &self.parts.config;
        let now = clock::now();
        let usual = now + period.mul_f64(jitter);
        match self.view.next_expiry(&self.parts.me, config.failover_time, now) {
            // Not sooner than a tenth of the period, however many leases are about to expire.
            Some(expiry) => usual.min(expiry.max(now + period / 10)),
            None => usual,
        }
    }

    /// Shows each holding its row: it may be over, or another worker may ask for it.
    fn show_rows(&mut self) {
        for (key, link) in &self.links {
            if let Some(row) = self.view.get(key) {
                link.held.observe(row);
            }
        }
        // Whoever asks for one lease often asks for another soon.
        if self.links.values().any(|link| link.held.is_asked()) {
            self.lively_until = clock::now() + self.period() * 3;
        }
    }

    /// A row under our id that we do not hold stands still, or a late write of ours moves it once. Two moves
    /// are those of another process.
    fn look_for_namesake(&mut self) -> Result<(), WorkerError> {
        let me = &self.parts.me;
        let mut known = std::mem::take(&mut self.namesakes);
        for lease in self.view.leases().filter(|lease| lease.holder() == Some(me) && !lease.is_finished()) {
            if self.links.contains_key(&lease.key) || self.asked.contains_key(&lease.key) {
                continue;
            }
            let (counter, moves) = known.remove(&lease.key).unwrap_or((lease.counter, 0));
            let moves = moves + u32::from(lease.counter > counter);
            if moves >= 2 {
                return Err(WorkerError::WorkerIdInUse(me.to_string()));
            }
            self.namesakes.insert(lease.key.clone(), (lease.counter, moves));
        }
        Ok(())
    }

    /// Makes the leases that are missing: all at first, later where the hash keys show a hole.
    async fn repair(&mut self, stop: &CancellationToken) -> Result<(), WorkerError> {
        let leases: Vec<Lease> = self.view.leases().cloned().collect();
        let fresh = leases.is_empty();
        let mut coverage = audit::coverage(&leases, None);
        if matches!(coverage, Coverage::Unknown(_)) && clock::now() >= self.list_after {
            // Rows of old KCL versions have no range: the listing has it.
            self.list_after = clock::now() + LIST_INTERVAL;
            if let Ok(listed) = self.parts.source.list_shards(ShardFilter::All).await {
                coverage = audit::coverage(&leases, Some(&listed));
            }
        }
        let suspicious = match coverage {
            Coverage::Whole => self.holes.see(&[]),
            Coverage::Holes(holes) => self.holes.see(&holes),
            Coverage::Empty => self.holes.see(&[HashKeyRange::ALL]),
            Coverage::Unknown(_) => false,
        };
        if !fresh && !suspicious {
            return Ok(());
        }
        let missing = match self.missing(&leases).await {
            Ok(missing) => missing,
            Err(error) => {
                if self.faults.failed() {
                    warn!(error = %error, cause = cause(error.as_ref()), "listing shards failed; trying again");
                }
                return Ok(());
            }
        };
        if !fresh && !missing.is_empty() {
            warn!(leases = missing.len(), "leases were missing and are made again");
        }
        // In the order of the shards, so that a crash in the midst leaves no child without its parent.
        let mut missing = missing.into_iter().peekable();
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < CLAIMS_AT_ONCE && missing.peek().is_some() && !stop.is_cancelled() {
                let Some(mut lease) = missing.next() else { break };
                lease.stream = Some(self.identity.clone());
                let store = self.parts.store.clone();
                under_way.spawn(self.parts.gate.pass(async move {
                    let created = store.create(&lease).await;
                    (lease, created)
                }));
            }
            let Some(done) = under_way.join_next().await else { return Ok(()) };
            let (lease, created) = done.expect("creations do not panic and are not aborted");
            match created {
                Ok(true) => self.view.note(lease, clock::now()),
                // Somebody was faster, and may begin elsewhere. Not read now, it is at the next look.
                Ok(false) => {
                    if let Ok(Some(row)) = self.parts.store.get(&lease.key).await {
                        self.view.note(row, clock::now());
                    }
                }
                Err(LeaseError::Denied { operation, source }) if self.links.is_empty() => {
                    let what = format!("{operation}: {}", cause(source.as_ref()));
                    return Err(WorkerError::Denied { what, source });
                }
                Err(error) => {
                    if self.faults.failed() {
                        warn!(lease = %lease.key, %error, cause = cause(&error), "lease not made; trying again");
                    }
                    missing = Vec::new().into_iter().peekable();
                }
            }
        }
    }

    async fn missing(&self, leases: &[Lease]) -> Result<Vec<Lease>, BoxError> {
        let begin = self.begin.pinned_by(leases);
        let fresh = shard_sync::is_fresh(leases);
        if leases.is_empty() {
            let at =
                |millis| ShardFilter::AtTimestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            let filter = match begin {
                Begin::TrimHorizon => ShardFilter::AtTrimHorizon,
                // Not those that are open now: one that was split since then still has the first records.
                Begin::Latest { pinned_millis } => at(pinned_millis),
                Begin::Timestamp { millis } => at(millis),
            };
            let listed = self.parts.source.list_shards(filter).await?;
            // Not from every server: some ignore the filter. Then the lineage decides.
            if let Some(initial) = shard_sync::initial(&listed, begin) {
                return Ok(initial);
            }
        }
        let listed = self.parts.source.list_shards(ShardFilter::All).await?;
        Ok(shard_sync::missing(&listed, leases, begin, fresh))
    }

    /// Somebody dropped the table. Made again it is empty, and the application begins anew.
    async fn remake_table(&self, stop: &CancellationToken) {
        use crate::config::LeaseTable::CreateIfMissing;
        if self.parts.config.lease_table == CreateIfMissing {
            error!(
                table = self.parts.table,
                "the lease table is gone, and with it all checkpoints; it is made again"
            );
            select! {
                biased;
                () = stop.cancelled() => {}
                made = self.parts.store.open(true) => if let Err(error) = made {
                    warn!(%error, "the lease table was not made");
                },
            }
        }
    }

    /// Writes the claims and starts what was won. True if a race was lost.
    async fn claim(&mut self, claims: Vec<Claim>) -> Result<bool, WorkerError> {
        let mut lost_race = false;
        let (requests, claims): (Vec<Claim>, Vec<Claim>) = claims.into_iter().partition(|claim| claim.ask);
        self.ask(requests).await;
        let mut waiting = claims.into_iter();
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < CLAIMS_AT_ONCE {
                let Some(claim) = waiting.next() else { break };
                let Some(seen) = self.view.get(&claim.key).cloned() else { continue };
                let (me, store) = (self.parts.me.clone(), self.parts.store.clone());
                let failover_time = self.parts.config.failover_time;
                let absent = self.absent_parents(&seen);
                under_way.spawn(self.parts.gate.pass(async move {
                    let won = claim_one(&seen, &absent, &me, &store, failover_time).await;
                    (claim, won)
                }));
            }
            let Some(done) = under_way.join_next().await else { return Ok(lost_race) };
            let (claim, won) = done.expect("claims do not panic and are not aborted");
            match won {
                Ok(Some((row, held))) => self.start(claim, row, held),
                Ok(None) => {
                    debug!(lease = %claim.key, "another worker was faster");
                    lost_race = true;
                }
                Err(LeaseError::Denied { operation, source }) if self.links.is_empty() => {
                    let what = format!("{operation}: {}", cause(source.as_ref()));
                    return Err(WorkerError::Denied { what, source });
                }
                Err(error) => {
                    if self.faults.failed() {
                        warn!(lease = %claim.key, %error, cause = cause(&error), "lease not claimed; trying again");
                    }
                }
            }
        }
    }

    /// Asks holders for their leases. A request that fails or comes too late is made again at the next look.
    async fn ask(&mut self, requests: Vec<Claim>) {
        let mut under_way = JoinSet::new();
        // The rest is asked for at the next look, which comes soon while leases move.
        for request in requests.into_iter().take(CLAIMS_AT_ONCE) {
            let seen = self.view.get(&request.key).cloned();
            let Some((seen, ask)) = seen.and_then(|seen| Some((seen.clone(), seen.ask(&self.parts.me)?)))
            else {
                continue;
            };
            let store = self.parts.store.clone();
            under_way.spawn(self.parts.gate.pass(async move {
                let result = store.hand_off(&ask).await;
                (seen, ask, result)
            }));
        }
        while let Some(done) = under_way.join_next().await {
            let (seen, ask, result) = done.expect("requests do not panic and are not aborted");
            match result {
                Ok(()) => {
                    info!(lease = %ask.key(), from = %ask.from(), "lease asked for");
                    self.view.note(seen.after_request(&ask), clock::now());
                    self.asked.insert(ask.key().clone(), ask);
                }
                Err(LeaseError::Conflict(_)) => {
                    debug!(lease = %ask.key(), "the lease changed before it was asked for");
                }
                Err(error) => {
                    if self.faults.failed() {
                        warn!(lease = %ask.key(), %error, cause = cause(&error), "lease not asked for; trying again");
                    }
                    // It may have been asked for all the same: the next look tells.
                    if matches!(error, LeaseError::Unavailable { .. }) {
                        self.asked.insert(ask.key().clone(), ask);
                    }
                }
            }
        }
    }

    /// Looks at leases that were asked for, and starts those that have been handed over. Says whether any
    /// request is over, so that there may be more to ask for.
    async fn look_at_asked(&mut self) -> Result<bool, WorkerError> {
        let me = self.parts.me.clone();
        let before = self.asked.len();
        let mut arrived = Vec::new();
        let asked: Vec<HandOff> = self.asked.values().take(ASKED_AT_ONCE).cloned().collect();
        for ask in asked {
            let Ok(row) = self.parts.store.get(ask.key()).await else { continue };
            match row {
                Some(row) if row.is_coming_to(&me) => {}
                Some(row) if row.holder() == Some(&me) && !row.is_finished() => {
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
        Ok(self.asked.len() < before)
    }

    /// The parents of a shard that has not begun whose rows were not in the last look.
    fn absent_parents(&self, lease: &Lease) -> Vec<LeaseKey> {
        if lease.checkpoint.position().is_some() {
            return Vec::new();
        }
        let absent = |key: &LeaseKey| self.view.get(key).is_none();
        lease.parents.iter().map(LeaseKey::from).filter(absent).collect()
    }

    fn start(&mut self, claim: Claim, row: Lease, held: HeldLease) {
        let parts = &mut self.parts;
        self.asked.remove(&claim.key);
        info!(shard = %claim.key, reason = ?claim.reason, checkpoint = %row.checkpoint, "lease taken");
        self.view.note(row.clone(), clock::now());
        let configured = match parts.config.initial_position {
            InitialPosition::AtTimestamp(at) => Some(at),
            _ => None,
        };
        let start = reader::start_of(&row, self.view.pinned_start(), configured);
        let keep = parts.config.on_shutdown == OnShutdown::Keep;
        let link = ShardLink::new(held, &row, parts.store.clone(), parts.health.clone(), keep);
        let link = Arc::new(link);
        self.links.insert(claim.key.clone(), link.clone());
        let shard = link.shard.clone();
        let consumer = Consumer {
            link,
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

    /// Deletes the leases of finished shards whose children have begun; the rest at the next looks.
    async fn clean_up(&self) {
        let leases: Vec<Lease> = self.view.leases().cloned().collect();
        let mut under_way = JoinSet::new();
        for lease in shard_sync::deletable(&leases).into_iter().take(CLAIMS_AT_ONCE) {
            let (store, lease) = (self.parts.store.clone(), lease.clone());
            under_way.spawn(self.parts.gate.pass(async move {
                match store.delete(&lease).await {
                    Ok(true) => debug!(lease = %lease.key, "finished lease deleted"),
                    Ok(false) => {}
                    Err(error) => {
                        debug!(lease = %lease.key, %error, "finished lease not deleted; trying again");
                    }
                }
            }));
        }
        while under_way.join_next().await.is_some() {}
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

    /// Takes note of the end of a shard's task. True if the worker is to stop.
    fn on_exit(&mut self, key: LeaseKey, exit: Result<Exit, JoinError>) -> bool {
        let link = self.links.remove(&key);
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) => {
                // A defect of ours: the lease expires, and somebody goes on from the checkpoint.
                error!(shard = %key, %error, "a shard's task failed");
                return false;
            }
        };
        self.report.records += exit.records;
        let shard = exit.shard.clone();
        let checkpoint = exit.checkpoint.map(|position| position.to_string());
        info!(%shard, how = exit.how.word(), checkpoint, "lease ended");
        // A release that failed leaves the lease in our name until it expires.
        let mut given_up = Vec::new();
        let event = match exit.how {
            ExitHow::Finished => {
                self.avoided.remove(&key);
                self.report.finished.push(shard.clone());
                Event::ShardEnded { shard }
            }
            ExitHow::Released => {
                // The puller let go of it. Taken again at once, it would come and go without end.
                if link.is_some_and(|link| !link.is_draining()) {
                    self.avoid(key);
                }
                given_up.push(shard.clone());
                Event::LeaseReleased { shard }
            }
            ExitHow::Kept => {
                self.report.kept.push(shard.clone());
                Event::LeaseKept { shard }
            }
            ExitHow::Lost(why) => {
                self.report.lost.push(shard.clone());
                if why == LeaseLost::Stalled {
                    self.avoid(key);
                }
                Event::LeaseLost { shard, why }
            }
            how @ (ExitHow::GaveUp | ExitHow::Panicked) => {
                given_up.push(shard.clone());
                self.avoid(key);
                Event::ShardGivenUp { shard, panicked: matches!(how, ExitHow::Panicked) }
            }
            ExitHow::StopWorker(error) => {
                given_up.push(shard.clone());
                self.stopped_by.get_or_insert(error);
                Event::ShardGivenUp { shard, panicked: false }
            }
        };
        let ends = if exit.free { &mut self.report.released } else { &mut self.report.kept };
        ends.append(&mut given_up);
        self.parts.events.send(event);
        self.stopped_by.is_some()
    }

    /// Leaves a shard to other workers for a while, and longer each time.
    fn avoid(&mut self, key: LeaseKey) {
        let config = &self.parts.config;
        let fresh = || {
            (
                clock::now(),
                Backoff::new(config.retry_delay_min.max(Duration::from_secs(1)), Duration::from_secs(60)),
            )
        };
        let (until, backoff) = self.avoided.entry(key).or_insert_with(fresh);
        *until = clock::now() + backoff.next(&mut self.parts.rng);
    }

    /// Lets every shard finish what is in hand and release its lease; bounded by `shutdown_timeout`.
    async fn drain(&mut self) {
        let until = clock::now() + self.parts.config.shutdown_timeout;
        for link in self.links.values() {
            link.ask_to_drain(until);
        }
        // Nobody would be there to take the leases that were asked for.
        let mut requests = JoinSet::new();
        for (_, ask) in std::mem::take(&mut self.asked) {
            let (me, store) = (self.parts.me.clone(), self.parts.store.clone());
            let failover_time = self.parts.config.failover_time;
            requests.spawn(self.parts.gate.pass(withdraw(ask, me, store, failover_time)));
        }
        // The tasks keep to the deadline themselves; releasing after it takes a few calls at most.
        let last = until + self.parts.config.call_timeout() * 2;
        while !self.consumers.is_empty() || !requests.is_empty() {
            select! {
                biased;
                () = clock::sleep_until(last) => break,
                Some((key, exit)) = self.consumers.join_next() => { self.on_exit(key, exit); }
                Some(_) = requests.join_next() => {}
            }
        }
        if !self.consumers.is_empty() {
            warn!(shards = self.consumers.len(), "not all shards stopped in time; their leases expire");
            self.report.kept.extend(self.links.keys().map(LeaseKey::shard));
            self.consumers.shutdown().await;
        }
    }
}

/// Takes back a request that has not been met; a lease that was handed over in this moment is given up.
/// What fails here expires.
async fn withdraw(ask: HandOff, me: WorkerId, store: Arc<dyn LeaseStore>, failover_time: Duration) {
    let key = ask.key().clone();
    if store.hand_off(&ask.withdrawn()).await.is_ok() {
        debug!(lease = %key, "request withdrawn");
        return;
    }
    let Ok(Some(row)) = store.get(&key).await else { return };
    if row.owner.as_ref() == Some(&me)
        && row.checkpoint_owner.is_none()
        && let Ok(Some((_, held))) = HeldLease::claim(&row, &me, &store, failover_time).await
    {
        let released = held.write(|tenure| tenure.release(None)).await;
        debug!(lease = %key, released = released.is_ok(), "handed over too late");
    }
}

/// Claims a lease. A parent whose row was not seen may be one that could not be read: the shard begins
/// only if the row is truly gone, or finished. Otherwise the race counts as lost.
async fn claim_one(
    seen: &Lease,
    absent_parents: &[LeaseKey],
    me: &WorkerId,
    store: &Arc<dyn LeaseStore>,
    failover_time: Duration,
) -> Result<Option<(Lease, HeldLease)>, LeaseError> {
    for parent in absent_parents {
        if store.get(parent).await?.is_some_and(|row| !row.is_finished()) {
            return Ok(None);
        }
    }
    HeldLease::claim(seen, me, store, failover_time).await
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

impl ExitHow {
    fn word(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Released => "released",
            Self::Kept => "kept",
            Self::Lost(_) => "lost",
            Self::GaveUp => "given up",
            Self::Panicked => "panicked",
            Self::StopWorker(_) => "stop worker",
        }
    }
}
