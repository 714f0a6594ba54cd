//! Incidents by name that need more than a fault: rows removed by hand, two processes of one id, limits.

use std::time::Duration;

use kinesis_consumer::{
    Checkpoint, Config, LeaseKey, OnShutdown, ShardId, WorkerError,
    io::{
        faulty::{Fault, Op},
        memory::Limits,
    },
};

use super::{
    fleet::{Setup, World},
    instances::Life,
    line::Quality,
    processor::Temper,
    run::play,
    scenarios::{SECOND, is_clean, owned, reads_everything, settled},
    script::{Beats, Script, Step},
};

fn id(n: u64) -> ShardId {
    format!("shardId-{n:012}").into()
}

fn checkpoint(world: &World, n: u64) -> Option<Checkpoint> {
    let key = LeaseKey::from(&id(n));
    world.table.rows().into_iter().find(|row| row.key == key).map(|row| row.checkpoint)
}

in_both_modes!(
    the_row_of_an_unfinished_parent_is_made_again_before_its_child_begins,
    a_row_removed_below_a_long_line_of_splits_and_merges_is_read_again_and_that_comes_to_an_end,
    a_checkpoint_set_back_by_hand_is_read_from_although_no_look_has_shown_it,
    of_two_processes_of_one_id_that_start_together_one_stays_and_none_disturbs_the_other,
    a_process_whose_namesake_took_over_never_takes_the_namesakes_writes_for_its_own,
    two_processes_of_one_id_that_both_held_leases_do_not_trade_them,
    a_lone_worker_with_room_for_one_lease_reads_a_line_of_splits_and_merges_to_its_end,
    code_that_blocked_its_thread_past_its_leases_is_dropped_and_not_finished,
    children_of_lagging_parents_are_read_after_them_and_soon,
    rows_of_a_stream_that_was_made_again_are_left_as_they_are_and_new_workers_refused,
    no_single_worker_is_needed_to_mend_the_table,
    a_worker_whose_code_stands_still_reads_ahead_within_its_memory_budget,
    pages_that_turn_out_larger_than_the_budget_has_room_for_are_read_again_later,
);

/// F17: the row of a shard that has not been read to its end is deleted, while its child, which continues
/// another shard too that has ended, has a lease already.
async fn the_row_of_an_unfinished_parent_is_made_again_before_its_child_begins() {
    for at in 0..10 {
        let setup = Setup::new(500 + at, 2);
        let mut world = settled(setup, 2).await;
        reads_everything(&mut world, SECOND).await;
        // One parent cannot go on; the other ends, and makes the child's lease.
        (0..2).for_each(|no| world.temper(no, Temper { poison: Some(0), ..Temper::default() }));
        world.put(100);
        world.merge(0);
        world.put(20);
        let made = |world: &World| checkpoint(world, 2) == Some(Checkpoint::TrimHorizon);
        assert!(world.until(10 * SECOND, made).await);
        world.advance(Duration::from_millis(170 * at)).await;
        world.delete(&id(0));
        world.advance(Duration::from_millis(170 * at)).await;
        (0..2).for_each(|no| world.temper(no, Temper::default()));
        reads_everything(&mut world, 10 * SECOND).await;
    }
}

/// F17: the row of one of two open shards is deleted, whose ancestors are those of the other too.
async fn a_row_removed_below_a_long_line_of_splits_and_merges_is_read_again_and_that_comes_to_an_end() {
    for at in 0..12 {
        let setup = Setup::new(640 + at, 6);
        let config = Config { failover_time: 3 * SECOND, ..setup.config };
        let steps = [Step::Halve, Step::Merge(22), Step::Double, Step::Halve, Step::DeleteRow(at as usize)];
        // The last once the rows of shards that have ended are gone.
        let steps = [15_000, 18_000, 21_000, 32_000, 110_000].into_iter().zip(steps).collect();
        let setup = Setup { config, ..setup };
        let script = Script { setup, workers: 4, rate: (5, 300), length: 117_000, steps };
        let outcome = play(&script, true, |_| ()).await;
        assert!(outcome.violations.is_empty(), "{at} {}", outcome.violations.join("\n"));
    }
}

/// F17: a row is deleted and made anew; another worker claims it from what it had looked like.
async fn a_checkpoint_set_back_by_hand_is_read_from_although_no_look_has_shown_it() {
    let mut world = settled(Setup::new(510, 1), 1).await;
    reads_everything(&mut world, SECOND).await;
    world.advance(3 * SECOND).await;
    world.table.set_scan_staleness(3 * SECOND);
    world.start("b");
    world.crash(0).await;
    world.edit_row(0, super::fleet::Edit::Rewind);
    let before = world.observer.counts().deliveries;
    assert!(world.until(10 * SECOND, |world| owned(world, "b") == 1).await);
    world.advance(2 * SECOND).await;
    is_clean(&world);
    assert_eq!(world.observer.counts().deliveries, 2 * before, "all comes again");
}

