//! Puts a worker together: clients, configuration, and the user's code in one of three faces.

use std::{fmt, future::Future, sync::Arc};

use rand::{RngExt, SeedableRng, distr::Alphanumeric, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    core::{lease::WorkerId, metrics::Origin, record::Record},
    error::{BuildError, Failure, InvalidField},
    io::{DynamoDbLeaseStore, KinesisSource, LeaseStore, MetricsSink, RecordSource},
    processing::each::{Each, Ordering},
    worker::{
        Assignments, Worker, assemble,
        consumer::Delivery,
        coordinator::Parts,
        driver, events,
        freeze::Gate,
        health::Vitals,
        health_file::HealthFile,
        meter::Meter,
        metered::Metered,
        processor::{ProcessorFactory, ShardContext, ShardStart},
        pulled,
        spans::{Tracer, Tracing},
    },
};
#[cfg(feature = "cloudwatch")]
use crate::{core::metrics::MetricsLevel, io::CloudWatchSink};

/// Describes a worker. Finish with [`each`](Self::each), [`build`](Self::build) or [`stream`](Self::stream);
/// none of them does any I/O.
#[derive(Debug)]
pub struct WorkerBuilder {
    application: String,
    stream: String,
    config: Config,
    kinesis: Option<aws_sdk_kinesis::Client>,
    dynamodb: Option<aws_sdk_dynamodb::Client>,
    source: Option<Arc<dyn RecordSource>>,
    store: Option<Arc<dyn LeaseStore>>,
    #[cfg(feature = "cloudwatch")]
    cloudwatch: Option<aws_sdk_cloudwatch::Client>,
    sinks: Vec<Arc<dyn MetricsSink>>,
    seed: Option<u64>,
    tracing: Option<Tracing>,
    by_record: bool,
    gate: Gate,
}

impl WorkerBuilder {
    pub(super) fn new(application: String, stream: String) -> Self {
        Self {
            application,
            stream,
            config: Config::default(),
            kinesis: None,
            dynamodb: None,
            source: None,
            store: None,
            #[cfg(feature = "cloudwatch")]
            cloudwatch: None,
            sinks: Vec::new(),
            seed: None,
            tracing: None,
            by_record: false,
            gate: Gate::default(),
        }
    }

    /// Builds every client from one loaded AWS configuration, that of CloudWatch for the metrics included.
    pub fn aws(self, config: &aws_types::SdkConfig) -> Self {
        #[cfg(feature = "cloudwatch")]
        let this = self.cloudwatch(aws_sdk_cloudwatch::Client::new(config));
        #[cfg(not(feature = "cloudwatch"))]
        let this = self;
        this.kinesis(aws_sdk_kinesis::Client::new(config)).dynamodb(aws_sdk_dynamodb::Client::new(config))
    }

    /// The client to read the stream with. Its retries and time-outs are replaced by the worker's.
    pub fn kinesis(mut self, client: aws_sdk_kinesis::Client) -> Self {
        self.kinesis = Some(client);
        self
    }

    /// The client for the lease table. Its retries and time-outs are replaced by the worker's.
    pub fn dynamodb(mut self, client: aws_sdk_dynamodb::Client) -> Self {
        self.dynamodb = Some(client);
        self
    }

    /// The client to publish metrics with, once a minute, as the configuration's `metrics_level` says. Its
    /// retries and time-outs are replaced by the worker's.
    #[cfg(feature = "cloudwatch")]
    pub fn cloudwatch(mut self, client: aws_sdk_cloudwatch::Client) -> Self {
        self.cloudwatch = Some(client);
        self
    }

    /// Hands every measured value to this sink too. Call it again for another one.
    pub fn metrics(mut self, sink: Arc<dyn MetricsSink>) -> Self {
        self.sinks.push(sink);
        self
    }

    /// Reads from this source instead of Kinesis: an in-memory stream, or one of your own.
    pub fn source(mut self, source: Arc<dyn RecordSource>) -> Self {
        self.source = Some(source);
        self
    }

    /// Keeps leases in this store instead of DynamoDB.
    pub fn lease_store(mut self, store: Arc<dyn LeaseStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// How the worker behaves.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Makes every choice of chance (jitter, which lease to take first) repeatable. For tests: workers of
    /// one fleet should differ. Give a `worker_id` too, whose default has a random part.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes spans of the work on records, joined to those of the producers. Default: none.
    pub fn tracing(mut self, tracing: Tracing) -> Self {
        self.tracing = Some(tracing);
        self
    }

    /// Lets a test freeze the worker.
    #[cfg(any(test, feature = "test-util"))]
    pub fn freezer(mut self, freezer: &crate::worker::Freezer) -> Self {
        self.gate.freezer = freezer.clone();
        self
    }

    /// Notes what is handed to the user's code.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn deliveries(mut self, deliveries: &crate::testing::Deliveries) -> Self {
        self.gate.deliveries = Some(deliveries.clone());
        self
    }

