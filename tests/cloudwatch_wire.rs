//! PutMetricData on the wire: what CloudWatch's real client sends to a server on loopback that keeps every
//! body as it came.

use std::{
    collections::BTreeSet,
    io::Read,
    sync::{Arc, Mutex},
};

use aws_sdk_cloudwatch::config::{BehaviorVersion, Builder, Credentials, Region};
use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::{HeaderMap, header::CONTENT_ENCODING},
};
use ciborium::Value;
use flate2::read::GzDecoder;
use kinesis_consumer::{
    ShardId,
    metrics::{
        CloudWatchSink, Kind, Metric, MetricsDimension, MetricsLevel, MetricsSink, Origin, Sample, Scope,
    },
};
use tokio::{net::TcpListener, task::JoinSet};

/// CloudWatch's limits of one call.
const MOST_DATA: usize = 1_000;
const MOST_BYTES: usize = 1_000_000;
/// What the SDK finds worth compressing: `request_min_compression_size_bytes`.
const LARGE: usize = 10_240;

/// One call, as it came.
struct Call {
    encoding: Option<String>,
    body: Bytes,
}

impl Call {
    fn is_compressed(&self) -> bool {
        assert!(self.encoding.as_deref().is_none_or(|encoding| encoding == "gzip"), "{:?}", self.encoding);
        self.encoding.is_some()
    }

    fn inflated(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        match self.is_compressed() {
            true => GzDecoder::new(&*self.body).read_to_end(&mut plain).expect("gzip"),
            false => (&*self.body).read_to_end(&mut plain).expect("in memory"),
        };
        plain
    }

    /// How many data it carries, none of them with more than 150 values.
    fn data(&self) -> usize {
        let body: Value = ciborium::from_reader(&*self.inflated()).expect("CBOR");
        let data = field(&body, "MetricData").and_then(Value::as_array).cloned().expect("data");
        for values in data.iter().filter_map(|datum| field(datum, "Values")?.as_array()) {
            assert!(values.len() <= 150, "{} values in one datum", values.len());
        }
        data.len()
    }
}

fn field<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let mut entries = value.as_map()?.iter();
    entries.find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
}

/// A CloudWatch that takes everything.
#[derive(Default)]
struct Server {
    calls: Arc<Mutex<Vec<Call>>>,
    tasks: JoinSet<()>,
}

impl Server {
    /// A sink with all dimensions at `SUMMARY`, whose calls come here.
    async fn sink(&mut self, set: impl FnOnce(Builder) -> Builder) -> CloudWatchSink {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let calls = Arc::clone(&self.calls);
        let take = async move |headers: HeaderMap, body: Bytes| {
            let encoding =
                headers.get(CONTENT_ENCODING).map(|value| value.to_str().expect("ASCII").to_owned());
            calls.lock().expect("no panic").push(Call { encoding, body });
            // An empty map.
            ([("content-type", "application/cbor"), ("smithy-protocol", "rpc-v2-cbor")], &b"\xa0"[..])
        };
        let router = Router::new().fallback(take).layer(DefaultBodyLimit::disable());
        self.tasks.spawn(async move { axum::serve(listener, router).await.expect("serves") });
        let config = aws_sdk_cloudwatch::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(format!("http://{address}"));
        let client = aws_sdk_cloudwatch::Client::from_conf(set(config).build());
        let dimensions = BTreeSet::from([MetricsDimension::Shard, MetricsDimension::Worker]);
        CloudWatchSink::new(client, "app", MetricsLevel::Summary, dimensions)
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().expect("no panic"))
    }
}

/// Many data, and many large ones: 2,500 shards, of which 200 were busy. Says how many data there are.
fn load(sink: &CloudWatchSink) -> usize {
    let origin = Origin::new("app", "stream", "me");
    let shard = |n: usize| ShardId::from(format!("shardId-{n:012}").as_str());
    for shard in (0..2_500).map(shard) {
        sink.record(&Sample::new(Metric::RecordsProcessed, 1.0, &origin).of_shard(&shard));
    }
    let times = |metric: &&Metric| {
        let wanted = metric.level() == MetricsLevel::Summary && metric.scope() == Scope::Shard;
        wanted && metric.kind() == Kind::Spread
    };
    let times: Vec<&Metric> = Metric::ALL.iter().filter(times).collect();
    // As many different ones as are kept, of the greatest number of digits.
    let values: Vec<f64> = (10..160).map(|n| f64::from(n) * if n < 100 { 0.1 } else { 10.0 }).collect();
    for shard in (0..200).map(shard) {
        for (metric, value) in times.iter().flat_map(|metric| values.iter().map(move |value| (metric, value)))
        {
            sink.record(&Sample::new(**metric, *value, &origin).of_shard(&shard));
        }
    }
    2_500 + 200 * times.len()
}

#[tokio::test]
async fn large_calls_are_compressed_and_each_holds_the_limits_before_that_too() {
    let mut server = Server::default();
    let sink = server.sink(|config| config).await;
    let data = load(&sink);
    sink.flush().await.expect("taken");
    let calls = server.calls();
    for call in &calls {
        let (sent, plain) = (call.body.len(), call.inflated().len());
        println!(
            "{} data, {plain} bytes, {sent} on the wire, compressed: {}",
            call.data(),
            call.is_compressed()
        );
        assert!(call.data() <= MOST_DATA && plain <= MOST_BYTES, "{} data, {plain} bytes", call.data());
        assert_eq!(call.is_compressed(), plain >= LARGE, "{plain} bytes");
        assert!(sent <= plain / 4 || !call.is_compressed(), "{sent} of {plain}");
    }
    assert!(calls.iter().any(|call| call.data() == MOST_DATA), "one is full by number");
    assert!(calls.iter().any(|call| call.inflated().len() > MOST_BYTES * 3 / 4), "one is full by size");
    assert_eq!(calls.iter().map(Call::data).sum::<usize>(), data, "nothing twice, nothing left out");
    assert_eq!(sink.dropped(), 0);
}

#[tokio::test]
async fn a_call_that_is_small_goes_as_it_is() {
    let mut server = Server::default();
    let sink = server.sink(|config| config).await;
    let origin = Origin::new("app", "stream", "me");
    for metric in Metric::ALL {
        sink.record(&Sample::new(*metric, 1.0, &origin));
    }
    sink.flush().await.expect("taken");
    let calls = server.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].body.len() < LARGE && !calls[0].is_compressed(), "{} bytes", calls[0].body.len());
}

#[tokio::test]
async fn the_limits_hold_without_compression_where_the_aws_configuration_turns_it_off() {
    let mut server = Server::default();
    let sink = server.sink(|config| config.disable_request_compression(true)).await;
    let data = load(&sink);
    sink.flush().await.expect("taken");
    let calls = server.calls();
    for call in &calls {
        assert!(!call.is_compressed());
        assert!(call.data() <= MOST_DATA && call.body.len() <= MOST_BYTES, "{} bytes", call.body.len());
    }
    assert_eq!(calls.iter().map(Call::data).sum::<usize>(), data);
}
