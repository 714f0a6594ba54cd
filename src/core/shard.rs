//! Shards and positions in them: ids, hash key ranges, sequence numbers, lineage.
//!
//! Sequence numbers are decimal integers of up to 128 digits, compared as integers and never as text:
//! their lengths differ between streams, and emulators use short ones. AWS: `SequenceNumber`.

use std::{cmp::Ordering, collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The name of a shard, for example `shardId-000000000007`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(Arc<str>);

impl ShardId {
    /// The id as AWS writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ShardId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for ShardId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The part of the 128-bit hash key space that a shard serves, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct HashKeyRange {
    /// The lowest hash key of the shard.
    pub start: u128,
    /// The highest hash key of the shard.
    pub end: u128,
}

impl HashKeyRange {
    /// The whole hash key space.
    pub const ALL: Self = Self { start: 0, end: u128::MAX };
}

/// A text that is no sequence number: empty, too long, or not only decimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a sequence number (1 to 128 decimal digits): {0:?}")]
pub struct InvalidSequenceNumber(String);

/// The number of a record within its shard. Ordered as an integer; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceNumber(Arc<str>);

impl SequenceNumber {
    /// The decimal digits, without leading zeros.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SequenceNumber {
    type Err = InvalidSequenceNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // AWS allows 129 characters for a sequence number in a request; none that it issues is longer than 56.
        let digits = (1..=129).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !digits {
            return Err(InvalidSequenceNumber(text.chars().take(140).collect()));
        }
        let significant = text.trim_start_matches('0');
        Ok(Self(if significant.is_empty() { "0" } else { significant }.into()))
    }
}

impl TryFrom<String> for SequenceNumber {
    type Error = InvalidSequenceNumber;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SequenceNumber> for String {
    fn from(number: SequenceNumber) -> Self {
        number.0.as_ref().into()
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        // No leading zeros, so the longer number is the larger one.
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.as_bytes().cmp(other.0.as_bytes()))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The place of one user record in its shard: the only position type.
///
/// `sub` counts the user records inside one aggregated Kinesis record, from 0; a record that is not
/// aggregated has `sub` 0. KCL: `ExtendedSequenceNumber`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The Kinesis record.
    pub sequence: SequenceNumber,
    /// The user record inside it.
    pub sub: u64,
}

impl Position {
    /// The position of a record that is not aggregated.
    pub fn at(sequence: SequenceNumber) -> Self {
        Self { sequence, sub: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sub {
            0 => write!(f, "{}", self.sequence),
            sub => write!(f, "{}/{sub}", self.sequence),
        }
    }
}

/// A shard as Kinesis lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// None for a shard of the stream's first generation, one after a split, two after a merge. They may
    /// have left the listing already.
    pub parents: BTreeSet<ShardId>,
    /// The hash keys it serves or served.
    pub hash_range: HashKeyRange,
    /// No record of the shard has a lower number.
    pub starting_sequence: SequenceNumber,
    /// Present once the shard is closed (split or merged).
    pub ending_sequence: Option<SequenceNumber>,
}

impl Shard {
    /// Whether the shard still takes records.
    pub fn is_open(&self) -> bool {
        self.ending_sequence.is_none()
    }
}

/// A shard that continues a closed one, as GetRecords reports it at the closed shard's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildShard {
    /// Its id.
    pub id: ShardId,
    /// The closed shards that it continues: one after a split, two after a merge.
    pub parents: BTreeSet<ShardId>,
    /// The hash keys it serves.
    pub hash_range: HashKeyRange,
}

impl From<&Shard> for ChildShard {
    fn from(shard: &Shard) -> Self {
        Self { id: shard.id.clone(), parents: shard.parents.clone(), hash_range: shard.hash_range }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> SequenceNumber {
        text.parse().expect("a number")
    }

    #[test]
    fn a_longer_number_is_larger_whatever_its_first_digit() {
        assert!(number("9") < number("10"));
        assert!(number("49590338271490256608559692538361571095921575989136588898") > number("999"));
        assert_eq!(number("007"), number("7"));
        assert_eq!(number("000"), number("0"));
    }

    #[test]
    fn ids_and_numbers_are_shown_as_kinesis_writes_them() {
        let (shard, number) = (ShardId::from("shardId-7"), number("0042"));
        assert_eq!([shard.as_str(), &shard.to_string(), &format!("{shard:?}")], ["shardId-7"; 3]);
        assert_eq!([number.as_str(), &number.to_string(), &format!("{number:?}")], ["42"; 3]);
        assert_eq!(String::from(number.clone()), "42");
        let shown = [0, 3].map(|sub| Position { sequence: number.clone(), sub }.to_string());
        assert_eq!(shown, ["42", "42/3"]);
    }

    #[test]
    fn a_shard_is_open_until_it_has_an_end_and_a_child_knows_its_range_and_parents() {
        let open = Shard {
            id: "shardId-1".into(),
            parents: ["shardId-0".into()].into(),
            hash_range: HashKeyRange { start: 5, end: 9 },
            starting_sequence: number("1"),
            ending_sequence: None,
        };
        let closed = Shard { ending_sequence: Some(number("2")), ..open.clone() };
        assert_eq!([open.is_open(), closed.is_open()], [true, false]);
        let child = ChildShard::from(&open);
        assert_eq!((child.id, child.parents, child.hash_range), (open.id, open.parents, open.hash_range));
    }

    #[test]
    fn what_is_not_all_digits_is_refused() {
        for text in ["", "-1", "+1", "1.0", "12a", "TRIM_HORIZON", " 1", "١", &"9".repeat(130)] {
            assert!(text.parse::<SequenceNumber>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn positions_order_by_sequence_then_sub() {
        let at = |s: &str, sub| Position { sequence: number(s), sub };
        assert!(at("9", 7) < at("10", 0));
        assert!(at("10", 0) < at("10", 1));
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_the_integers(a: u128, b: u128) {
            prop_assert_eq!(number(&a.to_string()).cmp(&number(&b.to_string())), a.cmp(&b));
        }

        #[test]
        fn any_text_is_a_number_or_refused(text in prop_oneof![".{0,200}", "[0-9]{0,140}", "0{0,3}[0-9 +-]{0,9}"]) {
            let digits = (1..=129).contains(&text.len()) && text.chars().all(|c| c.is_ascii_digit());
            prop_assert_eq!(text.parse::<SequenceNumber>().is_ok(), digits);
            prop_assert_eq!(SequenceNumber::try_from(text.clone()).is_ok(), digits);
            if let Ok(n) = text.parse::<SequenceNumber>() {
                prop_assert_eq!(number(n.as_str()), n);
            }
        }
    }
}
