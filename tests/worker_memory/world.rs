//! A stream, a lease table, workers on them, and a trace of what their processors saw.

use std::{
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use kinesis_consumer::{
    Batch, Checkpoint, Config, Drain, Drained, EndOfShard, Event, Events, Failure, InitialPosition, Lease,
    LeaseLost, ProcessorFactory, RecordProcessor, Report, ShardContext, ShardDone, ShardId, ShardStart,
    Verdict, Worker, WorkerBuilder, WorkerError, WorkerHandle,
    io::{
        faulty::{Faults, FaultyLeaseStore, FaultySource},
        memory::{MemoryLeaseStore, MemoryStream},
    },
};
use tokio::{task::JoinSet, time::Instant};

/// `failover_time` of all workers.
pub(crate) const FAILOVER: Duration = Duration::from_secs(10);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// How long any condition is waited for, on the paused clock.
const PATIENCE: Duration = Duration::from_secs(900);

/// A stream and a lease table, the faults on the way to each, and a trace.
pub(crate) struct World {
    pub(crate) stream: MemoryStream,
    pub(crate) table: MemoryLeaseStore,
    pub(crate) faults: Faults,
    pub(crate) trace: Trace,
}

impl World {
    pub(crate) fn shards(count: usize) -> Self {
        Self::of(MemoryStream::new("stream", count))
    }

    pub(crate) fn of(stream: MemoryStream) -> Self {
        let (table, faults) = (MemoryLeaseStore::new(), Faults::new(1));
        Self { stream, table, faults, trace: Trace::default() }
    }

    /// A worker named `id`, reading from the oldest record.
    pub(crate) fn worker(&self, id: &str) -> WorkerBuilder {
        self.worker_with(id, config())
    }

    pub(crate) fn worker_with(&self, id: &str, config: Config) -> WorkerBuilder {
        self.cut_off_by(&self.faults, id, config)
    }

    /// A worker with a way of its own to the stream and the table.
    pub(crate) fn cut_off_by(&self, faults: &Faults, id: &str, config: Config) -> WorkerBuilder {
        Worker::builder("app", "stream")
            .source(Arc::new(FaultySource::new(self.stream.clone(), faults.clone())))
            .lease_store(Arc::new(FaultyLeaseStore::new(self.table.clone(), faults.clone())))
            .seed(id.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte)))
            .config(Config { worker_id: Some(id.into()), ..config })
    }

    /// A processor that traces what it is asked and accepts every batch.
    pub(crate) fn probe(&self) -> impl ProcessorFactory {
        self.probe_with(|_, _| async { Ok(Verdict::Done) })
    }

    /// A processor that traces what it is asked and answers batches with `handler`.
    pub(crate) fn probe_with<F, Fut>(&self, handler: F) -> impl ProcessorFactory + use<F, Fut>
    where
        F: Fn(Batch, ShardContext) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Verdict, Failure>> + Send + 'static,
    {
        let trace = self.trace.clone();
        move |start: ShardStart| {
            let probe = Probe { trace: trace.clone(), shard: start.shard.clone(), handler: handler.clone() };
            trace.add(
                &start.shard,
                format!(
                    "begin at {}",
                    start.from.as_ref().map_or_else(|| "the start".into(), ToString::to_string)
                ),
            );
            async move { Ok(probe) }
        }
    }

    /// Puts records into the n-th open shard, in the order of hash keys.
    pub(crate) fn put(&self, shard: usize, data: impl IntoIterator<Item = impl Display>) {
        let shard = &self.stream.open_shards()[shard];
        for data in data {
            self.stream.put_to(shard.hash_range.start, &format!("key-{}", shard.id), data.to_string());
        }
    }

    /// The id of the n-th shard that was ever made.
    pub(crate) fn shard(&self, n: usize) -> ShardId {
        id(n)
    }

    pub(crate) fn row(&self, n: usize) -> Lease {
        self.find_row(n).unwrap_or_else(|| panic!("no lease of shard {n}"))
    }

    pub(crate) fn find_row(&self, n: usize) -> Option<Lease> {
        self.table.rows().into_iter().find(|row| row.key.shard() == id(n))
    }

    /// Who holds each lease that is not finished, by shard.
    pub(crate) fn owners(&self) -> Vec<String> {
        let open = self.table.rows().into_iter().filter(|row| !row.is_finished());
        open.map(|row| row.owner.map_or_else(|| "-".into(), |owner| owner.to_string())).collect()
    }

    /// The data of the record that the checkpoint of the n-th shard stands at; none before the first.
    pub(crate) fn checkpointed(&self, n: usize) -> Option<String> {
        let Checkpoint::At(position) = self.row(n).checkpoint else { return None };
        let records = self.stream.records(&id(n));
        let record = records.iter().find(|record| *record.position() == position);
        record.map(|record| text(record.data()))
    }

    /// Waits until the checkpoint of the n-th shard stands at the record with this data.
    pub(crate) async fn checkpoint_at(&self, n: usize, data: &str) {
        until(format!("checkpoint {data}"), || {
            self.find_row(n).is_some() && self.checkpointed(n).as_deref() == Some(data)
        })
        .await;
    }
}