    /// A worker that calls `handler` for each record, in the order that `ordering` promises. A record is
    /// done when the handler returns `Ok`; on an error it comes again, after a delay.
    ///
    /// # Errors
    /// [`BuildError`] names every field that cannot work.
    pub fn each<H, Fut>(self, ordering: Ordering, handler: H) -> Result<Worker, BuildError>
    where
        H: Fn(Record) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.each_with_context(ordering, move |record, _| handler(record))
    }

    /// The same for a handler that is also given the shard's context: for work on one record that may take
    /// longer than `health_max_age`, and says so with [`progress`](ShardContext::progress). A record is still
    /// acknowledged when the handler returns `Ok`.
    ///
    /// # Errors
    /// [`BuildError`] names every field that cannot work.
    pub fn each_with_context<H, Fut>(mut self, ordering: Ordering, handler: H) -> Result<Worker, BuildError>
    where
        H: Fn(Record, ShardContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.by_record = true;
        self.build(move |_: ShardStart| {
            let processor = Each::new(ordering, handler.clone());
            async move { Ok(processor) }
        })
    }

    /// A worker that makes a processor for each shard that it holds.
    ///
    /// # Errors
    /// [`BuildError`] names every field that cannot work.
    pub fn build<F: ProcessorFactory>(self, factory: F) -> Result<Worker, BuildError> {
        let factory = Arc::new(factory);
        let config = Arc::new(self.config.clone());
        let seed = self.seed.unwrap_or_else(|| entropy().random());
        let delivery: Delivery = Arc::new(move |shard| {
            // Each shard has delays of its own, the same in every run with the same seed.
            let seed = shard.id().as_str().bytes().fold(seed, |seed, b| seed.rotate_left(7) ^ u64::from(b));
            let (factory, config) = (factory.clone(), config.clone());
            Box::pin(async move { driver::drive(factory, shard, &config, seed).await })
        });
        self.assemble(delivery)
    }

    /// A worker whose shards are pulled. Run the worker beside taking shards from the assignments.
    ///
    /// # Errors
    /// [`BuildError`] names every field that cannot work.
    pub fn stream(self) -> Result<(Worker, Assignments), BuildError> {
        let (delivery, assignments) = pulled();
        Ok((self.assemble(delivery)?, assignments))
    }

    fn assemble(self, delivery: Delivery) -> Result<Worker, BuildError> {
        let mut problems = self.config.problems();
        let table = self.config.lease_table_name.clone().unwrap_or_else(|| self.application.clone());
        let field = if self.config.lease_table_name.is_some() { "lease_table_name" } else { "application" };
        if !is_name(&table, 3, 255) {
            let why = format!(
                "{table:?} cannot name a DynamoDB table: 3 to 255 of a-z, A-Z, 0-9, '_', '-' and '.'"
            );
            problems.push(InvalidField { field, why });
        }
        if !self.stream.starts_with("arn:") && !is_name(&self.stream, 1, 128) {
            let why = format!(
                "{:?} is no stream name (1 to 128 of a-z, A-Z, 0-9, '_', '-', '.') and no ARN",
                self.stream
            );
            problems.push(InvalidField { field: "stream", why });
        }
        #[cfg(feature = "cloudwatch")]
        let cloudwatch = self.cloudwatch.filter(|_| self.config.metrics_level > MetricsLevel::None);
        #[cfg(feature = "cloudwatch")]
        let namespace = self.config.metrics_namespace.clone().unwrap_or_else(|| self.application.clone());
        #[cfg(feature = "cloudwatch")]
        if cloudwatch.is_some() && !is_namespace(&namespace) {
            let why = format!(
                "{namespace:?} cannot name CloudWatch's metrics: 1 to 255 of a-z, A-Z, 0-9, ' ' and '.-_/#:', not \
                 beginning with ':' or AWS/"
            );
            problems.push(InvalidField { field: "metrics_namespace", why });
        }
        if !problems.is_empty() {
            return Err(BuildError::Invalid(problems));
        }
        let mut rng = self.seed.map_or_else(entropy, StdRng::seed_from_u64);
        let timeout = self.config.call_timeout();
        // Spans name the stream, also where an ARN was given.
        let stream = self.stream.rsplit('/').next().unwrap_or_default().to_owned();
        let source = match (self.source, self.kinesis) {
            (Some(source), _) => source,
            (None, Some(client)) => {
                Arc::new(KinesisSource::new(client, self.stream.clone(), self.config.read_timeout()))
            }
            (None, None) => return Err(BuildError::NoClient("Kinesis")),
        };
        let store = match (self.store, self.dynamodb) {
            (Some(store), _) => store,
            (None, Some(client)) => Arc::new(DynamoDbLeaseStore::new(client, table.clone(), timeout)),
            (None, None) => return Err(BuildError::NoClient("DynamoDB")),
        };
        let me = match &self.config.worker_id {
            Some(id) => WorkerId::from(id.as_str()),
            None => default_worker_id(&mut rng),
        };
        let tracer = self.tracing.map(|tracing| {
            let (application, worker) = (self.application.clone(), me.to_string());
            Arc::new(Tracer { tracing, stream, application, worker, by_record: self.by_record })
        });
        let max_age = self.config.max_health_age();
        let health_file =
            self.config.health_file.clone().map(|path| HealthFile { path, worker: me.to_string(), max_age });
        #[cfg_attr(not(feature = "cloudwatch"), expect(unused_mut, reason = "nothing to add"))]
        let mut sinks = self.sinks;
        #[cfg(feature = "cloudwatch")]
        if let Some(client) = cloudwatch {
            let dimensions = self.config.metrics_dimensions.clone();
            sinks.push(Arc::new(CloudWatchSink::new(
                client,
                namespace,
                self.config.metrics_level,
                dimensions,
            )));
        }
        let meter = Arc::new(Meter::new(Origin::new(&self.application, &self.stream, me.clone()), sinks));
        let (source, store) = match meter.is_off() {
            true => (source, store),
            false => metered(source, store, &meter),
        };
        Ok(assemble(Parts {
            me,
            process: rng.random(),
            meter,
            table,
            vitals: Vitals::new(max_age),
            tracer,
            health_file,
            config: Arc::new(self.config),
            source,
            store,
            delivery,
            events: events::Sender::new(),
            ready: CancellationToken::new(),
            rng,
            gate: self.gate,
        }))
    }
}

