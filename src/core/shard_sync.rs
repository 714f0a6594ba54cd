//! Shard sync: which leases to create so that every shard is read, after its parents.
//!
//! Only decides; the coordinator writes each row if it is absent, in the order given, so that a crash
//! half-way is repaired by the next sync. Starts from the listing of the stream and the lease table;
//! whether the table has holes is for `audit` to say, and when rows go for `cleanup`. Follows the Java KCL
//! (`HierarchicalShardSyncer`) but for one thing: a shard that is found late starts at its own beginning, never
//! at that of its oldest ancestor (a replay of the whole stream) nor at the tip (a gap).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::{
    lease::{Checkpoint, Lease, LeaseKey},
    shard::{ChildShard, HashKeyRange, Shard, ShardId},
};

/// Where an application begins that has no leases yet. Times are in milliseconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begin {
    /// With the oldest record.
    TrimHorizon,
    /// With the records that arrive after its first start.
    Latest {
        /// The time of that start.
        pinned_millis: u64,
    },
    /// With the records that arrived at that time or later.
    Timestamp {
        /// The time.
        millis: u64,
    },
}

impl Begin {
    /// The same, but with the time that is pinned already if `leases` show one: the earliest counts.
    ///
    /// Workers that fill an empty table together thus begin at one time.
    pub(crate) fn pinned_by(self, leases: &[Lease]) -> Self {
        let pins = leases.iter().filter(|lease| lease.checkpoint == Checkpoint::Latest);
        match (self, pins.filter_map(|lease| lease.start_millis).min()) {
            (Self::Latest { .. }, Some(pinned_millis)) => Self::Latest { pinned_millis },
            _ => self,
        }
    }

    fn lease(self, shard: &Shard) -> Lease {
        let (checkpoint, start_millis) = match self {
            Self::TrimHorizon => (Checkpoint::TrimHorizon, None),
            Self::Latest { pinned_millis } => (Checkpoint::Latest, Some(pinned_millis)),
            Self::Timestamp { millis } => (Checkpoint::AtTimestamp, Some(millis)),
        };
        Lease { start_millis, ..new_lease(&shard.into(), checkpoint) }
    }

    /// Where a shard begins that is found when the application is under way.
    fn later(self) -> Self {
        match self {
            Self::Latest { .. } | Self::TrimHorizon => Self::TrimHorizon,
            Self::Timestamp { millis } => Self::Timestamp { millis },
        }
    }
}

/// Whether the table is being filled for the first time: no lease in it has begun, or was reset.
pub(crate) fn is_fresh(leases: &[Lease]) -> bool {
    let begun = |lease: &Lease| matches!(lease.checkpoint, Checkpoint::At(_) | Checkpoint::ShardEnd);
    !leases.iter().any(|lease| begun(lease) || lease.reset_millis.is_some())
}

/// The leases of an empty table, from a listing filtered by the position: one for each listed shard.
///
/// None if the ranges of the shards do not make up the whole hash key space, each key once: then list
/// everything and ask [`missing`].
pub(crate) fn initial(listed: &[Shard], begin: Begin) -> Option<Vec<Lease>> {
    let mut ranges: Vec<HashKeyRange> = listed.iter().map(|shard| shard.hash_range).collect();
    ranges.sort();
    let adjoin = ranges.windows(2).all(|pair| pair[0].end.checked_add(1) == Some(pair[1].start));
    let whole = ranges.first()?.start == HashKeyRange::ALL.start
        && ranges.last()?.end == HashKeyRange::ALL.end
        && ranges.iter().all(|range| range.start <= range.end);
    (adjoin && whole).then(|| in_order(listed).map(|shard| begin.lease(shard)).collect())
}

/// The leases to add to the table, from an unfiltered listing, in the order in which to write them.
///
/// A lease is missing for a shard that nobody reads, has read or will come to: it has no lease, nor has a
/// descendant; and no unfinished lease is above it, whose end will make its lease. Of several in a line
/// the oldest gets one, for [`Begin::Latest`] the youngest. Children of a finished shard always do.
/// A shard whose parent is listed as open gets none: the listing was made during a reshard.
///
/// `fresh` says that they begin where the application does; otherwise each begins at its own beginning.
pub(crate) fn missing(listed: &[Shard], leases: &[Lease], begin: Begin, fresh: bool) -> Vec<Lease> {
    let leases: BTreeMap<&str, &Lease> = leases.iter().map(|lease| (lease.key.as_str(), lease)).collect();
    let begin_here = if fresh { begin } else { begin.later() };
    let lineage = Lineage::of(listed);
    let youngest = matches!(begin, Begin::Latest { .. });
    let uncovered = lineage.uncovered(&leases, youngest, Heirs::Wait);
    uncovered.into_iter().map(|n| begin_here.lease(lineage.shards[n])).collect()
}

/// The same for workers that do not wait for parents: shards below an unfinished lease get theirs, too. One
/// generation at a time: a shard above one that has a lease counts as read.
fn missing_at_once(listed: &[Shard], leases: &[Lease], begin: Begin) -> Vec<Lease> {
    let begin_here = if is_fresh(leases) { begin } else { begin.later() };
    let leases: BTreeMap<&str, &Lease> = leases.iter().map(|lease| (lease.key.as_str(), lease)).collect();
    let lineage = Lineage::of(listed);
    let youngest = matches!(begin, Begin::Latest { .. });
    let uncovered = lineage.uncovered(&leases, youngest, Heirs::Begin);
    uncovered.into_iter().map(|n| begin_here.lease(lineage.shards[n])).collect()
}

/// The parents of leases that have not begun, though they have no row themselves.
///
/// The row of a finished shard stays until its children have begun. So these have left the stream, or were
/// never this application's; or somebody removed their rows: ask the listing, and [`removed_parents`].
pub(crate) fn absent_parents<'a>(leases: impl Iterator<Item = &'a Lease> + Clone) -> BTreeSet<ShardId> {
    let waiting = leases.clone().filter(|lease| is_untouched(lease));
    let mut absent: BTreeSet<ShardId> = waiting.flat_map(|lease| lease.parents.iter().cloned()).collect();
    // Most tables have none, and need no second walk.
    if !absent.is_empty() {
        let rows: BTreeSet<&str> = leases.map(|lease| lease.key.as_str()).collect();
        absent.retain(|parent| !rows.contains(parent.as_str()));
    }
    absent
}

