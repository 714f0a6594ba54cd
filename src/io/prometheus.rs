//! Metrics in a Prometheus registry, under Prometheus's own rules: base units, `_total`, few labels.
//!
//! Series of a shard go when the shard leaves the worker: else its last lag would live on beside the next
//! holder's.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    core::{
        metrics::{Metric, Origin, Sample},
        shard::ShardId,
    },
    io::MetricsSink,
};

/// Upper bounds of times, in seconds: 5 ms to 10 s as OpenTelemetry advises, and a slow handler's minutes.
const SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0];

/// Keeps all metrics as Prometheus series.
///
/// Series are labelled by application and stream, and not by worker: Prometheus's own `instance` tells processes
/// apart. So one sink serves any number of workers, but only one of an application on a stream; two of them in one
/// process would write over each other's series, and need a sink and a page each.
///
/// ```
/// use kinesis_consumer::metrics::PrometheusSink;
///
/// let sink = PrometheusSink::new(); // give `Arc::new(sink.clone())` to `WorkerBuilder::metrics`
/// assert!(sink.text().contains("kinesis_consumer_build_info"));
/// ```
///
/// Serve [`text`](Self::text) as [`CONTENT_TYPE`](Self::CONTENT_TYPE); or, beside metrics of your own, let
/// [`registered_in`](Self::registered_in) add them to your registry of the crate `prometheus-client`.
#[derive(Clone, Debug)]
pub struct PrometheusSink {
    series: Series,
    own: Arc<Mutex<Registry>>,
}

