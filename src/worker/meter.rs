//! What a worker measures: taken in where it happens, handed to the sinks at once.
//!
//! Without a sink nothing is measured. Levels and lags are not events: the reporter asks for them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use crate::{
    clock,
    core::{
        balance::Plan,
        census::Census,
        lag::Lag,
        lease::LeaseKey,
        metrics::{Call, Metric, Origin, Sample},
        record::Batch,
        shard::{Position, ShardId},
    },
    error::LeaseLost,
    io::MetricsSink,
};

/// The measurements of one worker.
#[derive(Debug)]
pub(super) struct Meter {
    origin: Origin,
    sinks: Vec<Arc<dyn MetricsSink>>,
    fleet: Mutex<Fleet>,
    shards: Mutex<BTreeMap<ShardId, Weak<ShardMeter>>>,
}

/// What the last look at the table said, and when leases were asked for.
#[derive(Debug, Default)]
struct Fleet {
    looked: bool,
    total: usize,
    workers: usize,
    needed: usize,
    spillover: usize,
    census: Census,
    asked: BTreeMap<LeaseKey, Instant>,
}

/// The measurements of one shard that the worker holds.
#[derive(Debug)]
pub(super) struct ShardMeter {
    meter: Arc<Meter>,
    shard: ShardId,
    state: Mutex<ShardState>,
}

#[derive(Debug)]
struct ShardState {
    lag: Lag,
    /// Since when the user has had the batch in hand.
    in_hand: Option<Instant>,
    /// Batches that are not all acknowledged, oldest first.
    open: VecDeque<Delivered>,
    /// Since when the checkpoint stands still although records after it were delivered.
    waiting_since: Option<Instant>,
    /// The shard is pulled: what its batches take is seen only from one to the next.
    pulled: bool,
    /// The shard has left: what is measured late is of no use.
    over: bool,
}

/// A batch that was delivered.
#[derive(Debug)]
struct Delivered {
    last: Position,
    records: usize,
    bytes: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn millis_since(began: Instant) -> f64 {
    millis(clock::now().saturating_duration_since(began))
}

/// What a sample of success is: 1 or 0.
pub(super) fn one_if(success: bool) -> f64 {
    f64::from(u8::from(success))
}

impl Meter {
    pub(super) fn new(origin: Origin, sinks: Vec<Arc<dyn MetricsSink>>) -> Self {
        Self { origin, sinks, fleet: Mutex::default(), shards: Mutex::default() }
    }

    pub(super) fn sinks(&self) -> &[Arc<dyn MetricsSink>] {
        &self.sinks
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn is_off(&self) -> bool {
        self.sinks.is_empty()
    }

    fn send(&self, sample: &Sample<'_>) {
        for sink in &self.sinks {
            sink.record(sample);
        }
    }

    pub(super) fn record(&self, metric: Metric, value: f64) {
        self.send(&Sample::new(metric, value, &self.origin));
    }

    fn count(&self, metric: Metric, count: usize) {
        self.record(metric, count as f64);
    }

    /// A call that began then and ended so.
    pub(super) fn call(&self, call: Call, shard: Option<&ShardId>, began: Instant, outcome: &'static str) {
        let (success, time) = call.metrics();
        let took = millis_since(began);
        for (metric, value) in [(success, one_if(outcome == "ok")), (time, took)] {
            let sample = Sample::new(metric, value, &self.origin).with_outcome(outcome);
            self.send(&Sample { shard, ..sample });
        }
    }

    /// Takes in what a look at the table decided.
    pub(super) fn planned(&self, plan: &Plan, census: Census) {
        self.count(Metric::LeasesToTake, plan.claims.len());
        self.count(Metric::ExpiredLeases, census.unowned);
        self.count(Metric::VeryOldLeases, census.very_old);
        let mut fleet = locked(&self.fleet);
        let Plan { total, workers, needed, .. } = *plan;
        let (spillover, asked) = (plan.left_over.len(), mem::take(&mut fleet.asked));
        *fleet = Fleet { looked: true, total, workers, needed, spillover, census, asked };
    }

    /// A look at the table is over.
    pub(super) fn looked(&self, began: Instant, success: bool) {
        self.record(Metric::LookSuccess, one_if(success));
        self.record(Metric::LookTime, millis_since(began));
    }

    /// A lease was asked for.
    pub(super) fn asked(&self, lease: &LeaseKey) {
        if !self.is_off() {
            locked(&self.fleet).asked.entry(lease.clone()).or_insert_with(clock::now);
        }
    }

    /// Of the leases that were asked for, only these still are.
    pub(super) fn still_asked<'a>(&self, leases: impl Iterator<Item = &'a LeaseKey>) {
        if !self.is_off() {
            let left: BTreeSet<&LeaseKey> = leases.collect();
            locked(&self.fleet).asked.retain(|lease, _| left.contains(lease));
        }
    }

