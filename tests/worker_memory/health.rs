//! Health: fresh exactly while a restart would not help.

use std::time::Duration;

use kinesis_consumer::{
    Batch, Config, Event, Failure, LeaseLost, Ordering, Record, RecordProcessor, ShardContext, Verdict,
    health::{Health, Reason},
    io::faulty::{Fault, Op},
};
use tokio::time::{Instant, sleep};

use crate::world::{Running, SECOND, World, config, event, payloads, run, until};

/// The default age up to which a part may go without progress.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Looks at the worker's health every second for that long.
async fn always(worker: &Running, time: Duration, holds: impl Fn(&Health) -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let health = worker.handle.health();
        assert!(holds(&health), "{health:?}");
        sleep(SECOND).await;
    }
}

/// Waits until the worker is stale; says since when it was so, at the latest, and how.
async fn stale(worker: &Running) -> (Instant, Health) {
    until("stale", || !worker.handle.health().is_fresh()).await;
    (Instant::now(), worker.handle.health())
}

#[tokio::test(start_paused = true)]
async fn one_stuck_shard_among_many_is_found_out_within_the_allowed_age() {
    let world = World::shards(8);
    let stuck = world.shard(3);
    let handler = {
        let stuck = stuck.clone();
        move |batch: Batch, _| {
            let is_stuck = *batch.shard() == stuck && payloads(&batch).contains(&"stuck".to_owned());
            async move {
                if is_stuck {
                    std::future::pending::<()>().await;
                }
                Ok(Verdict::Done)
            }
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    assert!(worker.handle.ready().await);
    let mut events = worker.handle.events();
    let siblings = async {
        for n in 0.. {
            for shard in 0..8 {
                world.put(shard, [n]);
            }
            sleep(SECOND).await;
        }
    };
    let check = async {
        always(&worker, 60 * SECOND, |health| health.is_fresh() && health.reason == Reason::Working).await;
        world.put(3, ["stuck"]);
        until("stuck", || world.trace.batches(3).iter().any(|batch| batch.contains("stuck"))).await;
        let since = Instant::now();
        always(&worker, MAX_AGE - SECOND, Health::is_fresh).await;
        let (at, health) = stale(&worker).await;
        assert!(at <= since + MAX_AGE + SECOND, "{:?}", at - since);
        assert_eq!((health.reason, health.shard), (Reason::ProcessorStuck, Some(stuck.clone())));
        assert!(health.age > MAX_AGE);
        assert_eq!(health.leases, 8);
        let told = |event| if let Event::Health(health) = event { Some(health) } else { None };
        let told = event(&mut events, told).await;
        assert_eq!((told.reason, told.shard), (Reason::ProcessorStuck, Some(stuck.clone())));
    };
    tokio::select! {
        () = siblings => {}
        () = check => {}
    }
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn a_spare_worker_is_fresh_and_ready() {
    let world = World::shards(1);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(first.handle.ready().await);
    let spare = run(world.worker("b").build(world.probe()).expect("valid"));
    assert!(spare.handle.ready().await);
    always(&spare, 600 * SECOND, |health| {
        health.is_fresh() && health.ready && health.reason == Reason::NoLeases && health.leases == 0
    })
    .await;
    first.stop().await;
    spare.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_a_minute_is_no_reason_to_restart() {
    let world = World::shards(2);
    world.put(0, [1]);
    let config = Config {
        retry_delay_min: 60 * SECOND,
        retry_delay_max: 60 * SECOND,
        health_max_age: Some(5 * SECOND),
        ..config()
    };
    let failing = world.probe_with(|_, _| async { Err(Failure::retry("for ever")) });
    let worker = run(world.worker_with("a", config).build(failing).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    let shard = world.shard(0);
    always(&worker, 600 * SECOND, |health| {
        health.is_fresh() && health.reason == Reason::Retrying && health.shard.as_ref() == Some(&shard)
    })
    .await;
    assert!(world.trace.batches(0).len() > 5);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn throttled_reads_are_no_reason_to_restart() {
    let world = World::shards(2);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    world.faults.chance(Op::ReadRecords, 1.0, Fault::Throttled);
    always(&worker, 600 * SECOND, |health| health.is_fresh() && health.ready).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn five_minutes_without_aws_make_unready_and_no_reason_to_restart() {
    let world = World::shards(4);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    world.faults.cut();
    let since = Instant::now();
    always(&worker, 300 * SECOND, |health| {
        let is_long = since.elapsed() > MAX_AGE + 10 * SECOND;
        health.is_fresh() && !(is_long && (health.ready || health.reason != Reason::LeaseTableUnavailable))
    })
    .await;
    world.faults.heal();
    until("ready again", || worker.handle.health().ready).await;
    until("all leases again", || worker.handle.health().leases == 4).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_be_read_is_told_and_no_reason_to_restart() {
    let world = World::shards(1);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    world.faults.chance(Op::ReadRecords, 1.0, Fault::Unavailable);
    until("told", || worker.handle.health().reason == Reason::ReadsFailing).await;
    always(&worker, MAX_AGE - SECOND, |health| health.is_fresh() && health.ready).await;
    until("not ready", || !worker.handle.health().ready).await;
    always(&worker, 300 * SECOND, |health| health.is_fresh() && !health.ready).await;
    world.faults.heal();
    until("ready again", || worker.handle.health().ready).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_another_parent_is_no_reason_to_restart() {
    let world = World::shards(2);
    world.put(0, [1]);
    let [_, late] = world.stream.split(&world.shard(0));
    world.stream.merge(&late, &world.shard(1));
    world.put(1, [2]);
    let grandparent = world.shard(0);
    let failing_for = Instant::now() + 300 * SECOND;
    // Shard 1 has ended. Its child continues shard 3, too, whose parent takes five minutes.
    let handler = move |batch: Batch, _| {
        let fails = *batch.shard() == grandparent && Instant::now() < failing_for;
        async move { if fails { Err(Failure::retry("not yet")) } else { Ok(Verdict::Done) } }
    };
    let config = Config { health_max_age: Some(5 * SECOND), ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe_with(handler)).expect("valid"));
    assert!(worker.handle.ready().await);
    always(&worker, 290 * SECOND, Health::is_fresh).await;
    assert_eq!([3, 4].map(|n| world.row(n).counter), [0, 0], "not begun");
    world.trace.wait_for(4, "batch 2").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_job_is_fresh_as_long_as_it_reports_progress() {
    let world = World::shards(1);
    world.put(0, [1]);
    let slow = world.probe_with(|_, context: ShardContext| async move {
        for _ in 0..60 {
            sleep(20 * SECOND).await;
            context.progress();
        }
        sleep(300 * SECOND).await;
        Ok(Verdict::Done)
    });
    let worker = run(world.worker("a").build(slow).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    always(&worker, 1200 * SECOND, Health::is_fresh).await;
    let (_, health) = stale(&worker).await;
    assert_eq!(health.reason, Reason::ProcessorStuck);
    until("fresh again", || worker.handle.health().is_fresh()).await;
    world.checkpoint_at(0, "1").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_is_given_the_context_reports_progress_too() {
    let world = World::shards(1);
    world.put(0, [1, 2]);
    let slow = |_: Record, context: ShardContext| async move {
        for _ in 0..6 {
            sleep(20 * SECOND).await;
            context.progress();
        }
        Ok(())
    };
    let worker = run(world.worker("a").each_with_context(Ordering::Shard, slow).expect("valid"));
    assert!(worker.handle.ready().await);
    always(&worker, 239 * SECOND, Health::is_fresh).await;
    world.checkpoint_at(0, "2").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_after_everything_is_acknowledged_is_found_out_and_stalls() {
    let world = World::shards(1);
    world.put(0, [1]);
    let config = Config { stall_timeout: 120 * SECOND, ..config() };
    let hangs = world.probe_with(|batch: Batch, context: ShardContext| async move {
        context.acks().ack_through(batch.last());
        std::future::pending().await
    });
    let worker = run(world.worker_with("a", config).build(hangs).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    let (_, health) = stale(&worker).await;
    assert_eq!(health.reason, Reason::ProcessorStuck);
    world.trace.wait_for(0, &format!("lost: {}", LeaseLost::Stalled)).await;
    until("fresh once the lease is given up", || worker.handle.health().is_fresh()).await;
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn calls_that_never_return_are_found_out() {
    for (op, reason) in [(Op::ReadRecords, Reason::ReaderStuck), (Op::ListLeases, Reason::CoordinatorStuck)] {
        let world = World::shards(1);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        assert!(worker.handle.ready().await);
        world.faults.next(op, 1, Fault::Delay(24 * 3600 * SECOND));
        assert_eq!(stale(&worker).await.1.reason, reason);
        worker.crash().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_may_take_its_time_and_is_stale_only_past_it() {
    let world = World::shards(1);
    world.put(0, [1]);
    let slow = world.probe_with(|_, context: ShardContext| async move {
        context.stopping().await;
        sleep(200 * SECOND).await;
        Ok(Verdict::Done)
    });
    let config = Config { shutdown_timeout: 300 * SECOND, health_max_age: Some(5 * SECOND), ..config() };
    let worker = run(world.worker_with("a", config).build(slow).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    let handle = worker.handle.clone();
    let stop = worker.stop();
    let check = async {
        sleep(SECOND).await;
        for _ in 0..190 {
            let health = handle.health();
            assert!(health.is_fresh() && !health.ready && health.reason == Reason::Stopping, "{health:?}");
            sleep(SECOND).await;
        }
    };
    let (report, ()) = tokio::join!(stop, check);
    assert_eq!(report.released.len(), 1);
    sleep(3600 * SECOND).await;
    assert!(handle.health().is_fresh(), "a worker that has stopped owes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_is_not_ready_and_says_so() {
    let world = World::shards(1);
    world.faults.cut();
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    always(&worker, 50 * SECOND, |health| {
        health.is_fresh() && !health.ready && health.reason == Reason::Starting
    })
    .await;
    world.faults.heal();
    assert!(worker.handle.ready().await);
    until("ready", || worker.handle.health().ready).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_up_while_the_table_is_away_is_no_reason_to_restart() {
    let world = World::shards(1);
    let config = Config { health_max_age: Some(2 * SECOND), ..config() };
    let gives_up = world.probe_with(|_, _| async {
        sleep(SECOND).await;
        Err(Failure::StopShard("simulated".into()))
    });
    let worker = run(world.worker_with("a", config).build(gives_up).expect("valid"));
    assert!(worker.handle.ready().await);
    world.put(0, [1]);
    world.trace.wait_for(0, "batch 1").await;
    world.faults.cut();
    // The release is tried until the lease expires.
    always(&worker, 30 * SECOND, Health::is_fresh).await;
    worker.crash().await;
}

/// Never returns from a batch, and takes its time when the lease is lost.
struct Leaver;

impl RecordProcessor for Leaver {
    async fn process(&mut self, _: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        std::future::pending().await
    }

    async fn lease_lost(&mut self, _: LeaseLost) {
        sleep(3 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_done_when_a_lease_is_lost_has_a_time_of_its_own() {
    let world = World::shards(1);
    world.put(0, [1]);
    let config = Config { health_max_age: Some(4 * SECOND), stall_timeout: 6 * SECOND, ..config() };
    let worker = run(world.worker_with("a", config).build(|_| async { Ok(Leaver) }).expect("valid"));
    let (since, health) = stale(&worker).await;
    assert_eq!(health.reason, Reason::ProcessorStuck);
    until("given up", || worker.handle.health().is_fresh()).await;
    let past = since.elapsed();
    assert!(past <= 2 * SECOND, "stale until the stall, not until everything is over: {past:?}");
    always(&worker, 3 * SECOND, Health::is_fresh).await;
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_ready_once_its_shards_are_being_read() {
    let world = World::shards(1);
    // The trial at the start, and the first read.
    world.faults.next(Op::ReadRecords, 1, Fault::Delay(Duration::ZERO));
    world.faults.next(Op::ReadRecords, 1, Fault::Delay(3 * SECOND));
    let (worker, began) = (run(world.worker("a").build(world.probe()).expect("valid")), Instant::now());
    assert!(worker.handle.ready().await);
    assert!(began.elapsed() >= 3 * SECOND, "{:?}", began.elapsed());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_try_owes_progress_as_the_first_one_did() {
    let world = World::shards(1);
    world.put(0, [1]);
    let trace = world.trace.clone();
    let handler = move |_, context: ShardContext| {
        let is_first = trace.batches(0).len() == 1;
        async move {
            if is_first {
                return Err(Failure::retry("not yet"));
            }
            for _ in 0..24 {
                sleep(10 * SECOND).await;
                context.progress();
            }
            std::future::pending().await
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    until("a second try", || world.trace.batches(0).len() == 2).await;
    always(&worker, 240 * SECOND, |health| health.is_fresh() && health.reason == Reason::Working).await;
    let (_, health) = stale(&worker).await;
    assert_eq!(health.reason, Reason::ProcessorStuck);
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn to_acknowledge_the_records_of_a_batch_one_after_the_other_is_progress_and_to_repeat_it_is_none() {
    let world = World::shards(1);
    world.put(0, 0..20);
    let handler = |batch: Batch, context: ShardContext| async move {
        let acks = context.acks();
        for record in &batch.records()[..10] {
            sleep(20 * SECOND).await;
            acks.ack_through(record.position());
        }
        loop {
            sleep(10 * SECOND).await;
            acks.ack_through(batch.records()[9].position());
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    until("a batch", || world.trace.batches(0).len() == 1).await;
    always(&worker, 200 * SECOND, Health::is_fresh).await;
    let (at, health) = stale(&worker).await;
    assert_eq!(health.reason, Reason::ProcessorStuck);
    assert!(at < world.trace.entries().last().expect("a batch").at + 235 * SECOND);
    worker.crash().await;
}
