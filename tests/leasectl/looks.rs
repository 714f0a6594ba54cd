//! `list`, `describe`, `lag` and `tail`: what is, without a write.

use kinesis_consumer::{
    Checkpoint, Heartbeat, Incarnation, Lease, WorkerRow, io::LeaseStore, local::LocalAws,
};
use serde_json::Value;

use crate::stage::{Running, at, every_state, leasectl, lives_by_heartbeat, row, rows, store, until};

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
    assert_eq!(json["workers"], serde_json::json!({ "a": 2 }));
    let spare = WorkerRow { incarnation: Incarnation::new(&"spare".into(), 1, 1), counter: 0 };
    assert!(store(&aws).await.beat(&spare).await.expect("put"));
    let json = leasectl(&aws, "list -t app -o json").await.ended(0).json();
    assert_eq!(json["workers"], serde_json::json!({ "a": 2, "spare": 0 }), "it says that it lives");
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
async fn lag_names_shards_that_nobody_reads_because_the_table_leaves_them_out() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 2);
    store(&aws).await;
    let nothing = leasectl(&aws, "lag -t app -s stream").await.ended(0);
    assert!(nothing.out.contains("furthest behind: -; not known of 2 shards"), "{nothing:?}");
    let json = leasectl(&aws, "lag -t app -s stream -o json").await.ended(0).json();
    assert_eq!((&json["max_behind_millis"], &json["unknown"]), (&Value::Null, &2.into()));
    assert_eq!(json["shards"][1]["what"], "no_lease");
    let unknown = leasectl(&aws, "lag -t app -s stream --max 1h").await.ended(6);
    assert!(unknown.err.contains("of 2 shards it is not known"), "{unknown:?}");
    let created = store(&aws).await.create(&row(0, Checkpoint::TrimHorizon)).await;
    assert!(created.expect("put"));
    leasectl(&aws, "lag -t app -s stream --max 1h 0").await.ended(0);
    let other = leasectl(&aws, "lag -t app -s stream --max 1h").await.ended(6);
    assert!(other.err.contains("of 1 shards"), "{other:?}");
    let from_configuration = row(1, Checkpoint::AtTimestamp);
    assert!(store(&aws).await.create(&from_configuration).await.expect("put"));
    leasectl(&aws, "lag -t app -s stream --max 1h").await.ended(6);
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
