//! What the OpenTelemetry sink asks of an SDK: names, units, kinds and attributes, as the KCL 3.5 has them.
//!
//! The SDK's place is taken by instruments that write down every call.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use kinesis_consumer::{
    ShardId,
    metrics::{Kind, Metric, MetricsSink, Origin, OtelSink, Sample},
};
use opentelemetry::{
    KeyValue,
    metrics::{
        Counter, Gauge, Histogram, HistogramBuilder, InstrumentBuilder, InstrumentProvider, Meter,
        SyncInstrument,
    },
};

#[derive(Default)]
struct Recorded {
    /// Kind and unit of each instrument, by name; more than one are a conflict.
    instruments: BTreeMap<String, BTreeSet<(&'static str, String, String)>>,
    values: Vec<(String, f64, BTreeMap<String, String>)>,
}

/// An SDK that only writes down.
#[derive(Clone, Default)]
struct Sdk(Arc<Mutex<Recorded>>);

struct Instrument {
    sdk: Sdk,
    name: String,
}

impl Sdk {
    fn begin(
        &self,
        kind: &'static str,
        name: Cow<'static, str>,
        unit: Option<Cow<'static, str>>,
        description: Option<Cow<'static, str>>,
    ) -> Arc<Instrument> {
        let mut recorded = self.0.lock().expect("no panic");
        let form =
            (kind, unit.unwrap_or_default().into_owned(), description.unwrap_or_default().into_owned());
        recorded.instruments.entry(name.to_string()).or_default().insert(form);
        Arc::new(Instrument { sdk: self.clone(), name: name.into_owned() })
    }

    fn value(&self, name: &str, value: f64, attributes: &[KeyValue]) {
        let attributes =
            attributes.iter().map(|pair| (pair.key.to_string(), pair.value.as_str().into_owned())).collect();
        self.0.lock().expect("no panic").values.push((name.to_owned(), value, attributes));
    }
}

impl SyncInstrument<u64> for Instrument {
    fn measure(&self, value: u64, attributes: &[KeyValue]) {
        self.sdk.value(&self.name, value as f64, attributes);
    }
}

impl SyncInstrument<f64> for Instrument {
    fn measure(&self, value: f64, attributes: &[KeyValue]) {
        self.sdk.value(&self.name, value, attributes);
    }
}

impl InstrumentProvider for Sdk {
    fn u64_counter(&self, builder: InstrumentBuilder<'_, Counter<u64>>) -> Counter<u64> {
        Counter::new(self.begin("counter", builder.name, builder.unit, builder.description))
    }

    fn u64_gauge(&self, builder: InstrumentBuilder<'_, Gauge<u64>>) -> Gauge<u64> {
        Gauge::new(self.begin("gauge", builder.name, builder.unit, builder.description))
    }

    fn f64_histogram(&self, builder: HistogramBuilder<'_, Histogram<f64>>) -> Histogram<f64> {
        Histogram::new(self.begin("histogram", builder.name, builder.unit, builder.description))
    }
}

fn sink() -> (OtelSink, Sdk) {
    let sdk = Sdk::default();
    (OtelSink::new(&Meter::new(Arc::new(sdk.clone()))), sdk)
}

#[test]
fn every_metric_has_one_instrument_in_the_form_of_its_kind() {
    let (_, sdk) = sink();
    let recorded = sdk.0.lock().expect("no panic");
    for (name, forms) in &recorded.instruments {
        assert_eq!(forms.len(), 1, "{name} is registered in more than one form: {forms:?}");
        assert!(name.starts_with("aws.kinesis.client."), "{name}");
    }
    let form = |name: &str| {
        let forms = &recorded.instruments[&format!("aws.kinesis.client.{name}")];
        forms.first().map(|(kind, unit, _)| (*kind, unit.as_str())).expect("one")
    };
    assert_eq!(form("current_leases"), ("gauge", "1"));
    assert_eq!(form("needed_leases"), ("gauge", "1"));
    assert_eq!(form("records_processed"), ("counter", "1"));
    assert_eq!(form("records.size"), ("counter", "By"));
    assert_eq!(form("consumer.lag.duration"), ("histogram", "ms"));
    assert_eq!(form("record_processor.process_records.duration"), ("histogram", "ms"));
    assert_eq!(form("workers"), ("gauge", "1"));
}

#[test]
fn values_carry_the_kcls_attributes() {
    let (sink, sdk) = sink();
    let origin = Origin::new("app", "arn:aws:kinesis:us-east-1:123456789012:stream/cart", "me");
    let shard = ShardId::from("shardId-000000000003");
    sink.record(&Sample::new(Metric::RecordsProcessed, 7.0, &origin).of_shard(&shard));
    sink.record(&Sample::new(Metric::CurrentLeases, 3.0, &origin));
    let recorded = sdk.0.lock().expect("no panic");
    let shown: Vec<String> = recorded
        .values
        .iter()
        .map(|(name, value, attributes)| format!("{name} {value} {attributes:?}"))
        .collect();
    let records = r#"aws.kinesis.client.records_processed 7 {"aws.kinesis.consumer.name": "me", "aws.kinesis.operation": "ProcessTask", "aws.kinesis.shard.id": "shardId-000000000003", "aws.kinesis.stream_name": "cart"}"#;
    let leases = r#"aws.kinesis.client.current_leases 3 {"aws.kinesis.consumer.name": "me", "aws.kinesis.operation": "RenewAllLeases", "aws.kinesis.stream_name": "cart"}"#;
    assert_eq!(shown, [records, leases]);
}

#[test]
fn every_value_of_every_metric_arrives() {
    let (sink, sdk) = sink();
    let origin = Origin::new("app", "cart", "me");
    for metric in Metric::ALL {
        sink.record(&Sample::new(*metric, 5.0, &origin));
    }
    let recorded = sdk.0.lock().expect("no panic");
    assert_eq!(recorded.values.len(), Metric::ALL.len());
    assert!(recorded.values.iter().all(|(_, value, _)| *value == 5.0));
    assert!(Metric::ALL.iter().any(|metric| metric.kind() == Kind::Gauge));
}
