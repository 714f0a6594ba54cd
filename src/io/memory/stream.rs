//! A Kinesis stream in memory: the same shards, iterators and limits, without a server.
//!
//! A handle on one [`Model`]; clones share it. Its clock is tokio's, so a paused runtime moves it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    limits::Limits,
    model::{Model, Refusal},
    numbers,
};
use crate::{
    clock,
    core::{
        record::Record,
        shard::{SequenceNumber, Shard, ShardId},
    },
    io::{Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom, StreamDescription},
};

/// A Kinesis stream in memory. Cloning gives another handle on the same stream.
///
/// The methods that change it are for tests: they have no limits and panic where the test is wrong, for
/// example when it splits a closed shard.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use kinesis_consumer::io::{RecordSource, StartFrom, memory::MemoryStream};
///
/// let stream = MemoryStream::new("cart-queue", 2);
/// let (shard, _) = stream.put("cart-7", "two apples");
/// let children = stream.split(&shard);
///
/// let start = stream.open(&shard, &StartFrom::TrimHorizon).await?;
/// let page = stream.read(&shard, &start, 100).await?;
/// assert_eq!(&page.records[0].data()[..], b"two apples");
/// let end = stream.read(&shard, &page.next.unwrap(), 100).await?;
/// assert_eq!(end.next, None);
/// assert_eq!(end.children[0].id, children[0]);
/// # Ok::<_, kinesis_consumer::io::SourceError>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct MemoryStream {
    state: Arc<Mutex<State>>,
}

struct State {
    model: Model,
    /// The time of the last call; time never goes back.
    now: u64,
    /// How much the stream's clock is ahead: it was deleted and made again faster than AWS can.
    ahead: u64,
    /// How much it is behind that of the hosts.
    behind: u64,
}

impl MemoryStream {
    /// A stream of `shards` open shards that serve equal parts of the hash key space.
    ///
    /// Without limits, with iterators that can be used for five minutes, and with an empty page at the
    /// end of a closed shard.
    pub fn new(name: &str, shards: usize) -> Self {
        let now = numbers::millis(clock::wall());
        let model = Model::new(name, shards, now);
        Self { state: Arc::new(Mutex::new(State { model, now, ahead: 0, behind: 0 })) }
    }

    /// Enforces `limits` on reads, and on what comes in through a local server.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        self.lock().model.settings.limits = limits;
        self
    }

    /// Lets iterators expire after `lifetime` instead of five minutes.
    #[must_use]
    pub fn with_iterator_lifetime(self, lifetime: Duration) -> Self {
        self.lock().model.settings.iterator_lifetime = lifetime;
        self
    }

    /// Lets the stream's clock be that much behind that of the hosts, whose clocks are wrong. For a stream that
    /// has no records yet.
    #[must_use]
    pub fn with_clock_behind(self, behind: Duration) -> Self {
        let mut state = self.lock();
        (state.now, state.behind) = (0, u64::try_from(behind.as_millis()).unwrap_or(u64::MAX));
        let (now, shards) = (state.tick(), state.model.open_shards().len());
        state.model.create(shards, now);
        drop(state);
        self
    }

    /// Keeps records for `retention` instead of 24 hours.
    #[must_use]
    pub fn with_retention(self, retention: Duration) -> Self {
        self.lock().model.retention = retention;
        self
    }

    /// Reports the end of a closed shard with its last records instead of with an empty page after them.
    /// AWS may do either.
    #[must_use]
    pub fn ending_with_last_page(self) -> Self {
        self.lock().model.settings.end_with_last_page = true;
        self
    }

    /// The stream's name.
    pub fn name(&self) -> String {
        self.lock().model.name.clone()
    }

    /// Puts a record where its partition key belongs.
    pub fn put(&self, partition_key: &str, data: impl Into<Bytes>) -> (ShardId, SequenceNumber) {
        self.put_to(numbers::hash_key(partition_key), partition_key, data)
    }

    /// Puts a record into the shard that serves `hash_key`. AWS: `ExplicitHashKey`.
    pub fn put_to(
        &self,
        hash_key: u128,
        partition_key: &str,
        data: impl Into<Bytes>,
    ) -> (ShardId, SequenceNumber) {
        let data = data.into();
        self.must(|model, now| model.put(hash_key, partition_key, data, false, now))
    }

    /// Splits an open shard in the middle of its hash keys; returns its children, the lower one first.
    pub fn split(&self, shard: &ShardId) -> [ShardId; 2] {
        self.must(|model, now| {
            let of = model.open_shards().into_iter().find(|open| open.id == *shard);
            let range = of.ok_or_else(|| Refusal::Invalid(format!("{shard} is not open")))?.hash_range;
            model.split(shard, range.start + (range.end - range.start) / 2 + 1, now)
        })
    }

    /// Merges two open shards with adjacent hash keys; returns their child.
    pub fn merge(&self, shard: &ShardId, adjacent: &ShardId) -> ShardId {
        self.must(|model, now| model.merge(shard, adjacent, now))
    }

    /// Splits and merges until `count` open shards serve equal parts; returns them in the order of their
    /// hash keys. At most doubles or halves the number of open shards.
    pub fn update_shard_count(&self, count: usize) -> Vec<ShardId> {
        self.must(|model, now| model.update_shard_count(count, now));
        self.open_shards().into_iter().map(|shard| shard.id).collect()
    }

    /// Drops the oldest records of a shard, all but `keep`, as if their retention period had passed.
    pub fn trim(&self, shard: &ShardId, keep: usize) {
        self.must(|model, _| model.trim(shard, keep));
    }

    /// Takes a closed shard out of the stream, as if its retention period had passed.
    pub fn forget(&self, shard: &ShardId) {
        self.must(|model, _| model.forget(shard));
    }

    /// Deletes the stream: every call fails until it is [made again](MemoryStream::recreate).
    pub fn delete(&self) {
        self.lock().model.delete();
    }

    /// Deletes the stream and makes another one under the same name. The stream's clock moves on by at
    /// least a second, since AWS needs longer than that.
    pub fn recreate(&self, shards: usize) {
        let mut state = self.lock();
        state.model.delete();
        state.ahead += 1000;
        let now = state.tick();
        state.model.create(shards, now);
    }

    /// The records that a shard holds, oldest first.
    pub fn records(&self, shard: &ShardId) -> Vec<Record> {
        self.must(|model, _| model.records(shard))
    }

    /// All shards, in the order of their ids.
    pub fn shards(&self) -> Vec<Shard> {
        self.must(|model, now| model.list(ShardFilter::All, now))
    }

    /// The open shards, in the order of their hash keys.
    pub fn open_shards(&self) -> Vec<Shard> {
        self.must(|model, now| model.list(ShardFilter::AtLatest, now))
    }

    /// Runs one step on the model, at the time of the stream's clock.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut Model, u64) -> T) -> T {
        let mut state = self.lock();
        let now = state.tick();
        state.model.expire(now);
        step(&mut state.model, now)
    }

    #[cfg(feature = "local")]
    pub(crate) fn with_settings(self, settings: super::model::Settings) -> Self {
        self.lock().model.settings = settings;
        self
    }

    #[track_caller]
    fn must<T>(&self, step: impl FnOnce(&mut Model, u64) -> Result<T, Refusal>) -> T {
        match self.step(step) {
            Ok(done) => done,
            Err(refusal) => panic!("{refusal}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked inside a call left the model as it was before or after it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        let wall = numbers::millis(clock::wall()).saturating_sub(self.behind);
        self.now = self.now.max(wall + self.ahead);
        self.now
    }
}

impl fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryStream").field(&self.name()).finish()
    }
}

