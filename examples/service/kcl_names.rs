//! The Java KCL's names for settings, so that whoever comes from there is told what to write.
//!
//! They are refused, not taken: theirs are numbers of milliseconds and ours durations, and one setting under
//! two names would leave open which of the two holds.

use Instead::{Nothing, Setting};

#[derive(Debug, Clone, Copy)]
enum Instead {
    /// This setting of ours.
    Setting(&'static str),
    /// None, and why.
    Nothing(&'static str),
}

const TABLE_BY_TEMPLATE: Instead =
    Nothing("the lease table is on demand; cloudformation/lease-table.yaml says the rest");
const RETRIED: Instead = Nothing("calls are tried again for as long as it takes");
const NO_THREADS: Instead = Nothing("there are no threads to count");
const OWN_BALANCE: Instead = Nothing("workers spread leases evenly by themselves");
const ONE_CALL: Instead = Nothing("each worker publishes its metrics in one call a minute");

const NAMES: [(&str, Instead); 66] = [
    ("applicationName", Setting("application")),
    ("billingMode", TABLE_BY_TEMPLATE),
    ("callProcessRecordsEvenForEmptyRecordList", Nothing("an empty read calls nobody")),
    ("cleanupLeasesUponShardCompletion", Nothing("leases of finished shards are always deleted")),
    ("clientVersionConfig", Nothing("the lease table is read and written in every version's form")),
    (
        "completedLeaseCleanupIntervalMillis",
        Nothing("leases of finished shards are deleted when that is safe"),
    ),
    ("consistentReads", Nothing("reads decide nothing that a conditional write does not check")),
    ("consumerArn", Nothing("shards are polled")),
    ("consumerName", Nothing("shards are polled")),
    ("dampeningPercentage", OWN_BALANCE),
    ("dynamoDBEndpoint", Nothing("the AWS SDK reads AWS_ENDPOINT_URL_DYNAMODB")),
    ("dynamoDbRequestTimeout", Nothing("it follows failover_time")),
    ("enablePriorityLeaseAssignment", OWN_BALANCE),
    ("epsilonMillis", Nothing("it follows failover_time")),
    ("failoverTimeMillis", Setting("failover_time")),
    (
        "garbageLeaseCleanupIntervalMillis",
        Nothing("leases of shards that are gone are deleted when that is safe"),
    ),
    ("gracefulLeaseHandoffTimeoutMillis", Setting("shutdown_timeout")),
    ("idleTimeBetweenReadsInMillis", Setting("idle_time_between_reads")),
    ("ignoreUnexpectedChildShards", Nothing("shards are listed until they fit together")),
    ("initialLeaseTableReadCapacity", TABLE_BY_TEMPLATE),
    ("initialLeaseTableWriteCapacity", TABLE_BY_TEMPLATE),
    ("initialPositionInStream", Setting("initial_position")),
    ("initialPositionInStreamExtended", Setting("initial_position")),
    ("isGracefulLeaseHandoffEnabled", Nothing("leases always move by hand-off where both workers can")),
    ("kinesisEndpoint", Nothing("the AWS SDK reads AWS_ENDPOINT_URL_KINESIS")),
    ("leaseAssignmentIntervalMillis", Nothing("it follows failover_time and scan_budget")),
    ("leaseAssignmentStrategy", OWN_BALANCE),
    ("leaseCleanupIntervalMillis", Nothing("leases of finished shards are deleted when that is safe")),
    ("leaseTableDeletionProtectionEnabled", TABLE_BY_TEMPLATE),
    ("leaseTablePitrEnabled", TABLE_BY_TEMPLATE),
    ("listShardsBackoffTimeInMillis", RETRIED),
    ("logWarningForTaskAfterMillis", Nothing("work without progress loses its lease after stall_timeout")),
    ("maxGetRecordsThreadPool", NO_THREADS),
    ("maxInitializationAttempts", Nothing("AWS is tried for a minute at start")),
    ("maxLeaseRenewalThreads", NO_THREADS),
    ("maxLeasesForWorker", Setting("max_leases_for_worker")),
    ("maxLeasesToStealAtOneTime", Setting("max_leases_to_steal_at_one_time")),
    ("maxListShardsRetryAttempts", RETRIED),
    ("maxRecords", Setting("max_records")),
    ("metricsBufferTimeMillis", ONE_CALL),
    ("metricsEnabledDimensions", Setting("metrics_dimensions")),
    ("metricsLevel", Setting("metrics_level")),
    ("metricsMaxQueueSize", ONE_CALL),
    ("namespace", Setting("metrics_namespace")),
    ("parentShardPollIntervalMillis", Nothing("it follows failover_time and scan_budget")),
    ("publisherFlushBuffer", ONE_CALL),
    ("reBalanceThresholdPercentage", OWN_BALANCE),
    ("readTimeoutsToIgnoreBeforeWarning", Nothing("a fault that repeats is logged once")),
    ("regionName", Nothing("the AWS SDK reads AWS_REGION")),
    ("retrievalMode", Nothing("shards are polled")),
    ("retryGetRecordsInSeconds", RETRIED),
    ("schedulerInitializationBackoffTimeMillis", RETRIED),
    ("shardConsumerDispatchPollIntervalMillis", Nothing("nothing waits for a poll")),
    ("shardSyncIntervalMillis", Nothing("new shards are found when their parents end")),
    ("shutdownGraceMillis", Setting("shutdown_timeout")),
    ("skipShardSyncAtStartupIfLeasesExist", Nothing("one worker of a fleet lists the shards")),
    ("skipShardSyncAtWorkerInitializationIfLeasesExist", Nothing("one worker of a fleet lists the shards")),
    ("streamArn", Setting("stream")),
    ("streamName", Setting("stream")),
    ("tableName", Setting("lease_table_name")),
    ("taskBackoffTimeMillis", Setting("retry_delay_min")),
    ("timeoutInSeconds", Setting("stall_timeout")),
    ("timestampAtInitialPositionInStream", Setting("initial_position")),
    ("validateSequenceNumberBeforeCheckpointing", Nothing("always done")),
    ("workerId", Setting("worker_id")),
    ("workerIdentifier", Setting("worker_id")),
];

/// What to say of a name that is no setting: `given` is how it was written, `name` without the prefix.
pub(crate) fn unknown(given: &str, name: &str) -> String {
    let plain = |name: &str| name.replace(['_', '-', '.'], "").to_lowercase();
    match NAMES.iter().find(|(theirs, _)| plain(theirs) == plain(name)) {
        Some((theirs, Setting(ours))) => {
            format!("{given}: the Java KCL's {theirs} is {ours} here; durations are written as 10s or 1500ms")
        }
        Some((theirs, Nothing(why))) => {
            format!("{given}: nothing corresponds to the Java KCL's {theirs}: {why}; remove it")
        }
        None => format!("{given}: there is no such setting; `config` lists those that there are"),
    }
}
