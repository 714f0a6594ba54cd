//! The health of a worker: collects what its parts are doing, and tells when it changes.
//!
//! The rules are those of `core::health`. Parts only note what they do, which costs a lock; one task judges
//! about once a second, and writes the files for probes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::{select, sync::Notify};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock,
    core::{
        health::{self, Doing, Health, Phase, WorkerSigns},
        lease::LeaseKey,
    },
    worker::{
        events::{Event, Sender},
        health_file::HealthFile,
        shard_link::ShardLink,
    },
};

/// What the coordinator may need for one turn, besides the waits that it declares: many calls, each with a
/// time-out of its own.
const TURN: Duration = Duration::from_secs(60);

/// What the parts of a worker are doing. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Vitals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_age: Duration,
    signs: Mutex<Signs>,
    /// Rings when a probe should learn of it at once.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Signs {
    worker: WorkerSigns,
    shards: BTreeMap<LeaseKey, Weak<ShardLink>>,
}

impl Vitals {
    /// Those of a worker that is stale when a part of it has made no progress for `max_age`.
    pub(super) fn new(max_age: Duration) -> Self {
        Self(Arc::new(Inner { max_age, signs: Mutex::default(), changed: Notify::new() }))
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        // Plain data: a panic elsewhere leaves it whole.
        self.0.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.signs().worker.phase = phase;
        self.0.changed.notify_one();
    }

    /// The coordinator is at work.
    pub(super) fn turn(&self) {
        self.turn_until(clock::now());
    }

    /// The coordinator waits until then, and then needs its time for a turn.
    pub(super) fn turn_until(&self, until: Instant) {
        self.signs().worker.coordinator = Doing::Waiting { until: until + TURN };
    }

    /// The worker has ended: nothing is owed any more.
    pub(super) fn end(&self) {
        let mut signs = self.signs();
        signs.worker = WorkerSigns { phase: Phase::Stopping, ..WorkerSigns::default() };
        signs.shards.clear();
    }

    /// Whether the last call to the lease table was answered.
    pub(super) fn table_answers(&self, answers: bool) {
        let failing = &mut self.signs().worker.table_failing;
        match answers {
            true => *failing = None,
            false => {
                failing.get_or_insert_with(clock::now);
            }
        }
    }

    pub(super) fn hold(&self, key: LeaseKey, link: &Arc<ShardLink>) {
        self.signs().shards.insert(key, Arc::downgrade(link));
    }

    pub(super) fn let_go(&self, key: &LeaseKey) {
        self.signs().shards.remove(key);
    }

    /// How the worker is now.
    pub(super) fn assess(&self) -> Health {
        let now = clock::now();
        let signs = self.signs();
        let shards = signs.shards.values().filter_map(Weak::upgrade).map(|link| link.signs());
        health::assess(&signs.worker, shards, now, self.0.max_age)
    }

    /// Tells of every change, and keeps the files up to date, until `stop`; then removes them.
    pub(super) async fn watch(self, file: Option<HealthFile>, events: Sender, stop: CancellationToken) {
        let tenth = self.0.max_age / 10;
        // Without a file only the log waits for it.
        let period = if file.is_some() { tenth.min(Duration::from_secs(1)) } else { tenth * 3 };
        let mut writer = file.map(HealthFile::writer);
        let mut was_fresh = true;
        while !stop.is_cancelled() {
            let health = self.assess();
            if health.is_fresh() != was_fresh {
                was_fresh = health.is_fresh();
                tell(&health);
                events.send(Event::Health(health.clone()));
            }
            if let Some(writer) = &mut writer {
                let starting = self.signs().worker.phase == Phase::Starting;
                writer.write(&health, !starting).await;
            }
            select! {
                biased;
                () = stop.cancelled() => {}
                () = self.0.changed.notified() => {}
                () = clock::sleep(period) => {}
            }
        }
        if let Some(writer) = writer {
            writer.remove().await;
        }
    }
}

fn tell(health: &Health) {
    let Health { reason, shard, age, .. } = health;
    let shard = shard.as_ref().map(tracing::field::display);
    match health.is_fresh() {
        true => info!(%reason, "progress again"),
        false => warn!(%reason, shard, ?age, "no progress; a restart would help"),
    }
}
