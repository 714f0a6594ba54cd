//! What an operator does to leases while workers run: resets and evictions fence the holder.

use std::time::UNIX_EPOCH;

use kinesis_consumer::{
    Batch, Checkpoint, Config, InitialPosition, Lease, Reset, ShardContext, Verdict, io::LeaseStore,
};

use crate::world::{SECOND, World, config, run, until};

/// Writes to the n-th row as the operator's tool does: again, if the holder was faster.
async fn operate(world: &World, n: usize, write: impl Fn(&Lease) -> kinesis_consumer::LeaseWrite) {
    for _ in 0..10 {
        if world.table.write(&write(&world.row(n))).await.is_ok() {
            return;
        }
    }
    panic!("the row changes all the time");
}

fn to(to: Checkpoint, start_millis: Option<u64>) -> Reset {
    Reset { to, start_millis, at_millis: 1 }
}

#[tokio::test(start_paused = true)]
async fn a_reset_to_the_oldest_record_fences_the_holder_and_everything_comes_again() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "3").await;
    let before = world.row(0).counter;
    operate(&world, 0, |row| row.reset(to(Checkpoint::TrimHorizon, None))).await;
    assert_eq!(world.row(0).counter, before + 1);
    world.trace.wait_for_records(0, 6).await;
    assert_eq!(world.trace.records(0), ["1", "2", "3", "1", "2", "3"]);
    assert!(world.trace.of(0).contains(&"lost: another worker took it".to_owned()));
    world.checkpoint_at(0, "3").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_checkpoint_of_the_fenced_holder_goes_over_a_reset() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    // The holder acknowledges at the very moment when its lease is gone, and the work goes on for long.
    let slow = world.probe_with(|_: Batch, _: ShardContext| async {
        tokio::time::sleep(3 * SECOND).await;
        Ok(Verdict::Done)
    });
    let worker = run(world.worker("a").build(slow).expect("valid"));
    world.trace.wait_for_records(0, 3).await;
    operate(&world, 0, |row| row.reset(to(Checkpoint::TrimHorizon, None))).await;
    let fenced = world.row(0);
    until("the lease is claimed again", || world.row(0).owner.is_some()).await;
    assert_eq!(world.row(0).checkpoint, Checkpoint::TrimHorizon);
    assert_eq!(world.row(0).counter, fenced.counter + 1, "nothing was written between reset and claim");
    world.trace.wait_for_records(0, 6).await;
    world.checkpoint_at(0, "3").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_reset_to_what_comes_skips_the_past_although_the_application_began_in_it() {
    let world = World::shards(2);
    let latest = Config { initial_position: InitialPosition::Latest, ..config() };
    let worker = run(world.worker_with("a", latest.clone()).build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    world.put(0, [1]);
    world.checkpoint_at(0, "1").await;
    worker.stop().await;
    world.put(0, 2..=3);
    world.put(1, 12..=13);
    tokio::time::sleep(SECOND).await;
    let arrived = world.stream.records(&world.shard(0))[2].arrived_at();
    let now = arrived.duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64 + 500;
    for n in [0, 1] {
        operate(&world, n, |row| row.reset(to(Checkpoint::Latest, Some(now)))).await;
    }
    world.put(0, [4]);
    world.put(1, [14]);
    let worker = run(world.worker_with("b", latest).build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "4").await;
    world.checkpoint_at(1, "14").await;
    assert_eq!(
        (world.trace.records(0), world.trace.records(1)),
        (["1", "4"].map(String::from).to_vec(), vec!["14".to_owned()])
    );
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_reset_to_a_time_begins_there_and_leaves_the_start_of_the_others_alone() {
    let world = World::shards(2);
    world.put(0, 1..=2);
    tokio::time::sleep(5 * SECOND).await;
    world.put(0, 3..=4);
    world.put(1, [11]);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "4").await;
    world.checkpoint_at(1, "11").await;
    let third = world.stream.records(&world.shard(0))[2].arrived_at();
    let third = third.duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    operate(&world, 0, |row| row.reset(to(Checkpoint::AtTimestamp, Some(third)))).await;
    world.trace.wait_for_records(0, 6).await;
    world.checkpoint_at(0, "4").await;
    assert_eq!(world.trace.records(0), ["1", "2", "3", "4", "3", "4"]);
    assert_eq!(world.trace.records(1), ["11"]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_evicted_lease_goes_on_from_its_checkpoint() {
    let world = World::shards(1);
    world.put(0, 1..=3);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    world.checkpoint_at(0, "3").await;
    operate(&world, 0, Lease::evict).await;
    world.put(0, [4]);
    world.checkpoint_at(0, "4").await;
    assert_eq!(world.trace.records(0), ["1", "2", "3", "4"]);
    worker.stop().await;
}