    /// A lease was taken: what is measured of its shard from now on.
    pub(super) fn taken(self: &Arc<Self>, lease: &LeaseKey, shard: &ShardId) -> Arc<ShardMeter> {
        let now = clock::now();
        self.count(Metric::TakenLeases, 1);
        if let Some(asked) = locked(&self.fleet).asked.remove(lease) {
            self.record(Metric::HandOverTime, millis(now.saturating_duration_since(asked)));
        }
        let lag = Lag::new(now);
        let open = VecDeque::new();
        let state = ShardState { lag, in_hand: None, open, waiting_since: None, pulled: false, over: false };
        let meter = ShardMeter { meter: self.clone(), shard: shard.clone(), state: Mutex::new(state) };
        let meter = Arc::new(meter);
        if !self.is_off() {
            locked(&self.shards).insert(shard.clone(), Arc::downgrade(&meter));
        }
        meter
    }

    /// A lease was lost.
    pub(super) fn lost(&self, why: LeaseLost) {
        let reason = match why {
            LeaseLost::Stolen => "stolen",
            LeaseLost::Expired => "expired",
            LeaseLost::Stalled => "stalled",
            LeaseLost::Deleted => "deleted",
            LeaseLost::Released => "released",
        };
        self.send(&Sample::new(Metric::LostLeases, 1.0, &self.origin).with_outcome(reason));
    }

    /// Hands the present levels and lags to the sinks.
    pub(super) fn sample(&self) {
        let now = clock::now();
        let shards: Vec<Arc<ShardMeter>> = locked(&self.shards).values().filter_map(Weak::upgrade).collect();
        self.count(Metric::CurrentLeases, shards.len());
        let mut worst = shards.iter().filter_map(|shard| shard.sample(now)).max();
        let fleet = locked(&self.fleet);
        if !fleet.looked {
            return;
        }
        self.count(Metric::TotalLeases, fleet.total);
        self.count(Metric::NumWorkers, fleet.workers);
        self.count(Metric::NeededLeases, fleet.needed);
        self.count(Metric::LeaseSpillover, fleet.spillover);
        self.count(Metric::UnownedLeases, fleet.census.unowned);
        let unowned = fleet.census.since.map(|since| now.saturating_duration_since(since));
        self.record(Metric::MillisUnowned, millis(unowned.unwrap_or_default()));
        worst = worst.max(unowned);
        if let Some(worst) = worst {
            self.record(Metric::FleetMillisBehindLatest, millis(worst));
        }
    }

    /// The worker has ended: nothing is held any more.
    pub(super) fn end(&self) {
        let shards = mem::take(&mut *locked(&self.shards));
        for shard in shards.values().filter_map(Weak::upgrade) {
            shard.end();
        }
        self.sample();
    }
}

impl ShardMeter {
    /// Of a shard that nobody measures.
    #[cfg(test)]
    pub(super) fn off() -> Arc<Self> {
        let meter = Meter::new(Origin::new("app", "stream", "me"), Vec::new());
        Arc::new(meter).taken(&"shard".into(), &"shard".into())
    }

