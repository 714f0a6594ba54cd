//! A sink that keeps every value, for tests to look at.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::{
    core::{
        metrics::{Metric, Origin, Sample},
        shard::ShardId,
    },
    io::{MetricsError, MetricsSink},
};

/// Keeps every value that a worker measures. Clones share what they keep.
///
/// ```
/// use std::sync::Arc;
/// use kinesis_consumer::{io::memory::{MemoryLeaseStore, MemoryMetrics, MemoryStream}, metrics::Metric, Ordering, Worker};
///
/// let metrics = MemoryMetrics::new();
/// let worker = Worker::builder("app", "stream")
///     .source(Arc::new(MemoryStream::new("stream", 1)))
///     .lease_store(Arc::new(MemoryLeaseStore::new()))
///     .metrics(Arc::new(metrics.clone()))
///     .each(Ordering::Shard, |_| async { Ok(()) });
/// // … run it, then:
/// assert_eq!(metrics.sum(Metric::RecordsProcessed), 0.0);
/// # drop(worker);
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryMetrics(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    values: Vec<(Metric, Option<ShardId>, Option<&'static str>, f64)>,
    forgotten: Vec<ShardId>,
    flushes: usize,
}

impl MemoryMetrics {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Plain data: a test that panicked elsewhere left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All values of `metric`, oldest first.
    pub fn values(&self, metric: Metric) -> Vec<f64> {
        self.kept().values.iter().filter(|kept| kept.0 == metric).map(|kept| kept.3).collect()
    }

    /// All values of `metric` about `shard`, oldest first.
    pub fn values_of(&self, metric: Metric, shard: &ShardId) -> Vec<f64> {
        let kept = self.kept();
        let of = kept.values.iter().filter(|kept| kept.0 == metric && kept.1.as_ref() == Some(shard));
        of.map(|kept| kept.3).collect()
    }

    /// The outcomes that came with values of `metric`, oldest first.
    pub fn outcomes(&self, metric: Metric) -> Vec<&'static str> {
        self.kept().values.iter().filter(|kept| kept.0 == metric).filter_map(|kept| kept.2).collect()
    }

    /// The sum of the values of `metric`; 0 without any.
    pub fn sum(&self, metric: Metric) -> f64 {
        self.values(metric).iter().sum()
    }

    /// The last value of `metric`.
    pub fn last(&self, metric: Metric) -> Option<f64> {
        self.values(metric).last().copied()
    }

    /// The shards that have left the worker, in that order.
    pub fn forgotten(&self) -> Vec<ShardId> {
        self.kept().forgotten.clone()
    }

    /// How often values were published.
    pub fn flushes(&self) -> usize {
        self.kept().flushes
    }

    /// Forgets all values.
    pub fn clear(&self) {
        *self.kept() = Kept::default();
    }
}

#[async_trait]
impl MetricsSink for MemoryMetrics {
    fn record(&self, sample: &Sample<'_>) {
        let value = (sample.metric, sample.shard.cloned(), sample.outcome, sample.value);
        self.kept().values.push(value);
    }

    fn forget(&self, _: &Origin, shard: &ShardId) {
        self.kept().forgotten.push(shard.clone());
    }

    async fn flush(&self) -> Result<(), MetricsError> {
        self.kept().flushes += 1;
        Ok(())
    }
}
