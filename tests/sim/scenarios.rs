//! Incidents that users of other consumers report, one test each. The numbers are those of the scenarios
//! that the library is held to.

use std::{collections::BTreeSet, time::Duration};

use kinesis_consumer::{
    Checkpoint, Config, InitialPosition, Lease,
    io::faulty::{Fault, Op},
};

use tokio::time::Instant;

use super::{
    fleet::{Edit, Setup, World},
    instances::Life,
    line::Quality,
    processor::Temper,
    run::{STREAM_OPS, TABLE_OPS},
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A fleet of `workers` called a, b, c … that has settled, with records read and to come.
pub(super) async fn settled(setup: Setup, workers: usize) -> World {
    let mut world = World::new(setup);
    for name in ["a", "b", "c", "d", "e", "f"].iter().take(workers) {
        world.start(name);
    }
    world.put(50);
    world.advance(8 * SECOND).await;
    world.put(50);
    world
}

/// Waits until everything is read, and checks that nothing was wrong on the way.
pub(super) async fn reads_everything(world: &mut World, within: Duration) {
    let read = world.until(within, |world| world.observer.unread().is_empty()).await;
    if !read {
        let unread = world.observer.unread();
        world.observer.violate("fleet", format!("left unread after {within:?}: {unread:?}"));
    }
    is_clean(world);
}

#[track_caller]
pub(super) fn is_clean(world: &World) {
    let violations = world.observer.violations();
    assert!(violations.is_empty(), "{}\n{}", world.observer.trace(), violations.join("\n"));
}

pub(super) fn owned(world: &World, name: &str) -> usize {
    let owned = |row: &&Lease| row.holder().is_some_and(|holder| holder.as_str() == name);
    world.table.rows().iter().filter(owned).count()
}

in_both_modes!(
    an_outage_of_the_table_ends_no_worker_and_all_leases_are_held_again_soon_after,
    no_lease_is_lost_while_six_of_ten_calls_of_the_table_are_throttled,
    leases_are_held_again_soon_after_every_call_of_the_table_was_throttled,
    lost_replies_cost_no_lease,
    checkpoints_and_renewals_of_one_worker_never_refuse_each_other,
    a_worker_that_was_frozen_delivers_nothing_on_a_lease_that_is_not_its_own,
    a_rolling_deploy_loses_nothing_wherever_it_is_interrupted,
    scaling_out_moves_as_few_leases_as_an_even_spread_needs,
    a_lone_worker_that_loses_its_leases_works_on_each_shard_once,
    a_storm_of_splits_and_merges_is_read_in_order_to_the_last_record,
    a_crash_at_the_end_of_a_shard_leaves_no_child_behind,
    a_shard_that_has_left_the_stream_is_finished_and_its_children_are_read,
    rows_changed_by_hand_and_a_dropped_table_stop_nobody,
    a_row_made_anew_is_taken_over_although_an_older_one_had_a_higher_counter,
    a_poisoned_shard_holds_up_no_other,
    failing_and_panicking_code_delays_records_and_loses_none,
    stuck_code_gives_its_lease_up_and_keeps_nobody_else_waiting,
    throttled_reads_starve_no_shard,
    refused_credentials_end_no_running_worker,
    a_worker_cut_off_from_the_table_stops_before_others_take_over,
    a_second_process_with_the_same_id_ends_and_disturbs_nobody,
    a_table_full_of_finished_rows_is_looked_at_within_the_budget,
    a_start_at_latest_during_a_split_misses_no_later_record,
    hosts_whose_clocks_are_wrong_lose_no_lease_and_no_record,
    a_stop_at_any_moment_ends_in_time_and_frees_every_lease,
    a_settled_fleet_moves_nothing_and_writes_little,
);

/// F1, F5: the table is out of reach of everybody for hours, and comes back with a tenth of its capacity at first.
async fn an_outage_of_the_table_ends_no_worker_and_all_leases_are_held_again_soon_after() {
    let mut world = settled(Setup::new(1, 8), 3).await;
    (0..3).for_each(|no| world.instances[no].table_faults.cut());
    world.advance(3 * 3600 * SECOND).await;
    assert_eq!(world.running().len(), 3, "no worker has ended");
    let calls = world.observer.counts().calls;
    world.advance(100 * SECOND).await;
    let each = (world.observer.counts().calls - calls) / 3;
    assert!(each <= 200, "{each} calls of each worker in 100 s of outage");
    (0..3).for_each(|no| world.instances[no].table_faults.heal());
    every_table_call(&world, 0.9, Fault::Throttled);
    let calls = world.observer.counts().calls;
    world.advance(100 * SECOND).await;
    let each = (world.observer.counts().calls - calls) / 3;
    assert!(each <= 2000, "{each} calls of each worker in 100 s of throttles");
    assert_eq!(world.running().len(), 3, "no worker has ended");
    world.put(50);
    (0..3).for_each(|no| world.instances[no].table_faults.heal());
    reads_everything(&mut world, 5 * SECOND).await;
    world.advance(5 * SECOND).await;
    let loads = ["a", "b", "c"].map(|name| owned(&world, name));
    assert!(loads.iter().all(|load| (2..=3).contains(load)), "{loads:?}");
    is_clean(&world);
}

/// F2: three, and six, of ten calls are throttled for ten minutes.
async fn no_lease_is_lost_while_six_of_ten_calls_of_the_table_are_throttled() {
    // The rate at which renewals are tried again suffices for all but a few in ten thousand.
    let setup = Setup::new(2, 8);
    let config = Config { failover_time: 10 * SECOND, ..setup.config };
    let mut world = settled(Setup { config, ..setup }, 2).await;
    world.advance(30 * SECOND).await;
    let moves = world.observer.moves();
    for share in [0.3, 0.6] {
        every_table_call(&world, share, Fault::Throttled);
        for _ in 0..600 {
            world.put(2);
            world.advance(SECOND).await;
        }
        assert_eq!(world.observer.moves(), moves, "leases moved");
        (0..2).for_each(|no| world.instances[no].table_faults.heal());
        reads_everything(&mut world, 10 * SECOND).await;
    }
}

/// F2: all of them, for ten minutes.
async fn leases_are_held_again_soon_after_every_call_of_the_table_was_throttled() {
    let mut world = settled(Setup::new(2, 8), 2).await;
    every_table_call(&world, 1.0, Fault::Throttled);
    world.advance(600 * SECOND).await;
    assert_eq!(world.running().len(), 2, "no worker has ended");
    world.put(50);
    (0..2).for_each(|no| world.instances[no].table_faults.heal());
    reads_everything(&mut world, 5 * SECOND).await;
}

/// Each call of each worker to the table meets the fault with this probability.
fn every_table_call(world: &World, share: f64, fault: Fault) {
    for instance in &world.instances {
        TABLE_OPS.iter().for_each(|op| instance.table_faults.chance(*op, share, fault));
    }
}

/// F3: writes are applied and their replies lost.
async fn lost_replies_cost_no_lease() {
    let mut world = settled(Setup::new(3, 4), 2).await;
    let moves = world.observer.moves();
    every_table_call(&world, 0.5, Fault::LostReply);
    for _ in 0..60 {
        world.put(3);
        world.advance(SECOND).await;
    }
    assert_eq!(world.observer.moves(), moves, "leases moved");
    reads_everything(&mut world, 5 * SECOND).await;
}

/// F4: renewals and a storm of checkpoints race on one row with slow replies.
async fn checkpoints_and_renewals_of_one_worker_never_refuse_each_other() {
    let setup = Setup::new(4, 2);
    let config = Config { checkpoint_interval: SECOND / 10, ..setup.config };
    let temper = Temper { durable: 1.0, later: 0.2, slow: 20, ..Temper::default() };
    let mut world = settled(Setup { config, temper, ..setup }, 1).await;
    // The start tries a write that is refused.
    let begun = world.observer.trace().lines.len();
    world.table_line(0, Quality { latency: 200, ..Quality::default() });
    for _ in 0..30 {
        world.put(20);
        world.advance(SECOND).await;
    }
    reads_everything(&mut world, 10 * SECOND).await;
    let trace = world.observer.trace();
    let refused = trace.lines.iter().skip(begun).any(|line| line.what.starts_with("is refused"));
    assert!(!refused, "{}", world.observer.trace());
}

/// F6: a worker stands still at any moment for any time, and wakes up as a zombie.
async fn a_worker_that_was_frozen_delivers_nothing_on_a_lease_that_is_not_its_own() {
    for at in 0..40 {
        let mut world = settled(Setup::new(100 + at, 4), 2).await;
        world.table_line(0, Quality { latency: 100, ..Quality::default() });
        for no in 0..2 {
            world.temper(no, Temper { slow: 300, later: 0.3, durable: 0.3, ..Temper::default() });
        }
        world.put(40);
        world.advance(Duration::from_millis(37 * at)).await;
        world.freeze(0);
        world.put(40);
        world.advance(Duration::from_millis(1000 + 150 * at)).await;
        world.thaw(0);
        reads_everything(&mut world, 15 * SECOND).await;
    }
}

/// F9: workers come, go and crash one after the other while leases are handed over.
async fn a_rolling_deploy_loses_nothing_wherever_it_is_interrupted() {
    for at in 0..25 {
        let mut world = settled(Setup::new(200 + at, 6), 2).await;
        for (old, new) in [(0, "c"), (1, "d")] {
            world.start(new);
            world.put(20);
            world.advance(Duration::from_millis(41 * at)).await;
            if at % 3 == 0 {
                world.crash(old).await;
            } else {
                world.stop(old);
            }
            world.put(20);
            world.advance(2 * SECOND).await;
        }
        reads_everything(&mut world, 10 * SECOND).await;
        assert_eq!(world.running().len(), 2);
    }
}

/// F10: a fleet that grows worker by worker moves no lease twice.
async fn scaling_out_moves_as_few_leases_as_an_even_spread_needs() {
    let mut world = settled(Setup::new(10, 12), 1).await;
    for (name, share) in [("b", 6), ("c", 4), ("d", 3)] {
        let moves = world.observer.moves();
        world.start(name);
        world.put(20);
        world.advance(10 * SECOND).await;
        assert_eq!(owned(&world, name), share);
        assert_eq!(world.observer.moves() - moves, share, "moves for {name}");
    }
    assert_eq!(world.observer.counts().stolen_alive, 0, "all were handed over");
    reads_everything(&mut world, SECOND).await;
}

/// F11: a worker's renewals are late beyond the term of its leases, while it goes on living.
async fn a_lone_worker_that_loses_its_leases_works_on_each_shard_once() {
    let setup = Setup::new(11, 4);
    let mut world = settled(Setup { temper: Temper { slow: 500, ..Temper::default() }, ..setup }, 1).await;
    for _ in 0..5 {
        world.table_line(0, Quality { deaf: true, ..Quality::default() });
        world.put(20);
        world.advance(3 * SECOND).await;
        world.table_line(0, Quality::default());
        world.advance(2 * SECOND).await;
    }
    reads_everything(&mut world, 10 * SECOND).await;
}

/// F12: the stream is split and merged without a pause.
async fn a_storm_of_splits_and_merges_is_read_in_order_to_the_last_record() {
    let mut world = settled(Setup::new(12, 4), 3).await;
    for round in 0..20 {
        world.split(round);
        world.put(20);
        world.merge(round * 5);
        world.put(20);
        world.advance(Duration::from_millis(300)).await;
    }
    world.reshard(8);
    world.put(40);
    world.reshard(3);
    world.put(40);
    reads_everything(&mut world, 60 * SECOND).await;
}

/// F13: a crash after any write of the end of a shard, of the rows of its children and of its own.
async fn a_crash_at_the_end_of_a_shard_leaves_no_child_behind() {
    let mut met = BTreeSet::new();
    for writes in 0..40 {
        let mut world = settled(Setup::new(13 + writes % 4, 2), 1).await;
        world.instances[0].table_faults.chance(Op::CreateLease, 0.3, Fault::LostReply);
        world.table_line(0, Quality { latency: 20, ..Quality::default() });
        let parent = world.stream.open_shards()[0].id.clone();
        world.split(0);
        world.put(20);
        let (before, end) = (world.observer.counts().writes, Instant::now() + 5 * SECOND);
        while world.observer.counts().writes < before + writes / 4 && Instant::now() < end {
            world.advance(SECOND / 1000).await;
        }
        let rows = world.table.rows();
        let children = rows.iter().filter(|row| row.parents.contains(&parent)).count();
        let ended = rows.iter().any(|row| row.key.shard() == parent && row.is_finished());
        met.insert((children, ended));
        world.crash(0).await;
        world.start("b");
        world.put(20);
        reads_everything(&mut world, 10 * SECOND).await;
    }
    let all = [(0, false), (1, false), (2, false), (2, true)];
    assert!(all.iter().all(|state| met.contains(state)), "the crashes met {met:?}");
}

/// F14: a shard leaves the stream while it is being read.
async fn a_shard_that_has_left_the_stream_is_finished_and_its_children_are_read() {
    let mut world = settled(Setup::new(14, 2), 2).await;
    reads_everything(&mut world, SECOND).await;
    let parent = world.stream.open_shards()[0].id.clone();
    (0..2).for_each(|no| world.instances[no].stream_faults.cut());
    world.put(20);
    world.split(0);
    world.put(20);
    world.advance(SECOND).await;
    world.forget(&parent);
    (0..2).for_each(|no| world.instances[no].stream_faults.heal());
    reads_everything(&mut world, 15 * SECOND).await;
    let lines = world.observer.trace().lines;
    let told = lines.iter().filter(|line| line.what.starts_with("RetentionPassed")).map(|line| &line.what);
    let told: Vec<&String> = told.collect();
    assert!(told.len() == 1 && told[0].contains(parent.as_str()), "{told:?}");
}

/// F17: an operator deletes and edits rows, and drops the table.
async fn rows_changed_by_hand_and_a_dropped_table_stop_nobody() {
    let mut world = settled(Setup::new(17, 4), 2).await;
    for nth in 0..4 {
        world.delete_row(nth);
        world.put(10);
        world.advance(SECOND).await;
        world.edit_row(nth + 1, [Edit::NoOwner, Edit::OtherOwner, Edit::Counter][nth % 3]);
        world.put(10);
        world.advance(SECOND).await;
    }
    world.drop_table();
    world.put(10);
    reads_everything(&mut world, 15 * SECOND).await;
    assert_eq!(world.running().len(), 2);
}

/// F17: the row begins anew at counter 0, its new holder dies, and its successor remembers a higher counter.
async fn a_row_made_anew_is_taken_over_although_an_older_one_had_a_higher_counter() {
    let mut world = settled(Setup::new(18, 1), 1).await;
    world.advance(30 * SECOND).await;
    world.start("b");
    world.advance(2 * SECOND).await;
    world.delete_row(0);
    let made = |world: &World| world.table.rows().first().is_some_and(|row| row.holder().is_some());
    assert!(world.until(5 * SECOND, made).await);
    let holder = if owned(&world, "a") == 1 { 0 } else { 1 };
    world.crash(holder).await;
    world.put(10);
    reads_everything(&mut world, 5 * SECOND).await;
}

/// F18: the code fails on one shard for ever.
async fn a_poisoned_shard_holds_up_no_other() {
    let mut world = settled(Setup::new(18, 4), 2).await;
    reads_everything(&mut world, SECOND).await;
    let poison = Temper { poison: Some(2), ..Temper::default() };
    (0..2).for_each(|no| world.temper(no, poison));
    world.put(100);
    world.advance(30 * SECOND).await;
    let unread: Vec<String> = world.observer.unread().iter().map(|(shard, ..)| shard.to_string()).collect();
    assert_eq!(unread, ["shardId-000000000002"]);
    (0..2).for_each(|no| world.temper(no, Temper::default()));
    reads_everything(&mut world, 5 * SECOND).await;
}

/// F34: the user's code fails, panics and gives up at random.
async fn failing_and_panicking_code_delays_records_and_loses_none() {
    super::super::quiet();
    let setup = Setup::new(34, 4);
    let temper =
        Temper { fails: 0.2, panics: 0.05, gives_up: 0.05, halves: 0.2, slow: 50, ..Temper::default() };
    let mut world = settled(Setup { temper, ..setup }, 2).await;
    for _ in 0..20 {
        world.put(10);
        world.advance(SECOND).await;
    }
    world.heal();
    reads_everything(&mut world, 90 * SECOND).await;
}

/// F20: one shard's handler is stuck; the others go on, and another worker takes the stuck one.
async fn stuck_code_gives_its_lease_up_and_keeps_nobody_else_waiting() {
    let setup = Setup::new(20, 4);
    let config = Config { stall_timeout: 5 * SECOND, ..setup.config };
    let mut world = settled(Setup { config, ..setup }, 2).await;
    world.temper(0, Temper { stuck: true, ..Temper::default() });
    world.put(40);
    reads_everything(&mut world, 15 * SECOND).await;
}

/// F23: reads are throttled by others.
async fn throttled_reads_starve_no_shard() {
    let mut world = settled(Setup::new(23, 4), 2).await;
    for no in 0..2 {
        world.instances[no].stream_faults.chance(Op::ReadRecords, 0.6, Fault::Throttled);
    }
    world.put(40);
    reads_everything(&mut world, 20 * SECOND).await;
}

/// F25: the credentials are refused for ten minutes.
async fn refused_credentials_end_no_running_worker() {
    let mut world = settled(Setup::new(25, 4), 2).await;
    every_table_call(&world, 1.0, Fault::Denied);
    for instance in &world.instances {
        STREAM_OPS.iter().for_each(|op| instance.stream_faults.chance(*op, 1.0, Fault::Denied));
    }
    world.advance(600 * SECOND).await;
    assert_eq!(world.running().len(), 2);
    world.put(20);
    for no in 0..2 {
        world.instances[no].table_faults.heal();
        world.instances[no].stream_faults.heal();
    }
    reads_everything(&mut world, 10 * SECOND).await;
}

/// F28: one worker reaches the stream but not the table, or the table but not the stream.
async fn a_worker_cut_off_from_the_table_stops_before_others_take_over() {
    for deaf in [false, true] {
        let mut world = settled(Setup::new(28, 4), 2).await;
        match deaf {
            true => world.table_line(0, Quality { deaf, ..Quality::default() }),
            false => world.instances[0].table_faults.cut(),
        }
        world.put(40);
        world.advance(5 * SECOND).await;
        reads_everything(&mut world, 3 * SECOND).await;
        assert_eq!(owned(&world, "b"), 4);
        world.table_line(0, Quality::default());
        world.instances[0].table_faults.heal();
        world.advance(5 * SECOND).await;
        assert_eq!(owned(&world, "a"), 2);
        is_clean(&world);
    }
}

/// F29: a second process with the id of a worker that lives.
async fn a_second_process_with_the_same_id_ends_and_disturbs_nobody() {
    let mut world = settled(Setup::new(29, 4), 2).await;
    let moves = world.observer.moves();
    let twin = world.start("a");
    world.put(20);
    world.advance(10 * SECOND).await;
    assert_eq!(world.instances[twin].state, Life::Over, "the second has ended");
    assert_eq!(world.observer.moves(), moves);
    reads_everything(&mut world, SECOND).await;
}

/// F32: thousands of rows of finished shards.
async fn a_table_full_of_finished_rows_is_looked_at_within_the_budget() {
    let mut world = World::new(Setup::new(32, 4));
    for n in 0..3000 {
        let shard = format!("shardId-{:012}", 900_000 + n);
        world.table.put_row(Lease::new(&shard.as_str().into(), Checkpoint::ShardEnd));
    }
    world.start("a");
    world.start("b");
    world.put(50);
    reads_everything(&mut world, 10 * SECOND).await;
    // What was saved for the beginning has been spent.
    world.advance(60 * SECOND).await;
    let before: Vec<u64> = (0..2).map(|no| world.observer.calls(no).looks()).collect();
    world.advance(60 * SECOND).await;
    // A look costs 94 read units, and the budget is 5 a second.
    let most = 60.0 * 5.0 / 94.0 + 1.0;
    for (no, before) in before.iter().enumerate() {
        let looks = world.observer.calls(no).looks() - before;
        assert!(looks as f64 <= most, "{looks} looks in a minute");
    }
    is_clean(&world);
}

/// F33: eight workers start at LATEST during a split.
async fn a_start_at_latest_during_a_split_misses_no_later_record() {
    for at in 0..10 {
        let setup = Setup::new(300 + at, 2);
        let config = Config { initial_position: InitialPosition::Latest, ..setup.config };
        let mut world = World::new(Setup { config, ..setup });
        world.put(20);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let no = world.start(name);
            world.table_line(no, Quality { latency: 30, ..Quality::default() });
            world.stream_line(no, Quality { latency: 30, ..Quality::default() });
        }
        for _ in 0..10 {
            world.advance(Duration::from_millis(7 * at)).await;
            world.put(5);
            if at % 2 == 0 {
                world.split(0);
            }
        }
        world.split(1);
        world.put(20);
        reads_everything(&mut world, 15 * SECOND).await;
    }
}

