//! The operator's tool as operators run it: the real binary against the embedded servers.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use kinesis_consumer::{
    Batch, Checkpoint, Config, Failure, HandOff, HashKeyRange, Heartbeat, Incarnation, InitialPosition,
    Lease, LeaseKey, LeaseWrite, Ordering, Position, RecordProcessor, Report, ShardContext, ShardStart,
    Verdict, Worker, WorkerError, WorkerHandle, WorkerRow,
    io::{
        DynamoDbLeaseStore, LeaseError, LeaseStore, Rows,
        memory::{MemoryLeaseStore, MemoryStream},
    },
    local::LocalAws,
};
use serde_json::Value;
use tokio::{process::Command, task::JoinSet};

const PATIENCE: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_leasectl");

/// How a run of the tool ended.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn leasectl(aws: &LocalAws, arguments: &str) -> Ran {
    let ran = Command::new(BINARY).args(arguments.split(' ')).envs(aws.env()).output().await;
    let ran = ran.expect("the tool runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: ran.status.code().expect("no signal"), out: text(ran.stdout), err: text(ran.stderr) }
}

async fn store(aws: &LocalAws) -> DynamoDbLeaseStore {
    let store = DynamoDbLeaseStore::new(aws.dynamodb_client(), "app", Duration::from_secs(5));
    store.open(true).await.expect("a table");
    store
}

async fn rows(aws: &LocalAws) -> Vec<Lease> {
    let mut rows = store(aws).await.list().await.expect("rows");
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    rows
}

fn row(n: usize, checkpoint: Checkpoint) -> Lease {
    Lease::new(&format!("shardId-{n:012}").as_str().into(), checkpoint)
}

fn at(number: u64) -> Checkpoint {
    Checkpoint::At(Position::at(number.to_string().parse().expect("digits")))
}

/// A running worker of the application `app` on the stream `stream`; dropping it is a crash.
struct Running {
    handle: WorkerHandle,
    tasks: JoinSet<Result<Report, WorkerError>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(aws: &LocalAws, id: &str) -> Self {
        Self::start_with(aws, id, Heartbeat::Lease)
    }

    fn start_with(aws: &LocalAws, id: &str, heartbeat: Heartbeat) -> Self {
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

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }

