//! The Java KCL's names for settings, so that whoever comes from there can bring a file along.
//!
//! Those with an equivalent are taken, with a hint that names ours: milliseconds become durations, words ours. The
//! others are refused with the reason, since nothing here would do what they ask for.

use std::time::{Duration, SystemTime};

use Instead::{Dimensions, Lower, Millis, Nothing, Position, Same, Seconds, Time};
use kinesis_consumer::InitialPosition;
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy)]
enum Instead {
    /// This setting of ours, with the same values.
    Same(&'static str),
    /// A duration; theirs is a number of milliseconds.
    Millis(&'static str),
    /// A duration; theirs is a number of seconds.
    Seconds(&'static str),
    /// Words, which are in capitals there.
    Lower(&'static str),
    /// `LATEST` or `TRIM_HORIZON`.
    Position(&'static str),
    /// A position by its time; theirs is in seconds since 1970.
    Time(&'static str),
    /// Dimensions of metrics, separated by commas.
    Dimensions(&'static str),
    /// None, and why.
    Nothing(&'static str),
}

/// What one of their settings is here.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Their name for it.
    pub(crate) theirs: &'static str,
    /// Our name for it.
    pub(crate) ours: &'static str,
    /// The value as ours takes it.
    pub(crate) value: Value,
}

const TABLE_BY_TEMPLATE: Instead =
    Nothing("the lease table is on demand; cloudformation/lease-table.yaml says the rest");
const RETRIED: Instead = Nothing("calls are tried again for as long as it takes");
const NO_THREADS: Instead = Nothing("there are no threads to count");
const OWN_BALANCE: Instead = Nothing("workers spread leases evenly by themselves");
const ONE_CALL: Instead = Nothing("each worker publishes its metrics in one call a minute");

const CLEANED_UP: Instead = Nothing("leases of finished shards are deleted a minute after their last use");
const CODE: Instead =
    Nothing("it is code there, and so it is here: the worker's builder takes it if anything");
const INTERNAL: Instead = Nothing("it is of the KCL's own workings");
const NO_CACHE: Instead = Nothing("no list of shards is kept");
const NO_LEADER: Instead = Nothing("there is no leader");
const NO_SIDE_TABLES: Instead = Nothing("there is no table beside the lease table");
const NO_STATISTICS: Instead = Nothing("workers keep no statistics of themselves");

const NAMES: [(&str, Instead); 129] = [
    ("aggregatorUtil", CODE),
    ("allowThroughputOvershoot", OWN_BALANCE),
    ("applicationName", Same("application")),
    ("AWSCredentialsProvider", Nothing("the AWS SDK finds credentials by itself")),
    ("billingMode", TABLE_BY_TEMPLATE),
    ("cacheMissWarningModulus", NO_CACHE),
    ("callProcessRecordsEvenForEmptyRecordList", Nothing("an empty read calls nobody")),
    ("checkpointFactory", CODE),
    (
        "cleanupLeasesUponShardCompletion",
        Nothing("leases of finished shards are always deleted, a minute after their last use"),
    ),
    ("clientVersionConfig", Nothing("the lease table is read and written in every version's form")),
    ("completedLeaseCleanupIntervalMillis", CLEANED_UP),
    ("consistentReads", Nothing("reads decide nothing that a conditional write does not check")),
    ("consumerArn", Nothing("shards are polled")),
    ("consumerName", Nothing("shards are polled")),
    ("consumerTaskFactory", CODE),
    ("coordinatorFactory", CODE),
    ("coordinatorStateTableConfig", NO_SIDE_TABLES),
    ("customShardDetectorProvider", CODE),
    ("dampeningPercentage", OWN_BALANCE),
    ("deletionProtectionEnabled", TABLE_BY_TEMPLATE),
    ("disableWorkerMetrics", NO_STATISTICS),
    ("dynamoDBEndpoint", Nothing("the AWS SDK reads AWS_ENDPOINT_URL_DYNAMODB")),
    ("dynamoDbLockBasedLeaderHeartbeatPeriodInMillis", NO_LEADER),
    ("dynamoDbLockBasedLeaderLeaseDurationInMillis", NO_LEADER),
    ("dynamoDbRequestTimeout", Nothing("it follows failover_time")),
    ("enablePriorityLeaseAssignment", OWN_BALANCE),
    ("epsilonMillis", Nothing("it follows failover_time")),
    ("executableName", Nothing("no process is started for the records")),
    ("executorService", CODE),
    ("failoverTimeMillis", Millis("failover_time")),
    (
        "garbageLeaseCleanupIntervalMillis",
        Nothing("leases of shards that are gone are deleted when that is safe"),
    ),
    ("glueSchemaRegistryDeserializer", Nothing("payloads are handed over as they came")),
    ("gracefulLeaseHandoffConfig", Nothing("leases always move by hand-off where both workers can")),
    ("gracefulLeaseHandoffTimeoutMillis", Millis("shutdown_timeout")),
    ("gracefulShutdownCoordinator", CODE),
    ("hierarchicalShardSyncer", CODE),
    ("idleTimeBetweenReadsInMillis", Millis("idle_time_between_reads")),
    ("ignoreUnexpectedChildShards", Nothing("shards are listed until they fit together")),
    ("initialLeaseTableReadCapacity", TABLE_BY_TEMPLATE),
    ("initialLeaseTableWriteCapacity", TABLE_BY_TEMPLATE),
    ("initialPositionInStream", Position("initial_position")),
    ("initialPositionInStreamExtended", Time("initial_position")),
    ("inMemoryWorkerMetricsCaptureFrequencyMillis", NO_STATISTICS),
    ("isGracefulLeaseHandoffEnabled", Nothing("leases always move by hand-off where both workers can")),
    ("kinesisEndpoint", Nothing("the AWS SDK reads AWS_ENDPOINT_URL_KINESIS")),
    ("kinesisRequestTimeout", Nothing("it follows failover_time")),
    ("leaseAssignmentIntervalMillis", Nothing("it follows failover_time and scan_budget")),
    ("leaseAssignmentStrategy", OWN_BALANCE),
    ("leaseCleanupConfig", CLEANED_UP),
    ("leaseCleanupIntervalMillis", CLEANED_UP),
    ("leaseManagementFactory", CODE),
    (
        "leasesRecoveryAuditorExecutionFrequencyMillis",
        Nothing("holes are looked for at every look at the table"),
    ),
    (
        "leasesRecoveryAuditorInconsistencyConfidenceThreshold",
        Nothing("holes are looked for at every look at the table"),
    ),
    ("leaseTableDeletionProtectionEnabled", TABLE_BY_TEMPLATE),
    ("leaseTablePitrEnabled", TABLE_BY_TEMPLATE),
    ("leaseTableScanTotalSegments", Nothing("a scan is one request after the other")),
    ("listShardsBackoffTimeInMillis", RETRIED),
    ("listShardsCacheAllowedAgeInSeconds", NO_CACHE),
    ("logWarningForTaskAfterMillis", Nothing("work without progress loses its lease after stall_timeout")),
    ("maxByteSize", Nothing("one batch is read ahead, within memory_budget")),
    ("maxCacheMissesBeforeReload", NO_CACHE),
    ("maxDescribeStreamConsumerRetries", Nothing("shards are polled")),
    ("maxDescribeStreamSummaryRetries", RETRIED),
    ("maxGetRecordsThreadPool", NO_THREADS),
    ("maxInitializationAttempts", Nothing("AWS is tried for a minute at start")),
    ("maxLeaseRenewalThreads", NO_THREADS),
    ("maxLeasesForWorker", Same("max_leases_for_worker")),
    ("maxLeasesToStealAtOneTime", Same("max_leases_to_steal_at_one_time")),
    ("maxListShardsRetryAttempts", RETRIED),
    ("maxPendingProcessRecordsInput", Nothing("one batch is read ahead, within memory_budget")),
    ("maxRecords", Same("max_records")),
    ("maxRecordsCount", Nothing("one batch is read ahead, within memory_budget")),
    ("maxThroughputPerHostKBps", OWN_BALANCE),
    ("metricsBackend", Nothing("CloudWatch gets metrics by metrics_level, Prometheus by metrics_address")),
    ("metricsBufferTimeMillis", ONE_CALL),
    ("metricsEnabledDimensions", Dimensions("metrics_dimensions")),
    ("metricsLevel", Lower("metrics_level")),
    ("metricsMaxQueueSize", ONE_CALL),
    ("migrateAllEntitiesToLeaseTable", NO_SIDE_TABLES),
    (
        "millisBehindLatestThresholdForReducedTps",
        Nothing("a shard at its tip is read every idle_time_between_reads"),
    ),
    ("namespace", Same("metrics_namespace")),
    ("noOfPersistedMetricsPerWorkerMetrics", NO_STATISTICS),
    ("parentShardPollIntervalMillis", Nothing("it follows failover_time and scan_budget")),
    ("pointInTimeRecoveryEnabled", TABLE_BY_TEMPLATE),
    ("processingLanguage", Nothing("no process is started for the records")),
    ("publisherFlushBuffer", ONE_CALL),
    ("readCapacity", TABLE_BY_TEMPLATE),
    ("readTimeoutsToIgnoreBeforeWarning", Nothing("a fault that repeats is logged once")),
    ("reBalanceThresholdPercentage", OWN_BALANCE),
    ("recordsFetcherFactory", CODE),
    ("regionName", Nothing("the AWS SDK reads AWS_REGION")),
    ("registerStreamConsumerRetries", Nothing("shards are polled")),
    ("retrievalMode", Nothing("shards are polled")),
    ("retrievalSpecificConfig", Nothing("shards are polled")),
    ("retryBackoffMillis", RETRIED),
    ("retryGetRecordsInSeconds", RETRIED),
    ("schedulerInitializationBackoffTimeMillis", RETRIED),
    ("shardConsumerDispatchPollIntervalMillis", Nothing("nothing waits for a poll")),
    ("shardPrioritization", CODE),
    ("shardSyncIntervalMillis", Nothing("new shards are found when their parents end")),
    ("shutdownGraceMillis", Millis("shutdown_timeout")),
    ("skipShardSyncAtStartupIfLeasesExist", Nothing("one worker of a fleet lists the shards")),
    ("skipShardSyncAtWorkerInitializationIfLeasesExist", Nothing("one worker of a fleet lists the shards")),
    ("staleWorkerMetricsEntryCleanupDuration", NO_STATISTICS),
    ("streamArn", Same("stream")),
    ("streamIdOnboardingState", INTERNAL),
    ("streamInfoMode", INTERNAL),
    ("streamName", Same("stream")),
    ("streamTracker", Nothing("one worker reads one stream; name it with stream")),
    ("tableCreatorCallback", CODE),
    ("tableMigrationCompleteBakeTimeSeconds", NO_SIDE_TABLES),
    ("tableName", Same("lease_table_name")),
    ("tags", TABLE_BY_TEMPLATE),
    ("taskBackoffTimeMillis", Millis("retry_delay_min")),
    ("taskExecutionListener", CODE),
    ("timeoutInSeconds", Seconds("stall_timeout")),
    ("timestampAtInitialPositionInStream", Time("initial_position")),
    ("usePollingConfigIdleTimeValue", Nothing("idle_time_between_reads always holds")),
    ("validateSequenceNumberBeforeCheckpointing", Nothing("always done")),
    ("varianceBalancingFrequency", OWN_BALANCE),
    ("workerId", Same("worker_id")),
    ("workerIdentifier", Same("worker_id")),
    ("workerMetricList", NO_STATISTICS),
    ("workerMetricsEMAAlpha", NO_STATISTICS),
    ("workerMetricsReporterFreqInMillis", NO_STATISTICS),
    ("workerMetricsTableConfig", NO_SIDE_TABLES),
    ("workerStateChangeListener", CODE),
    ("workerUtilizationAwareAssignmentConfig", OWN_BALANCE),
    ("writeCapacity", TABLE_BY_TEMPLATE),
];

/// Takes a name that is no setting of ours for what it is with the KCL: `given` is how it was written, `name`
/// without the prefix. Fails with what to say if it is none, or nothing corresponds to it.
pub(crate) fn take(given: &str, name: &str, value: &Value) -> Result<Taken, String> {
    let plain = |name: &str| name.replace(['_', '-', '.'], "").to_lowercase();
    let Some((theirs, instead)) = NAMES.iter().find(|(theirs, _)| plain(theirs) == plain(name)) else {
        return Err(format!("{given}: there is no such setting; `config` lists those that there are"));
    };
    let (ours, converted) = match *instead {
        Nothing(why) => {
            return Err(format!("{given}: nothing corresponds to the Java KCL's {theirs}: {why}; remove it"));
        }
        Same(ours) => (ours, Some(value.clone())),
        Millis(ours) => (ours, number(value).map(|millis| json!(format!("{millis}ms")))),
        Seconds(ours) => (ours, number(value).map(|seconds| json!(format!("{seconds}s")))),
        Lower(ours) => (ours, value.as_str().map(|word| json!(word.to_lowercase()))),
        Position(ours) => (ours, position(value)),
        Time(ours) => (ours, time(value)),
        Dimensions(ours) => (ours, dimensions(value)),
    };
    match converted {
        Some(value) => Ok(Taken { theirs, ours, value }),
        None => Err(cannot(given, theirs, ours, value)),
    }
}

/// What to say of a value that ours does not take.
pub(crate) fn cannot(given: &str, theirs: &str, ours: &str, value: &Value) -> String {
    format!("{given}: the Java KCL's {theirs} is {ours} here, and {value} cannot be converted; give {ours}")
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The third position of theirs, `AT_TIMESTAMP`, is in the setting that names the time.
fn position(value: &Value) -> Option<Value> {
    let word = value.as_str()?.to_lowercase();
    matches!(&*word, "latest" | "trim_horizon").then(|| json!(word))
}

fn time(value: &Value) -> Option<Value> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(number(value)?))?;
    serde_json::to_value(InitialPosition::AtTimestamp(at)).ok()
}

/// `Operation` is always among ours.
fn dimensions(value: &Value) -> Option<Value> {
    let words: Vec<&str> = match value {
        Value::Array(words) => words.iter().map(Value::as_str).collect::<Option<_>>()?,
        text => text.as_str()?.split(',').collect(),
    };
    let mut ours = Vec::new();
    for word in words {
        match word.trim() {
            "Operation" | "None" | "" => {}
            "ShardId" => ours.push("shard"),
            "WorkerIdentifier" => ours.push("worker"),
            "ALL" | "All" => ours.extend(["shard", "worker"]),
            _ => return None,
        }
    }
    Some(json!(ours))
}
