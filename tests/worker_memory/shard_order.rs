//! Shards that do not wait for their parents.

use std::collections::BTreeSet;

use kinesis_consumer::{Config, ShardContext, ShardOrder, Verdict};

use crate::world::{Running, SECOND, World, config, id, run, until};

fn at_once() -> Config {
    Config { shard_order: ShardOrder::None, ..config() }
}

/// A worker of which the first shard's processor never gets done.
fn behind(world: &World, config: Config) -> Running {
    let stuck = world.probe_with(|_, context: ShardContext| async move {
        if *context.shard() == id(0) {
            std::future::pending::<()>().await;
        }
        Ok(Verdict::Done)
    });
    run(world.worker_with("a", config).build(stuck).expect("valid"))
}

#[tokio::test(start_paused = true)]
async fn children_are_read_at_once_although_their_parent_is_behind() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = behind(&world, at_once());
    world.trace.wait_for(0, "batch 1").await;
    for count in [2, 4] {
        world.stream.update_shard_count(count);
        let doubled = tokio::time::Instant::now();
        (0..count).for_each(|shard| world.put(shard, [shard]));
        let last = 2 * count - 2;
        until(format!("shard {last}"), || {
            (last + 1 - count..=last).all(|n| world.trace.records(n).len() == 1)
        })
        .await;
        assert!(doubled.elapsed() < 25 * SECOND, "{:?}", doubled.elapsed());
    }
    assert!(!world.trace.of(0).contains(&"ended".to_owned()));
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn by_default_children_wait() {
    let world = World::shards(1);
    world.put(0, [1]);
    let worker = behind(&world, config());
    world.trace.wait_for(0, "batch 1").await;
    world.stream.update_shard_count(2);
    world.put(0, [2]);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(world.table.rows().len(), 1);
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_or_repeated_while_shards_are_split_and_merged_in_any_order() {
    let world = World::shards(2);
    let worker = run(world.worker_with("a", at_once()).build(world.probe()).expect("valid"));
    let mut next = 0;
    let mut put = || {
        for shard in 0..world.stream.open_shards().len() {
            world.put(shard, next..next + 5);
            next += 5;
        }
        next
    };
    for count in [4, 8, 4, 3, 6, 3, 4] {
        put();
        world.stream.update_shard_count(count);
        tokio::time::sleep(7 * SECOND).await;
    }
    let (next, made) = (put(), world.stream.shards().len());
    let all = || -> Vec<String> { (0..made).flat_map(|shard| world.trace.records(shard)).collect() };
    until("all records", || all().len() >= next).await;
    until("finished rows are gone", || world.table.rows().len() == world.stream.open_shards().len()).await;
    assert_eq!(all().len(), next, "none twice");
    assert_eq!(all().into_iter().collect::<BTreeSet<_>>().len(), next);
    worker.stop().await;
}
