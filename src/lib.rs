//! Read an Amazon Kinesis data stream with a fleet of workers: the Kinesis Client Library's job, in Rust.
//!
//! ```no_run
//! use kinesis_consumer::{Config, InitialPosition, Ordering, Worker, shutdown_signal};
//!
//! # async fn add_to_cart(_: &str, _: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
//! let worker = Worker::builder("cart-worker", "cart-queue") // application (= lease table), stream
//!     .aws(&aws)
//!     .config(Config { initial_position: InitialPosition::TrimHorizon, ..Config::default() })
//!     .each(Ordering::Shard, |record| async move {
//!         add_to_cart(record.partition_key(), record.data()).await?; // an error: the same record again
//!         Ok(())
//!     })?;
//! worker.run_until(shutdown_signal()).await?; // SIGTERM: finish, checkpoint, release, return
//! # Ok(())
//! # }
//! ```
//!
//! A worker is [built](Worker::builder) with one of three faces over one pull kernel: a closure for each
//! record ([`WorkerBuilder::each`]), a [`RecordProcessor`] for each shard ([`WorkerBuilder::build`]), or a
//! stream of shards to pull from ([`WorkerBuilder::stream`]).
//!
//! Inside, rules decide and loops act:
//!
//! ```text
//! list_shards -> shard_sync -> LeaseView -> balance -> claim -> one task a shard:
//!     open -> read -> expand -> process -> watermark -> checkpoint
//! ```
//!
//! It does not decide what your records mean, how long your code may take, or when to scale.

#[cfg(feature = "cli")]
pub mod cli;
mod clock;
mod config;
mod core;
mod error;
pub mod health;
pub mod io;
#[cfg(feature = "local")]
pub mod local;
pub mod metrics;
mod processing;
#[cfg(test)]
mod spoiled;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod worker;

#[cfg(any(test, feature = "test-util"))]
pub use crate::worker::Freezer;
pub use crate::{
    config::{Config, Heartbeat, InitialPosition, LeaseTable, OnShutdown, ShardOrder},
    core::{
        balance::{Balance, Reason as ClaimReason},
        heartbeat::{Incarnation, WorkerRow},
        lease::{
            Checkpoint, CheckpointGoesBack, Claimant, HandOff, InvalidCheckpoint, Lease, LeaseKey,
            LeaseWrite, Mark, OwnerChange, PendingCheckpoint, Reset, Tenure, WorkerId,
        },
        record::{Batch, Record},
        shard::{ChildShard, HashKeyRange, InvalidSequenceNumber, Position, SequenceNumber, Shard, ShardId},
        trace_context::TraceContext,
    },
    error::{BuildError, CheckpointError, Failure, InvalidField, LeaseLost, WorkerError},
    processing::each::Ordering,
    worker::{
        Acks, Assignments, Drain, Drained, EndOfShard, Event, Events, HeldShard, Prepared, ProcessorFactory,
        RecordProcessor, Report, SecondSignal, ShardContext, ShardDone, ShardEvent, ShardStart, Tracing,
        Verdict, Worker, WorkerBuilder, WorkerHandle, shutdown_signal,
    },
};

/// The README's examples compile and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
