//! The heartbeat of this worker: one row that says that it lives, for all the leases that it holds.
//!
//! A [`Pulse`] is one incarnation, an unbroken run of beats; why it must be unbroken is in
//! `core::heartbeat`. Leases live by it; the [`Heart`] knows which one beats now. When a pulse breaks, its
//! leases renew themselves, one by one, and go over to the next pulse.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};
use tokio::select;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    clock,
    core::{
        backoff::Backoff,
        heartbeat::{Incarnation, WorkerRow},
        lease::WorkerId,
    },
    io::{LeaseError, LeaseStore},
    worker::{faults::Faults, renewer::cause},
};

/// What a worker lives by from its start to its end.
#[derive(Debug, Default)]
pub(super) struct Heart(Mutex<Lives>);

#[derive(Debug, Default)]
struct Lives {
    current: Option<Arc<Pulse>>,
    /// How many were begun.
    begun: u64,
}

impl Heart {
    fn lock(&self) -> MutexGuard<'_, Lives> {
        // Only plain data is behind this lock: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pulse that beats now.
    pub(super) fn current(&self) -> Option<Arc<Pulse>> {
        self.lock().current.clone().filter(|pulse| !pulse.is_broken())
    }

    /// Begins the next incarnation: makes its row. None if the name was taken, or the reply came too late.
    pub(super) async fn begin(
        &self,
        me: &WorkerId,
        process: u64,
        store: &dyn LeaseStore,
        failover_time: Duration,
    ) -> Result<Option<Arc<Pulse>>, LeaseError> {
        // One for each try: the row may be there although the reply is lost.
        let number = {
            let mut lives = self.lock();
            lives.begun += 1;
            lives.begun
        };
        let incarnation = Incarnation::new(me, process, number);
        let sent_at = clock::now();
        if !store.beat(&WorkerRow { incarnation: incarnation.clone(), counter: 0 }).await? {
            return Ok(None);
        }
        let pulse = Arc::new(Pulse::new(incarnation, failover_time, sent_at));
        self.lock().current = Some(pulse.clone());
        Ok((!pulse.is_broken()).then_some(pulse))
    }
}

/// One incarnation of this worker. Once broken it never beats again.
#[derive(Debug)]
pub(super) struct Pulse {
    incarnation: Incarnation,
    failover_time: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// When the last beat that counts was sent.
    proven_at: Instant,
    broken: bool,
}

impl Pulse {
    pub(super) fn new(incarnation: Incarnation, failover_time: Duration, sent_at: Instant) -> Self {
        let state = Mutex::new(State { proven_at: sent_at, broken: false });
        Self { incarnation, failover_time, state }
    }

    pub(super) fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the last beat that counts was sent: the leases are ours for `failover_time` from then.
    pub(super) fn proven_at(&self) -> Instant {
        self.state().proven_at
    }

    /// Whether it is over. Reads the clock: past its validity it is.
    pub(super) fn is_broken(&self) -> bool {
        let mut state = self.state();
        state.broken |= clock::now() >= state.proven_at + self.failover_time;
        state.broken
    }

    /// Takes in that a beat sent at `sent_at` was answered now. False if that was too late: others may have
    /// called the incarnation over before the beat was applied.
    pub(super) fn answered(&self, sent_at: Instant) -> bool {
        if self.is_broken() {
            return false;
        }
        let mut state = self.state();
        state.proven_at = state.proven_at.max(sent_at);
        true
    }

    fn break_off(&self) {
        self.state().broken = true;
    }

