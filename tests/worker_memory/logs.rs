//! Log lines: none in a steady state, one a change, and a bounded number in an outage.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use kinesis_consumer::{Config, Failure};
use md5::{Digest, Md5};
use tokio::time::sleep;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::world::{SECOND, World, config, run, until};

/// The lines above DEBUG of this thread, which is that of the whole test.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    pub(crate) fn listen() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, guard)
    }

    /// How many lines with this message have come.
    pub(crate) fn of(&self, message: &str) -> usize {
        self.0.lock().expect("no panic").iter().filter(|(_, line)| line == message).count()
    }

    /// How many lines of each kind came since the last call, at this level or above.
    fn take(&self, least: Level) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for (level, message) in std::mem::take(&mut *self.0.lock().expect("no panic")) {
            if level <= least {
                *kinds.entry(message).or_default() += 1;
            }
        }
        kinds
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        if *event.metadata().level() <= Level::INFO {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().expect("no panic").push((*event.metadata().level(), message.0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_steady_hour_of_two_workers_is_no_line() {
    let (lines, _guard) = Lines::listen();
    let world = World::shards(4);
    let a = run(world.worker("a").build(world.probe()).expect("valid"));
    let b = run(world.worker("b").build(world.probe()).expect("valid"));
    until("an even spread", || world.owners().iter().filter(|owner| *owner == "a").count() == 2).await;
    sleep(10 * SECOND).await;
    assert!(!lines.take(Level::INFO).is_empty(), "the lines are seen");
    for n in 0..360 {
        world.put(n % 4, [n]);
        sleep(10 * SECOND).await;
    }
    assert_eq!(lines.take(Level::INFO), BTreeMap::new());
    assert_eq!(world.trace.records(3).len(), 90);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_moves_is_two_lines() {
    let (lines, _guard) = Lines::listen();
    let world = World::shards(8);
    let a = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(a.handle.ready().await);
    lines.take(Level::INFO);
    let b = run(world.worker("b").build(world.probe()).expect("valid"));
    until("an even spread", || world.owners().iter().filter(|owner| *owner == "b").count() == 4).await;
    sleep(60 * SECOND).await;
    let moved = lines.take(Level::INFO);
    let expected = [("lease ended".to_owned(), 4), ("lease taken".to_owned(), 4)];
    assert_eq!(moved, BTreeMap::from(expected));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_aws_are_at_most_a_line_a_minute_and_kind() {
    let (lines, _guard) = Lines::listen();
    let world = World::shards(16);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    lines.take(Level::INFO);
    world.faults.cut();
    sleep(600 * SECOND).await;
    let outage = lines.take(Level::WARN);
    assert!(outage.len() >= 2 && outage.values().all(|lines| *lines <= 10), "{outage:?}");
    world.faults.heal();
    until("all leases again", || worker.handle.health().leases == 16).await;
    sleep(60 * SECOND).await;
    let after = lines.take(Level::INFO);
    assert!(
        after.iter().all(|(kind, lines)| *lines <= if kind == "lease taken" { 16 } else { 1 }),
        "{after:?}"
    );
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_a_failing_processor_on_every_shard_are_at_most_a_line_a_minute() {
    let (lines, _guard) = Lines::listen();
    let world = World::shards(16);
    let config = Config { retry_delay_max: 5 * SECOND, ..config() };
    let failing = world.probe_with(|_, _| async { Err(Failure::retry("the database is down")) });
    let worker = run(world.worker_with("a", config).build(failing).expect("valid"));
    for shard in 0..16 {
        world.put(shard, [1]);
    }
    sleep(600 * SECOND).await;
    let failing = lines.take(Level::WARN);
    assert_eq!(failing.keys().collect::<Vec<_>>(), ["failed; trying again"]);
    assert!((9..=10).contains(&failing["failed; trying again"]), "{failing:?}");
    worker.stop().await;
}

/// An aggregated record of which one part can be read, and one names a key that is not in the record.
fn half_broken(payload: &str) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| [&[tag, u8::try_from(bytes.len()).expect("short")], bytes].concat();
    let part = |key: u8| field(0x1A, &[&[0x08, key][..], &field(0x1A, payload.as_bytes())].concat());
    let message = [field(0x0A, b"key"), part(0), part(7)].concat();
    [&[0xF3, 0x89, 0x9A, 0xC2][..], &message, &Md5::digest(&message)].concat()
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_broken_aggregates_on_every_shard_are_a_line_a_minute_and_cost_no_other_record() {
    let (lines, _guard) = Lines::listen();
    let world = World::shards(16);
    let worker = run(world.worker("a").build(world.probe()).expect("valid"));
    assert!(worker.handle.ready().await);
    lines.take(Level::INFO);
    let starts: Vec<u128> = world.stream.open_shards().iter().map(|shard| shard.hash_range.start).collect();
    for n in 0..600 {
        for start in &starts {
            // The whole record is put by a hash key; its parts have none, and no shard's range is all there is.
            world.stream.put_to(*start, "key", half_broken("dropped"));
        }
        (0..16).for_each(|shard| world.put(shard, [n]));
        sleep(SECOND).await;
    }
    world.checkpoint_at(3, "599").await;
    let said = lines.take(Level::INFO);
    assert_eq!(said.keys().collect::<Vec<_>>(), ["aggregated records of another shard, or broken, left out"]);
    assert!(said.values().all(|lines| (9..=11).contains(lines)), "{said:?}");
    for shard in 0..16 {
        let read = world.trace.records(shard);
        let plain: Vec<String> = read.iter().filter(|data| *data != "dropped").cloned().collect();
        assert_eq!(plain, (0..600).map(|n| n.to_string()).collect::<Vec<_>>(), "shard {shard}");
    }
    worker.stop().await;
}
