//! Where an application begins, and what a start refuses.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kinesis_consumer::{
    Checkpoint, Config, InitialPosition, Lease, LeaseTable, Record, Shard, ShardId, ShardOrder, WorkerError,
    io::{
        LeaseError, LeaseStore, Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom,
        StreamDescription,
        faulty::{Fault, Faults, Op},
        memory::MemoryStream,
    },
};
use tokio::time::Instant;

use crate::world::{FAILOVER, SECOND, World, config, run, until};

fn latest() -> Config {
    Config { initial_position: InitialPosition::Latest, ..config() }
}

#[tokio::test(start_paused = true)]
async fn latest_begins_with_what_arrives_after_the_first_start_of_the_application() {
    let world = World::shards(1);
    world.put(0, ["old"]);
    tokio::time::sleep(SECOND).await;
    let worker = run(world.worker_with("a", latest()).build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    world.put(0, ["new"]);
    world.checkpoint_at(0, "new").await;
    worker.stop().await;
    assert_eq!(world.trace.records(0), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn latest_skips_nothing_where_the_hosts_clock_is_ahead_of_the_streams() {
    // A row of the KCL's says only LATEST: it counts from the claim.
    for (of_kcl, ahead) in [(false, 300 * SECOND), (true, 300 * SECOND), (false, 3 * SECOND / 2)] {
        let world = World::of(MemoryStream::new("stream", 1).with_clock_behind(ahead));
        if of_kcl {
            world.table.put_row(Lease::new(&world.shard(0), Checkpoint::Latest));
        }
        world.put(0, ["old"]);
        tokio::time::sleep(SECOND).await;
        let worker = run(world.worker_with("a", latest()).build(world.probe()).expect("valid"));
        tokio::time::sleep(SECOND).await;
        world.put(0, ["new"]);
        world.checkpoint_at(0, "new").await;
        worker.stop().await;
        assert_eq!(world.trace.records(0), ["new"]);
    }
}

#[tokio::test(start_paused = true)]
async fn latest_begins_with_the_first_record_where_it_seems_to_be_older_than_the_stream() {
    let world = World::of(MemoryStream::new("stream", 1).with_clock_behind(300 * SECOND));
    // The host's clock seems to be ahead by more than it is.
    world.faults.next(Op::Describe, 1, Fault::DelayedReply(SECOND));
    let worker = run(world.worker_with("a", latest()).build(world.probe()).expect("valid"));
    tokio::time::sleep(SECOND / 2).await;
    world.put(0, ["new"]);
    world.stream.split(&world.shard(0));
    world.trace.wait_for(0, "batch new").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_deleted_by_hand_while_a_worker_starts_stays_deleted() {
    let world = World::shards(1);
    world.put(0, ["a", "b"]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "b").await;
    worker.stop().await;
    // Between the first look and what follows from it.
    world.faults.next(Op::ListLeases, 1, Fault::DelayedReply(SECOND));
    let worker = run(world.worker("b").build(world.probe()).expect("valid"));
    tokio::time::sleep(SECOND / 2).await;
    world.table.remove_row(&(&world.shard(0)).into()).expect("a row");
    world.trace.wait_for_records(0, 4).await;
    assert_eq!(world.trace.records(0), ["a", "b", "a", "b"], "read again, as without a checkpoint");
    worker.stop().await;
}

/// While the slow one starts, another makes the first rows, reads a shard to its end and deletes its row.
#[tokio::test(start_paused = true)]
async fn a_start_that_takes_long_makes_no_row_for_a_shard_that_has_been_read_to_its_end_meanwhile() {
    let second_listing = |faults: &Faults| {
        faults.next(Op::ListShards, 1, Fault::Delay(SECOND / 100));
        faults.next(Op::ListShards, 1, Fault::DelayedReply(120 * SECOND));
    };
    let trial = |faults: &Faults| faults.next(Op::DeleteLease, 1, Fault::DelayedReply(120 * SECOND));
    let look = |faults: &Faults| faults.next(Op::ListLeases, 1, Fault::DelayedReply(120 * SECOND));
    // That of the trial is the first.
    let making = |faults: &Faults| {
        faults.next(Op::CreateLease, 1, Fault::Delay(SECOND / 100));
        faults.next(Op::CreateLease, 1, Fault::Delay(20 * SECOND));
    };
    for (hangs, is_ready) in
        [(&second_listing as &dyn Fn(&Faults), false), (&trial, false), (&look, false), (&making, true)]
    {
        let (world, faults) = (World::shards(1), Faults::new(3));
        world.put(0, ["a", "b"]);
        hangs(&faults);
        let slow = run(world.cut_off_by(&faults, "slow", config()).build(world.probe()).expect("valid"));
        tokio::time::sleep(SECOND).await;
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        world.checkpoint_at(0, "b").await;
        world.stream.split(&world.shard(0));
        world.put(0, ["c"]);
        world.put(1, ["d"]);
        until("the row of the shard that has ended is deleted", || world.find_row(0).is_none()).await;
        assert_eq!(slow.handle.health().ready, is_ready, "or it is about to make the first rows");
        assert!(slow.handle.ready().await);
        until("the slow one has its share", || world.owners().contains(&"slow".into())).await;
        assert_eq!(world.trace.records(0), ["a", "b"], "nothing is read again");
        assert!(world.find_row(0).is_none());
        slow.stop().await;
        worker.stop().await;
    }
}

/// While the slow one lists the shards, children that it finds are read to their ends, and their rows deleted.
#[tokio::test(start_paused = true)]
async fn a_search_that_takes_long_makes_no_row_for_a_shard_that_has_been_read_to_its_end_meanwhile() {
    let (world, faults) = (World::shards(1), Faults::new(3));
    let at_once = || Config { shard_order: ShardOrder::None, ..config() };
    world.put(0, ["a"]);
    let slow = run(world.cut_off_by(&faults, "slow", at_once()).build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "a").await;
    world.stream.split(&world.shard(0));
    faults.next(Op::ListShards, 1, Fault::DelayedReply(120 * SECOND));
    let (listings, begun) = (faults.calls(Op::ListShards), Instant::now());
    until("the slow one lists the shards", || faults.calls(Op::ListShards) > listings).await;
    let worker = run(world.worker_with("a", at_once()).build(world.probe()).expect("valid"));
    world.put(0, ["b"]);
    world.put(1, ["c"]);
    world.checkpoint_at(1, "b").await;
    world.checkpoint_at(2, "c").await;
    (1..3).for_each(|n| drop(world.stream.split(&world.shard(n))));
    (0..4).for_each(|n| world.put(n, ["d"]));
    let are_deleted = || (0..3).all(|n| world.find_row(n).is_none());
    until("the rows of the shards that have ended are deleted", are_deleted).await;
    assert!(begun.elapsed() < 120 * SECOND, "the slow one lists the shards still");
    let looks = faults.calls(Op::ListLeases);
    until("the slow one has found what it finds", || faults.calls(Op::ListLeases) > looks + 3).await;
    assert!(are_deleted());
    assert_eq!((world.trace.records(1), world.trace.records(2)), (vec!["b".into()], vec!["c".into()]));
    slow.stop().await;
    worker.stop().await;
}

/// So many that they are not made within the time for which a look tells what is missing.
#[tokio::test(start_paused = true)]
async fn first_rows_that_take_long_to_make_are_all_made_and_read() {
    const SHARDS: usize = 1000;
    let world = World::shards(SHARDS);
    (0..SHARDS).for_each(|shard| world.put(shard, [shard]));
    world.faults.chance(Op::CreateLease, 1.0, Fault::Delay(4 * SECOND));
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    until("all rows", || world.table.rows().len() == SHARDS).await;
    until("all records", || (0..SHARDS).all(|shard| world.trace.records(shard).len() == 1)).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_trial_outlives_its_iterator_is_no_error() {
    let world = World::of(MemoryStream::new("stream", 1).with_iterator_lifetime(SECOND));
    world.faults.chance(Op::ReadRecords, 1.0, Fault::Delay(2 * SECOND));
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    until("it has begun", || !world.table.rows().is_empty()).await;
    worker.crash().await;
}

/// A source whose filtered listings leave their first shard out.
#[derive(Debug)]
struct LeavesOut(MemoryStream);

#[async_trait]
impl RecordSource for LeavesOut {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.0.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        let mut shards = self.0.list_shards(filter).await?;
        if filter != ShardFilter::All {
            shards.remove(0);
        }
        Ok(shards)
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.0.open(shard, from).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        self.0.read(shard, from, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_filtered_listing_that_leaves_keys_out_is_followed_by_a_whole_one() {
    let world = World::shards(3);
    (0..3).for_each(|shard| world.put(shard, [1]));
    let began = Instant::now();
    let source = Arc::new(LeavesOut(world.stream.clone()));
    let worker = run(world.worker("a").source(source).build(world.probe()).expect("valid"));
    until("all leases", || world.owners() == ["a", "a", "a"]).await;
    assert!(began.elapsed() < SECOND, "nothing waits for another listing: {:?}", began.elapsed());
    for shard in 0..3 {
        world.checkpoint_at(shard, "1").await;
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_before_the_first_checkpoint_skips_nothing() {
    let world = World::shards(2);
    world.put(0, ["old"]);
    tokio::time::sleep(SECOND).await;
    let stuck = world.probe_with(|_, _| std::future::pending());
    let worker = run(world.worker_with("a", latest()).build(stuck).expect("valid"));
    assert!(worker.handle.ready().await);
    worker.crash().await;
    tokio::time::sleep(3600 * SECOND).await;
    world.put(0, ["between"]);
    world.put(1, ["also"]);
    tokio::time::sleep(3600 * SECOND).await;
    let worker = run(world.worker_with("b", latest()).build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "between").await;
    world.checkpoint_at(1, "also").await;
    worker.stop().await;
    assert_eq!(world.trace.records(0), ["between"]);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_split_before_its_lease_could_be_made_is_read_from_the_first_start_on() {
    let world = World::shards(1);
    world.put(0, ["old"]);
    tokio::time::sleep(SECOND).await;
    // The first listing is that of the checks.
    world.faults.next(Op::ListShards, 1, Fault::Delay(SECOND / 100));
    world.faults.next(Op::ListShards, 5, Fault::Unavailable);
    let worker = run(world.worker_with("a", latest()).build(world.probe()).expect("valid"));
    tokio::time::sleep(SECOND / 2).await;
    world.put(0, ["new"]);
    world.stream.split(&world.shard(0));
    world.put(0, ["newer"]);
    world.checkpoint_at(1, "newer").await;
    worker.stop().await;
    assert_eq!(world.trace.records(0), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_another_worker_made_first_is_claimed_as_it_is() {
    let world = World::shards(1);
    let (fast, slow) = (Faults::new(3), Faults::new(4));
    // Both find an empty table. The first makes the row, and hangs before it claims it; the second pins a
    // time two seconds later, and finds the row there when it makes its own.
    // After the trial.
    fast.next(Op::WriteLease, 1, Fault::Delay(Duration::ZERO));
    fast.next(Op::WriteLease, 1, Fault::Delay(3600 * SECOND));
    let first = run(world.cut_off_by(&fast, "a", latest()).build(world.probe()).expect("valid"));
    until("a row", || !world.table.rows().is_empty()).await;
    let row = world.row(0);
    world.put(0, ["after the first start"]);
    tokio::time::sleep(2 * SECOND).await;
    world.table.remove_row(&row.key);
    slow.next(Op::CreateLease, 1, Fault::Delay(SECOND / 10));
    let second = run(world.cut_off_by(&slow, "b", latest()).build(world.probe()).expect("valid"));
    tokio::time::sleep(SECOND / 20).await;
    world.table.put_row(row);
    world.checkpoint_at(0, "after the first start").await;
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn of_two_that_make_the_rows_together_the_one_that_started_first_says_where_to_begin() {
    let world = World::shards(4);
    let (first, second) = (Faults::new(3), Faults::new(4));
    first.next(Op::CreateLease, 1, Fault::Delay(SECOND / 100));
    first.next(Op::CreateLease, 3, Fault::Delay(3600 * SECOND));
    let first = run(world.cut_off_by(&first, "a", latest()).build(world.probe()).expect("valid"));
    until("a row", || world.table.rows().len() == 1).await;
    (0..4).for_each(|shard| world.put(shard, ["after the first start"]));
    tokio::time::sleep(2 * SECOND).await;
    // The second finds an empty table, too, and is on its way to make all rows.
    let row = world.table.rows().remove(0);
    world.table.remove_row(&row.key);
    second.next(Op::CreateLease, 4, Fault::Delay(SECOND / 10));
    let second = run(world.cut_off_by(&second, "b", latest()).build(world.probe()).expect("valid"));
    tokio::time::sleep(SECOND / 20).await;
    world.table.put_row(row);
    for shard in 0..4 {
        world.checkpoint_at(shard, "after the first start").await;
    }
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn leases_that_cannot_be_made_at_first_are_made_later_and_nothing_is_skipped() {
    let world = World::shards(4);
    // The first row is made, the others are not.
    world.faults.next(Op::CreateLease, 1, Fault::Delay(SECOND / 100));
    world.faults.next(Op::CreateLease, 3, Fault::Unavailable);
    let worker = run(world.worker_with("a", latest()).build(world.probe()).expect("valid"));
    until("the first row", || !world.table.rows().is_empty()).await;
    assert_eq!(world.table.rows().len(), 1);
    for shard in 0..4 {
        world.put(shard, ["after the first start"]);
    }
    for shard in 0..4 {
        world.checkpoint_at(shard, "after the first start").await;
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn at_timestamp_begins_with_the_first_record_that_arrived_then() {
    let world = World::shards(1);
    world.put(0, ["before"]);
    tokio::time::sleep(60 * SECOND).await;
    world.put(0, ["then"]);
    let at = world.stream.records(&world.shard(0)).last().map(Record::arrived_at).expect("a record");
    tokio::time::sleep(60 * SECOND).await;
    world.stream.split(&world.shard(0));
    world.put(0, ["in a child"]);
    let config = Config { initial_position: InitialPosition::AtTimestamp(at), ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe()).expect("valid"));
    world.checkpoint_at(1, "in a child").await;
    worker.stop().await;
    assert_eq!(world.trace.records(0), ["then"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_made_again_under_the_same_name_is_refused() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    worker.stop().await;
    let before = world.table.rows();
    world.stream.recreate(1);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    let error = worker.end().await.expect_err("refused").to_string();
    assert!(
        error.contains("earlier stream of the same name") && error.contains("Delete the table"),
        "{error}"
    );
    assert_eq!(world.table.rows(), before);
}

#[tokio::test(start_paused = true)]
async fn a_stream_made_again_under_a_running_worker_is_not_taken_for_the_end_of_its_shards() {
    // With as many shards, with fewer and with more; rows of the KCL's do not say whose they are.
    for (shards, of_kcl) in [(2, false), (1, false), (3, false), (1, true)] {
        let world = World::shards(2);
        if of_kcl {
            for shard in 0..2 {
                world.table.put_row(Lease::new(&world.shard(shard), Checkpoint::TrimHorizon));
            }
        }
        world.put(0, [1]);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        world.checkpoint_at(0, "1").await;
        assert_eq!(world.row(0).stream.is_none(), of_kcl);
        world.stream.recreate(shards);
        tokio::time::sleep(6 * FAILOVER).await;
        assert!(!world.row(0).is_finished() && !world.row(1).is_finished(), "{shards} shards");
        worker.stop().await;
        let ended = world.trace.entries().into_iter().any(|entry| entry.what == "ended");
        assert!(!ended, "{shards} shards");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_deleted_under_a_running_worker_is_not_taken_for_the_end_of_its_shards() {
    let world = World::shards(2);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.stream.delete();
    tokio::time::sleep(6 * FAILOVER).await;
    assert!(!world.row(0).is_finished());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_the_start_is_waited_for_and_a_long_one_reported() {
    let world = World::shards(1);
    world.faults.cut();
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    tokio::time::sleep(20 * SECOND).await;
    world.faults.heal();
    assert!(worker.handle.ready().await);
    worker.stop().await;

    world.faults.cut();
    let began = Instant::now();
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    let handle = worker.handle.clone();
    match worker.end().await {
        Err(error @ WorkerError::Unavailable { .. }) => {
            let text = error.to_string();
            assert!(text.contains("describe the stream") && text.contains("cut off"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!((50 * SECOND..=61 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(!handle.ready().await);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_dropped_during_the_start_is_made_again_unless_it_must_exist() {
    for lease_table in [LeaseTable::CreateIfMissing, LeaseTable::MustExist] {
        let (world, faults) = (World::shards(1), Faults::new(5));
        world.table.open(true).await.expect("made");
        faults.next(Op::ListLeases, 1, Fault::Delay(SECOND));
        let config = Config { lease_table, ..config() };
        let worker = run(world.cut_off_by(&faults, "a", config).build(world.probe()).expect("valid"));
        until("opened", || faults.calls(Op::ListLeases) == 1).await;
        world.table.drop_table();
        match lease_table {
            LeaseTable::CreateIfMissing => until("a lease", || world.owners() == ["a"]).await,
            LeaseTable::MustExist => {
                let error = worker.end().await.expect_err("no table");
                assert!(matches!(error, WorkerError::NoTable(_)), "{error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn must_exist_refuses_a_missing_table_and_makes_none() {
    let world = World::shards(1);
    let config = Config { lease_table: LeaseTable::MustExist, ..config() };
    let worker = run(world.worker_with("a", config).build(world.probe()).expect("valid"));
    let error = worker.end().await.expect_err("refused").to_string();
    assert!(error.contains("leaseKey") && error.contains("create_if_missing"), "{error}");
    assert!(matches!(world.table.open(false).await, Err(LeaseError::NoTable { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_refused_permission_ends_the_start_with_the_name_of_what_was_refused() {
    for op in [Op::Describe, Op::ListShards, Op::OpenIterator, Op::ReadRecords, Op::OpenTable, Op::ListLeases]
    {
        let world = World::shards(1);
        world.faults.next(op, 1, Fault::Denied);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        match worker.end().await {
            Err(WorkerError::Denied { .. }) => {}
            other => panic!("{op:?}: {other:?}"),
        }
        assert!(world.table.rows().is_empty());
        if !matches!(op, Op::OpenTable | Op::ListLeases) {
            assert!(world.table.open(false).await.is_err(), "{op:?}: no table before the stream was checked");
        }
    }
    for op in [Op::GetLease, Op::DeleteLease, Op::CreateLease, Op::WriteLease] {
        let world = World::shards(4);
        world.faults.next(op, 1, Fault::Denied);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        assert!(matches!(worker.end().await, Err(WorkerError::Denied { .. })), "{op:?}");
        assert!(world.table.rows().is_empty(), "{op:?}: nothing is left behind that has to expire");
    }
}

#[tokio::test(start_paused = true)]
async fn a_permission_that_is_needed_later_is_refused_at_the_start_also_when_every_lease_has_a_holder() {
    for op in [Op::GetLease, Op::WriteLease, Op::DeleteLease, Op::CreateLease] {
        let (world, faults) = (World::shards(2), Faults::new(2));
        let holder = run(world.worker("a").build(world.probe()).expect("valid"));
        until("claims", || world.owners() == ["a", "a"]).await;
        faults.chance(op, 1.0, Fault::Denied);
        let spare = run(world.cut_off_by(&faults, "b", config()).build(world.probe()).expect("valid"));
        let handle = spare.handle.clone();
        let began = Instant::now();
        match spare.end().await {
            Err(WorkerError::Denied { .. }) => {}
            other => panic!("{op:?}: {other:?}"),
        }
        assert!(began.elapsed() < SECOND && !handle.ready().await, "{op:?}");
        assert_eq!(world.owners(), ["a", "a"]);
        holder.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_permission_that_is_refused_after_the_start_ends_no_worker() {
    let (world, faults) = (World::shards(2), Faults::new(5));
    let worker = run(world.cut_off_by(&faults, "a", config()).build(world.probe()).expect("valid"));
    until("claims", || world.owners() == ["a", "a"]).await;
    for op in [Op::WriteLease, Op::CreateLease, Op::HandOff] {
        faults.chance(op, 1.0, Fault::Denied);
    }
    world.trace.wait_for(0, "lost: it could not be renewed in time").await;
    world.table.delete(&world.row(1)).await.expect("in memory");
    tokio::time::sleep(10 * FAILOVER).await;
    faults.heal();
    until("claims", || world.owners() == ["a", "a"]).await;
    world.put(0, [1]);
    world.trace.wait_for(0, "batch 1").await;
    worker.stop().await;
}
