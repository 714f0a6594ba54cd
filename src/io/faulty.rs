//! A store, a source and a sink that fail on purpose: by script, by seed, or cut off altogether.
//!
//! Only adds faults to whatever is inside, and only on tokio's clock: the same script or seed gives the
//! same faults in every run.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    iter,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    clock,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::{HandOff, Lease, LeaseKey, LeaseWrite},
        metrics::{Origin, Sample},
        shard::{Shard, ShardId},
    },
    io::{
        LeaseError, LeaseStore, MetricsError, MetricsSink, Page, RecordSource, Rows, ShardFilter,
        ShardIterator, SourceError, StartFrom, StreamDescription,
    },
};

/// What goes wrong with one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It fails without effect, as if unreachable.
    Unavailable,
    /// It is throttled, without effect.
    Throttled,
    /// It is refused for lack of permission, without effect.
    Denied,
    /// It takes effect, but its reply is lost.
    LostReply,
    /// It takes effect after this time, and is answered then.
    Delay(Duration),
    /// It takes effect at once, and is answered after this time.
    DelayedReply(Duration),
}

/// The calls of [`LeaseStore`], [`RecordSource`] and [`MetricsSink`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Op {
    OpenTable,
    ListLeases,
    GetLease,
    CreateLease,
    WriteLease,
    HandOff,
    DeleteLease,
    GetWorker,
    Beat,
    ForgetWorker,
    Describe,
    ListShards,
    OpenIterator,
    ReadRecords,
    Flush,
}

/// The faults to come. Clones share them, so that a test keeps a hold on what it gave away.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug)]
struct Plan {
    script: BTreeMap<Op, VecDeque<Fault>>,
    /// For each call the chance of each fault; one is drawn at most.
    chances: BTreeMap<Op, Vec<(f64, Fault)>>,
    cut: bool,
    calls: BTreeMap<Op, u64>,
    met: BTreeMap<&'static str, u64>,
    rng: StdRng,
}

impl Faults {
    /// None, until asked for. `seed` decides what [`chance`](Self::chance) makes of its probabilities.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Plan {
            script: BTreeMap::new(),
            chances: BTreeMap::new(),
            cut: false,
            calls: BTreeMap::new(),
            met: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed),
        })))
    }

    /// The next `times` calls of `op` meet `fault`. Scripted faults wait in line, and come before others.
    pub fn next(&self, op: Op, times: usize, fault: Fault) {
        self.lock().script.entry(op).or_default().extend(iter::repeat_n(fault, times));
    }

    /// Each later call of `op` meets `fault` with this probability, besides the other faults of `op`.
    pub fn chance(&self, op: Op, probability: f64, fault: Fault) {
        self.lock().chances.entry(op).or_default().push((probability, fault));
    }

    /// Every call fails, until [`heal`](Self::heal): a partition of the network.
    pub fn cut(&self) {
        self.lock().cut = true;
    }

    /// Ends the cut and forgets all faults to come.
    pub fn heal(&self) {
        let mut plan = self.lock();
        plan.cut = false;
        plan.script.clear();
        plan.chances.clear();
    }

    /// How often `op` was called, failed calls included.
    pub fn calls(&self, op: Op) -> u64 {
        self.lock().calls.get(&op).copied().unwrap_or(0)
    }

    /// How many calls met a fault, by its kind.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.lock().met.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        // Plain data: a test that panicked elsewhere left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// Counts a call and its fault.
    fn meet(&self, op: Op) -> Option<Fault> {
        let mut plan = self.lock();
        *plan.calls.entry(op).or_default() += 1;
        let fault = plan.draw(op);
        if let Some(fault) = fault {
            *plan.met.entry(fault.kind()).or_default() += 1;
        }
        fault
    }

    /// Makes `call` with its fault, if it meets one.
    async fn run<T, E: Failed>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        match self.meet(op) {
            None => call.await,
            Some(Fault::Unavailable) => Err(E::unavailable("cut off")),
            Some(Fault::Throttled) => Err(E::throttled()),
            Some(Fault::Denied) => Err(E::denied()),
            Some(Fault::LostReply) => {
                // What the reply was, its caller never learns.
                let _ = call.await;
                Err(E::unavailable("the reply was lost"))
            }
            Some(Fault::Delay(delay)) => {
                clock::sleep(delay).await;
                // The partition may have begun while the call was on its way.
                if self.is_cut() { Err(E::unavailable("cut off")) } else { call.await }
            }
            Some(Fault::DelayedReply(delay)) => {
                let reply = call.await;
                clock::sleep(delay).await;
                if self.is_cut() { Err(E::unavailable("the reply was lost")) } else { reply }
            }
        }
    }
}

