//! Workers that come back under their id: what they left is theirs at once, and others leave it to them for as
//! long as they are told to.

use std::{collections::BTreeMap, time::Duration};

use kinesis_consumer::{Balance, ClaimReason, Config, Event, Heartbeat, OnShutdown, Verdict};
use tokio::time::{Instant, sleep};

use crate::world::{FAILOVER, Running, SECOND, World, config, event, run, until};

fn keeping(rejoin_grace: Duration) -> Config {
    Config { on_shutdown: OnShutdown::Keep, rejoin_grace, ..config() }
}

/// Four workers that share eight shards.
async fn fleet(world: &World, rejoin_grace: Duration) -> BTreeMap<&'static str, Running> {
    let names = ["a", "b", "c", "d"];
    let start =
        |name| run(world.worker_with(name, keeping(rejoin_grace)).build(world.probe()).expect("valid"));
    let fleet = names.into_iter().map(|name| (name, start(name))).collect();
    until("an even spread", || {
        let owners = world.owners();
        names.iter().all(|name| owners.iter().filter(|owner| owner == name).count() == 2)
    })
    .await;
    sleep(FAILOVER).await;
    fleet
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_kept_its_leases_goes_on_with_them_at_once_when_it_comes_back() {
    let world = World::shards(3);
    for shard in 0..3 {
        world.put(shard, ["before"]);
    }
    let config = keeping(Duration::ZERO);
    let worker = run(world.worker_with("a", config.clone()).build(world.probe()).expect("valid"));
    for shard in 0..3 {
        world.checkpoint_at(shard, "before").await;
    }
    worker.stop().await;
    let counters: Vec<u64> = (0..3).map(|n| world.row(n).counter).collect();
    for shard in 0..3 {
        world.put(shard, ["after"]);
    }
    let back = Instant::now();
    let worker = world.worker_with("a", config).build(world.probe()).expect("valid");
    let mut events = worker.handle().events();
    let worker = run(worker);
    let reason = event(&mut events, |event| match event {
        Event::LeaseTaken { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason.await, ClaimReason::Returned);
    for shard in 0..3 {
        world.trace.wait_for(shard, "batch after").await;
    }
    assert!(back.elapsed() < 2 * SECOND, "{:?}", back.elapsed());
    // A new epoch: what the first life still had under way finds another counter.
    assert!((0..3).all(|n| world.row(n).counter > counters[n]));
    worker.stop().await;
    for shard in 0..3 {
        assert_eq!(world.trace.batches(shard), ["before", "after"]);
    }
}

#[tokio::test(start_paused = true)]
async fn within_the_grace_a_restart_moves_no_lease() {
    let world = World::shards(8);
    let mut fleet = fleet(&world, 60 * SECOND).await;
    let before = world.owners();
    fleet.remove("b").expect("runs").stop().await;
    for _ in 0..60 {
        sleep(SECOND).await;
        assert_eq!(world.owners(), before);
    }
    let back = run(world.worker_with("b", keeping(60 * SECOND)).build(world.probe()).expect("valid"));
    let returned = Instant::now();
    let counters = |world: &World| -> Vec<u64> { (0..8).map(|n| world.row(n).counter).collect() };
    let at_return = counters(&world);
    let of_b: Vec<usize> = (0..8).filter(|n| before[*n] == "b").collect();
    until("b goes on", || of_b.iter().all(|n| counters(&world)[*n] > at_return[*n])).await;
    assert!(returned.elapsed() < 2 * SECOND, "{:?}", returned.elapsed());
    sleep(2 * FAILOVER).await;
    assert_eq!(world.owners(), before);
    back.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_crashed_takes_its_leases_up_again_after_failover_time_and_others_wait_for_it() {
    let world = World::shards(8);
    let mut fleet = fleet(&world, 60 * SECOND).await;
    let before = world.owners();
    fleet.remove("b").expect("runs").crash().await;
    sleep(FAILOVER / 2).await;
    let back = run(world.worker_with("b", keeping(60 * SECOND)).build(world.probe()).expect("valid"));
    let mut events = back.handle.events();
    let began = Instant::now();
    let reason = event(&mut events, |event| match event {
        Event::LeaseTaken { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason.await, ClaimReason::Expired);
    assert!((FAILOVER..FAILOVER + 2 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    sleep(2 * FAILOVER).await;
    assert_eq!(world.owners(), before);
    back.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_grace_the_leases_of_a_worker_that_does_not_come_back_are_taken() {
    let world = World::shards(8);
    let mut fleet = fleet(&world, 30 * SECOND).await;
    let stopped = Instant::now();
    fleet.remove("b").expect("runs").stop().await;
    until("a takeover", || !world.owners().contains(&"b".into())).await;
    let took = stopped.elapsed();
    assert!((40 * SECOND..45 * SECOND).contains(&took), "{took:?}");
    for worker in fleet.into_values() {
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_asked_for_is_handed_over_also_by_a_worker_that_keeps_its_own() {
    let world = World::shards(4);
    let first = run(world.worker_with("a", keeping(60 * SECOND)).build(world.probe()).expect("valid"));
    until("claims", || world.owners() == ["a", "a", "a", "a"]).await;
    sleep(FAILOVER).await;
    let second = run(world.worker_with("b", keeping(60 * SECOND)).build(world.probe()).expect("valid"));
    until("requests", || world.table.rows().iter().any(|row| row.checkpoint_owner.is_some())).await;
    let report = first.stop().await;
    assert_eq!(report.kept.len(), 2, "{report:?}");
    until("a spread", || world.owners().iter().filter(|owner| *owner == "b").count() == 2).await;
    sleep(3 * FAILOVER).await;
    assert_eq!(world.owners().iter().filter(|owner| *owner == "a").count(), 2);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn by_throughput_a_worker_with_a_hot_shard_holds_fewer_and_then_nothing_moves() {
    let world = World::shards(6);
    let config = Config { balance: Balance::Throughput, ..config() };
    let start = |name| run(world.worker_with(name, config.clone()).build(world.probe()).expect("valid"));
    let workers = ["a", "b"].map(start);
    let mut settled = None;
    for second in 0..600 {
        // The first shard brings as much as all others together.
        world.put(0, ["x".repeat(10_000)]);
        for shard in 1..6 {
            world.put(shard, ["x".repeat(2000)]);
        }
        sleep(SECOND).await;
        match second {
            300 => settled = Some(world.owners()),
            301.. => assert_eq!(settled, Some(world.owners()), "second {second}"),
            _ => {}
        }
    }
    let owners = world.owners();
    let hot = owners.iter().filter(|owner| **owner == owners[0]).count();
    assert!(hot <= 2, "{owners:?}");
    assert!(world.row(0).throughput_kbps.is_some_and(|kbps| (8.0..12.0).contains(&kbps)));
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn by_throughput_what_was_hot_counts_for_nothing_once_it_has_been_idle_for_long() {
    for heartbeat in [Heartbeat::Lease, Heartbeat::Worker] {
        let world = World::shards(6);
        let idle_time_between_reads = 10 * SECOND;
        let config = Config { balance: Balance::Throughput, heartbeat, idle_time_between_reads, ..config() };
        let start = |name| run(world.worker_with(name, config.clone()).build(world.probe()).expect("valid"));
        let workers = ["a", "b"].map(start);
        let beside = || {
            let owners = world.owners();
            owners.iter().filter(|owner| **owner == owners[0]).count() - 1
        };
        for _ in 0..180 {
            world.put(0, ["x".repeat(100_000)]);
            for shard in 1..6 {
                world.put(shard, ["x".repeat(2000)]);
            }
            sleep(10 * SECOND).await;
        }
        assert_eq!(beside(), 0, "{heartbeat:?}: one shard brings ten times as much as the others together");
        sleep(7200 * SECOND).await;
        assert_eq!(beside(), 2, "{heartbeat:?}: {:?}", world.table.rows());
        for worker in workers {
            worker.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_shards_bring_is_noted_in_rows_that_rest_within_a_minute_and_not_in_all_at_one_time() {
    let world = World::shards(20);
    let config = Config { balance: Balance::Throughput, heartbeat: Heartbeat::Worker, ..config() };
    // Nothing else is written: neither renewals nor checkpoints.
    let later = world.probe_with(|_, _| async { Ok(Verdict::AckLater) });
    (0..20).for_each(|shard| world.put(shard, ["x".repeat(100_000)]));
    let worker = run(world.worker_with("a", config).build(later).expect("valid"));
    until("claims", || world.owners().iter().filter(|owner| *owner == "a").count() == 20).await;
    let noted = || world.table.rows().iter().filter(|row| row.throughput_kbps.is_some()).count();
    sleep(36 * SECOND).await;
    let early = noted();
    assert!((4..=16).contains(&early), "{early} of 20");
    sleep(25 * SECOND).await;
    assert_eq!(noted(), 20);
    worker.crash().await;
}