/// F17, F29: a worker stands still while a row is deleted, made anew by another process of its holder's id and
/// renewed up to the counter that the worker remembers. A lease that lives by a heartbeat is not renewed.
#[tokio::test(start_paused = true)]
async fn a_row_made_anew_that_meets_the_counter_remembered_is_not_taken_for_one_that_stood_still() {
    for at in 0..10 {
        let mut world = settled(Setup::new(620 + at, 1), 1).await;
        world.start("b");
        world.put(5);
        world.advance(5 * SECOND + Duration::from_millis(130 * at)).await;
        let remembered = world.table.rows()[0].counter;
        world.freeze(1);
        world.crash(0).await;
        world.delete(&id(0));
        let again = world.start("a");
        let met = |world: &World| world.table.rows().first().is_some_and(|row| row.counter >= remembered);
        assert!(world.until(60 * SECOND, met).await);
        assert_eq!(owned(&world, "a"), 1);
        let moves = world.observer.moves();
        world.thaw(1);
        world.advance(SECOND).await;
        assert_eq!(world.observer.moves(), moves, "{}", world.observer.trace());
        assert_eq!(world.instances[again].state, Life::Running);
        is_clean(&world);
    }
}

/// F29: two processes with one id that start in the same moment: none sees the other before it has claimed.
async fn of_two_processes_of_one_id_that_start_together_one_stays_and_none_disturbs_the_other() {
    for at in 0..20 {
        let setup = Setup::new(520 + at, 6);
        let mut world = World::new(setup);
        for no in [world.start("a"), world.start("a")] {
            world.table_line(no, Quality { latency: 50 * (at % 3), ..Quality::default() });
        }
        world.put(60);
        world.advance(10 * SECOND).await;
        world.put(60);
        reads_everything(&mut world, 10 * SECOND).await;
        assert_eq!(world.running().len(), 1, "{}", world.observer.trace());
        assert_eq!(owned(&world, "a"), 6);
    }
}

/// F29, F6: a process stands still for longer than its leases live, is replaced by another with its id, and
/// wakes up with writes under way that its successor's writes look like.
async fn a_process_whose_namesake_took_over_never_takes_the_namesakes_writes_for_its_own() {
    for at in 0..40 {
        let mut world = settled(Setup::new(540 + at, 4), 1).await;
        world.table_line(0, Quality { latency: 300, ..Quality::default() });
        world.put(40);
        world.advance(Duration::from_millis(31 * at)).await;
        world.freeze(0);
        world.start("a");
        world.put(40);
        // The successor has waited for the failover time and has just claimed.
        world.advance(Duration::from_millis(1900 + 20 * at)).await;
        world.thaw(0);
        world.put(40);
        reads_everything(&mut world, 15 * SECOND).await;
        world.advance(5 * SECOND).await;
        is_clean(&world);
    }
}

/// F29: both processes of one id have held the leases, the first before it stood still and was replaced.
async fn two_processes_of_one_id_that_both_held_leases_do_not_trade_them() {
    for at in 0..10 {
        let mut world = settled(Setup::new(630 + at, 6), 1).await;
        world.freeze(0);
        world.start("a");
        world.put(60);
        world.advance(Duration::from_millis(1500 + 400 * at)).await;
        world.thaw(0);
        world.put(60);
        reads_everything(&mut world, 15 * SECOND).await;
        world.advance(10 * SECOND).await;
        assert_eq!(world.running().len(), 1, "{}", world.observer.trace());
        let moves = world.observer.moves();
        assert!(moves <= 4 * 6, "each has claimed each lease twice at most: {moves}");
        world.advance(30 * SECOND).await;
        assert_eq!((world.observer.moves(), owned(&world, "a")), (moves, 6));
        is_clean(&world);
    }
}

/// A worker with room for one lease reads a shard to its end whose child continues another shard too, and that
/// one has no lease before its own parent is read, for which there would be no room.
async fn a_lone_worker_with_room_for_one_lease_reads_a_line_of_splits_and_merges_to_its_end() {
    for seed in 570..580 {
        let setup = Setup::new(seed, 2);
        let config = Config { max_leases_for_worker: Some(1), ..setup.config };
        let mut world = World::new(Setup { config, ..setup });
        world.put(40);
        world.split(0);
        world.put(40);
        world.merge(1);
        world.put(40);
        world.merge(0);
        world.put(40);
        let no = world.start("a");
        reads_everything(&mut world, 60 * SECOND).await;
        assert_eq!(world.instances[no].state, Life::Running);
    }
}

