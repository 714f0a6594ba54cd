//! The pull kernel: one shard, one event at a time. Processors and closures are driven by it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    select,
    sync::{OwnedSemaphorePermit, mpsc},
};

use crate::{
    clock,
    core::{
        lease::Lease,
        record::Batch,
        shard::{ChildShard, ShardId},
    },
    error::LeaseLost,
    worker::{
        processor::{Drain, EndOfShard, ShardContext, ShardStart},
        shard_link::ShardLink,
    },
};

/// A record acknowledged late holds up the checkpoint of every later one; past this many the shard waits
/// until all are acknowledged.
const MOST_UNFINISHED: usize = 100_000;

/// What the reader hands over.
#[derive(Debug)]
pub(super) enum Fetched {
    /// Records, and their part of the memory budget until they are processed.
    Batch(Batch, Option<OwnedSemaphorePermit>),
    /// The end of the shard.
    End(End),
}

/// What follows a shard.
#[derive(Clone, Default, Debug)]
pub(super) struct End {
    pub(super) children: Vec<ChildShard>,
    /// The leases to make before those of the children.
    pub(super) other_parents: Vec<Lease>,
}

/// One shard whose lease this worker holds. Dropping it releases the lease at what is acknowledged.
#[derive(Debug)]
pub struct Shard {
    link: Arc<ShardLink>,
    fetched: mpsc::Receiver<Fetched>,
    start: ShardStart,
    /// The budget of the batch in the user's hands.
    in_hand: Option<OwnedSemaphorePermit>,
    end: Option<End>,
    drain_given: bool,
    /// Nothing more is handed out: a batch was left unfinished for a drain.
    cut_short: bool,
}

/// What comes next on a shard.
#[derive(Debug)]
#[non_exhaustive]
pub enum ShardEvent {
    /// Records, to be acknowledged through [`ShardContext::acks`].
    Batch(Batch),
    /// The shard has ended and everything in it is acknowledged.
    Ended(EndOfShard),
    /// The worker stops: finish what is in hand.
    Drain(Drain),
    /// The lease is gone. Comes again whenever asked.
    Lost(LeaseLost),
}

impl Shard {
    pub(super) fn new(link: Arc<ShardLink>, fetched: mpsc::Receiver<Fetched>, row: &Lease) -> Self {
        let pending = row.pending.as_ref().and_then(|pending| {
            Some((pending.at.position()?.clone(), pending.state.clone().unwrap_or_default()))
        });
        let from = row.checkpoint.position().cloned();
        let start = ShardStart { shard: link.shard.clone(), from, pending };
        Self { link, fetched, start, in_hand: None, end: None, drain_given: false, cut_short: false }
    }

    /// The shard.
    pub fn id(&self) -> &ShardId {
        &self.link.shard
    }

    /// What the work on the shard begins with.
    pub fn start(&self) -> &ShardStart {
        &self.start
    }

    /// Acknowledgements and checkpoints of this shard.
    pub fn context(&self) -> ShardContext {
        ShardContext::new(self.link.clone())
    }

    pub(super) fn link(&self) -> &Arc<ShardLink> {
        &self.link
    }

    /// Waits for the next event. Not asking is the back-pressure: one batch is read ahead, no more.
    ///
    /// Cancel-safe: an event is returned or still to come. Asking says that the work on the last batch is
    /// over, or goes on elsewhere until its records are acknowledged.
    pub async fn next(&mut self) -> ShardEvent {
        self.in_hand = None;
        self.link.meter.done();
        // Records that are acknowledged later are work too: without progress they stall.
        self.link.hand_on();
        let event = self.wait().await;
        self.link.set_hungry(false);
        event
    }

    async fn wait(&mut self) -> ShardEvent {
        loop {
            if let Some(end) = &self.end {
                return select! {
                    biased;
                    why = self.link.held.lost() => ShardEvent::Lost(why),
                    // Before the end: one that cannot be completed comes again without end.
                    until = self.link.draining(), if !self.drain_given => self.drain(until),
                    () = self.link.idle() => ShardEvent::Ended(EndOfShard::new(self.link.clone(), end.clone())),
                };
            }
            let room = self.link.unfinished() < MOST_UNFINISHED;
            let more = room && !self.cut_short;
            self.link.set_hungry(room);
            select! {
                biased;
                why = self.link.held.lost() => return ShardEvent::Lost(why),
                until = self.link.draining(), if !self.drain_given && !more => return self.drain(until),
                until = self.link.read_or_draining(), if !self.drain_given => return self.drain(until),
                () = self.link.idle(), if !room => {}
                fetched = self.fetched.recv(), if room && !self.drain_given => match fetched {
                    // Behind by more than a batch: the next holder has as much to do, and is not to wait.
                    Some(Fetched::Batch(batch, _)) if self.link.is_draining() && !batch.behind().is_zero() => {
                        return self.drain(self.link.draining().await);
                    }
                    Some(Fetched::Batch(batch, permit)) => {
                        self.in_hand = permit;
                        self.link.deliver(&batch);
                        if let Some(tracer) = &self.link.tracer {
                            tracer.polled(&batch);
                        }
                        return ShardEvent::Batch(batch);
                    }
                    Some(Fetched::End(end)) => self.end = Some(end),
                    // After the last read of a drain.
                    None if self.link.is_draining() => return self.drain(self.link.draining().await),
                    // Else the reader ends only with the lease.
                    None => return ShardEvent::Lost(self.link.held.lost().await),
                },
            }
        }
    }

    fn drain(&mut self, until: Instant) -> ShardEvent {
        self.drain_given = true;
        ShardEvent::Drain(Drain::new(self.link.clone(), until))
    }

    /// Waits that long with the lease kept, and nothing reported as stuck: a declared wait. Ends early when a
    /// drain is asked for (true), which then comes next, and with the lease.
    pub(super) async fn pause(&mut self, delay: Duration) -> Result<bool, LeaseLost> {
        let until = clock::now() + delay;
        self.link.pause_until(until);
        select! {
            biased;
            why = self.link.held.lost() => return Err(why),
            _ = self.link.draining(), if !self.drain_given => {
                self.cut_short = true;
                return Ok(true);
            }
            () = clock::sleep_until(until) => {}
        }
        self.link.resume();
        Ok(false)
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.link.let_go.cancel();
    }
}
