//! Records that leave the stream before they are processed.

use std::time::Duration;

use kinesis_consumer::{Event, Failure, Verdict, io::memory::MemoryStream};

use crate::world::{SECOND, World, event, run};

/// How long the stream keeps records.
const KEPT: Duration = Duration::from_secs(800);

#[tokio::test(start_paused = true)]
async fn a_shard_that_lags_is_told_of_before_and_when_its_records_are_gone() {
    let world = World::of(MemoryStream::new("stream", 2).with_retention(KEPT));
    world.put(0, 1..=3);
    let poisoned = world.shard(0);
    let handler = move |batch: kinesis_consumer::Batch, _| {
        let fails = *batch.shard() == poisoned;
        async move { if fails { Err(Failure::retry("for ever")) } else { Ok(Verdict::Done) } }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    let mut events = worker.handle.events();
    let start = tokio::time::Instant::now();
    let near = event(&mut events, |event| match event {
        Event::RetentionNear { shard, behind, retention } => Some((shard, behind, retention)),
        Event::RetentionPassed { .. } => panic!("too late"),
        _ => None,
    });
    let (shard, behind, retention) = near.await;
    assert_eq!((shard, retention), (world.shard(0), KEPT));
    assert!(behind >= KEPT / 5 * 4 && start.elapsed() < KEPT / 5 * 4 + 10 * SECOND, "{behind:?}");
    let passed = event(&mut events, |event| match event {
        Event::RetentionPassed { shard } => Some(shard),
        Event::RetentionNear { .. } => panic!("told once"),
        _ => None,
    });
    assert_eq!(passed.await, world.shard(0));
    assert!((KEPT..KEPT + 10 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    let report = worker.stop().await;
    assert_eq!(report.outlived, [world.shard(0)], "counted once; the other shard is not behind");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_record_is_gone_is_told_of_at_the_next_start() {
    for gone in [false, true] {
        let world = World::shards(1);
        world.put(0, 1..=3);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        world.checkpoint_at(0, "3").await;
        worker.stop().await;
        world.put(0, 4..=9);
        if gone {
            // Of what was not processed, too: nobody can tell what.
            world.stream.trim(&world.shard(0), 2);
        }
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        world.checkpoint_at(0, "9").await;
        tokio::time::sleep(5 * SECOND).await;
        let expected = if gone { vec![world.shard(0)] } else { Vec::new() };
        assert_eq!(worker.stop().await.outlived, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_at_rest_for_longer_than_its_records_live_has_lost_nothing() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "3").await;
    worker.stop().await;
    world.stream.trim(&world.shard(0), 0);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    world.put(0, [4]);
    world.trace.wait_for_records(0, 4).await;
    tokio::time::sleep(5 * SECOND).await;
    assert!(worker.stop().await.outlived.is_empty());
}
