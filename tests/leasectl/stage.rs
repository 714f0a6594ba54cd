//! The tool as a process, a table, and workers beside it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use kinesis_consumer::{
    Checkpoint, Config, HashKeyRange, Heartbeat, InitialPosition, Lease, Ordering, Position, Report, Worker,
    WorkerError, WorkerHandle,
    io::{DynamoDbLeaseStore, LeaseStore},
    local::LocalAws,
};
use serde_json::Value;
use tokio::{process::Command, task::JoinSet};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_leasectl");

/// How a run of the tool ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) async fn leasectl(aws: &LocalAws, arguments: &str) -> Ran {
    let ran = Command::new(BINARY).args(arguments.split(' ')).envs(aws.env()).output().await;
    let ran = ran.expect("the tool runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: ran.status.code().expect("no signal"), out: text(ran.stdout), err: text(ran.stderr) }
}

pub(crate) async fn store(aws: &LocalAws) -> DynamoDbLeaseStore {
    let store = DynamoDbLeaseStore::new(aws.dynamodb_client(), "app", Duration::from_secs(5));
    store.open(true).await.expect("a table");
    store
}

pub(crate) async fn rows(aws: &LocalAws) -> Vec<Lease> {
    let mut rows = store(aws).await.list().await.expect("rows");
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    rows
}

pub(crate) fn row(n: usize, checkpoint: Checkpoint) -> Lease {
    Lease::new(&format!("shardId-{n:012}").as_str().into(), checkpoint)
}

pub(crate) fn at(number: u64) -> Checkpoint {
    Checkpoint::At(Position::at(number.to_string().parse().expect("digits")))
}

/// A running worker of the application `app` on the stream `stream`; dropping it is a crash.
pub(crate) struct Running {
    pub(crate) handle: WorkerHandle,
    tasks: JoinSet<Result<Report, WorkerError>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Running {
    pub(crate) fn start(aws: &LocalAws, id: &str) -> Self {
        Self::start_with(aws, id, Heartbeat::Lease)
    }

    pub(crate) fn start_with(aws: &LocalAws, id: &str, heartbeat: Heartbeat) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let config = Config {
            worker_id: Some(id.into()),
            initial_position: InitialPosition::TrimHorizon,
            failover_time: Duration::from_secs(4),
            idle_time_between_reads: Duration::from_millis(200),
            checkpoint_interval: Duration::from_millis(100),
            heartbeat,
            ..Config::default()
        };
        let sink = Arc::clone(&seen);
        let worker = Worker::builder("app", "stream")
            .kinesis(aws.kinesis_client())
            .dynamodb(aws.dynamodb_client())
            .config(config)
            .each(Ordering::Shard, move |record| {
                let data = String::from_utf8_lossy(record.data()).into_owned();
                sink.lock().expect("no panic").push(data);
                async { Ok(()) }
            })
            .expect("a valid configuration");
        let handle = worker.handle();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run());
        Self { handle, tasks, seen }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }

    pub(crate) async fn stop(mut self) {
        self.handle.shutdown().await;
        self.tasks.join_next().await.expect("a task").expect("no panic").expect("no error");
    }
}

pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

pub(crate) async fn checkpointed(aws: &LocalAws) -> bool {
    let end =
        aws.stream("stream").records(&"shardId-000000000000".into()).last().map(|r| r.position().clone());
    rows(aws).await.first().is_some_and(|row| row.checkpoint.position().cloned() == end)
}

pub(crate) async fn lives_by_heartbeat(aws: &LocalAws) -> bool {
    rows(aws).await.iter().all(|row| row.lives_by().is_some())
}

pub(crate) fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A table with one lease in each state.
pub(crate) async fn every_state(aws: &LocalAws) {
    let held = |n, checkpoint, owner: &str| Lease {
        owner: Some(owner.into()),
        counter: 41,
        owner_switches: 2,
        ..row(n, checkpoint)
    };
    let store = store(aws).await;
    for row in [
        Lease { children: ["shardId-000000000001".into()].into(), ..row(0, Checkpoint::ShardEnd) },
        Lease {
            hands_over: Some("a".into()),
            parents: ["shardId-000000000000".into()].into(),
            ..held(1, at(77), "a")
        },
        Lease { checkpoint_owner: Some("a".into()), ..held(2, at(88), "b") },
        Lease { start_millis: Some(1_700_000_000_000), ..row(3, Checkpoint::Latest) },
        Lease {
            parents: ["shardId-000000000002".into()].into(),
            hash_range: Some(HashKeyRange { start: 0, end: 9 }),
            ..row(4, Checkpoint::TrimHorizon)
        },
    ] {
        assert!(store.create(&row).await.expect("put"));
    }
}
