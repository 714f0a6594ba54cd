//! For tests of your own code: a stream, a lease table and real workers in memory, on a paused clock.
//!
//! A test puts records, runs a worker with your processor, and waits until all is done. Minutes of retries and
//! fail-overs pass in milliseconds, because nothing is waited for but the clock.
//!
//! ```
//! use kinesis_consumer::{Ordering, testing::TestStream};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! let stream = TestStream::new(1); // in #[tokio::test(start_paused = true)]
//! stream.put("customer-7", "not a number");
//! stream.put("customer-7", "42");
//! let worker = stream.worker("a", |worker| {
//!     worker.each(Ordering::Shard, |record| async move {
//!         match std::str::from_utf8(record.data())?.parse::<u32>() {
//!             Ok(_) => Ok(()),
//!             Err(_) => Ok(eprintln!("set aside")), // an error here would deliver it again, for ever
//!         }
//!     })
//! });
//! stream.all_done().await;
//! assert_eq!(stream.deliveries(), ["not a number", "42"]);
//! # worker.stop().await;
//! # });
//! ```
//!
//! What can go wrong is one call each: [`TestWorker::crash`], [`TestWorker::freeze`],
//! [`TestStream::take_lease`], [`TestStream::reshard`], and AWS's failures by [`TestStream::faults`].
//!
//! Test with `#[tokio::test(start_paused = true)]`, which needs tokio's feature `test-util`. On a running clock
//! everything works too, and takes its time.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{
    BuildError, Checkpoint, Config, Freezer, InitialPosition, Lease, Position, Record, Report, ShardId,
    Worker, WorkerBuilder, WorkerError, WorkerHandle, clock,
    core::{aggregation, record::Batch, shard::Shard},
    io::{
        faulty::{Faults, FaultyLeaseStore, FaultySource},
        memory::{MemoryLeaseStore, MemoryStream},
    },
};

/// How long anything is waited for before a test fails, on its clock.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(50);

/// A stream in memory with a lease table beside it, and a record of all that workers delivered from it.
#[derive(Debug)]
pub struct TestStream {
    stream: MemoryStream,
    table: MemoryLeaseStore,
    faults: Faults,
    deliveries: Deliveries,
}

impl TestStream {
    /// A stream with that many shards, and no worker yet.
    pub fn new(shards: usize) -> Self {
        Self {
            stream: MemoryStream::new("test", shards),
            table: MemoryLeaseStore::new(),
            faults: Faults::new(1),
            deliveries: Deliveries::default(),
        }
    }

    /// Puts a record into the shard of its partition key; returns that shard.
    pub fn put(&self, partition_key: &str, data: impl Into<Bytes>) -> ShardId {
        self.stream.put(partition_key, data).0
    }

    /// The open shards, in the order of their hash keys.
    pub fn shards(&self) -> Vec<ShardId> {
        self.stream.open_shards().into_iter().map(|shard| shard.id).collect()
    }

    /// Splits or merges shards until there are that many; at most doubles or halves them.
    pub fn reshard(&self, count: usize) {
        self.stream.update_shard_count(count);
    }

    /// Starts a worker named `id`; `describe` finishes its builder with your code.
    ///
    /// It reads from the oldest record, and is otherwise as by default. For another configuration begin with
    /// [`config`](Self::config).
    ///
    /// # Panics
    /// If the configuration is refused.
    #[track_caller]
    pub fn worker(
        &self,
        id: &str,
        describe: impl FnOnce(WorkerBuilder) -> Result<Worker, BuildError>,
    ) -> TestWorker {
        let freezer = Freezer::new();
        let builder = Worker::builder("test", "test")
            .source(Arc::new(FaultySource::new(self.stream.clone(), self.faults.clone())))
            .lease_store(Arc::new(FaultyLeaseStore::new(self.table.clone(), self.faults.clone())))
            .seed(id.bytes().fold(1, |seed, byte| seed * 31 + u64::from(byte)))
            .config(self.config(id))
            .freezer(&freezer)
            .deliveries(&self.deliveries);
        let worker = match describe(builder) {
            Ok(worker) => worker,
            Err(error) => panic!("{error}"),
        };
        let (handle, mut task) = (worker.handle(), JoinSet::new());
        task.spawn(worker.run());
        TestWorker { handle, task, freezer }
    }

    /// The configuration of a worker named `id`, to change: `Config { max_records: 1, ..stream.config("a") }`.
    pub fn config(&self, id: &str) -> Config {
        Config {
            worker_id: Some(id.into()),
            initial_position: InitialPosition::TrimHorizon,
            ..Config::default()
        }
    }

    /// Waits until every record that was put is checkpointed, and every closed shard is finished.
    ///
    /// # Panics
    /// After 15 minutes on the test's clock, with what is not done.
    #[track_caller]
    pub fn all_done(&self) -> impl Future<Output = ()> {
        self.until("all done", |stream| stream.unfinished().is_empty())
    }

