//! A shard's life, from the claim of its lease to its release: reads, keeps the lease, and lets the
//! user's side work in a task of its own.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    select,
    sync::{Semaphore, mpsc},
    task::{JoinError, JoinSet},
};
use tracing::{debug, warn};

use crate::{
    clock,
    config::Config,
    core::{
        health::Doing,
        lease::Lease,
        shard::{Position, ShardId},
    },
    error::LeaseLost,
    io::{BoxError, RecordSource, StartFrom},
    worker::{freeze::Gate, reader::Reader, renewer, shard::Shard, shard_link::ShardLink},
};

/// Starts the user's side of a shard. Resolves when it has nothing more to say; a pulled shard may still
/// be in the user's hands then.
pub(super) type Delivery =
    Arc<dyn Fn(Shard) -> Pin<Box<dyn Future<Output = DriverEnd> + Send>> + Send + Sync>;

/// How the user's side ended.
#[derive(Debug)]
pub(super) enum DriverEnd {
    /// The shard was completed.
    Finished,
    /// The lease was given up on request.
    Drained,
    /// The lease went.
    Lost(LeaseLost),
    /// The processor cannot go on here.
    GaveUp,
    /// The processor asks for the end of the worker.
    StopWorker(BoxError),
    /// The shard was handed to a puller.
    HandedOver,
}

/// How a shard's life in this worker ended.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) shard: ShardId,
    pub(super) how: ExitHow,
    /// Whether others may take the lease at once.
    pub(super) free: bool,
    /// Whether the user's side was stopped because it did not let go in time.
    pub(super) cut_off: bool,
    pub(super) records: u64,
    pub(super) checkpoint: Option<Position>,
}

#[derive(Debug)]
pub(super) enum ExitHow {
    /// Processed to its end.
    Finished,
    /// The lease was given up: asked for, or the puller let go.
    Released,
    /// The lease stays with this worker until it expires.
    Kept,
    /// The lease was lost; the row was not changed.
    Lost(LeaseLost),
    /// The user's code cannot go on here; the lease was given up.
    GaveUp,
    Panicked,
    StopWorker(BoxError),
}

/// What a shard's life needs.
pub(super) struct Consumer {
    pub(super) link: Arc<ShardLink>,
    pub(super) row: Lease,
    /// The identity of the stream that the row was made for.
    pub(super) stream: Arc<str>,
    pub(super) start: (StartFrom, Option<Position>),
    pub(super) source: Arc<dyn RecordSource>,
    pub(super) config: Arc<Config>,
    pub(super) memory: Arc<Semaphore>,
    pub(super) delivery: Delivery,
    pub(super) rng: StdRng,
    pub(super) gate: Gate,
}

impl Consumer {
    /// Runs until the lease is gone from this worker, one way or another.
    pub(super) async fn run(mut self) -> Exit {
        // One batch ahead: the queue holds one while another is processed.
        let (fetched, queue) = mpsc::channel(1);
        let shard = Shard::new(self.link.clone(), queue, &self.row);
        // A shard that nobody takes up makes no progress either.
        self.link.set_busy(true);
        let mut user = JoinSet::new();
        user.spawn(self.gate.pass((self.delivery)(shard)));
        let reader = Reader {
            link: self.link.clone(),
            source: self.source.clone(),
            config: self.config.clone(),
            memory: self.memory.clone(),
            fetched,
            row: self.row.clone(),
            stream: self.stream.clone(),
            rng: StdRng::seed_from_u64(self.rng.random()),
        };
        let link = self.link.clone();
        let mut user_end = None;
        {
            let mut reader = pin!(reader.run(self.start.clone()));
            let mut keeper = pin!(renewer::keep(&link, &self.config, &mut self.rng));
            let (mut reading, mut asked) = (true, false);
            loop {
                select! {
                    biased;
                    _ = &mut keeper => break,
                    () = link.let_go.cancelled() => break,
                    () = past(&link) => break,
                    () = link.held.asked(), if !asked => {
                        asked = true;
                        debug!(shard = %link.shard, "another worker asks for the lease; handing it over");
                        link.ask_to_drain(clock::now() + self.config.shutdown_timeout);
                    }
                    ended = user.join_next(), if user_end.is_none() => user_end = ended,
                    () = &mut reader, if reading => reading = false,
                }
            }
        }
        link.set_reader(Doing::Idle);
        // Past the lease or the deadline; or the user's side let go, and has only to say how it ended.
        let cut_off = !self.user_lets_go().await;
        if !cut_off {
            if user_end.is_none() {
                user_end = user.join_next().await;
            }
        } else {
            warn!(shard = %link.shard, "the processor did not finish in time and was stopped");
            user.abort_all();
            // A puller's code is nobody's to abort: it hears of it before anybody can take the lease.
            link.held.lose(LeaseLost::Released);
        }
        // What is left is ours and the table's: no part of the user's code owes progress.
        link.set_busy(false);
        let (shard, records, checkpoint) = (link.shard.clone(), link.records.load(Relaxed), link.done());
        let how = self.exit(user_end).await;
        Exit { shard, how, free: link.held.is_given_up(), cut_off, records, checkpoint }
    }

    /// Waits until the user's side has let go of the shard: as long as it works on it, this worker must
    /// not take the shard again. False if the deadline of a drain passes first.
    async fn user_lets_go(&self) -> bool {
        let mut patience = pin!(clock::sleep(self.config.failover_time));
        let mut told = false;
        loop {
            select! {
                biased;
                () = self.link.let_go.cancelled() => return true,
                () = past(&self.link) => return false,
                () = &mut patience, if !told => {
                    told = true;
                    warn!(shard = %self.link.shard, "the processor does not let go of a lost shard; does it block its thread?");
                }
            }
        }
    }

    /// Gives the lease up if it is still held, and says how it all ended.
    async fn exit(self, user_end: Option<Result<DriverEnd, JoinError>>) -> ExitHow {
        let link = &self.link;
        let how = match user_end {
            Some(Ok(DriverEnd::StopWorker(error))) => ExitHow::StopWorker(error),
            // Whatever became of the user's code after that.
            _ if link.is_finished() => ExitHow::Finished,
            Some(Ok(DriverEnd::GaveUp)) => ExitHow::GaveUp,
            // Nobody has cancelled it.
            Some(Err(_)) => {
                warn!(shard = %link.shard, "the processor panicked; the lease is given up");
                ExitHow::Panicked
            }
            _ => match link.held.why_lost() {
                None | Some(LeaseLost::Released) if link.is_kept() => ExitHow::Kept,
                None | Some(LeaseLost::Released) => ExitHow::Released,
                Some(why) => ExitHow::Lost(why),
            },
        };
        if link.held.can_give_up()
            && let Err(error) = link.give_up().await
        {
            debug!(shard = %link.shard, %error, "the lease was not released and will expire");
        }
        match how {
            // It expired while it was to be given up, or on the way: the row is still in our name.
            ExitHow::Lost(LeaseLost::Expired) if link.is_draining() && !link.held.is_asked() => ExitHow::Kept,
            how => how,
        }
    }
}

/// Resolves when a drain has been asked for and its time is over.
async fn past(link: &ShardLink) {
    let until: Instant = link.draining().await;
    clock::sleep_until(until).await;
}
