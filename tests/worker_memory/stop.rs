//! Stopping: the order of things, the deadline, and what is left behind.

use std::{
    future::pending,
    sync::Arc,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use kinesis_consumer::{
    Batch, Config, Drain, Drained, EndOfShard, Event, Failure, Lease, LeaseLost, OnShutdown, RecordProcessor,
    ShardContext, ShardDone, ShardStart, Verdict,
    io::{
        LeaseStore,
        faulty::{Fault, Faults, Op},
    },
};
use tokio::{task::JoinSet, time::Instant};

use crate::world::{FAILOVER, SECOND, Trace, World, config, run, until};

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_the_batch_in_hand_then_drains_and_releases_in_one_write() {
    let world = World::shards(1);
    world.put(0, [0]);
    let slow = world.probe_with(|_, _| async {
        tokio::time::sleep(3 * SECOND).await;
        Ok(Verdict::Done)
    });
    let worker = run(world.worker("a").build(slow).expect("valid"));
    world.checkpoint_at(0, "0").await;
    world.put(0, 1..=3);
    world.trace.wait_for(0, "batch 1 2 3").await;
    world.put(0, [4]);
    tokio::time::sleep(SECOND / 2).await;
    let (asked, before) = (Instant::now(), world.row(0));
    let report = worker.stop().await;
    assert!((2 * SECOND..4 * SECOND).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    assert_eq!(world.trace.of(0), ["begin at the start", "batch 0", "batch 1 2 3", "draining"]);
    assert_eq!(world.checkpointed(0).as_deref(), Some("3"));
    assert_eq!((world.row(0).owner, world.row(0).counter), (None, before.counter + 1));
    assert_eq!((report.records, report.released), (4, vec![world.shard(0)]));
}

#[tokio::test(start_paused = true)]
async fn a_stop_reads_once_more_what_has_come_since_the_last_read() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    tokio::time::sleep(SECOND / 2).await;
    world.put(0, [2, 3]);
    let (asked, reads) = (Instant::now(), world.faults.calls(Op::ReadRecords));
    worker.stop().await;
    assert_eq!(world.trace.of(0)[1..], ["batch 1", "batch 2 3", "draining"]);
    assert_eq!(world.checkpointed(0).as_deref(), Some("3"));
    assert_eq!(world.faults.calls(Op::ReadRecords), reads + 1);
    assert!(asked.elapsed() < SECOND / 10, "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_not_held_up_by_a_slow_or_failing_read() {
    for fault in [Fault::Delay(5 * SECOND), Fault::Throttled, Fault::Unavailable] {
        let world = World::shards(1);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        until("claims", || world.owners() == ["a"]).await;
        tokio::time::sleep(3 * SECOND / 2).await;
        world.faults.chance(Op::ReadRecords, 1.0, fault);
        world.put(0, [1]);
        let asked = Instant::now();
        worker.stop().await;
        assert!(asked.elapsed() < SECOND / 2, "{fault:?}: {:?}", asked.elapsed());
        assert_eq!(world.owners(), ["-"], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_hands_nothing_out_over_a_batch_that_failed() {
    let world = World::shards(1);
    world.put(0, [1]);
    let failing = world.probe_with(|_, _| async { Err(Failure::retry("for ever")) });
    let worker = run(world.worker("a").build(failing).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    world.put(0, [2]);
    tokio::time::sleep(3 * SECOND).await;
    world.put(0, [3]);
    worker.stop().await;
    let mut seen = world.trace.of(0);
    seen.dedup();
    assert_eq!(seen[1..], ["batch 1", "draining"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_a_backlog_to_the_next_holder() {
    let world = World::shards(1);
    world.put(0, 0..100);
    let slow = world.probe_with(|_, _| async {
        tokio::time::sleep(SECOND / 10).await;
        Ok(Verdict::Done)
    });
    let config = Config { max_records: 10, ..config() };
    let worker = run(world.worker_with("a", config).build(slow).expect("valid"));
    world.trace.wait_for_records(0, 30).await;
    worker.stop().await;
    assert_eq!(world.trace.records(0).len(), 30, "the batch in hand was the last");
    assert_eq!(world.checkpointed(0).as_deref(), Some("29"));
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_end_is_dropped_at_the_deadline_and_the_lease_released() {
    let world = World::shards(2);
    world.put(0, 1..=2);
    let stuck = world.probe_with(|batch: Batch, context: ShardContext| async move {
        context.acks().ack(batch.first());
        pending().await
    });
    let config = Config { shutdown_timeout: 7 * SECOND, ..config() };
    let worker = run(world.worker_with("a", config).build(stuck).expect("valid"));
    world.trace.wait_for(0, "batch 1 2").await;
    let asked = Instant::now();
    let report = worker.stop().await;
    assert!((7 * SECOND..8 * SECOND).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    assert_eq!(world.owners(), ["-", "-"]);
    assert_eq!(world.checkpointed(0).as_deref(), Some("1"), "what was acknowledged is kept");
    assert_eq!((report.released.len(), report.cut_off), (2, vec![world.shard(0)]));
}

#[tokio::test(start_paused = true)]
async fn a_stop_interrupts_the_wait_before_a_retry() {
    let world = World::shards(1);
    world.put(0, 1..=2);
    let failing = world.probe_with(|_, _| async { Err(Failure::retry("for ever")) });
    let config = Config { retry_delay_min: 300 * SECOND, retry_delay_max: 300 * SECOND, ..config() };
    let worker = run(world.worker_with("a", config).build(failing).expect("valid"));
    world.trace.wait_for(0, "batch 1 2").await;
    tokio::time::sleep(SECOND).await;
    let asked = Instant::now();
    worker.stop().await;
    assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    assert_eq!(world.trace.of(0)[1..], ["batch 1 2", "draining"]);
    assert_eq!(world.checkpointed(0), None);
}

#[tokio::test(start_paused = true)]
async fn a_stop_interrupts_the_making_of_a_processor() {
    let world = World::shards(1);
    let config = Config { on_shutdown: OnShutdown::Keep, ..config() };
    let factory = |_: ShardStart| async { Err::<Difficult, _>("no connection".into()) };
    let worker = run(world.worker_with("a", config).build(factory).expect("valid"));
    until("claim", || world.owners() == ["a"]).await;
    tokio::time::sleep(20 * SECOND).await;
    let mut events = worker.handle.events();
    let asked = Instant::now();
    let report = worker.stop().await;
    assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    assert_eq!((report.kept.len(), report.released.len()), (1, 0));
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::ShardGivenUp { .. }), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn on_shutdown_keep_checkpoints_and_leaves_the_lease_in_our_name() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let config = Config { on_shutdown: OnShutdown::Keep, ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe()).expect("valid"));
    world.trace.wait_for_records(0, 3).await;
    let mut events = worker.handle.events();
    let report = worker.stop().await;
    assert_eq!((report.kept, report.released, report.cut_off), (vec![world.shard(0)], vec![], vec![]));
    let mut ends = Vec::new();
    while let Some(event) = events.next().await {
        ends.extend(matches!(event, Event::LeaseKept { .. } | Event::LeaseReleased { .. }).then_some(event));
    }
    assert!(matches!(&ends[..], [Event::LeaseKept { shard }] if *shard == world.shard(0)), "{ends:?}");
    assert_eq!((world.owners(), world.checkpointed(0).as_deref()), (vec!["a".into()], Some("3")));
}

#[tokio::test(start_paused = true)]
async fn leases_that_cannot_be_released_are_reported_as_kept() {
    let world = World::shards(2);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.trace.wait_for(1, "begin at the start").await;
    world.faults.cut();
    let asked = Instant::now();
    let report = worker.stop().await;
    assert_eq!((report.kept.len(), report.released.len()), (2, 0), "{report:?}");
    assert_eq!(report.cut_off, [], "no work was");
    assert_eq!(world.owners(), ["a", "a"]);
    assert!(asked.elapsed() < config().shutdown_timeout + 10 * SECOND, "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_checks_run_ends_at_once_and_claims_nothing() {
    let world = World::shards(1);
    world.faults.next(Op::Describe, 100, Fault::Unavailable);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    tokio::time::sleep(5 * SECOND).await;
    let asked = Instant::now();
    assert_eq!(worker.stop().await.records, 0);
    assert!(asked.elapsed() < SECOND);
    assert!(world.table.rows().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_a_namesake_is_waited_for_claims_nothing() {
    let world = World::shards(2);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claims", || world.owners() == ["a", "a"]).await;
    first.crash().await;
    let second = run(world.worker("a").build(world.probe()).expect("valid"));
    tokio::time::sleep(FAILOVER / 2).await;
    // This one could be claimed at once.
    world.table.put_row(Lease { owner: None, ..world.row(1) });
    let before = world.table.rows();
    second.stop().await;
    assert_eq!(world.table.rows(), before);
}

/// Fails where it can.
struct Difficult {
    trace: Trace,
    context: Option<ShardContext>,
    /// Whether ending and draining never return, instead of failing.
    hangs: bool,
}

impl Difficult {
    async fn refuse<T>(&self, what: &str) -> Result<T, Failure> {
        if let Some(context) = &self.context {
            self.trace.add(context.shard(), what);
        }
        if self.hangs {
            let _note = self.context.as_ref().map(|context| OnDrop(self.trace.clone(), context.clone()));
            pending::<()>().await;
        }
        Err(Failure::retry("no"))
    }
}

impl RecordProcessor for Difficult {
    async fn process(&mut self, _: Batch, context: &ShardContext) -> Result<Verdict, Failure> {
        self.context = Some(context.clone());
        Ok(Verdict::Done)
    }

    async fn shard_ended(&mut self, _: EndOfShard) -> Result<ShardDone, Failure> {
        self.refuse("ended").await
    }

    async fn draining(&mut self, _: Drain) -> Result<Drained, Failure> {
        self.refuse("draining").await
    }

    async fn lease_lost(&mut self, why: LeaseLost) {
        if let Some(context) = &self.context {
            self.trace.add(context.shard(), format!("lost: {why}"));
        }
    }
}

struct OnDrop(Trace, ShardContext);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add(self.1.shard(), "dropped");
    }
}

fn difficult(world: &World, hangs: bool) -> impl kinesis_consumer::ProcessorFactory + use<> {
    let trace = world.trace.clone();
    move |_: ShardStart| {
        let processor = Difficult { trace: trace.clone(), context: None, hangs };
        async move { Ok(processor) }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_completed_does_not_hold_up_the_stop() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(difficult(&world, false)).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.stream.split(&world.shard(0));
    world.trace.wait_for(0, "ended").await;
    let asked = Instant::now();
    worker.stop().await;
    assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    assert_eq!(world.trace.of(0).iter().filter(|what| *what == "draining").count(), 1);
    assert_eq!(world.row(0).owner, None);
    assert!(!world.row(0).is_finished());
}

#[tokio::test(start_paused = true)]
async fn draining_and_shard_ended_are_dropped_when_the_lease_is_lost() {
    for split in [true, false] {
        let world = World::shards(1);
        world.put(0, [1]);
        let config = Config { shutdown_timeout: 300 * SECOND, ..config() };
        let worker = run(world.worker_with("a", config).build(difficult(&world, true)).expect("valid"));
        world.checkpoint_at(0, "1").await;
        let handle = worker.handle.clone();
        let mut beside = JoinSet::new();
        let what = if split {
            world.stream.split(&world.shard(0));
            "ended"
        } else {
            beside.spawn(async move { handle.shutdown().await });
            "draining"
        };
        world.trace.wait_for(0, what).await;
        world.faults.cut();
        let cut = Instant::now();
        world.trace.wait_for(0, "dropped").await;
        assert!(cut.elapsed() <= FAILOVER + SECOND, "{what}: {:?}", cut.elapsed());
        world.trace.wait_for(0, "lost: it could not be renewed in time").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_fails_gives_the_lease_up_all_the_same() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(difficult(&world, false)).expect("valid"));
    world.checkpoint_at(0, "1").await;
    worker.stop().await;
    assert_eq!(world.owners(), ["-"]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_draining_gives_the_lease_up_all_the_same() {
    let world = World::shards(2);
    world.put(0, [1]);
    let panics = Arc::new(AtomicU32::new(0));
    let handler = {
        let panics = panics.clone();
        move |_, context: ShardContext| {
            let panics = panics.clone();
            async move {
                context.stopping().await;
                panics.fetch_add(1, Relaxed);
                panic!("on purpose");
            }
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    let report = worker.stop().await;
    assert_eq!((panics.load(Relaxed), world.owners()), (1, vec!["-".into(), "-".into()]));
    assert_eq!(report.released.len(), 2);
}

/// How many leases were asked for by `worker` and are still with their holders.
fn asked_by(world: &World, worker: &str) -> usize {
    let rows = world.table.rows();
    rows.iter().filter(|row| row.is_coming_to(&worker.into())).count()
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_requests_back_side_by_side_while_the_shards_drain() {
    requests_are_taken_back(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_requests_back_also_in_the_middle_of_reading_them() {
    requests_are_taken_back(SECOND / 4).await;
}

/// Stops a worker that has asked for leases so long after the table became slow.
async fn requests_are_taken_back(after: Duration) {
    let world = World::shards(24);
    for shard in 0..24 {
        world.put(shard, [1]);
    }
    let config = Config { max_leases_for_worker: Some(20), ..config() };
    let stuck = world.probe_with(|_, _| pending());
    let holder = run(world.worker_with("a", config).build(stuck).expect("valid"));
    until("claims", || world.owners().iter().filter(|owner| *owner == "a").count() == 20).await;
    let faults = Faults::new(2);
    let joiner = world.cut_off_by(&faults, "b", crate::world::config()).build(world.probe()).expect("valid");
    let joiner = run(joiner);
    until("requests", || asked_by(&world, "b") == 8).await;
    let slow = Fault::DelayedReply(SECOND);
    for op in [Op::HandOff, Op::WriteLease, Op::GetLease] {
        faults.chance(op, 1.0, slow);
    }
    tokio::time::sleep(after).await;
    let asked = Instant::now();
    let report = joiner.stop().await;
    assert!(asked.elapsed() <= 3 * SECOND, "{:?}", asked.elapsed());
    assert_eq!((report.released.len(), asked_by(&world, "b")), (4, 0));
    assert_eq!(world.owners().iter().filter(|owner| *owner == "a").count(), 20);
    let entries = world.trace.entries();
    let drains: Vec<_> = entries.iter().filter(|entry| entry.what == "draining").collect();
    assert_eq!(drains.len(), 4);
    assert!(drains.iter().all(|drain| drain.at - asked < SECOND / 10), "{drains:?} asked at {asked:?}");
    holder.crash().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_no_call_to_the_table_that_is_under_way() {
    for op in [Op::ListLeases, Op::CreateLease, Op::WriteLease] {
        let world = World::shards(4);
        let faults = Faults::new(3);
        let worker = run(world.cut_off_by(&faults, "a", config()).build(world.probe()).expect("valid"));
        until("claims", || world.owners() == ["a"; 4]).await;
        // One row is gone, and its shard is to be claimed anew.
        world.table.delete(&world.row(0)).await.expect("in memory");
        faults.chance(op, 1.0, Fault::DelayedReply(2 * SECOND));
        let calls = faults.calls(op);
        until("a call", || faults.calls(op) > calls).await;
        let asked = Instant::now();
        worker.stop().await;
        let entries = world.trace.entries();
        let drained =
            entries.iter().filter(|entry| entry.what == "draining" && entry.at - asked < SECOND / 10);
        assert!(drained.count() >= 3, "{op:?}: {entries:?}");
        assert!(world.table.rows().iter().all(|row| row.owner.is_none()), "{op:?}: {:?}", world.owners());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_claimed_in_the_moment_of_a_stop_is_free_again() {
    let world = World::shards(4);
    let faults = Faults::new(4);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claims", || world.owners() == ["a"; 4]).await;
    first.stop().await;
    faults.chance(Op::WriteLease, 1.0, Fault::DelayedReply(SECOND));
    let second = run(world.cut_off_by(&faults, "b", config()).build(world.probe()).expect("valid"));
    until("claims", || world.owners().iter().any(|owner| owner == "b")).await;
    let asked = Instant::now();
    let report = second.stop().await;
    assert!(asked.elapsed() <= 3 * SECOND, "{:?}", asked.elapsed());
    assert_eq!((world.owners(), report.records), (vec!["-".to_owned(); 4], 0));
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_a_short_outage_still_checkpoints_and_releases() {
    let world = World::shards(2);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.put(0, [2]);
    world.trace.wait_for_records(0, 2).await;
    world.faults.cut();
    let mut beside = JoinSet::new();
    beside.spawn(async move { worker.stop().await });
    tokio::time::sleep(SECOND).await;
    world.faults.heal();
    let report = beside.join_next().await.expect("a task").expect("no panic");
    assert_eq!((report.released.len(), report.kept.len()), (2, 0), "{report:?}");
    assert_eq!((world.owners(), world.checkpointed(0)), (vec!["-".into(); 2], Some("2".into())));
}