/// The doors, measured.
fn metered(
    source: Arc<dyn RecordSource>,
    store: Arc<dyn LeaseStore>,
    meter: &Arc<Meter>,
) -> (Arc<dyn RecordSource>, Arc<dyn LeaseStore>) {
    let (of_source, of_store) = (meter.clone(), meter.clone());
    (Arc::new(Metered { door: source, meter: of_source }), Arc::new(Metered { door: store, meter: of_store }))
}

/// Whether CloudWatch would take `name` for a namespace.
#[cfg(feature = "cloudwatch")]
fn is_namespace(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b" .-_/#:".contains(&b);
    (1..=255).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(':')
        && !name.starts_with("AWS/")
        && !name.trim().is_empty()
}

/// Whether AWS would take `name` for a table or a stream.
fn is_name(name: &str, least: usize, most: usize) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (least..=most).contains(&name.len()) && name.bytes().all(allowed)
}

/// The one place where chance enters.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
fn entropy() -> StdRng {
    StdRng::from_rng(&mut rand::rng())
}

/// The host's name, which is the pod's name in Kubernetes, and a random part, so that a restart in the
/// same pod is another worker.
fn default_worker_id(rng: &mut StdRng) -> WorkerId {
    let host = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    let host = host.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    let random: String = rng.sample_iter(Alphanumeric).take(8).map(char::from).collect();
    format!("{}-{random}", host.as_deref().unwrap_or("worker")).into()
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("me", &self.me)
            .field("table", &self.table)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::memory::{MemoryLeaseStore, MemoryStream};

    /// The fields that are refused.
    fn refused(application: &str, stream: &str, config: Config) -> Vec<&'static str> {
        let builder = Worker::builder(application, stream)
            .source(Arc::new(MemoryStream::new("stream", 1)))
            .lease_store(Arc::new(MemoryLeaseStore::new()))
            .config(config);
        match builder.each(Ordering::Shard, |_| async { Ok(()) }) {
            Ok(_) => Vec::new(),
            Err(BuildError::Invalid(invalid)) => invalid.into_iter().map(|invalid| invalid.field).collect(),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn names_that_aws_would_not_take_are_refused() {
        let named = |table: &str| Config { lease_table_name: Some(table.into()), ..Config::default() };
        let long = "x".repeat(256);
        for name in ["", "ab", "two words", "a/b", "größe", &long] {
            assert_eq!(refused(name, "stream", Config::default()), ["application"], "{name}");
            assert!(refused("app", "stream", named(name)).contains(&"lease_table_name"), "{name}");
        }
        for name in ["", "two words", "a/b", &long[..129]] {
            assert_eq!(refused("app", name, Config::default()), ["stream"], "{name}");
        }
        assert_eq!(refused("a b", "c d", Config::default()), ["application", "stream"]);
        let arn = "arn:aws:kinesis:eu-central-1:123456789012:stream/s";
        for (application, stream) in [("app", "s"), ("A_b-c.9", &long[..128]), (&long[..255], arn)] {
            assert_eq!(refused(application, stream, Config::default()), [""; 0], "{application} on {stream}");
        }
        // The application's name is then only a name.
        assert_eq!(refused("my application", "stream", named("leases")), [""; 0]);
    }

    #[test]
    fn durations_without_end_are_refused() {
        let endless = Duration::MAX;
        let default = Config::default;
        for (field, config) in [
            ("failover_time", Config { failover_time: endless, ..default() }),
            ("idle_time_between_reads", Config { idle_time_between_reads: endless, ..default() }),
            ("checkpoint_interval", Config { checkpoint_interval: endless, ..default() }),
            ("retry_delay_max", Config { retry_delay_max: endless, ..default() }),
            ("stall_timeout", Config { stall_timeout: endless, ..default() }),
            ("shutdown_timeout", Config { shutdown_timeout: endless, ..default() }),
            ("health_max_age", Config { health_max_age: Some(endless), ..default() }),
        ] {
            assert_eq!(refused("app", "stream", config), [field]);
        }
    }
}
