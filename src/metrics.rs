//! What a worker measures, and where it goes.
//!
//! A worker made with [`aws`](crate::WorkerBuilder::aws) publishes in CloudWatch, under the KCL's names, in
//! one call a minute; [`Config::metrics_level`](crate::Config::metrics_level) says how much of it, or none.
//! [`metrics`](crate::WorkerBuilder::metrics) adds sinks: `PrometheusSink` (feature `prometheus`), `OtelSink`
//! (feature `otel`), or a [`MetricsSink`] of your own. They get every value as it is measured, whatever the
//! level.
//!
//! Lag ([`Metric::MillisBehindLatest`]) is what the oldest unfinished read reported and the time since, taken
//! every ten seconds: it grows while a shard is stuck. [`Metric::FleetMillisBehindLatest`] is that of the worst
//! shard, where a shard that nobody holds counts with the time for which it has been seen without a holder.

#[cfg(feature = "cloudwatch")]
pub use crate::io::CloudWatchSink;
#[cfg(feature = "otel")]
pub use crate::io::OtelSink;
#[cfg(feature = "prometheus")]
pub use crate::io::PrometheusSink;
pub use crate::{
    core::metrics::{Kind, Metric, MetricsDimension, MetricsLevel, Origin, Sample, Scope, Unit},
    io::{MetricsError, MetricsSink},
};