    fn state(&self) -> MutexGuard<'_, ShardState> {
        locked(&self.state)
    }

    fn send(&self, metric: Metric, value: f64) {
        self.meter.send(&Sample::new(metric, value, &self.meter.origin).of_shard(&self.shard));
    }

    /// The shard is pulled, not driven.
    pub(super) fn pull(&self) {
        self.state().pulled = true;
    }

    /// A read was answered, and brought records up to `last`.
    pub(super) fn read(&self, behind: Duration, last: Option<&Position>) {
        if !self.meter.is_off() {
            self.state().lag.on_read(behind, last.cloned(), clock::now());
        }
    }

    /// A batch is in the user's hands.
    pub(super) fn delivered(&self, batch: &Batch) {
        if self.meter.is_off() {
            return;
        }
        let now = clock::now();
        let records = batch.records();
        let bytes = records.iter().map(|record| record.data().len()).sum();
        let mut state = self.state();
        state.in_hand = Some(now);
        state.open.push_back(Delivered { last: batch.last().clone(), records: records.len(), bytes });
        state.waiting_since.get_or_insert(now);
    }

    /// The user's code is done with the batch in its hands, or goes on with it elsewhere.
    pub(super) fn done(&self) {
        let mut state = self.state();
        let Some(since) = state.in_hand.take().filter(|_| !state.over) else { return };
        self.send(Metric::ProcessTime, millis_since(since));
        if state.pulled {
            self.processed(since, true);
        }
    }

    /// Everything up to here is acknowledged. A batch counts when all of it is, and all before it.
    pub(super) fn acknowledged(&self, through: &Position) {
        let mut state = self.state();
        state.lag.on_done(through);
        while let Some(batch) = state.open.pop_front_if(|batch| batch.last <= *through) {
            if !state.over {
                self.send(Metric::RecordsProcessed, batch.records as f64);
                self.send(Metric::DataBytesProcessed, batch.bytes as f64);
            }
        }
    }

    /// The batch in hand will not be finished here.
    pub(super) fn abandoned(&self) {
        self.state().in_hand = None;
    }

    /// The user's code took that long for a batch.
    pub(super) fn processed(&self, began: Instant, success: bool) {
        if self.meter.is_off() {
            return;
        }
        self.send(Metric::ProcessRecordsTime, millis_since(began));
        self.send(Metric::ProcessSuccess, one_if(success));
    }

    /// The user's code failed and is tried again.
    pub(super) fn retried(&self) {
        self.send(Metric::Retries, 1.0);
    }

    /// The user's code took that long to begin, or to end, its work on the shard.
    pub(super) fn turned(&self, metric: Metric, began: Instant) {
        self.meter.record(metric, millis_since(began));
    }

    /// A checkpoint was written; `all`: at the last record that was delivered.
    pub(super) fn checkpointed(&self, all: bool) {
        self.state().waiting_since = (!all).then(clock::now);
    }

    /// Hands the lag to the sinks, and returns it.
    fn sample(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        if state.over {
            return None;
        }
        let lag = state.lag.at(now);
        self.send(Metric::MillisBehindLatest, millis(lag));
        let waiting = state.waiting_since.map(|since| now.saturating_duration_since(since));
        self.send(Metric::MillisSinceCheckpoint, millis(waiting.unwrap_or_default()));
        Some(lag)
    }

    /// The shard has left the worker. What is measured late is left out.
    pub(super) fn end(&self) {
        let mut state = self.state();
        if mem::replace(&mut state.over, true) {
            return;
        }
        locked(&self.meter.shards).remove(&self.shard);
        for sink in &self.meter.sinks {
            sink.forget(&self.meter.origin, &self.shard);
        }
    }
}

/// A task that was aborted leaves no series behind either.
impl Drop for ShardMeter {
    fn drop(&mut self) {
        self.end();
    }
}
