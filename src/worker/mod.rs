//! The worker: joins the rules of `core` with the doors of `io` in loops, and runs the user's code.
//!
//! One coordinator looks at the table and claims; each claimed shard is a consumer with its own reader,
//! renewer and user task; all end with [`Worker::run`].

mod builder;
mod consumer;
mod coordinator;
mod driver;
mod events;
mod faults;
mod freeze;
mod health;
mod health_file;
mod held_lease;
mod meter;
mod metered;
mod processor;
mod pulse;
mod reader;
mod renewer;
mod reporter;
mod shard;
mod shard_link;
mod signal;
mod spans;
mod startup;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    select,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

#[cfg(any(test, feature = "test-util"))]
pub use self::freeze::Freezer;
pub use self::{
    builder::WorkerBuilder,
    events::{Event, Events},
    processor::{
        Acks, Drain, Drained, EndOfShard, Prepared, ProcessorFactory, RecordProcessor, ShardContext,
        ShardDone, ShardStart, Verdict,
    },
    shard::{Shard as HeldShard, ShardEvent},
    signal::{SecondSignal, shutdown_signal},
    spans::Tracing,
};
use crate::{
    core::{health::Health, shard::ShardId},
    error::WorkerError,
};

/// One member of the fleet that reads a stream. Made by [`Worker::builder`].
#[must_use = "a worker does nothing until it is run"]
#[derive(Debug)]
pub struct Worker {
    parts: coordinator::Parts,
    handle: WorkerHandle,
    phase: watch::Sender<Phase>,
}

/// Follows and stops a worker from elsewhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    stop: CancellationToken,
    ready: CancellationToken,
    vitals: health::Vitals,
    events: events::Source,
    phase: watch::Receiver<Phase>,
}

#[derive(Clone, Debug)]
enum Phase {
    Running,
    Ended,
}

/// What a worker did, when it has stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How long it ran.
    pub ran_for: Duration,
    /// Records handed to the user's code, repeats included.
    pub records: u64,
    /// Shards processed to their end.
    pub finished: Vec<ShardId>,
    /// Shards whose lease was released: others take them at once. One that was held twice is named twice,
    /// here as in the other lists.
    pub released: Vec<ShardId>,
    /// Shards whose lease stays with this worker after its stop, until it expires: asked for, or not released in
    /// time.
    pub kept: Vec<ShardId>,
    /// Shards whose work was stopped at the end of `shutdown_timeout`, because it had not ended by then: what was
    /// not acknowledged is processed again. Their leases are among those released, kept or lost.
    pub cut_off: Vec<ShardId>,
    /// Shards whose lease was lost.
    pub lost: Vec<ShardId>,
    /// Shards whose records left the stream before they were processed:
    /// [`Event::RetentionPassed`], once for each.
    pub outlived: Vec<ShardId>,
}

impl Worker {
    /// Begins to describe a worker of `application` on `stream` (a name or an ARN).
    ///
    /// The application's name is also the name of its lease table, unless the configuration has another.
    pub fn builder(application: impl Into<String>, stream: impl Into<String>) -> WorkerBuilder {
        WorkerBuilder::new(application.into(), stream.into())
    }

    /// A handle to follow and stop the worker with.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }

    /// Runs until [`WorkerHandle::shutdown`] is called or the worker cannot go on; then finishes the work
    /// in hand, writes the last checkpoints and releases the leases, within `shutdown_timeout`.
    ///
    /// Dropping the future stops hard: leases expire after `failover_time`, and what was not
    /// checkpointed is processed again elsewhere.
    ///
    /// # Errors
    /// [`WorkerError`] says what to change. Nothing is written before the checks at start have passed.
    pub async fn run(self) -> Result<Report, WorkerError> {
        if let Some(file) = &self.parts.health_file {
            let path = file.path.display().to_string();
            file.prepare().map_err(|source| WorkerError::HealthFile { path, source })?;
        }
        let gate = self.parts.gate.clone();
        let vitals = self.parts.vitals.clone();
        let mut beside = JoinSet::new();
        let ended = CancellationToken::new();
        let watch =
            vitals.clone().watch(self.parts.health_file.clone(), self.parts.events.clone(), ended.clone());
        beside.spawn(gate.pass(watch));
        beside.spawn(gate.pass(reporter::run(self.parts.meter.clone(), gate.clone(), ended.clone())));
        let result = gate.pass(coordinator::Coordinator::run(self.parts, self.handle.stop.clone())).await;
        vitals.end();
        ended.cancel();
        while beside.join_next().await.is_some() {}
        if let Ok(report) = &result {
            info!(
                ran_for = ?report.ran_for,
                records = report.records,
                finished = report.finished.len(),
                released = report.released.len(),
                kept = report.kept.len(),
                cut_off = report.cut_off.len(),
                lost = report.lost.len(),
                outlived = report.outlived.len(),
                "worker stopped"
            );
        }
        self.phase.send_replace(Phase::Ended);
        result
    }

