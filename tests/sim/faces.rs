//! The three faces: each hands the observer the same, whoever calls the user's code.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use kinesis_consumer::{
    Assignments, Batch, BuildError, Failure, HeldShard, Ordering, Record, ShardContext, ShardEvent, ShardId,
    Worker, WorkerBuilder,
};
use tokio::{select, task::JoinSet};

use super::{
    health::Call,
    processor::{Factory, Seat},
    shards::number,
};

/// How the user's code is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Face {
    Processor,
    Each,
    Pull,
}

/// The user's side of a worker that is pulled; of the others nothing.
pub(crate) type Beside = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) fn build(
    builder: WorkerBuilder,
    face: Face,
    seat: &Arc<Seat>,
) -> Result<(Worker, Beside), BuildError> {
    let seat = seat.clone();
    let nothing: Beside = Box::pin(std::future::ready(()));
    match face {
        Face::Processor => Ok((builder.build(Factory(seat))?, nothing)),
        Face::Each => {
            let handler = move |record| {
                let seat = seat.clone();
                async move { each(&seat, &record).await }
            };
            Ok((builder.each(Ordering::Shard, handler)?, nothing))
        }
        Face::Pull => {
            let (worker, assignments) = builder.stream()?;
            let freezer = seat.freezer.clone();
            Ok((worker, Box::pin(freezer.pass(pull(seat, assignments)))))
        }
    }
}

async fn each(seat: &Arc<Seat>, record: &Record) -> Result<(), Failure> {
    let (shard, at) = (record.shard(), number(record.position()));
    let _call = Call::of(seat, shard);
    seat.observer.delivered(seat, shard, at, at);
    match seat.act(shard).await {
        Ok(()) => {
            seat.observer.works(seat, shard);
            seat.observer.acked(seat, shard, at, at);
            Ok(())
        }
        Err(failure) => {
            seat.observer.failed(seat, shard, at);
            Err(failure)
        }
    }
}

async fn pull(seat: Arc<Seat>, mut assignments: Assignments) {
    let mut shards = JoinSet::new();
    loop {
        select! {
            biased;
            shard = assignments.next() => match shard {
                Some(shard) => drop(shards.spawn(seat.freezer.pass(drive(seat.clone(), shard)))),
                None => break,
            },
            Some(_) = shards.join_next() => {}
        }
    }
    while shards.join_next().await.is_some() {}
}

/// Tells the observer how long a shard is worked on.
struct Work(Arc<Seat>, ShardId);

impl Work {
    fn on(seat: Arc<Seat>, shard: ShardId) -> Self {
        seat.observer.processor_made(&seat, &shard);
        Self(seat, shard)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.observer.processor_gone(&self.0, &self.1);
    }
}

async fn drive(seat: Arc<Seat>, mut shard: HeldShard) {
    let context = shard.context();
    let mut work = None;
    loop {
        match shard.next().await {
            ShardEvent::Batch(batch) => {
                work.get_or_insert_with(|| Work::on(seat.clone(), batch.shard().clone()));
                if !process(&seat, &batch, &context).await {
                    return;
                }
            }
            ShardEvent::Ended(end) => {
                // Not completed, it comes again.
                if end.complete().await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            ShardEvent::Drain(drain) => {
                // The lease is gone in any case.
                let _ = drain.finish().await;
                return;
            }
            _ => return,
        }
    }
}

/// Works on a batch until it is done or the lease is lost. False to let go of the shard.
async fn process(seat: &Arc<Seat>, batch: &Batch, context: &ShardContext) -> bool {
    let (first, last) = (number(batch.first()), number(batch.last()));
    let _call = Call::of(seat, batch.shard());
    seat.observer.delivered(seat, batch.shard(), first, last);
    loop {
        let done = select! {
            biased;
            _ = context.lost() => return true,
            done = seat.act(batch.shard()) => done,
        };
        match done {
            Ok(()) => {
                seat.observer.works(seat, batch.shard());
                seat.observer.acked(seat, batch.shard(), first, last);
                context.acks().ack_through(batch.last());
                return true;
            }
            Err(Failure::StopShard(_)) => return false,
            Err(_) => select! {
                biased;
                _ = context.lost() => return true,
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            },
        }
    }
}
