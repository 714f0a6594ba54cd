//! The rules of a Kinesis stream: routing, sequence numbers, lineage, reading, retention, limits.
//!
//! Plain data; time comes in as `now`, in milliseconds since the epoch. [`MemoryStream`] puts it behind
//! [`RecordSource`], and `local` behind HTTP, so both faces agree.
//!
//! [`MemoryStream`]: super::MemoryStream
//! [`RecordSource`]: crate::io::RecordSource

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::{
    limits::{Limits, Window},
    numbers::{self, equal_ranges, millis, sequence_number, shard_id, time},
};
use crate::{
    core::{
        record::Record,
        shard::{HashKeyRange, Position, SequenceNumber, Shard, ShardId},
    },
    io::{Page, ShardFilter, ShardIterator, StartFrom},
};

const MAX_PAGE_RECORDS: usize = 10_000;
const MAX_PAGE_BYTES: usize = 10 << 20;

/// What a stream does differently from its defaults.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    /// For how long a shard iterator can be used.
    pub(crate) iterator_lifetime: Duration,
    /// Whether the page with the last records of a closed shard already says that the shard has ended.
    pub(crate) end_with_last_page: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::none(),
            iterator_lifetime: Duration::from_secs(300),
            end_with_last_page: false,
        }
    }
}

/// Why a call was refused, by the AWS error that it becomes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("Stream {0} under account 000000000000 not found.")]
    NoStream(String),
    #[error("Shard {shard} in stream {stream} under account 000000000000 does not exist")]
    NoShard { shard: ShardId, stream: String },
    #[error("Rate exceeded for shard {shard} in stream {stream} under account 000000000000.")]
    Throttled { shard: ShardId, stream: String },
    #[error("Iterator expired: it was issued {} s ago", age.as_secs())]
    Expired { age: Duration },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    TooMuch(String),
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) created: u64,
    pub(crate) retention: Duration,
    deleted: bool,
    lines: Vec<Line>,
}

/// One shard and its records. Never removed, so that the place in the list is the number in the id.
#[derive(Debug)]
struct Line {
    shard: Shard,
    index: usize,
    created: u64,
    closed: Option<u64>,
    /// The shard has left the stream.
    gone: bool,
    /// The number of the next record; the first is 1.
    next: u64,
    /// With consecutive numbers, up to `next - 1`.
    records: VecDeque<Record>,
    reads: Window,
    writes: Window,
}

impl Model {
    pub(crate) fn new(name: &str, shards: usize, now: u64) -> Self {
        let mut model = Self {
            name: name.to_owned(),
            settings: Settings::default(),
            created: now,
            retention: Duration::from_secs(24 * 3600),
            deleted: true,
            lines: Vec::new(),
        };
        model.create(shards, now);
        model
    }

    pub(crate) fn arn(&self) -> String {
        format!("arn:aws:kinesis:us-east-1:000000000000:stream/{}", self.name)
    }

    /// Makes the deleted stream again: another one, under the same name.
    pub(crate) fn create(&mut self, shards: usize, now: u64) {
        self.created = now;
        self.deleted = false;
        self.lines.clear();
        for range in equal_ranges(shards) {
            self.add(range, &[], now);
        }
    }

    pub(crate) fn delete(&mut self) {
        self.deleted = true;
        self.lines.clear();
    }

    /// Whether the stream is there.
    pub(crate) fn is_there(&self) -> Result<(), Refusal> {
        if self.deleted { Err(Refusal::NoStream(self.name.clone())) } else { Ok(()) }
    }

