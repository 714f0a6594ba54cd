//! The three faces over one kernel.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kinesis_consumer::{
    Assignments, Event, HeldShard, Lease, LeaseLost, Ordering, ShardEvent,
    io::faulty::{Fault, Op},
};
use tokio::{select, task::JoinSet, time::Instant};

use crate::world::{FAILOVER, Running, SECOND, World, config, event, payloads, run, text, until};

#[tokio::test(start_paused = true)]
async fn a_closure_is_called_for_each_record_in_order_and_the_work_is_checkpointed() {
    let world = World::shards(2);
    world.put(0, 1..=5);
    world.put(1, 6..=9);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let seen = seen.clone();
        move |record: kinesis_consumer::Record| {
            seen.lock().expect("no panic").push((record.shard().clone(), text(record.data())));
            async { Ok(()) }
        }
    };
    let worker = run(world.worker("a").each(Ordering::Shard, handler).expect("valid"));
    world.checkpoint_at(0, "5").await;
    world.checkpoint_at(1, "9").await;
    let of = |n| -> Vec<String> {
        seen.lock()
            .unwrap()
            .iter()
            .filter(|(shard, _)| *shard == world.shard(n))
            .map(|(_, data)| data.clone())
            .collect()
    };
    assert_eq!(of(0), ["1", "2", "3", "4", "5"]);
    assert_eq!(of(1), ["6", "7", "8", "9"]);
    let report = worker.stop().await;
    assert_eq!((report.records, report.released.len()), (9, 2));
    assert_eq!(world.owners(), ["-", "-"]);
}

#[tokio::test(start_paused = true)]
async fn a_processor_is_made_for_each_shard_and_gets_whole_batches() {
    let world = World::shards(2);
    world.put(0, 1..=3);
    world.put(1, 4..=4);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "3").await;
    world.checkpoint_at(1, "4").await;
    worker.stop().await;
    assert_eq!(world.trace.of(0), ["begin at the start", "batch 1 2 3", "draining"]);
    assert_eq!(world.trace.of(1), ["begin at the start", "batch 4", "draining"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_processor_begins_where_the_last_one_stopped() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.trace.wait_for_records(0, 3).await;
    worker.stop().await;
    world.put(0, 4..=5);
    let worker = run(world.worker("b").build(world.probe()).expect("valid"));
    world.trace.wait_for_records(0, 5).await;
    worker.stop().await;
    assert_eq!(world.trace.batches(0), ["1 2 3", "4 5"]);
}

#[tokio::test(start_paused = true)]
async fn a_pulled_shard_yields_batches_and_then_the_drain() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let (worker, mut shards) = world.worker("a").stream().expect("valid");
    let worker = run(worker);
    let mut shard = shards.next().await.expect("a shard");
    let ShardEvent::Batch(batch) = shard.next().await else { panic!("not a batch") };
    assert_eq!(payloads(&batch), ["1", "2", "3"]);
    shard.context().acks().ack_through(batch.last());
    world.checkpoint_at(0, "3").await;

    let mut beside = JoinSet::new();
    beside.spawn(async move { worker.stop().await });
    let ShardEvent::Drain(drain) = shard.next().await else { panic!("not a drain") };
    drain.finish().await.expect("released");
    drop(shard);
    let report = beside.join_next().await.expect("a task").expect("no panic");
    assert_eq!((report.records, report.released), (3, vec![world.shard(0)]));
    assert!(shards.next().await.is_none(), "the worker has ended");
}

