//! The user's code of the simulation: processors with a temper, which tell the observer everything.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use kinesis_consumer::{
    Batch, CheckpointError, Drain, Drained, EndOfShard, Failure, Freezer, LeaseLost, Position,
    ProcessorFactory, RecordProcessor, ShardContext, ShardDone, ShardId, ShardStart, Verdict, io::BoxError,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;

use super::{health::Call, observer::Observer, shards::number};

/// One life of one worker.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) no: usize,
    /// The worker's id. A restarted worker may have that of an earlier life.
    pub(crate) name: String,
    pub(crate) observer: Arc<Observer>,
    pub(crate) freezer: Freezer,
    pub(crate) temper: Mutex<Temper>,
    rng: Mutex<StdRng>,
}

/// How the user's code behaves. Chances are those of one call.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Temper {
    /// The longest that one call takes, in milliseconds.
    pub(crate) slow: u64,
    pub(crate) fails: f64,
    pub(crate) panics: f64,
    /// Gives the shard up.
    pub(crate) gives_up: f64,
    /// Acknowledges later, out of order.
    pub(crate) later: f64,
    /// Acknowledges a part and fails.
    pub(crate) halves: f64,
    /// Asks for a durable checkpoint.
    pub(crate) durable: f64,
    /// Prepares a checkpoint, and mostly commits it.
    pub(crate) prepares: f64,
    /// Fails on every record of the shard with this number.
    pub(crate) poison: Option<u64>,
    /// Never returns.
    pub(crate) stuck: bool,
    /// Never returns from the shard with this number.
    pub(crate) stuck_on: Option<u64>,
    /// Waits for as long as this is so: what is downstream is away.
    pub(crate) waits: bool,
    /// The same for the shard with this number.
    pub(crate) waits_on: Option<u64>,
    /// Never returns, and says that it makes progress: a sabotage.
    pub(crate) pretends: bool,
    /// Acknowledges before the work is done: a sabotage.
    pub(crate) hasty: bool,
}

/// The message of every panic that is part of the simulation.
pub(crate) const PANIC: &str = "a simulated panic";

impl Seat {
    pub(crate) fn new(name: &str, observer: &Arc<Observer>, temper: Temper, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            no: observer.joined(name),
            name: name.into(),
            observer: observer.clone(),
            freezer: Freezer::new(),
            temper: Mutex::new(temper),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        })
    }

    fn temper(&self) -> Temper {
        *self.temper.lock().expect("no panic")
    }

    fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && self.rng.lock().expect("no panic").random_bool(probability.min(1.0))
    }

    fn delay(&self) -> Duration {
        let slow = self.temper().slow;
        let millis = if slow == 0 { 0 } else { self.rng.lock().expect("no panic").random_range(0..=slow) };
        Duration::from_millis(millis)
    }

    /// What can happen in any call.
    pub(crate) async fn act(&self, shard: &ShardId) -> Result<(), Failure> {
        let temper = self.temper();
        if temper.stuck || (temper.stuck_on.is_some() && temper.stuck_on == ordinal(shard)) {
            std::future::pending::<()>().await;
        }
        let waits =
            |temper: Temper| temper.waits || (temper.waits_on.is_some() && temper.waits_on == ordinal(shard));
        while waits(self.temper()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let delay = self.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.chance(temper.panics) {
            self.observer.gives_up(self, shard);
            panic!("{PANIC}");
        }
        if self.chance(temper.gives_up) {
            self.observer.gives_up(self, shard);
            return Err(Failure::StopShard("simulated".into()));
        }
        if self.chance(temper.fails) {
            return Err(Failure::retry("simulated"));
        }
        Ok(())
    }
}

/// The number in a shard's id.
fn ordinal(shard: &ShardId) -> Option<u64> {
    shard.as_str().strip_prefix("shardId-")?.parse().ok()
}

/// Makes the processors of one worker.
pub(crate) struct Factory(pub(crate) Arc<Seat>);

impl ProcessorFactory for Factory {
    type Processor = Processor;

    async fn create(&self, start: ShardStart) -> Result<Processor, BoxError> {
        let seat = self.0.clone();
        let _call = Call::of(&seat, &start.shard);
        if let Err(Failure::Retry(error)) = seat.act(&start.shard).await {
            return Err(error);
        }
        seat.observer.processor_made(&seat, &start.shard);
        Ok(Processor { seat, shard: start.shard, later: JoinSet::new() })
    }
}

