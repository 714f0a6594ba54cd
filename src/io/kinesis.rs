//! The stream in AWS: four calls of Kinesis and the meaning of their errors.
//!
//! One try a call, with a timeout: when to repeat is the caller's decision, so the SDK's own retries are
//! off. Payloads are never logged, nor are the SDK's errors here: they are the `source` of ours.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use aws_sdk_kinesis::{
    Client,
    config::{
        ConfigBag, Intercept, RuntimeComponents, interceptors::BeforeDeserializationInterceptorContextRef,
    },
    error::{ProvideErrorMetadata, SdkError},
    operation::{get_shard_iterator::builders::GetShardIteratorFluentBuilder, list_shards::ListShardsOutput},
    primitives::{DateTime, DateTimeFormat},
    types::{self, ShardFilterType, ShardIteratorType},
};
use bytes::Bytes;

use crate::{
    core::{
        record::Record,
        shard::{ChildShard, HashKeyRange, Position, SequenceNumber, Shard, ShardId},
    },
    io::{
        BoxError, Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom, StreamDescription,
        sdk_client::tried_once,
        sdk_error::{cause, is_denied},
    },
};

/// How often a listing is begun again because its page token had expired.
const MAX_LISTINGS: usize = 3;

/// The error codes that say: later.
const THROTTLED: [&str; 6] = [
    "KMSThrottlingException",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
];

const DESCRIBE: &str = "describe the stream";
const LIST: &str = "list shards";
const OPEN: &str = "open a shard iterator";
const READ: &str = "read records";

/// A Kinesis data stream.
#[derive(Clone)]
pub struct KinesisSource {
    client: Client,
    /// One of the two is given to every call that takes them.
    name: Option<String>,
    arn: Option<String>,
}

impl KinesisSource {
    /// The stream with this name, or this ARN. Makes no call.
    ///
    /// Takes credentials, region and endpoint from `client`, but not its retries: there are none. Every
    /// call is given up after `call_timeout`, within which a page of up to 10 MiB should arrive.
    #[expect(clippy::needless_pass_by_value, reason = "clients are handed over as everywhere in the SDK")]
    pub fn new(client: Client, stream: impl Into<String>, call_timeout: Duration) -> Self {
        let stream = stream.into();
        let is_arn = stream.starts_with("arn:");
        let (name, arn) = if is_arn { (None, Some(stream)) } else { (Some(stream), None) };
        Self { client: tried_once!(client, call_timeout), name, arn }
    }

    fn stream(&self) -> &str {
        self.name.as_ref().or(self.arn.as_ref()).map_or("", String::as_str)
    }

    fn no_stream(&self) -> SourceError {
        SourceError::NoStream { stream: self.stream().to_owned() }
    }

    /// All pages of one listing. A token may expire in between, if we are slow.
    async fn list_once(&self, filter: Option<&types::ShardFilter>) -> Result<Vec<Shard>, SourceError> {
        let mut shards = Vec::new();
        let mut page = self.list_page(filter, None).await?;
        loop {
            for shard in page.shards() {
                shards.push(shard_from(shard).map_err(|source| unavailable(LIST, source))?);
            }
            // Always a token of its own: AWS takes no other parameter of the listing beside it.
            match page.next_token.take().filter(|token| !token.is_empty()) {
                Some(token) => page = self.list_page(None, Some(token)).await?,
                None => return Ok(shards),
            }
        }
    }

    async fn list_page(
        &self,
        filter: Option<&types::ShardFilter>,
        token: Option<String>,
    ) -> Result<ListShardsOutput, SourceError> {
        let call = self.client.list_shards();
        let call = match token {
            Some(token) => call.next_token(token),
            None => {
                let call = call.set_stream_name(self.name.clone()).set_stream_arn(self.arn.clone());
                call.set_shard_filter(filter.cloned())
            }
        };
        call.send().await.map_err(|error| meaning(error, LIST, || self.no_stream()))
    }
}

impl fmt::Debug for KinesisSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KinesisSource").field(&self.stream()).finish()
    }
}

