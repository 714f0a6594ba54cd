//! The test kit that users have: that it tells the truth, also when the code under test is wrong.

#[path = "sim/aggregate.rs"]
mod aggregate;

use std::time::Duration;

use aggregate::aggregate;

use kinesis_consumer::{
    Batch, Config, Event, Failure, LeaseLost, Ordering, RecordProcessor, ShardContext, ShardStart, Verdict,
    testing::TestStream,
};

/// Acknowledges only the first record of each batch.
struct Forgets;

impl RecordProcessor for Forgets {
    async fn process(&mut self, batch: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        Ok(Verdict::DoneThrough(batch.first().clone()))
    }
}

#[tokio::test(start_paused = true)]
async fn all_done_waits_for_the_checkpoint_of_every_record() {
    let stream = TestStream::new(2);
    let shards: Vec<_> = ["a", "b", "c", "d"].map(|key| stream.put(key, format!("for {key}"))).into();
    assert_eq!(stream.unfinished().len(), 4);
    let worker = stream.worker("a", |worker| worker.each(Ordering::Shard, |_| async { Ok(()) }));
    stream.all_done().await;
    assert_eq!(stream.unfinished(), [""; 0]);
    assert!(stream.is_checkpointed("for c") && !stream.is_checkpointed("never put"));
    assert!(stream.checkpoint(&shards[0]).is_some());
    let report = worker.stop().await;
    assert_eq!((report.records, report.released.len()), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_never_acknowledged_is_named() {
    let stream = TestStream::new(1);
    stream.put("key", "first");
    stream.put("key", "second");
    let _worker = stream.worker("a", |worker| worker.build(|_: ShardStart| async { Ok(Forgets) }));
    stream.until("the first", |stream| stream.is_checkpointed("first")).await;
    assert_eq!(stream.unfinished(), ["second"]);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "; not done [\"first\"]")]
async fn waiting_for_what_never_comes_fails_with_what_is_missing() {
    let stream = TestStream::new(1);
    stream.put("key", "first");
    let _worker = stream.worker("a", |worker| {
        worker.each(Ordering::Shard, |_| std::future::pending::<Result<(), Failure>>())
    });
    stream.all_done().await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_delivered_again_and_counted() {
    let stream = TestStream::new(1);
    stream.put("key", "good");
    stream.put("key", "bad");
    let tries = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let _worker = stream.worker("a", |worker| {
        worker.each(Ordering::Shard, move |record| {
            let fails =
                &record.data()[..] == b"bad" && tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
            async move { if fails { Err(Failure::retry("not yet")) } else { Ok(()) } }
        })
    });
    stream.all_done().await;
    assert_eq!(stream.times_delivered("bad"), 3);
    assert_eq!(stream.delivered().last().expect("some").partition_key(), "key");
}

#[tokio::test(start_paused = true)]
async fn all_done_comes_also_when_the_rows_of_generations_are_gone() {
    let stream = TestStream::new(1);
    let _worker = stream.worker("a", |worker| worker.each(Ordering::Shard, |_| async { Ok(()) }));
    for (count, open) in [(2, 2), (4, 4), (2, 2)] {
        stream.put("key", format!("before {count}"));
        stream.all_done().await;
        stream.reshard(count);
        for key in ["a", "b", "c", "d", "e", "f"] {
            stream.put(key, format!("{key} of {count}"));
        }
        stream.until("only open shards", |stream| stream.table().rows().len() == open).await;
    }
    stream.all_done().await;
}

#[tokio::test(start_paused = true)]
async fn each_record_inside_an_aggregated_one_is_waited_for() {
    let stream = TestStream::new(1);
    stream.put("key", aggregate("key", &["one".into(), "two".into(), "three".into()]));
    assert_eq!(stream.unfinished(), ["one", "two", "three"]);
    let worker = stream.worker("a", |worker| worker.build(|_: ShardStart| async { Ok(Forgets) }));
    stream.until("the first", |stream| stream.is_checkpointed("one")).await;
    assert_eq!(stream.unfinished(), ["two", "three"]);
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_taken_is_lost_and_comes_back() {
    let stream = TestStream::new(1);
    let worker = stream.worker("a", |worker| worker.each(Ordering::Shard, |_| async { Ok(()) }));
    assert!(worker.handle().ready().await);
    let mut events = worker.handle().events();
    let shard = stream.shards()[0].clone();
    stream.take_lease(&shard);
    loop {
        if let Event::LeaseLost { shard: lost, why } = events.next().await.expect("the worker runs") {
            assert_eq!((lost, why), (shard.clone(), LeaseLost::Stolen));
            break;
        }
    }
    stream.put("key", "after");
    stream.all_done().await;
    assert_eq!(stream.lease(&shard).and_then(|lease| lease.owner).expect("held").to_string(), "a");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_aws_is_survived() {
    let stream = TestStream::new(1);
    let worker = stream.worker("a", |worker| worker.each(Ordering::Shard, |_| async { Ok(()) }));
    assert!(worker.handle().ready().await);
    stream.faults().cut();
    stream.put("key", "during");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stream.times_delivered("during"), 0);
    stream.faults().heal();
    stream.all_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_by_itself_says_why() {
    let stream = TestStream::new(1);
    stream.put("key", "poison");
    let worker = stream.worker("a", |worker| {
        worker
            .config(Config { max_records: 1, ..stream.config("a") })
            .each(Ordering::Shard, |_| async { Err(Failure::StopWorker("enough".into())) })
    });
    assert!(worker.end().await.is_err());
}
