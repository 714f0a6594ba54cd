//! `reset`: under load, and of an application that has stopped.

use kinesis_consumer::{Heartbeat, local::LocalAws};

use crate::stage::{Running, checkpointed, leasectl, lives_by_heartbeat, rows, until};

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
