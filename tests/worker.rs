//! The worker end to end: the real AWS SDK against the embedded servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use kinesis_consumer::{
    Config, InitialPosition, Ordering, Record, ShardId, Worker, WorkerHandle, local::LocalAws,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the fleet processed, in order, by partition key.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl Seen {
    fn take(&self, record: &Record) {
        let data = String::from_utf8_lossy(record.data()).into_owned();
        self.0.lock().expect("no panic").entry(record.partition_key().to_owned()).or_default().push(data);
    }

    fn count(&self) -> usize {
        self.0.lock().expect("no panic").values().map(Vec::len).sum()
    }

    async fn wait_for(&self, count: usize) {
        tokio::time::timeout(PATIENCE, async {
            while self.count() < count {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{} of {count} records", self.count()));
    }
}

fn config(id: &str) -> Config {
    Config {
        worker_id: Some(id.into()),
        initial_position: InitialPosition::TrimHorizon,
        failover_time: Duration::from_secs(2),
        idle_time_between_reads: Duration::from_millis(200),
        ..Config::default()
    }
}

fn worker(aws: &LocalAws, id: &str, seen: &Seen) -> Worker {
    let seen = seen.clone();
    Worker::builder("app", "stream")
        .kinesis(aws.kinesis_client())
        .dynamodb(aws.dynamodb_client())
        .config(config(id))
        .each(Ordering::Shard, move |record| {
            let seen = seen.clone();
            async move {
                seen.take(&record);
                Ok(())
            }
        })
        .expect("a valid configuration")
}

#[tokio::test]
async fn one_worker_reads_everything_and_releases_its_leases() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 4);
    for n in 0..40 {
        aws.put("stream", &format!("key-{}", n % 8), format!("{n}"));
    }
    let seen = Seen::default();
    let worker = worker(&aws, "a", &seen);
    let handle: WorkerHandle = worker.handle();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run());
    assert!(handle.ready().await);
    seen.wait_for(40).await;
    handle.shutdown().await;
    let report = tasks.join_next().await.expect("a task").expect("no panic").expect("no error");
    assert_eq!(report.records, 40);
    assert_eq!(report.released.len(), 4);
}

#[tokio::test]
async fn children_are_read_after_a_parent_that_ends_with_an_empty_page() {
    let aws = LocalAws::start().await.expect("servers");
    let stream = aws.create_stream("stream", 2);
    let put = |from: usize| {
        for n in from..from + 20 {
            aws.put("stream", &format!("key-{}", n % 8), format!("{n}"));
        }
    };
    put(0);
    let seen = Seen::default();
    let worker = worker(&aws, "a", &seen);
    let handle = worker.handle();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run());
    seen.wait_for(20).await;
    stream.update_shard_count(4);
    put(20);
    seen.wait_for(40).await;
    handle.shutdown().await;
    let report = tasks.join_next().await.expect("a task").expect("no panic").expect("no error");
    assert_eq!((report.finished.len(), report.released.len()), (2, 4));
}

#[tokio::test]
async fn events_end_with_the_worker_even_if_a_handle_is_kept() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    let worker = worker(&aws, "a", &Seen::default());
    let handle = worker.handle();
    let mut events = handle.events();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run());
    assert!(handle.ready().await);
    handle.shutdown().await;
    let all = async {
        let mut count = 0;
        while events.next().await.is_some() {
            count += 1;
        }
        count
    };
    let count = tokio::time::timeout(PATIENCE, all).await.expect("an end of events");
    assert_eq!(count, 2, "a lease taken and released");
    assert!(handle.events().next().await.is_none());
}

/// What the fleet processed, in the order in which it did.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Entry>>>);

#[derive(Clone, Debug)]
struct Entry {
    shard: ShardId,
    key: String,
    number: usize,
}

impl Log {
    fn entries(&self) -> Vec<Entry> {
        self.0.lock().expect("no panic").clone()
    }

