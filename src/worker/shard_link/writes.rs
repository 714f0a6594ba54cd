//! What is written to the row of a shard that is held: renewals, the watermark, the user's checkpoints, and
//! how the holding ends.
//!
//! Each is one conditional write through the held lease; the watermark and what the row holds are kept in step
//! here. When to write is for `renewer` to say.

use std::{
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use tracing::{Instrument, Span};

use super::ShardLink;
use crate::{
    clock,
    core::{
        lease::{Checkpoint, CheckpointGoesBack, LeaseWrite, Tenure},
        shard::Position,
    },
    error::{CheckpointError, LeaseLost},
    worker::held_lease::{PATIENCE, WriteError},
};

impl ShardLink {
    /// The span of a checkpoint's write.
    fn settle(&self) -> Span {
        self.tracer.as_ref().map_or_else(Span::none, |tracer| tracer.settle(&self.shard))
    }

    /// The checkpoint to write, if the watermark is ahead of the row.
    pub(in crate::worker) fn unwritten(&self) -> Option<Checkpoint> {
        let state = self.state();
        let done = Checkpoint::At(state.watermark.done()?.clone());
        (done > state.stored).then_some(done)
    }

    /// When the next checkpoint is to be written; none if there is nothing to write.
    pub(in crate::worker) fn write_due(&self) -> Option<Instant> {
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
    pub(in crate::worker) async fn renew(&self) -> Result<(), WriteError> {
        self.held.renew().await?;
        self.renewed();
        Ok(())
    }

    /// Writes the watermark, once, if it is ahead of the row.
    pub(in crate::worker) async fn flush(&self) -> Result<(), WriteError> {
        let Some(to) = self.unwritten() else { return Ok(()) };
        self.held.write(|tenure| forward(tenure, &to)).instrument(self.settle()).await?;
        self.written(to);
        Ok(())
    }

    /// Writes a checkpoint that the user waits for: acknowledges everything up to it.
    pub(in crate::worker) async fn checkpoint(&self, at: &Position) -> Result<(), CheckpointError> {
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
    pub(in crate::worker) async fn prepare(
        &self,
        at: &Position,
        state: bytes::Bytes,
    ) -> Result<(), CheckpointError> {
        self.check_range(at)?;
        let to = Checkpoint::At(at.clone());
        self.persist(|tenure| tenure.prepare(to.clone(), Some(state.clone()))).await?;
        self.renewed();
        Ok(())
    }

    /// Puts a prepared checkpoint into force, also when it is the one in force already.
    pub(in crate::worker) async fn commit(&self, at: &Position) -> Result<(), CheckpointError> {
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

    /// Makes a write that the user waits for; throttling and time-outs are worth trying again.
    pub(in crate::worker) async fn persist(
        &self,
        make: impl Fn(&Tenure) -> Result<LeaseWrite, CheckpointGoesBack> + Send + Sync,
    ) -> Result<(), CheckpointError> {
        Ok(self.held.write_until(clock::now() + PATIENCE, make).await?)
    }

    /// Until when giving the lease up is worth trying: the end of the drain, once there is one, and a moment
    /// after it.
    fn give_up_until(&self) -> Instant {
        let least = clock::now() + PATIENCE / 2;
        self.drain_until.get().map_or_else(|| clock::now() + PATIENCE, |until| *until.max(&least))
    }

    /// Whether the lease stays with this worker when it is given up now: only at the worker's own stop.
    pub(in crate::worker) fn is_kept(&self) -> bool {
        let is_for_others = self.held.is_asked() || self.is_for_others.load(Ordering::Acquire);
        self.terms.keep_on_drain && self.is_draining() && !is_for_others
    }

    /// Ends the holding at the watermark, as the worker's configuration says: the lease is given up, or stays
    /// in our name and is marked as left. One that was asked for is handed over. The holding ends in any case.
    pub(in crate::worker) async fn give_up(&self) -> Result<(), CheckpointError> {
        let kept = self.is_kept();
        let span = if self.unwritten().is_some() { self.settle() } else { Span::none() };
        let carried = Mutex::new(None);
        let result = self
            .held
            .write_until(self.give_up_until(), |tenure| {
                // As of this try: more may be acknowledged meanwhile, and a write in doubt have written some of it.
                let to = self.unwritten();
                let last = to.clone().filter(|to| *to > tenure.row().checkpoint);
                *carried.lock().unwrap_or_else(PoisonError::into_inner) = to;
                if kept { tenure.leave(last) } else { tenure.release(last) }
            })
            .instrument(span)
            .await;
        let carried = carried.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(()), Some(to)) = (&result, carried) {
            self.written(to);
        }
        self.held.lose(LeaseLost::Released);
        Ok(result?)
    }
}

/// The write that moves the checkpoint to `to`, or only renews if the row is there already.
fn forward(tenure: &Tenure, to: &Checkpoint) -> Result<LeaseWrite, CheckpointGoesBack> {
    if *to <= tenure.row().checkpoint { Ok(tenure.renewal()) } else { tenure.checkpoint(to.clone()) }
}
