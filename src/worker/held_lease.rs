//! One lease that this worker holds: its tenure, the only writer of its row in this process, until when
//! the holding is certain, and the moment it ends.
//!
//! A write whose reply is lost stays in doubt: the next failed condition is then read back once, and our
//! own counter is recognised. With nothing in doubt a failed condition is a theft.
//!
//! A lease that lives by the worker's heartbeat is not written while it rests; looks at the table then tell
//! whether it is still ours.

use std::{
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    clock,
    core::lease::{CheckpointGoesBack, Claimant, Lease, LeaseKey, LeaseWrite, OwnerChange, Tenure},
    error::{CheckpointError, LeaseLost},
    io::{LeaseError, LeaseStore},
    worker::pulse::{Heart, Pulse},
};

/// Who claims leases, where, and by what they live.
#[derive(Debug, Clone)]
pub(super) struct Taker {
    pub(super) me: Claimant,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) failover_time: Duration,
    /// None if each lease is renewed by itself.
    pub(super) heart: Option<Arc<Heart>>,
}

/// A lease of this worker. Shared by the tasks of its shard; writes queue behind one another.
#[derive(Debug)]
pub(super) struct HeldLease {
    key: LeaseKey,
    store: Arc<dyn LeaseStore>,
    failover_time: Duration,
    heart: Option<Arc<Heart>>,
    /// The lease's own lock: held across its writes, so that two tasks never race on its counter.
    writer: tokio::sync::Mutex<Writer>,
    standing: Mutex<Standing>,
    ended: CancellationToken,
    /// Another worker asked for the lease.
    asked: CancellationToken,
}

#[derive(Debug)]
struct Writer {
    tenure: Tenure,
    /// Writes on the present counter that may have been applied without our knowing, oldest first.
    in_doubt: Vec<(LeaseWrite, Instant)>,
}

#[derive(Debug)]
struct Standing {
    /// When the last write of the lease that succeeded was sent.
    proven_at: Instant,
    /// What the lease lives by besides its own writes, as its row says.
    pulse: Option<Arc<Pulse>>,
    /// When the row was last seen or written as ours; none if a look made that doubtful.
    checked_at: Option<Instant>,
    lost: Option<LeaseLost>,
    /// The row was given up, and others may take the lease.
    given_up: bool,
    /// It was, or is marked as left: nothing may be written any more, whatever the reason.
    closed: bool,
}

impl Standing {
    fn alive_at(&self) -> Instant {
        self.pulse.as_ref().map_or(self.proven_at, |pulse| self.proven_at.max(pulse.proven_at()))
    }
}

/// For how long a write that somebody waits for is tried again.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Why a write of a holder was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the lease is lost: {0}")]
    Lost(LeaseLost),
    #[error(transparent)]
    GoesBack(#[from] CheckpointGoesBack),
    /// Unknown whether it was applied. The lease is still held.
    #[error(transparent)]
    Unavailable(LeaseError),
}

impl From<WriteError> for CheckpointError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Lost(why) => Self::LeaseLost(why),
            WriteError::GoesBack(error) => Self::Unavailable(error.into()),
            WriteError::Unavailable(error) => Self::Unavailable(error.into()),
        }
    }
}

impl HeldLease {
    fn new(tenure: Tenure, by: &Taker, pulse: Option<Arc<Pulse>>) -> Self {
        let (proven_at, checked_at) = (tenure.proven_at(), Some(tenure.proven_at()));
        let standing = Standing { proven_at, pulse, checked_at, lost: None, given_up: false, closed: false };
        Self {
            key: tenure.row().key.clone(),
            store: by.store.clone(),
            failover_time: by.failover_time,
            heart: by.heart.clone(),
            writer: tokio::sync::Mutex::new(Writer { tenure, in_doubt: Vec::new() }),
            standing: Mutex::new(standing),
            ended: CancellationToken::new(),
            asked: CancellationToken::new(),
        }
    }