/// F8: the hosts' clocks are ahead of the stream's, by little and by much.
async fn hosts_whose_clocks_are_wrong_lose_no_lease_and_no_record() {
    for (seed, behind) in [(80, SECOND), (81, 300 * SECOND), (82, 3600 * SECOND)] {
        for initial_position in [InitialPosition::TrimHorizon, InitialPosition::Latest] {
            let setup = Setup::new(seed, 4);
            let config = Config { initial_position, ..setup.config };
            let mut world = settled(Setup { config, clock_behind: behind, ..setup }, 3).await;
            reads_everything(&mut world, 5 * SECOND).await;
            let moves = world.observer.moves();
            world.put(20);
            world.advance(60 * SECOND).await;
            assert_eq!(world.observer.moves(), moves, "leases moved");
            world.split(0);
            world.crash(0).await;
            world.put(20);
            reads_everything(&mut world, 10 * SECOND).await;
        }
    }
}

/// F36: a stop at any moment, also during the start and during an outage.
async fn a_stop_at_any_moment_ends_in_time_and_frees_every_lease() {
    for at in 0..60 {
        let mut world = World::new(Setup::new(400 + at, 4));
        world.put(40);
        let no = world.start("a");
        let latency = if at % 2 == 0 { 100 } else { 0 };
        world.table_line(no, Quality { latency, ..Quality::default() });
        world.temper(no, Temper { slow: 200, ..Temper::default() });
        world.advance(Duration::from_millis(23 * at)).await;
        world.stop(no);
        let limit = world.setup.config.shutdown_timeout + 2 * SECOND;
        assert!(world.until(limit, |world| world.instances[no].state == Life::Over).await, "{at}");
        assert_eq!(owned(&world, "a"), 0, "stopped at {at}\n{}", world.observer.trace());
        is_clean(&world);
        assert_eq!(world.close().await, 0, "tasks are left");
    }
}

/// At rest: no lease moves, and each costs two writes in a failover time.
async fn a_settled_fleet_moves_nothing_and_writes_little() {
    let mut world = settled(Setup::new(7, 12), 3).await;
    world.advance(10 * SECOND).await;
    let (moves, before) = (world.observer.moves(), world.observer.counts());
    let hour = 3600;
    world.advance(hour * SECOND).await;
    assert_eq!(world.observer.moves(), moves);
    let per_lease = (world.observer.counts().writes - before.writes) as f64 / 12.0;
    let terms = hour as f64 / world.failover().as_secs_f64();
    assert!(per_lease <= 2.2 * terms, "{per_lease} writes a lease in {terms} failover times");
    is_clean(&world);
}