    /// Runs as [`run`](Self::run) does, and also stops when `signal` resolves, usually
    /// [`shutdown_signal()`]. A second signal aborts.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_until<S: Into<SecondSignal>>(
        self,
        signal: impl Future<Output = S>,
    ) -> Result<Report, WorkerError> {
        let stop = self.handle.stop.clone();
        let mut run = pin!(self.run());
        let second = select! {
            biased;
            result = &mut run => return result,
            second = signal => second.into(),
        };
        info!("stopping: finishing what is in hand");
        stop.cancel();
        select! {
            biased;
            result = run => result,
            () = second.received() => {
                info!("stopping at once; leases expire");
                Err(WorkerError::Aborted)
            }
        }
    }
}

impl WorkerHandle {
    /// Resolves once the first leases are held and their shards are being read; also if there is nothing
    /// to hold. False if the worker ended before.
    pub async fn ready(&self) -> bool {
        let mut phase = self.phase.clone();
        select! {
            biased;
            () = self.ready.cancelled() => true,
            _ = phase.wait_for(|phase| matches!(phase, Phase::Ended)) => false,
        }
    }

    /// How the worker is at this moment. Cheap; also without a `health_file`.
    pub fn health(&self) -> Health {
        self.vitals.assess()
    }

    /// Asks the worker to stop, and waits until it has. [`Worker::run`] returns the report.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let mut phase = self.phase.clone();
        // An error means that the worker was dropped: it has ended too.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ended)).await;
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        self.events.subscribe()
    }
}

/// The shards that a pulling worker takes, one after the other. A [`Stream`](futures_core::Stream).
///
/// Dropping it lets the worker go on without taking shards: each is released as soon as it is claimed.
#[derive(Debug)]
pub struct Assignments(mpsc::Receiver<HeldShard>);

impl Assignments {
    /// Waits for the next shard; none once the worker has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<HeldShard> {
        self.0.recv().await
    }
}

impl futures_core::Stream for Assignments {
    type Item = HeldShard;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<HeldShard>> {
        self.0.poll_recv(cx)
    }
}

/// What is shared by the worker and its handles.
fn handles(parts: &coordinator::Parts) -> (WorkerHandle, watch::Sender<Phase>) {
    let (sender, phase) = watch::channel(Phase::Running);
    let handle = WorkerHandle {
        stop: CancellationToken::new(),
        ready: parts.ready.clone(),
        vitals: parts.vitals.clone(),
        events: parts.events.downgrade(),
        phase,
    };
    (handle, sender)
}

/// The parts of a worker, ready to run.
fn assemble(parts: coordinator::Parts) -> Worker {
    let (handle, phase) = handles(&parts);
    Worker { parts, handle, phase }
}

/// Hands each shard to a puller.
fn pulled() -> (consumer::Delivery, Assignments) {
    let (sender, receiver) = mpsc::channel(1);
    let delivery: consumer::Delivery = Arc::new(move |shard| {
        let sender = sender.clone();
        shard.link().meter.pull();
        Box::pin(async move {
            // Nobody takes shards any more: letting go of it releases the lease.
            let _ = sender.send(shard).await;
            consumer::DriverEnd::HandedOver
        })
    });
    (delivery, Assignments(receiver))
}
