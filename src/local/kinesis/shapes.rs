//! The JSON of Kinesis: one request for all operations, since equal names mean equal types in all of
//! them, and the answers that are not built in place.

use base64::{display::Base64Display, engine::general_purpose::STANDARD, prelude::*};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};

use crate::{
    HashKeyRange, Record, Shard,
    io::memory::numbers::{millis, time},
};

/// Every field that an operation reads; what is absent is none.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Request {
    pub(super) stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    pub(super) stream_arn: Option<String>,
    pub(super) shard_count: Option<usize>,
    pub(super) target_shard_count: Option<usize>,
    pub(super) stream_mode_details: StreamMode,
    pub(super) shard_id: Option<String>,
    pub(super) shard_iterator_type: Option<String>,
    pub(super) starting_sequence_number: Option<String>,
    pub(super) timestamp: Option<Timestamp>,
    pub(super) shard_iterator: Option<String>,
    pub(super) limit: Option<usize>,
    pub(super) max_results: Option<usize>,
    pub(super) next_token: Option<String>,
    pub(super) exclusive_start_shard_id: Option<String>,
    pub(super) exclusive_start_stream_name: Option<String>,
    pub(super) shard_filter: Option<Filter>,
    pub(super) records: Vec<Entry>,
    pub(super) data: Option<Blob>,
    pub(super) partition_key: Option<String>,
    pub(super) explicit_hash_key: Option<String>,
    pub(super) shard_to_split: Option<String>,
    pub(super) new_starting_hash_key: Option<String>,
    pub(super) shard_to_merge: Option<String>,
    pub(super) adjacent_shard_to_merge: Option<String>,
    pub(super) retention_period_hours: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct StreamMode {
    pub(super) stream_mode: Option<String>,
}

/// Which shards to list; also kept in page tokens.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Filter {
    #[serde(rename = "Type")]
    pub(super) kind: String,
    pub(super) shard_id: Option<String>,
    pub(super) timestamp: Option<Timestamp>,
}

/// One record of PutRecords.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    pub(super) data: Blob,
    pub(super) partition_key: String,
    pub(super) explicit_hash_key: Option<String>,
}

/// Seconds since the epoch, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timestamp {
    pub(super) millis: u64,
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        // The nearest float may lie just below a whole number of milliseconds.
        Ok(Self { millis: (seconds * 1000.0 + 0.01) as u64 })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.millis as f64 / 1000.0)
    }
}

impl Timestamp {
    pub(super) fn time(self) -> std::time::SystemTime {
        time(self.millis)
    }
}

/// Bytes in base64.
#[derive(Debug, Clone)]
pub(super) struct Blob(pub(super) Bytes);

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text.as_bytes()).map(|bytes| Self(bytes.into())).map_err(de::Error::custom)
    }
}

/// A page of records.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GetRecords<'a> {
    pub(super) records: Vec<RecordShape<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_shard_iterator: Option<String>,
    pub(super) millis_behind_latest: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) child_shards: Vec<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RecordShape<'a> {
    #[serde(serialize_with = "base64")]
    data: &'a [u8],
    partition_key: &'a str,
    sequence_number: &'a str,
    approximate_arrival_timestamp: Timestamp,
}

impl<'a> From<&'a Record> for RecordShape<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            data: record.data(),
            partition_key: record.partition_key(),
            sequence_number: record.position().sequence.as_str(),
            approximate_arrival_timestamp: Timestamp { millis: millis(record.arrived_at()) },
        }
    }
}

fn base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes, &STANDARD))
}

/// A shard as ListShards gives it.
pub(super) fn shard(shard: &Shard) -> Value {
    let mut parents = shard.parents.iter();
    let mut json = json!({
        "ShardId": shard.id,
        "HashKeyRange": hash_key_range(&shard.hash_range),
        "SequenceNumberRange": { "StartingSequenceNumber": shard.starting_sequence },
    });
    if let Some(parent) = parents.next() {
        json["ParentShardId"] = json!(parent);
    }
    if let Some(parent) = parents.next() {
        json["AdjacentParentShardId"] = json!(parent);
    }
    if let Some(end) = &shard.ending_sequence {
        json["SequenceNumberRange"]["EndingSequenceNumber"] = json!(end);
    }
    json
}

/// A shard as GetRecords gives it at the end of its parent.
pub(super) fn child(child: &crate::ChildShard) -> Value {
    json!({
        "ShardId": child.id,
        "ParentShards": child.parents,
        "HashKeyRange": hash_key_range(&child.hash_range),
    })
}

fn hash_key_range(range: &HashKeyRange) -> Value {
    json!({ "StartingHashKey": range.start.to_string(), "EndingHashKey": range.end.to_string() })
}