    async fn stop(mut self) {
        self.handle.shutdown().await;
        self.tasks.join_next().await.expect("a task").expect("no panic").expect("no error");
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

async fn checkpointed(aws: &LocalAws) -> bool {
    let end =
        aws.stream("stream").records(&"shardId-000000000000".into()).last().map(|r| r.position().clone());
    rows(aws).await.first().is_some_and(|row| row.checkpoint.position().cloned() == end)
}

async fn lives_by_heartbeat(aws: &LocalAws) -> bool {
    rows(aws).await.iter().all(|row| row.lives_by().is_some())
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A table with one lease in each state.
async fn every_state(aws: &LocalAws) {
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

const LIST: &str = "\
SHARD                 STATE     HOLDER  COUNTER  SWITCHES  CHECKPOINT
shardId-000000000000  finished  -       0        0         SHARD_END
shardId-000000000001  held      a       41       2         77
shardId-000000000002  hand-off  a       41       2         88
shardId-000000000003  free      -       0        0         LATEST 2023-11-14T22:13:20.000Z
shardId-000000000004  waiting   -       0        0         TRIM_HORIZON

WORKER  LEASES
a       2
";

const DESCRIBE: &str = "\
shardId-000000000002
  state:          hand-off: a finishes the batch in hand and checkpoints, then b goes on
  owner:          b
  handing over:   a
  checkpoint:     88
  counter:        41
  owner switches: 2 since the last checkpoint
  hands over:     no: a Java KCL 2.x, or unknown

shardId-000000000004
  state:          waiting: its parents have not ended: shardId-000000000002; only workers with shard_order none begin it
  checkpoint:     TRIM_HORIZON
  counter:        0
  owner switches: 0 since the last checkpoint
  parents:        shardId-000000000002
  hash keys:      0-9
";

#[tokio::test]
async fn leases_are_listed_and_described_by_their_state() {
    let aws = LocalAws::start().await.expect("servers");
    every_state(&aws).await;
    assert_eq!(leasectl(&aws, "list --table app").await.ended(0).out, LIST);
    assert_eq!(leasectl(&aws, "describe -t app 2 shardId-000000000004").await.ended(0).out, DESCRIBE);
    let json = leasectl(&aws, "list -t app -o json").await.ended(0).json();
    assert_eq!(json["leases"][1]["checkpoint"], "77");
    assert_eq!(json["leases"][1]["hands_over"], true);
    assert_eq!(json["workers"]["a"], 2);
    let tables = leasectl(&aws, "list").await.ended(0).out;
    assert!(tables.lines().any(|line| line.starts_with("app ")), "{tables}");
}

#[tokio::test]
async fn a_holder_is_called_dead_only_after_its_counter_stood_still() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    let worker = Running::start(&aws, "living");
    assert!(worker.handle.ready().await);
    // Its parent is unfinished, so that the living one does not take it.
    let parents = ["shardId-000000000000".into()].into();
    let dead = Lease { owner: Some("dead".into()), parents, ..row(7, at(5)) };
    store(&aws).await.create(&dead).await.expect("put");
    let seen = leasectl(&aws, "describe -t app -o json --observe --failover-time 4s").await.ended(0).json();
    let state = |n: usize| (seen[n]["state"].as_str().expect("a word"), seen[n]["alive"].as_bool());
    assert_eq!((state(0), state(1)), (("held", Some(true)), ("expired", Some(false))));
    worker.stop().await;
}

#[tokio::test]
async fn a_holder_with_a_heartbeat_is_called_dead_only_after_that_stood_still() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    let worker = Running::start_with(&aws, "living", Heartbeat::Worker);
    assert!(worker.handle.ready().await);
    let store = store(&aws).await;
    until("a lease that lives by a heartbeat", async || lives_by_heartbeat(&aws).await).await;
    // Its parent is unfinished, so that the living one does not take it.
    let parents = ["shardId-000000000000".into()].into();
    let heartbeat = Incarnation::new(&"dead".into(), 1, 1);
    assert!(store.beat(&WorkerRow { incarnation: heartbeat.clone(), counter: 0 }).await.expect("put"));
    let owner = Some("dead".into());
    let dead = Lease { owner, heartbeat: Some(heartbeat.clone()), parents, ..row(7, at(5)) };
    store.create(&dead).await.expect("put");
    let seen = leasectl(&aws, "describe -t app -o json --observe --failover-time 4s").await.ended(0).json();
    let state = |n: usize| (seen[n]["state"].as_str().expect("a word"), seen[n]["alive"].as_bool());
    assert_eq!((state(0), state(1)), (("held", Some(true)), ("expired", Some(false))));
    assert_eq!(seen[0]["meaning"], "living reads it, and its heartbeat moved while it was observed");
    assert!(seen[0]["heartbeat"].as_str().is_some_and(|row| row.ends_with("/living")), "{seen}");
    let words = leasectl(&aws, "describe -t app 7").await.ended(0).out;
    assert!(words.contains(&format!("  heartbeat:      {heartbeat}\n")), "{words}");
    worker.stop().await;
}

#[tokio::test]
async fn lag_is_known_when_every_worker_is_dead_and_rises() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 2);
    let put = |n| aws.put("stream", "key", format!("{n}"));
    let (shard, _) = put(0);
    let worker = Running::start(&aws, "a");
    until("the first record", async || worker.seen().len() == 1).await;
    let busy = async || rows(&aws).await.iter().any(|row| row.checkpoint.position().is_some());
    until("a checkpoint", busy).await;
    let behind = async || {
        let lag = leasectl(&aws, "lag --table app -o json").await.ended(0).json();
        let shards = lag["shards"].as_array().expect("shards").clone();
        let mine = shards.iter().find(|line| line["shard"] == shard.as_str()).expect("the shard");
        (mine["behind_millis"].as_u64().expect("known"), lag["max_behind_millis"].as_u64().expect("known"))
    };
    assert_eq!(behind().await, (0, 0));
    drop(worker);
    put(1);
    put(2);
    let (first, most) = behind().await;
    assert_eq!(first, most);
    let (second, _) = behind().await;
    assert!(0 < first && first < second, "{first} {second}");
    let late = leasectl(&aws, "lag --table app --max 1ms").await.ended(6);
    assert!(late.err.contains("1 shards are more than"), "{late:?}");
    leasectl(&aws, "lag --table app --max 1h").await.ended(0);
}

