//! Leases that live by the heartbeat of their worker: what they cost, who may take them, and when.

use std::collections::BTreeSet;

use kinesis_consumer::{
    Checkpoint, Config, Heartbeat, Incarnation, Lease, LeaseKey, LeaseLost, WorkerError,
    io::faulty::{Faults, Op},
};
use tokio::time::Instant;

use crate::world::{FAILOVER, SECOND, World, config, run, until};

fn by_worker() -> Config {
    Config { heartbeat: Heartbeat::Worker, ..config() }
}

/// How many leases each of `workers` holds.
fn loads<const N: usize>(world: &World, workers: [&str; N]) -> [usize; N] {
    workers.map(|worker| world.owners().iter().filter(|owner| *owner == worker).count())
}

/// The heartbeats that leases live by.
fn named(world: &World) -> BTreeSet<Incarnation> {
    world.table.rows().iter().filter_map(|row| row.lives_by().cloned()).collect()
}

fn beating(world: &World) -> BTreeSet<Incarnation> {
    world.table.worker_rows().into_iter().map(|row| row.incarnation).collect()
}

/// Writes to the table so far.
fn writes(faults: &Faults) -> u64 {
    let ops = [Op::CreateLease, Op::WriteLease, Op::HandOff, Op::DeleteLease, Op::Beat, Op::ForgetWorker];
    ops.iter().map(|op| faults.calls(*op)).sum()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_leases_of_ten_workers_at_rest_cost_a_fifth_of_a_write_a_minute_each() {
    let world = World::shards(1000);
    let config = Config { idle_time_between_reads: 30 * SECOND, ..by_worker() };
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let workers =
        names.map(|name| run(world.worker_with(name, config.clone()).build(world.probe()).expect("valid")));
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(loads(&world, names), [100; 10]);
    let (writes_before, moved) = (writes(&world.faults), world.table.rows());
    tokio::time::sleep(120 * SECOND).await;
    let a_minute = (writes(&world.faults) - writes_before) as f64 / 2.0 / 1000.0;
    println!("{a_minute} writes a lease a minute");
    assert!(a_minute <= 0.2, "{a_minute}");
    assert_eq!(world.table.rows(), moved, "no lease was written");
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(world.table.worker_rows(), [], "who stops takes its row along");
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_crashed_worker_are_taken_once_its_heartbeat_stood_still() {
    let world = World::shards(4);
    let first = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    let second = run(world.worker_with("b", by_worker()).build(world.probe()).expect("valid"));
    until("an even spread", || loads(&world, ["a", "b"]) == [2, 2]).await;
    tokio::time::sleep(FAILOVER * 3).await;
    let crashed = Instant::now();
    first.crash().await;
    until("a takeover", || loads(&world, ["b"]) == [4]).await;
    let took = crashed.elapsed();
    assert!((FAILOVER / 2..FAILOVER + 3 * SECOND / 2).contains(&took), "{took:?}");
    // The row that nobody lives by is deleted; nothing is held by it.
    until("one heartbeat", || beating(&world).len() == 1).await;
    assert_eq!(beating(&world), named(&world));
    for shard in 0..4 {
        world.put(shard, [shard]);
        world.checkpoint_at(shard, &shard.to_string()).await;
    }
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_cut_off_stops_all_its_work_before_another_begins() {
    let world = World::shards(2);
    let (cut, config) = (Faults::new(2), by_worker());
    let slow = |world: &World| world.probe_with(|_, _| async { std::future::pending().await });
    let first = run(world.cut_off_by(&cut, "a", config.clone()).build(slow(&world)).expect("valid"));
    until("claims", || loads(&world, ["a"]) == [2]).await;
    tokio::time::sleep(FAILOVER).await;
    world.put(0, [1]);
    world.put(1, [2]);
    world.trace.wait_for(0, "batch 1").await;
    world.trace.wait_for(1, "batch 2").await;
    let heart = Config { max_leases_for_worker: Some(2), ..config };
    let second = run(world.worker_with("b", heart).build(world.probe()).expect("valid"));
    cut.cut();
    until("a takeover", || loads(&world, ["b"]) == [2]).await;
    let taken = Instant::now();
    for shard in 0..2 {
        let lost = world.trace.time_of(shard, "lost: it could not be renewed in time").or_else(|| {
            // Handed over in the moment before.
            world.trace.time_of(shard, "draining")
        });
        assert!(lost.is_some_and(|lost| lost <= taken), "{:?}", world.trace.of(shard));
    }
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_row_is_deleted_by_hand_keeps_its_leases_and_begins_another_heartbeat() {
    let world = World::shards(4);
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    let other = run(world.worker_with("b", by_worker()).build(world.probe()).expect("valid"));
    until("an even spread", || loads(&world, ["a", "b"]) == [2, 2]).await;
    tokio::time::sleep(FAILOVER * 2).await;
    let old = named(&world);
    for incarnation in &old {
        world.table.remove_worker_row(incarnation);
    }
    tokio::time::sleep(FAILOVER * 4).await;
    assert_eq!(loads(&world, ["a", "b"]), [2, 2]);
    for shard in 0..4 {
        assert!(
            !world.trace.of(shard).iter().any(|what| what.starts_with("lost")),
            "{:?}",
            world.trace.of(shard)
        );
    }
    assert!(old.is_disjoint(&named(&world)), "{:?}", named(&world));
    assert_eq!(beating(&world), named(&world));
    let before = writes(&world.faults);
    tokio::time::sleep(60 * SECOND).await;
    assert!(writes(&world.faults) - before <= 30, "the leases rest again");
    worker.stop().await;
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_worker_does_not_keep_its_predecessors_leases_alive() {
    let world = World::shards(4);
    let first = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    until("claims", || loads(&world, ["a"]) == [4]).await;
    tokio::time::sleep(FAILOVER).await;
    let crashed = Instant::now();
    first.crash().await;
    let again = Config { max_leases_for_worker: Some(1), ..by_worker() };
    let again = run(world.worker_with("a", again).seed(99).build(world.probe()).expect("valid"));
    let other = run(world.worker_with("b", by_worker()).build(world.probe()).expect("valid"));
    until("a takeover", || loads(&world, ["a", "b"]) == [1, 3]).await;
    assert!(crashed.elapsed() < FAILOVER * 2 + 3 * SECOND, "{:?}", crashed.elapsed());
    again.stop().await;
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn workers_with_and_without_a_heartbeat_share_a_table_and_take_nothing_from_the_living() {
    let world = World::shards(6);
    let with = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    let without = run(world.worker_with("b", config()).build(world.probe()).expect("valid"));
    until("an even spread", || loads(&world, ["a", "b"]) == [3, 3]).await;
    tokio::time::sleep(FAILOVER).await;
    let rows = |owner: &str| -> Vec<Lease> {
        let rows = world.table.rows().into_iter();
        rows.filter(|row| row.owner.as_ref().is_some_and(|is| is.as_str() == owner)).collect()
    };
    assert!(rows("a").iter().all(|row| row.lives_by().is_some()));
    assert!(rows("b").iter().all(|row| row.lives_by().is_none()));
    let (resting, moving) = (rows("a"), rows("b"));
    tokio::time::sleep(FAILOVER * 12).await;
    assert_eq!(rows("a"), resting, "not written, and not taken");
    assert!(
        rows("b").iter().zip(&moving).all(|(now, then)| now.key == then.key && now.counter > then.counter)
    );
    // The one crashes, the other takes over; then a worker of the other kind joins.
    with.crash().await;
    until("a takeover", || loads(&world, ["b"]) == [6]).await;
    assert!(rows("b").iter().all(|row| row.lives_by().is_none()));
    let third = run(world.worker_with("c", by_worker()).build(world.probe()).expect("valid"));
    until("an even spread", || loads(&world, ["b", "c"]) == [3, 3]).await;
    without.crash().await;
    until("a takeover", || loads(&world, ["c"]) == [6]).await;
    third.stop().await;
}

/// What a live worker of the KCL does: it claims, and renews.
fn as_the_kcl_does(row: &Lease) -> Lease {
    Lease { counter: row.counter + 1, owner: Some("java".into()), checkpoint_owner: None, ..row.clone() }
}

#[tokio::test(start_paused = true)]
async fn beside_a_worker_of_the_kcl_a_heartbeat_is_refused_at_start() {
    let world = World::shards(1);
    let row = Lease::new(&world.shard(0), Checkpoint::TrimHorizon);
    world.table.put_row(as_the_kcl_does(&row));
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    tokio::time::sleep(3 * SECOND).await;
    world.table.put_row(as_the_kcl_does(&world.row(0)));
    let refused = worker.end().await.expect_err("refused");
    assert!(matches!(&refused, WorkerError::ForeignHolder { holder, .. } if holder == "java"), "{refused}");
    assert_eq!(world.table.worker_rows(), []);
    assert_eq!(world.row(0).counter, 2, "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_kcl_fleet_that_ended_are_taken_when_they_expire() {
    let world = World::shards(1);
    world.table.put_row(as_the_kcl_does(&Lease::new(&world.shard(0), Checkpoint::TrimHorizon)));
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    until("a takeover", || world.owners() == ["a"]).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_the_kcl_that_joins_ends_the_workers_with_heartbeats() {
    let world = World::shards(2);
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    until("claims", || loads(&world, ["a"]) == [2]).await;
    tokio::time::sleep(FAILOVER).await;
    // It takes what it takes for dead.
    world.table.put_row(as_the_kcl_does(&world.row(0)));
    world.trace.wait_for(0, "lost: another worker took it").await;
    world.table.put_row(as_the_kcl_does(&world.row(0)));
    let refused = worker.end().await.expect_err("refused");
    assert!(matches!(refused, WorkerError::ForeignHolder { .. }), "{refused}");
    assert_eq!(world.owners(), ["java", "-"], "its own leases are free");
}

/// Two workers run under the name of `b`: the one was given the lease and handed it on, and so was the other, all
/// between two looks.
#[tokio::test(start_paused = true)]
async fn a_lease_that_came_back_to_a_name_between_two_looks_is_not_renewed_by_a_worker_of_the_kcl() {
    let world = World::shards(1);
    let handed_to_b = |by: &str, counter| Lease {
        counter,
        owner: Some("b".into()),
        hands_over: Some(by.into()),
        ..Lease::new(&world.shard(0), Checkpoint::TrimHorizon)
    };
    world.table.put_row(handed_to_b("c#0123456789abcdef.1", 7));
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    tokio::time::sleep(FAILOVER / 2).await;
    world.table.put_row(handed_to_b("d#fedcba9876543210.1", 12));
    until("a takeover", || world.owners() == ["a"]).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_its_holder_does_not_work_on_is_free_although_the_holder_lives() {
    let world = World::shards(1);
    world.put(0, [1]);
    let config = Config { stall_timeout: 5 * SECOND, ..by_worker() };
    let (worker, mut shards) = world.worker_with("a", config.clone()).stream().expect("valid");
    let first = run(worker);
    // Never pulled from, and never let go of.
    let kept = shards.next().await.expect("a shard");
    let taken = Instant::now();
    let second = run(world.worker_with("b", config).build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    assert!(taken.elapsed() < FAILOVER * 2, "{:?}", taken.elapsed());
    drop(kept);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_deleted_by_hand_is_missed_within_a_look_or_two() {
    let world = World::shards(1);
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    until("claims", || loads(&world, ["a"]) == [1]).await;
    tokio::time::sleep(FAILOVER).await;
    let key = LeaseKey::from(&world.shard(0));
    world.table.remove_row(&key);
    let deleted = Instant::now();
    world.trace.wait_for(0, "lost: its row was deleted").await;
    assert!(deleted.elapsed() < 3 * SECOND, "{:?}", deleted.elapsed());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_deleted_and_made_anew_for_another_is_missed_within_a_look_or_two() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = run(world.worker_with("a", by_worker()).build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    let others = Lease {
        owner: Some("b".into()),
        hands_over: Some("b#0123456789abcdef.1".into()),
        ..Lease::new(&world.shard(0), Checkpoint::TrimHorizon)
    };
    assert!(world.row(0).counter > others.counter, "as a stale look would show it");
    world.table.put_row(others);
    let replaced = Instant::now();
    world.trace.wait_for(0, &format!("lost: {}", LeaseLost::Deleted)).await;
    assert!(replaced.elapsed() < 3 * SECOND, "{:?}", replaced.elapsed());
    worker.stop().await;
}
