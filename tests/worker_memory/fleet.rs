//! Several workers: crashes, partitions, hand-offs, limits, and tables that change under them.

use std::collections::{BTreeMap, BTreeSet};

use kinesis_consumer::{
    Batch, Checkpoint, ClaimReason, Config, Event, Lease, Ordering, ShardContext, Verdict, WorkerError,
    io::faulty::{Faults, Op},
};
use tokio::{task::JoinSet, time::Instant};

use crate::world::{FAILOVER, SECOND, World, config, event, id, run, until};

/// How many leases each worker holds.
fn loads(world: &World) -> BTreeMap<String, usize> {
    let mut loads = BTreeMap::new();
    for owner in world.owners() {
        *loads.entry(owner).or_default() += 1;
    }
    loads
}

fn even(world: &World, workers: &[&str], each: usize) -> bool {
    loads(world) == workers.iter().map(|worker| ((*worker).to_owned(), each)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_crashed_worker_are_taken_once_failover_time_has_passed() {
    let world = World::shards(4);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claims", || even(&world, &["a"], 4)).await;
    let second = run(world.worker("b").build(world.probe()).expect("valid"));
    until("an even spread", || even(&world, &["a", "b"], 2)).await;
    tokio::time::sleep(FAILOVER).await;
    let last_write = Instant::now();
    first.crash().await;
    until("a takeover", || even(&world, &["b"], 4)).await;
    let took = last_write.elapsed();
    assert!((FAILOVER / 2..FAILOVER + 3 * SECOND / 2).contains(&took), "{took:?}");
    for shard in 0..4 {
        world.put(shard, [shard]);
    }
    for shard in 0..4 {
        world.checkpoint_at(shard, &shard.to_string()).await;
    }
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_stopped_worker_are_taken_at_once() {
    let world = World::shards(4);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    let second = run(world.worker("b").build(world.probe()).expect("valid"));
    until("an even spread", || even(&world, &["a", "b"], 2)).await;
    tokio::time::sleep(FAILOVER).await;
    let stopped = Instant::now();
    first.stop().await;
    until("a takeover", || even(&world, &["b"], 4)).await;
    assert!(stopped.elapsed() < 5 * SECOND / 2, "{:?}", stopped.elapsed());
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_joiner_gets_its_share_by_hand_off_without_loss_or_repeats() {
    let world = World::shards(4);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claims", || even(&world, &["a"], 4)).await;
    let mut total = 0;
    let mut put = |count: usize| {
        for shard in 0..4 {
            world.put(shard, total..total + count);
        }
        total += count;
        total
    };
    put(10);
    tokio::time::sleep(2 * SECOND).await;
    put(10);
    let joined = Instant::now();
    let second = run(world.worker("b").build(world.probe()).expect("valid"));
    let mut events = second.handle.events();
    while !even(&world, &["a", "b"], 2) {
        put(1);
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(joined.elapsed() < 5 * SECOND, "{:?}", joined.elapsed());
    let reason = event(&mut events, |event| match event {
        Event::LeaseTaken { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(reason.await, ClaimReason::HandedOver { .. }));
    let count = put(5);
    for shard in 0..4 {
        world.checkpoint_at(shard, &(count - 1).to_string()).await;
        let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        assert_eq!(world.trace.records(shard), expected, "shard {shard}");
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_notices_that_its_lease_was_stolen_and_drops_its_work() {
    let world = World::shards(1);
    world.put(0, [1]);
    let stuck = world.probe_with(|_, _| std::future::pending());
    let worker = run(world.worker("a").build(stuck).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    let stolen = Instant::now();
    let row = world.row(0);
    world.table.put_row(row.after(&row.claim(&"java".into())));
    world.trace.wait_for(0, "lost: another worker took it").await;
    assert!(stolen.elapsed() <= 2 * SECOND, "{:?}", stolen.elapsed());
    assert_eq!(world.owners(), ["java"]);
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_worker_cut_off_from_the_table_stops_before_another_begins() {
    let world = World::shards(2);
    world.put(0, 0..1);
    let cut_off = Faults::new(1);
    let busy = |name: &'static str| {
        let trace = world.trace.clone();
        world.probe_with(move |batch: Batch, context: ShardContext| {
            let (trace, shard) = (trace.clone(), batch.shard().clone());
            async move {
                // Work that never ends, and says so all the time.
                loop {
                    trace.add(&shard, format!("work by {name}"));
                    tokio::time::sleep(SECOND / 10).await;
                    let _ = context.shard();
                }
            }
        })
    };
    let first = run(world.cut_off_by(&cut_off, "a", config()).build(busy("a")).expect("valid"));
    world.trace.wait_for(0, "work by a").await;
    tokio::time::sleep(FAILOVER).await;
    let second = run(world
        .worker_with("b", Config { max_leases_for_worker: Some(2), ..config() })
        .build(busy("b"))
        .expect("valid"));
    tokio::time::sleep(SECOND / 2).await;
    cut_off.cut();
    world.trace.wait_for(0, "work by b").await;
    tokio::time::sleep(FAILOVER).await;
    let of = |who: &str| -> Vec<Instant> {
        let what = format!("work by {who}");
        world
            .trace
            .entries()
            .into_iter()
            .filter(|entry| entry.shard == id(0) && entry.what == what)
            .map(|entry| entry.at)
            .collect()
    };
    let (last, first_of_b) = (*of("a").last().expect("worked"), of("b")[0]);
    assert!(last < first_of_b, "both at work for {:?}", last - first_of_b);
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn leases_beyond_the_limit_are_left_to_others_and_named() {
    let world = World::shards(5);
    let limited = Config { max_leases_for_worker: Some(2), ..config() };
    let worker = world.worker_with("a", limited).build(world.probe()).expect("valid");
    let mut events = worker.handle().events();
    let first = run(worker);
    let left_over = event(&mut events, |event| match event {
        Event::LeftOver { shards } => Some(shards),
        _ => None,
    });
    let left_over: BTreeSet<_> = left_over.await.into_iter().collect();
    tokio::time::sleep(3 * FAILOVER).await;
    assert_eq!(loads(&world)["a"], 2);
    let free: BTreeSet<_> =
        world.table.rows().iter().filter(|row| row.owner.is_none()).map(|row| row.key.shard()).collect();
    assert_eq!((left_over.len(), left_over), (3, free));
    let second = run(world.worker("b").build(world.probe()).expect("valid"));
    until("the rest is taken", || loads(&world) == [("a".into(), 2), ("b".into(), 3)].into()).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_settled_fleet_never_moves_a_lease() {
    let world = World::shards(10);
    let workers = ["a", "b", "c"].map(|id| run(world.worker(id).build(world.probe()).expect("valid")));
    until("a spread", || {
        let loads = loads(&world);
        loads.len() == 3 && loads.values().all(|load| (3..=4).contains(load)) && !loads.contains_key("-")
    })
    .await;
    tokio::time::sleep(2 * FAILOVER).await;
    let before = world.owners();
    for _ in 0..300 {
        tokio::time::sleep(SECOND).await;
        assert_eq!(world.owners(), before);
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_id_that_is_in_use_is_refused_and_nothing_is_written() {
    let world = World::shards(2);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    until("claims", || even(&world, &["a"], 2)).await;
    let other = Faults::new(2);
    let second = run(world.cut_off_by(&other, "a", config()).build(world.probe()).expect("valid"));
    let error = second.end().await.expect_err("refused").to_string();
    assert!(error.contains("worker id a is in use") && error.contains("worker_id"), "{error}");
    // Each permission is tried once, on condition of what no row is.
    assert_eq!(
        [Op::WriteLease, Op::CreateLease, Op::DeleteLease, Op::HandOff].map(|op| other.calls(op)),
        [1, 1, 1, 0]
    );
    assert_eq!(first.stop().await.released.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_takes_over_from_a_dead_namesake() {
    let world = World::shards(2);
    world.put(0, [1]);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    first.crash().await;
    let began = Instant::now();
    let second = run(world.worker("a").build(world.probe()).expect("valid"));
    world.put(0, [2]);
    world.checkpoint_at(0, "2").await;
    assert!((FAILOVER..FAILOVER + 2 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(world.trace.batches(0), ["1", "2"]);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rows_deleted_under_a_worker_are_noticed_and_made_again() {
    let world = World::shards(2);
    world.put(0, 1..=3);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "3").await;
    world.table.remove_row(&world.row(0).key);
    world.trace.wait_for(0, "lost: its row was deleted").await;
    // No checkpoint is known any more, and nothing is skipped.
    world.checkpoint_at(0, "3").await;
    assert_eq!(world.trace.batches(0), ["1 2 3", "1 2 3"]);
    assert!(world.trace.of(1).len() <= 1, "{:?}", world.trace.of(1));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_dropped_under_two_workers_is_made_again_and_read_anew() {
    let world = World::shards(2);
    world.put(0, 1..=3);
    let workers = ["a", "b"].map(|id| run(world.worker(id).build(world.probe()).expect("valid")));
    world.checkpoint_at(0, "3").await;
    until("a spread", || even(&world, &["a", "b"], 1)).await;
    // Counters differ then from those of rows that are made anew.
    tokio::time::sleep(6 * FAILOVER).await;
    world.table.drop_table();
    world.checkpoint_at(0, "3").await;
    until("a spread", || even(&world, &["a", "b"], 1)).await;
    assert_eq!(world.trace.batches(0), ["1 2 3", "1 2 3"]);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stale_looks_at_the_table_lose_nothing() {
    let world = World::shards(4);
    world.table.set_scan_staleness(3 * SECOND);
    let first = run(world.worker("a").build(world.probe()).expect("valid"));
    let second = run(world.worker("b").each(Ordering::Shard, |_| async { Ok(()) }).expect("valid"));
    until("an even spread", || even(&world, &["a", "b"], 2)).await;
    tokio::time::sleep(6 * FAILOVER).await;
    assert!(even(&world, &["a", "b"], 2), "{:?}", loads(&world));
    let before = world.row(0).owner_switches;
    tokio::time::sleep(6 * FAILOVER).await;
    assert_eq!(world.row(0).owner_switches, before);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_table_shorter_than_failover_time_costs_nothing() {
    let world = World::shards(3);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    for n in 2..12 {
        world.faults.cut();
        tokio::time::sleep(FAILOVER * 2 / 5).await;
        world.faults.heal();
        world.put(0, [n]);
        tokio::time::sleep(3 * SECOND).await;
    }
    world.checkpoint_at(0, "11").await;
    let report = worker.stop().await;
    assert_eq!((report.records, report.lost.len()), (11, 0));
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_ends_half_a_second_before_a_lease_does_costs_nothing() {
    let world = World::shards(1);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    for _ in 0..20 {
        let before = world.find_row(0).map(|row| row.counter);
        until("a renewal", || world.find_row(0).map(|row| row.counter) > before).await;
        world.faults.cut();
        tokio::time::sleep(FAILOVER - SECOND / 2).await;
        world.faults.heal();
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!((world.row(0).owner_switches, worker.stop().await.lost.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_long_outage_the_worker_goes_on_where_it_stopped() {
    let world = World::shards(2);
    world.put(0, [1]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "1").await;
    world.faults.cut();
    world.trace.wait_for(0, "lost: it could not be renewed in time").await;
    tokio::time::sleep(600 * SECOND).await;
    world.put(0, [2]);
    world.faults.heal();
    let healed = Instant::now();
    world.checkpoint_at(0, "2").await;
    assert!(healed.elapsed() < FAILOVER * 2, "{:?}", healed.elapsed());
    assert_eq!(world.trace.batches(0), ["1", "2"]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ignores_its_lease_blocks_only_its_own_shard() {
    let world = World::shards(2);
    world.put(0, [1]);
    world.put(1, [2]);
    let probe = world.probe_with(|_, _| async { Ok(Verdict::AckLater) });
    let worker = run(world.worker("a").build(probe).expect("valid"));
    world.trace.wait_for_records(1, 1).await;
    world.put(1, [3]);
    world.trace.wait_for_records(1, 2).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_workers_with_one_id_that_start_together_one_is_refused_and_nothing_is_lost() {
    let world = World::shards(4);
    for shard in 0..4 {
        world.put(shard, ["before"]);
    }
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for seed in 1..=2 {
        let worker = world.worker("same").seed(seed).build(world.probe()).expect("valid");
        workers.spawn(run(worker).end());
    }
    let refused = workers.join_next().await.expect("a worker").expect("no panic");
    assert!(matches!(&refused, Err(WorkerError::WorkerIdInUse(id)) if id == "same"), "{refused:?}");
    assert!(began.elapsed() <= 2 * FAILOVER, "{:?}", began.elapsed());
    for shard in 0..4 {
        world.put(shard, ["after"]);
    }
    tokio::time::sleep(2 * FAILOVER).await;
    // Both may have noticed.
    if workers.try_join_next().is_some() {
        let worker = world.worker("same").build(world.probe()).expect("valid");
        workers.spawn(run(worker).end());
    }
    for shard in 0..4 {
        world.checkpoint_at(shard, "after").await;
        assert!(world.trace.records(shard).contains(&"before".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn leases_that_others_are_about_to_take_are_not_reported_as_left_over() {
    for (workers, limit) in [(3, 6), (2, 6), (4, 3)] {
        let world = World::shards(12);
        let limited = Config { max_leases_for_worker: Some(limit), ..config() };
        let (mut running, mut events) = (Vec::new(), Vec::new());
        for n in 0..workers {
            let worker = world.worker_with(&format!("w{n}"), limited.clone()).build(world.probe());
            let worker = run(worker.expect("valid"));
            events.push(worker.handle.events());
            running.push(worker);
        }
        tokio::time::sleep(6 * FAILOVER).await;
        assert!(!world.owners().contains(&"-".into()), "{workers} workers of {limit}: {:?}", world.owners());
        for worker in running {
            worker.stop().await;
        }
        for mut events in events {
            while let Some(event) = events.next().await {
                assert!(!matches!(event, Event::LeftOver { .. }), "{workers} workers of {limit}: {event:?}");
            }
        }
    }
}

/// A process under the name of `a` claims a lease, when it has expired, that another one has asked for.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_asked_for_and_is_claimed_by_a_namesake_is_not_taken_for_one_handed_over() {
    let world = World::shards(2);
    let held = |n: usize, counter| Lease {
        counter,
        owner: Some("b".into()),
        hands_over: Some("b#0123456789abcdef.1".into()),
        ..Lease::new(&world.shard(n), Checkpoint::TrimHorizon)
    };
    (0..2).for_each(|n| world.table.put_row(held(n, 1)));
    let worker = run(world.worker_with("a", config()).build(world.probe()).expect("valid"));
    let asked = || world.table.rows().into_iter().find(|row| row.checkpoint_owner.is_some());
    until("a request", || asked().is_some()).await;
    let row = asked().expect("a request");
    let claimed = Lease {
        counter: row.counter + 1,
        checkpoint_owner: None,
        hands_over: Some("a#fedcba9876543210.1".into()),
        ..row
    };
    world.table.put_row(claimed.clone());
    tokio::time::sleep(FAILOVER / 2).await;
    assert!(world.table.rows().contains(&claimed), "{:?}", world.table.rows());
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_row_of_another_stream_in_the_place_of_one_of_ours_makes_no_look_come_sooner() {
    for fresh in [false, true] {
        let world = World::shards(2);
        let worker = run(world.worker("a").build(world.probe()).expect("valid"));
        until("claims", || world.owners() == ["a", "a"]).await;
        let in_a_minute = async |op| {
            let before = world.faults.calls(op);
            tokio::time::sleep(60 * SECOND).await;
            world.faults.calls(op) - before
        };
        let usual = in_a_minute(Op::ListLeases).await;
        // One row, or all.
        for row in world.table.rows().into_iter().skip(usize::from(!fresh)) {
            let another = "arn:aws:kinesis:eu-west-1:123456789012:stream/another:1700000000";
            let stream = Some(another.into());
            world.table.put_row(Lease { stream, ..Lease::new(&row.key.shard(), Checkpoint::TrimHorizon) });
        }
        tokio::time::sleep(60 * SECOND).await;
        let looks = in_a_minute(Op::ListLeases).await;
        assert!(looks <= usual * 5 / 4, "{looks} looks in a minute, and {usual} before");
        assert_eq!(in_a_minute(Op::CreateLease).await, 0, "no row can be made");
        worker.crash().await;
    }
}
