//! The operations, but ListShards.

use base64::prelude::*;
use serde_json::{Value, json};

use super::{
    Kinesis, Refused, invalid, json,
    shapes::{self, Blob, Request, Timestamp},
    violates,
};
use crate::{
    SequenceNumber,
    io::{
        ShardIterator, StartFrom,
        memory::{
            MemoryStream,
            model::{Model, Refusal},
            numbers,
        },
    },
};

const MAX_RECORD_BYTES: usize = 10 << 20;

impl Kinesis {
    pub(super) fn answer(&self, operation: &str, request: &Request) -> Result<Vec<u8>, Refused> {
        match operation {
            "CreateStream" => self.create_stream(request),
            "DeleteStream" => self.stream_of(request).map(|stream| stream.delete()).map(empty),
            "DescribeStreamSummary" => self.describe_stream_summary(request),
            "DescribeStream" => self.describe_stream(request),
            "ListStreams" => Ok(self.list_streams(request)),
            "ListShards" => self.list_shards(request),
            "PutRecord" => self.put_record(request),
            "PutRecords" => self.put_records(request),
            "GetShardIterator" => self.get_shard_iterator(request),
            "GetRecords" => self.get_records(request),
            "SplitShard" => self.split_shard(request),
            "MergeShards" => self.merge_shards(request),
            "UpdateShardCount" => self.update_shard_count(request),
            "IncreaseStreamRetentionPeriod" | "DecreaseStreamRetentionPeriod" => self.set_retention(request),
            other => Err(Refused { code: "UnknownOperationException", message: other.to_owned() }),
        }
    }

    fn create_stream(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let name = text(request.stream_name.as_ref(), "streamName")?;
        let on_demand = request.stream_mode_details.stream_mode.as_deref() == Some("ON_DEMAND");
        let shards = match request.shard_count {
            Some(0) => None,
            None if on_demand => Some(4),
            given => given,
        };
        let shards = shards.ok_or_else(|| violates("shardCount", "Member must be at least 1"))?;
        let exists = || Refused {
            code: "ResourceInUseException",
            message: format!("Stream {name} under account 000000000000 already exists."),
        };
        self.create(name, shards).ok_or_else(exists)?;
        Ok(empty(()))
    }

    fn describe_stream_summary(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        self.stream_of(request)?.step(|model, _| {
            let mut summary = description(model);
            summary["OpenShardCount"] = model.open_shards().len().into();
            summary["ConsumerCount"] = 0.into();
            Ok(json(&json!({ "StreamDescriptionSummary": summary })))
        })
    }

    fn describe_stream(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let after = request.exclusive_start_shard_id.as_deref().unwrap_or_default();
        let most = request.limit.unwrap_or(100);
        self.stream_of(request)?.step(|model, _| {
            let mut shards = model.shards().filter(|shard| shard.id.as_str() > after);
            let mut description = description(model);
            description["Shards"] = shards.by_ref().take(most).map(shapes::shard).collect();
            description["HasMoreShards"] = shards.next().is_some().into();
            Ok(json(&json!({ "StreamDescription": description })))
        })
    }

    fn list_streams(&self, request: &Request) -> Vec<u8> {
        let after = request.exclusive_start_stream_name.as_deref().unwrap_or_default();
        let mut names: Vec<_> = self.names().into_iter().filter(|name| name.as_str() > after).collect();
        let most = request.limit.unwrap_or(100);
        let more = names.len() > most;
        names.truncate(most);
        json(&json!({ "StreamNames": names, "HasMoreStreams": more }))
    }

    fn put_record(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let stream = self.stream_of(request)?;
        let data = request.data.as_ref().ok_or_else(|| violates("data", "Member must not be null"))?;
        let key = text(request.partition_key.as_ref(), "partitionKey")?;
        put(&stream, data, key, request.explicit_hash_key.as_deref()).map(|put| json(&put))
    }

    /// Records above the limits of their shard fail one by one; anything else fails the whole call.
    fn put_records(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let stream = self.stream_of(request)?;
        if !(1..=500).contains(&request.records.len()) {
            return Err(violates("records", "Member must have length between 1 and 500"));
        }
        let mut failed = 0;
        let mut results = Vec::with_capacity(request.records.len());
        for entry in &request.records {
            match put(&stream, &entry.data, &entry.partition_key, entry.explicit_hash_key.as_deref()) {
                Err(Refused { code: code @ "ProvisionedThroughputExceededException", message }) => {
                    failed += 1;
                    results.push(json!({ "ErrorCode": code, "ErrorMessage": message }));
                }
                put => results.push(put?),
            }
        }
        Ok(json(&json!({ "FailedRecordCount": failed, "Records": results })))
    }

    fn get_shard_iterator(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let shard = text(request.shard_id.as_ref(), "shardId")?.into();
        let sequence = || -> Result<SequenceNumber, Refused> {
            let number = request.starting_sequence_number.as_ref().and_then(|number| number.parse().ok());
            number.ok_or_else(|| invalid("StartingSequenceNumber is missing or invalid"))
        };
        let from = match text(request.shard_iterator_type.as_ref(), "shardIteratorType")? {
            "TRIM_HORIZON" => StartFrom::TrimHorizon,
            "LATEST" => StartFrom::Latest,
            "AT_SEQUENCE_NUMBER" => StartFrom::At(sequence()?),
            "AFTER_SEQUENCE_NUMBER" => StartFrom::After(sequence()?),
            "AT_TIMESTAMP" => {
                let when = request.timestamp.ok_or_else(|| invalid("Timestamp is missing"))?;
                StartFrom::Timestamp(when.time())
            }
            other => return Err(violates("shardIteratorType", &format!("{other} is not one"))),
        };
        let iterator = self.stream_of(request)?.step(|model, now| model.open(&shard, &from, now))?;
        Ok(json(&json!({ "ShardIterator": BASE64_STANDARD.encode(iterator.0) })))
    }

