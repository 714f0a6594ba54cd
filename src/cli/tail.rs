//! `tail`: the records of a stream, shard by shard, as workers would see them.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::select;

use super::{
    args::{Format, From, Payload, Tail},
    exit::Trouble,
    output::{date, offer},
    place::{self, Place, patiently, shards},
};
use crate::{
    clock,
    core::{
        aggregation,
        lease::{Checkpoint, Lease, LeaseKey},
        record::Record,
        shard::{ChildShard, HashKeyRange, Position, Shard, ShardId},
        shard_sync,
    },
    io::{RecordSource, ShardIterator, SourceError, StartFrom},
};

/// Between two rounds over the shards: a shard serves five reads a second, to workers too.
const PAUSE: Duration = Duration::from_secs(1);
const PAGE: usize = 1000;

/// Where reading of one shard is.
struct Cursor {
    hash_range: HashKeyRange,
    iterator: Option<ShardIterator>,
    /// Nothing up to here is printed.
    through: Option<Position>,
    /// Where to open it again when the iterator has expired.
    from: StartFrom,
}

pub(super) async fn run(place: &Place, wish: &Tail) -> Result<(), Trouble> {
    // One wait over all of it: a Ctrl-C that comes during a call counts too.
    select! {
        biased;
        _ = tokio::signal::ctrl_c() => Ok(()),
        done = read(place, wish) => done,
    }
}

async fn read(place: &Place, wish: &Tail) -> Result<(), Trouble> {
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
    let mut reading = BTreeMap::new();
    for shard in chosen {
        if let Some(start) = start(wish, shard, &leases) {
            reading.insert(shard.id.clone(), open(&*source, &shard.into(), start).await?);
        }
    }
    let follow = wish.follow || wish.from == From::Latest;
    // Announced at the end of a shard that is read, until every parent that is read has ended.
    let mut coming: BTreeMap<ShardId, ChildShard> = BTreeMap::new();
    let mut left = wish.limit.unwrap_or(u64::MAX);
    loop {
        let mut more = false;
        for (shard, at) in &mut reading {
            let Some(iterator) = at.iterator.take() else { continue };
            let page = match patiently(|| source.read(shard, &iterator, PAGE)).await {
                Err(SourceError::ExpiredIterator) => {
                    at.iterator = Some(patiently(|| source.open(shard, &at.from)).await?);
                    more = true;
                    continue;
                }
                page => page?,
            };
            let at_tip = page.behind.is_zero();
            at.iterator = page.next;
            more |= at.iterator.is_some() && (follow || !at_tip);
            for record in aggregation::expand(page.records, Some(at.hash_range)).records {
                at.from = StartFrom::After(record.position().sequence.clone());
                if at.through.as_ref().is_some_and(|through| record.position() <= through) {
                    continue;
                }
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                if !offer(&line(&record, place.format, wish.payload))? {
                    return Ok(());
                }
            }
            if follow && at.iterator.is_none() {
                // Not every server names them.
                let children = match page.children.is_empty() {
                    true => shard_sync::children_of(&shards(&*source).await?, shard),
                    false => page.children,
                };
                coming.extend(children.into_iter().map(|child| (child.id.clone(), child)));
            }
        }
        coming.retain(|id, _| !reading.contains_key(id));
        let read_now = |parent: &ShardId| reading.get(parent).is_some_and(|at| at.iterator.is_some());
        let ready = coming.extract_if(.., |_, child| !child.parents.iter().any(read_now));
        for (id, child) in ready.collect::<Vec<_>>() {
            if let Some(start) = start_of_child(wish, &child, &leases) {
                reading.insert(id, open(&*source, &child, start).await?);
                more = true;
            }
        }
        if !more || left == 0 {
            return Ok(());
        }
        clock::sleep(PAUSE).await;
    }
}

async fn open(
    source: &dyn RecordSource,
    shard: &ChildShard,
    (from, through): (StartFrom, Option<Position>),
) -> Result<Cursor, Trouble> {
    let now = place::now();
    let iterator = Some(patiently(|| source.open(&shard.id, &from)).await?);
    // The tip will have moved on when an iterator expires, because nobody took what was printed.
    let from = if from == StartFrom::Latest { StartFrom::Timestamp(now) } else { from };
    Ok(Cursor { hash_range: shard.hash_range, iterator, through, from })
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
        From::Checkpoint => return after_checkpoint(&shard.id, leases),
    })
}

/// Where a shard begins that came up meanwhile: all of it is new, but for what is older than the time asked for
/// or was processed before.
fn start_of_child(
    wish: &Tail,
    child: &ChildShard,
    leases: &[Lease],
) -> Option<(StartFrom, Option<Position>)> {
    match &wish.from {
        From::Time(when) => Some((StartFrom::Timestamp(when.before(place::now())), None)),
        From::Checkpoint => after_checkpoint(&child.id, leases),
        From::TrimHorizon | From::Latest | From::Sequence(_) => Some((StartFrom::TrimHorizon, None)),
    }
}

fn after_checkpoint(shard: &ShardId, leases: &[Lease]) -> Option<(StartFrom, Option<Position>)> {
    let lease = leases.iter().find(|lease| lease.key == LeaseKey::from(shard));
    match lease.map(|lease| &lease.checkpoint) {
        Some(Checkpoint::ShardEnd) => None,
        Some(Checkpoint::At(position)) => {
            Some((StartFrom::At(position.sequence.clone()), Some(position.clone())))
        }
        _ => Some((StartFrom::TrimHorizon, None)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryStream;

    #[tokio::test(start_paused = true)]
    async fn what_begins_at_the_tip_skips_nothing_when_its_iterator_expires() {
        let stream = MemoryStream::new("s", 1);
        let shard = ChildShard::from(&stream.shards()[0]);
        let cursor = open(&stream, &shard, (StartFrom::Latest, None)).await.expect("opened");
        clock::sleep(Duration::from_secs(1)).await;
        stream.put("key", "while a pager was full");
        clock::sleep(Duration::from_secs(600)).await;
        let old = cursor.iterator.expect("one");
        assert!(matches!(stream.read(&shard.id, &old, PAGE).await, Err(SourceError::ExpiredIterator)));
        let again = stream.open(&shard.id, &cursor.from).await.expect("opened");
        assert_eq!(stream.read(&shard.id, &again, PAGE).await.expect("a page").records.len(), 1);
    }
}
