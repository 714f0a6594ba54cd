//! The metrics: one table of their names, units, levels and dimensions.
//!
//! Names, operations and units are those of the Java KCL 2.x where the meaning is the same, so that its
//! dashboards and alarms go on working; rows that the KCL does not have are marked as ours.
//! `testdata/kcl_metrics.txt` lists all of the KCL's, and why some are not here.

#[cfg(feature = "cloudwatch")]
pub(crate) mod buffer;
#[cfg(feature = "otel")]
pub(crate) mod otel_name;
pub(crate) mod schedule;
#[cfg(feature = "cloudwatch")]
pub(crate) mod statistics;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::{lease::WorkerId, shard::ShardId};

/// How much of the metrics CloudWatch gets, which bills each of them. KCL: `metricsLevel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricsLevel {
    /// Nothing is published.
    None,
    /// What dashboards and alarms need.
    Summary,
    /// Also the outcome and the time of every kind of call.
    Detailed,
}

/// A dimension that CloudWatch metrics may carry besides `Operation`. Each makes, and bills, one metric for
/// each shard or worker. KCL: `metricsEnabledDimensions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricsDimension {
    /// `ShardId`, on the metrics of a shard.
    Shard,
    /// `WorkerIdentifier`, on the metrics of a worker.
    Worker,
}

/// What a value counts or measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
}

impl Unit {
    /// CloudWatch's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Bytes => "Bytes",
            Self::Milliseconds => "Milliseconds",
        }
    }
}

/// What several values of one metric mean together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They add up: records, bytes, successes.
    Sum,
    /// The last one holds: the leases held now. One value for each worker and interval, so that a sum over
    /// the fleet is the fleet's.
    Gauge,
    /// Their distribution tells: times.
    Spread,
}

/// What a value is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The application as a whole, as one of its workers sees it.
    Fleet,
    /// One worker.
    Worker,
    /// One shard.
    Shard,
}

