//! Spans as an OpenTelemetry exporter gets them: one trace from a producer through the worker.

#[path = "sim/aggregate.rs"]
mod aggregate;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kinesis_consumer::{
    Batch, Config, Failure, InitialPosition, Ordering, RecordProcessor, ShardContext, ShardStart,
    TraceContext, Tracing, Verdict, Worker, WorkerBuilder,
    io::memory::{MemoryLeaseStore, MemoryStream},
};
use opentelemetry::{
    Value,
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tokio::{task::JoinSet, time::timeout};
use tracing::{info_span, subscriber::DefaultGuard};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

use crate::aggregate::aggregate;

/// A stream and a table, and what was exported on this thread, which is that of the whole test.
struct World {
    stream: MemoryStream,
    table: MemoryLeaseStore,
    exporter: InMemorySpanExporter,
    _guard: DefaultGuard,
}

impl World {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        Self {
            stream: MemoryStream::new("stream", 1),
            table: MemoryLeaseStore::new(),
            exporter,
            _guard: tracing::subscriber::set_default(tracing_subscriber::registry().with(layer)),
        }
    }

    fn worker(&self) -> WorkerBuilder {
        Worker::builder("app", "stream")
            .source(Arc::new(self.stream.clone()))
            .lease_store(Arc::new(self.table.clone()))
            .config(Config {
                worker_id: Some("a".into()),
                initial_position: InitialPosition::TrimHorizon,
                ..Config::default()
            })
    }

    /// Puts a record in a span of its own, with its context in the payload, as a producer does.
    fn put(&self, number: u32) {
        self.stream.put("key", self.payload(number));
    }

    fn payload(&self, number: u32) -> Bytes {
        let span = info_span!("put", otel.kind = "producer");
        let mut headers = HashMap::new();
        let propagator: &dyn opentelemetry::propagation::TextMapPropagator = &TraceContextPropagator::new();
        propagator.inject_context(&span.context(), &mut headers);
        format!(r#"{{"number":{number},"traceparent":"{}"}}"#, headers["traceparent"]).into()
    }

    /// Runs a worker until that many spans of this name have been exported.
    async fn until(&self, worker: Worker, name: &str, count: usize) {
        let (handle, mut task) = (worker.handle(), JoinSet::new());
        task.spawn(worker.run());
        let done = async {
            while self.spans(name).len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(600), done).await.expect("the spans come");
        handle.shutdown().await;
    }

    fn spans(&self, name: &str) -> Vec<SpanData> {
        let spans = self.exporter.get_finished_spans().expect("exported");
        spans.into_iter().filter(|span| span.name == name).collect()
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
    found.map(|attribute| Value::as_str(&attribute.value).into_owned())
}

/// Trace and span of what a span is linked to.
fn links(span: &SpanData) -> Vec<(String, String)> {
    let ids = |link: &opentelemetry::trace::Link| {
        let context = &link.span_context;
        (context.trace_id().to_string(), context.span_id().to_string())
    };
    span.links.iter().map(ids).collect()
}

fn ids(span: &SpanData) -> (String, String) {
    (span.span_context.trace_id().to_string(), span.span_context.span_id().to_string())
}

#[tokio::test(start_paused = true)]
async fn each_record_is_a_span_linked_to_its_producers() {
    let world = World::new();
    world.put(1);
    world.put(2);
    world.stream.put("key", "no context");
    let worker = world.worker().tracing(Tracing::default());
    let worker = worker.each(Ordering::Shard, |_| async { Ok(()) }).expect("valid");
    world.until(worker, "checkpoint stream", 1).await;
    let (puts, processed) = (world.spans("put"), world.spans("process stream"));
    assert_eq!(processed.len(), 3, "a record without a context has a span too");
    for (span, put) in processed.iter().zip(&puts) {
        assert_eq!(links(span), [ids(put)]);
        assert_ne!(span.span_context.trace_id(), put.span_context.trace_id(), "linked, no child");
    }
    assert_eq!(links(&processed[2]), []);
    let span = &processed[0];
    assert_eq!((span.span_kind.clone(), &span.status), (SpanKind::Consumer, &Status::Unset));
    for (key, value) in [
        ("messaging.system", "aws_kinesis"),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", "stream"),
        ("messaging.destination.partition.id", "shardId-000000000000"),
        ("messaging.consumer.group.name", "app"),
        ("messaging.client.id", "a"),
    ] {
        assert_eq!(attribute(span, key).as_deref(), Some(value), "{key}");
    }
    assert!(attribute(span, "messaging.message.id").is_some());
    let polls = world.spans("poll stream");
    assert_eq!(polls.len(), 1, "an empty read makes no span");
    assert_eq!(attribute(&polls[0], "messaging.batch.message_count").as_deref(), Some("3"));
    assert_eq!(attribute(&polls[0], "messaging.operation.type").as_deref(), Some("receive"));
    assert_eq!(polls[0].span_kind, SpanKind::Client);
    let settled = world.spans("checkpoint stream");
    assert_eq!(attribute(&settled[0], "messaging.operation.type").as_deref(), Some("settle"));
}

#[tokio::test(start_paused = true)]
async fn a_record_can_be_a_child_of_its_producers_span() {
    let world = World::new();
    world.put(1);
    let worker = world.worker().tracing(Tracing::default().as_children());
    let worker = worker.each(Ordering::Shard, |_| async { Ok(()) }).expect("valid");
    world.until(worker, "process stream", 1).await;
    let (put, processed) = (&world.spans("put")[0], &world.spans("process stream")[0]);
    assert_eq!(processed.span_context.trace_id(), put.span_context.trace_id());
    assert_eq!(processed.parent_span_id, put.span_context.span_id());
    assert_eq!(links(processed), []);
}

/// Fails once.
struct Flaky(bool);

impl RecordProcessor for Flaky {
    async fn process(&mut self, _: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        match std::mem::replace(&mut self.0, true) {
            false => Err(Failure::retry("not yet")),
            true => Ok(Verdict::Done),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_span_linked_to_each_producer_and_each_try_one_of_its_own() {
    let world = World::new();
    for number in 0..3 {
        world.put(number);
    }
    let worker = world.worker().tracing(Tracing::default());
    let worker = worker.build(|_: ShardStart| async { Ok(Flaky(false)) }).expect("valid");
    world.until(worker, "process stream", 2).await;
    let puts: Vec<_> = world.spans("put").iter().map(ids).collect();
    let processed = world.spans("process stream");
    assert_eq!([links(&processed[0]), links(&processed[1])], [puts.clone(), puts]);
    assert!(matches!(processed[0].status, Status::Error { .. }));
    assert_eq!(attribute(&processed[0], "error.type").as_deref(), Some("retry"));
    assert_eq!(processed[1].status, Status::Unset);
}

#[tokio::test(start_paused = true)]
async fn each_user_record_of_an_aggregated_one_has_its_own_span_and_link() {
    for by_record in [true, false] {
        let world = World::new();
        let payloads = [world.payload(1), world.payload(2), Bytes::from_static(b"no context")];
        world.stream.put("key", aggregate("key", &payloads));
        let worker = world.worker().tracing(Tracing::default());
        let worker = match by_record {
            true => worker.each(Ordering::Shard, |_| async { Ok(()) }),
            false => worker.build(|_: ShardStart| async { Ok(Flaky(true)) }),
        };
        world.until(worker.expect("valid"), "checkpoint stream", 1).await;
        let puts: Vec<_> = world.spans("put").iter().map(ids).collect();
        let processed = world.spans("process stream");
        let linked: Vec<_> = processed.iter().map(links).collect();
        match by_record {
            true => {
                assert_eq!(linked, [vec![puts[0].clone()], vec![puts[1].clone()], vec![]]);
                let id = |span| attribute(span, "messaging.message.id").expect("an id");
                let ids: BTreeSet<String> = processed.iter().map(id).collect();
                assert_eq!(ids.len(), 3, "they share a number, not a position: {ids:?}");
            }
            false => assert_eq!(linked, [puts]),
        }
        let polled = attribute(&world.spans("poll stream")[0], "messaging.batch.message_count");
        assert_eq!(polled.as_deref(), Some("3"), "user records");
    }
}

#[tokio::test(start_paused = true)]
async fn contexts_are_found_by_ones_own_code_too() {
    let world = World::new();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.stream.put("key", format!("header {parent}"));
    let tracing = Tracing::with(|record| {
        let text = std::str::from_utf8(record.data()).ok()?;
        TraceContext::from_w3c(text.strip_prefix("header ")?, None)
    });
    let worker = world.worker().tracing(tracing);
    let worker = worker.each(Ordering::Shard, |_| async { Ok(()) }).expect("valid");
    world.until(worker, "process stream", 1).await;
    let expected = ("4bf92f3577b34da6a3ce929d0e0e4736".to_owned(), "00f067aa0ba902b7".to_owned());
    assert_eq!(links(&world.spans("process stream")[0]), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_not_asked_for_spans_makes_none() {
    let world = World::new();
    world.put(1);
    let seen = Arc::new(tokio::sync::Notify::new());
    let notify = seen.clone();
    let worker = world.worker().each(Ordering::Shard, move |_| {
        notify.notify_one();
        async { Ok(()) }
    });
    let worker = worker.expect("valid");
    let (handle, mut task) = (worker.handle(), JoinSet::new());
    task.spawn(worker.run());
    timeout(Duration::from_secs(60), seen.notified()).await.expect("processed");
    handle.shutdown().await;
    assert_eq!(world.exporter.get_finished_spans().expect("exported").len(), 1, "the producer's");
}
