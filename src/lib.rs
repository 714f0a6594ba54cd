//! Read an Amazon Kinesis data stream with a fleet of workers.

mod clock;
mod config;
mod core;
mod error;
pub mod health;
pub mod io;
#[cfg(feature = "local")]
pub mod local;
mod processing;
mod worker;

pub use crate::{
    config::{Config, InitialPosition, LeaseTable, OnShutdown},
    core::{
        balance::Reason as ClaimReason,
        lease::{
            Checkpoint, CheckpointGoesBack, InvalidCheckpoint, Lease, LeaseKey, LeaseWrite, Mark,
            OwnerChange, PendingCheckpoint, Tenure, WorkerId,
        },
        record::{Batch, Record},
        shard::{ChildShard, HashKeyRange, InvalidSequenceNumber, Position, SequenceNumber, Shard, ShardId},
    },
    error::{BuildError, CheckpointError, Failure, InvalidField, LeaseLost, WorkerError},
    processing::each::Ordering,
    worker::{
        Acks, Assignments, Drain, Drained, EndOfShard, Event, Events, HeldShard, Prepared, ProcessorFactory,
        RecordProcessor, Report, SecondSignal, ShardContext, ShardDone, ShardEvent, ShardStart, Verdict,
        Worker, WorkerBuilder, WorkerHandle, shutdown_signal,
    },
};