macro_rules! table {
    ($($(#[doc = $doc:literal])+ $metric:ident $operation:literal $name:literal $unit:ident $level:ident $kind:ident $scope:ident;)+) => {
        /// Something that a worker measures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Metric {
            $($(#[doc = $doc])+ $metric,)+
        }

        impl Metric {
            /// All metrics, by operation.
            pub const ALL: &[Self] = &[$(Self::$metric,)+];

            /// Which part of the work it is about: the dimension `Operation`.
            pub fn operation(self) -> &'static str {
                match self { $(Self::$metric => $operation,)+ }
            }

            /// The name in CloudWatch; within one operation there is no other of this name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$metric => $name,)+ }
            }

            /// The unit of its values.
            pub fn unit(self) -> Unit {
                match self { $(Self::$metric => Unit::$unit,)+ }
            }

            /// The least level at which CloudWatch gets it.
            pub fn level(self) -> MetricsLevel {
                match self { $(Self::$metric => MetricsLevel::$level,)+ }
            }

            /// What several values mean together.
            pub fn kind(self) -> Kind {
                match self { $(Self::$metric => Kind::$kind,)+ }
            }

            /// What a value is about.
            pub fn scope(self) -> Scope {
                match self { $(Self::$metric => Scope::$scope,)+ }
            }

            /// What it says, in one line.
            pub fn help(self) -> &'static str {
                match self { $(Self::$metric => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

table! {
    /// Leases that this worker still has to get from others: 0 once no move would make the spread more even, also
    /// where the shards do not divide by the workers.
    NeededLeases            "TakeLeases" "NeededLeases" Count Summary Gauge Worker;
    /// Leases that this worker set out to take, or asked others for, in one look at the table.
    LeasesToTake            "TakeLeases" "LeasesToTake" Count Summary Sum Worker;
    /// Leases that this worker took.
    TakenLeases             "TakeLeases" "TakenLeases" Count Summary Sum Worker;
    /// Leases that this worker set out to take and did not get: another worker was faster, or the call failed.
    UntakenLeases           "TakeLeases" "UntakenLeases" Count Summary Sum Worker;
    /// Leases that can be worked on, whoever holds them: neither finished nor waiting for a parent.
    TotalLeases             "TakeLeases" "TotalLeases" Count Summary Gauge Worker;
    /// Leases that one look found free, or not renewed for the failover time.
    ExpiredLeases           "TakeLeases" "ExpiredLeases" Count Summary Spread Worker;
    /// Leases that one look found free or expired for longer than their takers should need.
    VeryOldLeases           "TakeLeases" "VeryOldLeases" Count Summary Spread Worker;
    /// Leases that stay free because this worker may hold no more.
    LeaseSpillover          "TakeLeases" "LeaseSpillover" Count Summary Gauge Worker;
    /// Workers that hold at least one lease, and this one.
    NumWorkers              "TakeLeases" "NumWorkers" Count Summary Gauge Worker;
    /// Looks at the lease table that went well.
    LookSuccess             "TakeLeases" "Success" Count Summary Sum Worker;
    /// How long one look took, its claims included.
    LookTime                "TakeLeases" "Time" Milliseconds Summary Spread Worker;
    /// Readings of the lease table that went well.
    ListLeasesSuccess       "TakeLeases" "ListLeases.Success" Count Detailed Sum Worker;
    /// How long reading the lease table took.
    ListLeasesTime          "TakeLeases" "ListLeases.Time" Milliseconds Detailed Spread Worker;
    /// Claims that went well.
    TakeLeaseSuccess        "TakeLeases" "TakeLease.Success" Count Detailed Sum Worker;
    /// How long a claim took.
    TakeLeaseTime           "TakeLeases" "TakeLease.Time" Milliseconds Detailed Spread Worker;
    /// Readings of one lease that went well.
    GetLeaseSuccess         "TakeLeases" "GetLease.Success" Count Detailed Sum Worker;
    /// How long reading one lease took.
    GetLeaseTime            "TakeLeases" "GetLease.Time" Milliseconds Detailed Spread Worker;
    /// Requests for a lease that went well.
    AskForLeaseSuccess      "TakeLeases" "AskForLease.Success" Count Detailed Sum Worker;
    /// How long asking for a lease took.
    AskForLeaseTime         "TakeLeases" "AskForLease.Time" Milliseconds Detailed Spread Worker;
    /// How long a lease took from the request to its arrival.
    HandOverTime            "TakeLeases" "HandOver.Time" Milliseconds Detailed Spread Worker;
    /// Leases that this worker holds.
    CurrentLeases           "RenewAllLeases" "CurrentLeases" Count Summary Gauge Worker;
    /// Leases that this worker lost: to another one, for want of renewal, or because work stood still.
    LostLeases              "RenewAllLeases" "LostLeases" Count Summary Sum Worker;
    /// Renewals that went well.
    RenewLeaseSuccess       "RenewAllLeases" "RenewLease.Success" Count Detailed Sum Worker;
    /// How long a renewal took.
    RenewLeaseTime          "RenewAllLeases" "RenewLease.Time" Milliseconds Detailed Spread Worker;
    /// Records that the user's code acknowledged, with all before them.
    RecordsProcessed        "ProcessTask" "RecordsProcessed" Count Summary Sum Shard;
    /// Bytes of the records that the user's code acknowledged, with all before them.
    DataBytesProcessed      "ProcessTask" "DataBytesProcessed" Bytes Summary Sum Shard;
    /// How far the oldest record that is not processed is behind the shard's tip, at least.
    MillisBehindLatest      "ProcessTask" "MillisBehindLatest" Milliseconds Summary Spread Shard;
    /// How long the user's code took for one batch.
    ProcessRecordsTime      "ProcessTask" "RecordProcessor.processRecords.Time" Milliseconds Summary Spread Shard;
    /// Batches that the user's code accepted.
    ProcessSuccess          "ProcessTask" "Success" Count Summary Sum Shard;
    /// How long a batch took until it was accepted, with its retries and the waits between them.
    ProcessTime             "ProcessTask" "Time" Milliseconds Summary Spread Shard;
    /// Work of the user's code that failed and is tried again.
    Retries                 "ProcessTask" "Retries" Count Summary Sum Shard;
    /// Iterators that grew too old before the next read.
    ExpiredIterator         "ProcessTask" "ExpiredIterator" Count Summary Sum Fleet;
    /// How long the checkpoint has stood still although records after it were delivered.
    MillisSinceCheckpoint   "ProcessTask" "MillisSinceCheckpoint" Milliseconds Summary Spread Shard;
    /// Reads that went well.
    GetRecordsSuccess       "ProcessTask" "KinesisDataFetcher.getRecords.Success" Count Detailed Sum Shard;
    /// How long a read took.
    GetRecordsTime          "ProcessTask" "KinesisDataFetcher.getRecords.Time" Milliseconds Detailed Spread Shard;
    /// Iterators that were opened.
    GetShardIteratorSuccess "ProcessTask" "KinesisDataFetcher.getShardIterator.Success" Count Detailed Sum Shard;
    /// How long opening an iterator took.
    GetShardIteratorTime    "ProcessTask" "KinesisDataFetcher.getShardIterator.Time" Milliseconds Detailed Spread Shard;
    /// Checkpoints, and last writes of a lease, that went well.
    UpdateLeaseSuccess      "ProcessTask" "UpdateLease.Success" Count Detailed Sum Shard;
    /// How long writing a checkpoint took.
    UpdateLeaseTime         "ProcessTask" "UpdateLease.Time" Milliseconds Detailed Spread Shard;
    /// How far the worst shard is behind its tip, at least; shards that nobody reads included.
    FleetMillisBehindLatest "ApplicationTracker" "MillisBehindLatest" Milliseconds Summary Spread Fleet;
    /// Leases that can be worked on and that nobody holds.
    UnownedLeases           "ApplicationTracker" "UnownedLeases" Count Summary Gauge Fleet;
    /// For how long the lease that has waited longest for a holder has been seen without one.
    MillisUnowned           "ApplicationTracker" "MillisUnowned" Milliseconds Summary Gauge Fleet;
    /// How long making a processor took.
    InitializeTime          "InitializeTask" "RecordProcessor.initialize.Time" Milliseconds Summary Spread Fleet;
    /// How long the user's code took to end a shard, or to let go of it.
    ShutdownTime            "ShutdownTask" "RecordProcessor.shutdown.Time" Milliseconds Summary Spread Fleet;
    /// Starts that passed all checks.
    StartSuccess            "Scheduler:Initialize" "Initialize.Success" Count Summary Sum Fleet;
    /// Listings of the stream's shards that went well.
    ListShardsSuccess       "ShardSyncTask" "ListShards.Success" Count Detailed Sum Fleet;
    /// How long listing the stream's shards took.
    ListShardsTime          "ShardSyncTask" "ListShards.Time" Milliseconds Detailed Spread Fleet;
    /// Leases that were made.
    CreateLeaseSuccess      "ShardSyncTask" "CreateLease.Success" Count Detailed Sum Fleet;
    /// How long making a lease took.
    CreateLeaseTime         "ShardSyncTask" "CreateLease.Time" Milliseconds Detailed Spread Fleet;
    /// Leases of finished shards that were deleted.
    DeleteLeaseSuccess      "ShardSyncTask" "DeleteLease.Success" Count Detailed Sum Fleet;
    /// How long deleting a lease took.
    DeleteLeaseTime         "ShardSyncTask" "DeleteLease.Time" Milliseconds Detailed Spread Fleet;
    /// Values that a sink had no room to keep while it could not publish them.
    MetricsDropped          "MetricsPublisher" "MetricsDropped" Count Summary Sum Worker;
}

/// A kind of call through the doors, each with the metric of its outcome and that of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    ListLeases,
    GetLease,
    CreateLease,
    DeleteLease,
    TakeLease,
    RenewLease,
    UpdateLease,
    AskForLease,
    ListShards,
    GetShardIterator,
    GetRecords,
}

impl Call {
    /// The metric that counts its successes, and that of its times.
    pub(crate) fn metrics(self) -> (Metric, Metric) {
        match self {
            Self::ListLeases => (Metric::ListLeasesSuccess, Metric::ListLeasesTime),
            Self::GetLease => (Metric::GetLeaseSuccess, Metric::GetLeaseTime),
            Self::CreateLease => (Metric::CreateLeaseSuccess, Metric::CreateLeaseTime),
            Self::DeleteLease => (Metric::DeleteLeaseSuccess, Metric::DeleteLeaseTime),
            Self::TakeLease => (Metric::TakeLeaseSuccess, Metric::TakeLeaseTime),
            Self::RenewLease => (Metric::RenewLeaseSuccess, Metric::RenewLeaseTime),
            Self::UpdateLease => (Metric::UpdateLeaseSuccess, Metric::UpdateLeaseTime),
            Self::AskForLease => (Metric::AskForLeaseSuccess, Metric::AskForLeaseTime),
            Self::ListShards => (Metric::ListShardsSuccess, Metric::ListShardsTime),
            Self::GetShardIterator => (Metric::GetShardIteratorSuccess, Metric::GetShardIteratorTime),
            Self::GetRecords => (Metric::GetRecordsSuccess, Metric::GetRecordsTime),
        }
    }
}

/// Who measured a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The application.
    pub application: Arc<str>,
    /// The stream's name.
    pub stream: Arc<str>,
    /// The worker.
    pub worker: WorkerId,
}

impl Origin {
    /// A worker of `application` on `stream`, a name or an ARN.
    pub fn new(application: &str, stream: &str, worker: impl Into<WorkerId>) -> Self {
        let name = stream.rsplit('/').next().unwrap_or(stream);
        Self { application: application.into(), stream: name.into(), worker: worker.into() }
    }
}

/// One measured value.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Sample<'a> {
    /// What was measured.
    pub metric: Metric,
    /// The value, in the metric's unit.
    pub value: f64,
    /// Who measured it.
    pub origin: &'a Origin,
    /// The shard that it is about, for metrics of a shard.
    pub shard: Option<&'a ShardId>,
    /// How the call ended, for times of calls (`ok`, `conflict`, `throttled`, `expired`, `denied` or `error`),
    /// and why a lease was lost.
    pub outcome: Option<&'static str>,
}

impl<'a> Sample<'a> {
    /// A value of the whole worker, without an outcome.
    pub fn new(metric: Metric, value: f64, origin: &'a Origin) -> Self {
        Self { metric, value, origin, shard: None, outcome: None }
    }

    /// The same, about a shard.
    #[must_use]
    pub fn of_shard(self, shard: &'a ShardId) -> Self {
        Self { shard: Some(shard), ..self }
    }

    /// The same, with an outcome.
    #[must_use]
    pub fn with_outcome(self, outcome: &'static str) -> Self {
        Self { outcome: Some(outcome), ..self }
    }
}

#[cfg(test)]
mod tests;