#[tokio::test]
async fn a_forced_reset_under_load_fences_the_holder_and_loses_nothing() {
    reset_under_load(Heartbeat::Lease).await;
}

#[tokio::test]
async fn a_forced_reset_fences_a_holder_whose_leases_rest_too() {
    reset_under_load(Heartbeat::Worker).await;
}

async fn reset_under_load(heartbeat: Heartbeat) {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    for n in 0..200 {
        aws.put("stream", "key", format!("{n:03}"));
    }
    let worker = Running::start_with(&aws, "a", heartbeat);
    until("all records, checkpointed", async || worker.seen().len() >= 200 && checkpointed(&aws).await).await;
    until("the kind of lease", async || lives_by_heartbeat(&aws).await == (heartbeat == Heartbeat::Worker))
        .await;

    let refused = leasectl(&aws, "reset -t app --to-trim-horizon").await.ended(3);
    assert!(refused.err.contains("1 leases are held (a)") && refused.err.contains("--force"), "{refused:?}");
    let dry = leasectl(&aws, "reset -t app --to-trim-horizon --dry-run").await.ended(0);
    assert!(dry.out.contains("TRIM_HORIZON  dry run"), "{dry:?}");
    assert!(checkpointed(&aws).await, "neither wrote anything");

    leasectl(&aws, "reset -t app --to-trim-horizon --force").await.ended(0);
    // Records go on arriving while the holder finds out.
    for n in 200..300 {
        aws.put("stream", "key", format!("{n:03}"));
    }
    let again = async || worker.seen().iter().filter(|data| *data == "000").count() == 2;
    until("the first record again", again).await;
    until("everything, checkpointed", async || checkpointed(&aws).await).await;
    let seen = worker.seen();
    let second = seen.iter().rposition(|data| data == "000").expect("again");
    let expected: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
    assert_eq!(seen[second..], expected, "from the new position, in order, nothing left out");
    assert_eq!(rows(&aws).await[0].owner.as_ref().map(|owner| owner.as_str()), Some("a"));
    worker.stop().await;
}

#[tokio::test]
async fn resets_of_a_stopped_application_begin_where_they_say() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    let numbers: Vec<_> = (0..4).map(|n| aws.put("stream", "key", format!("{n}")).1).collect();
    let worker = Running::start(&aws, "a");
    until("all, checkpointed", async || worker.seen().len() == 4 && checkpointed(&aws).await).await;
    worker.stop().await;

    let then = async |to: &str, expected: &[&str]| {
        leasectl(&aws, &format!("reset -t app {to}")).await.ended(0);
        let worker = Running::start(&aws, "a");
        until(to, async || worker.seen().len() >= expected.len() && checkpointed(&aws).await).await;
        assert_eq!(worker.seen(), expected, "{to}");
        worker.stop().await;
    };
    then(&format!("--to-sequence {} --shard 0", numbers[1]), &["2", "3"]).await;
    then("--to-timestamp 1h", &["0", "1", "2", "3"]).await;
    leasectl(&aws, "reset -t app --to-trim-horizon").await.ended(0);
    leasectl(&aws, "reset -t app --to-latest").await.ended(0);
    aws.put("stream", "key", "4");
    let worker = Running::start(&aws, "a");
    until("the new one", async || checkpointed(&aws).await).await;
    assert_eq!(worker.seen(), ["4"]);
    worker.stop().await;
    for (wrong, code, why) in [
        ("--to-sequence 5 --shard 0", 3, "is not a number of shard"),
        (&*format!("--to-sequence {}", numbers[1]), 2, "--shard"),
        ("--to-latest --shard 9", 4, "is not in the stream"),
        ("--to-timestamp 2999-01-01T00:00:00Z", 2, "future"),
    ] {
        let ran = leasectl(&aws, &format!("reset -t app {wrong}")).await.ended(code);
        assert!(ran.err.contains(why), "{ran:?}");
    }
}

