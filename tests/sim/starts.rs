//! Starts whose calls fail, at a time that is past or to come, and a stream so large that its listing takes several
//! calls (F12, F26).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use kinesis_consumer::{
    Config, Shard, ShardId, WorkerError,
    io::{
        Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom, StreamDescription,
        faulty::Fault, memory::MemoryStream,
    },
};

use super::{
    fleet::{Begins, Setup, World},
    instances::Life,
    run::{STREAM_OPS, TABLE_OPS, play},
    scenarios::{SECOND, is_clean, owned, reads_everything},
    script::Script,
};

in_both_modes!(
    a_start_that_meets_errors_ends_in_a_worker_that_runs_fully_or_in_an_error,
    fifteen_hundred_shards_whose_listings_break_off_are_read_to_the_last_record,
    an_application_that_begins_at_a_time_is_given_all_since_then_and_nothing_from_before,
);

/// The time is past, before the first record or after shards have been split and merged, or it is to come: a stream
/// takes one that is less than a second ahead for now.
async fn an_application_that_begins_at_a_time_is_given_all_since_then_and_nothing_from_before() {
    for (seed, at) in (0..).zip([-60_000, 0, 1000, 2500, 3999, 4000, 5300, 6700, 8100, 11_000]) {
        let begins = Some(Begins { at, head: 4000 });
        let setup = Setup { begins, latency: 30, ..Setup::new(260 + seed, 4) };
        let script = Script { setup, workers: 2, rate: (4, 60), length: 10_000, steps: Vec::new() };
        let outcome = play(&script, true, |_| ()).await;
        assert!(outcome.violations.is_empty(), "{at}\n{}\n{}", outcome.trace, outcome.violations.join("\n"));
    }
}

/// F26: each call of a start fails in turn, once to twenty times, or is refused, or its reply is lost.
async fn a_start_that_meets_errors_ends_in_a_worker_that_runs_fully_or_in_an_error() {
    let ops = || TABLE_OPS.into_iter().chain(STREAM_OPS);
    let unavailable = (1..=20).flat_map(|times| ops().map(move |op| (op, times, Fault::Unavailable)));
    let others = [Fault::Throttled, Fault::Denied, Fault::LostReply].into_iter();
    let others = others.flat_map(|fault| [1, 20].map(|times| (times, fault)));
    let others = others.flat_map(|(times, fault)| ops().map(move |op| (op, times, fault)));
    let (mut ran, mut ended) = (0, 0);
    for (op, times, fault) in unavailable.chain(others) {
        let met = format!("{op:?} {times} times {fault:?}");
        let mut world = World::new(Setup { recording: false, ..Setup::new(26, 2) });
        world.put(10);
        let no = world.start("a");
        world.instances[no].table_faults.next(op, times, fault);
        world.instances[no].stream_faults.next(op, times, fault);
        let over = |world: &World| world.instances[no].state == Life::Over;
        let done = |world: &World| over(world) || world.observer.unread().is_empty();
        assert!(world.until(120 * SECOND, done).await, "neither runs nor ends: {met}");
        match world.endings.pop() {
            Some((_, Err(WorkerError::Denied { .. } | WorkerError::Unavailable { .. }))) => {
                ended += 1;
                // It is in nobody's way.
                world.start("b");
                reads_everything(&mut world, 10 * SECOND).await;
            }
            Some((_, ending)) => panic!("{ending:?}: {met}"),
            None => {
                ran += 1;
                world.put_into_each();
                reads_everything(&mut world, 60 * SECOND).await;
                world.advance(3 * SECOND).await;
                assert_eq!(owned(&world, "a"), 2, "{met}");
                assert!(world.instances[no].handle.health().is_fresh(), "{met}");
                is_clean(&world);
            }
        }
        assert_eq!(world.close().await, 0, "tasks are left: {met}");
    }
    assert!(ran > 200 && ended > 5, "{ran} ran, {ended} ended");
}

/// A stream of whose listings three of four break off: between two pages, when the token has expired, or throttled.
#[derive(Debug)]
struct BreaksOff {
    stream: MemoryStream,
    listings: AtomicU64,
}

#[async_trait]
impl RecordSource for BreaksOff {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.stream.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        match self.listings.fetch_add(1, Ordering::Relaxed) % 4 {
            0 | 1 => Err(SourceError::Throttled { operation: "list shards", source: "throttled".into() }),
            2 => Err(SourceError::ExpiredIterator),
            _ => self.stream.list_shards(filter).await,
        }
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.stream.open(shard, from).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        self.stream.read(shard, from, limit).await
    }
}

/// F12: many shards, split and merged while they are read.
async fn fifteen_hundred_shards_whose_listings_break_off_are_read_to_the_last_record() {
    let setup = Setup::new(12, 1500);
    let config = Config {
        failover_time: 10 * SECOND,
        idle_time_between_reads: SECOND,
        checkpoint_interval: 5 * SECOND,
        scan_budget: 500.0,
        ..setup.config
    };
    let mut world = World::new(Setup { config, recording: false, ..setup });
    world.source = Arc::new(BreaksOff { stream: world.stream.clone(), listings: AtomicU64::new(0) });
    for name in ["a", "b", "c"] {
        world.start(name);
    }
    for round in 0..10 {
        world.split(137 * round);
        world.put(300);
        world.merge(149 * round);
        world.put(300);
        world.advance(2 * SECOND).await;
    }
    world.put_into_each();
    reads_everything(&mut world, 60 * SECOND).await;
    let open = world.stream.open_shards().len();
    let even = |world: &World| {
        let loads = ["a", "b", "c"].map(|name| owned(world, name));
        loads.iter().sum::<usize>() == open && loads.iter().all(|load| load.abs_diff(open / 3) <= 1)
    };
    assert!(world.until(60 * SECOND, even).await, "an even spread");
    is_clean(&world);
}