impl Plan {
    fn draw(&mut self, op: Op) -> Option<Fault> {
        if self.cut {
            return Some(Fault::Unavailable);
        }
        if let Some(fault) = self.script.get_mut(&op).and_then(VecDeque::pop_front) {
            return Some(fault);
        }
        let chances = self.chances.get(&op)?;
        let mut drawn = self.rng.random_range(0.0..1.0);
        chances.iter().find_map(|(probability, fault)| {
            drawn -= probability;
            (drawn < 0.0).then_some(*fault)
        })
    }
}

impl Fault {
    fn kind(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::LostReply => "reply lost",
            Self::Delay(_) => "delayed",
            Self::DelayedReply(_) => "reply delayed",
        }
    }
}

/// The errors of all doors, as faults make them.
trait Failed: Send {
    fn unavailable(why: &'static str) -> Self;
    fn throttled() -> Self;
    fn denied() -> Self;
}

const OPERATION: &str = "make a call that fails on purpose";

impl Failed for LeaseError {
    fn unavailable(why: &'static str) -> Self {
        Self::Unavailable { operation: OPERATION, source: why.into() }
    }

    fn throttled() -> Self {
        Self::Unavailable { operation: OPERATION, source: "throttled".into() }
    }

    fn denied() -> Self {
        Self::Denied { operation: OPERATION, source: "denied".into() }
    }
}

impl Failed for SourceError {
    fn unavailable(why: &'static str) -> Self {
        Self::Unavailable { operation: OPERATION, source: why.into() }
    }

    fn throttled() -> Self {
        Self::Throttled { operation: OPERATION, source: "throttled".into() }
    }

    fn denied() -> Self {
        Self::Denied { operation: OPERATION, source: "denied".into() }
    }
}

impl Failed for MetricsError {
    fn unavailable(why: &'static str) -> Self {
        Self::Unavailable(why.into())
    }

    fn throttled() -> Self {
        Self::Unavailable("throttled".into())
    }

    fn denied() -> Self {
        Self::Denied("denied".into())
    }
}

/// A lease store whose calls meet faults.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use kinesis_consumer::io::{LeaseStore, faulty::{Fault, Faults, FaultyLeaseStore, Op}, memory::MemoryLeaseStore};
///
/// let faults = Faults::new(1);
/// let store = FaultyLeaseStore::new(MemoryLeaseStore::new(), faults.clone());
/// faults.next(Op::OpenTable, 1, Fault::LostReply);
/// assert!(store.open(true).await.is_err());
/// assert!(store.open(false).await.is_ok(), "the table was made all the same");
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct FaultyLeaseStore<S> {
    inner: S,
    faults: Faults,
}

impl<S> FaultyLeaseStore<S> {
    /// Adds `faults` to `inner`.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl<S: LeaseStore> LeaseStore for FaultyLeaseStore<S> {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        self.faults.run(Op::OpenTable, self.inner.open(create)).await
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        self.faults.run(Op::ListLeases, self.inner.scan()).await
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        self.faults.run(Op::GetLease, self.inner.get(key)).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.faults.run(Op::CreateLease, self.inner.create(lease)).await
    }

    async fn may_create(&self, key: &LeaseKey) -> Result<(), LeaseError> {
        self.faults.run(Op::CreateLease, self.inner.may_create(key)).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        self.faults.run(Op::WriteLease, self.inner.write(write)).await
    }

    async fn claim(&self, claim: &LeaseWrite) -> Result<Lease, LeaseError> {
        self.faults.run(Op::WriteLease, self.inner.claim(claim)).await
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        self.faults.run(Op::HandOff, self.inner.hand_off(request)).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        self.faults.run(Op::DeleteLease, self.inner.delete(seen)).await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        self.faults.run(Op::GetWorker, self.inner.worker(incarnation)).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        self.faults.run(Op::Beat, self.inner.beat(row)).await
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        self.faults.run(Op::ForgetWorker, self.inner.forget(seen)).await
    }
}

/// A source whose calls meet faults.
#[derive(Clone, Debug)]
pub struct FaultySource<S> {
    inner: S,
    faults: Faults,
}

