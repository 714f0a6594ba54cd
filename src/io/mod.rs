//! The doors to the outside world: the lease table, the stream and the metrics, each behind a small trait.
//!
//! Each has an AWS adapter and an in-memory twin (feature `test-util`), and one contract suite in
//! `tests/` that both pass. Implement them to run the same worker on another store.

#[cfg(feature = "cloudwatch")]
mod cloudwatch;
mod dynamodb;
#[cfg(any(test, feature = "test-util"))]
pub mod faulty;
mod kinesis;
mod lease_item;
#[cfg(feature = "cli")]
pub(crate) mod lease_rows;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
#[cfg(feature = "otel")]
mod otel;
#[cfg(feature = "prometheus")]
mod prometheus;
mod sdk_client;
mod sdk_error;
mod worker_item;
#[cfg(test)]
mod written_by_others;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

use crate::core::{
    heartbeat::{Incarnation, WorkerRow},
    lease::{HandOff, Lease, LeaseKey, LeaseWrite},
    metrics::{Origin, Sample},
    record::Record,
    shard::{ChildShard, SequenceNumber, Shard, ShardId},
};

#[cfg(feature = "cloudwatch")]
pub use self::cloudwatch::CloudWatchSink;
#[cfg(feature = "otel")]
pub use self::otel::OtelSink;
#[cfg(feature = "prometheus")]
pub use self::prometheus::PrometheusSink;
pub use self::{dynamodb::DynamoDbLeaseStore, kinesis::KinesisSource};

/// A cause that is not part of this crate's interface, for example an error of the AWS SDK.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The lease table: one row a shard, every change conditional on the row's counter; and one row for each
/// worker that has a heartbeat of its own.
///
/// Each call ends within seconds, answered or not, and a write that was not answered is made by then or never: rows
/// that are not needed any more are deleted once no call can be under way that would make them again.
#[async_trait]
pub trait LeaseStore: fmt::Debug + Send + Sync {
    /// Makes sure that the table is there and has the right key; with `create`, makes a missing one
    /// (on-demand) and waits until it can be used.
    ///
    /// # Errors
    /// [`LeaseError::NoTable`] if it is missing and `create` is false, [`LeaseError::WrongTable`] if its
    /// key is not `leaseKey`.
    async fn open(&self, create: bool) -> Result<(), LeaseError>;

    /// All rows of the table, in no particular order. May be stale by a moment; rows of other kinds are left
    /// out, and so are rows that cannot be understood, after a warning.
    async fn scan(&self) -> Result<Rows, LeaseError>;

    /// All leases of the table, as [`scan`](Self::scan) shows them.
    async fn list(&self) -> Result<Vec<Lease>, LeaseError> {
        Ok(self.scan().await?.leases)
    }

    /// One lease as it stands, never stale; none if there is no such row.
    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError>;

    /// Puts a new row, unless there is one with this key already. Says whether it did.
    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError>;

    /// Tries whether a row with this key may be made, and makes none, whether there is one or not.
    ///
    /// # Errors
    /// [`LeaseError::Denied`] if [`create`](Self::create) would be refused. A store that refuses nobody need not
    /// try.
    async fn may_create(&self, key: &LeaseKey) -> Result<(), LeaseError> {
        let _ = key;
        Ok(())
    }

    /// Makes one conditional write.
    ///
    /// # Errors
    /// [`LeaseError::Conflict`] if the row does not meet the condition, or is gone; nothing was written.
    /// After [`LeaseError::Unavailable`] the write may have been applied or not, or still be.
    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError>;

    /// Makes a claim, and returns the row as the claim left it: its checkpoint may have been moved by hand since
    /// the claimer saw it.
    ///
    /// A store that answers writes with the row saves itself the second call that is made by default.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    async fn claim(&self, claim: &LeaseWrite) -> Result<Lease, LeaseError> {
        self.write(claim).await?;
        self.get(claim.key()).await?.ok_or_else(|| LeaseError::Conflict(claim.key().clone()))
    }

    /// Asks the holder for a lease, or takes the request back, without touching the counter.
    ///
    /// # Errors
    /// [`LeaseError::Conflict`] if the row does not meet the condition, or is gone; nothing was written.
    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError>;

    /// Deletes the row if its counter, owners, claim and checkpoint's number are still those of `seen`. Says whether
    /// it did; false also if the row was gone.
    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError>;

    /// One worker row as it stands, never stale; none if there is no such row.
    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError>;

    /// Writes a worker row: with counter 0 a new one, unless there is one with this key already; else the
    /// higher counter, if there is one that is lower. Says whether it did.
    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError>;

    /// Deletes a worker row if its counter is still that of `seen`. Says whether it did; false also if the
    /// row was gone.
    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError>;
}

/// The rows of a lease table.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rows {
    /// One for each shard.
    pub leases: Vec<Lease>,
    /// One for each worker that has a heartbeat of its own.
    pub workers: Vec<WorkerRow>,
    /// What the look cost, in read units, all rows of other kinds included; none if the table does not say.
    pub read_units: Option<f64>,
}

