//! The worker end to end: the real AWS SDK against the embedded servers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use kinesis_consumer::{Config, InitialPosition, Ordering, Record, Worker, WorkerHandle, local::LocalAws};
use tokio::task::JoinSet;

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