    /// Claims `seen` for its holding to begin. A lost race is `Ok(None)`.
    pub(super) async fn claim(seen: &Lease, by: &Taker) -> Result<Option<(Lease, Self)>, LeaseError> {
        let Taker { me, store, .. } = by;
        let pulse = by.heart.as_ref().and_then(|heart| heart.current());
        let mut claim = seen.claim(me);
        if let Some(pulse) = &pulse {
            claim = claim.living_by(pulse.incarnation().clone());
        }
        let sent_at = clock::now();
        let row = match store.claim(&claim).await {
            Ok(row) => row,
            Err(LeaseError::Conflict(_)) => return Ok(None),
            // Applied or not? The row tells. If it cannot be read either, the claim expires like any lease.
            Err(error @ LeaseError::Unavailable { .. }) => match store.get(&seen.key).await {
                Ok(Some(row)) if claim.took_effect_on(&row, me.worker()) => row,
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        };
        // The row was made anew since it was seen, and its shard has been finished since. Or it was changed
        // between the claim and a second call that reads it.
        let Some(tenure) = Tenure::taken(row, &claim, sent_at).filter(|tenure| !tenure.row().is_finished())
        else {
            return Ok(None);
        };
        let row = tenure.row().clone();
        Ok(Some((row, Self::new(tenure, by, pulse))))
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        // Only plain data is behind this lock: a panic elsewhere leaves it whole.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when nobody else may take the lease, unless it is renewed meanwhile.
    pub(super) fn valid_until(&self) -> Instant {
        self.standing().alive_at() + self.failover_time
    }

    /// When the row is to be written again, as things stand: `renew_after` the last write. With a heartbeat
    /// that beats only if no look has shown the row to be ours for long, or if the beats fail for long.
    pub(super) fn renewal_due(&self, renew_after: Duration) -> Instant {
        let standing = self.standing();
        let own = standing.proven_at + renew_after;
        match (&standing.pulse, standing.checked_at) {
            (Some(pulse), Some(checked_at)) if !pulse.is_broken() => {
                let seen = standing.proven_at.max(checked_at) + self.failover_time;
                seen.min(standing.alive_at() + self.failover_time * 3 / 4)
            }
            (Some(_), None) => standing.proven_at,
            _ => own,
        }
    }

    /// Writes the row, so that it is known to be ours for another `failover_time`. A lease whose heartbeat is
    /// broken goes over to the one that beats now.
    pub(super) async fn renew(&self) -> Result<(), WriteError> {
        let next = self.heart.as_ref().and_then(|heart| heart.current());
        self.write(|tenure| {
            let next = next.as_ref().map(|pulse| pulse.incarnation());
            match next.filter(|next| tenure.row().heartbeat.as_ref() != Some(next)) {
                Some(next) => Ok(tenure.renewal().living_by(next.clone())),
                None => Ok(tenure.renewal()),
            }
        })
        .await
    }

    /// Why the lease is no longer held; none while it is. Reads the clock: past its validity it is lost.
    pub(super) fn why_lost(&self) -> Option<LeaseLost> {
        let mut standing = self.standing();
        if standing.lost.is_none() && clock::now() >= standing.alive_at() + self.failover_time {
            standing.lost = Some(LeaseLost::Expired);
            self.ended.cancel();
        }
        standing.lost
    }

    /// Whether the row is still ours to give up, though the work on the shard may have been ended already.
    pub(super) fn can_give_up(&self) -> bool {
        match self.why_lost() {
            None => true,
            Some(LeaseLost::Stalled | LeaseLost::Released) => {
                !self.standing().closed && clock::now() < self.valid_until()
            }
            Some(_) => false,
        }
    }

    /// Whether the row was given up, and others may take the lease.
    pub(super) fn is_given_up(&self) -> bool {
        self.standing().given_up
    }

    /// Ends the holding in this process. The first reason stays.
    pub(super) fn lose(&self, why: LeaseLost) {
        self.standing().lost.get_or_insert(why);
        self.ended.cancel();
    }

    /// Resolves once the lease is no longer held.
    pub(super) async fn lost(&self) -> LeaseLost {
        loop {
            if let Some(why) = self.why_lost() {
                return why;
            }
            tokio::select! {
                biased;
                () = self.ended.cancelled() => {}
                () = clock::sleep_until(self.valid_until()) => {}
            }
        }
    }

    /// Runs `work` only while the lease is held; past that `work` is dropped and never polled again. Work
    /// that gives the lease up itself may go on.
    ///
    /// The clock is read before each poll: a process that was frozen does not run on for a moment.
    pub(super) async fn guard<F: Future>(&self, work: F) -> Result<F::Output, LeaseLost> {
        let taken = |why: &LeaseLost| *why != LeaseLost::Released;
        let mut lost = pin!(async {
            match self.lost().await {
                LeaseLost::Released => pending().await,
                why => why,
            }
        });
        let mut work = Some(Box::pin(work));
        poll_fn(|cx| {
            if let Poll::Ready(why) = lost.as_mut().poll(cx) {
                work = None;
                return Poll::Ready(Err(why));
            }
            if let Some(why) = self.why_lost().filter(taken) {
                work = None;
                return Poll::Ready(Err(why));
            }
            let work: Pin<&mut F> = work.as_mut().expect("polled only until ready").as_mut();
            work.poll(cx).map(Ok)
        })
        .await
    }

    /// Lets the writes from now on note the shard's throughput.
    pub(super) async fn measured(&self, throughput_kbps: f64) {
        self.writer.lock().await.tenure.measured(throughput_kbps);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Resolves once another worker has asked for the lease.
    pub(super) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Takes in the row as a look at the table showed it: another owner with a later counter ends the
    /// holding, and a request for the lease is noticed, before the next write would find out. A write under
    /// way will find out by itself. None if the look showed no row. Says whether the lease is in doubt, so
    /// that it should be written at once: only if it may rest otherwise.
    pub(super) fn observe(&self, row: Option<&Lease>) -> bool {
        let Ok(mut writer) = self.writer.try_lock() else { return false };
        let certain = writer.in_doubt.is_empty();
        if certain && row.is_some_and(|row| self.notice(&mut writer, row)) {
            self.standing().checked_at = Some(clock::now());
            return false;
        }
        let tenure = &writer.tenure;
        let later = row.is_some_and(|row| row.counter > tenure.row().counter);
        let others = row
            .is_none_or(|row| row.holder() != Some(tenure.me()) || row.hands_over != tenure.row().hands_over);
        if certain && later && others {
            debug!(lease = %self.key, owner = ?row.map(|row| &row.owner), "the table shows another owner");
            self.lose(LeaseLost::Stolen);
        }
        // An older row that is ours is but a stale look.
        let doubtful = self.heart.is_some() && (later || others);
        if doubtful {
            self.standing().checked_at = None;
        }
        doubtful
    }

    /// The row as this worker last wrote it, once no write is under way.
    pub(super) async fn row(&self) -> Lease {
        self.writer.lock().await.tenure.row().clone()
    }

    /// Makes one write, once; a reply that was lost is found out at the next write.
    ///
    /// `make` may be called again, on a newer row, if an earlier write turns out to have been applied.
    pub(super) async fn write(
        &self,
        make: impl Fn(&Tenure) -> Result<LeaseWrite, CheckpointGoesBack> + Send + Sync,
    ) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().await;
        loop {
            if let Some(why) = self.why_lost().filter(|_| !self.can_give_up()) {
                return Err(WriteError::Lost(why));
            }
            let write = make(&writer.tenure)?;
            let sent_at = clock::now();
            // Noted before it is sent: this future may be dropped while it waits for the reply.
            writer.in_doubt.push((write.clone(), sent_at));
            match self.store.write(&write).await {
                Ok(()) => {
                    self.accept(&mut writer, &write, sent_at);
                    return Ok(());
                }
                Err(LeaseError::Conflict(_)) => {
                    writer.in_doubt.pop();
                    if !self.recover(&mut writer).await? {
                        let why = self.why_lost().unwrap_or(LeaseLost::Stolen);
                        return Err(WriteError::Lost(why));
                    }
                    if !self.is_settled(&writer, &write) {
                        continue;
                    }
                    return Ok(());
                }
                Err(LeaseError::NoTable { .. }) => {
                    self.lose(LeaseLost::Deleted);
                    return Err(WriteError::Lost(LeaseLost::Deleted));
                }
                Err(error) => return Err(WriteError::Unavailable(error)),
            }
        }
    }

    /// Makes one write, and again until then or until the lease is lost, while the table does not answer.
    pub(super) async fn write_until(
        &self,
        until: Instant,
        make: impl Fn(&Tenure) -> Result<LeaseWrite, CheckpointGoesBack> + Send + Sync,
    ) -> Result<(), WriteError> {
        let mut delay = Duration::from_millis(50);
        loop {
            match self.write(&make).await {
                Err(WriteError::Unavailable(_)) if clock::now() + delay < until => clock::sleep(delay).await,
                settled => return settled,
            }
            delay = (delay * 2).min(Duration::from_secs(1));
        }
    }

    /// Whether `row` is that of this holding; takes in whether another worker asks for the lease.
    fn notice(&self, writer: &mut Writer, row: &Lease) -> bool {
        let ours = writer.tenure.notice(row);
        if ours && row.is_leaving(writer.tenure.me()) {
            self.asked.cancel();
        }
        ours
    }

    /// Whether `write` is what the row now shows.
    fn is_settled(&self, writer: &Writer, write: &LeaseWrite) -> bool {
        write.took_effect_on(writer.tenure.row(), writer.tenure.me())
    }

    /// After a failed condition: whether the lease is ours all the same, because an earlier write of ours had
    /// been applied or another worker has asked for it.
    async fn recover(&self, writer: &mut Writer) -> Result<bool, WriteError> {
        let row = self.store.get(&self.key).await.map_err(WriteError::Unavailable)?;
        let Some(row) = row else {
            self.lose(LeaseLost::Deleted);
            return Ok(false);
        };
        let me = writer.tenure.me().clone();
        let applied = |doubt: &&(LeaseWrite, Instant)| doubt.0.took_effect_on(&row, &me);
        // A renewal changes nothing that a checkpoint in doubt beside it might not have changed too: taken
        // for a renewal, that checkpoint could be written back. Of several that fit, the first sent.
        let marked = writer.in_doubt.iter().filter(|(write, _)| write.mark().is_some());
        let ours = marked.chain(&writer.in_doubt).find(applied).cloned();
        match ours {
            Some((write, sent_at)) => {
                debug!(lease = %self.key, "a write had been applied although its reply was lost");
                self.accept(writer, &write, sent_at);
                self.notice(writer, &row);
                Ok(true)
            }
            None if self.notice(writer, &row) => Ok(true),
            None => {
                // A lower counter than ours: the row was deleted and made again meanwhile.
                let anew = row.counter < writer.tenure.row().counter;
                self.lose(if anew { LeaseLost::Deleted } else { LeaseLost::Stolen });
                Ok(false)
            }
        }
    }

    fn accept(&self, writer: &mut Writer, write: &LeaseWrite, sent_at: Instant) {
        writer.tenure.accept(write, sent_at);
        writer.in_doubt.clear();
        let mut standing = self.standing();
        standing.proven_at = writer.tenure.proven_at();
        standing.checked_at = Some(standing.proven_at);
        let row = writer.tenure.row();
        let lives_by = |pulse: &Arc<Pulse>| row.heartbeat.as_ref() == Some(pulse.incarnation());
        if !standing.pulse.as_ref().is_some_and(lives_by) {
            let current = self.heart.as_ref().and_then(|heart| heart.current());
            standing.pulse = current.filter(lives_by);
        }
        drop(standing);
        // Under the writer's lock: a renewal that waits for it must not touch a row that is given up.
        let given_up = matches!(write.owner(), OwnerChange::Remove | OwnerChange::Transfer);
        // A renewal of one that is left would look as if this worker were still there.
        if given_up || matches!(write.owner(), OwnerChange::Leave) {
            let mut standing = self.standing();
            (standing.given_up, standing.closed) = (given_up, true);
            drop(standing);
            self.lose(LeaseLost::Released);
        }
    }
}

#[cfg(test)]
mod tests;
