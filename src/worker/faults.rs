//! Repeated faults: which of them to log.
//!
//! One log for each kind of fault of a worker, however many shards meet it: a line when it begins, one a minute
//! with the number of faults meanwhile, and one when the last shard is over it. An outage of all shards is
//! as many lines as that of one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::clock;

/// The least time between two lines about faults of one kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// The faults of one kind. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct FaultLog(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    interval: Duration,
    /// How many rows have begun and are not over.
    rows: usize,
    /// Faults since the first row began.
    count: u64,
    /// Faults since the last line.
    untold: u64,
    told_at: Option<Instant>,
    /// Whether there was a line since the first row began.
    told: bool,
}

impl FaultLog {
    fn every(interval: Duration) -> Self {
        let state = State { interval, rows: 0, count: 0, untold: 0, told_at: None, told: false };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A row of faults in it, which has not begun: that of one shard, for example.
    pub(super) fn row(&self) -> Faults {
        Faults { log: self.clone(), begun: false }
    }
}

impl Default for FaultLog {
    fn default() -> Self {
        Self::every(INTERVAL)
    }
}

/// The logs that the shards of a worker share.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultLogs {
    pub(super) reads: FaultLog,
    pub(super) aggregates: FaultLog,
    pub(super) listings: FaultLog,
    pub(super) renewals: FaultLog,
    pub(super) processing: FaultLog,
}

/// A row of faults of one kind.
#[derive(Debug)]
pub(super) struct Faults {
    log: FaultLog,
    begun: bool,
}

impl Default for Faults {
    /// A row with a log of its own.
    fn default() -> Self {
        FaultLog::default().row()
    }
}

impl Faults {
    /// A row of which only the first fault is logged.
    pub(super) fn once() -> Self {
        FaultLog::every(Duration::MAX).row()
    }

    /// One more. If it is to be logged, the number of faults to log with it.
    pub(super) fn failed(&mut self) -> Option<u64> {
        let now = clock::now();
        let mut state = self.log.lock();
        state.rows += usize::from(!std::mem::replace(&mut self.begun, true));
        state.count += 1;
        state.untold += 1;
        let silent = state.told_at.is_some_and(|at| now.saturating_duration_since(at) < state.interval);
        if silent {
            return None;
        }
        state.told_at = Some(now);
        state.told = true;
        Some(std::mem::take(&mut state.untold))
    }

    /// A success. If it is the end of all rows, and they were logged, the number of their faults.
    pub(super) fn over(&mut self) -> Option<u64> {
        if !std::mem::take(&mut self.begun) {
            return None;
        }
        let mut state = self.log.lock();
        state.rows -= 1;
        if state.rows > 0 {
            return None;
        }
        state.untold = 0;
        let count = std::mem::take(&mut state.count);
        std::mem::take(&mut state.told).then_some(count)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // The shard is gone, and its faults with it.
        self.over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn faults_of_all_shards_are_a_line_a_minute_with_their_number_and_one_at_the_end() {
        let log = FaultLog::default();
        let mut shards: Vec<Faults> = (0..16).map(|_| log.row()).collect();
        let mut lines = Vec::new();
        for _ in 0..600 {
            lines.extend(shards.iter_mut().filter_map(Faults::failed));
            clock::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(lines[0], 1);
        assert_eq!(lines[1..], [16 * 60; 9]);
        let ends: Vec<u64> = shards.iter_mut().filter_map(Faults::over).collect();
        assert_eq!(ends, [16 * 600]);
    }

    #[tokio::test(start_paused = true)]
    async fn faults_that_come_and_go_are_no_more_lines() {
        let mut faults = Faults::default();
        let (mut begun, mut ended) = (0, 0);
        for _ in 0..600 {
            begun += usize::from(faults.failed().is_some());
            ended += usize::from(faults.over().is_some());
            clock::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((begun, ended), (10, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_leaves_ends_its_row() {
        let log = FaultLog::default();
        let (mut a, mut b) = (log.row(), log.row());
        assert_eq!((a.failed(), b.failed()), (Some(1), None));
        drop(b);
        assert_eq!(a.over(), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_once_is_told_again_only_after_it_was_over() {
        let mut faults = Faults::once();
        assert_eq!(faults.failed(), Some(1));
        clock::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(faults.failed(), None);
        assert_eq!(faults.over(), Some(2));
    }
}
