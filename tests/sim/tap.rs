//! The last step before table and stream: the observer sees every write that takes effect.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use kinesis_consumer::{
    HandOff, Incarnation, Lease, LeaseKey, LeaseWrite, Shard, ShardId, WorkerRow,
    io::{
        LeaseError, LeaseStore, Page, RecordSource, Rows, ShardFilter, ShardIterator, SourceError, StartFrom,
        StreamDescription,
    },
};
use tokio::time::Instant;

use super::{line::SENT, processor::Seat};

/// The table and the stream, as one worker reaches them. Shared by the whole fleet but for `seat`.
#[derive(Debug)]
pub(crate) struct Tap<T: ?Sized> {
    pub(crate) inner: Arc<T>,
    pub(crate) seat: Arc<Seat>,
}

impl<T: ?Sized> Clone for Tap<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), seat: self.seat.clone() }
    }
}

fn sent() -> Instant {
    SENT.try_with(|sent| *sent).unwrap_or_else(|_| Instant::now())
}

#[async_trait]
impl LeaseStore for Tap<dyn LeaseStore> {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        self.inner.open(create).await
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        let rows = self.inner.scan().await;
        self.seat.observer.serves_look(&self.seat);
        rows
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        self.inner.get(key).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        let created = self.inner.create(lease).await;
        if let Ok(true) = created {
            self.seat.observer.created(&self.seat, lease);
        }
        created
    }

    async fn may_create(&self, key: &LeaseKey) -> Result<(), LeaseError> {
        self.inner.may_create(key).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        self.watched(write, self.inner.write(write)).await
    }

    async fn claim(&self, claim: &LeaseWrite) -> Result<Lease, LeaseError> {
        self.watched(claim, self.inner.claim(claim)).await
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        let result = self.inner.hand_off(request).await;
        if result.is_ok() {
            self.seat.observer.asked(&self.seat, sent(), request);
        }
        result
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        let before = self.inner.get(&seen.key).await.ok().flatten();
        let deleted = self.inner.delete(seen).await;
        if let (Ok(true), Some(row)) = (&deleted, before) {
            self.seat.observer.deleted(&self.seat, &row);
        }
        deleted
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        self.inner.worker(incarnation).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        let result = self.inner.beat(row).await;
        // What the table shows counts, not what it says.
        let now = self.inner.worker(&row.incarnation).await.ok().flatten();
        if now.as_ref() == Some(row) {
            self.seat.observer.beat(&self.seat, sent(), row);
        }
        result
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        self.inner.forget(seen).await
    }
}

impl Tap<dyn LeaseStore> {
    async fn watched<T>(&self, write: &LeaseWrite, made: impl Future<Output = T>) -> T {
        let before = self.inner.get(write.key()).await.ok().flatten();
        let result = made.await;
        let after = self.inner.get(write.key()).await.ok().flatten();
        // What the table shows counts, not what it says.
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            self.seat.observer.wrote(&self.seat, sent(), write, &before, &after);
        } else {
            self.seat.observer.refused(&self.seat, write);
        }
        result
    }
}

#[async_trait]
impl RecordSource for Tap<dyn RecordSource> {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.inner.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.inner.list_shards(filter).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        self.inner.open(shard, from).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        let page = self.inner.read(shard, from, limit).await;
        match &page {
            Ok(page) => self.seat.observer.read(&self.seat, shard, page),
            Err(SourceError::Throttled { .. }) => self.seat.observer.throttled(&self.seat, shard),
            Err(_) => {}
        }
        page
    }
}
