//! `tail`: the records of a stream, shard by shard, as workers would see them.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    args::{Format, From, Payload, Tail},
    exit::Trouble,
    output::{date, text},
    place::{self, Place, patiently, shards},
};
use crate::{
    clock,
    core::{
        aggregation,
        lease::{Checkpoint, Lease, LeaseKey},
        record::Record,
        shard::{Position, Shard, ShardId},
    },
    io::{ShardIterator, SourceError, StartFrom},
};

/// Between two rounds over the shards: a shard serves five reads a second, to workers too.
const PAUSE: Duration = Duration::from_secs(1);
const PAGE: usize = 1000;

/// Where reading of one shard is.
struct Cursor {
    iterator: Option<ShardIterator>,
    /// Nothing up to here is printed.
    through: Option<Position>,
    /// Where to open it again when the iterator has expired.
    from: StartFrom,
}

pub(super) async fn run(place: &Place, wish: &Tail) -> Result<(), Trouble> {
    let leases = match place.has_table() {
        true => place.leases(&*place.store().await?).await?,
        false if wish.from == From::Checkpoint => {
            return Err(Trouble::usage("checkpoints are in a table: name it with --table"));
        }
        false => Vec::new(),
    };
    let source = place.source(&leases)?;
    let listed = shards(&*source).await?;
    let chosen: Vec<&Shard> = match wish.shards.is_empty() {
        true => listed.iter().collect(),
        false => wish
            .shards
            .iter()
            .map(|id| listed.iter().find(|shard| shard.id == *id).ok_or_else(|| no_shard(id)))
            .collect::<Result<_, _>>()?,
    };
    let mut reading: BTreeMap<&ShardId, (&Shard, Cursor)> = BTreeMap::new();
    for shard in chosen {
        if let Some((from, through)) = start(wish, shard, &leases) {
            let iterator = patiently(|| source.open(&shard.id, &from)).await?;
            reading.insert(&shard.id, (shard, Cursor { iterator: Some(iterator), through, from }));
        }
    }
    let follow = wish.follow || wish.from == From::Latest;
    let mut left = wish.limit.unwrap_or(u64::MAX);
    loop {
        let mut more = false;
        for (shard, at) in reading.values_mut() {
            let Some(iterator) = at.iterator.take() else { continue };
            let page = match patiently(|| source.read(&shard.id, &iterator, PAGE)).await {
                Err(SourceError::ExpiredIterator) => {
                    at.iterator = Some(patiently(|| source.open(&shard.id, &at.from)).await?);
                    more = true;
                    continue;
                }
                page => page?,
            };
            let at_tip = page.behind.is_zero();
            at.iterator = page.next;
            more |= at.iterator.is_some() && (follow || !at_tip);
            for record in aggregation::expand(page.records, Some(shard.hash_range)).records {
                at.from = StartFrom::After(record.position().sequence.clone());
                if at.through.as_ref().is_some_and(|through| record.position() <= through) {
                    continue;
                }
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                text(&line(&record, place.format, wish.payload))?;
            }
        }
        if !more || left == 0 {
            return Ok(());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = clock::sleep(PAUSE) => {}
        }
    }
}

fn no_shard(id: &ShardId) -> Trouble {
    Trouble::not_found(format!("shard {id} is not in the stream"))
}

/// Where a shard begins; none if there is nothing to read in it.
fn start(wish: &Tail, shard: &Shard, leases: &[Lease]) -> Option<(StartFrom, Option<Position>)> {
    Some(match &wish.from {
        From::TrimHorizon => (StartFrom::TrimHorizon, None),
        From::Latest if shard.is_open() => (StartFrom::Latest, None),
        From::Latest => return None,
        From::Time(when) => (StartFrom::Timestamp(when.before(place::now())), None),
        From::Sequence(position) => (StartFrom::At(position.sequence.clone()), None),
        From::Checkpoint => {
            let lease = leases.iter().find(|lease| lease.key == LeaseKey::from(&shard.id));
            match lease.map(|lease| &lease.checkpoint) {
                Some(Checkpoint::ShardEnd) => return None,
                Some(Checkpoint::At(position)) => {
                    (StartFrom::At(position.sequence.clone()), Some(position.clone()))
                }
                _ => (StartFrom::TrimHorizon, None),
            }
        }
    })
}

fn line(record: &Record, format: Format, payload: Option<Payload>) -> String {
    let data = payload.map(|payload| match payload {
        Payload::Text => String::from_utf8_lossy(record.data()).into_owned(),
        Payload::Base64 => STANDARD.encode(record.data()),
    });
    match format {
        Format::Json => {
            let mut line = json!({
                "shard": record.shard().as_str(),
                "sequence": record.position().sequence.as_str(),
                "sub": record.position().sub,
                "arrived_at": humantime::format_rfc3339_millis(record.arrived_at()).to_string(),
                "partition_key": record.partition_key(),
                "bytes": record.data().len(),
            });
            if let Some(data) = data {
                line["payload"] = json!(data);
            }
            line.to_string() + "\n"
        }
        Format::Table => {
            let (shard, position) = (record.shard(), record.position());
            let head = format!(
                "{} {shard} {position} {:?} {} bytes",
                date(record.arrived_at()),
                record.partition_key(),
                record.data().len()
            );
            match data {
                Some(data) => format!("{head}\n  {}\n", data.replace('\n', "\n  ")),
                None => head + "\n",
            }
        }
    }
}
