//! Aggregation: the user records inside the records of a page.
//!
//! The Kinesis Producer Library packs many user records into one Kinesis record: four magic bytes, a
//! protobuf message, and its MD5. Whatever does not have that form, to the last byte, is a user record
//! itself. Payloads are slices of the record that they came in. What has been done already is for the
//! caller to drop. Format: `AGGREGATION_FORMAT.md` of the KPL; rules of the KCL's `AggregatorUtil`.

use std::sync::Arc;

use bytes::Bytes;
use md5::{Digest, Md5};
use prost::Message;

use crate::core::{record::Record, shard::HashKeyRange};

/// The user records of a page.
#[derive(Debug, Default)]
pub(crate) struct Expanded {
    /// In order; the parts of an aggregated record share its sequence number and count from sub 0.
    pub(crate) records: Vec<Record>,
    /// How many user records belong to another shard and were left out.
    pub(crate) dropped: usize,
    /// How many user records could not be read, because the producer wrote an index that leads nowhere.
    pub(crate) broken: usize,
}

/// Replaces each aggregated record of `page` by the user records in it.
///
/// `range` is that of the shard, if known. An aggregated record with a user record outside of it was put
/// before a reshard with hash keys of that time, and counts as wholly of another shard, as in the KCL.
/// Memory is linear in the page: under a hundred bytes for each byte of a message made to waste it.
pub(crate) fn expand(page: Vec<Record>, range: Option<HashKeyRange>) -> Expanded {
    if !page.iter().any(|record| record.data().starts_with(&MAGIC)) {
        return Expanded { records: page, ..Expanded::default() };
    }
    let mut expanded = Expanded::default();
    expanded.records.reserve(page.len());
    for record in page {
        match Aggregate::parse(record.data()) {
            Some(aggregate) => aggregate.expand(&record, range, &mut expanded),
            None => expanded.records.push(record),
        }
    }
    expanded
}

/// The hash key by which Kinesis chooses the shard of a record with this partition key.
pub(crate) fn hash_key(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
const CHECKSUM_BYTES: usize = 16;

// The messages of the KPL. Text is read as bytes, which stay slices until they are needed.

#[derive(Clone, PartialEq, Message)]
struct Aggregate {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    partition_keys: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    explicit_hash_keys: Vec<Bytes>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<Part>,
}

/// Two fields are required, which is checked after decoding; the tags are not used.
#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(uint64, optional, tag = "1")]
    partition_key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    explicit_hash_key: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    data: Option<Bytes>,
}

impl Aggregate {
    /// Nothing if the record is not aggregated.
    fn parse(data: &Bytes) -> Option<Self> {
        let end = data.len().checked_sub(CHECKSUM_BYTES).filter(|end| *end > MAGIC.len())?;
        let (message, checksum) = (data.slice(MAGIC.len()..end), &data[end..]);
        if !data.starts_with(&MAGIC) || Md5::digest(&message)[..] != *checksum {
            return None;
        }
        let aggregate = Self::decode(message).ok()?;
        aggregate
            .records
            .iter()
            .all(|part| part.partition_key.and(part.data.as_ref()).is_some())
            .then_some(aggregate)
    }

    fn expand(self, record: &Record, range: Option<HashKeyRange>, into: &mut Expanded) {
        // Each key is hashed and copied once, however many records use it.
        let range = range.filter(|range| *range != HashKeyRange::ALL);
        if range.is_some_and(|range| self.belongs_elsewhere(range)) {
            into.dropped += self.records.len();
            return;
        }
        let keys: Vec<Arc<str>> =
            self.partition_keys.iter().map(|key| String::from_utf8_lossy(key).into()).collect();
        for (sub, part) in (0..).zip(self.records) {
            let explicit = part.explicit_hash_key.map(|index| at(&self.explicit_hash_keys, index));
            let key = part.partition_key.and_then(|index| at(&keys, index));
            match (key, part.data) {
                (Some(key), Some(data)) if explicit != Some(None) => {
                    into.records.push(record.part(sub, key.clone(), data));
                }
                _ => into.broken += 1,
            }
        }
    }