    /// The shards in the order of their ids, without those that have left the stream.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.lines.iter().filter(|line| !line.gone).map(|line| &line.shard)
    }

    /// The open shards in the order of their hash keys.
    pub(crate) fn open_shards(&self) -> Vec<Shard> {
        let mut open: Vec<_> = self.shards().filter(|shard| shard.is_open()).cloned().collect();
        open.sort_by_key(|shard| shard.hash_range);
        open
    }

    pub(crate) fn records(&self, shard: &ShardId) -> Result<Vec<Record>, Refusal> {
        Ok(self.line(shard)?.records.iter().cloned().collect())
    }

    /// The shards that were open at some time, or also those opened since. AWS: `AT_…` and `FROM_…`.
    pub(crate) fn shards_at(&self, when: u64, and_since: bool) -> Vec<Shard> {
        let selected = |line: &&Line| {
            line.closed.is_none_or(|closed| closed > when) && (and_since || line.created <= when)
        };
        self.lines.iter().filter(|line| !line.gone).filter(selected).map(|line| line.shard.clone()).collect()
    }

    pub(crate) fn list(&self, filter: ShardFilter, now: u64) -> Result<Vec<Shard>, Refusal> {
        self.is_there()?;
        Ok(match filter {
            ShardFilter::All => self.shards().cloned().collect(),
            ShardFilter::AtTrimHorizon => self.shards_at(self.horizon(now), false),
            ShardFilter::AtLatest => self.open_shards(),
            ShardFilter::AtTimestamp(when) => self.shards_at(millis(when), false),
        })
    }

    /// The arrival time of the oldest record that there could be.
    pub(crate) fn horizon(&self, now: u64) -> u64 {
        self.created.max(now.saturating_sub(self.retention.as_millis() as u64))
    }

    /// Drops what is older than the retention period, and the closed shards that this leaves empty.
    pub(crate) fn expire(&mut self, now: u64) {
        let horizon = self.horizon(now);
        if horizon == self.created {
            return;
        }
        for line in self.lines.iter_mut().filter(|line| !line.gone) {
            while line.records.front().is_some_and(|record| millis(record.arrived_at()) < horizon) {
                line.records.pop_front();
            }
            line.gone = line.closed.is_some_and(|closed| closed < horizon);
        }
    }

    /// Drops all records of a shard but the newest `keep`, as if the older ones had reached the end of
    /// the retention period.
    pub(crate) fn trim(&mut self, shard: &ShardId, keep: usize) -> Result<(), Refusal> {
        let records = &mut self.line_mut(shard)?.records;
        records.drain(..records.len().saturating_sub(keep));
        Ok(())
    }

    /// Takes a closed shard out of the stream, as if its retention period had passed.
    pub(crate) fn forget(&mut self, shard: &ShardId) -> Result<(), Refusal> {
        let line = self.line_mut(shard)?;
        if line.closed.is_none() {
            return Err(Refusal::Invalid(format!("{shard} is open")));
        }
        line.gone = true;
        line.records.clear();
        Ok(())
    }

    /// Appends a record to the open shard that serves `hash`. Limits count only if `limited`.
    pub(crate) fn put(
        &mut self,
        hash: u128,
        key: &str,
        data: Bytes,
        limited: bool,
        now: u64,
    ) -> Result<(ShardId, SequenceNumber), Refusal> {
        self.is_there()?;
        let limits = self.settings.limits;
        let line = self
            .lines
            .iter_mut()
            .find(|line| line.closed.is_none() && line.serves(hash))
            .expect("the open shards serve every hash key");
        let bytes = data.len() + key.len();
        if limited && !line.writes.admit_write(&limits, bytes, now) {
            return Err(Refusal::Throttled { shard: line.shard.id.clone(), stream: self.name.clone() });
        }
        let sequence = sequence_number(self.created, line.index, line.next);
        line.next += 1;
        let (position, id) = (Position::at(sequence.clone()), line.shard.id.clone());
        line.records.push_back(Record::new(id.clone(), position, key, time(now), data));
        Ok((id, sequence))
    }

    pub(crate) fn open(&self, shard: &ShardId, from: &StartFrom, now: u64) -> Result<ShardIterator, Refusal> {
        let line = self.line(shard)?;
        let number = |sequence: &SequenceNumber| {
            numbers::record_number(self.created, line.index, sequence).ok_or_else(|| {
                Refusal::Invalid(format!("StartingSequenceNumber {sequence} is invalid for shard {shard}"))
            })
        };
        let number = match from {
            StartFrom::TrimHorizon => 0,
            StartFrom::Latest => line.next,
            StartFrom::At(sequence) => number(sequence)?,
            StartFrom::After(sequence) => number(sequence)? + 1,
            StartFrom::Timestamp(when) if millis(*when) > now + 1000 => {
                return Err(Refusal::Invalid("the timestamp is in the future".into()));
            }
            StartFrom::Timestamp(when) => {
                let when = time(millis(*when));
                line.first() + line.records.partition_point(|record| record.arrived_at() < when) as u64
            }
        };
        Ok(self.iterator(line, number, now))
    }

    pub(crate) fn read(&mut self, from: &ShardIterator, limit: usize, now: u64) -> Result<Page, Refusal> {
        self.is_there()?;
        let at = Cursor::parse(&from.0)
            .filter(|at| at.stream == self.name)
            .ok_or_else(|| Refusal::Invalid("Invalid ShardIterator.".into()))?;
        let age = Duration::from_millis(now.saturating_sub(at.issued));
        if age >= self.settings.iterator_lifetime {
            return Err(Refusal::Expired { age });
        }
        let Some(line) = self.lines.get_mut(at.index).filter(|l| !l.gone && at.created == self.created)
        else {
            return Err(Refusal::NoShard { shard: shard_id(at.index), stream: self.name.clone() });
        };
        if !line.reads.admit_read(&self.settings.limits, now) {
            return Err(Refusal::Throttled { shard: line.shard.id.clone(), stream: self.name.clone() });
        }
        let (records, bytes) = line.page(at.number, limit.clamp(1, MAX_PAGE_RECORDS));
        line.reads.add_bytes(bytes);
        let next = line.first().max(at.number) + records.len() as u64;
        let line = &self.lines[at.index];
        let last = records.is_empty() || self.settings.end_with_last_page;
        let ended = line.closed.is_some() && next >= line.next && last;
        let unread = line.records.get((next - line.first()) as usize);
        Ok(Page {
            records,
            next: (!ended).then(|| self.iterator(line, next, now)),
            children: if ended { self.children(&line.shard.id) } else { Vec::new() },
            behind: unread.map_or(Duration::ZERO, |record| {
                Duration::from_millis(now.saturating_sub(millis(record.arrived_at())).max(1))
            }),
        })
    }

    /// Splits an open shard in two; the second begins at `at`.
    pub(crate) fn split(&mut self, shard: &ShardId, at: u128, now: u64) -> Result<[ShardId; 2], Refusal> {
        let HashKeyRange { start, end } = self.open_line(shard)?.shard.hash_range;
        if at <= start || at > end {
            return Err(Refusal::Invalid(format!("{at} does not cut the hash key range of {shard}")));
        }
        let now = self.close(&[shard], now);
        Ok([
            self.add(HashKeyRange { start, end: at - 1 }, &[shard], now),
            self.add(HashKeyRange { start: at, end }, &[shard], now),
        ])
    }

    /// Merges two open shards whose hash key ranges touch.
    pub(crate) fn merge(&mut self, a: &ShardId, b: &ShardId, now: u64) -> Result<ShardId, Refusal> {
        let (x, y) = (self.open_line(a)?.shard.hash_range, self.open_line(b)?.shard.hash_range);
        let (low, high) = (x.min(y), x.max(y));
        if low.end.checked_add(1) != Some(high.start) {
            return Err(Refusal::Invalid(format!("{a} and {b} are not adjacent")));
        }
        let now = self.close(&[a, b], now);
        Ok(self.add(HashKeyRange { start: low.start, end: high.end }, &[a, b], now))
    }

    /// Splits and merges until there are `target` open shards of equal size. As with AWS, a count that
    /// is no multiple of the present one leaves short-lived shards in between.
    pub(crate) fn update_shard_count(&mut self, target: usize, now: u64) -> Result<(), Refusal> {
        self.is_there()?;
        let present = self.open_shards().len();
        if target == 0 || target > present * 2 || target * 2 < present {
            let why = format!("UpdateShardCount cannot go from {present} to {target} shards at once");
            return Err(Refusal::TooMuch(why));
        }
        for range in equal_ranges(target) {
            let cut = self
                .open_shards()
                .into_iter()
                .find(|shard| shard.hash_range.start < range.start && range.start <= shard.hash_range.end);
            if let Some(shard) = cut {
                self.split(&shard.id, range.start, now)?;
            }
        }
        for range in equal_ranges(target) {
            let parts: Vec<_> = self.open_shards();
            let mut parts = parts
                .into_iter()
                .filter(|shard| range.start <= shard.hash_range.start && shard.hash_range.end <= range.end);
            let mut whole = parts.next().expect("the cuts left whole shards").id;
            for part in parts {
                whole = self.merge(&whole, &part.id, now)?;
            }
        }
        Ok(())
    }

    fn children(&self, of: &ShardId) -> Vec<crate::ChildShard> {
        self.shards().filter(|shard| shard.parents.contains(of)).map(Into::into).collect()
    }

    fn line(&self, shard: &ShardId) -> Result<&Line, Refusal> {
        self.is_there()?;
        let line = numbers::shard_index(shard).and_then(|index| self.lines.get(index));
        let line = line.filter(|line| line.shard.id == *shard && !line.gone);
        line.ok_or_else(|| Refusal::NoShard { shard: shard.clone(), stream: self.name.clone() })
    }

    fn line_mut(&mut self, shard: &ShardId) -> Result<&mut Line, Refusal> {
        let index = self.line(shard)?.index;
        Ok(&mut self.lines[index])
    }

    fn open_line(&self, shard: &ShardId) -> Result<&Line, Refusal> {
        let line = self.line(shard)?;
        match line.closed {
            None => Ok(line),
            Some(_) => Err(Refusal::Invalid(format!("{shard} is closed"))),
        }
    }

    fn iterator(&self, line: &Line, number: u64, now: u64) -> ShardIterator {
        let (name, created, index) = (&self.name, self.created, line.index);
        ShardIterator(format!("{name}|{created}|{index}|{number}|{now}"))
    }

    /// Closes the shards and returns the time at which their children open. Every shard lives for at
    /// least a millisecond, so that there is a time at which it was open.
    fn close(&mut self, shards: &[&ShardId], now: u64) -> u64 {
        let of_stream = self.created;
        let lines = || self.lines.iter().filter(|line| shards.contains(&&line.shard.id));
        let closed = lines().map(|line| line.created + 1).fold(now, u64::max);
        for line in self.lines.iter_mut().filter(|line| shards.contains(&&line.shard.id)) {
            line.closed = Some(closed);
            line.shard.ending_sequence = Some(sequence_number(of_stream, line.index, line.next));
        }
        closed
    }

    fn add(&mut self, hash_range: HashKeyRange, parents: &[&ShardId], now: u64) -> ShardId {
        let index = self.lines.len();
        let shard = Shard {
            id: shard_id(index),
            parents: parents.iter().map(|&parent| parent.clone()).collect(),
            hash_range,
            starting_sequence: sequence_number(self.created, index, 0),
            ending_sequence: None,
        };
        let id = shard.id.clone();
        self.lines.push(Line {
            shard,
            index,
            created: now,
            closed: None,
            gone: false,
            next: 1,
            records: VecDeque::new(),
            reads: Window::default(),
            writes: Window::default(),
        });
        id
    }
}

impl Line {
    fn serves(&self, hash: u128) -> bool {
        (self.shard.hash_range.start..=self.shard.hash_range.end).contains(&hash)
    }

    /// The number of the oldest record, or of the next one if there is none.
    fn first(&self) -> u64 {
        self.next - self.records.len() as u64
    }

    /// The records from `number` on, and their bytes.
    fn page(&self, number: u64, limit: usize) -> (Vec<Record>, usize) {
        let start = number.saturating_sub(self.first()).min(self.records.len() as u64) as usize;
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let with = bytes + record.data().len() + record.partition_key().len();
            let fits = bytes == 0 || with <= MAX_PAGE_BYTES;
            if fits {
                bytes = with;
            }
            fits
        };
        let records = self.records.range(start..).take(limit).take_while(fits).cloned().collect();
        (records, bytes)
    }
}

/// What a shard iterator says.
struct Cursor<'a> {
    stream: &'a str,
    created: u64,
    index: usize,
    number: u64,
    issued: u64,
}

impl<'a> Cursor<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('|');
        let cursor = Self {
            stream: parts.next()?,
            created: parts.next()?.parse().ok()?,
            index: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
            issued: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(cursor)
    }
}
