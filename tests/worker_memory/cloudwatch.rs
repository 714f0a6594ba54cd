//! Metrics through the real client of CloudWatch, whose other end is here: what it is sent in ordinary
//! minutes, in an outage, without permission, and at the stop.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_cloudwatch::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use ciborium::Value;
use kinesis_consumer::{
    Config, Failure, Verdict,
    io::{
        faulty::{Fault, Op},
        memory::{MemoryMetrics, MemoryStream},
    },
    metrics::{Metric, MetricsDimension, MetricsLevel},
};
use tokio::time::Instant;

use crate::world::{Running, SECOND, World, config, payloads, run, until};

/// How CloudWatch answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Unreachable,
    /// It takes the call and never answers.
    Silent,
    Denying,
    Refusing,
}

#[derive(Clone, Debug, Default)]
struct CloudWatch(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    mood: Mood,
    calls: usize,
    /// The data of each call that went well, by name, operation and the other dimensions.
    taken: Vec<BTreeMap<String, Taken>>,
    namespaces: Vec<String>,
    /// What the list of the KCL's metrics says of each: operation, dimensions besides it, name and unit.
    identities: BTreeSet<[String; 4]>,
}

/// One datum.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Taken {
    count: f64,
    sum: f64,
}

impl CloudWatch {
    fn client(&self) -> aws_sdk_cloudwatch::Client {
        let connector = SharedHttpConnector::new(self.clone());
        let config = aws_sdk_cloudwatch::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(http_client_fn(move |_, _| connector.clone()));
        aws_sdk_cloudwatch::Client::from_conf(config.build())
    }

    fn is(&self, mood: Mood) {
        self.0.lock().expect("no panic").mood = mood;
    }

    fn calls(&self) -> usize {
        self.0.lock().expect("no panic").calls
    }

    fn taken(&self) -> Vec<BTreeMap<String, Taken>> {
        self.0.lock().expect("no panic").taken.clone()
    }

    /// The sum of one metric over all calls.
    fn sum(&self, of: &str) -> f64 {
        self.taken().iter().filter_map(|call| call.get(of)).map(|taken| taken.sum).sum()
    }
}

impl HttpConnector for CloudWatch {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut state = self.0.lock().expect("no panic");
        state.calls += 1;
        let refused = |code: &str| {
            let body = Value::Map(vec![("__type".into(), code.into())]);
            HttpConnectorFuture::ready(Ok(answer(400, &body)))
        };
        match state.mood {
            Mood::Unreachable => HttpConnectorFuture::ready(Err(ConnectorError::io("refused".into()))),
            Mood::Silent => HttpConnectorFuture::new(std::future::pending()),
            Mood::Denying => refused("AccessDeniedException"),
            Mood::Refusing => refused("InvalidParameterValueException"),
            Mood::Well => {
                let body = body(&request);
                let (namespace, data) = read(&body);
                state.identities.extend(identities(&body));
                state.namespaces.push(namespace);
                state.taken.push(data);
                HttpConnectorFuture::ready(Ok(answer(200, &Value::Map(Vec::new()))))
            }
        }
    }
}

fn answer(status: u16, body: &Value) -> HttpResponse {
    let mut bytes = Vec::new();
    ciborium::into_writer(body, &mut bytes).expect("in memory");
    let mut response = HttpResponse::new(status.try_into().expect("a status"), bytes.into());
    response.headers_mut().insert("content-type", "application/cbor");
    response.headers_mut().insert("smithy-protocol", "rpc-v2-cbor");
    response
}

fn body(request: &HttpRequest) -> Value {
    let bytes = request.body().bytes().expect("in memory");
    match request.headers().get("content-encoding") {
        Some("gzip") => ciborium::from_reader(flate2::read::GzDecoder::new(bytes)),
        _ => ciborium::from_reader(bytes),
    }
    .expect("CBOR")
}

fn read(body: &Value) -> (String, BTreeMap<String, Taken>) {
    let text = |value: &Value, key| field(value, key).and_then(Value::as_text).expect(key).to_owned();
    let list = |value: &Value, key| field(value, key).and_then(Value::as_array).cloned().expect(key);
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().expect("a list").iter().map(|value| value.as_float().expect("a number")).collect()
    };
    let data = list(body, "MetricData").into_iter().map(|datum| {
        let dimensions: Vec<_> =
            list(&datum, "Dimensions").iter().map(|dimension| text(dimension, "Value")).collect();
        let taken = match (field(&datum, "Values"), field(&datum, "StatisticValues")) {
            (Some(values), None) => {
                let counts = numbers(field(&datum, "Counts").expect("beside Values"));
                let sum = numbers(values).iter().zip(&counts).map(|(value, count)| value * count).sum();
                Taken { count: counts.iter().sum(), sum }
            }
            (None, Some(set)) => {
                let number = |key| field(set, key).and_then(Value::as_float).expect(key);
                Taken { count: number("SampleCount"), sum: number("Sum") }
            }
            both => panic!("{both:?}"),
        };
        (format!("{} {}", text(&datum, "MetricName"), dimensions.join(" ")), taken)
    });
    (text(body, "Namespace"), data.collect())
}

