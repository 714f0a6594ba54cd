//! The line between a worker and AWS: latency, time-outs, and requests that arrive although their caller
//! has given up, frozen or died.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use kinesis_consumer::{
    HandOff, Incarnation, Lease, LeaseKey, LeaseWrite, Shard, ShardId, WorkerRow,
    io::{
        LeaseError, LeaseStore, Page, RecordSource, Rows, ShardFilter, ShardIterator, SourceError, StartFrom,
        StreamDescription,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::Instant};

use super::{hand_over::Steps, observer::Observer, processor::Seat};

tokio::task_local! {
    /// When the caller sent the request that is being served.
    pub(crate) static SENT: Instant;
}

/// Requests on their way. They outlive their callers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network(Arc<Mutex<JoinSet<()>>>);

impl Network {
    fn carry(&self, request: impl Future<Output = ()> + Send + 'static) {
        let mut requests = self.0.lock().expect("no panic");
        while requests.try_join_next().is_some() {}
        requests.spawn(request);
    }

    pub(crate) fn take(&self) -> JoinSet<()> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

/// How slow and how deaf the line is.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Quality {
    /// The longest way there, and back, in milliseconds.
    pub(crate) latency: u64,
    /// Nothing arrives; callers notice at their time-out only.
    pub(crate) deaf: bool,
    /// The chance that an iterator is answered as expired.
    pub(crate) expires: f64,
}

/// One end of the line. `T` is what is at the other.
#[derive(Clone, Debug)]
pub(crate) struct Line<T> {
    inner: T,
    seat: Arc<Seat>,
    quality: Arc<Mutex<Quality>>,
    rng: Arc<Mutex<StdRng>>,
    network: Network,
    timeout: Duration,
    /// Where the calls of a hand-over are counted.
    steps: Option<Steps>,
}

impl<T: Clone + Send + Sync + 'static> Line<T> {
    pub(crate) fn new(inner: T, seat: Arc<Seat>, network: Network, timeout: Duration, seed: u64) -> Self {
        let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self { inner, seat, quality: Arc::default(), rng, network, timeout, steps: None }
    }

    pub(crate) fn through(self, steps: Option<Steps>) -> Self {
        Self { steps, ..self }
    }

    pub(crate) fn quality(&self) -> Arc<Mutex<Quality>> {
        self.quality.clone()
    }

    fn observer(&self) -> &Observer {
        &self.seat.observer
    }

    /// Sends a request; none if there was no reply in time.
    async fn send<R: Send + 'static, F>(
        &self,
        name: &'static str,
        about: Option<&ShardId>,
        call: impl FnOnce(T) -> F,
    ) -> Option<R>
    where
        F: Future<Output = R> + Send + 'static,
    {
        self.observer().called(&self.seat, name, about);
        let quality = *self.quality.lock().expect("no panic");
        let sent = Instant::now();
        if quality.deaf {
            tokio::time::sleep(self.timeout).await;
            return None;
        }
        let (steps, seat) = (self.steps.clone(), self.seat.clone());
        let request = SENT.scope(sent, call(self.inner.clone()));
        let request = async move {
            match steps {
                Some(steps) => steps.pass(&seat, name, request).await,
                None => Some(request.await),
            }
        };
        if quality.latency == 0 {
            return request.await;
        }
        let [there, back] = {
            let mut rng = self.rng.lock().expect("no panic");
            [(); 2].map(|()| Duration::from_millis(rng.random_range(0..=quality.latency)))
        };
        let (answer, reply) = tokio::sync::oneshot::channel();
        self.network.carry(async move {
            tokio::time::sleep(there).await;
            let result = request.await;
            tokio::time::sleep(back).await;
            // The caller may have given up.
            let _ = answer.send(result);
        });
        tokio::time::timeout(self.timeout, reply).await.ok()?.ok()?
    }

    async fn to_table<R: Send + 'static, F>(
        &self,
        name: &'static str,
        about: Option<&ShardId>,
        call: impl FnOnce(T) -> F,
    ) -> Result<R, LeaseError>
    where
        F: Future<Output = Result<R, LeaseError>> + Send + 'static,
    {
        let timed_out = || LeaseError::Unavailable { operation: "call", source: "timed out".into() };
        self.send(name, about, call).await.unwrap_or_else(|| Err(timed_out()))
    }

    async fn to_stream<R: Send + 'static, F>(
        &self,
        name: &'static str,
        about: Option<&ShardId>,
        call: impl FnOnce(T) -> F,
    ) -> Result<R, SourceError>
    where
        F: Future<Output = Result<R, SourceError>> + Send + 'static,
    {
        let timed_out = || SourceError::Unavailable { operation: "call", source: "timed out".into() };
        self.send(name, about, call).await.unwrap_or_else(|| Err(timed_out()))
    }
}

#[async_trait]
impl<T: LeaseStore + Clone + 'static> LeaseStore for Line<T> {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        self.to_table("open", None, |table| async move { table.open(create).await }).await
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        self.observer().looks(&self.seat);
        let rows = self.to_table("scan", None, |table| async move { table.scan().await }).await;
        if rows.is_ok() {
            self.observer().saw(&self.seat);
        }
        rows
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        let key = key.clone();
        self.to_table("get", Some(&key.shard()), |table| async move { table.get(&key).await }).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        let lease = lease.clone();
        self.to_table("create", Some(&lease.key.shard()), |table| async move { table.create(&lease).await })
            .await
    }

    async fn may_create(&self, key: &LeaseKey) -> Result<(), LeaseError> {
        let key = key.clone();
        self.to_table("create", None, |table| async move { table.may_create(&key).await }).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        let write = write.clone();
        self.observer().sends(&self.seat, &write);
        self.to_table("write", Some(&write.key().shard()), |table| async move { table.write(&write).await })
            .await
    }

    async fn claim(&self, claim: &LeaseWrite) -> Result<Lease, LeaseError> {
        let claim = claim.clone();
        self.to_table("claim", Some(&claim.key().shard()), |table| async move { table.claim(&claim).await })
            .await
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        let request = request.clone();
        self.to_table("hand_off", Some(&request.key().shard()), |table| async move {
            table.hand_off(&request).await
        })
        .await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        let seen = seen.clone();
        self.to_table("delete", Some(&seen.key.shard()), |table| async move { table.delete(&seen).await })
            .await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        let incarnation = incarnation.clone();
        self.to_table("worker", None, |table| async move { table.worker(&incarnation).await }).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        let row = row.clone();
        self.to_table("beat", None, |table| async move { table.beat(&row).await }).await
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        let seen = seen.clone();
        self.to_table("forget", None, |table| async move { table.forget(&seen).await }).await
    }
}

#[async_trait]
impl<T: RecordSource + Clone + 'static> RecordSource for Line<T> {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.to_stream("describe", None, |stream| async move { stream.describe().await }).await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.to_stream("list_shards", None, |stream| async move { stream.list_shards(filter).await }).await
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        let (about, shard, from) = (shard.clone(), shard.clone(), from.clone());
        self.to_stream("open", Some(&about), |stream| async move { stream.open(&shard, &from).await }).await
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        let expires = self.quality.lock().expect("no panic").expires;
        if expires > 0.0 && self.rng.lock().expect("no panic").random_bool(expires) {
            return Err(SourceError::ExpiredIterator);
        }
        let (about, shard, from) = (shard.clone(), shard.clone(), from.clone());
        let read = |stream: T| async move { stream.read(&shard, &from, limit).await };
        let mut page = self.to_stream("read", Some(&about), read).await;
        if let Ok(page) = &mut page {
            self.observer().got(&self.seat, &about, page);
        }
        page
    }
}
