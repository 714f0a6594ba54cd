//! The same worker on servers that we did not write: kinesis-local with dynalite, and moto alone. Without
//! them (see `.ci/servers.sh`) these say that they are skipped.

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_kinesis::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::Blob,
    types::{PutRecordsRequestEntry, ScalingType, StreamStatus},
};
use kinesis_consumer::{Config, InitialPosition, Ordering, Worker};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{dynamodb, servers};

const PATIENCE: Duration = Duration::from_secs(60);
const KEYS: usize = 16;

/// What was processed, by key, in order.
type Seen = Arc<Mutex<BTreeMap<String, Vec<usize>>>>;

fn kinesis(url: &str) -> Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(url);
    Client::from_conf(config.build())
}

/// A stream on a server, its records numbered per key, and what a fleet made of them.
struct Journey {
    kinesis: Client,
    dynamodb: aws_sdk_dynamodb::Client,
    put: usize,
    seen: Seen,
}

impl Journey {
    async fn begin(kinesis: Client, dynamodb: aws_sdk_dynamodb::Client) -> Self {
        kinesis.create_stream().stream_name("stream").shard_count(2).send().await.expect("a stream");
        let journey = Self { kinesis, dynamodb, put: 0, seen: Seen::default() };
        journey.active().await;
        journey
    }

    async fn active(&self) {
        let active = async {
            loop {
                let stream = self.kinesis.describe_stream_summary().stream_name("stream").send().await;
                let stream = stream.expect("described").stream_description_summary.expect("a summary");
                if stream.stream_status == StreamStatus::Active {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, active).await.expect("the stream becomes active");
    }

    /// Puts `rounds` records for each key, one call a round, so that a key keeps its order.
    async fn put(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let entry = |key: usize| {
                let (data, key) = (Blob::new(self.put.to_string()), format!("key-{key}"));
                PutRecordsRequestEntry::builder().data(data).partition_key(key).build().expect("complete")
            };
            let records = (0..KEYS).map(entry).collect();
            let put =
                self.kinesis.put_records().stream_name("stream").set_records(Some(records)).send().await;
            assert_eq!(put.expect("put").failed_record_count, Some(0));
            self.put += 1;
        }
    }

    fn worker(&self, id: &str) -> Worker {
        let seen = self.seen.clone();
        let config = Config {
            worker_id: Some(id.into()),
            initial_position: InitialPosition::TrimHorizon,
            failover_time: Duration::from_secs(4),
            idle_time_between_reads: Duration::from_millis(200),
            ..Config::default()
        };
        Worker::builder("app", "stream")
            .kinesis(self.kinesis.clone())
            .dynamodb(self.dynamodb.clone())
            .config(config)
            .each(Ordering::Shard, move |record| {
                let number = String::from_utf8_lossy(record.data()).parse().expect("a number");
                let mut seen = seen.lock().expect("no panic");
                seen.entry(record.partition_key().to_owned()).or_default().push(number);
                async { Ok(()) }
            })
            .expect("a valid configuration")
    }

    /// Waits until every record was processed; then each key must have seen its own in order, none missing.
    async fn all_is_processed(&self) {
        let whole = |seen: &BTreeMap<String, Vec<usize>>| {
            seen.len() == KEYS && seen.values().all(|numbers| numbers.contains(&(self.put - 1)))
        };
        let wait = async {
            while !whole(&self.seen.lock().expect("no panic")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("everything is processed in time");
        for (key, numbers) in &*self.seen.lock().expect("no panic") {
            let mut first = numbers.clone();
            let mut known = std::collections::BTreeSet::new();
            first.retain(|number| known.insert(*number));
            assert_eq!(first, (0..self.put).collect::<Vec<_>>(), "{key}");
        }
    }

    /// Two workers share the stream; one stops, one is killed; `reshard` if the server ends closed shards.
    async fn travel(mut self, reshard: bool) {
        self.put(3).await;
        let (a, b) = (self.worker("a"), self.worker("b"));
        let (stop_a, stop_b) = (a.handle(), b.handle());
        let mut fleet = JoinSet::new();
        fleet.spawn(a.run());
        self.all_is_processed().await;
        fleet.spawn(b.run());
        assert!(stop_b.ready().await);
        self.put(3).await;
        self.all_is_processed().await;

        stop_a.shutdown().await;
        fleet.join_next().await.expect("a task").expect("no panic").expect("a clean stop");
        self.put(3).await;
        self.all_is_processed().await;

        if reshard {
            let double = self.kinesis.update_shard_count().stream_name("stream").target_shard_count(4);
            double.scaling_type(ScalingType::UniformScaling).send().await.expect("doubled");
            self.active().await;
            self.put(3).await;
            self.all_is_processed().await;
        }

        // A crash: the worker ends wherever it is.
        fleet.shutdown().await;
        self.put(3).await;
        let c = self.worker("c");
        let stop_c = c.handle();
        fleet.spawn(c.run());
        self.all_is_processed().await;
        stop_c.shutdown().await;
        fleet.join_next().await.expect("a task").expect("no panic").expect("a clean stop");
    }
}

#[tokio::test]
async fn a_fleet_loses_nothing_on_kinesis_local_and_dynalite() {
    let (Some(stream), Some(table)) = (servers::kinesis_local().await, servers::dynalite().await) else {
        return;
    };
    let journey = Journey::begin(kinesis(&stream.url()), dynamodb::client(&table.url())).await;
    journey.travel(true).await;
}

#[tokio::test]
async fn a_fleet_loses_nothing_on_moto() {
    let Some(moto) = servers::moto().await else { return };
    let journey = Journey::begin(kinesis(&moto.url()), dynamodb::client(&moto.url())).await;
    servers::say(format_args!("moto never ends a closed shard: NOT RUN there, the doubling of the stream"));
    journey.travel(false).await;
}