fn identities(body: &Value) -> Vec<[String; 4]> {
    let text = |value: &Value, key| field(value, key).and_then(Value::as_text).expect(key).to_owned();
    let data = field(body, "MetricData").and_then(Value::as_array).expect("data");
    let identity = |datum: &Value| {
        let dimensions = field(datum, "Dimensions").and_then(Value::as_array).expect("dimensions");
        let (mut operation, mut besides) = (String::new(), "-");
        for dimension in dimensions {
            match text(dimension, "Name").as_str() {
                "Operation" => operation = text(dimension, "Value"),
                "ShardId" => besides = "shard",
                "WorkerIdentifier" => besides = "worker",
                other => panic!("{other}"),
            }
        }
        [operation, besides.to_owned(), text(datum, "MetricName"), text(datum, "Unit")]
    };
    data.iter().map(identity).collect()
}

fn field<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let entries = value.as_map().expect("a map").iter();
    entries.into_iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
}

fn published(world: &World, cloudwatch: &CloudWatch, id: &str, config: Config) -> Running {
    let builder = world.worker_with(id, config).cloudwatch(cloudwatch.client());
    run(builder.build(world.probe()).expect("valid"))
}

/// What was logged above DEBUG, by this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn with(&self, words: &str) -> usize {
        let text = String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned();
        text.lines().filter(|line| line.contains(words)).count()
    }

    fn collect() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        (lines, tracing::subscriber::set_default(subscriber.finish()))
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_makes_one_call_a_minute_and_each_level_is_one_sample_in_it() {
    let (world, cloudwatch) = (World::shards(16), CloudWatch::default());
    world.put(3, 1..=30);
    let worker = published(&world, &cloudwatch, "a", config());
    tokio::time::sleep(SECOND * 600).await;
    let calls = cloudwatch.calls();
    assert!((10..=11).contains(&calls), "{calls} calls in ten minutes");
    for call in &cloudwatch.taken()[1..] {
        assert_eq!(call["CurrentLeases RenewAllLeases"], Taken { count: 1.0, sum: 16.0 });
        assert_eq!(call["TotalLeases TakeLeases"], Taken { count: 1.0, sum: 16.0 });
        assert_eq!(call["NeededLeases TakeLeases"], Taken { count: 1.0, sum: 0.0 });
        assert!(call.contains_key("MillisBehindLatest ApplicationTracker"), "{call:?}");
        assert!(call.len() < 30, "only what is at SUMMARY: {call:?}");
    }
    worker.stop().await;
    assert_eq!(cloudwatch.calls(), calls + 1, "the last values");
    assert_eq!(cloudwatch.sum("RecordsProcessed ProcessTask"), 30.0);
    let namespaces = cloudwatch.0.lock().expect("no panic").namespaces.clone();
    assert!(namespaces.iter().all(|name| name == "app"), "{namespaces:?}");
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_cloudwatch_cost_no_lease_no_delay_no_memory_and_no_count() {
    for mood in [Mood::Unreachable, Mood::Silent] {
        let (world, cloudwatch) = (World::shards(2), CloudWatch::default());
        let worker = published(&world, &cloudwatch, "a", config());
        let renewed = |n| world.row(n).counter;
        world.put(0, [0]);
        world.trace.wait_for_records(0, 1).await;
        until("a call", || cloudwatch.calls() > 0).await;
        let usual = cloudwatch.taken()[0].len();

        cloudwatch.is(mood);
        let (calls, counters) = (cloudwatch.calls(), [renewed(0), renewed(1)]);
        for n in 1..=600 {
            let put_at = Instant::now();
            world.put(n % 2, [n]);
            tokio::time::sleep_until(put_at + SECOND).await;
        }
        let tried = cloudwatch.calls() - calls;
        assert!((9..=11).contains(&tried), "{mood:?}: {tried} calls in ten minutes");
        assert!(renewed(0) > counters[0] + 100 && renewed(1) > counters[1] + 100, "{mood:?}: kept alive");
        world.trace.wait_for(1, "batch 599").await;
        for entry in world.trace.entries() {
            assert!(!entry.what.starts_with("lost"), "{mood:?}: {entry:?}");
        }
        let delivered: Vec<_> =
            world.trace.entries().into_iter().filter(|entry| entry.what.starts_with("batch")).collect();
        let gaps = delivered.windows(2).map(|pair| pair[1].at - pair[0].at);
        let longest = gaps.skip(1).max().expect("many");
        assert!(longest <= Duration::from_millis(2500), "{mood:?}: {longest:?} without a record");

        cloudwatch.is(Mood::Well);
        let before = cloudwatch.taken().len();
        until("it is published again", || cloudwatch.taken().len() > before).await;
        let first = &cloudwatch.taken()[before];
        // Those of the first minute include the start's.
        assert!(first.len() <= usual + 5, "{mood:?}: {} data after {usual}", first.len());
        assert_eq!(first["CurrentLeases RenewAllLeases"].count, 1.0, "{mood:?}: one level, the last");
        let report = worker.stop().await;
        assert_eq!(report.lost, [], "{mood:?}");
        assert_eq!(cloudwatch.sum("RecordsProcessed ProcessTask"), 601.0, "{mood:?}: no count is lost");
        assert_eq!(cloudwatch.sum("MetricsDropped MetricsPublisher"), 0.0, "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_is_said_once_and_the_worker_goes_on() {
    let (lines, _guard) = Lines::collect();
    let (world, cloudwatch) = (World::shards(1), CloudWatch::default());
    cloudwatch.is(Mood::Denying);
    let worker = published(&world, &cloudwatch, "a", config());
    tokio::time::sleep(SECOND * 600).await;
    world.put(0, [1]);
    world.trace.wait_for_records(0, 1).await;
    assert_eq!(lines.with("cloudwatch:PutMetricData"), 1);
    assert_eq!(lines.with("WARN"), 1);
    cloudwatch.is(Mood::Well);
    until("granted", || cloudwatch.sum("RecordsProcessed ProcessTask") == 1.0).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_dropped_and_counted() {
    let (world, cloudwatch) = (World::shards(1), CloudWatch::default());
    cloudwatch.is(Mood::Refusing);
    let worker = published(&world, &cloudwatch, "a", config());
    until("a call", || cloudwatch.calls() > 0).await;
    cloudwatch.is(Mood::Well);
    until("two more", || cloudwatch.taken().len() > 1).await;
    let dropped = cloudwatch.sum("MetricsDropped MetricsPublisher");
    assert!(dropped > 20.0, "{dropped}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_two_seconds_for_cloudwatch_and_no_longer() {
    let (world, cloudwatch) = (World::shards(1), CloudWatch::default());
    cloudwatch.is(Mood::Silent);
    let worker = published(&world, &cloudwatch, "a", config());
    world.put(0, [1]);
    world.trace.wait_for_records(0, 1).await;
    let asked = Instant::now();
    let report = worker.stop().await;
    assert_eq!(report.released.len(), 1);
    assert!(asked.elapsed() < SECOND * 3, "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn levels_and_dimensions_are_the_configurations() {
    let calls_of = async |config: Config| {
        let (world, cloudwatch) = (World::shards(2), CloudWatch::default());
        let worker = published(&world, &cloudwatch, "a", config);
        tokio::time::sleep(SECOND * 130).await;
        worker.stop().await;
        cloudwatch.taken()
    };
    let none = Config { metrics_level: MetricsLevel::None, ..config() };
    assert_eq!(calls_of(none).await, []);
    let all = Config {
        metrics_level: MetricsLevel::Detailed,
        metrics_dimensions: [MetricsDimension::Shard, MetricsDimension::Worker].into(),
        ..config()
    };
    let calls = calls_of(all).await;
    let last = &calls[calls.len() - 2];
    assert_eq!(last["CurrentLeases RenewAllLeases a"], Taken { count: 1.0, sum: 2.0 });
    for shard in 0..2 {
        let reads = &last[&format!("KinesisDataFetcher.getRecords.Success ProcessTask shardId-{shard:012}")];
        assert!((50.0..70.0).contains(&reads.sum), "{reads:?} a minute");
    }
    assert!(last.contains_key("MillisBehindLatest ApplicationTracker"), "of the fleet: {last:?}");
}

/// What the list of the KCL's metrics says is published at `level`.
fn listed(level: MetricsLevel) -> BTreeSet<[String; 4]> {
    let list = include_str!("../../src/core/testdata/kcl_metrics.txt").lines();
    let rows = list.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows = rows.filter_map(|line| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [operation, besides, name, unit, of, here] = fields[..] else { panic!("{line}") };
        let is_summary = of == "S" || here == "yes, summary";
        let wanted = !here.starts_with("no, ") && (is_summary || level == MetricsLevel::Detailed);
        wanted.then(|| [operation, besides, name, unit].map(str::to_owned))
    });
    rows.collect()
}

#[tokio::test(start_paused = true)]
async fn every_metric_on_the_list_is_published_by_workers_to_which_everything_happens() {
    for level in [MetricsLevel::Summary, MetricsLevel::Detailed] {
        let world = World::of(MemoryStream::new("stream", 2).with_iterator_lifetime(SECOND * 20));
        let cloudwatch = CloudWatch::default();
        let config = Config {
            metrics_level: level,
            metrics_dimensions: [MetricsDimension::Shard, MetricsDimension::Worker].into(),
            ..config()
        };
        let start = |id: &str| {
            // What happens is known from a second sink, which gets every level.
            let (all, tried) = (MemoryMetrics::new(), Arc::new(Mutex::new(false)));
            let builder = world.worker_with(id, config.clone()).metrics(Arc::new(all.clone()));
            let probe = world.probe_with(move |batch, _| {
                let payload = payloads(&batch).remove(0);
                let fails = payload == "fails once"
                    && !std::mem::replace(&mut *tried.lock().expect("no panic"), true);
                async move {
                    if payload == "slow" {
                        tokio::time::sleep(SECOND * 60).await;
                    }
                    if fails { Err(Failure::retry("not yet")) } else { Ok(Verdict::Done) }
                }
            });
            (run(builder.cloudwatch(cloudwatch.client()).build(probe).expect("valid")), all)
        };
        world.put(0, ["fails once"]);
        world.put(1, ["slow"]);
        // After the trial at the start.
        world.faults.next(Op::WriteLease, 1, Fault::Delay(Duration::ZERO));
        world.faults.next(Op::WriteLease, 1, Fault::Unavailable);
        let (first, of_first) = start("a");
        until("a claim that failed", || of_first.sum(Metric::UntakenLeases) > 0.0).await;
        until("a retry", || of_first.sum(Metric::Retries) > 0.0).await;
        // Read ahead, and no further until there is room.
        world.trace.wait_for_records(1, 1).await;
        world.put(1, ["next"]);
        until("an old iterator", || of_first.sum(Metric::ExpiredIterator) > 0.0).await;
        world.faults.next(Op::WriteLease, 1, Fault::LostReply);
        until("a row read again", || of_first.sum(Metric::GetLeaseSuccess) > 0.0).await;

        let (second, of_second) = start("b");
        until("handed over", || !of_second.values(Metric::HandOverTime).is_empty()).await;
        let mut stolen = world.row(0);
        (stolen.owner, stolen.counter) = (Some("somebody".into()), stolen.counter + 1);
        world.table.put_row(stolen);
        let lost = |metrics: &MemoryMetrics| metrics.sum(Metric::LostLeases) > 0.0;
        until("a lost lease", || lost(&of_first) || lost(&of_second)).await;

        world.stream.split(&world.shard(0));
        (0..3).for_each(|n| world.put(n, [n]));
        let deleted = |metrics: &MemoryMetrics| metrics.sum(Metric::DeleteLeaseSuccess) > 0.0;
        until("a row that is not needed", || deleted(&of_first) || deleted(&of_second)).await;

        let calls = cloudwatch.calls();
        until("all of it is published by both", || cloudwatch.calls() > calls + 3).await;
        cloudwatch.is(Mood::Refusing);
        let calls = cloudwatch.calls();
        until("a refused call", || cloudwatch.calls() > calls).await;
        cloudwatch.is(Mood::Well);
        let dropped = |metrics: &MemoryMetrics| metrics.sum(Metric::MetricsDropped) > 0.0;
        until("told of it", || dropped(&of_first) || dropped(&of_second)).await;
        first.stop().await;
        second.stop().await;

        let published = cloudwatch.0.lock().expect("no panic").identities.clone();
        let listed = listed(level);
        assert!(listed.len() > 25, "{listed:?}");
        let differ: Vec<_> = published.symmetric_difference(&listed).collect();
        assert!(differ.is_empty(), "{level:?}: published or listed, not both: {differ:?}");
    }
}