#[tokio::test(start_paused = true)]
async fn a_pulled_shard_that_is_dropped_is_released_and_comes_again_after_a_while() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let (worker, mut shards) = world.worker("a").stream().expect("valid");
    let worker = run(worker);
    let shard = shards.next().await.expect("a shard");
    let dropped = Instant::now();
    drop(shard);
    until("release", || world.owners() == ["-"]).await;
    let again = shards.next().await.expect("a shard");
    assert!(dropped.elapsed() >= SECOND, "others had no chance to take it: {:?}", dropped.elapsed());
    drop((again, worker));
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_shards_nobody_pulls_makes_few_calls() {
    let world = World::shards(2);
    let (worker, shards) = world.worker("a").stream().expect("valid");
    drop(shards);
    let worker = run(worker);
    tokio::time::sleep(60 * SECOND).await;
    let writes = world.faults.calls(Op::WriteLease);
    assert!(writes < 120, "{writes} writes in a minute");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_nobody_pulled_yet_does_not_hold_up_the_stop() {
    let world = World::shards(3);
    let (worker, shards) = world.worker("a").stream().expect("valid");
    let worker = run(worker);
    until("claims", || world.owners() == ["a", "a", "a"]).await;
    let asked = Instant::now();
    let mut beside = JoinSet::new();
    beside.spawn(async move { worker.stop().await });
    tokio::time::sleep(SECOND).await;
    // One waits in the queue. Taken or not, it is not ours for much longer.
    drop(shards);
    let report = beside.join_next().await.expect("a task").expect("no panic");
    assert!(asked.elapsed() <= 2 * SECOND, "{:?}", asked.elapsed());
    assert_eq!(report.released.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_puller_that_has_gone_stops_neither_the_runtime_nor_the_release_of_its_shards() {
    let world = World::shards(3);
    let (worker, shards) = world.worker("a").stream().expect("valid");
    let mut events = worker.handle().events();
    let worker = run(worker);
    until("claims", || world.owners() == ["a", "a", "a"]).await;
    drop(shards);
    let mut beside = JoinSet::new();
    beside.spawn(async {
        let mut ticks = tokio::time::interval(SECOND);
        for _ in 0..=60 {
            ticks.tick().await;
        }
    });
    // Not by the clock alone: it stands still while a task never rests.
    let claimed_again_and_again = async {
        for _ in 0..100 {
            event(&mut events, |event| matches!(event, Event::LeaseTaken { .. }).then_some(())).await;
        }
    };
    select! {
        biased;
        ended = beside.join_next() => ended.expect("a task").expect("no panic"),
        () = claimed_again_and_again => panic!("the shards are claimed and released without a pause"),
    }
    until("release", || world.owners() == ["-", "-", "-"]).await;
    worker.stop().await;
}

/// A puller that has been given a batch.
async fn with_a_batch_in_hand() -> (World, Running, Assignments, HeldShard) {
    let world = World::shards(1);
    world.put(0, [1]);
    let (worker, mut shards) = world.worker("a").stream().expect("valid");
    let worker = run(worker);
    let mut shard = shards.next().await.expect("a shard");
    let ShardEvent::Batch(_) = shard.next().await else { panic!("not a batch") };
    (world, worker, shards, shard)
}

#[tokio::test(start_paused = true)]
async fn a_puller_in_the_midst_of_a_batch_learns_that_its_lease_is_lost() {
    for stolen in [false, true] {
        let (world, worker, _shards, mut shard) = with_a_batch_in_hand().await;
        let (began, mut events) = (Instant::now(), worker.handle.events());
        let expected = if stolen {
            let row = world.row(0);
            let counter = row.counter + 1;
            world.table.put_row(Lease { owner: Some("b".into()), counter, ..row });
            LeaseLost::Stolen
        } else {
            world.faults.cut();
            LeaseLost::Expired
        };
        let why = tokio::time::timeout(3 * FAILOVER, shard.context().lost()).await.expect("it is told");
        assert_eq!(why, expected);
        assert!(began.elapsed() <= FAILOVER, "{why}: {:?}", began.elapsed());
        assert!(matches!(shard.next().await, ShardEvent::Lost(lost) if lost == why));
        drop(shard);
        let told = event(&mut events, |event| match event {
            Event::LeaseLost { why, .. } => Some(Ok(why)),
            Event::LeaseKept { .. } | Event::LeaseReleased { .. } => Some(Err(event)),
            _ => None,
        });
        assert!(matches!(told.await, Ok(told) if told == why));
        worker.crash().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_puller_that_is_cut_off_learns_of_it_before_anybody_else_can_take_its_shard() {
    let (world, worker, _shards, shard) = with_a_batch_in_hand().await;
    // The row is free a second before the worker knows that.
    world.faults.chance(Op::WriteLease, 1.0, Fault::DelayedReply(SECOND));
    let (began, context) = (Instant::now(), shard.context());
    let told = async { (context.lost().await, began.elapsed()) };
    let ((why, told), report) = tokio::join!(told, worker.stop());
    assert_eq!((why, told), (LeaseLost::Released, config().shutdown_timeout));
    assert!(began.elapsed() >= config().shutdown_timeout + SECOND);
    assert_eq!((world.owners(), report.cut_off), (vec!["-".to_owned()], vec![world.shard(0)]));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_late_acknowledgements_until_its_deadline() {
    for late in [Duration::from_secs(2), Duration::from_secs(3600)] {
        let world = World::shards(1);
        world.put(0, 1..=3);
        let (worker, mut shards) = world.worker("a").stream().expect("valid");
        let worker = run(worker);
        let mut shard = shards.next().await.expect("a shard");
        let ShardEvent::Batch(batch) = shard.next().await else { panic!("not a batch") };
        let (acks, mut beside) = (shard.context().acks(), JoinSet::new());
        acks.ack(batch.first());
        let stopped = Instant::now();
        beside.spawn(async move {
            worker.stop().await;
        });
        let ShardEvent::Drain(drain) = shard.next().await else { panic!("not a drain") };
        beside.spawn(async move {
            tokio::time::sleep(late).await;
            acks.ack_through(batch.last());
        });
        let in_time = late < config().shutdown_timeout;
        assert_eq!(drain.acknowledged().await, in_time);
        let waited = late.min(config().shutdown_timeout);
        assert!(stopped.elapsed().abs_diff(waited) < SECOND / 10, "{:?}", stopped.elapsed());
        if in_time {
            drain.finish().await.expect("released");
        }
        drop(shard);
        until("release", || world.owners() == ["-"]).await;
        assert_eq!(world.checkpointed(0).as_deref(), Some(if in_time { "3" } else { "1" }));
        beside.shutdown().await;
    }
}
