//! `lag`: how far each shard's checkpoint is behind, measured in the stream itself, with no worker's help.
//!
//! One record after the checkpoint says how long the oldest unread record has waited; its page says how far
//! the tip is. Takes one of the five reads a second that a shard serves.

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
    place::{self, Place, chosen, patiently},
};
use crate::{
    core::lease::{Checkpoint, Lease, LeaseKey},
    io::{RecordSource, SourceError, StartFrom},
};

/// Shards that are measured at one time.
const AT_ONCE: usize = 16;
/// Empty pages that are followed; a stream with few records has many.
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
    /// The shard has left the stream: what was unread is gone.
    Gone,
}

pub(super) async fn run(place: &Place, wish: &Lag) -> Result<(), Trouble> {
    let store = place.store().await?;
    let leases = place.leases(&*store).await?;
    let chosen: Vec<Lease> = chosen(&leases, &wish.shards)?.into_iter().cloned().collect();
    let source = place.source(&leases)?;
    // Names a stream that is not there before any shard does.
    patiently(|| source.describe()).await?;
    let found = measure(&source, &chosen, pinned(&leases)).await?;
    let most = found.iter().filter_map(|(_, behind)| behind.time()).max().unwrap_or_default();
    let table = || {
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|(lease, behind)| {
                let owner = lease.holder().map_or("-", |worker| worker.as_str()).to_owned();
                vec![
                    lease.key.to_string(),
                    owner,
                    behind.word(),
                    behind.oldest(),
                    lease_json::checkpoint(lease),
                ]
            })
            .collect();
        let table = columns(&["SHARD", "HOLDER", "BEHIND", "OLDEST UNREAD", "CHECKPOINT"], &rows);
        format!("{table}\nfurthest behind: {}\n", time(most))
    };
    either(place.format, table, || {
        let shards = found.iter().map(|(lease, behind)| {
            json!({
                "shard": lease.key.as_str(),
                "holder": lease.holder().map(|worker| worker.as_str()),
                "behind_millis": behind.time().map(|time| time.as_millis() as u64),
                "oldest_unread": match behind { Behind::By { oldest: Some(at), .. } => Some(date(*at)), _ => None },
                "what": behind.what(),
                "checkpoint": lease.checkpoint.text(),
            })
        });
        json!({ "shards": shards.collect::<Vec<_>>(), "max_behind_millis": most.as_millis() as u64 })
    })?;
    let late = |(_, behind): &&(Lease, Behind)| {
        *behind == Behind::Gone || behind.time().is_some_and(|time| wish.max.is_some_and(|max| time > max))
    };
    match (wish.max, found.iter().filter(late).count()) {
        (None, _) | (_, 0) => Ok(()),
        (Some(max), count) => {
            Err(Trouble::new(Exit::Behind, format!("{count} shards are more than {} behind", time(max))))
        }
    }
}

impl Behind {
    pub(super) fn time(&self) -> Option<Duration> {
        match self {
            Self::No => Some(Duration::ZERO),
            Self::By { time, .. } => Some(*time),
            Self::Finished | Self::AtTip | Self::Unknown | Self::Gone => None,
        }
    }

    /// For a narrow column.
    pub(super) fn word(&self) -> String {
        match self {
            Self::No => "0".into(),
            Self::By { time: behind, .. } => time(*behind),
            Self::Finished => "finished".into(),
            Self::AtTip => "begins at the tip".into(),
            Self::Unknown => "begins by configuration".into(),
            Self::Gone => "unread records are gone".into(),
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
            Self::Gone => "gone",
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
        Checkpoint::At(position) => Ok(StartFrom::After(position.sequence.clone())),
        Checkpoint::Latest => start.ok_or(Behind::AtTip),
        Checkpoint::AtTimestamp => start.ok_or(Behind::Unknown),
    }
}

/// How far each of `leases` is behind, in their order.
pub(super) async fn measure(
    source: &Arc<dyn RecordSource>,
    leases: &[Lease],
    pinned: Option<u64>,
) -> Result<Vec<(Lease, Behind)>, Trouble> {
    let mut waiting = leases.iter().cloned();
    let (mut under_way, mut found) = (JoinSet::new(), Vec::new());
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
            Some(Ok((lease, behind))) => found.push((lease, behind?)),
            Some(Err(error)) => return Err(Trouble::failed("measure the lag", &error)),
        }
    }
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
    let mut behind = Duration::ZERO;
    for _ in 0..PAGES {
        let page = patiently(|| source.read(&shard, &iterator, 1)).await?;
        behind = page.behind;
        if let Some(record) = page.records.first() {
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
    use crate::io::memory::MemoryStream;

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
