//! `cost`: what it predicts, against calls that are counted.

use std::{
    collections::BTreeSet,
    fmt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use kinesis_consumer::{
    Batch, Config, Failure, HandOff, Heartbeat, Incarnation, InitialPosition, Lease, LeaseKey, LeaseWrite,
    RecordProcessor, ShardContext, ShardStart, Verdict, Worker, WorkerRow,
    io::{
        LeaseError, LeaseStore, Rows,
        memory::{MemoryLeaseStore, MemoryStream},
    },
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::stage::BINARY;

/// Counts the calls that a lease table would be charged for.
#[derive(Debug, Default)]
struct Calls {
    updates: AtomicU64,
    scans: AtomicU64,
}

struct Counted(MemoryLeaseStore, Arc<Calls>);

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.fmt(f)
    }
}

#[async_trait]
impl LeaseStore for Counted {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        self.0.open(create).await
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        self.1.scans.fetch_add(1, Relaxed);
        self.0.scan().await
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        self.0.get(key).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.0.create(lease).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        self.1.updates.fetch_add(1, Relaxed);
        self.0.write(write).await
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        self.1.updates.fetch_add(1, Relaxed);
        self.0.hand_off(request).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        self.0.delete(seen).await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        self.0.worker(incarnation).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        self.1.updates.fetch_add(1, Relaxed);
        self.0.beat(row).await
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        self.1.updates.fetch_add(1, Relaxed);
        self.0.forget(seen).await
    }
}

#[derive(Clone)]
struct Done;

impl RecordProcessor for Done {
    async fn process(&mut self, _: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        Ok(Verdict::Done)
    }
}

/// Calls a minute of a settled fleet, over ten minutes of a paused clock: writes and looks.
fn counted(shards: usize, workers: usize, batches: f64, settings: &Config) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (stream, table) = (MemoryStream::new("stream", shards), MemoryLeaseStore::new());
        let calls = Arc::new(Calls::default());
        let mut fleet = JoinSet::new();
        for n in 0..workers {
            let config = Config {
                worker_id: Some(format!("worker-{n}")),
                initial_position: InitialPosition::TrimHorizon,
                ..settings.clone()
            };
            let worker = Worker::builder("app", "stream")
                .source(Arc::new(stream.clone()))
                .lease_store(Arc::new(Counted(table.clone(), Arc::clone(&calls))))
                .seed(n as u64)
                .config(config)
                .build(|_: ShardStart| async { Ok(Done) })
                .expect("valid");
            fleet.spawn(worker.run());
        }
        let go_on = async |time: Duration| {
            let end = tokio::time::Instant::now() + time;
            while batches > 0.0 && tokio::time::Instant::now() < end {
                for shard in stream.open_shards() {
                    stream.put_to(shard.hash_range.start, "k", "x");
                }
                tokio::time::sleep(Duration::from_secs_f64(1.0 / batches)).await;
            }
            tokio::time::sleep_until(end).await;
        };
        go_on(Duration::from_secs(60)).await;
        let owners: BTreeSet<_> = table.rows().into_iter().map(|row| row.owner).collect();
        assert_eq!(owners.len(), workers, "the fleet has settled");
        let count = || (calls.updates.load(Relaxed), calls.scans.load(Relaxed));
        let before = count();
        go_on(Duration::from_secs(600)).await;
        let after = count();
        ((after.0 - before.0) as f64 / 10.0, (after.1 - before.1) as f64 / 10.0)
    })
}

#[test]
fn the_predicted_calls_are_within_a_tenth_of_those_counted() {
    let (lease, worker) = (Heartbeat::Lease, Heartbeat::Worker);
    for (shards, workers, batches, failover, heartbeat) in [
        (16, 1, 0.0, 10, lease),
        (16, 1, 1.0, 10, lease),
        (16, 1, 0.19, 10, lease),
        (16, 1, 0.1, 10, lease),
        (16, 1, 0.05, 10, lease),
        (64, 4, 1.0, 10, lease),
        (400, 3, 0.0, 10, lease),
        (8, 2, 1.0, 20, lease),
        (8, 2, 1.0 / 12.0, 20, lease),
        (64, 4, 0.0, 10, worker),
        (16, 2, 0.1, 10, worker),
        (16, 2, 1.0, 10, worker),
    ] {
        let arguments = format!(
            "cost -o json --shards {shards} --workers {workers} --batches {batches} --failover-time {failover}s"
        );
        let ran = Command::new(BINARY).args(arguments.split(' ')).output().expect("it runs");
        let predicted: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
        let lines =
            predicted["fleets"][usize::from(heartbeat == worker)]["lines"].as_array().expect("lines").clone();
        let calls = |call: &str| -> f64 {
            let lines = lines.iter().filter(|line| line["call"] == call);
            lines.map(|line| line["calls_a_minute"].as_f64().expect("a number")).sum()
        };
        let failover_time = Duration::from_secs(failover);
        let settings = Config { failover_time, heartbeat, ..Config::default() };
        let (writes, looks) = counted(shards, workers, batches, &settings);
        println!(
            "{arguments} {heartbeat:?}: {writes:.1} writes (predicted {:.1}), {looks:.1} looks ({:.1})",
            calls("UpdateItem"),
            calls("Scan")
        );
        for (counted, predicted) in [(writes, calls("UpdateItem")), (looks, calls("Scan"))] {
            let off = (predicted - counted).abs() / counted;
            assert!(off <= 0.1, "{arguments} {heartbeat:?}: {counted} counted, {predicted} predicted");
        }
    }
}