    /// Each record once, where it was first processed.
    fn first_deliveries(&self) -> Vec<Entry> {
        let mut seen = BTreeSet::new();
        self.entries().into_iter().filter(|entry| seen.insert(entry.number)).collect()
    }

    fn worker(&self, aws: &LocalAws, id: &str) -> Worker {
        let log = self.clone();
        Worker::builder("app", "stream")
            .kinesis(aws.kinesis_client())
            .dynamodb(aws.dynamodb_client())
            .config(config(id))
            .each(Ordering::Shard, move |record| {
                let entry = Entry {
                    shard: record.shard().clone(),
                    key: record.partition_key().to_owned(),
                    number: String::from_utf8_lossy(record.data()).parse().expect("a number"),
                };
                log.0.lock().expect("no panic").push(entry);
                std::future::ready(Ok(()))
            })
            .expect("a valid configuration")
    }
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// The holders of leases, by worker.
async fn holders(aws: &LocalAws) -> BTreeMap<String, usize> {
    let answer = aws.dynamodb_client().scan().table_name("app").consistent_read(true).send().await;
    let mut holders = BTreeMap::new();
    for row in answer.map(|answer| answer.items().to_vec()).unwrap_or_default() {
        if let Some(Ok(owner)) = row.get("leaseOwner").map(AttributeValue::as_s) {
            *holders.entry(owner.clone()).or_default() += 1;
        }
    }
    holders
}

#[tokio::test]
async fn a_fleet_survives_a_kill_a_stop_and_resharding_without_loss_and_in_order() {
    let aws = LocalAws::start().await.expect("servers");
    let stream = aws.create_stream("stream", 4);
    let log = Log::default();
    let put = Arc::new(AtomicUsize::new(0));
    let (mut producer, done) = (JoinSet::new(), CancellationToken::new());
    producer.spawn({
        let (stream, put, done) = (stream.clone(), put.clone(), done.clone());
        async move {
            while !done.is_cancelled() {
                let number = put.fetch_add(1, Relaxed);
                stream.put(&format!("key-{}", number % 40), number.to_string());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    // Each in a set of its own, so that it can be killed alone.
    let mut workers = Vec::new();
    for id in ["a", "b", "c"] {
        let worker = log.worker(&aws, id);
        let (handle, mut task) = (worker.handle(), JoinSet::new());
        task.spawn(worker.run());
        workers.push((handle, task));
    }
    until("three holders", async || holders(&aws).await.len() == 3).await;
    let more = async |count: usize| {
        let target = log.first_deliveries().len() + count;
        until("more records", async || log.first_deliveries().len() >= target).await;
    };
    more(200).await;

    let (_, killed) = workers.remove(0);
    drop(killed);
    stream.update_shard_count(8);
    until("a takeover", async || !holders(&aws).await.contains_key("a")).await;
    more(200).await;

    let (stopped, mut task) = workers.remove(0);
    stopped.shutdown().await;
    task.join_next().await.expect("a task").expect("no panic").expect("no error");
    stream.update_shard_count(4);
    more(200).await;

    done.cancel();
    while producer.join_next().await.is_some() {}
    let total = put.load(Relaxed);
    until("every record", async || log.first_deliveries().len() == total).await;
    let (last, mut task) = workers.remove(0);
    last.shutdown().await;
    task.join_next().await.expect("a task").expect("no panic").expect("no error");

    let first = log.first_deliveries();
    let mut by_key: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for entry in &first {
        by_key.entry(&entry.key).or_default().push(entry.number);
    }
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted(), "{key} out of order: {numbers:?}");
    }
    for shard in stream.shards() {
        let Some(begun) = first.iter().position(|entry| entry.shard == shard.id) else { continue };
        let parents = first[begun..].iter().filter(|entry| shard.parents.contains(&entry.shard)).count();
        assert_eq!(parents, 0, "{} was begun before its parents had ended", shard.id);
    }
    assert!(stream.shards().len() >= 16, "doubled and halved");
}
