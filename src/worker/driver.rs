//! Drives a processor with the events of one shard: the contract of `RecordProcessor` as one loop.

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};
use tracing::{Instrument, Span, error, info, warn};

use crate::{
    clock,
    config::Config,
    core::{backoff::Backoff, metrics::Metric, record::Batch},
    error::{Failure, LeaseLost},
    io::BoxError,
    worker::{
        consumer::DriverEnd,
        faults::Faults,
        processor::{Drain, EndOfShard, ProcessorFactory, RecordProcessor, ShardContext, Verdict},
        shard::{Shard, ShardEvent},
        spans,
    },
};

/// Processes a shard until it ends, is drained or lost, or the processor gives up.
pub(super) async fn drive<F: ProcessorFactory>(
    factory: Arc<F>,
    shard: Shard,
    config: &Config,
    seed: u64,
) -> DriverEnd {
    let backoff = Backoff::new(config.retry_delay_min, config.retry_delay_max);
    let faults = shard.link().fault_logs.processing.row();
    let retries = Retries { backoff, faults, rng: StdRng::seed_from_u64(seed) };
    let mut driver = Driver { context: shard.context(), shard, retries };
    let processor = match driver.create(factory.as_ref()).await {
        Ok(processor) => processor,
        Err(end) => return end,
    };
    driver.run(processor).await
}

struct Driver {
    shard: Shard,
    context: ShardContext,
    retries: Retries,
}

/// The delays between tries of the user's code, and which failures to log.
struct Retries {
    backoff: Backoff,
    faults: Faults,
    rng: StdRng,
}

/// What to do after a failure and its delay.
enum After {
    Again,
    /// A drain was asked for meanwhile.
    Stop,
    End(DriverEnd),
}

impl Driver {
    async fn create<F: ProcessorFactory>(&mut self, factory: &F) -> Result<F::Processor, DriverEnd> {
        loop {
            self.shard.link().set_busy(true);
            let began = clock::now();
            let made = self.shard.link().held.guard(factory.create(self.shard.start().clone())).await;
            self.shard.link().meter.turned(Metric::InitializeTime, began);
            let failure = match made {
                Err(why) => return Err(DriverEnd::Lost(why)),
                Ok(Ok(processor)) => {
                    self.retries.reset(&self.shard, "creating the processor");
                    return Ok(processor);
                }
                Ok(Err(error)) => Failure::Retry(error),
            };
            match self.after(failure, "creating the processor").await {
                After::Again => {}
                After::Stop => return Err(DriverEnd::Drained),
                After::End(end) => return Err(end),
            }
        }
    }

    async fn run<P: RecordProcessor>(mut self, mut processor: P) -> DriverEnd {
        loop {
            let end = match self.shard.next().await {
                ShardEvent::Batch(batch) => self.process(&mut processor, batch).await,
                ShardEvent::Ended(end) => self.ended(&mut processor, end).await,
                ShardEvent::Drain(drain) => Some(self.drain(&mut processor, drain).await),
                ShardEvent::Lost(why) => Some(DriverEnd::Lost(why)),
            };
            match end {
                None => {}
                Some(DriverEnd::Lost(why)) => {
                    // A call of its own, whatever the one that was dropped had done.
                    self.shard.link().set_busy(true);
                    processor.lease_lost(why).await;
                    return DriverEnd::Lost(why);
                }
                Some(end) => return end,
            }
        }
    }

