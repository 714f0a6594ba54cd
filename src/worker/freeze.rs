//! What tests do to a worker. Freezing it: what SIGSTOP, a paused virtual machine or a starved process does to it.
//!
//! Every task of a worker is polled through its gate. Without the feature `test-util` the gate is nothing.

use std::future::Future;

use crate::core::record::Batch;

/// What the tasks of one worker are polled through.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    #[cfg(any(test, feature = "test-util"))]
    pub(super) freezer: Freezer,
    /// What was handed to the user's code, for tests that ask.
    #[cfg(any(test, feature = "test-util"))]
    pub(super) deliveries: Option<crate::testing::Deliveries>,
}

impl Gate {
    /// Notes that a batch is handed to the user's code.
    pub(super) fn delivered(&self, batch: &Batch) {
        #[cfg(any(test, feature = "test-util"))]
        if let Some(deliveries) = &self.deliveries {
            deliveries.add(batch);
        }
        #[cfg(not(any(test, feature = "test-util")))]
        let _ = batch;
    }

    /// Runs `work`, but not while the worker is frozen.
    pub(super) fn pass<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        #[cfg(any(test, feature = "test-util"))]
        return self.freezer.pass(work);
        #[cfg(not(any(test, feature = "test-util")))]
        work
    }
}

#[cfg(any(test, feature = "test-util"))]
pub use self::freezer::Freezer;

#[cfg(any(test, feature = "test-util"))]
mod freezer {
    use std::{
        future::{Future, poll_fn},
        pin::pin,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
        task::{Poll, Waker},
    };

    /// Stops every task of a worker at its next await point, and lets them go on later, while the clock
    /// and everybody else go on: the worker wakes up as a zombie. Clones share one worker.
    #[derive(Clone, Debug, Default)]
    pub struct Freezer(Arc<Mutex<State>>);

    #[derive(Debug, Default)]
    struct State {
        frozen: bool,
        waiting: Vec<Waker>,
    }

    impl Freezer {
        /// Not frozen.
        pub fn new() -> Self {
            Self::default()
        }

        /// From now on no task of the worker is polled.
        pub fn freeze(&self) {
            self.lock().frozen = true;
        }

        /// All tasks go on, with whatever happened meanwhile.
        pub fn thaw(&self) {
            let mut state = self.lock();
            state.frozen = false;
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
        }

        /// Whether the worker is frozen.
        pub fn is_frozen(&self) -> bool {
            self.lock().frozen
        }

        /// Runs `work`, but not while frozen: for the tasks of the user's own code.
        pub fn pass<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
            let freezer = self.clone();
            async move {
                let mut work = pin!(work);
                poll_fn(|cx| {
                    let mut state = freezer.lock();
                    if state.frozen {
                        state.waiting.push(cx.waker().clone());
                        return Poll::Pending;
                    }
                    drop(state);
                    work.as_mut().poll(cx)
                })
                .await
            }
        }

        fn lock(&self) -> MutexGuard<'_, State> {
            // Plain data: a panic elsewhere leaves it whole.
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering::Relaxed},
        time::Duration,
    };

    use super::*;
    use crate::clock;

    #[tokio::test(start_paused = true)]
    async fn a_frozen_task_stands_still_and_then_goes_on() {
        let (gate, steps) = (Gate::default(), AtomicU32::new(0));
        let work = gate.pass(async {
            for _ in 0..3 {
                clock::sleep(Duration::from_secs(1)).await;
                steps.fetch_add(1, Relaxed);
            }
        });
        let freezing = async {
            clock::sleep(Duration::from_millis(1500)).await;
            gate.freezer.freeze();
            clock::sleep(Duration::from_secs(60)).await;
            assert_eq!(steps.load(Relaxed), 1);
            gate.freezer.thaw();
        };
        tokio::join!(work, freezing);
        assert_eq!(steps.load(Relaxed), 3);
    }
}