/// Why the lease table could not be used, by what the caller does next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Another worker wrote this lease first, or the row is gone. Never retry: read it again, decide again.
    #[error("lease {0} was changed by another worker")]
    Conflict(LeaseKey),
    /// Throttled, timed out or unreachable. Safe to retry with back-off.
    #[error("lease table unavailable while trying to {operation}")]
    Unavailable {
        /// What was tried, for example `renew a lease`.
        operation: &'static str,
        /// The cause.
        source: BoxError,
    },
    /// The credentials are missing or may not do this. Retry only if they may change.
    #[error("not allowed to {operation}")]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        source: BoxError,
    },
    /// There is no such table.
    #[error("lease table {table} does not exist")]
    NoTable {
        /// The table's name.
        table: String,
    },
    /// The table is there but is not a lease table.
    #[error("table {table} cannot hold leases: {why}")]
    WrongTable {
        /// The table's name.
        table: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The stream: its shards, and the records of each in order.
#[async_trait]
pub trait RecordSource: fmt::Debug + Send + Sync {
    /// What identifies the stream.
    async fn describe(&self) -> Result<StreamDescription, SourceError>;

    /// The shards that `filter` selects, in no particular order.
    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError>;

    /// A new iterator; it can be used for five minutes.
    ///
    /// # Errors
    /// [`SourceError::NoShard`] if the shard has left the stream.
    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError>;

    /// The records from the iterator on, at most `limit` and at most 10 MiB; at the shard's tip none.
    ///
    /// `shard` names the shard of the iterator; the records carry it.
    ///
    /// # Errors
    /// [`SourceError::ExpiredIterator`] after five minutes: open a new one after the last record read.
    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError>;
}

/// What identifies a stream. A stream deleted and made again under the same name is another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamDescription {
    /// The ARN.
    pub arn: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// How long it keeps records; none if that is not known.
    pub retention: Option<Duration>,
    /// The time by the stream's own clock when it was described, at most a second early; none if that is unknown.
    /// A worker compares it with its host's clock, which may be wrong.
    pub described_at: Option<SystemTime>,
}

impl StreamDescription {
    /// One text for both, to be kept in lease rows.
    pub fn identity(&self) -> Arc<str> {
        let created = self.created_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("{}:{}", self.arn, created.as_secs()).into()
    }
}

/// Which shards to list. AWS: `ShardFilter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardFilter {
    /// All that still hold records, and the open ones.
    All,
    /// Those that were open at the oldest record: every hash key once.
    AtTrimHorizon,
    /// Those that are open.
    AtLatest,
    /// Those that were open at that time.
    AtTimestamp(SystemTime),
}

/// Where reading of a shard begins. AWS: `ShardIteratorType`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartFrom {
    /// The oldest record.
    TrimHorizon,
    /// The next record that arrives.
    Latest,
    /// The first record that arrived at that time or later.
    Timestamp(SystemTime),
    /// The record with this number.
    At(SequenceNumber),
    /// The record after the one with this number.
    After(SequenceNumber),
}

/// A position in a shard, opaque and short-lived.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardIterator(pub String);

/// Iterators are long and say nothing.
impl fmt::Debug for ShardIterator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardIterator")
    }
}

/// The answer to one read.
#[derive(Clone, Debug)]
pub struct Page {
    /// The records, oldest first; often none. A record that producers aggregated is one record here.
    pub records: Vec<Record>,
    /// Where to read next; none at the end of a closed shard.
    pub next: Option<ShardIterator>,
    /// The shards that continue this one; only with no `next`, and then not from every server.
    pub children: Vec<ChildShard>,
    /// How far the end of this page is behind the shard's tip.
    pub behind: Duration,
}

/// Why the stream could not be read, by what the caller does next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Over the limit of reads or bytes a second. Wait, then repeat.
    #[error("reads are throttled while trying to {operation}")]
    Throttled {
        /// What was tried, for example `read records`.
        operation: &'static str,
        /// The cause.
        source: BoxError,
    },
    /// The iterator or the page token is too old. Make a new one.
    #[error("the iterator has expired")]
    ExpiredIterator,
    /// The shard has left the stream: all of its records are older than the retention period.
    #[error("shard {0} does not exist")]
    NoShard(ShardId),
    /// There is no such stream.
    #[error("stream {stream} does not exist")]
    NoStream {
        /// The stream's name or ARN.
        stream: String,
    },
    /// Timed out or unreachable. Safe to retry with back-off.
    #[error("stream unavailable while trying to {operation}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        source: BoxError,
    },
    /// The credentials are missing or may not do this. Retry only if they may change.
    #[error("not allowed to {operation}")]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        source: BoxError,
    },
}

/// Where metrics go. A sink may serve several workers, if it tells them apart by [`Sample::origin`].
#[async_trait]
pub trait MetricsSink: fmt::Debug + Send + Sync {
    /// Takes in one value. Called wherever it is measured: it must return at once.
    fn record(&self, sample: &Sample<'_>);

    /// The shard has left this worker: what is kept of it as a present state is to be forgotten.
    fn forget(&self, origin: &Origin, shard: &ShardId) {
        let _ = (origin, shard);
    }

    /// Publishes what was taken in. Called once a minute and when a worker stops, beside its work and never
    /// twice at a time for a worker that it was given to once. What cannot be published now is kept for the next time, within bounds.
    ///
    /// # Errors
    /// Whatever the error, the worker goes on; it is logged.
    async fn flush(&self) -> Result<(), MetricsError> {
        Ok(())
    }

    /// How many values were given up for lack of room, or refused for good, since this was last asked.
    fn dropped(&self) -> u64 {
        0
    }
}

/// Why metrics could not be published, by what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The credentials are missing or may not do this. What waits is kept, in case they change.
    #[error("not allowed to publish metrics; grant cloudwatch:PutMetricData, or set metrics_level to none")]
    Denied(#[source] BoxError),
    /// Throttled, timed out or unreachable. What waits goes with the next values.
    #[error("metrics were not published")]
    Unavailable(#[source] BoxError),
    /// The values were refused for good, and are dropped.
    #[error("metrics were refused and dropped")]
    Refused(#[source] BoxError),
}
