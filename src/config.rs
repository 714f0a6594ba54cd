//! Configuration: plain data with defaults that are right in production, and its validation.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    core::{
        balance::Balance,
        metrics::{MetricsDimension, MetricsLevel},
    },
    error::InvalidField,
};

/// How a worker behaves. Everything has a default; unknown keys are refused.
///
/// Durations are written as in `"10s"` or `"1500ms"`.
///
/// ```
/// # use kinesis_consumer::{Config, InitialPosition};
/// let config = Config { initial_position: InitialPosition::TrimHorizon, ..Config::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name of this worker, unique among those alive. Default: the host's name and a random part.
    ///
    /// KCL: `workerIdentifier`.
    pub worker_id: Option<String>,
    /// Where an application begins a stream that it has never read. Default `Latest`. Shards that appear
    /// later begin at their oldest record, whatever this says.
    ///
    /// KCL: `initialPositionInStream`.
    pub initial_position: InitialPosition,
    /// Whether a shard that continues others waits until they have been processed to their end. Default
    /// `ParentsFirst`.
    pub shard_order: ShardOrder,
    /// The name of the lease table. Default: the application's name. KCL: `tableName`.
    pub lease_table_name: Option<String>,
    /// What to do about a missing lease table. Default: make it, on demand.
    pub lease_table: LeaseTable,

    /// How long a lease may go unrenewed before others take it. Default 10 s; at least 1 s.
    ///
    /// Shorter fails over faster and costs more DynamoDB writes: a lease is renewed twice in this time.
    /// Workers that share a table should agree on it. KCL: `failoverTimeMillis`.
    #[serde(with = "humantime_serde")]
    pub failover_time: Duration,
    /// What says that a lease is still held: a renewal of its own, or one heartbeat of its worker. Default
    /// `Lease`.
    pub heartbeat: Heartbeat,
    /// Most leases that this worker may hold. Default: no limit.
    ///
    /// What no worker has room for stays unread and is reported by name. KCL: `maxLeasesForWorker`.
    pub max_leases_for_worker: Option<usize>,
    /// Most leases that this worker steals, or has asked others for, at one time. Default: as many as an even
    /// spread needs.
    ///
    /// KCL: `maxLeasesToStealAtOneTime`.
    pub max_leases_to_steal_at_one_time: Option<usize>,
    /// What this worker may spend on looking at the lease table, in DynamoDB read units a second for each 25
    /// leases that it holds, or fewer. Default 5, a fifth of what the renewals of so many leases cost.
    ///
    /// It looks about once a second as long as that suffices, up to about 80 rows; a look at a larger table takes
    /// `rows / 16` units, and comes as often as they are there: 10,000 rows and 10 leases, every two minutes. No
    /// look is made beyond the budget but what the last minute, or three looks, saved. Less is cheaper and slower:
    /// a crash is noticed `failover_time` after the next look of any worker of the fleet, children of a shard
    /// that was read here are claimed at once, and a worker that joins or stops is evened out within two looks.
    /// Leases that were asked for are read one by one whatever the budget says, eight in 150 ms and more of a
    /// holder that begins to hand over, for half of `failover_time` after each request and each hand-over: nobody
    /// else works on them.
    pub scan_budget: f64,
    /// What is spread evenly over the workers of a fleet, which should agree on it. Default: the number of
    /// leases.
    pub balance: Balance,
    /// What happens to the leases of a worker that stops. Default: others may take them at once.
    pub on_shutdown: OnShutdown,
    /// How long the leases of a worker that crashed, or stopped with [`OnShutdown::Keep`], wait for it to come
    /// back under its `worker_id`, beyond `failover_time`. Default none.
    ///
    /// With it a restart that takes less moves no lease; a worker that never comes back leaves its shards
    /// unread for that long.
    #[serde(with = "humantime_serde")]
    pub rejoin_grace: Duration,

    /// How long to wait between reads of a shard whose end has been reached. Default 1 s; at least
    /// 200 ms, since a shard serves five reads a second to all its readers together.
    ///
    /// KCL: `idleTimeBetweenReadsInMillis`.
    #[serde(with = "humantime_serde")]
    pub idle_time_between_reads: Duration,
    /// Most records in one read. Default and maximum 10,000. KCL: `maxRecords`.
    pub max_records: usize,
    /// How many bytes of records this worker reads ahead, all shards together. Default 256 MiB; at least
    /// 10 MiB, the size of one read. What is being processed comes on top: one read a shard. A read that brings
    /// more than there is room for is dropped, and made again once there is.
    pub memory_budget: usize,

    /// How often the acknowledged position of a shard is written to the lease table. Default 5 s; at least
    /// 100 ms.
    ///
    /// One write also renews the lease. After a crash the records of at most this time come again.
    #[serde(with = "humantime_serde")]
    pub checkpoint_interval: Duration,
    /// The first delay before failed work is tried again; it doubles up to `retry_delay_max`, with
    /// jitter. Default 100 ms.
    #[serde(with = "humantime_serde")]
    pub retry_delay_min: Duration,
    /// The longest delay before failed work is tried again. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub retry_delay_max: Duration,
    /// How long the work on one batch may go without any progress (an acknowledgement, a return, a
    /// retry) before its lease is given up, so that another worker can try. Default 10 minutes.
    ///
    /// The same holds for the oldest of the records that are to be acknowledged later: if the acknowledgement of
    /// one is lost, those of others do not hide it.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// How long a worker that stops, or hands a lease over to another, waits for work in hand. Default 20 s:
    /// Kubernetes kills after 30 s. Calls under way may add their time-outs to it, and metrics that cannot be published
    /// two seconds. A worker that asked for a lease takes it after this and `failover_time`.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,

    /// A file that is fresh as long as a restart would not help, for a liveness probe; why, stands beside it
    /// in a file of this name with `.json` added. Default: none. See [`health`](crate::health).
    pub health_file: Option<PathBuf>,
    /// How long a part of the worker may go without progress before a restart is said to help. Default 30 s,
    /// or five times `idle_time_between_reads` if that is longer; at least 1 s.
    ///
    /// Only work counts: waits for records, for retries, for throttles and for AWS do not. If your code
    /// may need longer for one record, or acknowledges many together once in a while, let it call
    /// [`ShardContext::progress`](crate::ShardContext::progress), or allow more; closures get a context by
    /// [`each_with_context`](crate::WorkerBuilder::each_with_context).
    #[serde(with = "humantime_serde")]
    pub health_max_age: Option<Duration>,

    /// How much of the metrics CloudWatch gets, which bills each of them. Default `Summary`, about 30 for the
    /// whole application. Other sinks get everything. KCL: `metricsLevel`, whose default is `DETAILED`.
    pub metrics_level: MetricsLevel,
    /// The dimensions that CloudWatch's metrics carry besides `Operation`. Default: none, so that alarms see the
    /// fleet; each makes a metric of its own for every worker, or every shard. By shard, a worker publishes up to
    /// 10,000 a minute, those of 1,250 shards at `Summary` or 714 at `Detailed`; values of further shards are dropped,
    /// counted in `MetricsDropped`, and told of. KCL: `metricsEnabledDimensions`, whose default is all.
    pub metrics_dimensions: BTreeSet<MetricsDimension>,
    /// The namespace of CloudWatch's metrics. Default: the application's name. KCL: `namespace`.
    pub metrics_namespace: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            worker_id: None,
            initial_position: InitialPosition::Latest,
            shard_order: ShardOrder::ParentsFirst,
            lease_table_name: None,
            lease_table: LeaseTable::CreateIfMissing,
            failover_time: Duration::from_secs(10),
            heartbeat: Heartbeat::Lease,
            max_leases_for_worker: None,
            max_leases_to_steal_at_one_time: None,
            scan_budget: 5.0,
            balance: Balance::Count,
            on_shutdown: OnShutdown::Release,
            rejoin_grace: Duration::ZERO,
            idle_time_between_reads: Duration::from_secs(1),
            max_records: 10_000,
            memory_budget: 256 << 20,
            checkpoint_interval: Duration::from_secs(5),
            retry_delay_min: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(600),
            shutdown_timeout: Duration::from_secs(20),
            health_file: None,
            health_max_age: None,
            metrics_level: MetricsLevel::Summary,
            metrics_dimensions: BTreeSet::new(),
            metrics_namespace: None,
        }
    }
}