/// F7: the code of one worker blocks its thread, and with it everything else of that worker, for longer than its
/// leases live. On one thread that is a worker that stands still in the middle of a call.
async fn code_that_blocked_its_thread_past_its_leases_is_dropped_and_not_finished() {
    for at in 0..10 {
        let mut world = settled(Setup::new(580 + at, 4), 2).await;
        world.temper(0, Temper { slow: 1500, ..Temper::default() });
        world.put(40);
        world.advance(Duration::from_millis(150 + 90 * at)).await;
        world.freeze(0);
        world.advance(5 * SECOND).await;
        assert_eq!(owned(&world, "b"), 4, "taken over while it is blocked");
        world.thaw(0);
        reads_everything(&mut world, 10 * SECOND).await;
        world.advance(5 * SECOND).await;
        assert_eq!(owned(&world, "a"), 2, "it is a member again");
        is_clean(&world);
    }
}

/// F15: the stream is doubled while the parents have a long backlog.
async fn children_of_lagging_parents_are_read_after_them_and_soon() {
    let mut world = settled(Setup::new(15, 4), 2).await;
    reads_everything(&mut world, SECOND).await;
    (0..2).for_each(|no| world.instances[no].stream_faults.cut());
    for _ in 0..180 {
        world.put(20);
        world.advance(10 * SECOND).await;
    }
    world.reshard(8);
    world.put(200);
    (0..2).for_each(|no| world.instances[no].stream_faults.heal());
    reads_everything(&mut world, 10 * SECOND).await;
}

/// F16: the stream is deleted and made again under the same name while it is read.
async fn rows_of_a_stream_that_was_made_again_are_left_as_they_are_and_new_workers_refused() {
    for shards in [2, 1, 4] {
        let mut world = settled(Setup::new(16, 2), 2).await;
        reads_everything(&mut world, SECOND).await;
        world.advance(3 * SECOND).await;
        let progress = |world: &World| -> Vec<_> {
            world.table.rows().into_iter().map(|row| (row.key.clone(), row.checkpoint, row.stream)).collect()
        };
        let before = progress(&world);
        world.stream.recreate(shards);
        world.advance(30 * SECOND).await;
        assert_eq!(progress(&world), before, "nothing is finished, deleted, or begun anew");
        let no = world.start("c");
        assert!(world.until(10 * SECOND, |world| world.instances[no].state == Life::Over).await);
        let (_, ending) = world.endings.pop().expect("it was not asked to stop");
        assert!(matches!(ending, Err(WorkerError::WrongTable { .. })), "{ending:?}");
        assert_eq!(progress(&world), before);
        is_clean(&world);
    }
}

/// F27: there is no leader. Whichever worker cannot list shards, or stands still, rows that are missing are made
/// and read by the others.
async fn no_single_worker_is_needed_to_mend_the_table() {
    for broken in 0..3 {
        let mut world = settled(Setup::new(27, 6), 3).await;
        world.instances[broken].stream_faults.chance(Op::ListShards, 1.0, Fault::Unavailable);
        world.delete_row(broken);
        world.split(3);
        world.put(40);
        reads_everything(&mut world, 15 * SECOND).await;
        world.freeze(broken);
        world.delete_row(broken + 1);
        world.put(40);
        reads_everything(&mut world, 15 * SECOND).await;
    }
}

/// What a worker reads ahead stays within its budget, whatever lies in the stream and however long its code takes.
async fn a_worker_whose_code_stands_still_reads_ahead_within_its_memory_budget() {
    const PAGE: u64 = 10 << 20;
    let setup = Setup::new(19, 6);
    let config = Config { memory_budget: PAGE as usize, stall_timeout: 30 * SECOND, ..setup.config };
    let mut world = World::new(Setup { config, payload: 512 << 10, limits: Limits::aws(), ..setup });
    world.start("a");
    world.temper(0, Temper { stuck: true, ..Temper::default() });
    // Four pages for each shard.
    world.put(6 * 80);
    world.advance(20 * SECOND).await;
    let read = world.observer.read_bytes(0);
    // A page is a little less, and not all shards have the same.
    assert!(read >= 5 * PAGE, "one page a shard is processed: {read}");
    assert!(read <= 7 * PAGE, "one page a shard, and the budget: {read}");
    world.temper(0, Temper::default());
    reads_everything(&mut world, 60 * SECOND).await;
}

