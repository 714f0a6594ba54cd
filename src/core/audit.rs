//! Audit of the lease table: whether every hash key is read, and whether the table is this stream's.
//!
//! A hole means that records are read by nobody: a row was lost or never made. Only says so; `shard_sync`
//! finds the leases to create. Follows the Java KCL (`PeriodicShardSyncManager`), but looks at the highest
//! end of all ranges instead of the last one's. That a table may belong to another stream is our own check:
//! shard ids are the same in every stream, so the wrong table would be read without an error.

use std::collections::BTreeMap;

use crate::core::{
    lease::Lease,
    shard::{HashKeyRange, Shard, ShardId},
};

/// How much of the hash key space is covered by leases that are not finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Coverage {
    /// All of it.
    Whole,
    /// All but these ranges, ascending.
    Holes(Vec<HashKeyRange>),
    /// There are no leases at all.
    Empty,
    /// Not known: the rows of these shards have no range. List the shards and ask again.
    Unknown(Vec<ShardId>),
}

/// Looks for hash keys that no unfinished lease covers.
///
/// Old KCL versions wrote no ranges into the rows; those come from `listed`, if the shards have been
/// listed. A lease whose shard is not listed any more, and that has no range, covers nothing.
pub(crate) fn coverage<'a>(
    leases: impl IntoIterator<Item = &'a Lease>,
    listed: Option<&[Shard]>,
) -> Coverage {
    let mut leases = leases.into_iter().peekable();
    if leases.peek().is_none() {
        return Coverage::Empty;
    }
    let known: BTreeMap<&ShardId, HashKeyRange> =
        listed.unwrap_or_default().iter().map(|shard| (&shard.id, shard.hash_range)).collect();
    let (mut ranges, mut unknown) = (Vec::new(), Vec::new());
    for lease in leases.filter(|lease| !lease.is_finished()) {
        match lease.hash_range.or_else(|| known.get(&lease.key.shard()).copied()) {
            Some(range) => ranges.push(range),
            None => unknown.push(lease.key.shard()),
        }
    }
    if listed.is_none() && !unknown.is_empty() {
        return Coverage::Unknown(unknown);
    }
    match gaps(ranges) {
        holes if holes.is_empty() => Coverage::Whole,
        holes => Coverage::Holes(holes),
    }
}

/// Says when a hole has been seen often enough to be real.
///
/// While leases are being created, a look at the table may fall between two writes.
#[derive(Debug)]
pub(crate) struct HoleWatch {
    looks: u32,
    seen: BTreeMap<HashKeyRange, u32>,
}

impl HoleWatch {
    /// A hole counts once it was there in that many looks in a row.
    /// KCL: `leasesRecoveryAuditorInconsistencyConfidenceThreshold`.
    pub(crate) fn new(looks: u32) -> Self {
        Self { looks, seen: BTreeMap::new() }
    }

    /// Takes note of the holes of one look; empty for none. True if one of them counts: then sync.
    pub(crate) fn see(&mut self, holes: &[HashKeyRange]) -> bool {
        let times = |hole: &HashKeyRange| self.seen.get(hole).map_or(1, |times| times + 1);
        self.seen = holes.iter().map(|hole| (*hole, times(hole))).collect();
        self.seen.values().any(|times| *times >= self.looks)
    }

    /// Whether a hole may count soon: the next looks tell.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.seen.values().any(|times| *times < self.looks)
    }
}

impl Default for HoleWatch {
    fn default() -> Self {
        Self::new(3)
    }
}

/// Whether a row says that it is of another stream than `identity`, or of one of several, as the KCL keys it in
/// its multi-stream mode: `account:stream:creation:shard`. No shard's id has a colon.
pub(crate) fn is_foreign(lease: &Lease, identity: &str) -> bool {
    lease.stream.as_deref().is_some_and(|stream| stream != identity) || lease.key.as_str().contains(':')
}