#[tokio::test]
async fn a_living_worker_hands_over_what_is_released_and_nothing_comes_twice() {
    release_and_drain(Heartbeat::Lease).await;
}

#[tokio::test]
async fn a_worker_with_a_heartbeat_hands_over_what_is_released_and_nothing_comes_twice() {
    release_and_drain(Heartbeat::Worker).await;
}

async fn release_and_drain(heartbeat: Heartbeat) {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 2);
    let worker = Running::start_with(&aws, "a", heartbeat);
    for n in 0..20 {
        aws.put("stream", &format!("key-{n}"), format!("{n}"));
    }
    until("all records", async || worker.seen().len() == 20).await;
    until("the kind of lease", async || lives_by_heartbeat(&aws).await == (heartbeat == Heartbeat::Worker))
        .await;
    let released = leasectl(&aws, "release -t app 0").await.ended(0);
    assert!(released.out.contains("handed over"), "{released:?}");
    let drained = leasectl(&aws, "drain -t app a").await.ended(0);
    assert!(drained.err.contains("stop it now"), "{drained:?}");
    for n in 20..40 {
        aws.put("stream", &format!("key-{n}"), format!("{n}"));
    }
    until("the rest", async || worker.seen().len() >= 40).await;
    worker.stop().await;
    let held = rows(&aws).await.iter().filter(|row| row.holder().is_some()).count();
    assert_eq!(held, 0, "no lease is left in the tool's name");
}

#[tokio::test]
async fn what_a_dead_worker_holds_is_taken_only_by_force() {
    let aws = LocalAws::start().await.expect("servers");
    let store = store(&aws).await;
    let dead = Lease { owner: Some("dead".into()), counter: 9, ..row(0, at(5)) };
    let willing =
        Lease { hands_over: Some("dead".into()), ..Lease { owner: dead.owner.clone(), ..row(1, at(6)) } };
    for row in [&dead, &willing, &row(2, at(7))] {
        store.create(row).await.expect("put");
    }
    let kept = leasectl(&aws, "drain -t app dead --timeout 300ms").await.ended(3);
    assert!(kept.out.contains("does not hand over") && kept.out.contains("in time"), "{kept:?}");
    assert_eq!(rows(&aws).await[..2], [dead.clone(), willing.clone()], "nothing is left behind");
    leasectl(&aws, "drain -t app dead --timeout 300ms --force").await.ended(0);
    let free = rows(&aws).await;
    assert_eq!((free[0].holder(), free[0].counter, &free[0].checkpoint), (None, 10, &at(5)));
    assert_eq!((free[1].holder(), free[1].checkpoint_owner.clone(), free[1].counter), (None, None, 1));
    leasectl(&aws, "drain -t app dead").await.ended(4);
}

