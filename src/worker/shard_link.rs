//! What the tasks of one shard share: the held lease, the watermark of acknowledgements, the request to
//! drain, and how it all ended.
//!
//! User code acknowledges here; the renewer writes from here; the supervisor learns from here.

mod writes;

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

use crate::{
    clock,
    core::{
        health::{Doing, ShardSigns},
        lag::Lag,
        lease::{Checkpoint, Lease},
        progress::Progress,
        record::Batch,
        shard::{Position, ShardId},
        throughput::Meter,
        watermark::Watermark,
    },
    io::LeaseStore,
    worker::{faults::FaultLogs, freeze::Gate, held_lease::HeldLease, meter::ShardMeter, spans::Tracer},
};

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
    /// Since when every read has failed, without the time in which none was tried.
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

    /// For so long no read was tried: that none succeeded says nothing.
    pub(super) fn reads_waited(&self, time: Duration) {
        let failing = &mut self.state().reads_failing;
        *failing = failing.map(|since| since + time);
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
            // A reader that waits for memory tries none.
            reads_failing: state.reads_failing.filter(|_| state.reader != Doing::Idle),
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
        self.acknowledge(|watermark| {
            watermark.ack_range(batch.first(), batch.last());
            // A return is progress, whatever was acknowledged before it.
            true
        });
    }

    /// Everything up to here is acknowledged.
    pub(super) fn done(&self) -> Option<Position> {
        self.state().watermark.done().cloned()
    }

    pub(super) fn unfinished(&self) -> usize {
        self.state().watermark.unfinished()
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

#[cfg(test)]
mod tests;
