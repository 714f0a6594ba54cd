//! A fleet of real workers on one paused clock, over a lease table and a stream in memory whose every call is
//! counted. Shared by the tests and by `benches/fleet.rs`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use kinesis_consumer::{
    Checkpoint, Config, HandOff, Incarnation, InitialPosition, Lease, LeaseKey, LeaseWrite, Mark, Ordering,
    OwnerChange, Record, Report, ShardId, Worker, WorkerError, WorkerHandle, WorkerId, WorkerRow,
    io::{
        LeaseError, LeaseStore, Rows,
        memory::{MemoryLeaseStore, MemoryStream},
    },
};
use tokio::{task::JoinSet, time::Instant};

/// What one call to DynamoDB takes.
const LATENCY: Duration = Duration::from_millis(5);
/// What a row weighs, and what half a read unit reads if it need not be consistent.
const ROW_BYTES: u64 = 512;
const HALF_UNIT_BYTES: u64 = 4096;

/// What workers did to the table, so far.
#[derive(Default)]
pub(crate) struct Calls {
    /// Looks at the whole table or a part of it.
    pub(crate) looks: AtomicU64,
    /// What the looks and the reads of single rows cost, in thousandths of a read unit.
    read_milliunits: AtomicU64,
    pub(crate) gets: AtomicU64,
    /// Writes of all kinds to rows of leases.
    pub(crate) writes: AtomicU64,
    /// Claims that were won: a holding began.
    pub(crate) claims: AtomicU64,
    /// Writes that met another state than they expected.
    pub(crate) conflicts: AtomicU64,
    pub(crate) hand_offs: AtomicU64,
}

impl Calls {
    pub(crate) fn read_units(&self) -> f64 {
        self.read_milliunits.load(Relaxed) as f64 / 1000.0
    }
}

/// One worker's way to the table.
struct Counted {
    table: MemoryLeaseStore,
    stage: Arc<Shared>,
}

struct Shared {
    began: Instant,
    all: Calls,
    /// Writes in each tenth of a second since the stage was made.
    writes_in: Mutex<BTreeMap<u64, u64>>,
    seen: Mutex<Seen>,
    lineage: Mutex<Lineage>,
    silences: Mutex<Silences>,
}

/// Leases that were handed over, since when nobody works on them, and the longest time that this took.
#[derive(Default)]
struct Silences {
    given: BTreeMap<LeaseKey, Instant>,
    longest: Duration,
}

impl Silences {
    fn wrote(&mut self, before: &Lease, write: &LeaseWrite) {
        match write.owner() {
            OwnerChange::Transfer => drop(self.given.insert(before.key.clone(), Instant::now())),
            OwnerChange::Set { .. } => {
                let silent = self.given.remove(&before.key).map(|given| given.elapsed());
                self.longest = self.longest.max(silent.unwrap_or_default());
            }
            _ => {}
        }
    }
}

/// Who read parents to their ends, and whether their children began with the same worker.
#[derive(Default)]
struct Lineage {
    ended_by: BTreeMap<ShardId, WorkerId>,
    stayed: usize,
    went: usize,
}

impl Lineage {
    fn wrote(&mut self, before: &Lease, write: &LeaseWrite) {
        if matches!(write.mark(), Some(Mark::Done(Checkpoint::ShardEnd)))
            && let Some(holder) = write.holder()
        {
            self.ended_by.insert(before.key.shard(), holder.clone());
        }
        let OwnerChange::Set { owner, .. } = write.owner() else { return };
        if before.parents.is_empty() || before.counter > 0 {
            return;
        }
        match before.parents.iter().any(|parent| self.ended_by.get(parent) == Some(owner)) {
            true => self.stayed += 1,
            false => self.went += 1,
        }
    }
}

/// What the handlers saw of the records of each partition key, whose payloads count from 1.
#[derive(Default)]
struct Seen {
    last: BTreeMap<String, u64>,
    repeats: u64,
    disorder: Vec<String>,
}

