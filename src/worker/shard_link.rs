//! What the tasks of one shard share: the held lease, the watermark of acknowledgements, the request to
//! drain, and how it all ended.
//!
//! User code acknowledges here; the renewer writes from here; the supervisor learns from here.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::{
    clock,
    core::{
        health::{Doing, ShardSigns},
        lag::Lag,
        lease::{Checkpoint, CheckpointGoesBack, Lease, LeaseWrite, Tenure},
        progress::Progress,
        record::Batch,
        shard::{Position, ShardId},
        throughput::Meter,
        watermark::Watermark,
    },
    error::{CheckpointError, LeaseLost},
    io::LeaseStore,
    worker::{
        faults::FaultLogs,
        freeze::Gate,
        held_lease::{HeldLease, WriteError},
        meter::ShardMeter,
        spans::Tracer,
    },
};

/// How long a write that the user waits for is tried before the user is told.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a drain waits for one more read, so that the next holder does not find what came since the last
/// one. Most reads take some hundredths of a second; a slow one must not hold up what it is to speed up.
const LAST_READ: Duration = Duration::from_millis(300);

/// The link between the tasks of one shard.
#[derive(Debug)]
pub(super) struct ShardLink {
    pub(super) shard: ShardId,
    pub(super) held: HeldLease,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) meter: Arc<ShardMeter>,
    state: Mutex<State>,
    /// Rings for the renewer when the watermark moved or work began or ended.
    pub(super) changed: Notify,
    /// Rings for whoever waits for the last acknowledgement.
    settled: Notify,
    /// Rings when the user's side has nothing to do: reading then needs no memory budget.
    pub(super) hungry: Notify,
    is_hungry: AtomicBool,
    lag: Mutex<Lag>,
    /// The record that the checkpoint stands at was not there any more.
    has_gap: AtomicBool,
    /// The deadline of a drain, once one is asked for.
    drain_until: OnceLock<Instant>,
    /// Until when that drain waits for the last read.
    read_until: OnceLock<Instant>,
    /// The drain is for another worker to take the lease.
    is_for_others: AtomicBool,
    /// Unlike a watch channel this wakes its waiters in the order in which they came: runs can be repeated.
    drain_asked: CancellationToken,
    /// The user's side has let go of the shard.
    pub(super) let_go: CancellationToken,
    /// Reading has begun.
    pub(super) opened: CancellationToken,
    /// Records handed to the user's code, repeats included.
    pub(super) records: AtomicU64,
    terms: Terms,
    pub(super) fault_logs: FaultLogs,
    pub(super) tracer: Option<Arc<Tracer>>,
    gate: Gate,
}

/// How a lease is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Whether a drain leaves the lease with this worker.
    pub(super) keep_on_drain: bool,
    /// The time between two checkpoints.
    pub(super) checkpoint_interval: Duration,
    /// The time from the first checkpoint after a pause to the next one, no longer than the interval and
    /// different for each lease: shards that become busy at one time are then written apart.
    pub(super) first_interval: Duration,
}

#[derive(Debug)]
struct State {
    watermark: Watermark,
    meter: Meter,
    /// What the row holds.
    stored: Checkpoint,
    /// When a checkpoint was last written.
    written_at: Option<Instant>,
    /// When the next one may be written.
    write_after: Instant,
    progress: Progress,
    reader: Doing,
    /// Since when every read has failed.
    reads_failing: Option<Instant>,
    finished: bool,
}