    fn get_records(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let iterator = request.shard_iterator.as_ref().and_then(|text| {
            let iterator = String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()?;
            let stream = iterator.split_once('|')?.0.to_owned();
            Some((stream, ShardIterator(iterator)))
        });
        let (stream, iterator) = iterator.ok_or_else(|| invalid("Invalid ShardIterator."))?;
        let limit = request.limit.unwrap_or(10_000);
        if !(1..=10_000).contains(&limit) {
            return Err(violates("limit", "Member must have value between 1 and 10000"));
        }
        let stream = self.stream_named(&stream)?;
        let page = stream.step(|model, now| model.read(&iterator, limit, now))?;
        Ok(json(&shapes::GetRecords {
            records: page.records.iter().map(Into::into).collect(),
            next_shard_iterator: page.next.map(|next| BASE64_STANDARD.encode(next.0)),
            millis_behind_latest: page.behind.as_millis() as u64,
            child_shards: page.children.iter().map(shapes::child).collect(),
        }))
    }

    fn split_shard(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let shard = text(request.shard_to_split.as_ref(), "shardToSplit")?.into();
        let at = hash(text(request.new_starting_hash_key.as_ref(), "newStartingHashKey")?)?;
        self.stream_of(request)?.step(|model, now| model.split(&shard, at, now))?;
        Ok(empty(()))
    }

    fn merge_shards(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let shard = text(request.shard_to_merge.as_ref(), "shardToMerge")?.into();
        let adjacent = text(request.adjacent_shard_to_merge.as_ref(), "adjacentShardToMerge")?.into();
        self.stream_of(request)?.step(|model, now| model.merge(&shard, &adjacent, now))?;
        Ok(empty(()))
    }

    fn update_shard_count(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let target = request.target_shard_count;
        let target = target.ok_or_else(|| violates("targetShardCount", "Member must not be null"))?;
        self.stream_of(request)?.step(|model, now| {
            let present = model.open_shards().len();
            model.update_shard_count(target, now)?;
            Ok(json(&json!({
                "StreamName": model.name,
                "StreamARN": model.arn(),
                "CurrentShardCount": present,
                "TargetShardCount": target,
            })))
        })
    }

    fn set_retention(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let hours = request.retention_period_hours.filter(|hours| (24..=8760).contains(hours));
        let hours = hours.ok_or_else(|| invalid("the retention period is 24 to 8760 hours"))?;
        let retention = std::time::Duration::from_secs(hours * 3600);
        self.stream_of(request)?.step(|model, _| model.retention = retention);
        Ok(empty(()))
    }

    /// The stream that a request names or gives the ARN of.
    pub(super) fn stream_of(&self, request: &Request) -> Result<MemoryStream, Refused> {
        let by_arn = request.stream_arn.as_deref();
        let by_arn = by_arn.map(|arn| arn.split_once(":stream/").map_or(arn, |(_, name)| name));
        let name = by_arn.or(request.stream_name.as_deref());
        self.stream_named(name.ok_or_else(|| violates("streamName", "Member must not be null"))?)
    }

    pub(super) fn stream_named(&self, name: &str) -> Result<MemoryStream, Refused> {
        Ok(self.stream(name).ok_or_else(|| Refusal::NoStream(name.to_owned()))?)
    }
}

fn description(model: &Model) -> Value {
    json!({
        "StreamName": model.name,
        "StreamARN": model.arn(),
        "StreamStatus": "ACTIVE",
        "StreamModeDetails": { "StreamMode": "PROVISIONED" },
        "RetentionPeriodHours": model.retention.as_secs() / 3600,
        "StreamCreationTimestamp": Timestamp { millis: model.created },
        "EnhancedMonitoring": [{ "ShardLevelMetrics": [] }],
        "EncryptionType": "NONE",
    })
}

fn put(stream: &MemoryStream, data: &Blob, key: &str, hash_key: Option<&str>) -> Result<Value, Refused> {
    if !(1..=256).contains(&key.chars().count()) {
        return Err(violates("partitionKey", "Member must have length between 1 and 256"));
    }
    if data.0.len() + key.len() > MAX_RECORD_BYTES {
        return Err(violates("data", "Member must have length less than or equal to 10485760"));
    }
    let hash = hash_key.map_or_else(|| Ok(numbers::hash_key(key)), hash)?;
    let data = data.0.clone();
    let (shard, sequence) = stream.step(|model, now| model.put(hash, key, data, true, now))?;
    Ok(json!({ "ShardId": shard, "SequenceNumber": sequence }))
}

fn hash(text: &str) -> Result<u128, Refused> {
    text.parse().map_err(|_| invalid(format!("{text} is not a hash key")))
}

fn text<'a>(value: Option<&'a String>, member: &str) -> Result<&'a str, Refused> {
    match value {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(violates(member, "Member must not be null")),
    }
}

fn empty((): ()) -> Vec<u8> {
    Vec::new()
}