#[async_trait]
impl RecordSource for MemoryStream {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        self.step(|model, now| {
            model.is_there().map_err(|refusal| source_error(refusal, "describe the stream"))?;
            let (created_at, retention) = (numbers::time(model.created), Some(model.retention));
            let described_at = Some(numbers::time(now));
            Ok(StreamDescription { arn: model.arn(), created_at, retention, described_at })
        })
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        self.step(|model, now| model.list(filter, now))
            .map_err(|refusal| source_error(refusal, "list shards"))
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        let opened = self.step(|model, now| model.open(shard, from, now));
        opened.map_err(|refusal| of_shard(refusal, shard, "open an iterator"))
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        let read = self.step(|model, now| model.read(from, limit, now));
        read.map_err(|refusal| of_shard(refusal, shard, "read records"))
    }
}

/// AWS answers ResourceNotFound for a shard of a stream that is gone, as for one that has left it.
fn of_shard(refusal: Refusal, shard: &ShardId, operation: &'static str) -> SourceError {
    match refusal {
        Refusal::NoStream(_) => SourceError::NoShard(shard.clone()),
        refusal => source_error(refusal, operation),
    }
}

fn source_error(refusal: Refusal, operation: &'static str) -> SourceError {
    match refusal {
        Refusal::NoStream(stream) => SourceError::NoStream { stream },
        Refusal::NoShard { shard, .. } => SourceError::NoShard(shard),
        Refusal::Expired { .. } => SourceError::ExpiredIterator,
        Refusal::Throttled { .. } => SourceError::Throttled { operation, source: refusal.into() },
        Refusal::Invalid(_) | Refusal::TooMuch(_) => {
            SourceError::Unavailable { operation, source: refusal.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(stream: &MemoryStream, shard: &ShardId) -> (Vec<Record>, Page) {
        let mut at = stream.open(shard, &StartFrom::TrimHorizon).await.unwrap();
        let mut records = Vec::new();
        loop {
            let page = stream.read(shard, &at, 10_000).await.unwrap();
            let done = page.behind.is_zero() && page.records.is_empty();
            records.extend(page.records.iter().cloned());
            match &page.next {
                Some(next) if !done => at = next.clone(),
                _ => return (records, page),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_iterator_expires_after_five_minutes() {
        let stream = MemoryStream::new("s", 1);
        let shard = stream.open_shards()[0].id.clone();
        let at = stream.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
        clock::sleep(Duration::from_secs(299)).await;
        assert!(stream.read(&shard, &at, 1).await.is_ok());
        clock::sleep(Duration::from_secs(1)).await;
        let expired = stream.read(&shard, &at, 1).await;
        assert!(matches!(expired, Err(SourceError::ExpiredIterator)), "{expired:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn records_and_closed_shards_leave_when_their_retention_has_passed() {
        let stream = MemoryStream::new("s", 1).with_retention(Duration::from_secs(3600));
        let shard = stream.open_shards()[0].id.clone();
        stream.put("k", "old");
        clock::sleep(Duration::from_secs(1800)).await;
        stream.put("k", "new");
        stream.split(&shard);
        clock::sleep(Duration::from_secs(1801)).await;
        let (records, _) = read_all(&stream, &shard).await;
        assert_eq!(records.iter().map(|r| r.data().clone()).collect::<Vec<_>>(), ["new"]);
        clock::sleep(Duration::from_secs(1800)).await;
        assert_eq!(stream.shards().len(), 2);
        let gone = stream.open(&shard, &StartFrom::TrimHorizon).await;
        assert!(matches!(gone, Err(SourceError::NoShard(_))), "{gone:?}");
        let trim_horizon = stream.list_shards(ShardFilter::AtTrimHorizon).await.unwrap();
        assert_eq!(trim_horizon.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn trimmed_records_are_skipped_by_an_open_iterator() {
        let stream = MemoryStream::new("s", 1);
        let shard = stream.open_shards()[0].id.clone();
        let numbers: Vec<_> = (0..5).map(|i| stream.put("k", format!("{i}")).1).collect();
        let at = stream.open(&shard, &StartFrom::At(numbers[1].clone())).await.unwrap();
        stream.trim(&shard, 2);
        let page = stream.read(&shard, &at, 10).await.unwrap();
        assert_eq!(
            page.records.iter().map(|r| &r.position().sequence).collect::<Vec<_>>(),
            [&numbers[3], &numbers[4]]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_can_come_with_the_last_records() {
        let stream = MemoryStream::new("s", 1).ending_with_last_page();
        let (shard, _) = stream.put("k", "last");
        let at = stream.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
        let children = stream.split(&shard);
        let page = stream.read(&shard, &at, 10).await.unwrap();
        assert_eq!((page.records.len(), page.next), (1, None));
        assert_eq!(page.children.into_iter().map(|child| child.id).collect::<Vec<_>>(), children);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_has_not_come_by_the_streams_clock_is_refused() {
        let stream = MemoryStream::new("s", 1).with_clock_behind(Duration::from_secs(300));
        let shard = stream.open_shards()[0].id.clone();
        let described = stream.describe().await.unwrap();
        let behind = clock::wall().duration_since(described.described_at.unwrap()).unwrap();
        assert_eq!(behind.as_secs(), 300);
        let open = async |at| stream.open(&shard, &StartFrom::Timestamp(at)).await.is_ok();
        assert!(open(described.described_at.unwrap()).await);
        let hosts = clock::wall();
        assert!(!open(hosts).await);
        clock::sleep(Duration::from_secs(300)).await;
        assert!(open(hosts).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_made_again_is_another_one() {
        let stream = MemoryStream::new("s", 1);
        let before = stream.describe().await.unwrap().identity();
        let (shard, number) = stream.put("k", "x");
        let at = stream.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
        stream.recreate(1);
        assert_ne!(stream.describe().await.unwrap().identity(), before);
        assert!(matches!(stream.read(&shard, &at, 1).await, Err(SourceError::NoShard(_))));
        assert!(stream.put("k", "y").1 > number);
    }

    #[test]
    fn any_shard_count_leaves_equal_ranges_and_children_with_parents() {
        for (from, to) in [(2, 4), (4, 2), (2, 3), (3, 5), (5, 3), (1, 1)] {
            let stream = MemoryStream::new("s", from);
            let open = stream.update_shard_count(to);
            assert_eq!(open.len(), to);
            let shards = stream.shards();
            assert!(shards[from..].iter().all(|shard| !shard.parents.is_empty()));
            let fresh = MemoryStream::new("t", to).open_shards();
            let ranges = |shards: Vec<Shard>| shards.iter().map(|s| s.hash_range).collect::<Vec<_>>();
            assert_eq!(ranges(stream.open_shards()), ranges(fresh), "{from} -> {to}");
        }
    }

    #[test]
    fn a_childs_numbers_follow_its_parents() {
        let stream = MemoryStream::new("s", 2);
        let [a, b] = [0, 1].map(|i| stream.open_shards()[i].id.clone());
        stream.put("k", "x");
        let child = stream.merge(&a, &b);
        let shards = stream.shards();
        let child = shards.iter().find(|shard| shard.id == child).unwrap();
        for parent in shards.iter().filter(|shard| !shard.is_open()) {
            assert!(*parent.ending_sequence.as_ref().unwrap() < child.starting_sequence);
        }
    }
}