    /// Delivers a batch until it is accepted. Without an end the next event follows.
    async fn process<P: RecordProcessor>(&mut self, processor: &mut P, batch: Batch) -> Option<DriverEnd> {
        let link = self.shard.link().clone();
        let mut left = batch;
        loop {
            // Whom the delivery has woken must not wait behind code that blocks its thread: a runtime moves that
            // task to no other thread.
            tokio::task::yield_now().await;
            link.set_in_call(true);
            let began = clock::now();
            let span = link.tracer.as_ref().map_or_else(Span::none, |tracer| tracer.process_batch(&left));
            let work = processor.process(left.clone(), &self.context).instrument(span.clone());
            let processed = link.held.guard(work).await;
            if let Ok(Err(failure)) = &processed {
                spans::failed(&span, failure);
            }
            link.set_in_call(false);
            let failure = match processed {
                Err(why) => return Some(DriverEnd::Lost(why)),
                Ok(Ok(verdict)) => {
                    link.meter.processed(began, true);
                    match verdict {
                        Verdict::Done => link.ack_batch(&left),
                        Verdict::DoneThrough(position) => link.ack_through(&position),
                        Verdict::AckLater => {}
                    }
                    self.retries.reset(&self.shard, "processing");
                    return None;
                }
                Ok(Err(failure)) => failure,
            };
            link.meter.processed(began, false);
            match self.after(failure, "processing").await {
                After::Again => {}
                After::Stop => {
                    link.meter.abandoned();
                    return None;
                }
                After::End(end) => return Some(end),
            }
            // What was acknowledged before the failure does not come again.
            if let Some(done) = link.done() {
                match left.after(&done) {
                    Some(rest) => left = rest,
                    None => return None,
                }
            }
            link.count(&left);
        }
    }

    async fn ended<P: RecordProcessor>(&mut self, processor: &mut P, end: EndOfShard) -> Option<DriverEnd> {
        let link = self.shard.link().clone();
        link.set_busy(true);
        let began = clock::now();
        let ended = link.held.guard(processor.shard_ended(end)).await;
        link.meter.turned(Metric::ShutdownTime, began);
        let failure = match ended {
            Err(why) => return Some(DriverEnd::Lost(why)),
            Ok(Ok(_done)) => return Some(DriverEnd::Finished),
            Ok(Err(failure)) => failure,
        };
        if let Some(why) = link.held.why_lost() {
            return Some(DriverEnd::Lost(why));
        }
        match self.after(failure, "ending the shard").await {
            After::Again | After::Stop => None,
            After::End(end) => Some(end),
        }
    }

    async fn drain<P: RecordProcessor>(&mut self, processor: &mut P, drain: Drain) -> DriverEnd {
        let link = self.shard.link();
        link.set_busy(true);
        let began = clock::now();
        let drained = link.held.guard(processor.draining(drain)).await;
        link.meter.turned(Metric::ShutdownTime, began);
        match drained {
            Err(why) => DriverEnd::Lost(why),
            Ok(Ok(_drained)) => DriverEnd::Drained,
            Ok(Err(Failure::StopWorker(error))) => DriverEnd::StopWorker(error),
            Ok(Err(failure)) => {
                info!(shard = %self.shard.id(), error = %Shown(&failure), "draining failed");
                match link.held.why_lost() {
                    Some(why) if why != LeaseLost::Released => DriverEnd::Lost(why),
                    _ => DriverEnd::Drained,
                }
            }
        }
    }

    async fn after(&mut self, failure: Failure, doing: &'static str) -> After {
        let shard = self.shard.id();
        match failure {
            Failure::Retry(error) => {
                let delay = self.retries.backoff.next(&mut self.retries.rng);
                self.shard.link().meter.retried();
                if let Some(faults) = self.retries.faults.failed() {
                    warn!(%shard, faults, %error, doing, ?delay, "failed; trying again");
                }
                match self.shard.pause(delay).await {
                    Ok(false) => After::Again,
                    Ok(true) => After::Stop,
                    Err(why) => After::End(DriverEnd::Lost(why)),
                }
            }
            Failure::Poison { at, why } => {
                error!(%shard, ?at, error = %why, "records that cannot be processed; the shard is given up");
                After::End(DriverEnd::GaveUp)
            }
            Failure::StopShard(error) => {
                warn!(%shard, %error, "the processor gives the shard up");
                After::End(DriverEnd::GaveUp)
            }
            Failure::StopWorker(error) => After::End(DriverEnd::StopWorker(error)),
        }
    }
}

impl Retries {
    fn reset(&mut self, shard: &Shard, doing: &'static str) {
        self.backoff.reset();
        if let Some(count) = self.faults.over() {
            info!(shard = %shard.id(), count, doing, "succeeds again");
        }
    }
}

/// The cause inside a failure.
struct Shown<'a>(&'a Failure);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Failure::Retry(error)
        | Failure::StopShard(error)
        | Failure::StopWorker(error)
        | Failure::Poison { why: error, .. }) = self.0;
        BoxError::fmt(error, f)
    }
}
