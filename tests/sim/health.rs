//! I8, honest health: a worker calls itself stale only if a restart would help, and does so in time.
//!
//! The observer knows by itself what the user's code does on each shard: whether it is at work, and when it last
//! gave a sign of progress; of records that are acknowledged later only those before which nothing is left count,
//! or one that was lost would be hidden by the others. Nothing else in a simulated worker can stand still: every call to AWS is answered,
//! refused or times out. Whatever else a worker calls stuck is a false alarm.

use std::{sync::Arc, time::Duration};

use kinesis_consumer::{
    ShardId,
    health::{Health, Reason},
};
use tokio::time::Instant;

use super::{processor::Seat, rules::State};

/// What the user's code does on one shard.
#[derive(Debug)]
pub(super) struct Work {
    /// Its last sign of progress: a call that began or returned, or an acknowledgement.
    since: Instant,
    /// Since when the first record that is not acknowledged has been the first.
    stands_since: Instant,
    /// Calls under way.
    calls: usize,
    /// It failed: what it owes begins with the next call.
    waits: bool,
}

impl Default for Work {
    fn default() -> Self {
        Self { since: Instant::now(), stands_since: Instant::now(), calls: 0, waits: false }
    }
}

impl Work {
    /// A call is under way.
    pub(super) fn is_called(&self) -> bool {
        self.calls > 0
    }
}

/// A call of the user's code, until it returns or is dropped.
pub(crate) struct Call(Arc<Seat>, ShardId);

impl Call {
    pub(crate) fn of(seat: &Arc<Seat>, shard: &ShardId) -> Self {
        seat.observer.signs(seat, shard, |work| {
            work.calls += 1;
            work.waits = false;
        });
        Self(seat.clone(), shard.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.observer.signs(&self.0, &self.1, |work| work.calls = work.calls.saturating_sub(1));
    }
}

impl State {
    /// The user's code gave a sign of progress.
    pub(super) fn signs(&mut self, seat: &Seat, shard: &ShardId, with: impl FnOnce(&mut Work)) {
        self.note_stall(seat.no, shard);
        let work = self.instances[seat.no].work.entry(shard.clone()).or_default();
        work.since = Instant::now();
        with(work);
    }

    /// The user's code failed and waits until it is called again.
    pub(super) fn waits(&mut self, seat: &Seat, shard: &ShardId) {
        self.signs(seat, shard, |work| work.waits = true);
    }

    /// The first record that is not acknowledged is another one.
    pub(super) fn moves_on(&mut self, no: usize, shard: &ShardId) {
        self.note_stall(no, shard);
        self.instances[no].work.entry(shard.clone()).or_default().stands_since = Instant::now();
    }

    pub(super) fn has_unfinished(&self, no: usize, shard: &ShardId) -> bool {
        let tenure = self.tenures.get(&(no, shard.clone()));
        tenure.is_some_and(|tenure| tenure.next.is_some_and(|next| tenure.acked_through + 1 < next))
    }

    /// For how long the user's code of a worker has been at work on a shard without a sign of progress.
    fn silence(&self, no: usize, shard: &ShardId) -> Option<Duration> {
        let instance = &self.instances[no];
        let work = instance.work.get(shard)?;
        let alive = instance.processors.get(shard).is_some_and(|count| *count > 0);
        let at_work = work.calls > 0 || (alive && self.has_unfinished(no, shard) && !work.waits);
        at_work.then(|| work.since.elapsed())
    }

    /// The same, or for how long one record has held up the checkpoint: reason enough to call a shard stuck.
    pub(super) fn standstill(&self, no: usize, shard: &ShardId) -> Option<Duration> {
        let work = self.instances[no].work.get(shard)?;
        let stands = self.has_unfinished(no, shard).then(|| work.stands_since.elapsed());
        self.silence(no, shard).max(stands)
    }

    /// Compares what a worker says of itself with what the observer knows. `frozen` workers say nothing, and
    /// `stopping` ones have a deadline of their own.
    pub(super) fn judge(&mut self, seat: &Seat, health: &Health, stopping: bool) {
        self.stops_in_time(seat);
        self.stays_within_budget(seat);
        self.ends_after_leaving(seat);
        // What it says when it has just woken up is of the time for which it stood still, until a call is answered.
        let wakes_up = |at: Instant| at.elapsed() <= self.rules.call_timeout();
        if seat.freezer.is_frozen() || self.instances[seat.no].thawed.is_some_and(wakes_up) {
            return;
        }
        let most = self.rules.health_max_age;
        if !health.is_fresh() {
            let known = health.shard.as_ref().and_then(|shard| self.standstill(seat.no, shard));
            let honest = health.reason == Reason::ProcessorStuck && known.is_some_and(|age| age > most);
            if !honest {
                self.violate(&seat.name, format!("is stale without a cause: {health:?}, known: {known:?}"));
            }
            return;
        }
        // Also one that stops by itself has a deadline.
        if stopping || health.reason == Reason::Stopping {
            return;
        }
        let held = self.instances[seat.no].work.keys().filter(|shard| {
            let tenure = self.tenures.get(&(seat.no, (*shard).clone()));
            tenure.is_some_and(|tenure| !tenure.over && !tenure.asked && Instant::now() < tenure.valid_until)
        });
        let silences = held.filter_map(|shard| Some((shard.clone(), self.silence(seat.no, shard)?)));
        if let Some((shard, age)) = silences.max_by_key(|(_, age)| *age)
            && age > most + Duration::from_millis(1)
        {
            self.violate(&seat.name, format!("is fresh, with {shard} stuck for {age:?}: {health:?}"));
        }
    }
}
