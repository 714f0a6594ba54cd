//! Records as the user sees them, and batches of them. Owned; payloads are shared, never copied.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use crate::core::shard::{Position, ShardId};

/// One user record. Cloning shares the payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    data: Bytes,
    partition_key: Arc<str>,
    position: Position,
    arrived_at: SystemTime,
    shard: ShardId,
}

impl Record {
    /// A record at `position` of `shard`: for tests of your own processor, and for sources.
    pub fn new(
        shard: ShardId,
        position: Position,
        partition_key: impl Into<Arc<str>>,
        arrived_at: SystemTime,
        data: impl Into<Bytes>,
    ) -> Self {
        Self { data: data.into(), partition_key: partition_key.into(), position, arrived_at, shard }
    }

    /// The user record number `sub` inside this one, which producers aggregated.
    pub(crate) fn part(&self, sub: u64, partition_key: Arc<str>, data: Bytes) -> Self {
        let position = Position { sequence: self.position.sequence.clone(), sub };
        Self { data, partition_key, position, arrived_at: self.arrived_at, shard: self.shard.clone() }
    }

    /// The payload.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The payload, without a copy.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// Copies the payload out of the response that it is a part of, so that one small record kept for
    /// long does not hold a whole response of up to 10 MiB in memory.
    pub fn detach(&mut self) {
        self.data = Bytes::copy_from_slice(&self.data);
    }

    /// The key that the producer chose; records with equal keys share a shard and keep their order.
    pub fn partition_key(&self) -> &str {
        &self.partition_key
    }

    /// Where the record stands in its shard.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// When Kinesis took the record in, on its clock, to the millisecond.
    ///
    /// AWS: `ApproximateArrivalTimestamp`.
    pub fn arrived_at(&self) -> SystemTime {
        self.arrived_at
    }

    /// The shard that the record was read from.
    pub fn shard(&self) -> &ShardId {
        &self.shard
    }
}

/// Everything but the payload, which may be secret.
impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("shard", &self.shard)
            .field("position", &self.position)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Records of one shard in order; never empty. Cloning shares the records.
#[derive(Clone, Debug)]
pub struct Batch {
    records: Arc<Vec<Record>>,
    behind: Duration,
}

impl Batch {
    /// A batch of `records`, which must be of one shard and in order; `behind` as in [`Batch::behind`].
    ///
    /// # Panics
    /// If `records` is empty.
    pub fn new(records: Vec<Record>, behind: Duration) -> Self {
        assert!(!records.is_empty(), "a batch holds at least one record");
        Self { records: Arc::new(records), behind }
    }

    /// The records, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// How far the reader was behind the shard's tip when the batch was read. AWS: `MillisBehindLatest`.
    pub fn behind(&self) -> Duration {
        self.behind
    }

    /// The position of the first record.
    pub fn first(&self) -> &Position {
        self.records[0].position()
    }

    /// The position of the last record.
    pub fn last(&self) -> &Position {
        self.records[self.records.len() - 1].position()
    }

    /// The shard that the batch was read from.
    pub fn shard(&self) -> &ShardId {
        self.records[0].shard()
    }

    /// The same batch without the records up to `position`; nothing if none is left.
    pub(crate) fn after(&self, position: &Position) -> Option<Self> {
        let done = self.records.partition_point(|record| record.position() <= position);
        match done {
            0 => Some(self.clone()),
            n if n == self.records.len() => None,
            n => Some(Self::new(self.records[n..].to_vec(), self.behind)),
        }
    }
}

impl IntoIterator for Batch {
    type Item = Record;
    type IntoIter = std::vec::IntoIter<Record>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::try_unwrap(self.records).unwrap_or_else(|shared| shared.to_vec()).into_iter()
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a Record;
    type IntoIter = std::slice::Iter<'a, Record>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(numbers: &[u64]) -> Batch {
        let record = |n: &u64| {
            let at = Position::at(n.to_string().parse().expect("digits"));
            Record::new("shardId-0".into(), at, "key", SystemTime::UNIX_EPOCH, "secret")
        };
        Batch::new(numbers.iter().map(record).collect(), Duration::ZERO)
    }

    #[test]
    fn a_batch_is_cut_after_a_position() {
        let numbers =
            |batch: Batch| -> Vec<String> { batch.into_iter().map(|r| r.position().to_string()).collect() };
        let all = batch(&[9, 10, 12]);
        let at = |n: u64| Position::at(n.to_string().parse().expect("digits"));
        assert_eq!(all.after(&at(8)).map(numbers), Some(vec!["9".into(), "10".into(), "12".into()]));
        assert_eq!(all.after(&at(11)).map(numbers), Some(vec!["12".into()]));
        let whole = all.after(&at(8)).expect("all of it");
        assert_eq!(whole.records().as_ptr(), all.records().as_ptr(), "nothing is copied for nothing");
        assert!(all.after(&at(12)).is_none());
    }

    #[test]
    fn a_batch_shows_its_records_its_ends_and_its_delay() {
        let (behind, numbers) = (Duration::from_secs(7), [9, 10, 12]);
        let all = Batch::new(batch(&numbers).into_iter().collect(), behind);
        let at = |n: u64| Position::at(n.to_string().parse().expect("digits"));
        assert_eq!((all.first(), all.last(), all.behind()), (&at(9), &at(12), behind));
        assert_eq!(all.shard().as_str(), "shardId-0");
        for shown in [all.records().iter(), (&all).into_iter()] {
            assert_eq!(
                shown.map(Record::position).collect::<Vec<_>>(),
                numbers.map(at).iter().collect::<Vec<_>>()
            );
        }
        assert_eq!(all.after(&at(9)).map(|rest| rest.behind()), Some(behind));
    }

    #[test]
    fn a_record_shows_what_kinesis_said_and_so_do_its_parts() {
        let at = Position::at("7".parse().expect("digits"));
        let arrived = SystemTime::UNIX_EPOCH + Duration::from_millis(1234);
        let whole = Record::new("shardId-0".into(), at.clone(), "key", arrived, "payload");
        let part = whole.part(3, "inner".into(), "part".into());
        let shown = |record: &Record| {
            let place = (record.shard().clone(), record.position().clone(), record.arrived_at());
            (record.partition_key().to_owned(), record.data().clone(), place)
        };
        let shard = ShardId::from("shardId-0");
        assert_eq!(shown(&whole), ("key".into(), "payload".into(), (shard.clone(), at.clone(), arrived)));
        let inner = Position { sub: 3, ..at };
        assert_eq!(shown(&part), ("inner".into(), "part".into(), (shard, inner, arrived)));
    }

    #[test]
    fn a_detached_payload_is_the_same_and_lets_go_of_the_page() {
        let page = Bytes::from(vec![7; 100]);
        let at = Position::at("1".parse().expect("digits"));
        let mut record =
            Record::new("shardId-0".into(), at, "key", SystemTime::UNIX_EPOCH, page.slice(10..12));
        assert!(page.as_ptr_range().contains(&record.data().as_ptr()));
        record.detach();
        assert!(!page.as_ptr_range().contains(&record.data().as_ptr()));
        assert_eq!(record.into_data(), page.slice(10..12));
    }

    #[test]
    fn debug_output_never_shows_the_payload() {
        let shown = format!("{:?}", batch(&[1]));
        assert!(shown.contains("bytes: 6") && shown.contains("shardId-0"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
    }
}