/// Evidence that the leases were made for another stream, and what to do about it; none in the usual case.
///
/// `identity` is that of the stream that is read (its ARN and its time of creation), `listed` all its shards.
pub(crate) fn belongs_elsewhere(leases: &[Lease], listed: &[Shard], identity: &str) -> Option<String> {
    let shards: BTreeMap<&str, &Shard> = listed.iter().map(|shard| (shard.id.as_str(), shard)).collect();
    leases.iter().find_map(|lease| {
        if let Some(stream) = lease.stream.as_deref().filter(|stream| *stream != identity) {
            return Some(other_stream(lease, stream, identity));
        }
        if is_foreign(lease, identity) {
            return Some(format!(
                "lease {} is one of several streams, which the KCL reads in its multi-stream mode. Use another \
                 application name for this stream",
                lease.key
            ));
        }
        let evidence = contradiction(lease, shards.get(lease.key.as_str())?)?;
        Some(format!(
            "lease {} is not of this stream: {evidence}. Use another application name for this stream, or \
             read the stream that the table was made for; if the stream was deleted and made again, delete \
             the table",
            lease.key
        ))
    })
}

fn other_stream(lease: &Lease, stream: &str, identity: &str) -> String {
    let arn = |identity: &str| identity.rsplit_once(':').map(|(arn, _created)| arn.to_owned());
    if arn(stream) == arn(identity) {
        return format!(
            "lease {} was made for an earlier stream of the same name ({stream}, now {identity}). Delete \
             the table, or use another application name",
            lease.key
        );
    }
    format!(
        "lease {} was made for the stream {stream}, not for {identity}. Use another application name for \
         this stream, or read that one",
        lease.key
    )
}

fn contradiction(lease: &Lease, shard: &Shard) -> Option<String> {
    if let Some(range) = lease.hash_range.filter(|range| *range != shard.hash_range) {
        let HashKeyRange { start, end } = shard.hash_range;
        return Some(format!(
            "its hash keys are {}-{}, the shard's are {start}-{end}",
            range.start, range.end
        ));
    }
    let done = &lease.checkpoint.position()?.sequence;
    let first = &shard.starting_sequence;
    if done < first {
        return Some(format!("its checkpoint {done} is before the shard's first number, {first}"));
    }
    // An ending before the beginning says nothing: some emulators report 2^63 - 1 for every closed shard.
    let last = shard.ending_sequence.as_ref().filter(|last| first <= last)?;
    (last < done).then(|| format!("its checkpoint {done} is after the shard's last number, {last}"))
}