/// Whether the row is as it was made at the end of a shard: nobody has claimed it, so its parents need not
/// have ended. A checkpoint that is set back by hand leaves the counter.
fn is_untouched(lease: &Lease) -> bool {
    lease.counter == 0 && lease.checkpoint == Checkpoint::TrimHorizon
}

/// The leases to make again for shards whose rows somebody removed before they were finished, in the order in
/// which to write them: without a row the shard would count as finished, and what was not read of it be lost.
///
/// Such a shard is listed, has no row, and has a child whose lease nobody has claimed and none whose lease
/// anybody has: after the end of a shard its row stays until all children have begun. A finished shard whose
/// row was removed meanwhile cannot be told from it, and is read again; so are its parents, unless `claimed`
/// says that it had been claimed itself. Where `heirs` wait, whatever is above a lease that has begun, however
/// far, was finished before. Read again, such a shard would bring back all that is below it, the other parents
/// of that, and what is above those: without end, once some are done while others begin.
fn removed_parents(
    listed: &[Shard],
    leases: &[Lease],
    begin: Begin,
    heirs: Heirs,
    claimed: impl Fn(&ShardId) -> bool,
) -> Vec<Lease> {
    let absent = absent_parents(leases.iter());
    if absent.is_empty() {
        return Vec::new();
    }
    let begun = leases.iter().filter(|lease| !is_untouched(lease));
    let mut begun: BTreeSet<&ShardId> = begun.flat_map(|lease| &lease.parents).collect();
    if heirs == Heirs::Wait {
        let above: BTreeMap<&ShardId, &Shard> = listed.iter().map(|shard| (&shard.id, shard)).collect();
        let mut found: Vec<&ShardId> = begun.iter().copied().collect();
        while let Some(shard) = found.pop() {
            let parents = above.get(shard).into_iter().flat_map(|shard| &shard.parents);
            found.extend(parents.filter(|parent| begun.insert(parent)));
        }
    }
    let removed = in_order(listed).filter(|shard| absent.contains(&shard.id) && !begun.contains(&shard.id));
    let lease =
        |shard: &Shard| Lease { counter: u64::from(claimed(&shard.id)), ..begin.later().lease(shard) };
    removed.map(lease).collect()
}

/// All leases to make, in the order in which to write them: the [`missing`] ones if there are `holes`, and those
/// of [`removed_parents`], theirs, and so on.
pub(crate) fn to_make(
    listed: &[Shard],
    leases: &[Lease],
    begin: Begin,
    holes: bool,
    claimed: impl Fn(&ShardId) -> bool,
) -> Vec<Lease> {
    let missing = if holes { missing(listed, leases, begin, is_fresh(leases)) } else { Vec::new() };
    with_removed_parents(listed, leases, missing, begin, Heirs::Wait, claimed)
}

/// The same for workers that do not wait for parents.
pub(crate) fn to_make_at_once(
    listed: &[Shard],
    leases: &[Lease],
    begin: Begin,
    claimed: impl Fn(&ShardId) -> bool,
) -> Vec<Lease> {
    let missing = missing_at_once(listed, leases, begin);
    with_removed_parents(listed, leases, missing, begin, Heirs::Begin, claimed)
}

fn with_removed_parents(
    listed: &[Shard],
    leases: &[Lease],
    missing: Vec<Lease>,
    begin: Begin,
    heirs: Heirs,
    claimed: impl Fn(&ShardId) -> bool,
) -> Vec<Lease> {
    let mut all = leases.to_vec();
    all.extend(missing);
    loop {
        let removed = removed_parents(listed, &all, begin, heirs, &claimed);
        if removed.is_empty() {
            break;
        }
        all.extend(removed);
    }
    let made: BTreeMap<LeaseKey, Lease> =
        all.drain(leases.len()..).map(|lease| (lease.key.clone(), lease)).collect();
    in_order(listed).filter_map(|shard| made.get(&(&shard.id).into()).cloned()).collect()
}

/// The rows to read again, consistently, before leases are made: none if there are none `to_make`.
///
/// Rows of one look are of different ages. A lease that nobody has claimed may have been claimed since, and its
/// parents' rows be deleted; and a shard's row may be shown as deleted, and not yet those of its children, for which
/// it was. Ours are kept for a while; a worker of the KCL deletes them as soon as it finds them.
pub(crate) fn in_doubt(listed: &[Shard], to_make: &[Lease], leases: &[Lease]) -> Vec<LeaseKey> {
    if to_make.is_empty() {
        return Vec::new();
    }
    let unclaimed = leases.iter().filter(|lease| lease.counter == 0 && !lease.parents.is_empty());
    let parents: BTreeSet<ShardId> = to_make.iter().map(|lease| lease.key.shard()).collect();
    let seen: BTreeSet<&str> = leases.iter().map(|lease| lease.key.as_str()).collect();
    let children = listed.iter().filter(|shard| !shard.parents.is_disjoint(&parents));
    let unseen = children.filter(|shard| !seen.contains(shard.id.as_str()));
    unclaimed.map(|lease| lease.key.clone()).chain(unseen.map(|shard| (&shard.id).into())).collect()
}

/// Whether any of `leases` waits for another of them: then the order in which they are made matters.
pub(crate) fn have_parents_among_them(leases: &[Lease]) -> bool {
    let shards: BTreeSet<&str> = leases.iter().map(|lease| lease.key.as_str()).collect();
    leases.iter().any(|lease| lease.parents.iter().any(|parent| shards.contains(parent.as_str())))
}

/// The listed shards that continue `parent`.
pub(crate) fn children_of(listed: &[Shard], parent: &ShardId) -> Vec<ChildShard> {
    in_order(listed).filter(|shard| shard.parents.contains(parent)).map(ChildShard::from).collect()
}

/// The other parents of `children` that have no lease, and their ancestors without one: the leases to create
/// before those of the children, in this order.
///
/// The other parent of a merged child may be still to come, because its own ancestors are being read. The
/// child's lease, made without it, would find no lease of that parent, and start too early.
pub(crate) fn other_parents(
    listed: &[Shard],
    children: &[ChildShard],
    has_lease: impl Fn(&ShardId) -> bool,
) -> Vec<Lease> {
    // One that is not listed has no records left.
    let parents = listed.iter().map(|shard| (&shard.id, &shard.parents)).collect();
    let found = without_lease_above(children, &parents, has_lease);
    let found = in_order(listed).filter(|shard| found.contains(&shard.id));
    found.map(|shard| new_lease(&shard.into(), Checkpoint::TrimHorizon)).collect()
}

