//! The stream as the observer knows it: lineage, every record, and what became of each.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use kinesis_consumer::{Position, ShardId};
use tokio::time::Instant;

thread_local! {
    /// How many of the user's records are in each record of the stream. Each world has a thread for itself.
    static AGGREGATED: Cell<u64> = const { Cell::new(1) };
}

/// From now on each record of the stream holds so many of the user's.
pub(crate) fn aggregate_by(count: u64) {
    AGGREGATED.set(count);
}

/// How many of the user's records are in each record of the stream.
pub(crate) fn aggregated() -> u64 {
    AGGREGATED.get()
}

/// The number of a user's record in its shard, from 1: the stream in memory writes that of its own into the
/// sequence number.
pub(crate) fn number(position: &Position) -> u64 {
    let digits = position.sequence.as_str();
    let record: u64 = digits[digits.len().saturating_sub(30)..].parse().expect("digits");
    // Before the first there is 0.
    record.saturating_sub(1) * aggregated() + position.sub + record.min(1)
}

#[derive(Debug, Default)]
pub(crate) struct ShardLog {
    pub(crate) parents: Vec<ShardId>,
    pub(crate) children: Vec<ShardId>,
    /// `SHARD_END` was written once.
    pub(crate) ended: bool,
    /// When it was last set back by hand.
    pub(crate) reset_at: Option<Instant>,
    /// It has left the stream; what was not read of it cannot be.
    pub(crate) gone: bool,
    /// Records up to here have left the stream for their age, each time that some did.
    pub(crate) losses: BTreeSet<u64>,
    records: Vec<RecordLog>,
    /// Every record up to here was delivered once, or is none of the application's.
    delivered: u64,
}

#[derive(Debug)]
struct RecordLog {
    key: u32,
    in_key: u32,
    arrived_millis: u64,
    acked: bool,
}

impl ShardLog {
    pub(crate) fn put(&mut self, key: u32, in_key: u32, arrived_millis: u64) {
        self.records.push(RecordLog { key, in_key, arrived_millis, acked: false });
    }

    pub(crate) fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// The last record that arrived before `millis`; 0 if none did.
    pub(crate) fn before(&self, millis: u64) -> u64 {
        self.records.partition_point(|record| record.arrived_millis < millis) as u64
    }

    pub(crate) fn ack(&mut self, number: u64) {
        if let Some(record) = self.records.get_mut(number as usize - 1) {
            record.acked = true;
        }
    }

    /// Takes note of a delivery; an error says which record was passed over.
    pub(crate) fn deliver(&mut self, number: u64, from: u64) -> Result<(), String> {
        if self.delivered == 0 {
            self.delivered = from;
        }
        if number > self.last() {
            return Err(format!("record {number} was never put"));
        }
        if number > self.delivered + 1 {
            return Err(format!("record {number} came before {} ever did", self.delivered + 1));
        }
        self.delivered = self.delivered.max(number);
        Ok(())
    }

    /// Takes the shard out of the stream; returns the records that nobody was given, each by its key.
    pub(crate) fn leave(&mut self) -> Vec<(u32, u32)> {
        self.gone = true;
        self.records.iter_mut().for_each(|record| record.acked = true);
        let missed = self.records.iter().skip(self.delivered as usize);
        missed.map(|record| (record.key, record.in_key)).collect()
    }

    /// Records up to `number` are none of the application's; returns those that nobody was given, each by its key.
    pub(crate) fn leave_out(&mut self, number: u64) -> Vec<(u32, u32)> {
        let left_out = self.records.iter().take(number as usize).skip(self.delivered as usize);
        let left_out = left_out.map(|record| (record.key, record.in_key)).collect();
        self.delivered = self.delivered.max(number);
        left_out
    }

    /// The last record that has left the stream for its age; 0 if none did.
    pub(crate) fn lost(&self) -> u64 {
        self.losses.last().copied().unwrap_or(0)
    }

    /// Takes the records up to `number` out of the stream; returns those that nobody was given, each by its key.
    pub(crate) fn lose(&mut self, number: u64) -> Vec<(u32, u32)> {
        let old = &mut self.records[..number as usize];
        old.iter_mut().for_each(|record| record.acked = true);
        let missed = old.iter().skip(self.delivered as usize);
        let missed = missed.map(|record| (record.key, record.in_key)).collect();
        self.losses.extend((number > self.lost()).then_some(number));
        self.delivered = self.delivered.max(number);
        missed
    }

    /// All records after `number` are to be read again, and those up to it need not be; returns which of them
    /// nobody was given, each by its key.
    pub(crate) fn begin_again_after(&mut self, number: u64) -> Vec<(u32, u32)> {
        let (left_out, again) = self.records.split_at_mut(number as usize);
        left_out.iter_mut().for_each(|record| record.acked = true);
        again.iter_mut().for_each(|record| record.acked = false);
        let missed = left_out.iter().skip(self.delivered as usize);
        let missed = missed.map(|record| (record.key, record.in_key)).collect();
        self.delivered = self.delivered.max(number);
        missed
    }

    /// The first record not acknowledged that arrived at `since` or later.
    pub(crate) fn unread(&self, since: u64) -> Option<u64> {
        let at = self.records.iter().position(|record| !record.acked && record.arrived_millis >= since)?;
        Some(at as u64 + 1)
    }

    pub(crate) fn unread_count(&self, since: u64) -> usize {
        self.records.iter().filter(|record| !record.acked && record.arrived_millis >= since).count()
    }

    /// The key of a record, and its number among those with this key.
    pub(crate) fn in_key(&self, number: u64) -> Option<(u32, u32)> {
        let record = self.records.get((number as usize).checked_sub(1)?)?;
        Some((record.key, record.in_key))
    }
}

/// First deliveries by partition key: the order that producers see.
#[derive(Debug, Default)]
pub(crate) struct Keys(BTreeMap<u32, u32>);

impl Keys {
    /// A record that nobody can be given any more.
    pub(crate) fn miss(&mut self, key: u32, in_key: u32) {
        let last = self.0.entry(key).or_default();
        *last = (*last).max(in_key);
    }

    /// Takes note of a delivery; an error if a record of the key was passed over. Whatever precedes the
    /// first record of a key that is ever delivered belongs to the time before the application began.
    pub(crate) fn deliver(&mut self, key: u32, in_key: u32) -> Result<(), String> {
        let last = self.0.entry(key).or_insert_with(|| in_key.saturating_sub(1));
        if in_key > *last + 1 {
            return Err(format!("record {in_key} of key {key} came before {} ever did", *last + 1));
        }
        *last = (*last).max(in_key);
        Ok(())
    }
}
