//! Spans of the work on records, by OpenTelemetry's conventions for messaging, linked to those of the producers.
//!
//! Only for workers that were asked for them: without [`Tracing`] nothing is made, and nothing is looked for
//! in payloads. Without a subscriber a span costs a check.

use std::{fmt, sync::Arc};

use tracing::{Span, field::Empty, info_span};

use crate::{
    core::{
        record::{Batch, Record},
        shard::ShardId,
        trace_context::TraceContext,
    },
    error::Failure,
};

/// Most producers that one span is linked to: what OpenTelemetry's SDKs keep by default.
#[cfg(feature = "otel")]
const MOST_LINKS: usize = 128;

type Extract = dyn Fn(&Record) -> Option<TraceContext> + Send + Sync;

/// Makes spans of the work on records, for [`WorkerBuilder::tracing`](crate::WorkerBuilder::tracing).
///
/// | span | when | kind |
/// |---|---|---|
/// | `poll <stream>` | a batch is handed to your code; an empty read makes none | client |
/// | `process <stream>` | each call of your code: of a batch, or of one record with `.each` | consumer |
/// | `checkpoint <stream>` | each write of a checkpoint | client |
///
/// They carry the attributes of OpenTelemetry's messaging conventions, with `messaging.system` =
/// `aws_kinesis`. With the feature `otel` they are linked to the producers' spans, through
/// `tracing-opentelemetry`; without it a span of one record names its producer in `producer.traceparent`.
/// Payloads are only read. Each user record inside an aggregated one has its own context.
#[derive(Clone)]
pub struct Tracing {
    extract: Arc<Extract>,
    parents: bool,
}

impl Default for Tracing {
    /// Finds contexts as [`TraceContext::from_json`] does: W3C's, or Datadog's.
    fn default() -> Self {
        Self::with(|record| TraceContext::from_json(record.data()))
    }
}

impl Tracing {
    /// Finds the context of a record with your own code, for example in a protobuf message.
    pub fn with(extract: impl Fn(&Record) -> Option<TraceContext> + Send + Sync + 'static) -> Self {
        Self { extract: Arc::new(extract), parents: false }
    }

    /// Makes the span of a single record a child of its producer's, in the same trace, instead of linking it.
    /// Needs the feature `otel`.
    #[must_use]
    pub fn as_children(self) -> Self {
        Self { parents: true, ..self }
    }
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracing").field("parents", &self.parents).finish_non_exhaustive()
    }
}

/// Makes the spans of one worker.
#[derive(Debug)]
pub(super) struct Tracer {
    pub(super) tracing: Tracing,
    pub(super) stream: String,
    pub(super) application: String,
    pub(super) worker: String,
    /// Whether each record is processed in a span of its own, and not the batch.
    pub(super) by_record: bool,
}

/// A span by the conventions; further fields may follow.
macro_rules! span {
    ($tracer:expr, $shard:expr, $verb:literal, $kind:literal, $type:literal) => {
        info_span!(
            parent: None,
            $verb,
            otel.name = format_args!(concat!($verb, " {}"), $tracer.stream),
            otel.kind = $kind,
            otel.status_code = Empty,
            error.type = Empty,
            messaging.system = "aws_kinesis",
            messaging.operation.name = $verb,
            messaging.operation.type = $type,
            messaging.destination.name = $tracer.stream,
            messaging.destination.partition.id = $shard.as_str(),
            messaging.consumer.group.name = $tracer.application,
            messaging.client.id = $tracer.worker,
            messaging.batch.message_count = Empty,
            messaging.message.id = Empty,
            producer.traceparent = Empty,
        )
    };
}

impl Tracer {
    /// Says that a batch was handed over.
    pub(super) fn polled(&self, batch: &Batch) {
        let span = span!(self, batch.shard(), "poll", "client", "receive");
        self.tell_batch(&span, batch);
    }

    /// The span of one call with a batch.
    pub(super) fn process_batch(&self, batch: &Batch) -> Span {
        if self.by_record {
            return Span::none();
        }
        let span = span!(self, batch.shard(), "process", "consumer", "process");
        self.tell_batch(&span, batch);
        span
    }

    /// The span of one call with a record.
    pub(super) fn process_record(&self, record: &Record) -> Span {
        let span = span!(self, record.shard(), "process", "consumer", "process");
        if span.is_disabled() {
            return span;
        }
        span.record("messaging.message.id", tracing::field::display(record.position()));
        if let Some(context) = (self.tracing.extract)(record) {
            #[cfg(feature = "otel")]
            otel::join(&span, &context, self.tracing.parents);
            #[cfg(not(feature = "otel"))]
            span.record("producer.traceparent", tracing::field::debug(&context));
        }
        span
    }

    /// The span of one write of a checkpoint.
    pub(super) fn settle(&self, shard: &ShardId) -> Span {
        span!(self, shard, "checkpoint", "client", "settle")
    }

    fn tell_batch(&self, span: &Span, batch: &Batch) {
        if span.is_disabled() {
            return;
        }
        span.record("messaging.batch.message_count", batch.records().len());
        #[cfg(feature = "otel")]
        {
            let mut linked: Vec<TraceContext> = Vec::new();
            for context in batch.records().iter().filter_map(|record| (self.tracing.extract)(record)) {
                if linked.len() == MOST_LINKS {
                    break;
                }
                // Producers that put many records in one span are one link.
                if !linked.contains(&context) {
                    otel::join(span, &context, false);
                    linked.push(context);
                }
            }
        }
    }
}

/// Marks a span as one of work that failed.
pub(super) fn failed(span: &Span, failure: &Failure) {
    let kind = match failure {
        Failure::Retry(_) => "retry",
        Failure::Poison { .. } => "poison",
        Failure::StopShard(_) => "stop_shard",
        Failure::StopWorker(_) => "stop_worker",
    };
    span.record("otel.status_code", "ERROR");
    span.record("error.type", kind);
}

#[cfg(feature = "otel")]
mod otel {
    use opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use crate::core::trace_context::TraceContext;

    /// Links a span to its producer's, or makes it the child.
    pub(super) fn join(span: &Span, context: &TraceContext, as_child: bool) {
        let state = context.tracestate().and_then(|state| state.parse::<TraceState>().ok());
        let producer = SpanContext::new(
            TraceId::from(context.trace_id()),
            SpanId::from(context.span_id()),
            TraceFlags::new(context.flags()),
            true,
            state.unwrap_or_default(),
        );
        if as_child {
            // An error says that no OpenTelemetry layer is on, or that the span has begun: it stays apart.
            let _ = span.set_parent(Context::new().with_remote_span_context(producer));
        } else {
            span.add_link(producer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::core::shard::Position;

    #[test]
    fn without_a_subscriber_no_payload_is_looked_at() {
        let at = Position::at("1".parse().expect("digits"));
        let record = Record::new("shardId-0".into(), at, "key", UNIX_EPOCH, "{}");
        let batch = Batch::new(vec![record.clone()], Duration::ZERO);
        for by_record in [true, false] {
            let tracer = Tracer {
                tracing: Tracing::with(|_| panic!("looked at")),
                stream: "stream".into(),
                application: "app".into(),
                worker: "a".into(),
                by_record,
            };
            tracer.polled(&batch);
            assert!(tracer.process_batch(&batch).is_disabled());
            assert!(tracer.process_record(&record).is_disabled());
            assert!(tracer.settle(batch.shard()).is_disabled());
        }
    }
}