#[async_trait]
impl RecordSource for KinesisSource {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        let call = self.client.describe_stream_summary();
        let call = call.set_stream_name(self.name.clone()).set_stream_arn(self.arn.clone());
        let date = Date::default();
        let sent = call.customize().interceptor(date.clone()).send().await;
        let output = sent.map_err(|error| meaning(error, DESCRIBE, || self.no_stream()))?;
        let summary = output.stream_description_summary;
        let summary = summary.ok_or_else(|| unavailable(DESCRIBE, "the answer has no summary"))?;
        let created_at = system_time(&summary.stream_creation_timestamp);
        let hours = u64::try_from(summary.retention_period_hours).ok();
        let retention = hours.filter(|hours| *hours > 0).map(|hours| Duration::from_secs(3600 * hours));
        let described_at = date.0.get().copied();
        Ok(StreamDescription { arn: summary.stream_arn, created_at, retention, described_at })
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        let filter = filter_shape(filter);
        let mut listing = self.list_once(filter.as_ref()).await;
        for _ in 1..MAX_LISTINGS {
            match listing {
                Err(SourceError::ExpiredIterator) => listing = self.list_once(filter.as_ref()).await,
                done => return done,
            }
        }
        listing
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        let call = self.client.get_shard_iterator().shard_id(shard.as_str());
        let call = call.set_stream_name(self.name.clone()).set_stream_arn(self.arn.clone());
        let sent = start_at(call, from).send().await;
        let output = sent.map_err(|error| meaning(error, OPEN, || SourceError::NoShard(shard.clone())))?;
        let iterator =
            output.shard_iterator.ok_or_else(|| unavailable(OPEN, "the answer has no iterator"))?;
        Ok(ShardIterator(iterator))
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        let limit = limit.clamp(1, 10_000) as i32;
        let call = self.client.get_records().shard_iterator(&from.0).limit(limit);
        let sent = call.set_stream_arn(self.arn.clone()).send().await;
        let output = sent.map_err(|error| meaning(error, READ, || SourceError::NoShard(shard.clone())))?;
        let records = output.records.into_iter().map(|record| record_from(shard, record));
        let children = output.child_shards.unwrap_or_default();
        Ok(Page {
            records: records.collect::<Result<_, _>>().map_err(|source| unavailable(READ, source))?,
            next: output.next_shard_iterator.filter(|next| !next.is_empty()).map(ShardIterator),
            children: children
                .iter()
                .map(child_from)
                .collect::<Result<_, _>>()
                .map_err(|e| unavailable(READ, e))?,
            behind: Duration::from_millis(
                output.millis_behind_latest.and_then(|behind| behind.try_into().ok()).unwrap_or(0),
            ),
        })
    }
}

/// The date of an answer, which the SDK's outputs leave out.
#[derive(Clone, Default, Debug)]
struct Date(Arc<OnceLock<SystemTime>>);

impl Intercept for Date {
    fn name(&self) -> &'static str {
        "Date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
        if let Some(date) = date {
            self.0.get_or_init(|| system_time(&date));
        }
        Ok(())
    }
}

fn filter_shape(filter: ShardFilter) -> Option<types::ShardFilter> {
    let (kind, when) = match filter {
        // No filter lists the same shards, and every server understands it.
        ShardFilter::All => return None,
        ShardFilter::AtTrimHorizon => (ShardFilterType::AtTrimHorizon, None),
        ShardFilter::AtLatest => (ShardFilterType::AtLatest, None),
        ShardFilter::AtTimestamp(when) => (ShardFilterType::AtTimestamp, Some(DateTime::from(when))),
    };
    let shape = types::ShardFilter::builder().r#type(kind).set_timestamp(when).build();
    Some(shape.expect("it has the one required field"))
}

