//! ListShards: the six filters, and pages whose tokens expire.

use base64::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Kinesis, Refused, invalid, json,
    shapes::{self, Filter, Request, Timestamp},
    violates,
};
use crate::{Shard, io::memory::model::Model};

/// What a page token says.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    stream: String,
    after: String,
    filter: Option<Filter>,
    issued: Timestamp,
}

impl Kinesis {
    pub(super) fn list_shards(&self, request: &Request) -> Result<Vec<u8>, Refused> {
        let named = request.stream_name.is_some() || request.stream_arn.is_some();
        let (stream, after, filter) = match &request.next_token {
            Some(_) if named => return Err(invalid("NextToken and StreamName cannot be provided together.")),
            Some(text) => {
                let token = Token::parse(text).ok_or_else(|| invalid("Invalid NextToken."))?;
                let stream = self.stream_named(&token.stream)?;
                let age = stream.step(|_, now| now.saturating_sub(token.issued.millis));
                if u128::from(age) >= self.options.token_lifetime.as_millis() {
                    let message = format!("NextToken expired: it was issued {age} ms ago");
                    return Err(Refused { code: "ExpiredNextTokenException", message });
                }
                (stream, Some(token.after), token.filter)
            }
            None => {
                let after = request.exclusive_start_shard_id.clone();
                (self.stream_of(request)?, after, request.shard_filter.clone())
            }
        };
        let most = request.max_results.unwrap_or(1000).min(1000);
        if most == 0 {
            return Err(violates("maxResults", "Member must have value greater than or equal to 1"));
        }
        stream.step(|model, now| {
            let mut shards = select(model, filter.as_ref(), now)?;
            if let Some(after) = &after {
                shards.retain(|shard| shard.id.as_str() > after.as_str());
            }
            shards.sort_by(|a, b| a.id.cmp(&b.id));
            let more = shards.len() > most;
            shards.truncate(most);
            let mut answer = json!({ "Shards": shards.iter().map(shapes::shard).collect::<Vec<_>>() });
            if let Some(last) = shards.last().filter(|_| more) {
                let token = Token {
                    stream: model.name.clone(),
                    after: last.id.to_string(),
                    filter,
                    issued: Timestamp { millis: now },
                };
                answer["NextToken"] = BASE64_STANDARD.encode(json(&token)).into();
            }
            Ok(json(&answer))
        })
    }
}

impl Token {
    fn parse(text: &str) -> Option<Self> {
        serde_json::from_slice(&BASE64_STANDARD.decode(text).ok()?).ok()
    }
}

fn select(model: &Model, filter: Option<&Filter>, now: u64) -> Result<Vec<Shard>, Refused> {
    model.is_there()?;
    let Some(filter) = filter else {
        return Ok(model.shards().cloned().collect());
    };
    let when = || match filter.timestamp {
        Some(when) if when.millis <= now + 1000 => Ok(when.millis),
        Some(_) => Err(invalid("the timestamp of the shard filter is in the future")),
        None => Err(invalid("the shard filter needs a timestamp")),
    };
    Ok(match filter.kind.as_str() {
        "AT_LATEST" => model.open_shards(),
        "AT_TRIM_HORIZON" => model.shards_at(model.horizon(now), false),
        "FROM_TRIM_HORIZON" => model.shards().cloned().collect(),
        "AT_TIMESTAMP" => model.shards_at(when()?, false),
        "FROM_TIMESTAMP" => model.shards_at(when()?, true),
        "AFTER_SHARD_ID" => {
            let after =
                filter.shard_id.as_deref().ok_or_else(|| invalid("the shard filter needs a shard"))?;
            model.shards().filter(|shard| shard.id.as_str() > after).cloned().collect()
        }
        other => return Err(violates("shardFilter.type", &format!("{other} is not a filter type"))),
    })
}
