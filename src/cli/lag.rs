//! `lag`: how far each shard's checkpoint is behind, measured in the stream itself, with no worker's help.
//!
//! The first record after the checkpoint says how long the oldest unread one has waited; its page says how far
//! the tip is. Takes one of the five reads a second that a shard serves. Shards that the table leaves out are
//! listed too: nobody reads them, and no row says so.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tokio::task::JoinSet;

use super::{
    args::Lag,
    exit::{Exit, Trouble},
    lease_json,
    output::{columns, date, either, time},
    place::{self, Place, chosen, patiently, shards},
};
use crate::{
    core::{
        aggregation,
        lease::{Checkpoint, Lease, LeaseKey},
        shard::Shard,
        shard_sync::{self, Begin},
    },
    io::{RecordSource, SourceError, StartFrom},
};

/// Shards that are measured at one time.
const AT_ONCE: usize = 16;
/// Records that are read at one time: the checkpoint's own, and one more.
const RECORDS: usize = 2;
/// Pages without an unread record that are followed; a stream with few records has many empty ones.
const PAGES: usize = 8;

/// What was found at the checkpoint of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Nothing is unread.
    No,
    /// The oldest unread record arrived then, so long ago; none if only the page told.
    By { time: Duration, oldest: Option<SystemTime> },
    /// Every record was processed.
    Finished,
    /// The shard has not been begun, and begins at whatever arrives once a worker takes it.
    AtTip,
    /// The shard has not been begun, and begins where the workers' configuration says.
    Unknown,
    /// The table has no lease of the shard, so nobody reads it: it begins where the workers say, once one comes.
    NoLease,
    /// The shard has left the stream: what was unread is gone.
    Gone,
    /// It could not be read, though others could: throttled by its readers, most likely. Says why.
    NotRead(String),
}

pub(super) async fn run(place: &Place, wish: &Lag) -> Result<(), Trouble> {
    let store = place.store().await?;
    let leases = place.leases(&*store).await?;
    let source = place.source(&leases)?;
    let listed = shards(&*source).await?;
    let without = without_lease(&listed, &leases);
    let all: Vec<Lease> = leases.iter().chain(&without).cloned().collect();
    let chosen: Vec<Lease> = chosen(&all, &wish.shards)?.into_iter().cloned().collect();
    let (without, with): (Vec<Lease>, Vec<Lease>) =
        chosen.into_iter().partition(|lease| without.iter().any(|new| new.key == lease.key));
    let mut found = measure(&source, &with, pinned(&leases)).await?;
    found.extend(without.into_iter().map(|lease| (lease, Behind::NoLease)));
    found.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
    let most = found.iter().filter_map(|(_, behind)| behind.time()).max();
    let unknown = found.iter().filter(|(_, behind)| behind.is_unknown()).count();
    let table = || {
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|(lease, behind)| {
                let owner = lease.holder().map_or("-", |worker| worker.as_str()).to_owned();
                let checkpoint = match behind {
                    Behind::NoLease => "-".to_owned(),
                    _ => lease_json::checkpoint(lease),
                };
                vec![lease.key.to_string(), owner, behind.word(), behind.oldest(), checkpoint]
            })
            .collect();
        let table = columns(&["SHARD", "HOLDER", "BEHIND", "OLDEST UNREAD", "CHECKPOINT"], &rows);
        let most = most.map_or_else(|| "-".into(), time);
        let unknown = if unknown > 0 { format!("; not known of {unknown} shards") } else { String::new() };
        format!("{table}\nfurthest behind: {most}{unknown}\n")
    };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    either(place.format, table, || {
        let shards = found.iter().map(|(lease, behind)| {
            json!({
                "shard": lease.key.as_str(),
                "holder": lease.holder().map(|worker| worker.as_str()),
                "behind_millis": behind.time().map(millis),
                "oldest_unread": match behind { Behind::By { oldest: Some(at), .. } => Some(date(*at)), _ => None },
                "what": behind.what(),
                "checkpoint": (*behind != Behind::NoLease).then(|| lease.checkpoint.text()),
            })
        });
        json!({
            "shards": shards.collect::<Vec<_>>(),
            "max_behind_millis": most.map(millis),
            "unknown": unknown,
        })
    })?;
    for (lease, behind) in &found {
        if let Behind::NotRead(why) = behind {
            eprintln!("leasectl: {}: {why}", lease.key);
        }
    }
    let Some(max) = wish.max else { return Ok(()) };
    let late = found.iter().filter(|(_, behind)| behind.time().is_some_and(|time| time > max)).count();
    let gone = found.iter().filter(|(_, behind)| *behind == Behind::Gone).count();
    let max = time(max);
    let counts = [
        (late, format!("{late} shards are more than {max} behind")),
        (gone, format!("of {gone} shards unread records are gone")),
        (unknown, format!("of {unknown} shards it is not known how far they are behind")),
    ];
    let said: Vec<String> = counts.into_iter().filter(|(n, _)| *n > 0).map(|(_, what)| what).collect();
    match &said[..] {
        [] => Ok(()),
        said => Err(Trouble::new(Exit::Behind, said.join("; "))),
    }
}

