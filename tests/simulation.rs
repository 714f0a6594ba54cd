//! Fleets of workers under faults. `SIM_SEEDS=20000 cargo test --release --test simulation` runs so many
//! seeds; `SIM_SEED=7` repeats one and prints what happened.

mod sim;

use std::time::Duration;

use sim::fleet::{Setup, World};

#[tokio::test(start_paused = true)]
async fn two_workers_read_everything_although_one_crashes_and_comes_back() {
    let mut world = World::new(Setup::new(1, 4));
    world.start("a");
    world.start("b");
    world.put(100);
    world.advance(Duration::from_secs(3)).await;
    world.crash(0).await;
    world.put(100);
    world.advance(Duration::from_secs(1)).await;
    world.start("a");
    world.put(50);
    let read = world.until(Duration::from_secs(20), |world| world.observer.unread().is_empty()).await;
    let trace = world.observer.trace();
    let violations = world.observer.violations();
    assert!(read && violations.is_empty(), "{trace}\n{violations:#?}");
    assert_eq!(world.close().await, 0, "tasks are left");
}