/// The text of a label. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Text(Arc<str>);

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        (&*self.0).encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStream {
    application: Text,
    stream: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShard {
    application: Text,
    stream: Text,
    shard: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    application: Text,
    stream: Text,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLoss {
    application: Text,
    stream: Text,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCall {
    application: Text,
    stream: Text,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    application: Text,
    stream: Text,
    operation: &'static str,
    outcome: &'static str,
}

type Number = Gauge<f64, AtomicU64>;
type Times<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug)]
struct Series {
    lag: Family<OfShard, Number>,
    fleet_lag: Family<OfStream, Number>,
    checkpoint_age: Family<OfShard, Number>,
    records: Family<OfShard, Counter>,
    bytes: Family<OfShard, Counter>,
    batch: Times<OfStream>,
    retries: Family<OfStream, Counter>,
    expired_iterators: Family<OfStream, Counter>,
    processor: Times<OfState>,
    leases: Family<OfState, Gauge>,
    workable: Family<OfStream, Gauge>,
    needed: Family<OfStream, Gauge>,
    left_over: Family<OfStream, Gauge>,
    unowned: Family<OfStream, Number>,
    workers: Family<OfStream, Gauge>,
    taken: Family<OfStream, Counter>,
    lost: Family<OfLoss, Counter>,
    handover: Times<OfStream>,
    looks: Times<OfStream>,
    failed_looks: Family<OfStream, Counter>,
    requests: Family<OfOutcome, Counter>,
    request: Times<OfCall>,
    dropped: Family<OfStream, Counter>,
}

fn times<L: Clone + std::hash::Hash + Eq>() -> Times<L> {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

impl Default for PrometheusSink {
    fn default() -> Self {
        Self::new()
    }
}

impl PrometheusSink {
    /// The content type of [`text`](Self::text).
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// With a registry of its own.
    pub fn new() -> Self {
        let mut own = Registry::default();
        let series = Series::registered_in(&mut own);
        Self { series, own: Arc::new(Mutex::new(own)) }
    }

    /// In your registry, which you serve; [`text`](Self::text) then has nothing to show. Once a registry.
    pub fn registered_in(registry: &mut Registry) -> Self {
        Self { series: Series::registered_in(registry), own: Arc::default() }
    }

    /// All series as text, in the form of OpenMetrics.
    pub fn text(&self) -> String {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        // Writing to a string does not fail; what a metric cannot encode is missing in the text.
        let _ = text::encode(&mut out, &own);
        out
    }
}

impl Series {
    fn registered_in(registry: &mut Registry) -> Self {
        let new = Self {
            lag: Family::default(),
            fleet_lag: Family::default(),
            checkpoint_age: Family::default(),
            records: Family::default(),
            bytes: Family::default(),
            batch: times(),
            retries: Family::default(),
            expired_iterators: Family::default(),
            processor: times(),
            leases: Family::default(),
            workable: Family::default(),
            needed: Family::default(),
            left_over: Family::default(),
            unowned: Family::default(),
            workers: Family::default(),
            taken: Family::default(),
            lost: Family::default(),
            handover: times(),
            looks: times(),
            failed_looks: Family::default(),
            requests: Family::default(),
            request: times(),
            dropped: Family::default(),
        };
        let to = registry.sub_registry_with_prefix("kinesis_consumer");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.register("build", "The version of the library", version);
        let seconds = || Unit::Seconds;
        let help = "How far the oldest record that is not processed is behind the shard's tip, at least";
        to.register_with_unit("lag", help, seconds(), new.lag.clone());
        let help =
            "How far the worst shard is behind, as this worker knows; shards that nobody reads included";
        to.register_with_unit("fleet_lag", help, seconds(), new.fleet_lag.clone());
        let help = "How long the checkpoint has stood still although records after it were delivered";
        to.register_with_unit("checkpoint_age", help, seconds(), new.checkpoint_age.clone());
        to.register("records", "Records that the user's code accepted", new.records.clone());
        to.register("bytes", "Bytes of the records that the user's code accepted", new.bytes.clone());
        let help = "How long the user's code took for one batch";
        to.register_with_unit("batch_duration", help, seconds(), new.batch.clone());
        to.register("retries", "Work of the user's code that failed and is tried again", new.retries.clone());
        let help = "Iterators that grew too old before the next read";
        to.register("expired_iterators", help, new.expired_iterators.clone());
        let help = "How long the user's code took to begin, or to end, its work on a shard";
        to.register_with_unit("processor_duration", help, seconds(), new.processor.clone());
        let help = "Leases held by this worker, and those held by nobody, as this worker knows";
        to.register("leases", help, new.leases.clone());
        let help = "Leases that can be worked on, whoever holds them, as this worker knows";
        to.register("leases_workable", help, new.workable.clone());
        let help = "Leases that this worker still lacks to its fair share";
        to.register("leases_needed", help, new.needed.clone());
        let help = "Leases that stay free because this worker may hold no more";
        to.register("leases_left_over", help, new.left_over.clone());
        let help = "For how long the lease that has waited longest for a holder has been seen without one";
        to.register_with_unit("lease_unowned", help, seconds(), new.unowned.clone());
        to.register("workers", "Workers that hold a lease, and this one", new.workers.clone());
        to.register("leases_taken", "Leases that this worker took", new.taken.clone());
        to.register("leases_lost", "Leases that this worker lost", new.lost.clone());
        let help = "How long a lease took from the request to its arrival";
        to.register_with_unit("lease_handover", help, seconds(), new.handover.clone());
        let help = "How long a look at the lease table took, its claims included";
        to.register_with_unit("look_duration", help, seconds(), new.looks.clone());
        to.register("looks_failed", "Looks at the lease table that failed", new.failed_looks.clone());
        to.register("api_requests", "Calls to AWS, by how they ended", new.requests.clone());
        let help = "How long calls to AWS took";
        to.register_with_unit("api_request_duration", help, seconds(), new.request.clone());
        let help = "Values that another sink had no room to keep while it could not publish them";
        to.register("metrics_dropped", help, new.dropped.clone());
        new
    }

    /// Counters begin at zero before there is anything to count: what comes first is an increase too.
    fn begin_worker(&self, of: &OfStream) {
        for counter in
            [&self.retries, &self.expired_iterators, &self.taken, &self.failed_looks, &self.dropped]
        {
            drop(counter.get_or_create(of));
        }
    }

    fn begin_shard(&self, of: &OfShard) {
        drop(self.records.get_or_create(of));
        drop(self.bytes.get_or_create(of));
    }

    fn forget(&self, of: &OfShard) {
        self.lag.remove(of);
        self.checkpoint_age.remove(of);
        self.records.remove(of);
        self.bytes.remove(of);
    }
}

fn of_stream(origin: &Origin) -> OfStream {
    OfStream { application: Text(origin.application.clone()), stream: Text(origin.stream.clone()) }
}

fn of_shard(origin: &Origin, shard: &ShardId) -> OfShard {
    let OfStream { application, stream } = of_stream(origin);
    OfShard { application, stream, shard: shard.as_str().to_owned() }
}

impl MetricsSink for PrometheusSink {
    fn record(&self, sample: &Sample<'_>) {
        let Sample { metric, value, origin, shard, outcome } = *sample;
        let (of, to) = (of_stream(origin), &self.series);
        let shard = || shard.map(|shard| of_shard(origin, shard));
        let state = |state| OfState { application: of.application.clone(), stream: of.stream.clone(), state };
        // Counts are whole and not negative.
        let (seconds, count) = (value / 1000.0, value as u64);
        let level = value as i64;
        match metric {
            Metric::MillisBehindLatest => {
                if let Some(shard) = shard() {
                    to.begin_shard(&shard);
                    to.lag.get_or_create(&shard).set(seconds);
                }
            }
            Metric::MillisSinceCheckpoint => {
                shard().map(|shard| to.checkpoint_age.get_or_create(&shard).set(seconds));
            }
            Metric::RecordsProcessed => {
                shard().map(|shard| to.records.get_or_create(&shard).inc_by(count));
            }
            Metric::DataBytesProcessed => {
                shard().map(|shard| to.bytes.get_or_create(&shard).inc_by(count));
            }
            Metric::ProcessRecordsTime => to.batch.get_or_create(&of).observe(seconds),
            Metric::Retries => drop(to.retries.get_or_create(&of).inc_by(count)),
            Metric::ExpiredIterator => drop(to.expired_iterators.get_or_create(&of).inc_by(count)),
            Metric::InitializeTime => to.processor.get_or_create(&state("begin")).observe(seconds),
            Metric::ShutdownTime => to.processor.get_or_create(&state("end")).observe(seconds),
            Metric::FleetMillisBehindLatest => drop(to.fleet_lag.get_or_create(&of).set(seconds)),
            Metric::MillisUnowned => drop(to.unowned.get_or_create(&of).set(seconds)),
            Metric::UnownedLeases => drop(to.leases.get_or_create(&state("unowned")).set(level)),
            Metric::CurrentLeases => {
                to.begin_worker(&of);
                to.leases.get_or_create(&state("held")).set(level);
            }
            Metric::TotalLeases => drop(to.workable.get_or_create(&of).set(level)),
            Metric::NeededLeases => drop(to.needed.get_or_create(&of).set(level)),
            Metric::LeaseSpillover => drop(to.left_over.get_or_create(&of).set(level)),
            Metric::NumWorkers => drop(to.workers.get_or_create(&of).set(level)),
            Metric::TakenLeases => drop(to.taken.get_or_create(&of).inc_by(count)),
            Metric::LostLeases => {
                let OfStream { application, stream } = of;
                let lost = OfLoss { application, stream, reason: outcome.unwrap_or("other") };
                to.lost.get_or_create(&lost).inc_by(count);
            }
            Metric::HandOverTime => to.handover.get_or_create(&of).observe(seconds),
            Metric::LookTime => to.looks.get_or_create(&of).observe(seconds),
            Metric::LookSuccess if value == 0.0 => drop(to.failed_looks.get_or_create(&of).inc()),
            Metric::MetricsDropped => drop(to.dropped.get_or_create(&of).inc_by(count)),
            _ => {
                if let Some(operation) = operation(metric) {
                    let OfStream { application, stream } = of;
                    let call = OfCall { application, stream, operation };
                    to.request.get_or_create(&call).observe(seconds);
                    let OfCall { application, stream, operation } = call;
                    let outcome = outcome.unwrap_or("other");
                    to.requests.get_or_create(&OfOutcome { application, stream, operation, outcome }).inc();
                }
            }
        }
    }

    fn forget(&self, origin: &Origin, shard: &ShardId) {
        self.series.forget(&of_shard(origin, shard));
    }
}

/// What a call is named in `operation`, by the metric of its time.
fn operation(metric: Metric) -> Option<&'static str> {
    Some(match metric {
        Metric::ListLeasesTime => "list_leases",
        Metric::GetLeaseTime => "get_lease",
        Metric::CreateLeaseTime => "create_lease",
        Metric::DeleteLeaseTime => "delete_lease",
        Metric::TakeLeaseTime => "take_lease",
        Metric::RenewLeaseTime => "renew_lease",
        Metric::UpdateLeaseTime => "update_lease",
        Metric::AskForLeaseTime => "ask_for_lease",
        Metric::ListShardsTime => "list_shards",
        Metric::GetShardIteratorTime => "get_shard_iterator",
        Metric::GetRecordsTime => "get_records",
        _ => return None,
    })
}
