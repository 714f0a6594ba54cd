//! The doors with a meter: every call counts, by how it ended, and how long it took.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;

use crate::{
    clock,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::{HandOff, Lease, LeaseKey, LeaseWrite, OwnerChange},
        metrics::{Call, Metric},
        shard::{Shard, ShardId},
    },
    io::{
        LeaseError, LeaseStore, Page, RecordSource, Rows, ShardFilter, ShardIterator, SourceError, StartFrom,
        StreamDescription,
    },
    worker::meter::Meter,
};

/// A door whose calls are measured.
#[derive(Debug)]
pub(super) struct Metered<D: ?Sized> {
    pub(super) door: Arc<D>,
    pub(super) meter: Arc<Meter>,
}

impl<D: ?Sized> Metered<D> {
    async fn run<T, E: Outcome>(
        &self,
        call: Call,
        shard: Option<&ShardId>,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let began = clock::now();
        let result = work.await;
        let outcome = result.as_ref().map_or_else(Outcome::outcome, |_| "ok");
        self.meter.call(call, shard, began, outcome);
        result
    }
}

/// How a failed call ended, in one word.
trait Outcome {
    fn outcome(&self) -> &'static str;
}

impl Outcome for LeaseError {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Conflict(_) => "conflict",
            Self::Denied { .. } => "denied",
            _ => "error",
        }
    }
}

impl Outcome for SourceError {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Throttled { .. } => "throttled",
            Self::ExpiredIterator => "expired",
            Self::Denied { .. } => "denied",
            _ => "error",
        }
    }
}

#[async_trait]
impl LeaseStore for Metered<dyn LeaseStore> {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        self.door.open(create).await
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        self.run(Call::ListLeases, None, self.door.scan()).await
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        self.run(Call::GetLease, None, self.door.get(key)).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.run(Call::CreateLease, None, self.door.create(lease)).await
    }

    async fn may_create(&self, key: &LeaseKey) -> Result<(), LeaseError> {
        self.run(Call::CreateLease, None, self.door.may_create(key)).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        let call = match write.owner() {
            OwnerChange::Set { .. } => Call::TakeLease,
            OwnerChange::Keep if write.mark().is_none() && write.children().is_empty() => Call::RenewLease,
            _ => Call::UpdateLease,
        };
        let shard = write.key().shard();
        self.run(call, Some(&shard), self.door.write(write)).await
    }

    async fn claim(&self, claim: &LeaseWrite) -> Result<Lease, LeaseError> {
        let shard = claim.key().shard();
        self.run(Call::TakeLease, Some(&shard), self.door.claim(claim)).await
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        self.run(Call::AskForLease, None, self.door.hand_off(request)).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        self.run(Call::DeleteLease, None, self.door.delete(seen)).await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        self.run(Call::GetLease, None, self.door.worker(incarnation)).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        // It renews all leases that live by it.
        self.run(Call::RenewLease, None, self.door.beat(row)).await
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        self.run(Call::DeleteLease, None, self.door.forget(seen)).await
    }
}

#[async_trait]
impl RecordSource for Metered<dyn RecordSource> {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.door.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.run(Call::ListShards, None, self.door.list_shards(filter)).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.run(Call::GetShardIterator, Some(shard), self.door.open(shard, from)).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        let result = self.run(Call::GetRecords, Some(shard), self.door.read(shard, from, limit)).await;
        if matches!(result, Err(SourceError::ExpiredIterator)) {
            self.meter.record(Metric::ExpiredIterator, 1.0);
        }
        result
    }
}
