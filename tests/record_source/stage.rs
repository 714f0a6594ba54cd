//! A stream to test on: the source that reads it, and a hand that writes to it and changes its shards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_sdk_kinesis::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::Blob,
    types::{PutRecordsRequestEntry, ScalingType, StreamStatus},
};
use bytes::Bytes;
use kinesis_consumer::{
    Record, SequenceNumber, Shard, ShardId,
    io::{
        KinesisSource, Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom,
        memory::MemoryStream,
    },
};
use tokio::time;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Every wait in the contract is for something that a correct server does at once.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where streams are made.
pub(crate) enum World {
    Memory,
    Server(Client),
}

impl World {
    /// A server that speaks the protocol of Kinesis at this endpoint.
    pub(crate) fn at(url: &str) -> Self {
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(url);
        Self::Server(Client::from_conf(config.build()))
    }

    /// A new stream that can be used.
    pub(crate) async fn stage(&self, shards: usize) -> Stage {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("contract-{}", MADE.fetch_add(1, Ordering::Relaxed));
        match self {
            Self::Memory => {
                let stream = MemoryStream::new(&name, shards);
                Stage { source: Arc::new(stream.clone()), hand: Hand::Memory(stream) }
            }
            Self::Server(client) => {
                let source = Arc::new(KinesisSource::new(client.clone(), &name, CALL_TIMEOUT));
                let stage = Stage { source, hand: Hand::Server { client: client.clone(), name } };
                stage.create(shards).await;
                stage
            }
        }
    }
}

pub(crate) struct Stage {
    pub(crate) source: Arc<dyn RecordSource>,
    hand: Hand,
}

enum Hand {
    Memory(MemoryStream),
    Server { client: Client, name: String },
}

/// Everything that a shard gave, and the page that was the last.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) records: Vec<Record>,
    pub(crate) last: Page,
}

impl Reading {
    pub(crate) fn data(&self) -> Vec<&[u8]> {
        self.records.iter().map(|record| &record.data()[..]).collect()
    }
}

/// Reading the stream.
impl Stage {
    /// The shards in the order of their ids.
    pub(crate) async fn shards(&self, filter: ShardFilter) -> Vec<Shard> {
        let mut shards = self.source.list_shards(filter).await.unwrap();
        shards.sort_by(|a, b| a.id.cmp(&b.id));
        shards
    }

    pub(crate) async fn shard(&self, id: &ShardId) -> Shard {
        let shards = self.shards(ShardFilter::All).await;
        shards.into_iter().find(|shard| shard.id == *id).expect("it is listed")
    }

    pub(crate) async fn only_shard(&self) -> Shard {
        let mut shards = self.shards(ShardFilter::All).await;
        assert_eq!(shards.len(), 1);
        shards.remove(0)
    }

    pub(crate) async fn open(&self, shard: &ShardId, from: &StartFrom) -> ShardIterator {
        self.source.open(shard, from).await.unwrap()
    }

    /// Reads up to the tip, or to the end of a closed shard.
    pub(crate) async fn read(&self, shard: &ShardId, from: &StartFrom) -> Reading {
        let at = self.open(shard, from).await;
        self.read_on(shard, at).await
    }

    pub(crate) async fn read_on(&self, shard: &ShardId, mut at: ShardIterator) -> Reading {
        let mut records = Vec::new();
        loop {
            let last = self.source.read(shard, &at, 10_000).await.unwrap();
            records.extend(last.records.iter().cloned());
            match &last.next {
                Some(next) if !(last.records.is_empty() && last.behind.is_zero()) => at = next.clone(),
                _ => return Reading { records, last },
            }
        }
    }

    /// Reads a closed shard until it says that it has ended.
    pub(crate) async fn read_to_end(&self, shard: &ShardId, from: &StartFrom) -> Reading {
        let mut reading = self.read(shard, from).await;
        for _ in 0..10 {
            let Some(next) = reading.last.next.clone() else { return reading };
            let more = self.read_on(shard, next).await;
            reading.records.extend(more.records);
            reading.last = more.last;
        }
        panic!("a closed shard never ends")
    }
}

/// Writing to the stream, and changing it.
impl Stage {
    pub(crate) async fn put(&self, key: &str, data: impl Into<Bytes>) -> (ShardId, SequenceNumber) {
        match &self.hand {
            Hand::Memory(stream) => stream.put(key, data),
            Hand::Server { client, name } => {
                let put = client.put_record().stream_name(name).partition_key(key);
                let put = put.data(Blob::new(data.into())).send().await.unwrap();
                (put.shard_id().into(), put.sequence_number().parse().unwrap())
            }
        }
    }