fn start_at(call: GetShardIteratorFluentBuilder, from: &StartFrom) -> GetShardIteratorFluentBuilder {
    let of = |kind| call.shard_iterator_type(kind);
    match from {
        StartFrom::TrimHorizon => of(ShardIteratorType::TrimHorizon),
        StartFrom::Latest => of(ShardIteratorType::Latest),
        StartFrom::Timestamp(when) => of(ShardIteratorType::AtTimestamp).timestamp(DateTime::from(*when)),
        StartFrom::At(sequence) => {
            of(ShardIteratorType::AtSequenceNumber).starting_sequence_number(sequence.as_str())
        }
        StartFrom::After(sequence) => {
            of(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(sequence.as_str())
        }
    }
}

fn record_from(shard: &ShardId, record: types::Record) -> Result<Record, BoxError> {
    let position = Position::at(record.sequence_number.parse()?);
    let arrived_at =
        record.approximate_arrival_timestamp.as_ref().map_or(SystemTime::UNIX_EPOCH, system_time);
    let data = Bytes::from(record.data.into_inner());
    Ok(Record::new(shard.clone(), position, record.partition_key.unwrap_or_default(), arrived_at, data))
}

fn shard_from(shard: &types::Shard) -> Result<Shard, BoxError> {
    let numbers = shard.sequence_number_range().ok_or("a shard has no sequence number range")?;
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    Ok(Shard {
        id: shard.shard_id().into(),
        parents: parents.into_iter().flatten().map(ShardId::from).collect(),
        hash_range: range_from(shard.hash_key_range())?,
        starting_sequence: numbers.starting_sequence_number().parse()?,
        ending_sequence: numbers.ending_sequence_number().map(str::parse::<SequenceNumber>).transpose()?,
    })
}

fn child_from(child: &types::ChildShard) -> Result<ChildShard, BoxError> {
    Ok(ChildShard {
        id: child.shard_id().into(),
        parents: child.parent_shards().iter().map(|parent| parent.as_str().into()).collect(),
        hash_range: range_from(child.hash_key_range())?,
    })
}

fn range_from(range: Option<&types::HashKeyRange>) -> Result<HashKeyRange, BoxError> {
    let range = range.ok_or("a shard has no hash key range")?;
    Ok(HashKeyRange { start: range.starting_hash_key().parse()?, end: range.ending_hash_key().parse()? })
}

fn system_time(time: &DateTime) -> SystemTime {
    SystemTime::try_from(*time).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn unavailable(operation: &'static str, source: impl Into<BoxError>) -> SourceError {
    SourceError::Unavailable { operation, source: source.into() }
}

/// What a failed call means to the caller. `missing` says what was not found.
fn meaning<E>(
    error: SdkError<E>,
    operation: &'static str,
    missing: impl FnOnce() -> SourceError,
) -> SourceError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match error.code() {
        Some("ResourceNotFoundException") => missing(),
        Some("ExpiredIteratorException" | "ExpiredNextTokenException") => SourceError::ExpiredIterator,
        Some(code) if THROTTLED.contains(&code) => SourceError::Throttled { operation, source: cause(error) },
        _ if is_denied(&error) => SourceError::Denied { operation, source: cause(error) },
        _ => unavailable(operation, cause(error)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;

    fn number() -> impl Strategy<Value = String> {
        prop_oneof!["[0-9]{1,60}", "[0-9]{120,140}", "-?[0-9]{0,3}", ".{0,20}"]
    }

    fn range() -> impl Strategy<Value = Option<types::HashKeyRange>> {
        option::of((number(), number()).prop_map(|(start, end)| {
            let range = types::HashKeyRange::builder().starting_hash_key(start).ending_hash_key(end);
            range.build().expect("both ends")
        }))
    }

    proptest! {
        #[test]
        fn any_shard_child_and_record_are_understood_as_they_are_or_refused(
            (id, parents) in (".{0,20}", collection::vec(".{0,20}", 0..3)),
            (hash_keys, first, last) in (range(), number(), option::of(number())),
            (sequence, key, data) in (number(), option::of(".{0,20}"), collection::vec(any::<u8>(), 0..20)),
        ) {
            let numbers = types::SequenceNumberRange::builder().starting_sequence_number(&first);
            let numbers = numbers.set_ending_sequence_number(last.clone()).build().expect("a first number");
            let shard = types::Shard::builder().shard_id(&id).set_hash_key_range(hash_keys.clone());
            let shard = shard.set_parent_shard_id(parents.first().cloned());
            let shard = shard.set_adjacent_parent_shard_id(parents.get(1).cloned());
            let shard = shard.sequence_number_range(numbers).build().expect("an id");
            if let Ok(read) = shard_from(&shard) {
                prop_assert_eq!(read.id.as_str(), &id);
                prop_assert_eq!(read.is_open(), last.is_none());
                prop_assert!(parents.iter().all(|parent| read.parents.contains(&parent.as_str().into())));
                prop_assert_eq!(&read.starting_sequence, &first.parse().expect("it was read"));
            }
            let child = types::ChildShard::builder().shard_id(&id).set_hash_key_range(hash_keys);
            let child = child.set_parent_shards(Some(parents.clone())).build().expect("an id and parents");
            if let Ok(read) = child_from(&child) {
                prop_assert_eq!(read.parents, parents.iter().map(|id| id.as_str().into()).collect());
            }
            let record = types::Record::builder().sequence_number(&sequence).set_partition_key(key.clone());
            let record = record.data(aws_sdk_kinesis::primitives::Blob::new(data.clone())).build();
            match record_from(&id.as_str().into(), record.expect("a number and data")) {
                Ok(read) => {
                    prop_assert_eq!(&read.data()[..], &data[..]);
                    prop_assert_eq!(read.partition_key(), key.unwrap_or_default());
                    prop_assert_eq!(read.position(), &Position::at(sequence.parse().expect("it was read")));
                }
                Err(_) => prop_assert!(sequence.parse::<SequenceNumber>().is_err()),
            }
        }
    }
}
