//! Faults that a test lets the local Kinesis and CloudWatch meet, and how often each operation was called.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What goes wrong with a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is refused and has no effect.
    Error {
        /// The HTTP status.
        status: u16,
        /// The error code, for example `ProvisionedThroughputExceededException`.
        code: String,
        /// The message.
        message: String,
    },
    /// It takes effect after this time.
    Delay(Duration),
    /// The connection is closed; it has no effect.
    Drop,
    /// It takes effect, but the connection is closed before the answer.
    DropAfter,
}

impl Fault {
    /// A refusal with status 400 and this error code.
    pub fn error(code: &str) -> Self {
        Self::Error { status: 400, code: code.to_owned(), message: "injected".to_owned() }
    }

    /// The refusal of a call above the limits of a shard.
    pub fn throttle() -> Self {
        Self::error("ProvisionedThroughputExceededException")
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<String, VecDeque<Fault>>,
    calls: BTreeMap<String, u64>,
}

impl Faults {
    pub(super) fn inject(&self, operation: &str, times: usize, fault: &Fault) {
        let mut state = self.lock();
        let waiting = state.waiting.entry(operation.to_owned()).or_default();
        waiting.extend(std::iter::repeat_n(fault.clone(), times));
    }

    pub(super) fn clear(&self) {
        self.lock().waiting.clear();
    }

    pub(super) fn calls(&self, operation: &str) -> u64 {
        self.lock().calls.get(operation).copied().unwrap_or(0)
    }

    /// Counts a call and returns the fault that it meets.
    pub(super) fn meet(&self, operation: &str) -> Option<Fault> {
        let mut state = self.lock();
        *state.calls.entry(operation.to_owned()).or_default() += 1;
        let mut next = |of: &str| state.waiting.get_mut(of).and_then(VecDeque::pop_front);
        next(operation).or_else(|| next("*"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
