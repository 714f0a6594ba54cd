//! What is acknowledged, what is written, and when.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kinesis_consumer::{
    Acks, Batch, CheckpointError, Failure, Lease, Position, ProcessorFactory, ShardContext, ShardStart,
    Verdict,
    io::faulty::{Fault, Op},
};
use tokio::time::Instant;

use crate::world::{FAILOVER, SECOND, Trace, World, payloads, run, until};

/// The acknowledgement handle and the positions of all that was delivered.
#[derive(Clone, Default)]
struct Later(Arc<Mutex<(Option<Acks>, Vec<Position>)>>);

impl Later {
    fn ack(&self, n: usize) {
        let later = self.0.lock().expect("no panic");
        later.0.as_ref().expect("a batch").ack(&later.1[n]);
    }

    fn probe(&self, world: &World) -> impl ProcessorFactory + use<> {
        let later = self.0.clone();
        world.probe_with(move |batch: Batch, context: ShardContext| {
            let mut later = later.lock().expect("no panic");
            later.0 = Some(context.acks());
            later.1.extend(batch.into_iter().map(|record| record.position().clone()));
            std::future::ready(Ok(Verdict::AckLater))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_in_any_order_move_the_checkpoint_over_what_is_whole() {
    let world = World::shards(1);
    world.put(0, 1..=5);
    let later = Later::default();
    let worker = run(world.worker("a").build(later.probe(&world)).expect("valid"));
    world.trace.wait_for_records(0, 5).await;
    for n in [1, 2, 4] {
        later.ack(n);
    }
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(world.checkpointed(0), None, "the first is not done");
    later.ack(0);
    world.checkpoint_at(0, "3").await;
    later.ack(3);
    world.checkpoint_at(0, "5").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_acknowledged_when_the_lease_moves_comes_again() {
    let world = World::shards(1);
    world.put(0, 1..=5);
    let later = Later::default();
    let worker = run(world.worker("a").build(later.probe(&world)).expect("valid"));
    world.trace.wait_for_records(0, 5).await;
    for n in [0, 1, 3] {
        later.ack(n);
    }
    worker.stop().await;
    assert_eq!(world.checkpointed(0).as_deref(), Some("2"));
    let worker = run(world.worker("b").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "5").await;
    worker.stop().await;
    assert_eq!(world.trace.batches(0), ["1 2 3 4 5", "3 4 5"]);
}

#[tokio::test(start_paused = true)]
async fn done_through_a_position_leaves_the_rest_to_be_acknowledged() {
    let world = World::shards(1);
    world.put(0, 1..=4);
    let probe = world.probe_with(|batch: Batch, _| async move {
        Ok(Verdict::DoneThrough(batch.records()[1].position().clone()))
    });
    let worker = run(world.worker("a").build(probe).expect("valid"));
    world.checkpoint_at(0, "2").await;
    world.put(0, 5..=8);
    world.checkpoint_at(0, "6").await;
    worker.stop().await;
    assert_eq!(world.trace.batches(0), ["1 2 3 4", "5 6 7 8"]);
}

/// Four user records, "a" to "d", as the Kinesis Producer Library puts them into one record.
const AGGREGATED: &[u8] = b"\xf3\x89\x9a\xc2\x0a\x02\x70\x6b\x1a\x05\x08\x00\x1a\x01\x61\x1a\x05\x08\x00\x1a\x01\x62\x1a\x05\x08\x00\
    \x1a\x01\x63\x1a\x05\x08\x00\x1a\x01\x64\x3a\x8a\x8c\xb6\x88\x41\x56\xd6\xe6\x7e\x2b\xd4\xe5\xb8\x92\x50";

#[tokio::test(start_paused = true)]
async fn a_checkpoint_inside_an_aggregated_record_is_followed_by_the_rest_of_it() {
    let world = World::shards(1);
    world.put(0, ["before"]);
    let hash = world.stream.open_shards()[0].hash_range.start;
    world.stream.put_to(hash, "pk", AGGREGATED.to_vec());
    world.put(0, ["after"]);
    let through_b = |batch: Batch, _| async move {
        let b = batch.records().iter().find(|record| **record.data() == *b"b").expect("b");
        Ok(Verdict::DoneThrough(b.position().clone()))
    };
    let worker = run(world.worker("a").build(world.probe_with(through_b)).expect("valid"));
    let at_b = |row: Lease| row.checkpoint.position().is_some_and(|position| position.sub == 1);
    until("a checkpoint at b", || world.find_row(0).is_some_and(at_b)).await;
    worker.crash().await;
    let worker = run(world.worker("b").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "after").await;
    worker.stop().await;
    assert_eq!(world.trace.records(0), ["before", "a", "b", "c", "d", "after", "c", "d", "after"]);
}

#[tokio::test(start_paused = true)]
async fn an_explicit_checkpoint_is_in_the_table_when_it_returns() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let table = world.table.clone();
    let probe = world.probe_with(move |batch: Batch, context: ShardContext| {
        let table = table.clone();
        async move {
            for record in &batch {
                context.checkpoint(record.position()).await?;
                assert_eq!(table.rows()[0].checkpoint.position(), Some(record.position()));
            }
            Ok(Verdict::AckLater)
        }
    });
    world.faults.chance(Op::WriteLease, 0.3, Fault::LostReply);
    let worker = run(world.worker("a").build(probe).expect("valid"));
    world.checkpoint_at(0, "3").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_was_never_delivered_or_goes_back_is_refused() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let results = Arc::new(Mutex::new(Vec::new()));
    let probe = {
        let results = results.clone();
        world.probe_with(move |batch: Batch, context: ShardContext| {
            let results = results.clone();
            async move {
                let (first, last) = (batch.first().clone(), batch.last().clone());
                let beyond = Position { sub: 1, ..last.clone() };
                for at in [&beyond, &last, &first] {
                    let result = context.checkpoint(at).await;
                    results.lock().expect("no panic").push(result);
                }
                Ok(Verdict::Done)
            }
        })
    };
    let worker = run(world.worker("a").build(probe).expect("valid"));
    world.checkpoint_at(0, "3").await;
    let results = results.lock().expect("no panic");
    assert!(
        matches!(
            results[..],
            [Err(CheckpointError::OutOfRange { .. }), Ok(()), Err(CheckpointError::OutOfRange { .. })]
        ),
        "{results:?}"
    );
    drop(worker);
}

/// Prepares each batch with its payloads as state, commits those that say so, and never finishes "stuck".
fn two_phase(world: &World) -> impl ProcessorFactory + use<> {
    world.probe_with(|batch: Batch, context: ShardContext| async move {
        let state = payloads(&batch).join(" ");
        let prepared = context.prepare(batch.last(), Bytes::from(state.clone())).await?;
        if state.contains("stuck") {
            std::future::pending::<()>().await;
        }
        prepared.commit().await?;
        Ok::<_, Failure>(Verdict::Done)
    })
}

/// What each processor of the first shard was given as pending.
fn pending_of(trace: &Trace, inner: impl ProcessorFactory) -> impl ProcessorFactory {
    let (trace, inner) = (trace.clone(), Arc::new(inner));
    move |start: ShardStart| {
        let pending = start.pending.as_ref().map(|(_, state)| crate::world::text(state));
        trace.add(&start.shard, format!("pending {}", pending.unwrap_or_else(|| "none".into())));
        let inner = inner.clone();
        async move { inner.create(start).await }
    }
}

#[tokio::test(start_paused = true)]
async fn a_prepared_checkpoint_is_given_to_the_next_processor_until_one_is_committed() {
    let world = World::shards(1);
    world.put(0, 1..=2);
    let worker = run(world.worker("a").build(two_phase(&world)).expect("valid"));
    world.checkpoint_at(0, "2").await;
    assert_eq!(world.row(0).pending, None);
    world.put(0, ["3", "stuck"]);
    until("prepared", || world.row(0).pending.is_some()).await;
    assert_eq!(world.checkpointed(0).as_deref(), Some("2"), "not in force");
    worker.crash().await;

    let next = pending_of(&world.trace, world.probe());
    let worker = run(world.worker("b").build(next).expect("valid"));
    world.checkpoint_at(0, "stuck").await;
    worker.stop().await;
    assert_eq!(world.row(0).pending, None);
    let worker = run(world.worker("c").build(pending_of(&world.trace, world.probe())).expect("valid"));
    world.trace.wait_for(0, "pending none").await;
    worker.stop().await;
    let given: Vec<String> =
        world.trace.of(0).into_iter().filter(|what| what.starts_with("pending")).collect();
    assert_eq!(given, ["pending 3 stuck", "pending none"]);
    assert_eq!(world.trace.batches(0), ["1 2", "3 stuck", "3 stuck"]);
}

#[tokio::test(start_paused = true)]
async fn a_prepared_checkpoint_outlives_automatic_checkpoints_before_it() {
    let world = World::shards(1);
    world.put(0, 1..=4);
    // The first half is done, and the whole is prepared.
    let probe = world.probe_with(|batch: Batch, context: ShardContext| async move {
        let prepared = context.prepare(batch.last(), Bytes::from_static(b"whole")).await?;
        context.acks().ack_through(batch.records()[1].position());
        tokio::time::sleep(FAILOVER * 3).await;
        drop(prepared);
        std::future::pending::<()>().await;
        Ok::<_, Failure>(Verdict::AckLater)
    });
    let worker = run(world.worker("a").build(probe).expect("valid"));
    world.checkpoint_at(0, "2").await;
    tokio::time::sleep(2 * FAILOVER).await;
    assert!(world.row(0).pending.is_some(), "erased by the checkpoint of earlier work");
    worker.crash().await;
    let next = pending_of(&world.trace, world.probe());
    let worker = run(world.worker("b").build(next).expect("valid"));
    world.checkpoint_at(0, "4").await;
    worker.stop().await;
    assert!(world.trace.time_of(0, "pending whole").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_busy_lease_is_written_once_in_checkpoint_interval_and_an_idle_one_twice_in_failover_time() {
    let world = World::shards(1);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.trace.wait_for(0, "begin at the start").await;
    let writes = || world.faults.calls(Op::WriteLease);
    let before = writes();
    tokio::time::sleep(600 * SECOND).await;
    let idle = writes() - before;
    assert!((120..=130).contains(&idle), "{idle} in ten minutes");
    let before = writes();
    for n in 0..600 {
        world.put(0, [n]);
        tokio::time::sleep(SECOND).await;
    }
    let busy = writes() - before;
    assert!((115..=135).contains(&busy), "{busy} in ten minutes");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_table_never_moves_a_checkpoint_back_or_past_what_was_acknowledged() {
    let world = World::shards(1);
    for (fault, chance) in [(Fault::LostReply, 0.2), (Fault::Unavailable, 0.2), (Fault::Delay(SECOND), 0.2)] {
        world.faults.chance(Op::WriteLease, chance, fault);
    }
    world.faults.chance(Op::GetLease, 0.2, Fault::Unavailable);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    let mut last = 0;
    for n in 1..=300 {
        world.put(0, [n]);
        tokio::time::sleep(SECOND).await;
        let stored = world.find_row(0).and_then(|_| world.checkpointed(0));
        let stored: usize = stored.map_or(0, |data| data.parse().expect("a number"));
        assert!(last <= stored && stored <= n, "{last} to {stored} of {n}");
        last = stored;
    }
    assert!(last > 250, "{last}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_made_again_at_once_and_then_only_when_it_is_due() {
    let world = World::shards(1);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claim", || world.owners() == ["a"]).await;
    let writes = || world.faults.calls(Op::WriteLease);
    world.faults.next(Op::WriteLease, 1, Fault::Unavailable);
    for due in [0, 1] {
        let before = writes();
        until("a renewal", || writes() > before).await;
        let failed = Instant::now();
        until("another", || writes() > before + 1).await;
        let again = failed.elapsed();
        // Half of the failover time, or the fiftieth part of that to twice as much.
        let expected = [SECOND / 10..SECOND / 4, FAILOVER * 4 / 10..FAILOVER / 2 + SECOND / 10];
        assert!(expected[due].contains(&again), "{again:?}");
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_soon_after_a_renewal_waits_as_after_any_other_write() {
    let world = World::shards(1);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claim", || world.owners() == ["a"]).await;
    tokio::time::sleep(6 * FAILOVER).await;
    let writes = || world.faults.calls(Op::WriteLease);
    let before = writes();
    until("a renewal", || writes() > before).await;
    let renewed = Instant::now();
    world.put(0, [1]);
    world.checkpoint_at(0, "1").await;
    let waited = renewed.elapsed();
    assert!(waited > 4 * SECOND && waited <= FAILOVER / 2, "{waited:?}");
    assert_eq!(writes(), before + 2, "instead of the next renewal");
    worker.stop().await;
}