impl ShardLink {
    pub(super) fn new(
        held: HeldLease,
        row: &Lease,
        store: Arc<dyn LeaseStore>,
        meter: Arc<ShardMeter>,
        terms: Terms,
    ) -> Self {
        let state = State {
            watermark: Watermark::new(row.checkpoint.position().cloned()),
            meter: Meter::new(row.throughput_kbps, clock::now()),
            stored: row.checkpoint.clone(),
            written_at: None,
            write_after: clock::now(),
            progress: Progress::default(),
            reader: Doing::Idle,
            reads_failing: None,
            finished: false,
        };
        Self {
            shard: row.key.shard(),
            held,
            store,
            meter,
            state: Mutex::new(state),
            changed: Notify::new(),
            settled: Notify::new(),
            hungry: Notify::new(),
            is_hungry: AtomicBool::new(true),
            lag: Mutex::new(Lag::new(clock::now())),
            has_gap: AtomicBool::new(false),
            drain_until: OnceLock::new(),
            read_until: OnceLock::new(),
            is_for_others: AtomicBool::new(false),
            drain_asked: CancellationToken::new(),
            let_go: CancellationToken::new(),
            opened: CancellationToken::new(),
            records: AtomicU64::new(0),
            terms,
            fault_logs: FaultLogs::default(),
            tracer: None,
            gate: Gate::default(),
        }
    }

    /// Notes what is delivered, for tests.
    pub(super) fn with_gate(self, gate: Gate) -> Self {
        Self { gate, ..self }
    }

    /// Makes spans of the work on the shard.
    pub(super) fn with_tracer(self, tracer: Option<Arc<Tracer>>) -> Self {
        Self { tracer, ..self }
    }

    /// The span of a checkpoint's write.
    fn settle(&self) -> Span {
        self.tracer.as_ref().map_or_else(Span::none, |tracer| tracer.settle(&self.shard))
    }