/// The hash keys in none of `ranges`, which may overlap.
fn gaps(mut ranges: Vec<HashKeyRange>) -> Vec<HashKeyRange> {
    ranges.sort();
    let mut gaps = Vec::new();
    // The lowest key that is not known to be covered; none at the end of the space.
    let mut next = Some(0_u128);
    for range in ranges {
        let Some(start) = next else { break };
        if start < range.start {
            gaps.push(HashKeyRange { start, end: range.start - 1 });
        }
        next = range.end.checked_add(1).map(|after| after.max(start));
    }
    gaps.extend(next.map(|start| HashKeyRange { start, end: HashKeyRange::ALL.end }));
    gaps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{
        lease::Checkpoint,
        testdata::{Row, rows},
    };

    const CASES: &str = include_str!("testdata/hash_audit.txt");
    const STREAM: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders:1700000000";

    fn range(text: &str) -> HashKeyRange {
        let (start, end) = text.split_once('-').expect("a range");
        let end = if end == "MAX" { u128::MAX } else { end.parse().expect("digits") };
        HashKeyRange { start: start.parse().expect("digits"), end }
    }

    fn leases(ranges: &str) -> Vec<Lease> {
        let lease = |(n, text): (usize, &str)| {
            let finished = text.ends_with('!');
            let checkpoint = if finished { Checkpoint::ShardEnd } else { Checkpoint::TrimHorizon };
            let hash_range = (text != "?").then(|| range(text.trim_end_matches('!')));
            Lease { hash_range, ..Lease::new(&n.to_string().into(), checkpoint) }
        };
        ranges.split_whitespace().enumerate().map(lease).collect()
    }

    fn shard(id: &str, hash_keys: &str, first: &str, last: &str) -> Shard {
        Shard {
            id: id.into(),
            parents: [].into(),
            hash_range: range(hash_keys),
            starting_sequence: first.parse().expect("digits"),
            ending_sequence: last.parse().ok(),
        }
    }

    /// Texts by which streams are named: as we do, as the KCL does for several, and anything else.
    fn identifier() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(STREAM.to_owned()),
            "[0-9]{0,3}"
                .prop_map(|created| format!("{}{created}", STREAM.trim_end_matches(char::is_numeric))),
            "arn:aws[a-z-]{0,4}:kinesis:[a-z0-9-]{0,4}:[0-9]{0,3}:stream/[a-zA-Z0-9_.-]{0,4}(:[0-9]{0,4})?",
            "[0-9]{1,12}:[a-z]{0,5}:[0-9]{1,10}",
            ".{0,30}",
        ]
    }

    proptest! {
        #[test]
        fn a_row_is_anothers_exactly_if_it_names_another_stream_or_one_of_several(
            stream in proptest::option::of(identifier()),
            identity in identifier(),
            key in prop_oneof!["shardId-[0-9]{12}", "[0-9]{1,12}:[a-z]{0,5}:[0-9]{1,10}:shardId-[0-9]{12}", ".{0,30}"],
        ) {
            let lease = Lease {
                stream: stream.as_deref().map(Into::into),
                ..Lease::new(&key.as_str().into(), Checkpoint::TrimHorizon)
            };
            let foreign = stream.as_ref().is_some_and(|stream| *stream != identity) || key.contains(':');
            prop_assert_eq!(is_foreign(&lease, &identity), foreign);
            let why = belongs_elsewhere(&[lease], &[], &identity);
            prop_assert_eq!(why.is_some(), foreign);
            let (Some(why), Some(stream)) = (why, stream.filter(|stream| *stream != identity)) else { return Ok(()) };
            prop_assert!(why.contains(&stream) && why.contains(&identity), "{}", why);
            // Made again under its name: all but the time of its making is the same.
            let arn = |text: &str| text.rsplit_once(':').map(|(arn, _)| arn.to_owned());
            prop_assert_eq!(why.contains("an earlier stream of the same name"), arn(&stream) == arn(&identity));
        }
    }

    #[test]
    fn the_table_of_holes_holds() {
        for Row { line, cells } in rows(CASES, "holes") {
            let holes: Vec<HashKeyRange> = cells[2].split_whitespace().map(range).collect();
            let expected = if holes.is_empty() { Coverage::Whole } else { Coverage::Holes(holes) };
            assert_eq!(coverage(&leases(cells[1]), Some(&[])), expected, "line {line}");
        }
        assert_eq!(coverage(&[], Some(&[])), Coverage::Empty);
    }

    #[test]
    fn ranges_that_the_rows_lack_come_from_the_listing() {
        let rows = leases("0-1 ? 4-MAX");
        assert_eq!(coverage(&rows, None), Coverage::Unknown(vec!["1".into()]));
        assert_eq!(coverage(&rows, Some(&[shard("1", "2-3", "1", "open")])), Coverage::Whole);
        assert_eq!(coverage(&leases("0-MAX"), None), Coverage::Whole);
    }

    #[test]
    fn a_hole_counts_from_the_third_look_in_a_row() {
        for Row { line, cells } in rows(CASES, "looks") {
            let mut watch = HoleWatch::default();
            for look in cells[1].split(' ') {
                let holes = look.trim_matches(['!', '-']).split(',').filter(|hole| !hole.is_empty());
                assert_eq!(
                    watch.see(&holes.map(range).collect::<Vec<_>>()),
                    look.ends_with('!'),
                    "line {line}"
                );
            }
        }
    }

    #[test]
    fn a_watch_is_in_doubt_from_the_first_sight_of_a_hole_until_it_counts_or_closes() {
        let (mut watch, hole) = (HoleWatch::default(), [range("2-3")]);
        let looks = [&[] as &[HashKeyRange], &hole, &hole, &hole, &hole, &[], &hole, &[]];
        let doubts = looks.map(|holes| {
            watch.see(holes);
            watch.is_doubtful()
        });
        assert_eq!(doubts, [false, true, true, false, false, false, true, false]);
    }

    #[test]
    fn a_row_that_fits_its_shard_or_says_nothing_is_no_evidence() {
        let listed = [shard("0", "0-9", "100", "200"), shard("1", "10-MAX", "100", "open")];
        let mut rows = leases("0-9 10-MAX 5-6 ?");
        rows[0].checkpoint = Checkpoint::parse("200", 7).expect("a number");
        rows[1].checkpoint = Checkpoint::parse("100", 0).expect("a number");
        rows[1].stream = Some(STREAM.into());
        assert_eq!(belongs_elsewhere(&rows, &listed, STREAM), None);
    }

    #[test]
    fn a_row_of_another_stream_or_of_several_is_foreign_and_one_that_says_nothing_is_not() {
        let of = |key: &str, stream: Option<&str>| Lease {
            stream: stream.map(Into::into),
            ..Lease::new(&key.into(), Checkpoint::TrimHorizon)
        };
        assert!(!is_foreign(&of("shardId-0", None), STREAM));
        assert!(!is_foreign(&of("shardId-0", Some(STREAM)), STREAM));
        assert!(is_foreign(&of("shardId-0", Some("another")), STREAM));
        let several = of("123456789012:another:1700000000:shardId-0", None);
        assert!(is_foreign(&several, STREAM));
        let said = belongs_elsewhere(&[several], &[], STREAM).expect("evidence");
        assert!(said.contains("multi-stream") && said.contains("another application name"), "{said}");
    }

    #[test]
    fn an_ending_number_that_cannot_be_is_no_evidence() {
        let first = "49590338271490256608559692538361571095921575989136588898";
        let listed = [shard("0", "0-MAX", first, "9223372036854775807")];
        let mut rows = leases("0-MAX");
        rows[0].checkpoint = Checkpoint::parse(first, 0).expect("a number");
        assert_eq!(belongs_elsewhere(&rows, &listed, STREAM), None);
    }

    #[test]
    fn a_row_of_another_stream_is_found_and_the_message_says_what_to_do() {
        let listed = [shard("0", "0-9", "100", "200")];
        let row = |range, checkpoint: &str, stream: Option<&str>| Lease {
            checkpoint: Checkpoint::parse(checkpoint, 0).expect("a checkpoint"),
            stream: stream.map(Into::into),
            ..leases(range).remove(0)
        };
        for (row, says) in [
            (
                row("0-9", "LATEST", Some("arn:aws:kinesis:eu-west-1:1:stream/x:5")),
                "was made for the stream arn",
            ),
            (row("0-9", "LATEST", Some(&STREAM.replace("1700", "1600"))), "earlier stream of the same name"),
            (row("0-8", "LATEST", None), "its hash keys are 0-8, the shard's are 0-9"),
            (row("0-9", "99", None), "its checkpoint 99 is before the shard's first number, 100"),
            (row("0-9", "201", None), "its checkpoint 201 is after the shard's last number, 200"),
        ] {
            let message = belongs_elsewhere(&[row], &listed, STREAM).expect("evidence");
            assert!(message.contains(says), "{message}");
            assert!(message.contains("another application name"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_row_says_of_its_stream_is_this_stream_or_named_in_the_complaint(
            said in prop_oneof![Just(STREAM.to_owned()), "arn:aws:kinesis:[a-z:0-9/]{0,40}", ".{0,60}"],
            created in prop::option::of(any::<u64>()),
        ) {
            let said = created.map_or_else(|| said.clone(), |at| format!("{said}:{at}"));
            let row = Lease { stream: Some(said.as_str().into()), ..leases("0-MAX").remove(0) };
            match belongs_elsewhere(&[row], &[], STREAM) {
                None => prop_assert_eq!(said, STREAM),
                Some(complaint) => {
                    prop_assert!(complaint.contains(&said) && complaint.contains(STREAM), "{}", complaint);
                    prop_assert!(said != STREAM);
                }
            }
        }

        #[test]
        fn a_key_is_in_a_gap_if_and_only_if_it_is_in_no_range(
            ends in prop::collection::vec((0..40_u128, 0..40_u128, any::<bool>()), 0..8),
            key in 0..45_u128,
        ) {
            let range = |(a, b, top): &(u128, u128, bool)| HashKeyRange {
                start: *a.min(b),
                end: if *top { u128::MAX } else { *a.max(b) },
            };
            let ranges: Vec<HashKeyRange> = ends.iter().map(range).collect();
            let gaps = gaps(ranges.clone());
            let within = |ranges: &[HashKeyRange], key| ranges.iter().any(|r| r.start <= key && key <= r.end);
            for key in [key, u128::MAX] {
                prop_assert_ne!(within(&gaps, key), within(&ranges, key));
            }
            prop_assert!(gaps.windows(2).all(|pair| pair[0].end < pair[1].start - 1));
        }
    }
}
