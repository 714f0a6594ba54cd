//! Read an Amazon Kinesis data stream with a fleet of workers.

mod clock;
mod core;
pub mod io;
#[cfg(feature = "local")]
pub mod local;

pub use crate::core::{
    balance::Reason as ClaimReason,
    lease::{
        Checkpoint, CheckpointGoesBack, InvalidCheckpoint, Lease, LeaseKey, LeaseWrite, Mark, OwnerChange,
        PendingCheckpoint, Tenure, WorkerId,
    },
    record::{Batch, Record},
    shard::{ChildShard, HashKeyRange, InvalidSequenceNumber, Position, SequenceNumber, Shard, ShardId},
};