    /// Whether a user record has a hash key outside of `range`. One that cannot be told is inside.
    fn belongs_elsewhere(&self, range: HashKeyRange) -> bool {
        let outside = |hash: u128| hash < range.start || range.end < hash;
        let by_key: Vec<bool> = self.partition_keys.iter().map(|key| outside(hash_key(key))).collect();
        let by_explicit: Vec<bool> = self
            .explicit_hash_keys
            .iter()
            .map(|key| std::str::from_utf8(key).ok().and_then(|key| key.parse().ok()).is_some_and(outside))
            .collect();
        self.records.iter().any(|part| {
            let is_outside = match (part.explicit_hash_key, part.partition_key) {
                (Some(explicit), _) => at(&by_explicit, explicit),
                (None, Some(key)) => at(&by_key, key),
                (None, None) => None,
            };
            is_outside.copied().unwrap_or(false)
        })
    }
}

fn at<T>(table: &[T], index: u64) -> Option<&T> {
    usize::try_from(index).ok().and_then(|index| table.get(index))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::core::shard::Position;

    const CASES: &str = include_str!("testdata/aggregates.txt");

    fn record(data: impl Into<Bytes>) -> Record {
        let at = Position::at("7".parse().expect("digits"));
        Record::new("shardId-0".into(), at, "outer", SystemTime::UNIX_EPOCH, data)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("hex"));
        digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
    }

    fn hex(data: &[u8]) -> String {
        data.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn range(text: &str) -> Option<HashKeyRange> {
        let (start, end) = text.split_once('-').filter(|_| text != "-")?;
        let end = if end == "MAX" { u128::MAX } else { end.parse().expect("digits") };
        Some(HashKeyRange { start: start.parse().expect("digits"), end })
    }

    fn sealed(message: &[u8]) -> Vec<u8> {
        [&MAGIC[..], message, &Md5::digest(message)[..]].concat()
    }

    #[test]
    fn the_table_of_aggregates_holds() {
        let mut records: BTreeMap<&str, String> = BTreeMap::new();
        let (mut current, mut rows) = ("", 0);
        for line in CASES.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match (cells[..].as_ref(), line.strip_prefix("record ")) {
                (_, Some(name)) => {
                    records.insert(name, String::new());
                    current = name;
                }
                ([name, shard, expected], _) => {
                    let data = bytes(&records[name]);
                    let expanded = expand(vec![record(data.clone())], range(shard));
                    let shown = expanded.records.iter().map(|part| match part.partition_key() {
                        "outer" => {
                            assert_eq!((&part.data()[..], part.position().sub), (&data[..], 0));
                            "raw".to_owned()
                        }
                        key => format!("{}:{key}:{}", part.position().sub, hex(part.data())),
                    });
                    assert_eq!(shown.collect::<Vec<_>>().join(" "), *expected, "{line}");
                    rows += 1;
                }
                (["expand"], _) => {}
                _ => records.get_mut(current).expect("a record").push_str(line),
            }
        }
        assert_eq!(rows, 17);
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let page = |hex: &str| vec![record(bytes(hex)), record("plain")];
        let v2 = "f3899ac20a04706b2d300a04706b2d31120531323334351a0808001a04010203041a0b080110001a0568656c6c6f\
                  3b30cda5f6db63aab9105c74b6ad394e";
        let expanded = expand(page(v2), range("0-99999"));
        assert_eq!((expanded.records.len(), expanded.dropped, expanded.broken), (1, 2, 0));
        let v4 = "f3899ac20a02706b1a0608001a026f6b1a0708051a036261640bd9a1b3224d7261c47210e0ba6ebd1a";
        let expanded = expand(page(v4), None);
        assert_eq!((expanded.records.len(), expanded.dropped, expanded.broken), (2, 0, 1));
    }

    #[test]
    fn hash_keys_are_the_md5_of_the_partition_key() {
        for (key, hash) in [
            ("pk", 38317986088707300215492326132921849533),
            ("pk-0", 318996840767547934070577442296912359277),
            ("pk-1", 273922656776327812788301823748127981641),
            ("-", 68358509610070717889884130747296293671),
            ("a", 16955237001963240173058271559858726497),
            ("", 281949768489412648962353822266799178366),
        ] {
            assert_eq!(hash_key(key.as_bytes()), hash, "{key:?}");
        }
    }

    #[test]
    fn a_part_without_data_makes_the_whole_record_plain_as_in_java() {
        let part = Part { partition_key: Some(0), explicit_hash_key: None, data: None };
        let message = Aggregate { records: vec![part], ..Aggregate::default() }.encode_to_vec();
        let expanded = expand(vec![record(sealed(&message))], None);
        assert_eq!(expanded.records[0].partition_key(), "outer");
    }

    #[test]
    fn a_part_whose_explicit_hash_key_is_not_in_the_record_is_broken_and_the_others_are_read() {
        let part =
            |explicit_hash_key| Part { partition_key: Some(0), explicit_hash_key, data: Some("x".into()) };
        let message = Aggregate {
            partition_keys: vec!["key".into()],
            explicit_hash_keys: vec!["5".into()],
            records: vec![part(Some(1)), part(Some(0)), part(None)],
        };
        let expanded = expand(vec![record(sealed(&message.encode_to_vec()))], None);
        let subs: Vec<u64> = expanded.records.iter().map(|part| part.position().sub).collect();
        assert_eq!((subs, expanded.broken, expanded.dropped), (vec![1, 2], 1, 0));
    }

    #[test]
    fn payloads_and_untouched_pages_are_not_copied() {
        let data = Bytes::from(bytes(
            "f3899ac20a02706b1a0608001a026f6b1a0708051a036261640bd9a1b3224d7261c47210e0ba6ebd1a",
        ));
        let expanded = expand(vec![record(data.clone())], None);
        assert!(data.as_ptr_range().contains(&expanded.records[0].data().as_ptr()));
        let page = vec![record("plain")];
        let before = page.as_ptr();
        assert_eq!(expand(page, None).records.as_ptr(), before);
    }

    fn part() -> impl Strategy<Value = Part> {
        let data = prop::collection::vec(any::<u8>(), 0..20);
        (0..4_u64, prop::option::of(0..3_u64), data).prop_map(|(key, explicit, data)| Part {
            partition_key: Some(key),
            explicit_hash_key: explicit,
            data: Some(data.into()),
        })
    }

    fn aggregate() -> impl Strategy<Value = Aggregate> {
        let keys = || prop::collection::vec("[a-z0-9]{0,8}".prop_map(Bytes::from), 0..4);
        (keys(), keys(), prop::collection::vec(part(), 0..20)).prop_map(|(keys, explicit, records)| {
            Aggregate { partition_keys: keys, explicit_hash_keys: explicit, records }
        })
    }

    proptest! {
        #[test]
        fn every_user_record_comes_out_once_or_is_counted(aggregate in aggregate(), start: u128, end: u128) {
            let range = HashKeyRange { start: start.min(end), end: start.max(end) };
            let data = sealed(&aggregate.encode_to_vec());
            // A message of no bytes is no aggregate.
            prop_assume!(data.len() > 20);
            let expanded = expand(vec![record(data)], Some(range));
            let total = expanded.records.len() + expanded.dropped + expanded.broken;
            prop_assert_eq!(total, aggregate.records.len());
            for part in &expanded.records {
                let original = &aggregate.records[usize::try_from(part.position().sub).expect("small")];
                prop_assert_eq!(Some(part.data()), original.data.as_ref());
            }
            prop_assert!(expanded.records.is_sorted_by(|a, b| a.position() < b.position()));
        }

        #[test]
        fn any_bytes_are_a_record_and_bring_forth_no_more_than_they_hold(
            mut message in aggregate().prop_map(|aggregate| aggregate.encode_to_vec()),
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            seal: bool,
        ) {
            for (at, byte) in noise.into_iter().filter(|_| !message.is_empty()).collect::<Vec<_>>() {
                let at = at.index(message.len());
                message[at] = byte;
            }
            message.extend(tail);
            let data = if seal { sealed(&message) } else { [&MAGIC[..], &message].concat() };
            let expanded = expand(vec![record(data.clone())], Some(HashKeyRange { start: 0, end: u128::MAX / 2 }));
            let parts = expanded.records.len() + expanded.dropped + expanded.broken;
            prop_assert!(parts <= (data.len() / 6).max(1));
            prop_assert!(expanded.records.iter().map(|part| part.data().len()).sum::<usize>() <= data.len());
        }
    }
}