/// Leases of the shards that nobody reads, has read or will come to after a parent: none is in the table. Where
/// whole lines of shards are new, the ones that take records now.
fn without_lease(listed: &[Shard], leases: &[Lease]) -> Vec<Lease> {
    shard_sync::missing(listed, leases, Begin::Latest { pinned_millis: 0 }, true)
}

impl Behind {
    pub(super) fn time(&self) -> Option<Duration> {
        match self {
            Self::No => Some(Duration::ZERO),
            Self::By { time, .. } => Some(*time),
            Self::Finished | Self::AtTip | Self::Unknown | Self::NoLease | Self::Gone | Self::NotRead(_) => {
                None
            }
        }
    }

    /// Whether records may be unread without anybody knowing since when.
    fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown | Self::NoLease | Self::NotRead(_))
    }

    /// For a narrow column.
    pub(super) fn word(&self) -> String {
        match self {
            Self::No => "0".into(),
            Self::By { time: behind, .. } => time(*behind),
            Self::Finished => "finished".into(),
            Self::AtTip => "begins at the tip".into(),
            Self::Unknown => "begins by configuration".into(),
            Self::NoLease => "has no lease".into(),
            Self::Gone => "unread records are gone".into(),
            Self::NotRead(_) => "could not be read".into(),
        }
    }

    /// For programs.
    fn what(&self) -> &'static str {
        match self {
            Self::No => "up_to_date",
            Self::By { .. } => "behind",
            Self::Finished => "finished",
            Self::AtTip => "begins_at_tip",
            Self::Unknown => "begins_by_configuration",
            Self::NoLease => "no_lease",
            Self::Gone => "gone",
            Self::NotRead(_) => "not_read",
        }
    }

    fn oldest(&self) -> String {
        match self {
            Self::By { oldest: Some(at), .. } => date(*at),
            _ => "-".into(),
        }
    }
}

/// When the application first started, for leases that have not begun.
pub(super) fn pinned(leases: &[Lease]) -> Option<u64> {
    let begun = leases.iter().filter(|lease| lease.reset_millis.is_none());
    begun.filter_map(|lease| lease.start_millis).min()
}

/// Where the records of a lease begin that are unread; none if the table does not say.
pub(super) fn unread_from(lease: &Lease, pinned: Option<u64>) -> Result<StartFrom, Behind> {
    let start = if lease.reset_millis.is_some() { lease.start_millis } else { pinned };
    let start =
        start.map(|millis| StartFrom::Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)));
    match &lease.checkpoint {
        Checkpoint::ShardEnd => Err(Behind::Finished),
        Checkpoint::TrimHorizon => Ok(StartFrom::TrimHorizon),
        // At, as a worker does: the rest of an aggregated record may be unread.
        Checkpoint::At(position) => Ok(StartFrom::At(position.sequence.clone())),
        Checkpoint::Latest => start.ok_or(Behind::AtTip),
        Checkpoint::AtTimestamp => start.ok_or(Behind::Unknown),
    }
}