/// Of [`other_parents`] that were found some time ago those that are to be created still. Of the rest some may have
/// been finished since, and their leases be deleted: what has a lease by now has no ancestors to wait for.
pub(crate) fn still_without_lease(
    found: Vec<Lease>,
    children: &[ChildShard],
    has_lease: impl Fn(&ShardId) -> bool,
) -> Vec<Lease> {
    let shards: Vec<ShardId> = found.iter().map(|lease| lease.key.shard()).collect();
    let parents = shards.iter().zip(found.iter().map(|lease| &lease.parents)).collect();
    let still: BTreeSet<ShardId> =
        without_lease_above(children, &parents, has_lease).into_iter().cloned().collect();
    found.into_iter().filter(|lease| still.contains(&lease.key.shard())).collect()
}

/// The ancestors without a lease of those `children` that have none: from one that has a lease the walk goes no
/// further up.
fn without_lease_above<'a>(
    children: &'a [ChildShard],
    parents: &BTreeMap<&'a ShardId, &'a BTreeSet<ShardId>>,
    has_lease: impl Fn(&ShardId) -> bool,
) -> BTreeSet<&'a ShardId> {
    let new = children.iter().filter(|child| !has_lease(&child.id));
    let mut above: Vec<&ShardId> = new.flat_map(|child| &child.parents).collect();
    let mut found = BTreeSet::new();
    while let Some(id) = above.pop() {
        if let Some((id, parents)) = parents.get_key_value(id).filter(|(id, _)| !has_lease(id))
            && found.insert(*id)
        {
            above.extend(*parents);
        }
    }
    found
}

/// The listed shards whose leases are still to come: one above them is being read, whose end makes them, and
/// nothing below them was ever begun.
#[cfg(feature = "cli")]
pub(crate) fn to_come(listed: &[Shard], leases: &[Lease]) -> BTreeSet<ShardId> {
    let leases: BTreeMap<&str, &Lease> = leases.iter().map(|lease| (lease.key.as_str(), lease)).collect();
    let lineage = Lineage::of(listed);
    let places = lineage.places(&leases);
    let comes = |place: &Place| place.awaited && !place.leased && !place.above_lease;
    let places = lineage.shards.iter().zip(&places).filter(|(_, place)| comes(place));
    places.map(|(shard, _)| shard.id.clone()).collect()
}

/// The leases to create before the shard that these continue is marked as ended, and after those of their
/// [`other_parents`].
pub(crate) fn child_leases(children: &[ChildShard]) -> Vec<Lease> {
    children.iter().map(|child| new_lease(child, Checkpoint::TrimHorizon)).collect()
}

/// Whether the shard may be read: each of its parents is finished or has no lease.
///
/// `find` looks up the lease of a shard.
pub(crate) fn is_startable<'a>(lease: &Lease, find: impl Fn(&ShardId) -> Option<&'a Lease>) -> bool {
    lease.parents.iter().all(|parent| find(parent).is_none_or(Lease::is_finished))
}

fn new_lease(shard: &ChildShard, checkpoint: Checkpoint) -> Lease {
    Lease {
        parents: shard.parents.clone(),
        hash_range: Some(shard.hash_range),
        ..Lease::new(&shard.id, checkpoint)
    }
}

/// Parents begin before their children, so their leases are written first.
pub(crate) fn in_order(listed: &[Shard]) -> impl Iterator<Item = &Shard> {
    let mut shards: Vec<&Shard> = listed.iter().collect();
    shards.sort_by(|a, b| (&a.starting_sequence, &a.id).cmp(&(&b.starting_sequence, &b.id)));
    shards.into_iter()
}

/// Listed shards and their listed parents, as indices.
struct Lineage<'a> {
    shards: Vec<&'a Shard>,
    parents: Vec<Vec<usize>>,
    /// Every shard after its parents. A listing with a cycle would leave out the shards in it.
    oldest_first: Vec<usize>,
}

/// What shards do whose ancestors are not finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heirs {
    Wait,
    Begin,
}

/// What the lease table says about one listed shard.
#[derive(Clone, Default)]
struct Place {
    leased: bool,
    finished: bool,
    /// A descendant has a lease.
    above_lease: bool,
    /// An ancestor has a lease.
    below_lease: bool,
    /// The nearest leased ancestor, on some line, is not finished.
    awaited: bool,
    /// A parent is finished.
    heir: bool,
    /// An ancestor is listed as open.
    premature: bool,
    candidate: bool,
    above_new: bool,
    below_candidate: bool,
}

impl<'a> Lineage<'a> {
    fn of(listed: &'a [Shard]) -> Self {
        let shards: Vec<&Shard> = in_order(listed).collect();
        let index: BTreeMap<&ShardId, usize> = shards.iter().enumerate().map(|(n, s)| (&s.id, n)).collect();
        let parents: Vec<Vec<usize>> = shards
            .iter()
            .map(|shard| shard.parents.iter().filter_map(|parent| index.get(parent).copied()).collect())
            .collect();
        let oldest_first = topological(&parents);
        Self { shards, parents, oldest_first }
    }

    /// What the leases say of each shard. Linear: one walk up, one down.
    fn places(&self, leases: &BTreeMap<&str, &Lease>) -> Vec<Place> {
        let mut places = vec![Place::default(); self.shards.len()];
        for (place, shard) in places.iter_mut().zip(&self.shards) {
            let lease = leases.get(shard.id.as_str());
            place.leased = lease.is_some();
            place.finished = lease.is_some_and(|lease| lease.is_finished());
        }
        for n in self.youngest_first() {
            let here = places[n].leased || places[n].above_lease;
            self.parents[n].iter().for_each(|p| places[*p].above_lease |= here);
        }
        for n in &self.oldest_first {
            let mut place = places[*n].clone();
            for p in &self.parents[*n] {
                let parent = &places[*p];
                place.below_lease |= parent.leased || parent.below_lease;
                place.awaited |= if parent.leased { !parent.finished } else { parent.awaited };
                place.heir |= parent.finished;
                place.premature |= parent.premature || self.shards[*p].is_open() && !parent.finished;
            }
            places[*n] = place;
        }
        places
    }