impl Seen {
    fn record(&mut self, record: &Record) {
        let n: u64 = std::str::from_utf8(record.data()).expect("digits").parse().expect("a number");
        let last = self.last.entry(record.partition_key().to_owned()).or_default();
        match n {
            n if n <= *last => self.repeats += 1,
            n if n == *last + 1 => *last = n,
            n => self.disorder.push(format!("{} came after {last} of {}", n, record.partition_key())),
        }
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

impl Counted {
    fn count(&self, what: impl Fn(&Calls) -> &AtomicU64, by: u64) {
        what(&self.stage.all).fetch_add(by, Relaxed);
    }

    fn looked(&self, rows: usize) {
        self.count(|calls| &calls.looks, 1);
        let halves = (rows as u64 * ROW_BYTES).div_ceil(HALF_UNIT_BYTES).max(1);
        self.count(|calls| &calls.read_milliunits, halves * 500);
    }

    fn settled(&self, result: &Result<(), LeaseError>) {
        if matches!(result, Err(LeaseError::Conflict(_))) {
            self.count(|calls| &calls.conflicts, 1);
        }
    }
}

#[async_trait]
impl LeaseStore for Counted {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        self.table.open(create).await
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        tokio::time::sleep(LATENCY).await;
        let rows = self.table.scan().await?;
        self.looked(rows.leases.len() + rows.workers.len());
        Ok(rows)
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        self.count(|calls| &calls.gets, 1);
        // Up to 4 KB, consistent.
        self.count(|calls| &calls.read_milliunits, 1000);
        tokio::time::sleep(LATENCY).await;
        self.table.get(key).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.count(|calls| &calls.writes, 1);
        tokio::time::sleep(LATENCY).await;
        self.table.create(lease).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        self.count(|calls| &calls.writes, 1);
        tokio::time::sleep(LATENCY).await;
        let tenth = self.stage.began.elapsed().as_millis() / 100;
        *self.stage.writes_in.lock().expect("no panic").entry(tenth as u64).or_default() += 1;
        let before = self.table.get(write.key()).await?;
        let result = self.table.write(write).await;
        self.settled(&result);
        if let (Ok(()), Some(before)) = (&result, before) {
            self.stage.lineage.lock().expect("no panic").wrote(&before, write);
            self.stage.silences.lock().expect("no panic").wrote(&before, write);
        }
        if result.is_ok() && matches!(write.owner(), OwnerChange::Set { .. }) {
            self.count(|calls| &calls.claims, 1);
        }
        result
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        self.count(|calls| &calls.writes, 1);
        self.count(|calls| &calls.hand_offs, 1);
        tokio::time::sleep(LATENCY).await;
        let result = self.table.hand_off(request).await;
        self.settled(&result);
        result
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        self.count(|calls| &calls.writes, 1);
        tokio::time::sleep(LATENCY).await;
        self.table.delete(seen).await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        self.count(|calls| &calls.gets, 1);
        self.count(|calls| &calls.read_milliunits, 1000);
        tokio::time::sleep(LATENCY).await;
        self.table.worker(incarnation).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        self.count(|calls| &calls.writes, 1);
        tokio::time::sleep(LATENCY).await;
        self.table.beat(row).await
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        self.count(|calls| &calls.writes, 1);
        tokio::time::sleep(LATENCY).await;
        self.table.forget(seen).await
    }
}

/// A stream, a table, and workers on them.
pub(crate) struct Stage {
    pub(crate) stream: MemoryStream,
    pub(crate) table: MemoryLeaseStore,
    shared: Arc<Shared>,
    pub(crate) config: Config,
    /// From which workers draw what they draw, each with its name.
    pub(crate) seed: u64,
    put: BTreeMap<u64, u64>,
    workers: BTreeMap<String, Member>,
}

/// One worker that runs.
struct Member {
    handle: WorkerHandle,
    task: JoinSet<Result<Report, WorkerError>>,
}

impl Stage {
    pub(crate) fn new(shards: usize) -> Self {
        let config = Config { initial_position: InitialPosition::TrimHorizon, ..Config::default() };
        Self {
            stream: MemoryStream::new("stream", shards),
            table: MemoryLeaseStore::new(),
            shared: Arc::new(Shared {
                began: Instant::now(),
                all: Calls::default(),
                writes_in: Mutex::default(),
                seen: Mutex::default(),
                lineage: Mutex::default(),
                silences: Mutex::default(),
            }),
            config,
            seed: 7,
            put: BTreeMap::new(),
            workers: BTreeMap::new(),
        }
    }

    /// Starts a worker under `name`.
    pub(crate) fn start(&mut self, name: &str) {
        let store = Counted { table: self.table.clone(), stage: self.shared.clone() };
        let shared = self.shared.clone();
        let worker = Worker::builder("app", "stream")
            .source(Arc::new(self.stream.clone()))
            .lease_store(Arc::new(store))
            .seed(name.bytes().fold(self.seed, |seed, byte| seed * 31 + u64::from(byte)))
            .config(Config { worker_id: Some(name.into()), ..self.config.clone() })
            .each(Ordering::Shard, move |record| {
                shared.seen.lock().expect("no panic").record(&record);
                async { Ok(()) }
            })
            .expect("a valid configuration");
        let (handle, mut task) = (worker.handle(), JoinSet::new());
        task.spawn(worker.run());
        self.workers.insert(name.into(), Member { handle, task });
    }