    /// Puts records of one key in this order, in batches.
    pub(crate) async fn put_all(&self, key: &str, data: Vec<Vec<u8>>) {
        match &self.hand {
            Hand::Memory(stream) => {
                for data in data {
                    stream.put(key, data);
                }
            }
            Hand::Server { client, name } => {
                let entry = |data: &Vec<u8>| {
                    let entry =
                        PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(&data[..]));
                    entry.build().unwrap()
                };
                for data in data.chunks(4) {
                    let entries = data.iter().map(entry).collect();
                    let put = client.put_records().stream_name(name).set_records(Some(entries));
                    assert_eq!(put.send().await.unwrap().failed_record_count(), Some(0));
                }
            }
        }
    }

    /// Puts a record into this shard, whatever its key.
    pub(crate) async fn put_to(&self, shard: &Shard, data: &'static str) -> (ShardId, SequenceNumber) {
        let hash = shard.hash_range.start;
        match &self.hand {
            Hand::Memory(stream) => stream.put_to(hash, "any", data),
            Hand::Server { client, name } => {
                let put = client.put_record().stream_name(name).partition_key("any");
                let put = put.explicit_hash_key(hash.to_string()).data(Blob::new(data)).send().await.unwrap();
                (put.shard_id().into(), put.sequence_number().parse().unwrap())
            }
        }
    }

    /// Puts records until one has arrived at a later time than the first; returns both times.
    pub(crate) async fn let_time_pass(&self, key: &str) -> (SystemTime, SystemTime) {
        let (shard, first) = self.put(key, "first").await;
        eventually("a record arrives at a later time", async || {
            self.put(key, "later").await;
            let reading = self.read(&shard, &StartFrom::At(first.clone())).await;
            let times = reading.records.iter().map(Record::arrived_at);
            let (first, last) = (times.clone().min()?, times.max()?);
            (first < last).then_some((first, last))
        })
        .await
    }

    /// Splits a shard in the middle; returns its children, the lower one first.
    pub(crate) async fn split(&self, shard: &Shard) -> [Shard; 2] {
        let range = shard.hash_range;
        let middle = range.start + (range.end - range.start) / 2 + 1;
        match &self.hand {
            Hand::Memory(stream) => drop(stream.split(&shard.id)),
            Hand::Server { client, name } => {
                let call = client.split_shard().stream_name(name).shard_to_split(shard.id.as_str());
                call.new_starting_hash_key(middle.to_string()).send().await.unwrap();
            }
        }
        self.active().await;
        let mut children = self.children(&shard.id).await;
        children.sort_by_key(|child| child.hash_range);
        children.try_into().expect("two children")
    }

    pub(crate) async fn merge(&self, shard: &Shard, adjacent: &Shard) -> Shard {
        match &self.hand {
            Hand::Memory(stream) => drop(stream.merge(&shard.id, &adjacent.id)),
            Hand::Server { client, name } => {
                let call = client.merge_shards().stream_name(name).shard_to_merge(shard.id.as_str());
                call.adjacent_shard_to_merge(adjacent.id.as_str()).send().await.unwrap();
            }
        }
        self.active().await;
        self.children(&shard.id).await.pop().expect("one child")
    }

    pub(crate) async fn update_shard_count(&self, count: usize) {
        match &self.hand {
            Hand::Memory(stream) => drop(stream.update_shard_count(count)),
            Hand::Server { client, name } => {
                let call = client.update_shard_count().stream_name(name).target_shard_count(count as i32);
                call.scaling_type(ScalingType::UniformScaling).send().await.unwrap();
            }
        }
        self.active().await;
    }

    pub(crate) async fn delete(&self) {
        match &self.hand {
            Hand::Memory(stream) => stream.delete(),
            Hand::Server { client, name } => {
                client.delete_stream().stream_name(name).send().await.unwrap();
                eventually("the stream is gone", async || {
                    self.source.describe().await.is_err().then_some(())
                })
                .await;
            }
        }
    }

    /// Makes the stream again after it was deleted.
    pub(crate) async fn create(&self, shards: usize) {
        match &self.hand {
            Hand::Memory(stream) => stream.recreate(shards),
            Hand::Server { client, name } => {
                eventually("the name is free", async || {
                    let call = client.create_stream().stream_name(name).shard_count(shards as i32);
                    call.send().await.ok()
                })
                .await;
            }
        }
        self.active().await;
    }

    async fn children(&self, of: &ShardId) -> Vec<Shard> {
        let shards = self.shards(ShardFilter::All).await.into_iter();
        shards.filter(|shard| shard.parents.contains(of)).collect()
    }

    /// Waits until the stream takes changes again.
    async fn active(&self) {
        let Hand::Server { client, name } = &self.hand else { return };
        eventually("the stream is active", async || {
            let described = client.describe_stream_summary().stream_name(name).send().await.ok()?;
            let status = described.stream_description_summary?.stream_status;
            (status == StreamStatus::Active).then_some(())
        })
        .await;
    }
}

/// The first answer that is not none.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let answer = time::timeout(PATIENCE, async {
        loop {
            if let Some(answer) = look().await {
                return answer;
            }
            time::sleep(LOOK_AGAIN).await;
        }
    });
    answer.await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

pub(crate) fn is_no_shard<T>(answer: &Result<T, SourceError>, shard: &ShardId) -> bool {
    matches!(answer, Err(SourceError::NoShard(missing)) if missing == shard)
}