#[tokio::test]
async fn rows_come_back_as_they_were_whatever_they_hold() {
    let aws = LocalAws::start().await.expect("servers");
    every_state(&aws).await;
    let client = aws.dynamodb_client();
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let foreign: HashMap<String, AttributeValue> = [
        ("leaseKey", text("shardId-000000000005")),
        ("leaseCounter", AttributeValue::N("12".into())),
        ("ownerSwitchesSinceCheckpoint", AttributeValue::N("0".into())),
        ("checkpoint", text("TRIM_HORIZON")),
        ("leaseOwner", text("w")),
        ("someBlob", AttributeValue::B(Blob::new([0, 255]))),
        ("someMap", AttributeValue::M([("inner".to_owned(), AttributeValue::Ss(vec!["x".into()]))].into())),
        ("someFlag", AttributeValue::Bool(true)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let leader = [("leaseKey", text("Leader")), ("entityType", text("LEADER")), ("ownerName", text("w"))];
    let leader = leader.map(|(name, value)| (name.to_owned(), value)).into();
    for item in [foreign.clone(), leader] {
        client.put_item().table_name("app").set_item(Some(item)).send().await.expect("put");
    }
    let file = scratch("rows.jsonl");
    let file = file.to_str().expect("UTF-8");
    leasectl(&aws, &format!("export -t app -f {file}")).await.ended(0);
    let exported = std::fs::read_to_string(file).expect("a file");
    assert_eq!(exported.lines().count(), 7);
    for line in exported.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let key = text(row["leaseKey"]["S"].as_str().expect("a key"));
        client.delete_item().table_name("app").key("leaseKey", key).send().await.expect("deleted");
    }
    let made = leasectl(&aws, &format!("import -t app -f {file}")).await.ended(0);
    assert!(made.out.contains("7 rows made, 0 replaced"), "{made:?}");
    assert_eq!(leasectl(&aws, "export -t app").await.ended(0).out, exported);
    leasectl(&aws, &format!("import -t app -f {file}")).await.ended(0);

    // Over rows that moved on: only if told to, only by force where held, and fenced.
    let moved = store(&aws).await;
    let held = moved.get(&"shardId-000000000005".into()).await.expect("read").expect("a row");
    moved.write(&held.claim(&"v".into())).await.expect("claimed");
    leasectl(&aws, &format!("import -t app -f {file}")).await.ended(5);
    leasectl(&aws, &format!("import -t app -f {file} --overwrite")).await.ended(5);
    leasectl(&aws, &format!("import -t app -f {file} --overwrite --force")).await.ended(0);
    let now = client.get_item().table_name("app").key("leaseKey", text("shardId-000000000005")).send().await;
    let mut expected = foreign;
    expected.remove("leaseOwner");
    expected.insert("leaseCounter".into(), AttributeValue::N("14".into()));
    assert_eq!(now.expect("read").item, Some(expected));
}

#[tokio::test]
async fn no_payload_is_printed_unless_asked_for() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    for n in 0..3 {
        aws.put("stream", "customer", format!("secret-{n}"));
    }
    let quiet = leasectl(&aws, "tail -s stream --from trim-horizon").await.ended(0);
    assert_eq!(quiet.out.lines().count(), 3);
    assert!(quiet.out.contains("\"customer\" 8 bytes") && !quiet.out.contains("secret"), "{quiet:?}");
    let loud = leasectl(&aws, "tail -s stream --from 10m -n 2 -o json --payload base64").await.ended(0);
    let line: Value = serde_json::from_str(loud.out.lines().nth(1).expect("two")).expect("JSON");
    assert_eq!((loud.out.lines().count(), &line["payload"]), (2, &"c2VjcmV0LTE=".into()));
    leasectl(&aws, "tail -s stream --from checkpoint").await.ended(2);
    leasectl(&aws, "tail -s stream 4").await.ended(4);
    leasectl(&aws, "tail -s nothing").await.ended(4);
}

