//! The OpenTelemetry sink through the real SDK: what its exporter gets of names, units, kinds, attributes and
//! values, as the KCL 3.5 has them.

use std::{collections::BTreeMap, sync::Arc};

use kinesis_consumer::{
    Ordering, ShardId,
    metrics::{Kind, Metric, MetricsSink, Origin, OtelSink, Sample, Scope},
    testing::TestStream,
};
use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, PeriodicReader, SdkMeterProvider, Temporality,
    data::{AggregatedMetrics, MetricData},
};

/// The SDK, with an exporter in memory.
struct Sdk {
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

/// One stream of values, as it is exported.
#[derive(Debug)]
struct Series {
    name: String,
    kind: &'static str,
    unit: String,
    attributes: BTreeMap<String, String>,
    /// The value, or the sum of a histogram.
    value: f64,
}

impl Series {
    fn is_of(&self, shard: &str) -> bool {
        self.attributes.get("aws.kinesis.shard.id").is_some_and(|id| id == shard)
    }
}

impl Sdk {
    fn new(temporality: Temporality) -> (Self, OtelSink) {
        let exporter = InMemoryMetricExporterBuilder::new().with_temporality(temporality).build();
        let reader = PeriodicReader::builder(exporter.clone()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let sink = OtelSink::new(&provider.meter("kinesis-consumer"));
        (Self { provider, exporter }, sink)
    }

    /// What the next export holds. A name that is there in two forms is a conflict.
    fn export(&self) -> Vec<Series> {
        self.exporter.reset();
        self.provider.force_flush().expect("exported");
        let exports = self.exporter.get_finished_metrics().expect("in memory");
        let metrics =
            exports.iter().flat_map(|export| export.scope_metrics()).flat_map(|scope| scope.metrics());
        let mut names = Vec::new();
        let mut all = Vec::new();
        for metric in metrics {
            assert!(!names.contains(&metric.name()), "{} is there in two forms", metric.name());
            names.push(metric.name());
            let (kind, points) = match metric.data() {
                AggregatedMetrics::U64(data) => points(data, |value| value as f64),
                AggregatedMetrics::I64(data) => points(data, |value| value as f64),
                AggregatedMetrics::F64(data) => points(data, |value| value),
            };
            let series = |(attributes, value)| Series {
                name: metric.name().to_owned(),
                kind,
                unit: metric.unit().to_owned(),
                attributes,
                value,
            };
            all.extend(points.into_iter().map(series));
        }
        all
    }
}

type Point = (BTreeMap<String, String>, f64);

fn points<T: Copy>(data: &MetricData<T>, number: impl Fn(T) -> f64) -> (&'static str, Vec<Point>) {
    match data {
        MetricData::Gauge(gauge) => {
            let points = gauge.data_points().map(|point| (text(point.attributes()), number(point.value())));
            ("gauge", points.collect())
        }
        MetricData::Sum(sum) => {
            assert!(sum.is_monotonic());
            let points = sum.data_points().map(|point| (text(point.attributes()), number(point.value())));
            ("counter", points.collect())
        }
        MetricData::Histogram(histogram) => {
            let points = histogram.data_points().map(|point| (text(point.attributes()), number(point.sum())));
            ("histogram", points.collect())
        }
        MetricData::ExponentialHistogram(_) => panic!("nobody asked for that"),
    }
}

fn text<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> BTreeMap<String, String> {
    attributes.map(|pair| (pair.key.to_string(), pair.value.as_str().into_owned())).collect()
}

fn origin() -> Origin {
    Origin::new("app", "arn:aws:kinesis:us-east-1:123456789012:stream/cart", "me")
}

#[test]
fn every_value_of_every_metric_arrives_in_the_form_of_its_kind() {
    let (sdk, sink) = Sdk::new(Temporality::Cumulative);
    let origin = origin();
    for metric in Metric::ALL {
        sink.record(&Sample::new(*metric, 5.0, &origin));
    }
    let all = sdk.export();
    assert_eq!(all.len(), Metric::ALL.len());
    assert!(all.iter().all(|series| series.value == 5.0), "{all:?}");
    assert!(all.iter().all(|series| series.name.starts_with("aws.kinesis.client.")), "{all:?}");
    for metric in Metric::ALL {
        let kind = match metric.kind() {
            Kind::Sum => "counter",
            Kind::Gauge => "gauge",
            Kind::Spread => "histogram",
        };
        let of = |series: &&Series| series.attributes["aws.kinesis.operation"] == metric.operation();
        assert!(all.iter().filter(of).any(|series| series.kind == kind), "{metric:?}");
    }
    let form = |name: &str| {
        let series = all.iter().find(|series| series.name == format!("aws.kinesis.client.{name}"));
        series.map(|series| (series.kind, series.unit.as_str()))
    };
    assert_eq!(form("current_leases"), Some(("gauge", "1")));
    assert_eq!(form("needed_leases"), Some(("gauge", "1")));
    assert_eq!(form("records_processed"), Some(("counter", "1")));
    assert_eq!(form("records.size"), Some(("counter", "By")));
    assert_eq!(form("consumer.lag.duration"), Some(("histogram", "ms")));
    assert_eq!(form("record_processor.process_records.duration"), Some(("histogram", "ms")));
    assert_eq!(form("workers"), Some(("gauge", "1")));
}

#[test]
fn values_carry_the_kcls_attributes() {
    let (sdk, sink) = Sdk::new(Temporality::Cumulative);
    let (origin, shard) = (origin(), ShardId::from("shardId-000000000003"));
    sink.record(&Sample::new(Metric::RecordsProcessed, 7.0, &origin).of_shard(&shard));
    sink.record(&Sample::new(Metric::CurrentLeases, 3.0, &origin));
    let shown = sdk.export().into_iter().map(|s| format!("{} {} {:?}", s.name, s.value, s.attributes));
    let mut shown: Vec<String> = shown.collect();
    shown.sort();
    let records = r#"aws.kinesis.client.records_processed 7 {"aws.kinesis.consumer.name": "me", "aws.kinesis.operation": "ProcessTask", "aws.kinesis.shard.id": "shardId-000000000003", "aws.kinesis.stream_name": "cart"}"#;
    let leases = r#"aws.kinesis.client.current_leases 3 {"aws.kinesis.consumer.name": "me", "aws.kinesis.operation": "RenewAllLeases", "aws.kinesis.stream_name": "cart"}"#;
    assert_eq!(shown, [leases, records]);
}

#[test]
fn a_shard_that_has_left_claims_nothing_and_goes_where_the_exporter_asks_for_what_is_new() {
    for (temporality, stays) in [(Temporality::Delta, false), (Temporality::Cumulative, true)] {
        let (sdk, sink) = Sdk::new(temporality);
        let (origin, shard) = (origin(), ShardId::from("shard-1"));
        let of_shards = Metric::ALL.iter().filter(|metric| metric.scope() == Scope::Shard);
        for metric in of_shards {
            sink.record(&Sample::new(*metric, 5.0, &origin).of_shard(&shard));
        }
        let before = sdk.export();
        assert!(before.iter().all(|series| series.is_of("shard-1")) && before.len() > 10, "{before:?}");
        // A level would go on being claimed for ever; what happened once stays true.
        assert!(before.iter().all(|series| series.kind != "gauge"), "{before:?}");
        sink.forget(&origin, &shard);
        let after = sdk.export();
        assert_eq!(!after.is_empty(), stays, "{temporality:?}: {after:?}");
        assert!(after.iter().all(|series| series.value == 5.0), "it stands still: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_worker_is_exported() {
    let (sdk, sink) = Sdk::new(Temporality::Cumulative);
    let sink: Arc<dyn MetricsSink> = Arc::new(sink);
    let stream = TestStream::new(2);
    for n in 0..5 {
        stream.put(&format!("customer-{n}"), "a payload");
    }
    let worker = stream
        .worker("a", |worker| worker.metrics(Arc::clone(&sink)).each(Ordering::Shard, |_| async { Ok(()) }));
    stream.all_done().await;
    worker.stop().await;
    let all = sdk.export();
    let sum = |name: &str| -> f64 {
        let of = all.iter().filter(|series| series.name == format!("aws.kinesis.client.{name}"));
        of.map(|series| series.value).sum()
    };
    assert_eq!(sum("records_processed"), 5.0, "{all:?}");
    assert_eq!(sum("workers"), 1.0);
    assert!(all.iter().any(|series| series.name.ends_with(".lag.duration")), "{all:?}");
}
