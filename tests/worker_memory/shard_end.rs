//! The end of a shard, and its children.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use async_trait::async_trait;
use kinesis_consumer::{
    Batch, Checkpoint, CheckpointError, EndOfShard, Event, Failure, Lease, LeaseLost, RecordProcessor, Shard,
    ShardContext, ShardDone, ShardEvent, ShardId, ShardStart, Verdict,
    io::{
        Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom, StreamDescription,
        faulty::{Fault, Faults, Op},
        memory::{MemoryLeaseStore, MemoryStream},
    },
};

use crate::world::{FAILOVER, SECOND, World, config, event, id, payloads, run, until};

#[tokio::test(start_paused = true)]
async fn children_are_read_once_their_parent_has_ended_and_finished_leases_go() {
    for with_last_page in [false, true] {
        let stream = MemoryStream::new("stream", 1);
        let world = World::of(if with_last_page { stream.ending_with_last_page() } else { stream });
        world.put(0, 1..=3);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        world.trace.wait_for_records(0, 3).await;
        world.put(0, 4..=6);
        world.stream.split(&world.shard(0));
        world.put(0, [7]);
        world.put(1, [8]);
        world.checkpoint_at(1, "7").await;
        world.checkpoint_at(2, "8").await;
        assert_eq!(world.trace.records(0), ["1", "2", "3", "4", "5", "6"]);
        let ended = world.trace.time_of(0, "ended").expect("ended");
        for child in [1, 2] {
            assert!(world.trace.time_of(child, "begin at the start").expect("begun") >= ended);
        }
        until("the parent's lease is deleted", || world.find_row(0).is_none()).await;
        let report = worker.stop().await;
        assert_eq!((report.finished, report.released.len()), (vec![world.shard(0)], 2));
        assert_eq!(world.trace.of(1).len(), 3, "begun once: {:?}", world.trace.of(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_fails_is_asked_for_again_and_children_wait_for_it() {
    let world = World::shards(1);
    world.put(0, [1]);
    world.stream.split(&world.shard(0));
    let failures = Arc::new(AtomicU32::new(5));
    let factory = {
        let (failures, trace) = (failures.clone(), world.trace.clone());
        move |start: ShardStart| {
            trace.add(&start.shard, "begin");
            let processor = Stubborn(failures.clone());
            async move { Ok(processor) }
        }
    };
    let worker = run(world.worker("a").build(factory).expect("valid"));
    world.trace.wait_for(1, "begin").await;
    assert_eq!(failures.load(Relaxed), 0);
    assert_eq!(world.row(0).checkpoint, Checkpoint::ShardEnd);
    assert_eq!(world.row(0).children.len(), 2);
    worker.stop().await;
}

/// Completes a shard after a few failures.
struct Stubborn(Arc<AtomicU32>);

impl RecordProcessor for Stubborn {
    async fn process(&mut self, _: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        Ok(Verdict::Done)
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        assert_eq!(end.children().count(), 2);
        if self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(Failure::retry("not yet"));
        }
        Ok(end.complete().await?)
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_waits_for_acknowledgements_that_are_still_to_come() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    world.stream.split(&world.shard(0));
    let acks = Arc::new(std::sync::Mutex::new(None));
    let handler = {
        let acks = acks.clone();
        move |batch: Batch, context: ShardContext| {
            if !batch.shard().as_str().ends_with('0') {
                return std::future::ready(Ok(Verdict::Done));
            }
            *acks.lock().expect("no panic") = Some((context.acks(), batch.last().clone()));
            std::future::ready(Ok(Verdict::AckLater))
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    world.trace.wait_for_records(0, 3).await;
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(world.trace.time_of(0, "ended"), None);
    let (acks, last) = acks.lock().expect("no panic").take().expect("a batch");
    acks.ack_through(&last);
    world.trace.wait_for(2, "begin at the start").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_merged_child_is_read_once_both_parents_have_ended() {
    let world = World::shards(2);
    world.put(0, 1..=2);
    world.put(1, 3..=4);
    let slow = world.shard(1);
    let handler = move |batch: Batch, _| {
        let delay = if *batch.shard() == slow { 40 * SECOND } else { SECOND };
        async move {
            tokio::time::sleep(delay).await;
            Ok(Verdict::Done)
        }
    };
    world.stream.merge(&world.shard(0), &world.shard(1));
    world.put(0, [5]);
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    world.trace.wait_for(2, "batch 5").await;
    let begun = world.trace.time_of(2, "begin at the start").expect("begun");
    for parent in [0, 1] {
        assert!(world.trace.time_of(parent, "ended").expect("ended") <= begun);
    }
    assert_eq!(world.trace.of(2).iter().filter(|what| what.starts_with("begin")).count(), 1);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_merged_child_waits_for_a_parent_that_has_no_lease_yet() {
    let world = World::shards(2);
    world.put(0, [1]);
    let [_, late] = world.stream.split(&world.shard(0));
    world.stream.put_to(world.stream.open_shards()[1].hash_range.start, "late", "2");
    let child = world.stream.merge(&late, &world.shard(1));
    world.put(1, [3]);
    assert_eq!(child, world.shard(4));
    let grandparent = world.shard(0);
    let handler = move |batch: Batch, _| {
        let delay = if *batch.shard() == grandparent { 60 * SECOND } else { SECOND };
        async move {
            tokio::time::sleep(delay).await;
            Ok(Verdict::Done)
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    world.trace.wait_for(4, "batch 3").await;
    let begun = world.trace.time_of(4, "begin at the start").expect("begun");
    for parent in [1, 3] {
        assert!(world.trace.time_of(parent, "ended").expect("ended") <= begun, "parent {parent}");
    }
    assert_eq!(world.trace.records(3), ["2"]);
    worker.stop().await;
}

/// Its own last batch takes long, and all above the other parent is read and cleaned up meanwhile.
#[tokio::test(start_paused = true)]
async fn a_merged_childs_other_ancestors_are_not_begun_again_when_its_slower_parent_ends() {
    let world = World::shards(2);
    world.put(0, ["0"]);
    world.put(1, ["1"]);
    let [_, third] = world.stream.split(&world.shard(0));
    world.put(1, ["3"]);
    let [_, fifth] = world.stream.split(&third);
    let child = world.stream.merge(&fifth, &world.shard(1));
    assert_eq!(child, world.shard(6));
    (0..3).for_each(|open| world.put(open, ["rest"]));
    let delays = [(world.shard(0), 20 * SECOND), (world.shard(1), 120 * SECOND)];
    let handler = move |batch: Batch, _| {
        let delay =
            delays.iter().find(|(shard, _)| shard == batch.shard()).map_or(SECOND, |(_, delay)| *delay);
        async move {
            tokio::time::sleep(delay).await;
            Ok(Verdict::Done)
        }
    };
    let worker = run(world.worker("a").build(world.probe_with(handler)).expect("valid"));
    until("the row of the ancestor is deleted", || {
        world.trace.records(3) == ["3"] && world.find_row(3).is_none()
    })
    .await;
    assert_eq!(world.trace.time_of(1, "ended"), None);
    world.trace.wait_for(6, "batch rest").await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(world.trace.records(3), ["3"], "once");
    worker.stop().await;
}

/// A source whose pages name the children of a shard, but not their parents.
#[derive(Debug)]
struct WithoutParents(MemoryStream);

#[async_trait]
impl RecordSource for WithoutParents {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.0.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.0.list_shards(filter).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.0.open(shard, from).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        let mut page = self.0.read(shard, from, limit).await?;
        page.children.iter_mut().for_each(|child| child.parents.clear());
        Ok(page)
    }
}

#[tokio::test(start_paused = true)]
async fn children_that_do_not_name_their_parent_are_looked_up_in_the_listing() {
    let world = World::shards(1);
    world.put(0, [1]);
    let source = Arc::new(WithoutParents(world.stream.clone()));
    let worker = run(world.worker("a").source(source).build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.stream.split(&world.shard(0));
    world.put(0, [2]);
    world.checkpoint_at(1, "2").await;
    for child in [1, 2] {
        assert_eq!(world.row(child).parents, [world.shard(0)].into());
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_writes_at_a_shards_end_loses_no_shard() {
    // After none, one, and both of the children's leases.
    for created in 0..=2 {
        let world = World::shards(1);
        world.put(0, [1]);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        world.checkpoint_at(0, "1").await;
        for _ in 0..created {
            world.faults.next(Op::CreateLease, 1, Fault::Delay(SECOND / 100));
        }
        let hung = Fault::Delay(3600 * SECOND);
        if created == 2 {
            // The lease is proven before children are made.
            world.faults.next(Op::WriteLease, 1, Fault::Delay(SECOND / 100));
        }
        world.faults.next(if created < 2 { Op::CreateLease } else { Op::WriteLease }, 1, hung);
        world.stream.split(&world.shard(0));
        world.put(0, [2]);
        world.put(1, [3]);
        world.trace.wait_for(0, "ended").await;
        tokio::time::sleep(SECOND).await;
        worker.crash().await;
        world.faults.heal();
        assert_eq!(world.table.rows().len(), 1 + created);
        let worker = run(world.worker("b").build(world.probe()).expect("valid"));
        world.checkpoint_at(1, "2").await;
        world.checkpoint_at(2, "3").await;
        worker.stop().await;
        assert_eq!(world.trace.records(0), ["1"], "checkpointed, so not again");
    }
}

#[tokio::test(start_paused = true)]
async fn writes_at_a_shards_end_whose_replies_are_lost_are_recognised() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.faults.next(Op::CreateLease, 2, Fault::LostReply);
    world.stream.split(&world.shard(0));
    world.faults.next(Op::WriteLease, 1, Fault::LostReply);
    let mut events = worker.handle.events();
    let ended = |event| match event {
        Event::ShardEnded { shard } => Some(Ok(shard)),
        Event::LeaseLost { why, .. } => Some(Err(why)),
        _ => None,
    };
    assert_eq!(event(&mut events, ended).await, Ok(world.shard(0)));
    world.trace.wait_for(2, "begin at the start").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_doubled_and_halved_while_two_workers_read_keeps_every_line_in_order() {
    let world = World::shards(2);
    let workers = ["a", "b"].map(|id| run(world.worker(id).build(world.probe()).expect("valid")));
    let mut n = 0;
    for count in [4, 2, 4, 3, 2] {
        for _ in 0..5 {
            for shard in 0..world.stream.open_shards().len() {
                n += 1;
                world.put(shard, [n]);
            }
            tokio::time::sleep(SECOND).await;
        }
        world.stream.update_shard_count(count);
    }
    let shards = world.stream.shards();
    let last = shards.len();
    let all = || -> std::collections::BTreeSet<String> {
        (0..last).flat_map(|shard| world.trace.records(shard)).collect()
    };
    until("every record", || all().len() == n).await;
    tokio::time::sleep(3 * FAILOVER).await;
    let number = |shard: &ShardId| -> usize {
        shard.as_str().rsplit('-').next().expect("a number").parse().expect("digits")
    };
    for shard in &shards {
        let begun = world.trace.time_of(number(&shard.id), "begin at the start").expect("begun");
        for parent in &shard.parents {
            let ended = world.trace.time_of(number(parent), "ended").expect("ended");
            assert!(ended <= begun, "{} began before {parent} ended", shard.id);
        }
    }
    for worker in workers {
        worker.stop().await;
    }
    let open = world.table.rows().into_iter().filter(|row| !row.is_finished()).count();
    assert_eq!(open, 2);
}

#[tokio::test(start_paused = true)]
async fn a_puller_completes_a_shard() {
    let world = World::shards(1);
    world.put(0, [1]);
    world.stream.split(&world.shard(0));
    let (worker, mut shards) = world.worker_with("a", config()).stream().expect("valid");
    let worker = run(worker);
    let mut shard = shards.next().await.expect("a shard");
    let ShardEvent::Batch(batch) = shard.next().await else { panic!("not a batch") };
    assert_eq!(payloads(&batch), ["1"]);
    shard.context().acks().ack_through(batch.last());
    let ShardEvent::Ended(end) = shard.next().await else { panic!("not the end") };
    end.complete().await.expect("completed");
    drop(shard);
    let child = shards.next().await.expect("a child");
    assert!([world.shard(1), world.shard(2)].contains(child.id()));
    drop((child, worker));
}

/// The table is dropped while the processor ends the shard: the first leases of the application that begins anew
/// are not those of the children.
#[tokio::test(start_paused = true)]
async fn no_child_gets_a_lease_in_a_table_that_was_made_anew() {
    let world = World::shards(1);
    world.put(0, [1]);
    world.stream.split(&world.shard(0));
    let (table, faults) = (world.table.clone(), world.faults.clone());
    let factory = move |_: ShardStart| {
        let processor = Dropper(table.clone(), faults.clone());
        async move { Ok(processor) }
    };
    let worker = run(world.worker("a").build(factory).expect("valid"));
    let mut events = worker.handle.events();
    let lost = event(&mut events, |event| match event {
        Event::LeaseLost { why, .. } => Some(why),
        _ => None,
    });
    assert_eq!(lost.await, LeaseLost::Deleted);
    assert_eq!(world.table.rows().len(), 1, "{:?}", world.table.rows());
    worker.crash().await;
}

/// Drops the table, and makes another with a row of somebody else's, before it completes the shard.
struct Dropper(MemoryLeaseStore, Faults);

impl RecordProcessor for Dropper {
    async fn process(&mut self, _: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        Ok(Verdict::Done)
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        self.0.drop_table();
        let owner = Some("somebody".into());
        self.0.put_row(Lease { owner, ..Lease::new(&id(7), Checkpoint::TrimHorizon) });
        let created = self.1.calls(Op::CreateLease);
        let lost = end.complete().await.expect_err("the lease is gone");
        assert!(matches!(lost, CheckpointError::LeaseLost(LeaseLost::Deleted)), "{lost}");
        assert_eq!(self.1.calls(Op::CreateLease), created);
        Err(Failure::retry(lost))
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_was_completed_has_ended_whatever_its_processor_says_afterwards() {
    for after in [After::Fails, After::Panics] {
        let world = World::shards(1);
        world.put(0, [1]);
        world.stream.split(&world.shard(0));
        let worker = world.worker("a").build(move |_: ShardStart| async move { Ok(after) });
        let worker = run(worker.expect("valid"));
        let mut events = worker.handle.events();
        let ended = event(&mut events, |event| match event {
            Event::ShardEnded { shard } => Some(Ok(shard)),
            Event::LeaseLost { .. } | Event::LeaseReleased { .. } | Event::ShardGivenUp { .. } => {
                Some(Err(event))
            }
            _ => None,
        });
        let ended = ended.await;
        assert!(matches!(&ended, Ok(shard) if *shard == world.shard(0)), "{after:?}: {ended:?}");
        until("the children are held", || world.owners() == ["a", "a"]).await;
        let report = worker.stop().await;
        assert_eq!((report.finished.len(), report.lost.len(), report.released.len()), (1, 0, 2), "{after:?}");
    }
}

/// What a processor does after it has completed its shard.
#[derive(Clone, Copy, Debug)]
enum After {
    Fails,
    Panics,
}

impl RecordProcessor for After {
    async fn process(&mut self, _: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        Ok(Verdict::Done)
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        end.complete().await?;
        match self {
            Self::Fails => Err(Failure::retry("too late")),
            Self::Panics => panic!("too late"),
        }
    }
}
