//! Metrics through the OpenTelemetry API, under the KCL 3.5's names.
//!
//! Every value goes to its instrument at once; what is exported, where and when is for the SDK of the
//! user's binary to decide. KCL: `OtelMetricsFactory`.

use std::{collections::BTreeMap, fmt};

use opentelemetry::{
    KeyValue, StringValue,
    metrics::{Counter, Gauge, Histogram, Meter},
};

use crate::{
    core::metrics::{Kind, Metric, Sample, Unit, otel_name::otel_name},
    io::MetricsSink,
};

/// Records every metric in a [`Meter`], for example `opentelemetry::global::meter("kinesis-consumer")`.
///
/// Sums are counters, levels gauges, times histograms in milliseconds. Attributes: `aws.kinesis.operation`,
/// `aws.kinesis.stream_name`, `aws.kinesis.consumer.name` (the worker), and `aws.kinesis.shard.id` where a
/// value is about a shard.
///
/// No level is about a shard, so nothing goes on being claimed of one that has left: its sums and histograms
/// stand still. With delta temporality they leave with the next export. With cumulative temporality the SDK
/// exports them until the process ends: the API takes no series back, and a histogram has no observable form.
/// The SDK keeps 2,000 of them an instrument, and puts what is beyond under one; a
/// [view](https://docs.rs/opentelemetry_sdk/latest/opentelemetry_sdk/metrics/index.html) with another
/// cardinality limit, or without the shard, fits longer lives.
pub struct OtelSink {
    instruments: BTreeMap<Metric, Instrument>,
}

enum Instrument {
    Counter(Counter<u64>),
    Gauge(Gauge<u64>),
    Histogram(Histogram<f64>),
}

impl OtelSink {
    /// Records in `meter`.
    pub fn new(meter: &Meter) -> Self {
        let instruments = Metric::ALL.iter().map(|metric| (*metric, Instrument::new(meter, *metric)));
        Self { instruments: instruments.collect() }
    }
}

impl Instrument {
    /// Metrics of one name share what the SDK makes of it; `aws.kinesis.operation` tells them apart.
    fn new(meter: &Meter, metric: Metric) -> Self {
        let (name, help) = (otel_name(metric.name()), description(metric));
        let unit = match metric.unit() {
            Unit::Count => "1",
            Unit::Bytes => "By",
            Unit::Milliseconds => "ms",
        };
        match metric.kind() {
            Kind::Sum => {
                Self::Counter(meter.u64_counter(name).with_unit(unit).with_description(help).build())
            }
            Kind::Gauge => Self::Gauge(meter.u64_gauge(name).with_unit(unit).with_description(help).build()),
            Kind::Spread => {
                Self::Histogram(meter.f64_histogram(name).with_unit(unit).with_description(help).build())
            }
        }
    }
}

/// One for each name, though several operations have it: the SDK takes a second one for a conflict.
fn description(metric: Metric) -> &'static str {
    match metric.name() {
        "Success" => "How often the operation went well.",
        "Time" => "How long the operation took.",
        "MillisBehindLatest" => "How far processing is behind the tip, at least.",
        _ => metric.help(),
    }
}

impl MetricsSink for OtelSink {
    fn record(&self, sample: &Sample<'_>) {
        let origin = sample.origin;
        let mut attributes = vec![
            KeyValue::new("aws.kinesis.operation", sample.metric.operation()),
            KeyValue::new("aws.kinesis.stream_name", StringValue::from(origin.stream.clone())),
            KeyValue::new("aws.kinesis.consumer.name", origin.worker.as_str().to_owned()),
        ];
        if let Some(shard) = sample.shard {
            attributes.push(KeyValue::new("aws.kinesis.shard.id", shard.as_str().to_owned()));
        }
        match self.instruments.get(&sample.metric) {
            // A cast of a float stays within the integer's range.
            Some(Instrument::Counter(counter)) => counter.add(sample.value as u64, &attributes),
            Some(Instrument::Gauge(gauge)) => gauge.record(sample.value as u64, &attributes),
            Some(Instrument::Histogram(histogram)) => histogram.record(sample.value, &attributes),
            None => {}
        }
    }
}

/// Instruments have nothing to show.
impl fmt::Debug for OtelSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelSink").finish_non_exhaustive()
    }
}
