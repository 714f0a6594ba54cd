//! F24: the stream and the metrics are away together, and nothing else is. F31: records leave the stream before they
//! are processed.

use std::time::Duration;

use kinesis_consumer::io::faulty::{Fault, Op};

use super::{
    fleet::{Setup, World},
    processor::Temper,
    scenarios::{SECOND, is_clean, owned, reads_everything},
};

in_both_modes!(
    metrics_that_hang_for_ever_delay_no_record_and_no_stop,
    half_an_hour_without_the_stream_and_the_metrics_moves_no_lease_and_ends_in_reading,
    a_poisoned_shard_is_told_of_before_and_when_retention_overtakes_it_whoever_holds_it,
);

/// Two workers whose metrics can never be published.
async fn fleet(seed: u64) -> World {
    let mut world = World::new(Setup { measured: true, ..Setup::new(seed, 6) });
    for name in ["a", "b"] {
        let no = world.start(name);
        let never = Fault::Delay(Duration::from_secs(365 * 86_400));
        world.instances[no].metrics_faults.chance(Op::Flush, 1.0, never);
    }
    world.put(60);
    reads_everything(&mut world, 10 * SECOND).await;
    world.advance(10 * SECOND).await;
    world
}

async fn metrics_that_hang_for_ever_delay_no_record_and_no_stop() {
    let mut world = fleet(24).await;
    let moves = world.observer.moves();
    for _ in 0..300 {
        world.put(4);
        world.advance(SECOND).await;
    }
    reads_everything(&mut world, SECOND).await;
    assert_eq!(world.observer.moves(), moves, "leases moved");
    world.stop(0);
    assert!(world.until(4 * SECOND, |world| world.running() == [1] && owned(world, "b") == 6).await);
    is_clean(&world);
}

async fn half_an_hour_without_the_stream_and_the_metrics_moves_no_lease_and_ends_in_reading() {
    let mut world = fleet(25).await;
    let moves = world.observer.moves();
    (0..2).for_each(|no| world.instances[no].stream_faults.cut());
    for _ in 0..180 {
        world.put(2);
        // Each time the health of both is held against what the observer knows.
        world.advance(10 * SECOND).await;
    }
    assert_eq!(world.observer.moves(), moves, "leases moved");
    (0..2).for_each(|no| world.instances[no].stream_faults.heal());
    reads_everything(&mut world, 10 * SECOND).await;
    world.advance(5 * SECOND).await;
    is_clean(&world);
}

async fn a_poisoned_shard_is_told_of_before_and_when_retention_overtakes_it_whoever_holds_it() {
    const KEPT: Duration = Duration::from_secs(600);
    let mut world = World::new(Setup::new(31, 4));
    let _kept = world.stream.clone().with_retention(KEPT);
    world.setup.temper = Temper { poison: Some(2), ..Temper::default() };
    world.start("a");
    world.start("b");
    world.put(60);
    let start = world.observer.trace().lines.last().map_or(0, |line| line.at);
    // When it was first told, and by whom.
    let told = |world: &World, what: &str| {
        let trace = world.observer.trace();
        let line = trace.lines.iter().find(|line| line.what.starts_with(what))?;
        assert!(line.what.contains("shardId-000000000002"), "{}", line.what);
        Some(line.at - start)
    };
    for round in 0..70 {
        world.put(4);
        world.advance(10 * SECOND).await;
        if round == 20 {
            let holder =
                usize::from(world.table.rows()[2].holder().is_some_and(|holder| holder.as_str() == "b"));
            world.crash(holder).await;
        }
    }
    is_clean(&world);
    let near = told(&world, "RetentionNear").expect("told before");
    let passed = told(&world, "RetentionPassed").expect("told when it happened");
    assert!((480_000..500_000).contains(&near), "{near}");
    assert!((600_000..620_000).contains(&passed), "{passed}");
}