/// How far each of `leases` is behind, in their order. One that cannot be read does not hide the others.
pub(super) async fn measure(
    source: &Arc<dyn RecordSource>,
    leases: &[Lease],
    pinned: Option<u64>,
) -> Result<Vec<(Lease, Behind)>, Trouble> {
    let mut waiting = leases.iter().cloned();
    let (mut under_way, mut found) = (JoinSet::new(), Vec::new());
    let mut failed: Vec<(Lease, SourceError)> = Vec::new();
    loop {
        while under_way.len() < AT_ONCE {
            let Some(lease) = waiting.next() else { break };
            let source = Arc::clone(source);
            under_way.spawn(async move {
                let behind = measure_one(&*source, &lease, pinned).await;
                (lease, behind)
            });
        }
        match under_way.join_next().await {
            None => break,
            Some(Ok((lease, Ok(behind)))) => found.push((lease, behind)),
            Some(Ok((lease, Err(error)))) => failed.push((lease, error)),
            Some(Err(error)) => return Err(Trouble::failed("measure the lag", &error)),
        }
    }
    // What holds for all of them is said once.
    if !found.iter().any(|(_, behind)| behind.time().is_some() || *behind == Behind::Gone)
        && let Some((_, error)) = failed.pop()
    {
        return Err(error.into());
    }
    let why = |error: SourceError| Behind::NotRead(Trouble::from(error).to_string());
    found.extend(failed.into_iter().map(|(lease, error)| (lease, why(error))));
    found.sort_by(|(a, _), (b, _)| LeaseKey::cmp(&a.key, &b.key));
    Ok(found)
}

