//! How a stream counts: hash keys, sequence numbers, shard ids, milliseconds.

use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};

use crate::core::shard::{HashKeyRange, SequenceNumber, ShardId};

const COUNTER_DIGITS: usize = 30;

/// 56 digits, as AWS has them. Ordered by the stream's creation, then the shard's, then the record's: no
/// two shards share a number, and a child's numbers follow its parents'.
pub(super) fn sequence_number(stream_created: u64, shard: usize, record: u64) -> SequenceNumber {
    let digits = format!("49{stream_created:015}{shard:09}{record:0COUNTER_DIGITS$}");
    digits.parse().expect("only digits")
}

/// The record that has this sequence number, or would have it; nothing if it is of another shard.
pub(super) fn record_number(stream_created: u64, shard: usize, number: &SequenceNumber) -> Option<u64> {
    let zero = sequence_number(stream_created, shard, 0);
    let (prefix, _) = zero.as_str().split_at(zero.as_str().len() - COUNTER_DIGITS);
    let counter = number.as_str().strip_prefix(prefix).filter(|counter| counter.len() == COUNTER_DIGITS)?;
    counter.parse().ok()
}

pub(super) fn shard_id(index: usize) -> ShardId {
    format!("shardId-{index:012}").into()
}

pub(super) fn shard_index(shard: &ShardId) -> Option<usize> {
    shard.as_str().strip_prefix("shardId-")?.parse().ok()
}

/// The hash key space in `count` equal parts; the last takes what is left.
pub(super) fn equal_ranges(count: usize) -> Vec<HashKeyRange> {
    let count = count.max(1) as u128;
    // 2^128 / count, which is one more than (2^128 - 1) / count exactly where it leaves no rest.
    let width = (u128::MAX / count).saturating_add(u128::from(count.is_power_of_two()));
    (0..count)
        .map(|i| HashKeyRange {
            start: width.wrapping_mul(i),
            end: if i + 1 == count { u128::MAX } else { width * (i + 1) - 1 },
        })
        .collect()
}

/// The hash key of a partition key. AWS: its MD5 as an integer.
pub(crate) fn hash_key(partition_key: &str) -> u128 {
    let digest: [u8; 16] = Md5::digest(partition_key.as_bytes()).into();
    u128::from_be_bytes(digest)
}

/// Whole milliseconds since the epoch.
pub(crate) fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

pub(crate) fn time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_number_is_read_back_only_for_its_own_shard() {
        let number = sequence_number(1_700_000_000_000, 7, 42);
        assert_eq!(number.as_str().len(), 56);
        assert_eq!(record_number(1_700_000_000_000, 7, &number), Some(42));
        assert_eq!(record_number(1_700_000_000_000, 8, &number), None);
        assert_eq!(record_number(1_700_000_001_000, 7, &number), None);
        assert_eq!(record_number(1_700_000_000_000, 7, &"7".parse().unwrap()), None);
    }

    #[test]
    fn a_partition_key_hashes_as_in_aws() {
        assert_eq!(hash_key("a"), 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661);
    }

    #[test]
    fn ranges_cover_the_hash_key_space() {
        for count in [1, 2, 3, 4, 7, 1000, 1024] {
            let ranges = equal_ranges(count);
            assert_eq!((ranges[0].start, ranges[count - 1].end), (0, u128::MAX));
            assert!(ranges.windows(2).all(|pair| pair[0].end + 1 == pair[1].start));
        }
    }
}
