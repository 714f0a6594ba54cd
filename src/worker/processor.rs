//! What users implement: a processor for the records of one shard, and the tokens it is given.
//!
//! The tokens make the contract a type: a `ShardDone` comes only from completing the shard, a lost lease
//! brings no way to checkpoint. KCL: `ShardRecordProcessor`, `RecordProcessorCheckpointer`.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::select;
use tracing::Instrument;

use crate::{
    clock,
    core::{
        lease::Lease,
        record::{Batch, Record},
        shard::{Position, ShardId},
        shard_sync,
    },
    error::{CheckpointError, Failure, LeaseLost},
    io::{BoxError, LeaseError},
    worker::{shard::End, shard_link::ShardLink, spans},
};

/// Processes the records of one shard, as long as this worker holds its lease.
///
/// Calls never overlap. The lease is kept by another task, however long a call takes. Do not block the
/// thread: give blocking work to `tokio::task::spawn_blocking`.
///
/// ```
/// use kinesis_consumer::{Batch, Failure, RecordProcessor, ShardContext, Verdict};
///
/// struct Printer;
///
/// impl RecordProcessor for Printer {
///     async fn process(&mut self, batch: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
///         for record in &batch {
///             println!("{} {}", record.partition_key(), record.data().len());
///         }
///         Ok(Verdict::Done)
///     }
/// }
/// ```
pub trait RecordProcessor: Send + 'static {
    /// Processes a batch. The verdict says what of it is done; an error says what to do next, and
    /// `?` on any error means the same records again, after a delay. Nothing is ever skipped. (An error that
    /// is boxed, or `anyhow`'s, takes `.map_err(Failure::retry)?`.)
    ///
    /// The future is dropped at an await point when the lease is lost; it is never polled after that.
    fn process(
        &mut self,
        batch: Batch,
        context: &ShardContext,
    ) -> impl Future<Output = Result<Verdict, Failure>> + Send;

    /// The shard has ended and everything in it is acknowledged. Completing it is the only way to a
    /// [`ShardDone`]; until then its children are not read. On an error it is asked again after a delay.
    fn shard_ended(&mut self, end: EndOfShard) -> impl Future<Output = Result<ShardDone, Failure>> + Send {
        async move { Ok(end.complete().await?) }
    }

    /// The worker stops, or hands the lease over to another, and the lease is still held until [`Drain::deadline`]. By default what is
    /// acknowledged is checkpointed and the lease released.
    fn draining(&mut self, drain: Drain) -> impl Future<Output = Result<Drained, Failure>> + Send {
        async move { Ok(drain.finish().await?) }
    }

    /// The lease is gone, and with it any way to checkpoint: another worker goes on.
    fn lease_lost(&mut self, why: LeaseLost) -> impl Future<Output = ()> + Send {
        let _ = why;
        async {}
    }
}

/// Makes a processor for each lease that the worker takes. Async closures of a [`ShardStart`] do it too.
pub trait ProcessorFactory: Send + Sync + 'static {
    /// What it makes.
    type Processor: RecordProcessor;

    /// Makes the processor of one shard. On an error it is asked again after a delay; the lease is kept.
    fn create(&self, start: ShardStart) -> impl Future<Output = Result<Self::Processor, BoxError>> + Send;
}

impl<F, Fut, P> ProcessorFactory for F
where
    F: Fn(ShardStart) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<P, BoxError>> + Send,
    P: RecordProcessor,
{
    type Processor = P;

    fn create(&self, start: ShardStart) -> impl Future<Output = Result<P, BoxError>> + Send {
        self(start)
    }
}

/// What a processor begins with. KCL: `InitializationInput`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardStart {
    /// The shard.
    pub shard: ShardId,
    /// Everything up to here was processed before; none if the shard is new.
    pub from: Option<Position>,
    /// A checkpoint that an earlier processor prepared and did not commit, with its state. The records
    /// after `from` come again, whether or not they were covered by it.
    pub pending: Option<(Position, Bytes)>,
}

/// What of a batch is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Verdict {
    /// All of it.
    Done,
    /// Everything delivered up to this position, of this batch and earlier ones; the rest will be
    /// acknowledged later.
    DoneThrough(Position),
    /// Nothing yet: each record is acknowledged through [`ShardContext::acks`], in any order.
    AckLater,
}

/// What a processor can do besides returning a verdict.
#[derive(Clone, Debug)]
pub struct ShardContext {
    link: Arc<ShardLink>,
}