impl<S> FaultySource<S> {
    /// Adds `faults` to `inner`.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl<S: RecordSource> RecordSource for FaultySource<S> {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.faults.run(Op::Describe, self.inner.describe()).await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.faults.run(Op::ListShards, self.inner.list_shards(filter)).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.faults.run(Op::OpenIterator, self.inner.open(shard, from)).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        self.faults.run(Op::ReadRecords, self.inner.read(shard, from, limit)).await
    }
}

/// A sink that meets faults when it is to publish. What is measured always reaches it.
#[derive(Clone, Debug)]
pub struct FaultySink<S> {
    inner: S,
    faults: Faults,
}

impl<S> FaultySink<S> {
    /// Adds `faults` to `inner`.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl<S: MetricsSink> MetricsSink for FaultySink<S> {
    fn record(&self, sample: &Sample<'_>) {
        self.inner.record(sample);
    }

    fn forget(&self, origin: &Origin, shard: &ShardId) {
        self.inner.forget(origin, shard);
    }

    async fn flush(&self) -> Result<(), MetricsError> {
        self.faults.run(Op::Flush, self.inner.flush()).await
    }

    fn dropped(&self) -> u64 {
        self.inner.dropped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::lease::Checkpoint,
        io::memory::{MemoryLeaseStore, MemoryMetrics},
    };

    fn lease(shard: &str) -> Lease {
        Lease::new(&shard.into(), Checkpoint::TrimHorizon)
    }

    async fn store(faults: &Faults) -> FaultyLeaseStore<MemoryLeaseStore> {
        let memory = MemoryLeaseStore::new();
        memory.open(true).await.expect("made");
        FaultyLeaseStore::new(memory, faults.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn scripted_faults_come_in_line_and_then_all_is_well() {
        let faults = Faults::new(1);
        let store = store(&faults).await;
        faults.next(Op::CreateLease, 2, Fault::Unavailable);
        faults.next(Op::CreateLease, 1, Fault::LostReply);
        for _ in 0..3 {
            store.create(&lease("a")).await.expect_err("a fault");
        }
        assert!(!store.create(&lease("a")).await.expect("no fault"), "the one without a reply made it");
        assert_eq!(faults.calls(Op::CreateLease), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_delayed_takes_effect_late_and_a_reply_that_is_comes_late() {
        let faults = Faults::new(1);
        let store = store(&faults).await;
        let second = Duration::from_secs(1);
        let start = clock::now();
        faults.next(Op::CreateLease, 1, Fault::Delay(second));
        faults.next(Op::CreateLease, 1, Fault::DelayedReply(second));
        let (late, a) = (lease("a"), lease("b"));
        tokio::join!(
            async { store.create(&late).await.expect("made") },
            async { store.create(&a).await.expect("made") },
            async {
                clock::sleep(second / 2).await;
                assert_eq!(store.list().await.expect("rows"), std::slice::from_ref(&a));
            },
        );
        assert_eq!(clock::now() - start, second);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_gets_through_a_cut() {
        let faults = Faults::new(1);
        let store = store(&faults).await;
        faults.cut();
        store.list().await.expect_err("cut off");
        store.create(&lease("a")).await.expect_err("cut off");
        faults.heal();
        assert_eq!(store.list().await.expect("healed"), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_whose_reply_is_lost_has_published_and_one_that_is_denied_has_not() {
        let (faults, metrics) = (Faults::new(1), MemoryMetrics::new());
        let sink = FaultySink::new(metrics.clone(), faults.clone());
        faults.next(Op::Flush, 1, Fault::LostReply);
        faults.next(Op::Flush, 1, Fault::Denied);
        assert!(matches!(sink.flush().await, Err(MetricsError::Unavailable(_))));
        assert_eq!(metrics.flushes(), 1);
        assert!(matches!(sink.flush().await, Err(MetricsError::Denied(_))));
        assert_eq!((metrics.flushes(), faults.calls(Op::Flush)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_faults() {
        let run = async |seed| {
            let faults = Faults::new(seed);
            let store = store(&faults).await;
            faults.chance(Op::ListLeases, 0.2, Fault::Unavailable);
            faults.chance(Op::ListLeases, 0.1, Fault::Throttled);
            let mut failed = Vec::new();
            for _ in 0..200 {
                failed.push(store.list().await.is_err());
            }
            failed
        };
        let failed = run(7).await;
        assert_eq!(failed, run(7).await);
        assert_ne!(failed, run(8).await);
        let count = failed.iter().filter(|failed| **failed).count();
        assert!((30..90).contains(&count), "{count} of 200");
    }
}