pub(crate) fn config() -> Config {
    Config { initial_position: InitialPosition::TrimHorizon, failover_time: FAILOVER, ..Config::default() }
}

pub(crate) fn id(n: usize) -> ShardId {
    format!("shardId-{n:012}").into()
}

pub(crate) fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// The payloads of a batch.
pub(crate) fn payloads(batch: &Batch) -> Vec<String> {
    batch.into_iter().map(|record| text(record.data())).collect()
}

/// Waits on the paused clock until `condition` holds.
#[track_caller]
pub(crate) fn until(what: impl Display, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let what = what.to_string();
    let caller = std::panic::Location::caller();
    async move {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "{caller}: never came: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A running worker. Dropping it is a crash.
pub(crate) struct Running {
    pub(crate) handle: WorkerHandle,
    task: JoinSet<Result<Report, WorkerError>>,
}

pub(crate) fn run(worker: Worker) -> Running {
    let (handle, mut task) = (worker.handle(), JoinSet::new());
    task.spawn(worker.run());
    Running { handle, task }
}

impl Running {
    /// Asks the worker to stop; returns what it did.
    pub(crate) async fn stop(self) -> Report {
        self.handle.shutdown().await;
        self.end().await.expect("no error")
    }

    /// Waits for the worker to end by itself.
    pub(crate) async fn end(mut self) -> Result<Report, WorkerError> {
        let ended = tokio::time::timeout(PATIENCE, self.task.join_next()).await.expect("it ends");
        ended.expect("one task").expect("no panic")
    }

    /// Stops the worker without any notice, as `kill -9` does.
    pub(crate) async fn crash(mut self) {
        self.task.shutdown().await;
    }
}

/// Waits for an event that `wanted` takes something from.
pub(crate) async fn event<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            let event = events.next().await.expect("the worker runs");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the event comes")
}

/// What processors saw, in order, with the time of each.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Vec<Entry>>>);

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: Instant,
    pub(crate) shard: ShardId,
    pub(crate) what: String,
}

impl Trace {
    pub(crate) fn add(&self, shard: &ShardId, what: impl Into<String>) {
        let entry = Entry { at: Instant::now(), shard: shard.clone(), what: what.into() };
        self.0.lock().expect("no panic").push(entry);
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.0.lock().expect("no panic").clone()
    }

    /// What the processors of the n-th shard saw.
    pub(crate) fn of(&self, n: usize) -> Vec<String> {
        self.entries().into_iter().filter(|entry| entry.shard == id(n)).map(|entry| entry.what).collect()
    }

    /// The batches of the n-th shard, each as its payloads with spaces between.
    pub(crate) fn batches(&self, n: usize) -> Vec<String> {
        let batch = |what: String| what.strip_prefix("batch ").map(str::to_owned);
        self.of(n).into_iter().filter_map(batch).collect()
    }

    /// All payloads of the n-th shard, in order of delivery.
    pub(crate) fn records(&self, n: usize) -> Vec<String> {
        self.batches(n).iter().flat_map(|batch| batch.split(' ')).map(str::to_owned).collect()
    }

    /// When the n-th shard's processor first saw this.
    pub(crate) fn time_of(&self, n: usize, what: &str) -> Option<Instant> {
        self.entries()
            .into_iter()
            .find(|entry| entry.shard == id(n) && entry.what == what)
            .map(|entry| entry.at)
    }

    pub(crate) async fn wait_for(&self, n: usize, what: &str) {
        until(format!("{what} of shard {n} in {:?}", self.of(n)), || self.time_of(n, what).is_some()).await;
    }

    /// Waits until the n-th shard has delivered that many records, repeats included.
    pub(crate) async fn wait_for_records(&self, n: usize, count: usize) {
        until(format!("{count} records of shard {n}"), || self.records(n).len() >= count).await;
    }
}

/// Traces what it is asked.
struct Probe<F> {
    trace: Trace,
    shard: ShardId,
    handler: F,
}

impl<F, Fut> RecordProcessor for Probe<F>
where
    F: Fn(Batch, ShardContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Verdict, Failure>> + Send + 'static,
{
    async fn process(&mut self, batch: Batch, context: &ShardContext) -> Result<Verdict, Failure> {
        self.trace.add(&self.shard, format!("batch {}", payloads(&batch).join(" ")));
        (self.handler)(batch, context.clone()).await
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        self.trace.add(&self.shard, "ended");
        Ok(end.complete().await?)
    }

    async fn draining(&mut self, drain: Drain) -> Result<Drained, Failure> {
        self.trace.add(&self.shard, "draining");
        Ok(drain.finish().await?)
    }

    async fn lease_lost(&mut self, why: LeaseLost) {
        self.trace.add(&self.shard, format!("lost: {why}"));
    }
}