async fn measure_one(
    source: &dyn RecordSource,
    lease: &Lease,
    pinned: Option<u64>,
) -> Result<Behind, SourceError> {
    let from = match unread_from(lease, pinned) {
        Ok(from) => from,
        Err(known) => return Ok(known),
    };
    let shard = lease.key.shard();
    let mut iterator = match patiently(|| source.open(&shard, &from)).await {
        Err(SourceError::NoShard(_)) => return Ok(Behind::Gone),
        opened => opened?,
    };
    let done = lease.checkpoint.position();
    let mut behind = Duration::ZERO;
    for _ in 0..PAGES {
        let page = patiently(|| source.read(&shard, &iterator, RECORDS)).await?;
        behind = page.behind;
        let records = aggregation::expand(page.records, lease.hash_range).records;
        if let Some(record) = records.iter().find(|record| Some(record.position()) > done) {
            let arrived = record.arrived_at();
            let waited = place::now().duration_since(arrived).unwrap_or_default();
            return Ok(Behind::By { time: waited.max(behind), oldest: Some(arrived) });
        }
        match page.next {
            Some(next) if !behind.is_zero() => iterator = next,
            _ => return Ok(Behind::No),
        }
    }
    Ok(Behind::By { time: behind, oldest: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{
        faulty::{Fault, Faults, FaultySource, Op},
        memory::MemoryStream,
    };

    fn lease(checkpoint: Checkpoint) -> Lease {
        Lease::new(&"shardId-000000000000".into(), checkpoint)
    }

    async fn behind(stream: &MemoryStream, lease: Lease) -> Behind {
        let source: Arc<dyn RecordSource> = Arc::new(stream.clone());
        let found = measure(&source, &[lease], None).await.expect("an answer");
        found.into_iter().next().expect("one").1
    }

    #[tokio::test(start_paused = true)]
    async fn one_unread_record_is_behind_although_its_page_reaches_the_tip() {
        let stream = MemoryStream::new("s", 1);
        let (_, first) = stream.put("k", "1");
        let done = lease(Checkpoint::At(crate::Position::at(first)));
        assert_eq!(behind(&stream, done.clone()).await, Behind::No);
        stream.put("k", "2");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let Behind::By { time, oldest: Some(_) } = behind(&stream, done).await else { panic!("not behind") };
        assert!(time >= Duration::from_secs(60), "{time:?}");
    }

    /// Two user records, as the Kinesis Producer Library puts them into one record.
    const AGGREGATED: &[u8] =
        b"\xf3\x89\x9a\xc2\x0a\x02\x70\x6b\x1a\x05\x08\x00\x1a\x01\x61\x1a\x05\x08\x00\x1a\x01\x62\
        \x6f\x1e\x24\xde\x96\x25\x4d\xaa\xd7\x9d\xf3\xc1\xc7\xa9\x94\x0f";

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_an_aggregated_record_is_unread_until_its_last_part_is_done() {
        let stream = MemoryStream::new("s", 1);
        stream.put("pk", "before");
        let (_, sequence) = stream.put("pk", AGGREGATED.to_vec());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let through = |sub| lease(Checkpoint::At(crate::Position { sequence: sequence.clone(), sub }));
        let Behind::By { time, .. } = behind(&stream, through(0)).await else { panic!("not behind") };
        assert!(time >= Duration::from_secs(60), "{time:?}");
        assert_eq!(behind(&stream, through(1)).await, Behind::No);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_cannot_be_read_does_not_hide_the_others() {
        let (stream, faults) = (MemoryStream::new("s", 2), Faults::new(1));
        let source: Arc<dyn RecordSource> = Arc::new(FaultySource::new(stream.clone(), faults.clone()));
        let leases: Vec<Lease> =
            stream.shards().iter().map(|shard| Lease::new(&shard.id, Checkpoint::TrimHorizon)).collect();
        faults.next(Op::OpenIterator, 1, Fault::Denied);
        let found = measure(&source, &leases, None).await.expect("one of them");
        let unread = found.iter().filter(|(_, behind)| matches!(behind, Behind::NotRead(_))).count();
        assert_eq!((unread, found.iter().filter(|(_, behind)| *behind == Behind::No).count()), (1, 1));
        faults.next(Op::OpenIterator, 2, Fault::Denied);
        assert!(measure(&source, &leases, None).await.is_err(), "nothing at all is known");
    }

    #[tokio::test(start_paused = true)]
    async fn shards_without_a_lease_are_found_unless_one_above_them_is_unfinished() {
        let stream = MemoryStream::new("s", 2);
        let [left, right] = [0, 1].map(|n| stream.shards()[n].id.clone());
        let children = stream.split(&left);
        let without = |leases: &[Lease]| -> Vec<String> {
            without_lease(&stream.shards(), leases).iter().map(|lease| lease.key.to_string()).collect()
        };
        let ids =
            |shards: &[&crate::ShardId]| -> Vec<String> { shards.iter().map(|id| id.to_string()).collect() };
        assert_eq!(without(&[]), ids(&[&right, &children[0], &children[1]]), "all that take records");
        let parent = |checkpoint| Lease::new(&left, checkpoint);
        assert_eq!(without(&[parent(Checkpoint::TrimHorizon)]), ids(&[&right]));
        assert_eq!(without(&[parent(Checkpoint::ShardEnd)]), ids(&[&right, &children[0], &children[1]]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_not_begun_says_where_it_begins() {
        let stream = MemoryStream::new("s", 1);
        assert_eq!(behind(&stream, lease(Checkpoint::TrimHorizon)).await, Behind::No);
        stream.put("k", "1");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(matches!(behind(&stream, lease(Checkpoint::TrimHorizon)).await, Behind::By { .. }));
        assert_eq!(behind(&stream, lease(Checkpoint::Latest)).await, Behind::AtTip);
        assert_eq!(behind(&stream, lease(Checkpoint::AtTimestamp)).await, Behind::Unknown);
        assert_eq!(behind(&stream, lease(Checkpoint::ShardEnd)).await, Behind::Finished);
        let pinned = Lease { start_millis: Some(1), reset_millis: Some(2), ..lease(Checkpoint::Latest) };
        assert!(matches!(behind(&stream, pinned).await, Behind::By { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_left_the_stream_has_lost_what_was_unread() {
        let stream = MemoryStream::new("s", 1);
        let gone = Lease::new(&"shardId-000000000009".into(), Checkpoint::TrimHorizon);
        assert_eq!(behind(&stream, gone).await, Behind::Gone);
    }
}
