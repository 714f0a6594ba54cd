//! One trace from the producer's span to the worker's, without an AWS account.
//!
//! `cargo run --example tracing` puts three records, each in a span whose context travels in the payload, lets a
//! worker process them, and prints which spans were exported and how they hang together.

use std::{collections::HashMap, error::Error, time::Duration};

use kinesis_consumer::{Config, InitialPosition, Ordering, Tracing, Worker, local::LocalAws};
use opentelemetry::{propagation::TextMapPropagator, trace::TracerProvider};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tracing::info_span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Yours exports to a collector: `with_batch_exporter(…)` of the crate opentelemetry-otlp.
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("cart"));
    // The AWS SDK makes spans of its own, a dozen a call, which would fill the screen.
    let ours = |target: &str| target.starts_with("kinesis_consumer") || target == module_path!();
    let layer = layer.with_filter(filter_fn(move |metadata| ours(metadata.target())));
    tracing_subscriber::registry().with(layer).init();

    let aws = LocalAws::start().await?;
    aws.create_stream("cart-queue", 1);
    for number in 1..=3 {
        produce(&aws, number);
    }

    let (done, mut processed) = tokio::sync::mpsc::channel(1);
    let worker = Worker::builder("cart-worker", "cart-queue")
        .kinesis(aws.kinesis_client())
        .dynamodb(aws.dynamodb_client())
        .config(Config { initial_position: InitialPosition::TrimHorizon, ..Config::default() })
        // This is all: contexts are found at the top level of JSON payloads, W3C's or Datadog's.
        .tracing(Tracing::default())
        .each(Ordering::Shard, move |record| {
            let done = done.clone();
            async move {
                // What your code does here is inside the span of the record.
                let span = info_span!("update cart database");
                let _entered = span.enter();
                Ok(done.try_send(record).map(drop)?)
            }
        })?;
    let all = async {
        for _ in 0..3 {
            let _ = tokio::time::timeout(Duration::from_secs(30), processed.recv()).await;
        }
    };
    worker.run_until(all).await?;

    let spans = exporter.get_finished_spans()?;
    for span in &spans {
        let parent = spans.iter().find(|other| other.span_context.span_id() == span.parent_span_id);
        let inside = parent.map(|parent| format!(" inside {}", name(parent))).unwrap_or_default();
        let links: Vec<String> = span.links.iter().filter_map(|link| linked(&spans, link)).collect();
        let links = if links.is_empty() { String::new() } else { format!(" linked to {}", links.join(", ")) };
        println!("{}{inside}{links}", name(span));
    }
    Ok(())
}

/// Puts a record in a span, with the span's context among the fields of the payload.
fn produce(aws: &LocalAws, number: u32) {
    let span = info_span!("put", otel.name = format!("put #{number}"), otel.kind = "producer");
    let mut context = HashMap::new();
    let propagator: &dyn TextMapPropagator = &TraceContextPropagator::new();
    propagator.inject_context(&span.context(), &mut context);
    let payload = serde_json::json!({ "number": number, "traceparent": context["traceparent"] });
    aws.put("cart-queue", "product-7", payload.to_string());
}

fn name(span: &SpanData) -> String {
    format!("{} [{}]", span.name, &span.span_context.span_id().to_string()[..4])
}

fn linked(spans: &[SpanData], link: &opentelemetry::trace::Link) -> Option<String> {
    let producer = link.span_context.span_id();
    spans.iter().find(|span| span.span_context.span_id() == producer).map(name)
}