    /// Waits until `holds`, looking every 50 ms of the test's clock.
    ///
    /// # Panics
    /// After 15 minutes on the test's clock, with `what`, what was delivered and what is not done.
    #[track_caller]
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let end = clock::now() + PATIENCE;
            while !holds(self) {
                assert!(
                    clock::now() < end,
                    "{caller}: never came: {what}; delivered {:?}; not done {:?}",
                    self.deliveries(),
                    self.unfinished()
                );
                clock::sleep(STEP).await;
            }
        }
    }

    /// The payloads that your code was given, in order, repeats included; of each shard in its order.
    pub fn deliveries(&self) -> Vec<String> {
        self.delivered().iter().map(|record| text(record.data())).collect()
    }

    /// The records that your code was given, in order, repeats included.
    pub fn delivered(&self) -> Vec<Record> {
        self.deliveries.lock().clone()
    }

    /// How often your code was given this payload.
    pub fn times_delivered(&self, data: impl AsRef<[u8]>) -> usize {
        self.deliveries.lock().iter().filter(|record| record.data()[..] == *data.as_ref()).count()
    }

    /// The checkpoint of a shard; none before the first one.
    pub fn checkpoint(&self, shard: &ShardId) -> Option<Position> {
        self.lease(shard)?.checkpoint.position().cloned()
    }

    /// Whether the checkpoint has passed the record with this payload; false if there is no such record.
    pub fn is_checkpointed(&self, data: impl AsRef<[u8]>) -> bool {
        let shards = self.stream.shards();
        let found = shards.iter().find_map(|shard| {
            let mut records = self.user_records(shard).into_iter();
            let record = records.find(|record| record.data()[..] == *data.as_ref())?;
            Some((shard.id.clone(), record))
        });
        found.is_some_and(|(shard, record)| self.covers(&shard, &record))
    }

    /// The payloads of the records that no checkpoint has passed, and the names of closed shards that are
    /// not finished.
    pub fn unfinished(&self) -> Vec<String> {
        let mut unfinished = Vec::new();
        for shard in self.stream.shards() {
            let records = self.user_records(&shard);
            let left = records.iter().filter(|record| !self.covers(&shard.id, record));
            unfinished.extend(left.map(|record| text(record.data())));
            if !shard.is_open() && !self.is_finished(&shard.id) {
                unfinished.push(shard.id.to_string());
            }
        }
        unfinished
    }

    /// The lease of a shard as it stands in the table: owner, counter, checkpoint.
    pub fn lease(&self, shard: &ShardId) -> Option<Lease> {
        self.table.rows().into_iter().find(|row| row.key.shard() == *shard)
    }

    /// Takes a lease away from whoever holds it, as another worker would that then does nothing: the holder
    /// loses it at its next look or write, and it is free again after `failover_time`.
    ///
    /// # Panics
    /// If the shard has no lease.
    #[track_caller]
    pub fn take_lease(&self, shard: &ShardId) {
        let Some(lease) = self.lease(shard) else { panic!("{shard} has no lease") };
        self.table.put_row(Lease {
            owner: Some("a worker that does nothing".into()),
            counter: lease.counter + 1,
            ..lease
        });
    }

    /// The failures of AWS to come: single calls, or all of them with [`Faults::cut`].
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The stream itself, for what is not here: hash keys, single splits and merges, trimming.
    pub fn stream(&self) -> &MemoryStream {
        &self.stream
    }

    /// The lease table itself.
    pub fn table(&self) -> &MemoryLeaseStore {
        &self.table
    }

    fn covers(&self, shard: &ShardId, record: &Record) -> bool {
        self.is_finished(shard) || self.checkpoint(shard).is_some_and(|at| at >= *record.position())
    }

    /// As your code gets them: those inside aggregated records, one by one.
    fn user_records(&self, shard: &Shard) -> Vec<Record> {
        aggregation::expand(self.stream.records(&shard.id), Some(shard.hash_range)).records
    }

    /// The lease of a finished shard goes away some time after its children have begun, and theirs in turn.
    fn is_finished(&self, shard: &ShardId) -> bool {
        match self.lease(shard) {
            Some(lease) => lease.checkpoint == Checkpoint::ShardEnd,
            None => {
                let children = self.stream.shards().into_iter().filter(|child| child.parents.contains(shard));
                children.map(|child| child.id).any(|id| self.lease(&id).is_some() || self.is_finished(&id))
            }
        }
    }
}

/// A worker that runs beside the test. Dropping it is a crash.
#[derive(Debug)]
pub struct TestWorker {
    handle: WorkerHandle,
    task: JoinSet<Result<Report, WorkerError>>,
    freezer: Freezer,
}

impl TestWorker {
    /// The worker's handle: its events, its health.
    pub fn handle(&self) -> &WorkerHandle {
        &self.handle
    }

    /// Asks the worker to stop, waits until it has, and returns what it did.
    ///
    /// # Panics
    /// If it had ended with an error.
    pub async fn stop(self) -> Report {
        self.handle.shutdown().await;
        match self.end().await {
            Ok(report) => report,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits until the worker ends by itself, for example by [`Failure::StopWorker`](crate::Failure).
    ///
    /// # Errors
    /// As [`Worker::run`].
    ///
    /// # Panics
    /// If it does not end within 15 minutes on the test's clock.
    pub async fn end(mut self) -> Result<Report, WorkerError> {
        let ended = tokio::time::timeout(PATIENCE, self.task.join_next()).await.expect("the worker ends");
        ended.expect("one task").expect("the worker does not panic")
    }

    /// Ends the worker without any notice, as `kill -9` does: its leases expire, and what was not checkpointed
    /// comes again, to another worker.
    pub async fn crash(mut self) {
        self.task.shutdown().await;
    }

    /// Stops the worker in its tracks, as SIGSTOP or a paused machine does, while the clock goes on.
    pub fn freeze(&self) {
        self.freezer.freeze();
    }

    /// Lets a frozen worker go on.
    pub fn thaw(&self) {
        self.freezer.thaw();
    }
}

/// The records that were handed to the user's code.
#[derive(Clone, Default)]
pub(crate) struct Deliveries(Arc<Mutex<Vec<Record>>>);

impl Deliveries {
    pub(crate) fn add(&self, batch: &Batch) {
        self.lock().extend(batch.records().iter().cloned());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        // Plain data: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deliveries").field(&self.lock().len()).finish()
    }
}

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}