    /// The shards to create leases for, by the rules of [`missing`]. Linear: two walks up, two down.
    fn uncovered(&self, leases: &BTreeMap<&str, &Lease>, youngest: bool, heirs: Heirs) -> BTreeSet<usize> {
        let mut places = self.places(leases);
        for n in &self.oldest_first {
            let above = |p: &usize| places[*p].candidate || places[*p].below_candidate;
            let below_candidate = self.parents[*n].iter().any(above);
            let place = &mut places[*n];
            let comes = heirs == Heirs::Wait && place.awaited && !place.heir;
            let covered = place.leased || place.above_lease || comes;
            place.below_candidate = below_candidate;
            place.candidate = !covered && !place.premature;
        }
        for n in self.youngest_first() {
            let here = places[n].is_new() || places[n].above_new;
            self.parents[n].iter().for_each(|p| places[*p].above_new |= here);
        }
        let chosen = |place: &Place| match place.is_new() && youngest {
            true => !place.above_new,
            // Without waiting the parents' leases may come later than those of this look: they go first.
            false => place.heir && heirs == Heirs::Wait || !place.below_candidate,
        };
        let candidates = self.oldest_first.iter().copied().filter(|n| places[*n].candidate);
        candidates.filter(|n| chosen(&places[*n])).collect()
    }

    fn youngest_first(&self) -> impl Iterator<Item = usize> {
        self.oldest_first.iter().rev().copied()
    }
}

impl Place {
    /// Nobody ever read a shard above this one.
    fn is_new(&self) -> bool {
        self.candidate && !self.below_lease
    }
}

