//! What workers say of themselves by their metrics: it is true once nothing moves, for dashboards and scaling rest on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kinesis_consumer::{
    io::faulty::{Fault, Op},
    metrics::{Kind, Metric, MetricsError, MetricsSink, Origin, Sample},
};
use tokio::time::Instant;

use super::{
    fleet::{Setup, World},
    run::Player,
    sabotage::says,
    scenarios::{SECOND, is_clean},
};

/// Levels are measured so often.
const MEASURED_WITHIN: Duration = Duration::from_secs(12);
/// Looks that cost much are saved for; so long they may take, for a fleet that has had much to look at.
const LOOKED_WITHIN: Duration = Duration::from_secs(120);

/// By operation and name.
type Values = BTreeMap<(&'static str, &'static str), f64>;

/// The last value of each level, and the sum of what adds up, of one worker. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measures(Arc<Mutex<Measured>>);

#[derive(Debug, Default)]
struct Measured {
    values: Values,
    /// As they were when they were published last.
    published: Values,
}

impl Measures {
    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, metric: Metric) -> Option<f64> {
        self.lock().values.get(&(metric.operation(), metric.name())).copied()
    }

    fn published(&self, metric: Metric) -> Option<f64> {
        self.lock().published.get(&(metric.operation(), metric.name())).copied()
    }
}

#[async_trait]
impl MetricsSink for Measures {
    fn record(&self, sample: &Sample<'_>) {
        let mut measured = self.lock();
        let value = measured.values.entry((sample.metric.operation(), sample.metric.name())).or_default();
        *value = match sample.metric.kind() {
            Kind::Gauge => sample.value,
            _ => *value + sample.value,
        };
    }

    async fn flush(&self) -> Result<(), MetricsError> {
        let mut measured = self.lock();
        measured.published = measured.values.clone();
        Ok(())
    }
}

impl Player {
    /// The fleet is at rest, and its levels have been measured since.
    pub(super) async fn measures(&mut self) {
        let moves = self.world.observer.moves();
        // Levels are those of the last look.
        let since = Instant::now();
        let looked = |world: &World| world.running().iter().all(|no| world.observer.looked_since(*no, since));
        if !self.world.until(LOOKED_WITHIN, looked).await {
            return;
        }
        self.world.advance(MEASURED_WITHIN).await;
        // Shards that are read again come to their end.
        if self.world.observer.moves() == moves && !self.world.observer.is_any_on_its_way() {
            self.world.measures_are_true();
        }
    }
}

impl World {
    /// Whoever ended as it should has published all that it measured, and that it holds nothing any more.
    pub(super) fn last_measures_are_published(&self, stopped: &[usize]) {
        for instance in stopped.iter().map(|no| &self.instances[*no]) {
            let measured = instance.measures.get(Metric::RecordsProcessed);
            let published = instance.measures.published(Metric::RecordsProcessed);
            let held = instance.measures.published(Metric::CurrentLeases);
            if measured != published || held != Some(0.0) {
                let last = format!(
                    "published {published:?} of {measured:?} records at its end, and {held:?} leases"
                );
                self.observer.violate(&instance.seat.name, last);
            }
        }
    }

    /// What each worker says it holds, and what it says of the fleet.
    pub(super) fn measures_are_true(&self) {
        let rows = self.table.rows();
        let held_by = |name: &str| {
            rows.iter()
                .filter(|row| {
                    !row.is_finished() && row.holder().is_some_and(|holder| holder.as_str() == name)
                })
                .count()
        };
        let names: Vec<&str> =
            self.running().into_iter().map(|no| self.instances[no].seat.name.as_str()).collect();
        let all = rows.iter().filter(|row| !row.is_finished()).count();
        let holders = names.iter().filter(|name| held_by(name) > 0).count();
        for no in self.running() {
            let instance = &self.instances[no];
            let name = instance.seat.name.as_str();
            let held = held_by(name);
            let true_levels = [
                (Metric::CurrentLeases, held),
                (Metric::TotalLeases, all),
                (Metric::NumWorkers, holders + usize::from(held == 0)),
                (Metric::UnownedLeases, 0),
                (Metric::NeededLeases, 0),
                (Metric::LeaseSpillover, 0),
            ];
            for (metric, level) in true_levels {
                let said = instance.measures.get(metric);
                if said != Some(level as f64) {
                    self.observer
                        .violate(name, format!("measures {said:?} {metric:?} at rest, which are {level}"));
                }
            }
        }
        let processed =
            |instance: &super::instances::Instance| instance.measures.get(Metric::RecordsProcessed);
        let processed: f64 = self.instances.iter().filter_map(processed).sum();
        let delivered = self.observer.counts().deliveries as f64;
        if processed > delivered {
            self.observer
                .violate("fleet", format!("measures {processed} records processed of {delivered} delivered"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn levels_and_sums_that_are_not_true_are_caught() {
    let says_of = async |metric: Metric, value: f64| {
        let mut world = World::new(Setup { measured: true, ..Setup::new(33, 3) });
        world.start("a");
        world.put(60);
        world.advance(20 * SECOND).await;
        world.measures_are_true();
        is_clean(&world);
        let origin = Origin::new("app", "stream", "a");
        world.instances[0].measures.record(&Sample::new(metric, value, &origin));
        world.measures_are_true();
        world.observer.violations().join("\n")
    };
    says(&says_of(Metric::CurrentLeases, 2.0).await, "at rest, which are");
    says(&says_of(Metric::RecordsProcessed, 1.0).await, "records processed of");
}

#[tokio::test(start_paused = true)]
async fn last_values_that_are_not_published_are_caught() {
    for fails in [false, true] {
        let mut world = World::new(Setup { measured: true, ..Setup::new(34, 3) });
        world.start("a");
        world.put(60);
        world.advance(20 * SECOND).await;
        if fails {
            world.instances[0].metrics_faults.chance(Op::Flush, 1.0, Fault::Unavailable);
        }
        world.stop(0);
        assert!(world.until(10 * SECOND, |world| world.running().is_empty()).await);
        world.advance(5 * SECOND).await;
        world.last_measures_are_published(&[0]);
        if fails {
            says(&world.observer.violations().join("\n"), "records at its end, and");
        } else {
            is_clean(&world);
        }
    }
}
