//! Errors, one type for each who acts on it: the author of the program, the operator, the processor.

use std::fmt;

use crate::{core::shard::Position, io::BoxError};

/// A worker that cannot be built. The author of the program corrects it; nothing was done yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Values that cannot work, all of them at once.
    #[error("invalid configuration: {}", Listed(.0))]
    Invalid(Vec<InvalidField>),
    /// No client for a service was given: call `aws`, or `kinesis` and `dynamodb`.
    #[error("no {0} client: call `.aws(&config)`, or give a built client")]
    NoClient(&'static str),
}

/// A field of the configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// Its name.
    pub field: &'static str,
    /// What is wrong, and what to change.
    pub why: String,
}

struct Listed<'a>(&'a [InvalidField]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, InvalidField { field, why }) in self.0.iter().enumerate() {
            write!(f, "{}{field}: {why}", if n > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a worker could not start, or had to end. The operator acts on it.
///
/// Whatever leases it still held were given up, or expire after `failover_time`. No checkpoint is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// AWS refuses the credentials at the start, or there are none. Grant what the message names. What is refused
    /// later, as when a token has run out, is tried again for as long as it takes.
    #[error("access denied: {what}; check the credentials and the role's policy")]
    Denied {
        /// What was refused.
        what: String,
        /// The cause.
        source: BoxError,
    },
    /// There is no such stream in this account and region.
    #[error("stream {0} does not exist in this account and region")]
    NoStream(String),
    /// The lease table is missing, and `lease_table` says that it must exist.
    #[error(
        "lease table {0} does not exist; create it (key `leaseKey`, a string) or set lease_table to create_if_missing"
    )]
    NoTable(String),
    /// The table cannot hold leases, or holds those of another stream.
    #[error("lease table {table} cannot be used: {why}")]
    WrongTable {
        /// The table's name.
        table: String,
        /// What is wrong, and what to change.
        why: String,
    },
    /// Another live process uses the same worker id.
    #[error("worker id {0} is in use by another live process; give every worker its own worker_id, or none")]
    WorkerIdInUse(String),
    /// A live worker renews leases one by one without saying that it knows heartbeats of workers, as the KCL
    /// does. It would take the leases of this worker for dead.
    #[error(
        "lease {lease} is renewed by {holder}, which does not know heartbeats of workers (a worker of the KCL?) and would take leases that live by them for dead; set heartbeat to lease, or end that worker first"
    )]
    ForeignHolder {
        /// The lease.
        lease: String,
        /// The worker that renews it.
        holder: String,
    },
    /// The health file cannot be written.
    #[error("health file {path} cannot be written; choose a writable path")]
    HealthFile {
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// AWS could not be reached at start for a minute.
    #[error("could not start: {what}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// The cause.
        source: BoxError,
    },
    /// A second signal came while the worker was stopping. Its leases expire after `failover_time`, and what
    /// was not checkpointed is processed again.
    #[error("stopped by a second signal, before the work in hand was finished")]
    Aborted,
    /// The processor asked for the end of the worker ([`Failure::StopWorker`]).
    #[error("the processor stopped the worker")]
    Processor(#[source] BoxError),
}

/// Why a checkpoint was not written. The processor acts on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The lease is gone; another worker goes on from the last checkpoint. Stop working on the shard.
    #[error("the lease is lost: {0}")]
    LeaseLost(LeaseLost),
    /// The position was never delivered, or is behind the checkpoint. Nothing was written.
    #[error("position {asked} is outside of what may be checkpointed, {} to {}", Known(.least), Known(.most))]
    OutOfRange {
        /// What was asked for.
        asked: Position,
        /// The present checkpoint.
        least: Option<Position>,
        /// The last position delivered.
        most: Option<Position>,
    },
    /// The table could not be reached. The lease is still held; try again, or go on: what is
    /// acknowledged is written later all the same.
    #[error("the checkpoint was not written")]
    Unavailable(#[source] BoxError),
}

struct Known<'a>(&'a Option<Position>);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(position) => position.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Why a lease is no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseLost {
    /// Another worker took it.
    #[error("another worker took it")]
    Stolen,
    /// It could not be renewed in time; others may take it, so this worker stopped before they do.
    #[error("it could not be renewed in time")]
    Expired,
    /// Its row is gone from the table.
    #[error("its row was deleted")]
    Deleted,
    /// The work made no progress for `stall_timeout`, and the lease was given up.
    #[error("the work made no progress")]
    Stalled,
    /// This worker gave it up: it stopped, or the processor asked for it.
    #[error("it was given up")]
    Released,
}

/// What an error of the user's code means. `?` on any error makes it [`Failure::Retry`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// Deliver the same records again, after a growing delay. The lease is kept and renewed.
    Retry(BoxError),
    /// These records can never be processed. They go to the dead-letter policy; as long as there is
    /// none, the shard stops here as with [`Failure::StopShard`], and nothing is skipped.
    Poison {
        /// The record, if one is known.
        at: Option<Position>,
        /// Why.
        why: BoxError,
    },
    /// Give this shard up; another worker, or this one after a while, goes on from the checkpoint.
    StopShard(BoxError),
    /// End the worker: it drains, and `run` returns [`WorkerError::Processor`].
    StopWorker(BoxError),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Retry(Box::new(error))
    }
}

impl Failure {
    /// A retry for a reason that is only a text.
    pub fn retry(why: impl Into<BoxError>) -> Self {
        Self::Retry(why.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_invalid_fields_are_named_in_one_message() {
        let invalid = |field, why: &str| InvalidField { field, why: why.into() };
        let error = BuildError::Invalid(vec![invalid("a", "is 0"), invalid("b", "is empty")]);
        assert_eq!(error.to_string(), "invalid configuration: a: is 0; b: is empty");
    }
}