/// All nodes that are in no cycle or below one, each after its parents. Not recursive: lines of descent
/// may be ten thousand shards long.
fn topological(parents: &[Vec<usize>]) -> Vec<usize> {
    let mut children = vec![Vec::new(); parents.len()];
    let mut waits_for: Vec<usize> = parents.iter().map(Vec::len).collect();
    for (n, parents) in parents.iter().enumerate() {
        parents.iter().for_each(|p| children[*p].push(n));
    }
    let mut ready: VecDeque<usize> = (0..parents.len()).filter(|n| waits_for[*n] == 0).collect();
    let mut order = Vec::with_capacity(parents.len());
    while let Some(n) = ready.pop_front() {
        order.push(n);
        for child in &children[n] {
            waits_for[*child] -= 1;
            if waits_for[*child] == 0 {
                ready.push_back(*child);
            }
        }
    }
    order
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the present is as good as any time")]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::core::{
        audit::{Coverage, coverage},
        cleanup::Cleanup,
        testdata::{Row, rows, sections},
    };

    const CASES: &str = include_str!("testdata/shard_sync.txt");
    const TRIM_HORIZON: Begin = Begin::TrimHorizon;
    const LATEST: Begin = Begin::Latest { pinned_millis: 5000 };
    const TIMESTAMP: Begin = Begin::Timestamp { millis: 1000 };

    fn graph(name: &str) -> Vec<Shard> {
        let graphs = sections(CASES).into_iter().filter(|section| section.kind == "graph");
        let graph = graphs.into_iter().find(|graph| graph.name == name).expect("a graph");
        graph.rows.iter().map(|row| shard(&row.cells)).collect()
    }

    fn shard(cells: &[&str]) -> Shard {
        let (start, end) = cells[2].split_once('-').expect("a range");
        let (first, last) = cells[3].split_once('-').expect("a range");
        Shard {
            id: id(cells[0]),
            parents: cells[1].split_whitespace().map(id).collect(),
            hash_range: HashKeyRange {
                start: start.parse().expect("digits"),
                end: if end == "MAX" { u128::MAX } else { end.parse().expect("digits") },
            },
            starting_sequence: first.parse().expect("digits"),
            ending_sequence: last.parse().ok(),
        }
    }

    fn id(number: &str) -> ShardId {
        format!("shardId-{number}").into()
    }

    /// Leases for `numbers`, finished where "!" follows.
    fn leases(numbers: &str) -> Vec<Lease> {
        let lease = |number: &str| match number.strip_suffix('!') {
            Some(number) => Lease::new(&id(number), Checkpoint::ShardEnd),
            None => Lease::new(&id(number), Checkpoint::TrimHorizon),
        };
        numbers.split_whitespace().map(lease).collect()
    }

    fn numbers(leases: &[Lease]) -> String {
        let number = |lease: &Lease| lease.key.as_str().replace("shardId-", "");
        leases.iter().map(number).collect::<Vec<_>>().join(" ")
    }

    /// 4 continues 2 and 3, 3 continues 1; each but 4 and 2 had no lease when the end of 2 was read.
    #[test]
    fn of_parents_without_a_lease_those_are_left_out_that_got_one_and_all_above_them() {
        let child = |number: &str, parents: &[&str]| ChildShard {
            id: id(number),
            parents: parents.iter().copied().map(id).collect(),
            hash_range: HashKeyRange::ALL,
        };
        let children = [child("4", &["2", "3"])];
        let found: Vec<Lease> = [child("1", &[]), child("3", &["1"])]
            .map(|shard| new_lease(&shard, Checkpoint::TrimHorizon))
            .into();
        for (leased, expected) in [
            // Nothing has changed.
            ("", "1 3"),
            ("1", "3"),
            // 1 had ended by then, and its lease was deleted since.
            ("3", ""),
            ("4", ""),
            ("1 3 4", ""),
        ] {
            let has_lease = |shard: &ShardId| leases(leased).iter().any(|lease| lease.key.shard() == *shard);
            let still = still_without_lease(found.clone(), &children, has_lease);
            assert_eq!(numbers(&still), expected, "{leased:?}");
        }
    }

    #[test]
    fn rows_in_doubt_are_those_that_nobody_has_claimed_and_the_children_that_were_not_seen() {
        let listed: Vec<Shard> =
            ["0; ; 0-MAX; 1-9", "1; 0; 0-4; 10-19", "2; 0; 5-MAX; 10-", "3; 1; 0-4; 20-"]
                .map(|row| shard(&row.split(';').map(str::trim).collect::<Vec<_>>()))
                .into();
        let doubtful = |to_make: &str, seen: &[Lease]| {
            let keys = in_doubt(&listed, &leases(to_make), seen);
            keys.iter().map(|key| key.as_str().replace("shardId-", "")).collect::<Vec<_>>().join(" ")
        };
        let of = |number: &str, counter, parent: Option<&str>| Lease {
            counter,
            parents: parent.into_iter().map(id).collect(),
            ..leases(number).remove(0)
        };
        assert_eq!(doubtful("", &[of("3", 0, Some("1"))]), "", "nothing is to be made");
        assert_eq!(doubtful("0", &[]), "1 2");
        assert_eq!(doubtful("0", &[of("2", 1, Some("0"))]), "1");
        assert_eq!(doubtful("0 1", &[of("1", 1, Some("0")), of("2", 0, Some("0"))]), "2 3");
        assert_eq!(
            doubtful("3", &[of("0", 0, None), of("1", 0, Some("0"))]),
            "1",
            "what has no parents waits for none"
        );
    }

    #[test]
    fn the_order_of_rows_matters_where_one_waits_for_another_of_them() {
        let mut rows = leases("1 2 3");
        assert!(!have_parents_among_them(&rows));
        rows[2].parents = [id("0")].into();
        assert!(!have_parents_among_them(&rows), "that one is there already");
        rows[2].parents = [id("0"), id("1")].into();
        assert!(have_parents_among_them(&rows));
    }

    #[test]
    fn the_table_of_missing_leases_holds() {
        for section in sections(CASES).into_iter().filter(|section| section.kind == "missing") {
            let shards = graph(section.name);
            for Row { line, cells } in &section.rows {
                let there = leases(cells[1]);
                for (begin, expected) in [LATEST, TRIM_HORIZON, TIMESTAMP].into_iter().zip(&cells[2..]) {
                    let fresh = there.is_empty();
                    let made = missing(&shards, &there, begin, fresh);
                    assert_eq!(numbers(&made), *expected, "line {line}, {begin:?}");
                    let (checkpoint, start) = match (begin, fresh) {
                        (Begin::Latest { .. }, true) => (Checkpoint::Latest, Some(5000)),
                        (Begin::Timestamp { .. }, _) => (Checkpoint::AtTimestamp, Some(1000)),
                        _ => (Checkpoint::TrimHorizon, None),
                    };
                    for lease in &made {
                        let found = (&lease.checkpoint, lease.start_millis);
                        assert_eq!(found, (&checkpoint, start), "line {line}");
                    }
                    let all = [there.clone(), made].concat();
                    assert_eq!(missing(&shards, &all, begin, fresh), [], "line {line}, again");
                }
            }
        }
    }

    /// Shard 2 continues 0 and 1.
    fn merged(rows: [Option<Checkpoint>; 3]) -> (Vec<Shard>, Vec<Lease>) {
        let half = u128::MAX / 2;
        let shard = |n: u64, range: (u128, u128), parents: &[&str]| Shard {
            id: id(&n.to_string()),
            parents: parents.iter().map(|parent| id(parent)).collect(),
            hash_range: HashKeyRange { start: range.0, end: range.1 },
            starting_sequence: (10 * n).to_string().parse().expect("digits"),
            ending_sequence: (n < 2).then(|| (10 * n + 9).to_string().parse().expect("digits")),
        };
        let listed = vec![
            shard(0, (0, half), &[]),
            shard(1, (half + 1, u128::MAX), &[]),
            shard(2, (0, u128::MAX), &["0", "1"]),
        ];
        let row = |(shard, row): (&Shard, Option<Checkpoint>)| {
            row.map(|checkpoint| Lease { checkpoint, ..TRIM_HORIZON.lease(shard) })
        };
        let leases = listed.iter().zip(rows).filter_map(row).collect();
        (listed, leases)
    }

    #[test]
    fn a_parent_whose_row_was_removed_before_its_child_began_gets_it_again() {
        let (begun, new) = (
            || Checkpoint::At("21".parse().map(crate::core::shard::Position::at).expect("digits")),
            Checkpoint::TrimHorizon,
        );
        let end = Checkpoint::ShardEnd;
        let cases = [
            // The other parent has ended, and made the child's lease.
            ([None, Some(end.clone()), Some(new.clone())], "0"),
            ([None, None, Some(new.clone())], "0 1"),
            // Finished and cleaned up, or never this application's.
            ([None, Some(end.clone()), Some(begun())], ""),
            ([None, None, Some(begun())], ""),
            ([None, None, Some(Checkpoint::Latest)], ""),
            ([None, None, Some(Checkpoint::AtTimestamp)], ""),
            // A hole, and for the audit to find.
            ([None, Some(new.clone()), None], ""),
            ([Some(begun()), Some(end), Some(new)], ""),
        ];
        for (rows, expected) in cases {
            let case = format!("{rows:?}");
            let (listed, leases) = merged(rows);
            for begin in [TRIM_HORIZON, LATEST] {
                let made = removed_parents(&listed, &leases, begin, Heirs::Wait, |_| false);
                assert_eq!(numbers(&made), expected, "{case}");
                assert!(made.iter().all(|lease| lease.counter == 0), "{case}");
                let claimed =
                    removed_parents(&listed, &leases, begin, Heirs::Wait, |shard| *shard == id("1"));
                let counter = |lease: &Lease| u64::from(lease.key.as_str() == "shardId-1");
                assert!(claimed.iter().all(|lease| lease.counter == counter(lease)), "{case}");
                assert!(made.iter().all(|lease| lease.checkpoint == Checkpoint::TrimHorizon));
            }
            assert_eq!(
                numbers(&removed_parents(&listed[2..], &leases, TRIM_HORIZON, Heirs::Wait, |_| false)),
                "",
                "not listed: {case}"
            );
        }
    }

    #[test]
    fn what_is_above_a_shard_that_has_begun_was_finished_and_gets_no_lease_again() {
        // 0 was split into 1 and 2, and 2 into 3 and 4; 1 and 3 were merged into 5.
        let shard = |n: u32, parents: &[&str], last: &str| {
            let (first, parents) = ((n * 10).to_string(), parents.join(" "));
            shard(&[&n.to_string(), &parents, "0-MAX", &format!("{first}-{last}")])
        };
        let listed = [
            shard(0, &[], "9"),
            shard(1, &["0"], "19"),
            shard(2, &["0"], "29"),
            shard(3, &["2"], "39"),
            shard(4, &["2"], ""),
            shard(5, &["1", "3"], ""),
        ];
        let begun = Checkpoint::At("51".parse().map(crate::core::shard::Position::at).expect("digits"));
        // The row of 4 was removed, and made again.
        for (five, expected) in [(Checkpoint::TrimHorizon, "0 1 2 3"), (begun, "")] {
            let five = Lease { checkpoint: five, ..TRIM_HORIZON.lease(&listed[5]) };
            let leases = [five, TRIM_HORIZON.lease(&listed[4])];
            assert_eq!(numbers(&to_make(&listed, &leases, TRIM_HORIZON, false, |_| false)), expected);
        }
        // Children that do not wait for their parents say nothing of those above.
        let leases = [Lease { counter: 1, ..TRIM_HORIZON.lease(&listed[5]) }, TRIM_HORIZON.lease(&listed[4])];
        let at_once = to_make_at_once(&listed, &leases, TRIM_HORIZON, |_| false);
        assert_eq!(numbers(&at_once), "0 2");
    }

    #[test]
    fn an_empty_table_gets_one_lease_for_each_shard_of_a_filtered_listing() {
        for section in sections(CASES).into_iter().filter(|section| section.kind == "initial") {
            for Row { line, cells } in &section.rows {
                let (begin, checkpoint, start_millis) = match cells[1] {
                    "TRIM_HORIZON" => (TRIM_HORIZON, Checkpoint::TrimHorizon, None),
                    "LATEST" => (LATEST, Checkpoint::Latest, Some(5000)),
                    "AT_TIMESTAMP" => (TIMESTAMP, Checkpoint::AtTimestamp, Some(1000)),
                    other => panic!("line {line}: {other}"),
                };
                let wanted: Vec<ShardId> = cells[2].split(' ').map(id).collect();
                let mut listed = graph(section.name);
                listed.retain(|shard| wanted.contains(&shard.id));
                let made = initial(&listed, begin).expect("the whole hash key space");
                assert_eq!(numbers(&made), cells[3], "line {line}");
                for lease in made {
                    let shard = listed.iter().find(|shard| shard.id == lease.key.shard()).expect("listed");
                    let as_made = Lease {
                        parents: shard.parents.clone(),
                        hash_range: Some(shard.hash_range),
                        start_millis,
                        ..Lease::new(&shard.id, checkpoint.clone())
                    };
                    assert_eq!(lease, as_made, "line {line}");
                    assert_eq!((lease.counter, lease.owner, lease.owner_switches), (0, None, 0));
                }
            }
        }
    }

    #[test]
    fn a_filtered_listing_with_a_gap_an_overlap_or_nothing_makes_no_leases() {
        for Row { line, cells } in rows(CASES, "tiling") {
            let ranges = cells[1].split_whitespace().enumerate();
            let listed: Vec<Shard> =
                ranges.map(|(n, range)| shard(&[&n.to_string(), "", range, "1-open"])).collect();
            assert_eq!(initial(&listed, LATEST).is_some(), cells[2] == "yes", "line {line}");
        }
    }

    #[test]
    fn a_lineage_knows_the_parents_that_are_listed_and_no_others() {
        let mut listed = graph("merged");
        for (there, known) in [("0 1 2", "0 1"), ("1 2", "1"), ("2", "")] {
            let there: Vec<ShardId> = there.split(' ').map(id).collect();
            listed.retain(|shard| there.contains(&shard.id));
            let lineage = Lineage::of(&listed);
            let youngest = lineage.shards.len() - 1;
            let parents = lineage.parents[youngest].iter().map(|n| lineage.shards[*n].id.clone());
            assert_eq!(parents.collect::<Vec<_>>(), known.split_whitespace().map(id).collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_who_fill_an_empty_table_begin_at_the_earliest_pinned_time() {
        let row = |millis| Lease { start_millis: Some(millis), ..Lease::new(&id("0"), Checkpoint::Latest) };
        assert_eq!(LATEST.pinned_by(&[row(4000), row(3000)]), Begin::Latest { pinned_millis: 3000 });
        assert_eq!(LATEST.pinned_by(&[]), LATEST);
        assert_eq!(TIMESTAMP.pinned_by(&[row(3000)]), TIMESTAMP);
        assert!(is_fresh(&[row(3000)]) && !is_fresh(&leases("1 2!")));
        // Else a shard that is found after a reset to the oldest record would begin at the tip.
        assert!(!is_fresh(&[Lease { reset_millis: Some(1), ..row(3000) }]));
    }

    #[test]
    fn children_start_at_their_beginning_and_know_their_parents() {
        let merged = children_of(&graph("A"), &id("6"));
        let made = child_leases(&merged);
        assert_eq!(numbers(&made), "8");
        assert_eq!(made[0].parents, [id("6"), id("7")].into());
        assert_eq!(made[0].checkpoint, Checkpoint::TrimHorizon);
        assert_eq!(made[0].hash_range, Some(HashKeyRange { start: 0, end: 399 }));
        assert_eq!(numbers(&child_leases(&children_of(&graph("A"), &id("5")))), "10 9");
        assert_eq!(children_of(&graph("A"), &id("4")), []);
    }

    #[test]
    fn the_other_parent_of_a_merged_child_and_its_ancestors_have_leases_before_the_child() {
        let children = children_of(&graph("A"), &id("6"));
        let made = |rows: &str| {
            let rows = leases(rows);
            let has_lease = |shard: &ShardId| rows.iter().any(|row| row.key.shard() == *shard);
            numbers(&other_parents(&graph("A"), &children, has_lease))
        };
        assert_eq!(made("6 2 3"), "7", "2 and 3 are being read");
        assert_eq!(made("6 3"), "2 7");
        assert_eq!(made("6 7"), "");
        assert_eq!(made("6 7!"), "");
        assert_eq!(made("6 8"), "", "the child has a lease");
        assert_eq!(numbers(&other_parents(&[], &children, |_| false)), "", "none is listed");
    }

    #[test]
    fn a_shard_starts_once_all_its_parents_are_finished_or_unknown() {
        let child = Lease { parents: [id("6"), id("7")].into(), ..Lease::new(&id("8"), Checkpoint::Latest) };
        for (rows, startable) in
            [("", true), ("6", false), ("6!", true), ("6! 7", false), ("6! 7!", true), ("6 7!", false)]
        {
            let rows = leases(rows);
            let find = |shard: &ShardId| rows.iter().find(|row| row.key.shard() == *shard);
            assert_eq!(is_startable(&child, find), startable, "{rows:?}");
        }
    }

    /// Closed shards and their children, each with its parents.
    fn family(text: &str) -> Vec<Shard> {
        let members: Vec<(u64, BTreeSet<ShardId>)> = text
            .split('|')
            .map(|member| member.split_once(':').expect("a number and its parents"))
            .map(|(n, parents)| {
                (n.trim().parse().expect("a number"), parents.split_whitespace().map(id).collect())
            })
            .collect();
        let closed = |n: u64| members.iter().any(|(_, parents)| parents.contains(&id(&n.to_string())));
        let number = |n: u64| n.to_string().parse().expect("digits");
        let shard = |(n, parents): &(u64, BTreeSet<ShardId>)| Shard {
            id: id(&n.to_string()),
            parents: parents.clone(),
            hash_range: HashKeyRange::ALL,
            starting_sequence: number(n * 100 + 1),
            ending_sequence: closed(*n).then(|| number(n * 100 + 99)),
        };
        members.iter().map(shard).collect()
    }

    #[test]
    fn without_waiting_each_generation_gets_its_leases_after_the_one_above() {
        // Doubled twice, then merged in part, while the first shard is still being read.
        let listed = family("0: | 1: 0 | 2: 0 | 3: 1 | 4: 1 | 5: 2 | 6: 2 | 7: 4 5");
        let generations = |table: &str, begin| {
            let mut rows = leases(table);
            let mut made = Vec::new();
            loop {
                let next = missing_at_once(&listed, &rows, begin);
                if next.is_empty() {
                    return made.join(" | ");
                }
                made.push(numbers(&next));
                rows.extend(next);
            }
        };
        assert_eq!(generations("0", TRIM_HORIZON), "1 2 | 3 4 5 6 | 7");
        assert_eq!(generations("0", LATEST), "1 2 | 3 4 5 6 | 7");
        assert_eq!(generations("", TRIM_HORIZON), "0 | 1 2 | 3 4 5 6 | 7");
        // What was finished, and whose row is gone, is not read again.
        assert_eq!(generations("1! 2", TRIM_HORIZON), "3 4 5 6 | 7");
        assert_eq!(generations("3 6 7", TRIM_HORIZON), "");
        // The other parent of the merged shard has no lease yet: its own comes first.
        assert_eq!(generations("1! 2 3 4!", TRIM_HORIZON), "5 6 | 7");
        assert_eq!(numbers(&missing(&listed, &leases("0"), TRIM_HORIZON, false)), "", "who waits makes none");
        let made = |table| {
            let mut rows = leases(table);
            for row in &mut rows {
                let shard = listed.iter().find(|shard| shard.id == row.key.shard()).expect("listed");
                row.parents.clone_from(&shard.parents);
            }
            numbers(&to_make_at_once(&listed, &rows, TRIM_HORIZON, |_| false))
        };
        assert_eq!(made("0"), "1 2");
        assert_eq!(made("1! 5"), "2 3 4 6", "the row of 2 was removed before its end");
    }

    #[test]
    fn a_line_of_ten_thousand_shards_is_walked_without_recursion() {
        let line = |n: u32| Shard {
            id: id(&n.to_string()),
            parents: n.checked_sub(1).map(|parent| id(&parent.to_string())).into_iter().collect(),
            hash_range: HashKeyRange::ALL,
            starting_sequence: n.to_string().parse().expect("digits"),
            ending_sequence: (n < 9_999).then(|| (n + 1).to_string().parse().expect("digits")),
        };
        let listed: Vec<Shard> = (0..10_000).map(line).collect();
        assert_eq!(numbers(&missing(&listed, &[], TRIM_HORIZON, true)), "0");
        assert_eq!(numbers(&missing(&listed, &[], LATEST, true)), "9999");
        assert_eq!(numbers(&missing(&listed, &leases("5000!"), LATEST, false)), "5001");
    }

    #[test]
    fn a_listing_that_contradicts_itself_makes_no_panic() {
        let mut listed = graph("A");
        listed[0].parents = [id("8"), id("0")].into();
        listed.extend(graph("A"));
        for begin in [LATEST, TRIM_HORIZON, TIMESTAMP] {
            missing(&listed, &leases("3"), begin, false);
        }
    }

    /// A stream that is split, merged and trimmed while an application reads it.
    struct World {
        begin: Begin,
        listed: Vec<Shard>,
        leases: BTreeMap<LeaseKey, Lease>,
        now: u64,
        /// Shards that existed or were born while the application ran: those it must read.
        wanted: BTreeSet<ShardId>,
        finished: BTreeSet<ShardId>,
        ancestors: BTreeMap<ShardId, BTreeSet<ShardId>>,
    }

    impl World {
        fn new(begin: Begin, resharded: &[(u8, bool)]) -> Self {
            let (listed, leases, ancestors) = Default::default();
            let (wanted, finished) = Default::default();
            let mut world = Self { begin, listed, leases, now: 0, wanted, finished, ancestors };
            world.add(HashKeyRange::ALL, &[]);
            resharded.iter().for_each(|(which, split)| world.reshard(*which, *split));
            world.wanted = world
                .listed
                .iter()
                .filter(|s| begin == TRIM_HORIZON || s.is_open())
                .map(|s| s.id.clone())
                .collect();
            world
        }

        fn add(&mut self, hash_range: HashKeyRange, parents: &[usize]) {
            self.now += 1;
            let number = self.now.to_string();
            for parent in parents {
                self.listed[*parent].ending_sequence = number.parse().ok();
            }
            let parents: BTreeSet<ShardId> = parents.iter().map(|n| self.listed[*n].id.clone()).collect();
            let above = parents.iter().flat_map(|p| self.ancestors[p].iter().chain([p])).cloned().collect();
            self.ancestors.insert(id(&number), above);
            self.wanted.insert(id(&number));
            let starting_sequence = number.parse().expect("digits");
            let ending_sequence = None;
            self.listed.push(Shard {
                id: id(&number),
                parents,
                hash_range,
                starting_sequence,
                ending_sequence,
            });
        }

        fn reshard(&mut self, which: u8, split: bool) {
            let mut open: Vec<usize> = (0..self.listed.len()).filter(|n| self.listed[*n].is_open()).collect();
            open.sort_by_key(|n| self.listed[*n].hash_range);
            let at = usize::from(which) % open.len();
            let range = self.listed[open[at]].hash_range;
            if split && range.end - range.start > 16 {
                let middle = range.start + (range.end - range.start) / 2;
                self.add(HashKeyRange { end: middle, ..range }, &[open[at]]);
                self.add(HashKeyRange { start: middle + 1, ..range }, &[open[at]]);
            } else if at + 1 < open.len() {
                let end = self.listed[open[at + 1]].hash_range.end;
                self.add(HashKeyRange { end, ..range }, &[open[at], open[at + 1]]);
            }
        }

        fn rows(&self) -> Vec<Lease> {
            self.leases.values().cloned().collect()
        }

        fn create(&mut self, leases: Vec<Lease>) {
            for lease in leases {
                let shard = lease.key.shard();
                let late = self.finished.iter().find(|done| self.ancestors[*done].contains(&shard));
                assert_eq!(late, None, "{shard} would be read after its descendant");
                self.leases.entry(lease.key.clone()).or_insert(lease);
            }
        }

        fn sync(&mut self) {
            let made = to_make(&self.listed, &self.rows(), self.begin, true, |_| false);
            let order: Vec<_> = made.iter().map(|lease| lease.key.clone()).collect();
            let mut sorted = order.clone();
            sorted.sort_by_key(|key| key.as_str()["shardId-".len()..].parse::<u64>().expect("digits"));
            assert_eq!(order, sorted);
            self.create(made);
            assert_eq!(to_make(&self.listed, &self.rows(), self.begin, true, |_| false), []);
            assert_eq!(coverage(&self.rows(), None), Coverage::Whole);
        }

        /// Reads one shard that may be read and is closed to its end.
        fn finish(&mut self, which: u8, crash: bool) {
            let ready: Vec<Lease> = self.leases.values().filter(|row| self.is_ready(row)).cloned().collect();
            let Some(lease) = ready.get(usize::from(which) % ready.len().max(1)) else { return };
            let shard = lease.key.shard();
            let children = children_of(&self.listed, &shard);
            let has_lease = |shard: &ShardId| self.leases.contains_key(&shard.into());
            let mut made = other_parents(&self.listed, &children, has_lease);
            made.extend(child_leases(&children));
            made.truncate(if crash { 1 } else { made.len() });
            self.create(made);
            if !crash {
                let row = self.leases.get_mut(&lease.key).expect("ready");
                row.checkpoint = Checkpoint::ShardEnd;
                row.children = children.into_iter().map(|child| child.id).collect();
                assert!(self.finished.insert(shard.clone()), "{shard} is read twice");
            }
        }

        fn is_ready(&self, row: &Lease) -> bool {
            let listed = self.listed.iter().find(|shard| shard.id == row.key.shard());
            let startable = is_startable(row, |shard| self.leases.get(&LeaseKey::from(shard)));
            if startable {
                let unread =
                    self.leases.values().filter(|other| !other.is_finished()).map(|other| other.key.shard());
                let above = &self.ancestors[&row.key.shard()];
                assert!(unread.into_iter().all(|shard| !above.contains(&shard)), "{} is too early", row.key);
            }
            startable && !row.is_finished() && listed.is_some_and(|shard| !shard.is_open())
        }

        fn clean(&mut self) {
            let rows = self.rows();
            let due = Cleanup::default().due(rows.iter(), Duration::ZERO, Instant::now());
            for key in due.into_iter().map(|row| row.key.clone()) {
                self.leases.remove(&key);
            }
        }

        /// The oldest closed shard leaves the stream, if it has been read.
        fn trim(&mut self) {
            if self
                .listed
                .first()
                .is_some_and(|s| self.finished.contains(&s.id) || !self.wanted.contains(&s.id))
            {
                self.listed.remove(0);
            }
        }

        /// Whoever loses a row whose shard is not finished begins it again, and no other shard.
        fn lose(&mut self, which: u8) {
            let keys: Vec<LeaseKey> =
                self.leases.values().filter(|row| !row.is_finished()).map(|row| row.key.clone()).collect();
            if let Some(key) = keys.get(usize::from(which) % keys.len().max(1)) {
                self.leases.remove(key);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reshard(u8, bool),
        Sync,
        Finish(u8, bool),
        Clean,
        Trim,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => any::<(u8, bool)>().prop_map(|(which, split)| Step::Reshard(which, split)),
            1 => Just(Step::Sync),
            4 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(which, crash)| Step::Finish(which, crash)),
            1 => Just(Step::Clean),
            1 => Just(Step::Trim),
        ]
    }

    proptest! {
        #[test]
        fn every_shard_is_read_once_after_its_parents_and_no_hash_key_is_ever_left_out(
            latest: bool,
            before in prop::collection::vec(any::<(u8, bool)>(), 0..12),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut world = World::new(if latest { LATEST } else { TRIM_HORIZON }, &before);
            world.sync();
            for step in steps {
                match step {
                    Step::Reshard(which, split) => world.reshard(which, split),
                    Step::Sync => world.sync(),
                    Step::Finish(which, crash) => world.finish(which, crash),
                    Step::Clean => world.clean(),
                    Step::Trim => world.trim(),
                }
            }
            world.sync();
            let closed: BTreeSet<ShardId> =
                world.listed.iter().filter(|s| !s.is_open()).map(|s| s.id.clone()).collect();
            for _ in 0..world.ancestors.len() {
                world.finish(0, false);
            }
            let unread: Vec<_> =
                closed.intersection(&world.wanted).filter(|s| !world.finished.contains(*s)).collect();
            prop_assert!(unread.is_empty(), "{unread:?}");
        }

        #[test]
        fn a_sync_fills_any_hole_that_lost_rows_leave(
            latest: bool,
            before in prop::collection::vec(any::<(u8, bool)>(), 0..12),
            finished in prop::collection::vec(any::<u8>(), 0..12),
            lost in prop::collection::vec(any::<u8>(), 1..6),
        ) {
            let mut world = World::new(if latest { LATEST } else { TRIM_HORIZON }, &before);
            world.sync();
            finished.into_iter().for_each(|which| world.finish(which, false));
            world.clean();
            lost.into_iter().for_each(|which| world.lose(which));
            world.sync();
        }
    }
}