/// All shards are at rest, a record of each is worked on for long, and much comes into each at once.
async fn pages_that_turn_out_larger_than_the_budget_has_room_for_are_read_again_later() {
    let setup = Setup::new(21, 6);
    let config = Config { memory_budget: 10 << 20, stall_timeout: 60 * SECOND, ..setup.config };
    let mut world = World::new(Setup { config, payload: 512 << 10, ..setup });
    world.start("a");
    world.temper(0, Temper { waits: true, ..Temper::default() });
    world.put_into_each();
    world.advance(2 * SECOND).await;
    (0..15).for_each(|_| world.put_into_each());
    world.advance(5 * SECOND).await;
    is_clean(&world);
    world.temper(0, Temper::default());
    reads_everything(&mut world, 10 * SECOND).await;
}

/// F28, the reverse: one host reaches the table but not the stream.
#[tokio::test(start_paused = true)]
async fn a_worker_that_alone_cannot_read_gives_its_leases_to_those_who_can() {
    for beats in [Beats::Lease, Beats::Worker] {
        let setup = Setup::new(528, 4);
        let config = Config { on_shutdown: OnShutdown::Keep, ..setup.config };
        let mut world = settled(Setup { beats, config, ..setup }, 2).await;
        reads_everything(&mut world, SECOND).await;
        world.instances[0].stream_faults.cut();
        for at in 0..90 {
            world.put(4);
            world.advance(SECOND).await;
            // A shorter outage moves nothing.
            assert!(at > 55 || owned(&world, "a") == 2, "{at} s");
        }
        assert_eq!(owned(&world, "b"), 4);
        reads_everything(&mut world, SECOND).await;
        let moves = world.observer.moves();
        world.advance(600 * SECOND).await;
        assert_eq!(world.observer.moves(), moves, "it takes nothing that it cannot read");
        world.instances[0].stream_faults.heal();
        assert!(world.until(40 * SECOND, |world| owned(world, "a") == 2).await);
        world.put(40);
        reads_everything(&mut world, 2 * SECOND).await;
    }
}

/// F28: what it had asked for comes at last, a while after it has found out or in that moment.
#[tokio::test(start_paused = true)]
async fn a_worker_that_alone_cannot_read_takes_nothing_of_what_it_had_asked_for() {
    for beats in [Beats::Lease, Beats::Worker] {
        let mut waited = 0;
        for at in 0..16 {
            let setup = Setup::new(660 + at, 4);
            let config = Config { shutdown_timeout: 120 * SECOND, ..setup.config };
            let mut world = settled(Setup { beats, config, ..setup }, 1).await;
            world.temper(0, Temper { waits_on: Some(0), ..Temper::default() });
            world.put_into_each();
            world.advance(SECOND).await;
            world.start("b");
            world.advance(4 * SECOND).await;
            // One lease, and another that it has asked for and that does not come.
            if owned(&world, "b") == 2 {
                continue;
            }
            assert!(world.table.rows()[0].checkpoint_owner.is_some(), "{:?}", world.table.rows());
            waited += 1;
            world.instances[1].stream_faults.cut();
            world.table_line(1, Quality { latency: 150, ..Quality::default() });
            let moves = world.observer.moves();
            let mut blind_for = 0;
            for _ in 0..1500 {
                world.put(1);
                world.advance(SECOND / 20).await;
                blind_for += u64::from(owned(&world, "b") == 0);
                if blind_for == 1 + 4 * (at % 4) {
                    break;
                }
            }
            world.temper(0, Temper::default());
            reads_everything(&mut world, 10 * SECOND).await;
            world.advance(60 * SECOND).await;
            assert_eq!(owned(&world, "a"), 4);
            let taken = |line: &str| line.starts_with("holds");
            let trace = world.observer.trace();
            let all = trace.lines.iter().filter(|line| line.who == "b" && taken(&line.what)).count();
            assert_eq!(all, 1, "{trace}");
            assert!(world.observer.moves() <= moves + 3, "{trace}");
        }
        assert!(waited >= 4, "{waited}");
    }
}

/// F28, F24: nobody reaches the stream, although work from before goes on.
#[tokio::test(start_paused = true)]
async fn no_lease_moves_while_nobody_can_read() {
    for beats in [Beats::Lease, Beats::Worker] {
        let setup = Setup::new(529, 4);
        let temper = Temper { slow: 200, ..Temper::default() };
        let mut world = settled(Setup { beats, temper, ..setup }, 2).await;
        world.put(400);
        let moves = world.observer.moves();
        (0..2).for_each(|no| world.instances[no].stream_faults.cut());
        world.advance(300 * SECOND).await;
        assert_eq!(world.observer.moves(), moves);
        (0..2).for_each(|no| world.instances[no].stream_faults.heal());
        reads_everything(&mut world, 120 * SECOND).await;
        assert_eq!(world.observer.moves(), moves);
    }
}