    /// Logs repeated faults together with the other shards of the worker.
    pub(super) fn with_fault_logs(self, fault_logs: FaultLogs) -> Self {
        Self { fault_logs, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held could only come from a broken invariant in the watermark itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether reading has begun, or never will.
    pub(super) fn is_open_or_over(&self) -> bool {
        self.opened.is_cancelled() || self.let_go.is_cancelled()
    }

    /// Hands a batch to the user's code.
    pub(super) fn deliver(&self, batch: &Batch) {
        let mut state = self.state();
        state.watermark.delivered(batch.records().iter().map(|record| record.position().clone()));
        state.meter.add(batch.records().iter().map(|record| record.data().len()).sum());
        state.progress.on_batch(clock::now());
        drop(state);
        self.changed.notify_one();
        self.meter.delivered(batch);
        self.count(batch);
    }

    /// The user's code asks for the next batch: what is not acknowledged of earlier ones will be later.
    pub(super) fn hand_on(&self) {
        let mut state = self.state();
        let unfinished = !state.watermark.is_idle();
        let through = state.watermark.last_delivered().filter(|_| unfinished).cloned();
        state.progress.on_next(through, clock::now());
        drop(state);
        self.changed.notify_one();
    }

    /// Counts the records of a batch that the user's code sees, again or for the first time.
    pub(super) fn count(&self, batch: &Batch) {
        self.records.fetch_add(batch.records().len() as u64, Ordering::Relaxed);
        self.gate.delivered(batch);
    }

    /// The user's code begins with something else, or has nothing to do any more.
    pub(super) fn set_busy(&self, busy: bool) {
        self.progress(|progress| progress.begins(busy, clock::now()));
    }

    /// The user's code waits with our knowledge, after a failure.
    pub(super) fn pause_until(&self, until: Instant) {
        self.progress(|progress| progress.on_pause(until));
    }

    /// The user's code goes on after such a wait.
    pub(super) fn resume(&self) {
        self.progress(|progress| progress.on_batch(clock::now()));
    }

    /// A call of the user's code begins or ends.
    pub(super) fn set_in_call(&self, in_call: bool) {
        self.state().progress.set_in_call(in_call);
    }

    /// The user's code says that it goes on. Means nothing while it has no work.
    pub(super) fn progressed(&self) {
        self.progress(|progress| progress.on_sign(clock::now()));
    }

    /// Takes in progress, and lets the renewer know.
    fn progress(&self, with: impl FnOnce(&mut Progress)) {
        with(&mut self.state().progress);
        self.changed.notify_one();
    }

    /// What the reader is doing.
    pub(super) fn set_reader(&self, doing: Doing) {
        self.state().reader = doing;
    }

    /// Whether the last read succeeded.
    pub(super) fn read_succeeds(&self, succeeds: bool) {
        let failing = &mut self.state().reads_failing;
        match succeeds {
            true => *failing = None,
            false => {
                failing.get_or_insert_with(clock::now);
            }
        }
    }

    /// What there is to judge the health of the shard by.
    pub(super) fn signs(&self) -> ShardSigns {
        let state = self.state();
        let work = match (state.progress.doing(), self.drain_until.get()) {
            // Until its deadline a drain may take its time.
            (Doing::Working { since }, Some(until)) => Doing::Waiting { until: since.max(*until) },
            (doing, _) => doing,
        };
        ShardSigns {
            shard: self.shard.clone(),
            reader: state.reader,
            work,
            retrying: state.progress.is_paused(),
            reads_failing: state.reads_failing,
        }
    }

    /// Since when the user's code has made no progress that it owes.
    pub(super) fn owed_since(&self) -> Option<Instant> {
        self.state().progress.owed_since()
    }

    /// Whether the user's side waits for records.
    pub(super) fn set_hungry(&self, hungry: bool) {
        self.is_hungry.store(hungry, Ordering::Release);
        if hungry {
            self.hungry.notify_one();
        }
    }

    pub(super) fn is_hungry(&self) -> bool {
        self.is_hungry.load(Ordering::Acquire)
    }

    /// What the shard brings, in KiB/s; none if that is not known yet.
    pub(super) fn throughput_kbps(&self) -> Option<f64> {
        let meter = &mut self.state().meter;
        let kbps = meter.read(clock::now());
        meter.is_known().then_some(kbps)
    }

    fn lag(&self) -> MutexGuard<'_, Lag> {
        // Plain data: a panic elsewhere leaves it whole.
        self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read was answered, and brought records up to `last`; the oldest of them is that old.
    pub(super) fn on_read(&self, age: Duration, last: Option<&Position>) {
        self.lag().on_read(age, last.cloned(), clock::now());
    }

    /// How old the oldest record is that is not processed.
    pub(super) fn behind(&self) -> Duration {
        self.lag().at(clock::now())
    }

    pub(super) fn set_gap(&self) {
        self.has_gap.store(true, Ordering::Release);
    }

    /// Whether a gap was found since this was last asked.
    pub(super) fn take_gap(&self) -> bool {
        self.has_gap.swap(false, Ordering::AcqRel)
    }

    /// Takes in acknowledgements; `with` says whether any of them is new.
    fn acknowledge(&self, with: impl FnOnce(&mut Watermark) -> bool) {
        let mut state = self.state();
        let before = state.watermark.done().cloned();
        let news = with(&mut state.watermark);
        let idle = state.watermark.is_idle();
        let moved = state.watermark.done().filter(|done| Some(*done) != before.as_ref()).cloned();
        state.progress.on_ack(news, moved.as_ref(), idle, clock::now());
        drop(state);
        if let Some(through) = moved {
            self.lag().on_done(&through);
            self.meter.acknowledged(&through);
        }
        self.changed.notify_one();
        if idle {
            self.settled.notify_waiters();
        }
    }

    pub(super) fn ack(&self, position: &Position) {
        self.acknowledge(|watermark| watermark.ack(position));
    }

    pub(super) fn ack_through(&self, position: &Position) {
        self.acknowledge(|watermark| watermark.ack_through(position) > 0);
    }

    pub(super) fn ack_batch(&self, batch: &Batch) {
        self.acknowledge(|watermark| watermark.ack_range(batch.first(), batch.last()) > 0);
    }

    /// Everything up to here is acknowledged.
    pub(super) fn done(&self) -> Option<Position> {
        self.state().watermark.done().cloned()
    }

    pub(super) fn unfinished(&self) -> usize {
        self.state().watermark.unfinished()
    }

    /// The checkpoint to write, if the watermark is ahead of the row.
    pub(super) fn unwritten(&self) -> Option<Checkpoint> {
        let state = self.state();
        let done = Checkpoint::At(state.watermark.done()?.clone());
        (done > state.stored).then_some(done)
    }

    /// When the next checkpoint is to be written; none if there is nothing to write.
    pub(super) fn write_due(&self) -> Option<Instant> {
        self.unwritten()?;
        Some(self.state().write_after)
    }

    fn written(&self, checkpoint: Checkpoint) {
        let (mut state, now, interval) = (self.state(), clock::now(), self.terms.checkpoint_interval);
        let paused = state.written_at.is_none_or(|at| now >= at + interval * 2);
        state.write_after = now + if paused { self.terms.first_interval } else { interval };
        state.written_at = Some(now);
        state.stored = state.stored.clone().max(checkpoint);
        let delivered = state.watermark.last_delivered();
        self.meter.checkpointed(delivered.is_none_or(|last| state.stored.position() >= Some(last)));
    }

    /// The row was written without a checkpoint. The next one waits as it does after any other write: it can
    /// then take the place of the next renewal.
    fn renewed(&self) {
        let mut state = self.state();
        state.write_after = state.write_after.max(clock::now() + self.terms.checkpoint_interval);
    }

    /// Renews the lease.
    pub(super) async fn renew(&self) -> Result<(), WriteError> {
        self.held.renew().await?;
        self.renewed();
        Ok(())
    }

    /// Writes the watermark, once, if it is ahead of the row.
    pub(super) async fn flush(&self) -> Result<(), WriteError> {
        let Some(to) = self.unwritten() else { return Ok(()) };
        self.held.write(|tenure| forward(tenure, &to)).instrument(self.settle()).await?;
        self.written(to);
        Ok(())
    }

    /// Writes a checkpoint that the user waits for: acknowledges everything up to it.
    pub(super) async fn checkpoint(&self, at: &Position) -> Result<(), CheckpointError> {
        self.check_range(at)?;
        self.ack_through(at);
        let to = Checkpoint::At(at.clone());
        if self.state().stored >= to {
            return Ok(());
        }
        self.persist(|tenure| forward(tenure, &to)).instrument(self.settle()).await?;
        self.written(to);
        Ok(())
    }

    /// Stores a prepared checkpoint beside the one in force.
    pub(super) async fn prepare(&self, at: &Position, state: bytes::Bytes) -> Result<(), CheckpointError> {
        self.check_range(at)?;
        let to = Checkpoint::At(at.clone());
        self.persist(|tenure| tenure.prepare(to.clone(), Some(state.clone()))).await?;
        self.renewed();
        Ok(())
    }

    /// Puts a prepared checkpoint into force, also when it is the one in force already.
    pub(super) async fn commit(&self, at: &Position) -> Result<(), CheckpointError> {
        self.check_range(at)?;
        self.ack_through(at);
        let to = Checkpoint::At(at.clone());
        self.persist(|tenure| tenure.checkpoint(to.clone())).instrument(self.settle()).await?;
        self.written(to);
        Ok(())
    }

    fn check_range(&self, asked: &Position) -> Result<(), CheckpointError> {
        if let Some(why) = self.held.why_lost() {
            return Err(CheckpointError::LeaseLost(why));
        }
        let state = self.state();
        let (least, most) = (state.stored.position().cloned(), state.watermark.last_delivered().cloned());
        let within = least.as_ref() <= Some(asked) && Some(asked) <= most.as_ref();
        if within { Ok(()) } else { Err(CheckpointError::OutOfRange { asked: asked.clone(), least, most }) }
    }

    /// Tries a write for a while; throttling and time-outs are worth it.
    pub(super) async fn persist(
        &self,
        make: impl Fn(&Tenure) -> Result<LeaseWrite, CheckpointGoesBack> + Send + Sync,
    ) -> Result<(), CheckpointError> {
        self.persist_until(clock::now() + PATIENCE, make).await
    }

    /// Tries a write until then, or until the lease is lost.
    async fn persist_until(
        &self,
        until: Instant,
        make: impl Fn(&Tenure) -> Result<LeaseWrite, CheckpointGoesBack> + Send + Sync,
    ) -> Result<(), CheckpointError> {
        let mut delay = Duration::from_millis(50);
        loop {
            match self.held.write(&make).await {
                Ok(()) => return Ok(()),
                Err(WriteError::Lost(why)) => return Err(CheckpointError::LeaseLost(why)),
                Err(WriteError::GoesBack(error)) => return Err(CheckpointError::Unavailable(error.into())),
                Err(WriteError::Unavailable(error)) if clock::now() + delay >= until => {
                    return Err(CheckpointError::Unavailable(error.into()));
                }
                Err(WriteError::Unavailable(_)) => clock::sleep(delay).await,
            }
            delay = (delay * 2).min(Duration::from_secs(1));
        }
    }

    /// Until when giving the lease up is worth trying: the end of the drain, once there is one, and a moment
    /// after it.
    fn give_up_until(&self) -> Instant {
        let least = clock::now() + PATIENCE / 2;
        self.drain_until.get().map_or_else(|| clock::now() + PATIENCE, |until| *until.max(&least))
    }

    /// Whether the lease stays with this worker when it is given up now: only at the worker's own stop.
    pub(super) fn is_kept(&self) -> bool {
        let is_for_others = self.held.is_asked() || self.is_for_others.load(Ordering::Acquire);
        self.terms.keep_on_drain && self.is_draining() && !is_for_others
    }

    /// Ends the holding at the watermark, as the worker's configuration says: the lease is given up, or stays
    /// in our name and is marked as left. One that was asked for is handed over. The holding ends in any case.
    pub(super) async fn give_up(&self) -> Result<(), CheckpointError> {
        let (to, kept) = (self.unwritten(), self.is_kept());
        let span = if to.is_some() { self.settle() } else { Span::none() };
        let result = self
            .persist_until(self.give_up_until(), |tenure| {
                // The watermark may have been written meanwhile by a write in doubt.
                let last = to.clone().filter(|to| *to > tenure.row().checkpoint);
                if kept { tenure.leave(last) } else { tenure.release(last) }
            })
            .instrument(span)
            .await;
        if let (Ok(()), Some(to)) = (&result, to) {
            self.written(to);
        }
        self.held.lose(LeaseLost::Released);
        result
    }

    pub(super) fn set_finished(&self) {
        self.state().finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state().finished
    }

    /// Asks the user's side to stop until then. The first deadline stays.
    pub(super) fn ask_to_drain(&self, until: Instant) {
        self.drain_until.get_or_init(|| until);
        self.read_until.get_or_init(|| until.min(clock::now() + LAST_READ));
        self.drain_asked.cancel();
    }

    /// The same for a lease that is to go to another worker, whoever that is.
    pub(super) fn ask_to_release(&self, until: Instant) {
        self.is_for_others.store(true, Ordering::Release);
        self.ask_to_drain(until);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain_asked.is_cancelled()
    }

    /// Resolves with the deadline once a drain is asked for.
    pub(super) async fn draining(&self) -> Instant {
        self.drain_asked.cancelled().await;
        *self.drain_until.get().expect("set before the token is cancelled")
    }

    /// Resolves with the deadline of a drain once it waits for no read any more.
    pub(super) async fn read_or_draining(&self) -> Instant {
        let until = self.draining().await;
        clock::sleep_until(self.read_until.get().map_or_else(clock::now, |until| *until)).await;
        until
    }

    /// Resolves once everything delivered is acknowledged.
    pub(super) async fn idle(&self) {
        loop {
            let mut settled = pin!(self.settled.notified());
            // From here on no ring is missed.
            settled.as_mut().enable();
            if self.unfinished() == 0 {
                return;
            }
            settled.await;
        }
    }
}

/// The write that moves the checkpoint to `to`, or only renews if the row is there already.
fn forward(tenure: &Tenure, to: &Checkpoint) -> Result<LeaseWrite, CheckpointGoesBack> {
    if *to <= tenure.row().checkpoint { Ok(tenure.renewal()) } else { tenure.checkpoint(to.clone()) }
}

#[cfg(test)]
mod tests;