pub(crate) struct Processor {
    seat: Arc<Seat>,
    shard: ShardId,
    /// Acknowledgements to come.
    later: JoinSet<()>,
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.seat.observer.processor_gone(&self.seat, &self.shard);
    }
}

impl Processor {
    fn done(&self, first: &Position, last: &Position) {
        self.seat.observer.acked(&self.seat, &self.shard, number(first), number(last));
    }

    /// Each record is acknowledged on its own, after a time of its own.
    fn acknowledge_later(&mut self, batch: &Batch, context: &ShardContext) {
        while self.later.try_join_next().is_some() {}
        for record in batch.records() {
            let (seat, acks, at) = (self.seat.clone(), context.acks(), record.position().clone());
            let (shard, delay) = (self.shard.clone(), self.seat.delay());
            let work = async move {
                tokio::time::sleep(delay).await;
                seat.observer.acked(&seat, &shard, number(&at), number(&at));
                acks.ack(&at);
            };
            self.later.spawn(self.seat.freezer.pass(work));
        }
    }

    async fn work(&mut self, batch: &Batch, context: &ShardContext) -> Result<Verdict, Failure> {
        let (seat, temper) = (self.seat.clone(), self.seat.temper());
        if temper.hasty {
            context.acks().ack_through(batch.last());
        }
        while seat.temper().pretends {
            context.progress();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        seat.act(&self.shard).await?;
        if temper.poison.is_some() && temper.poison == ordinal(&self.shard) {
            return Err(Failure::retry("simulated poison"));
        }
        seat.observer.works(&seat, &self.shard);
        if seat.chance(temper.halves) {
            for record in &batch.records()[..batch.records().len().div_ceil(2)] {
                self.done(record.position(), record.position());
                context.acks().ack(record.position());
            }
            return Err(Failure::retry("simulated, half-way"));
        }
        if seat.chance(temper.later) {
            self.acknowledge_later(batch, context);
            return Ok(Verdict::AckLater);
        }
        while self.later.try_join_next().is_some() {}
        // A durable checkpoint would acknowledge records that an earlier call left for later.
        if self.later.is_empty() && seat.chance(temper.durable) {
            self.done(batch.first(), batch.last());
            seat.observer.demands(&seat);
            match context.checkpoint(batch.last()).await {
                Ok(()) | Err(CheckpointError::Unavailable(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.later.is_empty() && seat.chance(temper.prepares) {
            seat.observer.demands(&seat);
            match context.prepare(batch.last(), Bytes::from_static(b"state")).await {
                Ok(prepared) if seat.chance(0.7) => {
                    self.done(batch.first(), batch.last());
                    seat.observer.demands(&seat);
                    match prepared.commit().await {
                        Ok(()) | Err(CheckpointError::Unavailable(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(_) | Err(CheckpointError::Unavailable(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.done(batch.first(), batch.last());
        Ok(Verdict::Done)
    }
}

impl RecordProcessor for Processor {
    async fn process(&mut self, batch: Batch, context: &ShardContext) -> Result<Verdict, Failure> {
        let seat = self.seat.clone();
        let _call = Call::of(&seat, &self.shard);
        seat.observer.delivered(&seat, &self.shard, number(batch.first()), number(batch.last()));
        let result = self.work(&batch, context).await;
        if result.is_err() {
            seat.observer.failed(&seat, &self.shard, number(batch.first()));
        }
        result
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        let call = Call::of(&self.seat, &self.shard);
        self.seat.act(&self.shard).await?;
        // From here on it waits for the library.
        drop(call);
        Ok(end.complete().await?)
    }

    async fn draining(&mut self, drain: Drain) -> Result<Drained, Failure> {
        let _call = Call::of(&self.seat, &self.shard);
        self.seat.act(&self.shard).await?;
        Ok(drain.finish().await?)
    }

    async fn lease_lost(&mut self, _: LeaseLost) {
        let _call = Call::of(&self.seat, &self.shard);
        let delay = self.seat.delay();
        tokio::time::sleep(delay).await;
    }
}
