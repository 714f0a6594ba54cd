//! What is downstream of the user's code is slow or away, for one shard or for all (F20, F21).

use std::{collections::BTreeMap, time::Duration};

use kinesis_consumer::{Config, ShardId};
use tokio::time::Instant;

use super::{
    fleet::{Setup, World},
    line::Quality,
    processor::Temper,
    scenarios::{SECOND, is_clean, reads_everything, settled},
};

in_both_modes!(
    a_stuck_handler_and_a_hot_shard_slow_no_other_shard_down,
    an_iterator_that_expired_while_the_stream_was_out_of_reach_brings_no_record_twice,
    code_that_waits_for_longer_than_iterators_live_is_given_nothing_twice_and_reads_little_ahead,
    code_that_waits_for_longer_than_records_are_kept_goes_on_with_what_is_left,
);

const WAITS: Temper = Temper {
    waits: true,
    waits_on: None,
    slow: 0,
    fails: 0.0,
    panics: 0.0,
    gives_up: 0.0,
    later: 0.0,
    halves: 0.0,
    durable: 0.0,
    prepares: 0.0,
    poison: None,
    stuck: false,
    stuck_on: None,
    pretends: false,
    hasty: false,
};

/// Workers that never give a shard up because its handler takes long.
async fn patient(setup: Setup, workers: usize) -> World {
    let config = Config { stall_timeout: 48 * 3600 * SECOND, ..setup.config };
    let mut world = settled(Setup { config, ..setup }, workers).await;
    reads_everything(&mut world, SECOND).await;
    world
}

/// The longest time from the arrival of a record until it is done, in two of the four shards of one worker.
async fn slowest(disturbed: bool) -> Duration {
    let mut world = patient(Setup::new(20, 4), 1).await;
    let mut keys: BTreeMap<ShardId, u32> = BTreeMap::new();
    keys.extend((0..40).map(|key| (world.put_key(key), key)));
    reads_everything(&mut world, SECOND).await;
    let [hot, stuck, one, another] = [0, 1, 2, 3].map(|n| keys[&ShardId::from(format!("shardId-{n:012}"))]);
    if disturbed {
        world.temper(0, Temper { stuck_on: Some(1), ..Temper::default() });
        world.put_key(stuck);
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        (0..if disturbed { 20 } else { 1 }).for_each(|_| drop(world.put_key(hot)));
        let watched = [world.put_key(one), world.put_key(another)];
        let put = Instant::now();
        while world.observer.unread().iter().any(|(shard, ..)| watched.contains(shard)) {
            assert!(put.elapsed() < 10 * SECOND, "it is never done");
            world.advance(5 * SECOND / 1000).await;
        }
        slowest = slowest.max(put.elapsed());
        world.advance(137 * SECOND / 1000).await;
    }
    is_clean(&world);
    slowest
}

/// F20: one handler is stuck, and one shard has twenty times the traffic.
async fn a_stuck_handler_and_a_hot_shard_slow_no_other_shard_down() {
    let (alone, beside) = (slowest(false).await, slowest(true).await);
    assert!(beside <= alone.mul_f64(1.1), "{beside:?}, and {alone:?} alone");
}

/// F21: the stream answers nothing for longer than an iterator lives.
async fn an_iterator_that_expired_while_the_stream_was_out_of_reach_brings_no_record_twice() {
    let mut world = patient(Setup::new(21, 1), 1).await;
    world.stream_line(0, Quality { deaf: true, ..Quality::default() });
    world.advance(400 * SECOND).await;
    world.put(30);
    world.stream_line(0, Quality::default());
    reads_everything(&mut world, 10 * SECOND).await;
    let counts = world.observer.counts();
    assert_eq!(counts.deliveries, counts.records);
}

/// F21: the handlers wait, with records in hand and more to come, for longer than an iterator lives.
async fn code_that_waits_for_longer_than_iterators_live_is_given_nothing_twice_and_reads_little_ahead() {
    const PAGE: u64 = 10 << 20;
    let setup = Setup { payload: 64 << 10, ..Setup::new(21, 4) };
    let config = Config { memory_budget: PAGE as usize, ..setup.config };
    let mut world = patient(Setup { config, ..setup }, 2).await;
    (0..2).for_each(|no| world.temper(no, WAITS));
    let before = [0, 1].map(|no| world.observer.read_bytes(no));
    // Four pages for each shard.
    for _ in 0..40 {
        world.put(64);
        world.advance(10 * SECOND).await;
    }
    for (no, before) in before.iter().enumerate() {
        let read = world.observer.read_bytes(no) - before;
        assert!(read <= 2 * PAGE + PAGE, "a page in hand for each of two shards, and the budget: {read}");
    }
    (0..2).for_each(|no| world.temper(no, Temper::default()));
    reads_everything(&mut world, 60 * SECOND).await;
    let counts = world.observer.counts();
    assert_eq!(counts.deliveries, counts.records);
    assert_eq!(world.running().len(), 2);
}

/// F21, F31: the handlers wait for longer than the stream keeps records.
async fn code_that_waits_for_longer_than_records_are_kept_goes_on_with_what_is_left() {
    let setup = Setup::new(22, 4);
    let config = Config { stall_timeout: 48 * 3600 * SECOND, ..setup.config };
    let mut world = World::new(Setup { config, ..setup });
    let _kept = world.stream.clone().with_retention(600 * SECOND);
    world.start("a");
    world.start("b");
    world.put(100);
    reads_everything(&mut world, 10 * SECOND).await;
    (0..2).for_each(|no| world.temper(no, WAITS));
    for _ in 0..150 {
        world.put(8);
        world.advance(10 * SECOND).await;
    }
    // Between the ages of two records.
    world.advance(5 * SECOND).await;
    world.learn_losses();
    let told: Vec<String> = world.observer.trace().lines.into_iter().map(|line| line.what).collect();
    for shard in world.stream.open_shards() {
        let line = format!("RetentionPassed {{ shard: {} }}", shard.id);
        assert!(told.contains(&line), "nothing is told of {}", shard.id);
    }
    (0..2).for_each(|no| world.temper(no, Temper::default()));
    reads_everything(&mut world, 5 * SECOND).await;
    let counts = world.observer.counts();
    // What was in hand when they began to wait, and the last ten minutes.
    assert!(counts.deliveries >= 100 + 59 * 8 && counts.deliveries < counts.records - 700, "{counts:?}");
}
