//! What errors and panics of the user's code lead to.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
};

use kinesis_consumer::{
    Batch, Checkpoint, Config, Drain, Drained, EndOfShard, Event, Failure, Lease, LeaseLost, Ordering,
    RecordProcessor, ShardContext, ShardDone, ShardId, ShardStart, Verdict, WorkerBuilder, WorkerError,
    health::Reason, io::memory::MemoryMetrics, metrics::Metric,
};
use tokio::time::Instant;

use crate::world::{FAILOVER, Running, SECOND, Trace, World, config, event, payloads, run, text, until};

#[tokio::test(start_paused = true)]
async fn a_failed_batch_comes_again_with_growing_delays_and_the_lease_is_kept() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let healed = Arc::new(AtomicBool::new(false));
    let handler = {
        let healed = healed.clone();
        move |_, _| {
            let ok = healed.load(Relaxed);
            async move { if ok { Ok(Verdict::Done) } else { Err(Failure::retry("not yet")) } }
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    let mut events = worker.handle.events();
    tokio::time::sleep(20 * FAILOVER).await;
    let times: Vec<Instant> = world
        .trace
        .entries()
        .iter()
        .filter(|entry| entry.what == "batch 1 2 3")
        .map(|entry| entry.at)
        .collect();
    assert_eq!(world.trace.batches(0).len(), times.len(), "always the same batch");
    let delays: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(delays[0] < SECOND && delays.len() > 10, "{delays:?}");
    let longest = delays.iter().max().expect("some");
    assert!((5 * SECOND..=30 * SECOND).contains(longest), "{delays:?}");
    assert_eq!((world.owners(), world.checkpointed(0)), (vec!["a".into()], None));

    healed.store(true, Relaxed);
    world.put(0, [4]);
    world.checkpoint_at(0, "4").await;
    let report = worker.stop().await;
    assert_eq!(report.records, world.trace.records(0).len() as u64, "repeats are counted");
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::LeaseLost { .. }), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_fails_comes_again_and_those_before_it_do_not() {
    let world = World::shards(1);
    world.put(0, 1..=5);
    let trace = world.trace.clone();
    let failures = Arc::new(AtomicU32::new(3));
    let handler = move |record: kinesis_consumer::Record| {
        let data = text(record.data());
        trace.add(record.shard(), format!("batch {data}"));
        let fails =
            data == "3" && failures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        async move { if fails { Err(std::io::Error::other("the database is down").into()) } else { Ok(()) } }
    };
    let worker = run(world.worker("a").each(Ordering::Shard, handler).expect("valid"));
    world.checkpoint_at(0, "5").await;
    worker.stop().await;
    assert_eq!(world.trace.records(0), ["1", "2", "3", "3", "3", "3", "4", "5"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_before_a_failure_does_not_come_again() {
    let world = World::shards(1);
    world.put(0, 1..=4);
    let first = Arc::new(AtomicBool::new(true));
    let handler = move |batch: Batch, context: ShardContext| {
        let fails = first.swap(false, Relaxed);
        async move {
            if fails {
                // The third is acknowledged too, but the second is not.
                let records = batch.records();
                [0, 2].iter().for_each(|n| context.acks().ack(records[*n].position()));
                return Err(Failure::retry("later"));
            }
            Ok(Verdict::Done)
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    world.checkpoint_at(0, "4").await;
    worker.stop().await;
    assert_eq!(world.trace.batches(0), ["1 2 3 4", "2 3 4"]);
}

/// Fails with `failure` whenever a batch of the first shard holds "bad".
async fn given_up_at_the_bad_record(failure: fn() -> Failure) {
    let world = World::shards(2);
    world.put(0, ["1", "2"]);
    let handler = move |batch: Batch, _| {
        let bad = payloads(&batch).contains(&"bad".to_owned());
        async move { if bad { Err(failure()) } else { Ok(Verdict::Done) } }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    let mut events = worker.handle.events();
    world.checkpoint_at(0, "2").await;
    world.put(0, ["bad"]);
    let given_up = |event| match event {
        Event::ShardGivenUp { shard, panicked } => Some((shard, panicked)),
        _ => None,
    };
    assert_eq!(event(&mut events, given_up).await, (world.shard(0), false));
    let at = Instant::now();
    assert_eq!(world.row(0).owner, None, "anyone may take it");
    world.put(1, ["8", "9"]);
    assert_eq!(event(&mut events, given_up).await, (world.shard(0), false));
    assert!(at.elapsed() >= SECOND, "tried again too soon: {:?}", at.elapsed());
    assert_eq!(world.trace.batches(0), ["1 2", "bad", "bad"]);
    world.checkpoint_at(1, "9").await;
    assert_eq!(world.checkpointed(0).as_deref(), Some("2"), "nothing is skipped");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn poison_without_a_policy_gives_up_the_shard_and_skips_nothing() {
    given_up_at_the_bad_record(|| Failure::Poison { at: None, why: "no such thing".into() }).await;
}

#[tokio::test(start_paused = true)]
async fn stop_shard_gives_up_the_shard_and_skips_nothing() {
    given_up_at_the_bad_record(|| Failure::StopShard("enough".into())).await;
}

#[tokio::test(start_paused = true)]
async fn stop_worker_drains_every_shard_and_run_returns_the_reason() {
    let world = World::shards(2);
    world.put(0, [1]);
    let handler = |batch: Batch, _| {
        let stop = payloads(&batch) == ["stop"];
        async move { if stop { Err(Failure::StopWorker("the disk is full".into())) } else { Ok(Verdict::Done) } }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.put(1, ["stop"]);
    match worker.end().await {
        Err(WorkerError::Processor(why)) => assert_eq!(why.to_string(), "the disk is full"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.owners(), ["-", "-"]);
    assert_eq!(world.trace.of(0).last().map(String::as_str), Some("draining"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_only_its_shard_which_is_released_and_tried_again_later() {
    let world = World::shards(2);
    world.put(0, ["1"]);
    let panics = Arc::new(AtomicU32::new(2));
    let handler = move |batch: Batch, _| {
        let panics = panics.clone();
        async move {
            if payloads(&batch) == ["bad"]
                && panics.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
            {
                panic!("on purpose");
            }
            Ok(Verdict::Done)
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    let mut events = worker.handle.events();
    world.checkpoint_at(0, "1").await;
    world.put(0, ["bad"]);
    for _ in 0..2 {
        let panicked = |event| matches!(event, Event::ShardGivenUp { panicked: true, .. }).then_some(());
        event(&mut events, panicked).await;
        assert_eq!(world.owners(), ["-", "a"], "released; the other goes on");
    }
    world.checkpoint_at(0, "bad").await;
    worker.stop().await;
    assert_eq!(world.trace.batches(0), ["1", "bad", "bad", "bad"]);
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_cannot_be_made_is_made_again_with_the_lease_kept() {
    let world = World::shards(1);
    world.put(0, [1]);
    let (failures, probe) = (Arc::new(AtomicU32::new(8)), Arc::new(world.probe()));
    let factory = move |start: ShardStart| {
        let (failures, probe) = (failures.clone(), probe.clone());
        async move {
            if failures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                return Err("no connection".into());
            }
            kinesis_consumer::ProcessorFactory::create(&*probe, start).await
        }
    };
    let worker = run(world.worker("a").build(factory).expect("valid"));
    until("claim", || world.owners() == ["a"]).await;
    world.checkpoint_at(0, "1").await;
    assert_eq!(world.row(0).owner_switches, 0, "never let go");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn work_without_progress_for_stall_timeout_is_dropped_and_its_lease_given_up() {
    let world = World::shards(2);
    world.put(0, 1..=3);
    let dropped = world.trace.clone();
    let handler = move |batch: Batch, _| {
        let note = OnDrop(dropped.clone(), batch.shard().clone());
        async move {
            std::future::pending::<()>().await;
            drop(note);
            Ok(Verdict::Done)
        }
    };
    let config = Config { stall_timeout: 60 * SECOND, ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe_with(handler)).expect("valid"));
    let mut events = worker.handle.events();
    world.trace.wait_for(0, "batch 1 2 3").await;
    let began = Instant::now();
    let lost = |event| match event {
        Event::LeaseLost { shard, why } => Some((shard, why)),
        _ => None,
    };
    assert_eq!(event(&mut events, lost).await, (world.shard(0), LeaseLost::Stalled));
    assert!((59 * SECOND..61 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(world.owners(), ["-", "a"], "another worker can try at once");
    assert_eq!(world.trace.of(0)[1..], ["batch 1 2 3", "dropped", "lost: the work made no progress"]);
    // This worker tries again too, later: there may be no other.
    let at = Instant::now();
    until("another try", || world.trace.batches(0).len() == 2).await;
    assert!(at.elapsed() >= SECOND, "{:?}", at.elapsed());
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn retries_and_acknowledgements_are_progress() {
    let world = World::shards(2);
    world.put(0, [1]);
    world.put(1, 1..=9);
    let second = world.shard(1);
    let handler = move |batch: Batch, context: ShardContext| {
        let slow = *batch.shard() == second;
        async move {
            if !slow {
                return Err(Failure::retry("for ever"));
            }
            for record in &batch {
                tokio::time::sleep(8 * SECOND).await;
                context.acks().ack(record.position());
            }
            Ok(Verdict::Done)
        }
    };
    let config = Config { stall_timeout: 10 * SECOND, ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe_with(handler)).expect("valid"));
    world.checkpoint_at(1, "9").await;
    assert_eq!(world.trace.batches(1).len(), 1);
    assert!(!world.trace.of(0).iter().any(|what| what.starts_with("lost")));
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn records_that_are_never_acknowledged_stall_their_shard() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let config = Config { stall_timeout: 30 * SECOND, ..config() };
    let later = world.probe_with(|_, _| async { Ok(Verdict::AckLater) });
    let worker = run(world.worker_with("a", config).build(later).expect("valid"));
    world.trace.wait_for(0, "lost: the work made no progress").await;
    drop(worker);
}

/// A shard on which ten records a second arrive and are acknowledged one by one, but for the third.
async fn one_is_lost(world: &World, worker: WorkerBuilder) -> Running {
    let seen = Arc::new(AtomicUsize::new(0));
    let later = world.probe_with(move |batch: Batch, context: ShardContext| {
        for record in &batch {
            if seen.fetch_add(1, Relaxed) != 2 {
                context.acks().ack(record.position());
            }
        }
        async { Ok(Verdict::AckLater) }
    });
    let worker = run(worker.build(later).expect("valid"));
    assert!(worker.handle.ready().await);
    worker
}

/// Lets ten records a second arrive for that long.
async fn ten_a_second(world: &World, seconds: usize) {
    for n in 0..seconds * 10 {
        world.put(0, [n]);
        tokio::time::sleep(SECOND / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_lost_acknowledgement_among_many_stalls_its_shard_and_the_record_comes_again() {
    let world = World::shards(1);
    let config = Config { stall_timeout: 60 * SECOND, ..config() };
    let worker = one_is_lost(&world, world.worker_with("a", config)).await;
    ten_a_second(&world, 20).await;
    let waiting = world.checkpointed(0);
    assert!(worker.handle.health().is_fresh(), "{waiting:?}");
    ten_a_second(&world, 30).await;
    let health = worker.handle.health();
    assert_eq!((health.is_fresh(), health.reason), (false, Reason::ProcessorStuck), "{health:?}");
    assert_eq!(world.checkpointed(0), waiting);
    ten_a_second(&world, 20).await;
    assert!(world.trace.time_of(0, "lost: the work made no progress").is_some(), "{:?}", world.trace.of(0));
    until("all is checkpointed", || {
        let last = world.stream.records(&world.shard(0)).last().map(|record| record.position().clone());
        last.map(Checkpoint::At) == Some(world.row(0).checkpoint)
    })
    .await;
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_lost_acknowledgement_shows_as_lag_and_as_a_checkpoint_that_stands_still() {
    let (world, metrics) = (World::shards(1), MemoryMetrics::new());
    let worker = one_is_lost(&world, world.worker("a").metrics(Arc::new(metrics.clone()))).await;
    ten_a_second(&world, 120).await;
    for (metric, least) in [
        (Metric::MillisBehindLatest, 100_000.0),
        (Metric::FleetMillisBehindLatest, 100_000.0),
        (Metric::MillisSinceCheckpoint, 100_000.0),
    ] {
        let last = metrics.last(metric).expect("taken");
        assert!(last > least, "{metric:?}: {last}");
    }
    assert!(metrics.sum(Metric::RecordsProcessed) <= 2.0, "{}", metrics.sum(Metric::RecordsProcessed));
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn many_records_in_flight_for_long_are_no_stall_as_long_as_the_oldest_are_finished() {
    let (world, metrics) = (World::shards(1), MemoryMetrics::new());
    // Each takes 20 s or a little more beside the others: later ones are often done before earlier ones.
    let under_way = Arc::new(Mutex::new(Vec::new()));
    let pipeline = world.probe_with({
        let under_way = under_way.clone();
        move |batch: Batch, context: ShardContext| {
            for (n, record) in (0..).zip(&batch) {
                let done_at = Instant::now() + 20 * SECOND + SECOND * (n * 7 % 5);
                under_way.lock().expect("no panic").push((
                    done_at,
                    context.acks(),
                    record.position().clone(),
                ));
            }
            async { Ok(Verdict::AckLater) }
        }
    });
    let config = Config { stall_timeout: 28 * SECOND, health_max_age: Some(26 * SECOND), ..config() };
    let worker = world.worker_with("a", config).metrics(Arc::new(metrics.clone()));
    let worker = run(worker.build(pipeline).expect("valid"));
    for n in 0..2500 {
        if n < 2000 {
            world.put(0, [n]);
        }
        tokio::time::sleep(SECOND / 10).await;
        under_way.lock().expect("no panic").retain(|(done_at, acks, position)| {
            let done = *done_at <= Instant::now();
            if done {
                acks.ack(position);
            }
            !done
        });
        assert!(worker.handle.health().is_fresh(), "{:?}", worker.handle.health());
    }
    assert_eq!(metrics.sum(Metric::RecordsProcessed), 2000.0);
    assert!(!world.trace.of(0).iter().any(|what| what.starts_with("lost")));
    drop(worker);
}

struct OnDrop(Trace, ShardId);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add(&self.1, "dropped");
    }
}

/// Takes every record, and panics when its lease is lost.
struct TakesItHard(Trace, ShardId);

impl RecordProcessor for TakesItHard {
    async fn process(&mut self, batch: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        self.0.add(&self.1, format!("batch {}", payloads(&batch).join(" ")));
        Ok(Verdict::Done)
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        Ok(end.complete().await?)
    }

    async fn draining(&mut self, drain: Drain) -> Result<Drained, Failure> {
        Ok(drain.finish().await?)
    }

    async fn lease_lost(&mut self, _: LeaseLost) {
        self.0.add(&self.1, "lost");
        panic!("lost it");
    }
}

#[tokio::test(start_paused = true)]
async fn code_that_panics_over_a_lost_lease_ends_nothing_else_and_reads_it_again_later() {
    let world = World::shards(2);
    (0..2).for_each(|shard| world.put(shard, ["a"]));
    let trace = world.trace.clone();
    let factory = move |start: ShardStart| {
        let processor = TakesItHard(trace.clone(), start.shard);
        async move { Ok(processor) }
    };
    let worker = run(world.worker("a").build(factory).expect("valid"));
    for shard in 0..2 {
        world.checkpoint_at(shard, "a").await;
    }
    let stolen = world.row(0);
    world.table.put_row(Lease { owner: Some("b".into()), counter: stolen.counter + 5, ..stolen });
    world.put(1, ["b"]);
    world.checkpoint_at(1, "b").await;
    // The thief does not renew.
    until("the lease is back", || world.owners() == ["a", "a"]).await;
    world.put(0, ["b"]);
    world.checkpoint_at(0, "b").await;
    assert_eq!(world.trace.of(0), ["batch a", "lost", "batch b"]);
    worker.stop().await;
}