impl ShardContext {
    pub(super) fn new(link: Arc<ShardLink>) -> Self {
        Self { link }
    }

    /// The shard.
    pub fn shard(&self) -> &ShardId {
        &self.link.shard
    }

    /// A handle to acknowledge records with, from any task.
    pub fn acks(&self) -> Acks {
        Acks { link: self.link.clone() }
    }

    /// Writes a checkpoint: it is durable when this returns. Acknowledges everything up to `at`.
    ///
    /// Seldom needed, since what is acknowledged is written every `checkpoint_interval` at no extra cost.
    ///
    /// # Errors
    /// [`CheckpointError::OutOfRange`] if `at` was never delivered or is behind the checkpoint.
    pub async fn checkpoint(&self, at: &Position) -> Result<(), CheckpointError> {
        self.link.checkpoint(at).await
    }

    /// Stores `at` and `state` beside the checkpoint, durable when this returns, for
    /// [`Prepared::commit`] or for the next processor of the shard ([`ShardStart::pending`]).
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub async fn prepare(&self, at: &Position, state: Bytes) -> Result<Prepared, CheckpointError> {
        self.link.prepare(at, state).await?;
        Ok(Prepared { link: self.link.clone(), at: at.clone() })
    }

    /// Lets `handler` work on one record, in a span of its own if there are to be any.
    pub(crate) async fn trace<H, Fut>(&self, record: Record, handler: H) -> Result<(), Failure>
    where
        H: FnOnce(Record) -> Fut,
        Fut: Future<Output = Result<(), Failure>>,
    {
        let Some(tracer) = &self.link.tracer else { return handler(record).await };
        let span = tracer.process_record(&record);
        let work = span.in_scope(|| handler(record));
        let result = work.instrument(span.clone()).await;
        if let Err(failure) = &result {
            spans::failed(&span, failure);
        }
        result
    }

    /// Says that the work goes on: for what takes longer than `health_max_age` without an acknowledgement, in
    /// which a probe would take it for stuck, or than `stall_timeout`, after which the lease is given up.
    ///
    /// Call it where something was achieved, not from a timer.
    pub fn progress(&self) {
        self.link.progressed();
    }

    /// Resolves once the lease is lost: whatever is done after that, another worker does too.
    ///
    /// A [`RecordProcessor`] need not ask, its future is dropped; a loop over
    /// [`HeldShard::next`](crate::HeldShard::next) that works for long between two events should.
    pub async fn lost(&self) -> LeaseLost {
        self.link.held.lost().await
    }

    /// Resolves when the worker stops, or the lease is to be handed over: a hint to finish early. [`RecordProcessor::draining`] follows.
    pub async fn stopping(&self) {
        self.link.draining().await;
    }
}

/// Acknowledges records of one shard. Cheap to clone; acknowledging is not async and never fails.
#[derive(Clone, Debug)]
pub struct Acks {
    link: Arc<ShardLink>,
}

impl Acks {
    /// The record is done. The checkpoint follows once everything before it is done too.
    pub fn ack(&self, at: &Position) {
        self.link.ack(at);
    }

    /// Everything delivered up to this position is done.
    pub fn ack_through(&self, at: &Position) {
        self.link.ack_through(at);
    }
}

/// A checkpoint that is stored but not in force.
#[derive(Debug)]
#[must_use = "a prepared checkpoint is not in force until it is committed"]
pub struct Prepared {
    link: Arc<ShardLink>,
    at: Position,
}

impl Prepared {
    /// The position.
    pub fn position(&self) -> &Position {
        &self.at
    }

    /// Puts it into force. Acknowledges everything up to it.
    ///
    /// # Errors
    /// As [`ShardContext::checkpoint`]; also if a later checkpoint was written meanwhile.
    pub async fn commit(self) -> Result<(), CheckpointError> {
        self.link.commit(&self.at).await
    }
}

/// The end of a shard. Dropped without completing it, the shard stays unfinished and its children unread.
#[derive(Debug)]
#[must_use = "a shard that is not completed blocks its children"]
pub struct EndOfShard {
    link: Arc<ShardLink>,
    end: End,
}

/// Proof that a shard was completed.
#[derive(Debug)]
pub struct ShardDone(());

impl EndOfShard {
    pub(super) fn new(link: Arc<ShardLink>, end: End) -> Self {
        Self { link, end }
    }

    /// The shards that continue this one.
    pub fn children(&self) -> impl Iterator<Item = &ShardId> {
        self.end.children.iter().map(|child| &child.id)
    }