    pub(crate) fn start_all(&mut self, names: impl IntoIterator<Item = usize>) {
        for n in names {
            self.start(&format!("w{n:04}"));
        }
    }

    /// Stops a worker without any notice.
    pub(crate) async fn crash(&mut self, name: &str) {
        self.workers.remove(name).expect("it runs").task.shutdown().await;
    }

    /// Asks a worker to stop, and waits until it has.
    pub(crate) async fn stop(&mut self, name: &str) -> Report {
        let mut member = self.workers.remove(name).expect("it runs");
        member.handle.shutdown().await;
        member.task.join_next().await.expect("one task").expect("no panic").expect("no error")
    }

    /// Puts one record for each of `keys` partition keys.
    pub(crate) fn put(&mut self, keys: u64) {
        for key in 0..keys {
            let n = self.put.entry(key).or_default();
            *n += 1;
            self.stream.put(&format!("key-{key}"), n.to_string());
        }
    }

    /// Whether every record was processed.
    pub(crate) fn all_processed(&self) -> bool {
        let seen = self.shared.seen.lock().expect("no panic");
        self.put.iter().all(|(key, n)| seen.last.get(&format!("key-{key}")) == Some(n))
    }

    /// Records that came again, and what came out of order.
    pub(crate) fn repeats_and_disorder(&self) -> (u64, Vec<String>) {
        let seen = self.shared.seen.lock().expect("no panic");
        (seen.repeats, seen.disorder.clone())
    }

    /// How many children began with a worker that had read a parent, and how many with another.
    pub(crate) fn stayed_and_went(&self) -> (usize, usize) {
        let lineage = self.shared.lineage.lock().expect("no panic");
        (lineage.stayed, lineage.went)
    }

    /// The longest time between the last write of a holder that handed a lease over and the claim of the next.
    pub(crate) fn longest_silence(&self) -> Duration {
        self.shared.silences.lock().expect("no panic").longest
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.shared.all
    }

    /// The most writes in any tenth of a second since then, and how many there were altogether.
    pub(crate) fn writes_since(&self, since: Instant) -> (u64, u64) {
        let from = since.duration_since(self.shared.began).as_millis() as u64 / 100;
        let writes = self.shared.writes_in.lock().expect("no panic");
        let counts = || writes.range(from..).map(|(_, count)| *count);
        (counts().max().unwrap_or(0), counts().sum())
    }

    /// How many leases of shards that are being read, or could be, each worker holds; `-` is nobody.
    pub(crate) fn loads(&self) -> BTreeMap<String, usize> {
        let rows: BTreeMap<LeaseKey, Lease> =
            self.table.rows().into_iter().map(|row| (row.key.clone(), row)).collect();
        let mut loads: BTreeMap<String, usize> = self.workers.keys().map(|name| (name.clone(), 0)).collect();
        let over = |parent: LeaseKey| rows.get(&parent).is_none_or(Lease::is_finished);
        for row in rows.values().filter(|row| !row.is_finished()) {
            if row.parents.iter().all(|parent| over(parent.into())) {
                let holder = row.holder().map_or_else(|| "-".into(), ToString::to_string);
                *loads.entry(holder).or_default() += 1;
            }
        }
        loads
    }

    /// The distance between the most and the least loaded worker; none while a lease is free, or in the name
    /// of a worker that does not run.
    pub(crate) fn spread(&self) -> Option<usize> {
        let loads = self.loads();
        if loads.values().sum::<usize>() == 0 {
            return None;
        }
        let known =
            loads.len() == self.workers.len() && loads.keys().all(|name| self.workers.contains_key(name));
        known.then(|| loads.values().max().unwrap_or(&0) - loads.values().min().unwrap_or(&0))
    }

    /// Whether a worker that runs holds each lease.
    pub(crate) fn is_held(&self) -> bool {
        self.spread().is_some()
    }

    pub(crate) fn is_even(&self) -> bool {
        self.spread().is_some_and(|spread| spread <= 1)
    }

    /// Waits until `done`; says how long it took.
    pub(crate) async fn until(&self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let began = Instant::now();
        // Thousands of rows take longer to judge than what happens to them in so short a time.
        let pause = Duration::from_millis(20).max(Duration::from_micros(20) * self.table.rows().len() as u32);
        while !done(self) {
            assert!(began.elapsed() < limit, "never came: {what}; {:?}", self.loads());
            tokio::time::sleep(pause).await;
        }
        began.elapsed()
    }
}