/// Where an application begins a stream that it has never read. KCL: `InitialPositionInStream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitialPosition {
    /// With the oldest record.
    TrimHorizon,
    /// With the records that arrive from the application's first start on. That moment is kept in the
    /// lease table, so a restart before the first checkpoint skips nothing. Where the host's clock is ahead of the
    /// stream's it is by the stream's, which answers with whole seconds: records of the second before, and of the time
    /// that the answer took, may come too.
    Latest,
    /// With the first record that arrived at this time or later; written as `2026-11-22T08:30:00Z`. The children of
    /// a shard that ends before a time to come are read whole, as by the KCL.
    AtTimestamp(#[serde(with = "humantime_serde")] SystemTime),
}

/// What says that a lease is still held.
///
/// Workers of this crate judge each lease by what its row says, so both kinds can share a table, and a fleet
/// changes over by a rolling restart. The KCL knows only the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heartbeat {
    /// Each lease is renewed by itself, as with the KCL: an idle one costs two writes in `failover_time`.
    Lease,
    /// The worker writes one row of its own as often as it would renew a lease; leases that rest cost nothing.
    ///
    /// Only without the KCL on the same table, whose workers would take such leases for dead: a worker ends
    /// with [`WorkerError::ForeignHolder`](crate::WorkerError::ForeignHolder) if it sees one.
    Worker,
}