#[tokio::test]
async fn every_trouble_has_its_exit_code_and_no_table_is_ever_made() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    for (arguments, code, says) in [
        ("describe", 2, "--table"),
        ("reset -t app", 2, "required"),
        ("lag -t app -s stream", 4, "lease table app does not exist"),
        ("import -t app -f /nowhere", 2, "/nowhere"),
        ("watch -t app", 2, "terminal"),
        ("cost --shards 0", 2, "above 0"),
    ] {
        let ran = leasectl(&aws, arguments).await.ended(code);
        assert!(ran.err.contains(says), "{arguments}: {ran:?}");
    }
    let tables = aws.dynamodb_client().list_tables().send().await.expect("tables");
    assert!(tables.table_names().is_empty(), "{tables:?}");
    let mut unreachable = Command::new(BINARY);
    unreachable.args(["list", "-t", "app", "--region", "x", "--endpoint-url", "http://127.0.0.1:9"]);
    unreachable.envs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")]);
    let unreachable = unreachable.output().await.expect("it runs");
    assert_eq!(unreachable.status.code(), Some(1), "{unreachable:?}");
    every_state(&aws).await;
    leasectl(&aws, "describe -t app 77").await.ended(4);
    let java = leasectl(&aws, "lag -t app").await.ended(2);
    assert!(java.err.contains("--stream"), "{java:?}");
    leasectl(&aws, "lag -t app -s nothing").await.ended(4);
    let shells = leasectl(&aws, "completions bash").await.ended(0);
    assert!(shells.out.contains("complete -F _leasectl"), "{}", shells.err);
}

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
fn counted(shards: usize, workers: usize, busy: bool, failover_time: Duration) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (stream, table) = (MemoryStream::new("stream", shards), MemoryLeaseStore::new());
        let calls = Arc::new(Calls::default());
        let mut fleet = JoinSet::new();
        for n in 0..workers {
            let config = Config {
                worker_id: Some(format!("worker-{n}")),
                initial_position: InitialPosition::TrimHorizon,
                failover_time,
                ..Config::default()
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
        let second = async || {
            if busy {
                stream
                    .open_shards()
                    .iter()
                    .for_each(|shard| drop(stream.put_to(shard.hash_range.start, "k", "x")));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        for _ in 0..60 {
            second().await;
        }
        let owners: BTreeSet<_> = table.rows().into_iter().map(|row| row.owner).collect();
        assert_eq!(owners.len(), workers, "the fleet has settled");
        let count = || (calls.updates.load(Relaxed), calls.scans.load(Relaxed));
        let before = count();
        for _ in 0..600 {
            second().await;
        }
        let after = count();
        ((after.0 - before.0) as f64 / 10.0, (after.1 - before.1) as f64 / 10.0)
    })
}

#[test]
fn the_predicted_calls_are_within_a_tenth_of_those_counted() {
    for (shards, workers, batches, failover) in
        [(16, 1, 0, 10), (16, 1, 1, 10), (64, 4, 1, 10), (400, 3, 0, 10), (8, 2, 1, 20)]
    {
        let arguments = format!(
            "cost -o json --shards {shards} --workers {workers} --batches {batches} --failover-time {failover}s"
        );
        let ran = std::process::Command::new(BINARY).args(arguments.split(' ')).output().expect("it runs");
        let predicted: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
        let lines = predicted["fleets"][0]["lines"].as_array().expect("lines").clone();
        let calls = |call: &str| -> f64 {
            let lines = lines.iter().filter(|line| line["call"] == call);
            lines.map(|line| line["calls_a_minute"].as_f64().expect("a number")).sum()
        };
        let (writes, looks) = counted(shards, workers, batches == 1, Duration::from_secs(failover));
        println!(
            "{arguments}: {writes:.1} writes (predicted {:.1}), {looks:.1} looks ({:.1})",
            calls("UpdateItem"),
            calls("Scan")
        );
        for (counted, predicted) in [(writes, calls("UpdateItem")), (looks, calls("Scan"))] {
            let off = (predicted - counted).abs() / counted;
            assert!(off <= 0.1, "{arguments}: {counted} counted, {predicted} predicted");
        }
    }
}