    /// The leases to make before those of the children. They were looked up when the end was read, and the user's
    /// code may have needed long since: others may have made and finished them.
    async fn other_parents(&self) -> Result<Vec<Lease>, CheckpointError> {
        let End { children, other_parents } = &self.end;
        if other_parents.is_empty() {
            return Ok(Vec::new());
        }
        let mut leased = BTreeSet::new();
        let found = other_parents.iter().map(|lease| lease.key.shard());
        for shard in children.iter().map(|child| child.id.clone()).chain(found) {
            let row = self.link.store.get(&(&shard).into()).await;
            if row.map_err(|error| CheckpointError::Unavailable(error.into()))?.is_some() {
                leased.insert(shard);
            }
        }
        Ok(shard_sync::still_without_lease(other_parents.clone(), children, |shard| leased.contains(shard)))
    }

    /// Renews the lease, makes the children's leases, then marks the shard as ended and gives its lease up, in
    /// this order: a crash in between leaves no shard without a lease. Waits for outstanding acknowledgements.
    ///
    /// # Errors
    /// [`CheckpointError::LeaseLost`] if the lease went meanwhile; else it can be asked for again.
    pub async fn complete(self) -> Result<ShardDone, CheckpointError> {
        select! {
            biased;
            why = self.link.held.lost() => return Err(CheckpointError::LeaseLost(why)),
            () = self.link.idle() => {}
        }
        let _ours = OurTurn::on(&self.link);
        // The lease may have been lost, or the table dropped, since it was last written: children that are made
        // now would be the first shards of an application that begins anew.
        if !self.end.children.is_empty() {
            self.link.persist(|tenure| Ok(tenure.renewal())).await?;
        }
        let stream = self.link.held.row().await.stream;
        let ids: BTreeSet<ShardId> = self.end.children.iter().map(|child| child.id.clone()).collect();
        let children = shard_sync::child_leases(&self.end.children);
        let parents = self.other_parents().await?;
        for mut lease in parents.into_iter().chain(children) {
            lease.stream.clone_from(&stream);
            if let Some(why) = self.link.held.why_lost() {
                return Err(CheckpointError::LeaseLost(why));
            }
            let created = self.link.store.create(&lease).await;
            created.map_err(|error: LeaseError| CheckpointError::Unavailable(error.into()))?;
        }
        self.link.persist(|tenure| Ok(tenure.finish(ids.clone()))).await?;
        self.link.set_finished();
        self.link.held.lose(LeaseLost::Released);
        Ok(ShardDone(()))
    }
}

/// While it lives, what is left is ours and the table's: the user's code owes no progress.
struct OurTurn<'a>(&'a ShardLink);

impl<'a> OurTurn<'a> {
    fn on(link: &'a ShardLink) -> Self {
        link.set_busy(false);
        Self(link)
    }
}

impl Drop for OurTurn<'_> {
    fn drop(&mut self) {
        // Nor does code that is dropped here, since its lease has gone.
        if self.0.held.why_lost().is_none() {
            self.0.set_busy(true);
        }
    }
}

/// A request to stop: the worker stops, or hands the lease over to another. Dropped without finishing it, the lease is given up at what is acknowledged.
#[derive(Debug)]
#[must_use]
pub struct Drain {
    link: Arc<ShardLink>,
    deadline: Instant,
}

/// Proof that a drain was finished.
#[derive(Debug)]
pub struct Drained(());

impl Drain {
    pub(super) fn new(link: Arc<ShardLink>, deadline: Instant) -> Self {
        Self { link, deadline }
    }

    /// Until when the work in hand can be finished.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits until everything delivered is acknowledged, or the deadline passes: for work that is acknowledged
    /// later. Says whether it is.
    pub async fn acknowledged(&self) -> bool {
        select! {
            biased;
            () = self.link.idle() => true,
            () = clock::sleep_until(self.deadline) => false,
            _ = self.link.held.lost() => false,
        }
    }

    /// Checkpoints what is acknowledged and gives the lease up, or hands it over, in one write.
    ///
    /// # Errors
    /// The lease is not held any more in any case; what was not written is processed again elsewhere.
    pub async fn finish(self) -> Result<Drained, CheckpointError> {
        self.link.give_up().await?;
        Ok(Drained(()))
    }

    /// Acknowledges everything up to `at`, then finishes.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn finish_at(self, at: &Position) -> Result<Drained, CheckpointError> {
        self.link.ack_through(at);
        self.finish().await
    }
}