    /// Beats until it is broken, or until `stop`; then deletes the row. A row left behind is deleted by others.
    pub(super) async fn keep(
        &self,
        store: &dyn LeaseStore,
        beat_after: Duration,
        rng: &mut impl Rng,
        stop: &CancellationToken,
    ) {
        let mut row = WorkerRow { incarnation: self.incarnation.clone(), counter: 0 };
        let (mut faults, mut backoff) = (Faults::default(), Backoff::new(beat_after / 50, beat_after / 5));
        let mut due = self.proven_at() + beat_after.mul_f64(rng.random_range(0.98..1.0));
        while !self.is_broken() {
            select! {
                biased;
                () = stop.cancelled() => {
                    let forgotten = store.forget(&row).await;
                    debug!(worker = %self.incarnation, forgotten = matches!(forgotten, Ok(true)), "heartbeat ends");
                    return;
                }
                () = clock::sleep_until(due) => {}
            }
            if self.is_broken() {
                break;
            }
            // A number of its own for each try, so that a late one never passes for a later one.
            row.counter += 1;
            let sent_at = clock::now();
            match store.beat(&row).await {
                Ok(true) if self.answered(sent_at) => {
                    if let Some(count) = faults.over() {
                        debug!(worker = %self.incarnation, count, "heartbeats succeed again");
                    }
                    backoff.reset();
                    due = sent_at + beat_after.mul_f64(rng.random_range(0.98..1.0));
                }
                Ok(true) => break,
                Ok(false) | Err(LeaseError::NoTable { .. }) => {
                    warn!(worker = %self.incarnation, "the worker's row is gone from the lease table");
                    self.break_off();
                }
                Err(error) => {
                    let left =
                        (self.proven_at() + self.failover_time).saturating_duration_since(clock::now());
                    if let Some(count) = faults.failed() {
                        warn!(worker = %self.incarnation, %error, cause = cause(&error), count, ?left, "heartbeat failed; trying again");
                    }
                    let delay = backoff.next(rng).min(left / 8).max(beat_after / 50);
                    due = clock::now() + delay;
                }
            }
        }
        warn!(worker = %self.incarnation, "the heartbeat is broken; leases are renewed one by one, and another begins");
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::io::{
        faulty::{Fault, FaultyLeaseStore, Op},
        memory::MemoryLeaseStore,
    };

    const FAILOVER: Duration = Duration::from_secs(10);
    const BEAT: Duration = Duration::from_secs(5);

    struct Beating {
        table: MemoryLeaseStore,
        faults: crate::io::faulty::Faults,
        heart: Heart,
        store: FaultyLeaseStore<MemoryLeaseStore>,
        pulse: Arc<Pulse>,
    }

    async fn begin() -> Beating {
        let (table, faults) = (MemoryLeaseStore::new(), crate::io::faulty::Faults::new(1));
        table.open(true).await.expect("a table");
        let store = FaultyLeaseStore::new(table.clone(), faults.clone());
        let heart = Heart::default();
        let begun = heart.begin(&"me".into(), 7, &store, FAILOVER).await;
        let pulse = begun.expect("no error").expect("a pulse");
        Beating { table, faults, heart, store, pulse }
    }

    impl Beating {
        /// Beats for that long.
        async fn keep_for(&self, time: Duration) {
            let (stop, mut rng) = (CancellationToken::new(), StdRng::seed_from_u64(2));
            let keep = self.pulse.keep(&self.store, BEAT, &mut rng, &stop);
            let _ = tokio::time::timeout(time, keep).await;
        }

        fn counter(&self) -> Option<u64> {
            self.table.worker_rows().first().map(|row| row.counter)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_beats_twice_in_failover_time_and_deletes_its_row_in_the_end() {
        let beating = begin().await;
        beating.keep_for(FAILOVER * 6).await;
        assert!((12..=13).contains(&beating.counter().expect("a row")), "{:?}", beating.counter());
        assert!(!beating.pulse.is_broken());
        let begun = beating.heart.begin(&"me".into(), 7, &beating.store, FAILOVER).await;
        let pulse = begun.expect("no error").expect("another");
        let stop = CancellationToken::new();
        stop.cancel();
        pulse.keep(&beating.store, BEAT, &mut StdRng::seed_from_u64(2), &stop).await;
        assert_eq!(beating.table.worker_rows().len(), 1, "only the first is left");
        assert_ne!(pulse.incarnation(), beating.pulse.incarnation());
    }

    #[tokio::test(start_paused = true)]
    async fn lost_replies_and_failures_break_nothing_while_there_is_time() {
        let beating = begin().await;
        beating.faults.next(Op::Beat, 2, Fault::LostReply);
        beating.faults.next(Op::Beat, 2, Fault::Throttled);
        beating.keep_for(FAILOVER * 3).await;
        assert!(!beating.pulse.is_broken());
    }

    #[tokio::test(start_paused = true)]
    async fn a_beat_that_is_answered_too_late_is_the_end_although_it_was_sent_in_time() {
        let beating = begin().await;
        beating.faults.next(Op::Beat, 1, Fault::DelayedReply(FAILOVER));
        beating.keep_for(FAILOVER * 3).await;
        assert!(beating.pulse.is_broken() && beating.heart.current().is_none());
        assert_eq!(beating.counter(), Some(1), "nothing is written after it");
        assert!(!beating.pulse.answered(clock::now()), "and nothing brings it back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_deleted_by_hand_is_the_end_of_the_incarnation() {
        let beating = begin().await;
        beating.keep_for(FAILOVER).await;
        beating.table.remove_worker_row(beating.pulse.incarnation());
        beating.keep_for(BEAT * 2).await;
        assert!(beating.pulse.is_broken());
        assert_eq!(beating.counter(), None, "it is not made again");
    }
}
