//! The closure face: a handler called for each record, as a `RecordProcessor`.

use std::{future::Future, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    core::record::{Batch, Record},
    error::Failure,
    worker::{RecordProcessor, ShardContext, Verdict},
};

/// In which order a handler sees the records of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ordering {
    /// One after the other, in the order of the shard. A record that fails holds up those behind it.
    Shard,
}

/// Calls a handler for each record of a batch.
#[derive(Debug)]
pub(crate) struct Each<H> {
    ordering: Ordering,
    handler: Arc<H>,
}

impl<H> Each<H> {
    pub(crate) fn new(ordering: Ordering, handler: Arc<H>) -> Self {
        Self { ordering, handler }
    }
}

impl<H, Fut> RecordProcessor for Each<H>
where
    H: Fn(Record, ShardContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    async fn process(&mut self, batch: Batch, context: &ShardContext) -> Result<Verdict, Failure> {
        match self.ordering {
            Ordering::Shard => {
                let acks = context.acks();
                for record in batch {
                    let position = record.position().clone();
                    context.trace(record, |record| (self.handler)(record, context.clone())).await?;
                    // One by one: after a failure only the rest comes again.
                    acks.ack(&position);
                }
                Ok(Verdict::Done)
            }
        }
    }
}
