//! Metrics in CloudWatch: merged for a minute, packed into as few calls as the limits allow.
//!
//! One try a call: what fails goes with the next minute's values, so nothing is tried in a hurry and no
//! count is lost. The SDK compresses large bodies. KCL: `CloudWatchMetricsPublisher`, which makes a call for
//! every twenty data and drops what fails.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_cloudwatch::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::put_metric_data::PutMetricDataError,
    primitives::DateTime,
    types::{Dimension, MetricDatum, StandardUnit, StatisticSet},
};

use crate::{
    clock,
    core::metrics::{
        MetricsDimension, MetricsLevel, Sample, Unit,
        buffer::{Buffer, CAPACITY, Datum},
    },
    io::{
        MetricsError, MetricsSink,
        sdk_client::tried_once,
        sdk_error::{cause, is_denied},
    },
};

/// How long one call may take. KCL: `PUT_TIMEOUT_MILLIS`, 5 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Error codes that the same data would meet again.
const REFUSED: [&str; 6] = [
    "InvalidParameterCombination",
    "InvalidParameterCombinationException",
    "InvalidParameterValue",
    "InvalidParameterValueException",
    "MissingParameter",
    "ValidationError",
];

/// Publishes what one worker measures in CloudWatch, with the permission `cloudwatch:PutMetricData` and no other.
/// A second worker needs a sink of its own: its leases would stand for the first one's.
///
/// A call has at most 1,000 data and 900 KB before compression: CloudWatch takes 1 MB, and does not say of
/// which form. The SDK sends bodies of 10 KB and more through gzip, unless the AWS configuration says otherwise
/// (`AWS_DISABLE_REQUEST_COMPRESSION`, `AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES`).
///
/// What waits is bounded: 10,000 metrics of shards, beside the worker's own. Values of further shards are dropped
/// and counted in `MetricsDropped`.
pub struct CloudWatchSink {
    client: Client,
    namespace: String,
    buffer: Mutex<Buffer>,
}

impl CloudWatchSink {
    /// Publishes what `level` and `dimensions` ask for, in `namespace`. Makes no call.
    ///
    /// Takes credentials, region and endpoint from `client`, but neither its retries nor its time-outs.
    #[expect(clippy::needless_pass_by_value, reason = "clients are handed over as everywhere in the SDK")]
    pub fn new(
        client: Client,
        namespace: impl Into<String>,
        level: MetricsLevel,
        dimensions: BTreeSet<MetricsDimension>,
    ) -> Self {
        let buffer = Mutex::new(Buffer::new(level, dimensions, CAPACITY));
        Self { client: tried_once!(client, CALL_TIMEOUT), namespace: namespace.into(), buffer }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        // Plain data: a panic elsewhere leaves it whole.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn put(&self, part: &[Datum], at: DateTime) -> Result<(), MetricsError> {
        let data = part.iter().map(|datum| metric_datum(datum, at)).collect();
        let request = self.client.put_metric_data().namespace(&self.namespace).set_metric_data(Some(data));
        request.send().await.map(drop).map_err(meaning)
    }
}

#[async_trait]
impl MetricsSink for CloudWatchSink {
    fn record(&self, sample: &Sample<'_>) {
        self.buffer().add(sample);
    }

    async fn flush(&self) -> Result<(), MetricsError> {
        let mut parts = Waiting { sink: self, parts: self.buffer().take() };
        let at = DateTime::from(clock::wall());
        while let Some(part) = parts.parts.last() {
            match self.put(part, at).await {
                Ok(()) => drop(parts.parts.pop()),
                Err(error @ MetricsError::Refused(_)) => {
                    let part = parts.parts.pop().unwrap_or_default();
                    self.buffer().drop_data(&part);
                    return Err(error);
                }
                // One time-out a minute is enough: the others wait as well.
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn dropped(&self) -> u64 {
        self.buffer().take_dropped()
    }
}

/// The parts that are not published yet. Whatever ends the call, they go back.
struct Waiting<'a> {
    sink: &'a CloudWatchSink,
    parts: Vec<Vec<Datum>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        for part in std::mem::take(&mut self.parts) {
            self.sink.buffer().put_back(part);
        }
    }
}

/// The namespace; a client has nothing to show.
impl fmt::Debug for CloudWatchSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudWatchSink").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

fn metric_datum(datum: &Datum, at: DateTime) -> MetricDatum {
    let dimension = |(name, value)| Dimension::builder().name(name).value(value).build();
    let statistics = &datum.statistics;
    let unit = match datum.key.metric.unit() {
        Unit::Count => StandardUnit::Count,
        Unit::Bytes => StandardUnit::Bytes,
        Unit::Milliseconds => StandardUnit::Milliseconds,
    };
    let of = MetricDatum::builder()
        .metric_name(datum.key.metric.name())
        .set_dimensions(Some(datum.key.dimensions().map(dimension).collect()))
        .timestamp(at)
        .unit(unit);
    if let Some(values) = statistics.values() {
        let (values, counts) = values.map(|(value, count)| (value, count as f64)).unzip();
        return of.set_values(Some(values)).set_counts(Some(counts)).build();
    }
    let set = StatisticSet::builder()
        .sample_count(statistics.count as f64)
        .sum(statistics.sum)
        .minimum(statistics.min)
        .maximum(statistics.max);
    of.statistic_values(set.build()).build()
}

fn meaning(error: SdkError<PutMetricDataError>) -> MetricsError {
    match error.code() {
        Some(code) if REFUSED.contains(&code) => MetricsError::Refused(cause(error)),
        _ if is_denied(&error) => MetricsError::Denied(cause(error)),
        _ => MetricsError::Unavailable(cause(error)),
    }
}
