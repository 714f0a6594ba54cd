//! Reading: iterators that expire, throttles, memory, retention.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use kinesis_consumer::{
    Batch, Config, Shard, ShardContext, ShardId, Verdict,
    health::Reason,
    io::{
        Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom, StreamDescription,
        faulty::{Fault, Op},
        memory::{Limits, MemoryStream},
    },
};
use tokio::time::Instant;

use crate::world::{SECOND, World, config, run, until};

#[tokio::test(start_paused = true)]
async fn an_iterator_that_expires_behind_a_slow_handler_costs_no_record_and_repeats_none() {
    let world = World::shards(1);
    let slow = world.probe_with(|_, _| async {
        tokio::time::sleep(400 * SECOND).await;
        Ok(Verdict::Done)
    });
    let config = Config { max_records: 2, ..config() };
    world.put(0, 1..=5);
    let worker = run(world.worker_with("a", config).build(slow).expect("valid"));
    world.checkpoint_at(0, "2").await;
    world.checkpoint_at(0, "4").await;
    world.put(0, 6..=7);
    world.checkpoint_at(0, "7").await;
    worker.stop().await;
    assert_eq!(world.trace.batches(0), ["1 2", "3 4", "5", "6 7"]);
}

#[tokio::test(start_paused = true)]
async fn shards_are_listed_at_the_start_and_never_at_rest() {
    let world = World::shards(4);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    until("all leases", || world.owners() == ["a"; 4]).await;
    let listed = world.faults.calls(Op::ListShards);
    assert!((1..=3).contains(&listed), "{listed} times");
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(world.faults.calls(Op::ListShards), listed);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn reads_that_fail_in_every_way_cost_no_record_and_repeat_none() {
    let world = World::of(MemoryStream::new("stream", 2).with_iterator_lifetime(3 * SECOND));
    for (op, chance) in [(Op::ReadRecords, 0.1), (Op::OpenIterator, 0.2), (Op::ListShards, 0.2)] {
        for fault in [Fault::Throttled, Fault::Unavailable, Fault::LostReply, Fault::Delay(5 * SECOND)] {
            world.faults.chance(op, chance / 2.0, fault);
        }
    }
    let config = Config { max_records: 7, ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe()).expect("valid"));
    for n in 0..100 {
        world.put(n % 2, [n]);
        tokio::time::sleep(SECOND).await;
    }
    world.checkpoint_at(1, "99").await;
    world.checkpoint_at(0, "98").await;
    for shard in 0..2 {
        let expected: Vec<String> = (0..50).map(|n| (2 * n + shard).to_string()).collect();
        assert_eq!(world.trace.records(shard), expected);
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_alone_is_never_throttled() {
    let world = World::of(MemoryStream::new("stream", 1).with_limits(Limits::aws()));
    world.put(0, 0..5000);
    let config = Config { max_records: 100, ..config() };
    let began = Instant::now();
    let worker = run(world.worker_with("a", config).build(world.probe()).expect("valid"));
    world.trace.wait_for_records(0, 5000).await;
    // Fifty reads at five a second, and that of the checks.
    assert!((9 * SECOND..13 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    let reads = world.faults.calls(Op::ReadRecords);
    assert!((50..=52).contains(&reads), "{reads} reads: some were refused");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_workers_that_start_together_come_through_the_checks() {
    let world = World::of(MemoryStream::new("stream", 1).with_limits(Limits::aws()));
    world.put(0, [1]);
    let workers: Vec<_> =
        (0..8).map(|n| run(world.worker(&format!("w{n}")).build(world.probe()).expect("valid"))).collect();
    world.checkpoint_at(0, "1").await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_read_ahead_stays_within_the_memory_budget_and_no_shard_starves() {
    let world = World::shards(8);
    let megabyte = "x".repeat(1 << 20);
    for shard in 0..8 {
        world.put(shard, vec![megabyte.clone(); 12]);
    }
    let stuck = world.probe_with(|_, _| std::future::pending());
    let config = Config { memory_budget: 10 << 20, max_records: 2, ..config() };
    let worker = run(world.worker_with("a", config).build(stuck).expect("valid"));
    for shard in 0..8 {
        until("every shard gets a batch", || !world.trace.batches(shard).is_empty()).await;
    }
    tokio::time::sleep(30 * SECOND).await;
    // One batch of each shard is in hand; those read ahead are paid for.
    let reads = world.faults.calls(Op::ReadRecords);
    assert!(reads <= 1 + 8 + 5, "{reads} reads");
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn with_a_small_memory_budget_everything_is_read_all_the_same() {
    let world = World::shards(8);
    let megabyte = "x".repeat(1 << 20);
    for shard in 0..8 {
        world.put(shard, vec![megabyte.clone(); 12]);
    }
    let slow = world.probe_with(|_: Batch, _| async {
        tokio::time::sleep(SECOND).await;
        Ok(Verdict::Done)
    });
    let config = Config { memory_budget: 10 << 20, max_records: 3, ..config() };
    let worker = run(world.worker_with("a", config).build(slow).expect("valid"));
    for shard in 0..8 {
        world.trace.wait_for_records(shard, 12).await;
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_shard_does_not_hold_up_the_others() {
    let world = World::shards(4);
    let first = world.shard(0);
    let probe = world.probe_with(move |batch: Batch, _| {
        let stuck = *batch.shard() == first;
        async move {
            if stuck {
                std::future::pending::<()>().await;
            }
            Ok(Verdict::Done)
        }
    });
    for shard in 0..4 {
        world.put(shard, 0..100);
    }
    let worker = run(world.worker("a").build(probe).expect("valid"));
    for n in 100..160 {
        for shard in 0..4 {
            world.put(shard, [n]);
        }
        tokio::time::sleep(SECOND).await;
    }
    for shard in 1..4 {
        world.trace.wait_for_records(shard, 160).await;
    }
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_shard_that_leaves_the_stream_unread_makes_room_for_its_children() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    worker.stop().await;
    world.put(0, [2]);
    world.stream.split(&world.shard(0));
    world.put(1, [3]);
    world.stream.forget(&world.shard(0));
    let worker = run(world.worker("b").build(world.probe()).expect("valid"));
    world.checkpoint_at(2, "3").await;
    worker.stop().await;
}

/// A stream whose reads fail as `refuse` says, which sees the limit of each.
#[derive(Clone)]
struct Refusing<F> {
    inner: MemoryStream,
    refuse: F,
}

impl<F> fmt::Debug for Refusing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<F: Fn(&ShardId, usize) -> Option<SourceError> + Send + Sync> RecordSource for Refusing<F> {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.inner.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.inner.list_shards(filter).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.inner.open(shard, from).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        match (self.refuse)(shard, limit) {
            Some(error) => Err(error),
            None => self.inner.read(shard, from, limit).await,
        }
    }
}

/// A source that does not know its first shard for the next `refusals` reads of it.
fn forgetful(world: &World, refusals: &Arc<AtomicU32>) -> Arc<dyn RecordSource> {
    let (refusals, first) = (refusals.clone(), world.shard(0));
    let refuse = move |shard: &ShardId, _| {
        let left = |left: u32| left.checked_sub(1);
        let refused = *shard == first && refusals.fetch_update(Relaxed, Relaxed, left).is_ok();
        refused.then(|| SourceError::NoShard(shard.clone()))
    };
    Arc::new(Refusing { inner: world.stream.clone(), refuse })
}

#[tokio::test(start_paused = true)]
async fn an_open_shard_that_is_refused_is_not_ended_and_loses_nothing() {
    for refused in [1, 10] {
        let (world, refusals) = (World::shards(1), Arc::new(AtomicU32::new(0)));
        let worker = world.worker("a").source(forgetful(&world, &refusals));
        let worker = run(worker.build(world.probe()).expect("valid"));
        world.put(0, [0]);
        world.checkpoint_at(0, "0").await;
        refusals.store(refused, Relaxed);
        for n in 1..30 {
            world.put(0, [n]);
            tokio::time::sleep(SECOND).await;
            assert!(!world.row(0).is_finished(), "{n}");
        }
        world.checkpoint_at(0, "29").await;
        let expected: Vec<String> = (0..30).map(|n: u32| n.to_string()).collect();
        assert_eq!((world.trace.records(0), refusals.load(Relaxed)), (expected, 0));
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_shard_that_is_still_listed_ends_when_it_is_refused_three_times() {
    for (refused, ended) in [(2, false), (3, true)] {
        let (world, refusals) = (World::shards(1), Arc::new(AtomicU32::new(0)));
        let worker = world.worker("a").source(forgetful(&world, &refusals));
        let worker = run(worker.build(world.probe()).expect("valid"));
        world.put(0, [1]);
        world.checkpoint_at(0, "1").await;
        refusals.store(refused, Relaxed);
        world.put(0, [2]);
        world.stream.split(&world.shard(0));
        world.put(0, [3]);
        world.checkpoint_at(1, "3").await;
        let read = if ended { vec!["1"] } else { vec!["1", "2"] };
        assert_eq!(world.trace.records(0), read, "refused {refused} times");
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_takes_too_long_is_made_smaller_until_it_succeeds() {
    for most in [1000, 3] {
        let world = World::shards(1);
        let refuse = move |_: &ShardId, limit| {
            let source = "timed out".into();
            (limit > most).then_some(SourceError::Unavailable { operation: "read records", source })
        };
        let source = Refusing { inner: world.stream.clone(), refuse };
        world.put(0, 0..50);
        let worker = world.worker("a").source(Arc::new(source)).build(world.probe()).expect("valid");
        let worker = run(worker);
        world.checkpoint_at(0, "49").await;
        assert_eq!(world.trace.records(0).len(), 50, "no more than {most} at a time");
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_for_memory_after_a_failed_read_is_not_failing() {
    let (world, fails, works) =
        (World::shards(3), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (refused, tries) = (world.shard(1), Arc::new(AtomicU32::new(0)));
    let refuse = {
        let (fails, tries) = (fails.clone(), tries.clone());
        move |shard: &ShardId, _| {
            let refused = *shard == refused && fails.load(Relaxed);
            refused.then(|| {
                tries.fetch_add(1, Relaxed);
                SourceError::Unavailable { operation: "read records", source: "timed out".into() }
            })
        }
    };
    let busy = world.probe_with({
        let works = works.clone();
        move |_, context: ShardContext| {
            let works = works.clone();
            async move {
                while works.load(Relaxed) {
                    tokio::time::sleep(SECOND).await;
                    context.progress();
                }
                Ok(Verdict::Done)
            }
        }
    });
    world.put(1, ["small"]);
    let config = Config { memory_budget: 10 << 20, max_records: 3, ..config() };
    let source = Refusing { inner: world.stream.clone(), refuse };
    let worker = run(world.worker_with("a", config).source(Arc::new(source)).build(busy).expect("valid"));
    world.trace.wait_for(1, "batch small").await;
    fails.store(true, Relaxed);
    until("a failed read", || tries.load(Relaxed) > 0).await;
    // The batches of two shards, and what is read ahead of one, leave too little for the other, which waits first.
    let megabyte = "x".repeat(1 << 20);
    for shard in [0, 2] {
        world.put(shard, vec![megabyte.clone(); 12]);
    }
    tokio::time::sleep(30 * SECOND).await;
    let before = tries.load(Relaxed);
    for _ in 0..60 {
        let health = worker.handle.health();
        assert!(health.ready && health.reason == Reason::Working, "{health:?}");
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(tries.load(Relaxed), before, "it waits");
    works.store(false, Relaxed);
    until("fails again", || worker.handle.health().reason == Reason::ReadsFailing).await;
    assert!(tries.load(Relaxed) > before && worker.handle.health().ready, "not for long yet");
    until("fails for long", || !worker.handle.health().ready).await;
    worker.crash().await;
}

/// A source that fails for one shard.
#[derive(Debug)]
struct Without(ShardId, MemoryStream);

#[async_trait]
impl RecordSource for Without {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.1.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.1.list_shards(filter).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        match *shard == self.0 {
            true => Err(SourceError::Unavailable { operation: "GetShardIterator", source: "broken".into() }),
            false => self.1.open(shard, from).await,
        }
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        self.1.read(shard, from, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn one_shard_that_nobody_can_read_keeps_no_worker_from_the_others() {
    let world = World::shards(2);
    let begin = |name| {
        let source = Arc::new(Without(world.shard(0), world.stream.clone()));
        run(world.worker(name).source(source).build(world.probe()).expect("valid"))
    };
    let (first, second) = (begin("a"), begin("b"));
    until("one each", || ["a", "b"].iter().all(|name| world.owners().contains(&(*name).into()))).await;
    let unlucky = world.owners()[0].clone();
    let mut n = 0;
    let mut put_until = async |what: &str, done: &dyn Fn() -> bool| {
        for _ in 0..300 {
            if done() {
                return;
            }
            n += 1;
            world.put(1, [n]);
            tokio::time::sleep(SECOND).await;
        }
        panic!("never came: {what}; {:?}", world.owners());
    };
    put_until("it gives up", &|| world.owners()[0] != unlucky).await;
    put_until("it has its share again", &|| world.owners().contains(&unlucky)).await;
    first.stop().await;
    second.stop().await;
}