/// Whether a shard waits for its parents after a split or a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardOrder {
    /// A child is read only after all its parents have ended, as with the KCL: the records of a partition key
    /// stay in order.
    ParentsFirst,
    /// Children are found within 20 s and read at once, beside parents that are behind: a doubling helps a
    /// backlog right away.
    ///
    /// Given up is the order of a partition key's records across a split or a merge; within a shard it stays.
    /// A parent's row that is deleted by hand is not made again once a child is read: what was not read of
    /// the parent is lost. Set it for all workers: others leave the children alone until the parents end.
    None,
}

/// What to do about a missing lease table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseTable {
    /// Make it: key `leaseKey` (string), on-demand capacity.
    CreateIfMissing,
    /// Refuse to start: the table is made elsewhere, for example by CloudFormation.
    MustExist,
}

/// What happens to the leases of a worker that stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnShutdown {
    /// They are released: other workers take them at their next look.
    Release,
    /// They stay with this worker until `failover_time` and `rejoin_grace` have passed. Started again under the
    /// same `worker_id` before, it goes on with them at once: for a `StatefulSet`.
    Keep,
}

impl Config {
    /// Every field with a value that cannot work, and what to change.
    pub(crate) fn problems(&self) -> Vec<InvalidField> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, field: &'static str, why: String| {
            if !ok {
                problems.push(InvalidField { field, why });
            }
        };
        let at_least =
            |value: Duration, least: Duration| format!("{value:?} is too short; at least {least:?}");
        let second = Duration::from_secs(1);
        check(self.failover_time >= second, "failover_time", at_least(self.failover_time, second));
        let positive = |limit: Option<usize>| limit != Some(0);
        let zero = || "0 would never take a lease; at least 1, or leave it out for no limit".into();
        check(positive(self.max_leases_for_worker), "max_leases_for_worker", zero());
        check(positive(self.max_leases_to_steal_at_one_time), "max_leases_to_steal_at_one_time", zero());
        let budget = self.scan_budget.is_finite() && self.scan_budget > 0.0;
        check(budget, "scan_budget", format!("{} must be above 0", self.scan_budget));
        let idle = Duration::from_millis(200);
        let why = at_least(self.idle_time_between_reads, idle);
        check(self.idle_time_between_reads >= idle, "idle_time_between_reads", why);
        let why = format!("{} is not within 1 and 10000", self.max_records);
        check((1..=10_000).contains(&self.max_records), "max_records", why);
        let why = format!("{} is less than one read of 10 MiB", self.memory_budget);
        check(self.memory_budget >= 10 << 20, "memory_budget", why);
        let why = "must not be 0; a failing handler would be called without a pause".into();
        check(!self.retry_delay_min.is_zero(), "retry_delay_min", why);
        let why = format!("{:?} is below retry_delay_min", self.retry_delay_max);
        check(self.retry_delay_max >= self.retry_delay_min, "retry_delay_max", why);
        let why = at_least(self.stall_timeout, second);
        check(self.stall_timeout >= second, "stall_timeout", why);
        let tenth = Duration::from_millis(100);
        let why = at_least(self.checkpoint_interval, tenth);
        check(self.checkpoint_interval >= tenth, "checkpoint_interval", why);
        let health = self.max_health_age();
        check(health >= second, "health_max_age", at_least(health, second));
        let most = Duration::from_secs(365 * 24 * 3600);
        for (field, value) in [
            ("failover_time", self.failover_time),
            ("rejoin_grace", self.rejoin_grace),
            ("idle_time_between_reads", self.idle_time_between_reads),
            ("checkpoint_interval", self.checkpoint_interval),
            ("retry_delay_max", self.retry_delay_max),
            ("stall_timeout", self.stall_timeout),
            ("shutdown_timeout", self.shutdown_timeout),
            ("health_max_age", self.health_max_age.unwrap_or_default()),
        ] {
            check(value <= most, field, format!("{value:?} is too long; at most a year"));
        }
        for (field, name) in [("worker_id", &self.worker_id), ("lease_table_name", &self.lease_table_name)] {
            check(
                name.as_deref() != Some(""),
                field,
                "must not be empty; leave it out for the default".into(),
            );
        }
        problems
    }

    /// When a lease is due for renewal after its last write: early enough for a second try.
    pub(crate) fn renew_after(&self) -> Duration {
        self.failover_time / 2
    }

    /// How long a part of the worker may go without progress that it owes.
    pub(crate) fn max_health_age(&self) -> Duration {
        let default = || self.idle_time_between_reads.saturating_mul(5).max(Duration::from_secs(30));
        self.health_max_age.unwrap_or_else(default)
    }

    /// How long one call to Kinesis may take. It keeps no lease waiting, and brings up to 10 MiB.
    pub(crate) fn read_timeout(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// How long one call to DynamoDB may take: several fit into the life of a lease.
    pub(crate) fn call_timeout(&self) -> Duration {
        (self.failover_time / 4).min(Duration::from_secs(5))
    }

    /// The usual time between two looks at a small table.
    pub(crate) fn look_interval(&self) -> Duration {
        (self.failover_time / 10).min(Duration::from_secs(1))
    }

    /// The longest time to wait after a look that failed.
    pub(crate) fn longest_look_interval(&self) -> Duration {
        self.failover_time / 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn every_problem_is_reported_at_once_by_field() {
        let config = Config {
            failover_time: Duration::from_millis(999),
            max_leases_for_worker: Some(0),
            max_leases_to_steal_at_one_time: Some(0),
            scan_budget: 0.0,
            idle_time_between_reads: Duration::from_millis(199),
            max_records: 10_001,
            memory_budget: 1,
            retry_delay_min: Duration::ZERO,
            stall_timeout: Duration::ZERO,
            worker_id: Some(String::new()),
            health_max_age: Some(Duration::from_millis(999)),
            ..Config::default()
        };
        let fields: Vec<_> = config.problems().into_iter().map(|problem| problem.field).collect();
        let expected = [
            "failover_time",
            "max_leases_for_worker",
            "max_leases_to_steal_at_one_time",
            "scan_budget",
            "idle_time_between_reads",
            "max_records",
            "memory_budget",
            "retry_delay_min",
            "stall_timeout",
            "health_max_age",
            "worker_id",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_time_that_never_ends_is_refused() {
        let config = Config {
            stall_timeout: Duration::MAX,
            shutdown_timeout: Duration::MAX,
            checkpoint_interval: Duration::ZERO,
            ..Config::default()
        };
        let fields: Vec<_> = config.problems().into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["checkpoint_interval", "stall_timeout", "shutdown_timeout"]);
    }

    #[test]
    fn configuration_is_readable_text_and_unknown_keys_are_refused() {
        let text = r#"{"initial_position": {"at_timestamp": "2026-11-22T08:30:00Z"}, "failover_time": "4s"}"#;
        let config: Config = serde_json::from_str(text).expect("valid");
        assert_eq!(config.failover_time, Duration::from_secs(4));
        assert_eq!(config.max_records, 10_000);
        let back: Config =
            serde_json::from_str(&serde_json::to_string(&config).expect("text")).expect("valid");
        assert_eq!(back, config);
        assert!(serde_json::from_str::<Config>(r#"{"failover_time_ms": 1}"#).is_err());
    }

    /// One setting as a hand might write it: a name and a value that may or may not be of it.
    fn setting() -> impl Strategy<Value = (&'static str, String)> {
        let names = [
            "worker_id",
            "initial_position",
            "lease_table_name",
            "lease_table",
            "failover_time",
            "max_leases_for_worker",
            "max_leases_to_steal_at_one_time",
            "scan_budget",
            "on_shutdown",
            "idle_time_between_reads",
            "max_records",
            "memory_budget",
            "checkpoint_interval",
            "retry_delay_min",
            "retry_delay_max",
            "stall_timeout",
            "shutdown_timeout",
            "health_file",
            "failover_time_ms",
        ];
        let value = prop_oneof![
            4 => "[0-9]{1,20} ?(ns|us|ms|s|m|h|days|years)?".prop_map(|text| format!("{text:?}")),
            2 => any::<i64>().prop_map(|number| number.to_string()),
            2 => any::<f64>().prop_filter("JSON has no other", |number| number.is_finite()).prop_map(|n| n.to_string()),
            2 => prop_oneof![
                Just("\"latest\""), Just("\"trim_horizon\""), Just("\"must_exist\""), Just("\"keep\""),
                Just("\"release\""), Just("null"), Just("true"), Just("{}"), Just("[]"), Just("\"\""),
            ].prop_map(str::to_owned),
            2 => "(-?[0-9]{1,5})-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?Z"
                .prop_map(|at| format!(r#"{{"at_timestamp": {at:?}}}"#)),
            1 => ".{0,20}".prop_map(|text| serde_json::to_string(&text).expect("text")),
            1 => ".{0,9}",
        ];
        (proptest::sample::select(names.to_vec()), value)
    }

    proptest! {
        #[test]
        fn any_text_is_a_configuration_that_reads_back_the_same_or_is_refused(
            settings in proptest::collection::vec(setting(), 0..4),
        ) {
            let text: Vec<String> = settings.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
            let text = format!("{{{}}}", text.join(", "));
            let Ok(config) = serde_json::from_str::<Config>(&text) else { return Ok(()) };
            let written = serde_json::to_string(&config).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
            prop_assert_eq!(&serde_json::from_str::<Config>(&written).expect("valid"), &config, "{}", written);
            if config.problems().is_empty() {
                // Nothing that is derived from it overflows.
                let longest = config.shutdown_timeout + config.failover_time;
                prop_assert!(config.renew_after() < config.failover_time && config.failover_time <= longest);
                prop_assert!(config.look_interval() <= config.longest_look_interval());
                prop_assert!(config.call_timeout() + config.renew_after() < config.failover_time);
            }
        }
    }

    #[test]
    fn calls_renewals_and_looks_fit_into_the_life_of_a_lease() {
        for secs in [1, 2, 10, 60] {
            let config = Config { failover_time: Duration::from_secs(secs), ..Config::default() };
            assert!(config.renew_after() + config.call_timeout() * 2 <= config.failover_time);
            assert!(config.look_interval() <= config.longest_look_interval());
        }
    }
}
