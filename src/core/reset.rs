//! Resets: which rows an operator's wish to read again, or to skip, changes, and in which order.
//!
//! Only decides; the tool makes the writes, each conditional on the row as it was seen. Every listed shard
//! that may hold records to be read gets a row, closed shards too, parents before children: a child is not
//! claimed before its parents have ended, so the order holds through a reset. With a shard whose lease is still
//! to come, those above it get theirs that are to come too, or it would not wait for them. Rows of shards that
//! have left the stream stay as they are. Kafka: `kafka-consumer-groups --reset-offsets`.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::{
    lease::{Checkpoint, Lease, LeaseKey, LeaseWrite, Reset},
    shard::{Position, Shard, ShardId},
    shard_sync,
};

/// Where an operator wants to begin. Times are in milliseconds since the epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// With the oldest record of each shard.
    TrimHorizon,
    /// With the records that arrive from now on.
    Latest,
    /// With the first record that arrived at that time or later.
    Timestamp {
        /// The time.
        millis: u64,
    },
    /// After the record at this position, of one shard.
    After(Position),
}

/// What a reset does to one row.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Change {
    /// The row as it was seen, and the write.
    Move(Box<Lease>, Box<LeaseWrite>),
    /// A row for a shard that has none.
    Create(Box<Lease>),
}

impl Change {
    /// The row that is changed or made.
    pub(crate) fn key(&self) -> &LeaseKey {
        match self {
            Self::Move(row, _) | Self::Create(row) => &row.key,
        }
    }

    /// The row as it will be.
    pub(crate) fn after(&self) -> Lease {
        match self {
            Self::Move(row, write) => row.after(write),
            Self::Create(row) => (**row).clone(),
        }
    }

    /// Whether a worker holds the lease that is changed.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Move(row, _) if row.holder().is_some())
    }
}

/// Why a reset cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// No such shard in the stream.
    #[error("shard {0} is not in the stream: it never was, or has left it with its last record")]
    NotListed(ShardId),
    /// It was read to its end, and so was a child: at its new end the child's lease would be made again, and those
    /// of the child's other parents, up to the first shard.
    #[error(
        "shard {shard} was read to its end long ago, and so was its child {child}: name that one too, and its \
        children, or reset all shards"
    )]
    LongOver {
        /// The shard.
        shard: ShardId,
        /// The child that has no row either.
        child: ShardId,
    },
    /// A position is that of one shard.
    #[error("a sequence number belongs to one shard: name it with --shard")]
    OneShard,
    /// The number is not one of the shard's.
    #[error("{asked} is not a number of shard {shard}, whose numbers begin at {first}{}", Until(.last))]
    NotOfShard {
        /// The number.
        asked: Position,
        /// The shard.
        shard: ShardId,
        /// Its first number.
        first: String,
        /// Its last number, if it is closed.
        last: Option<String>,
    },
    /// Nothing arrived there yet.
    #[error("the time is in the future")]
    Future,
}

struct Until<'a>(&'a Option<String>);

impl std::fmt::Display for Until<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |last| write!(f, " and end at {last}"))
    }
}

/// The changes that bring `chosen` shards, or all if it is empty, to `target`, in the order in which to make
/// them. `identity` is that of the stream, for new rows; `now_millis` the present.
pub(crate) fn plan(
    rows: &[Lease],
    listed: &[Shard],
    chosen: &[ShardId],
    target: &Target,
    identity: &str,
    now_millis: u64,
) -> Result<Vec<Change>, Refused> {
    let chosen: BTreeSet<&ShardId> = chosen.iter().collect();
    if let Some(absent) = chosen.iter().find(|id| !listed.iter().any(|shard| shard.id == ***id)) {
        return Err(Refused::NotListed((**absent).clone()));
    }
    match target {
        Target::After(_) if chosen.len() != 1 => return Err(Refused::OneShard),
        Target::Timestamp { millis } if *millis > now_millis => return Err(Refused::Future),
        _ => {}
    }
    let to_come = shard_sync::to_come(listed, rows);
    let rows: BTreeMap<&str, &Lease> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
    let has_row = |shard: &ShardId| rows.contains_key(shard.as_str());
    for shard in chosen.iter().filter(|shard| !has_row(shard) && !to_come.contains(**shard)) {
        let mut children = listed.iter().filter(|child| child.parents.contains(*shard));
        if let Some(child) = children.find(|child| !has_row(&child.id) && !chosen.contains(&child.id)) {
            return Err(Refused::LongOver { shard: (*shard).clone(), child: child.id.clone() });
        }
    }
    let mut shards: Vec<&Shard> = shard_sync::in_order(listed).collect();
    let mut awaited = BTreeSet::new();
    for shard in shards.iter().rev().filter(|shard| to_come.contains(&shard.id)) {
        if chosen.contains(&shard.id) || awaited.contains(&shard.id) {
            awaited.extend(&shard.parents);
        }
    }
    awaited.retain(|parent| to_come.contains(*parent) && !chosen.contains(parent));
    let is_meant =
        |shard: &Shard| chosen.is_empty() || chosen.contains(&shard.id) || awaited.contains(&shard.id);
    shards.retain(|shard| is_meant(shard));
    let mut changes = Vec::new();
    for shard in shards {
        let row = rows.get(shard.id.as_str()).copied();
        // Who wants only what comes has nothing to expect of a shard that takes no more records; but one that
        // is being read keeps its children waiting until it ends.
        let over = !shard.is_open() && row.map_or_else(|| !to_come.contains(&shard.id), Lease::is_finished);
        if *target == Target::Latest && over {
            continue;
        }
        // What is only waited for is read from its beginning, as it would have been.
        let target = if awaited.contains(&shard.id) { &Target::TrimHorizon } else { target };
        let reset = of(shard, target, now_millis)?;
        changes.push(match row {
            Some(row) => Change::Move(Box::new(row.clone()), Box::new(row.reset(reset))),
            None => {
                let row = Lease {
                    parents: shard.parents.clone(),
                    hash_range: Some(shard.hash_range),
                    start_millis: reset.start_millis,
                    reset_millis: Some(reset.at_millis),
                    stream: Some(identity.into()),
                    ..Lease::new(&shard.id, reset.to)
                };
                Change::Create(Box::new(row))
            }
        });
    }
    Ok(changes)
}

fn of(shard: &Shard, target: &Target, now_millis: u64) -> Result<Reset, Refused> {
    let (to, start_millis) = match target {
        Target::TrimHorizon => (Checkpoint::TrimHorizon, None),
        Target::Latest => (Checkpoint::Latest, Some(now_millis)),
        Target::Timestamp { millis } => (Checkpoint::AtTimestamp, Some(*millis)),
        Target::After(position) => {
            let first = &shard.starting_sequence;
            // Some emulators end closed shards before their beginning: that says nothing.
            let last = shard.ending_sequence.as_ref().filter(|last| first <= last);
            if position.sequence < *first || last.is_some_and(|last| position.sequence > *last) {
                return Err(Refused::NotOfShard {
                    asked: position.clone(),
                    shard: shard.id.clone(),
                    first: first.to_string(),
                    last: last.map(ToString::to_string),
                });
            }
            (Checkpoint::At(position.clone()), None)
        }
    };
    Ok(Reset { to, start_millis, at_millis: now_millis })
}

/// The children of changed shards that go on with what they were doing: what their parents deliver again
/// comes after records of theirs that were delivered already.
pub(crate) fn overtaken(rows: &[Lease], changes: &[Change]) -> Vec<LeaseKey> {
    let changed: BTreeSet<&LeaseKey> = changes.iter().map(Change::key).collect();
    let begun = |row: &&Lease| {
        !changed.contains(&row.key) && matches!(row.checkpoint, Checkpoint::At(_) | Checkpoint::ShardEnd)
    };
    let continues = |row: &&Lease| row.parents.iter().any(|parent| changed.contains(&LeaseKey::from(parent)));
    rows.iter().filter(begun).filter(continues).map(|row| row.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{lease_view::LeaseView, shard::HashKeyRange, shard_sync::is_startable};

    const NOW: u64 = 9_000;

    fn shard(id: &str, parents: &[&str], first: u64, last: Option<u64>) -> Shard {
        let number = |n: u64| n.to_string().parse().expect("digits");
        Shard {
            id: id.into(),
            parents: parents.iter().map(|id| (*id).into()).collect(),
            hash_range: HashKeyRange::ALL,
            starting_sequence: number(first),
            ending_sequence: last.map(number),
        }
    }

    /// Shard 0 was split into 1 and 2, listed in disorder.
    fn split() -> Vec<Shard> {
        vec![shard("2", &["0"], 200, None), shard("0", &[], 100, Some(199)), shard("1", &["0"], 200, None)]
    }

    fn at(number: u64) -> Position {
        Position::at(number.to_string().parse().expect("digits"))
    }

    fn row(id: &str, checkpoint: Checkpoint, owner: Option<&str>) -> Lease {
        let parents = split().into_iter().find(|shard| shard.id.as_str() == id).expect("listed").parents;
        Lease { owner: owner.map(Into::into), counter: 4, parents, ..Lease::new(&id.into(), checkpoint) }
    }

    fn planned(rows: &[Lease], chosen: &[&str], target: &Target) -> Result<Vec<String>, Refused> {
        let chosen: Vec<ShardId> = chosen.iter().map(|id| (*id).into()).collect();
        let changes = plan(rows, &split(), &chosen, target, "arn:5", NOW)?;
        let word = |change: &Change| {
            let (kind, after) =
                (if matches!(change, Change::Create(_)) { "new" } else { "move" }, change.after());
            format!("{kind} {} {} {:?}", after.key, after.checkpoint, after.start_millis)
        };
        Ok(changes.iter().map(word).collect())
    }

    #[test]
    fn a_reset_to_the_oldest_record_opens_closed_shards_again_and_makes_their_rows() {
        let begun = [row("1", Checkpoint::At(at(230)), Some("a")), row("2", Checkpoint::TrimHorizon, None)];
        let expected = ["new 0 TRIM_HORIZON None", "move 1 TRIM_HORIZON None", "move 2 TRIM_HORIZON None"];
        assert_eq!(planned(&begun, &[], &Target::TrimHorizon).expect("a plan"), expected);
        let ended = [row("0", Checkpoint::ShardEnd, None)];
        let expected = ["move 0 TRIM_HORIZON None", "new 1 TRIM_HORIZON None", "new 2 TRIM_HORIZON None"];
        assert_eq!(planned(&ended, &[], &Target::TrimHorizon).expect("a plan"), expected);
    }

    #[test]
    fn a_row_that_a_reset_makes_says_of_which_shard_and_stream_it_is_and_that_it_was_reset() {
        let made = plan(&[], &split(), &["1".into()], &Target::Latest, "arn:5", NOW).expect("a plan");
        let expected = Lease {
            parents: ["0".into()].into(),
            hash_range: Some(HashKeyRange::ALL),
            start_millis: Some(NOW),
            reset_millis: Some(NOW),
            stream: Some("arn:5".into()),
            ..Lease::new(&"1".into(), Checkpoint::Latest)
        };
        assert_eq!(made, [Change::Create(Box::new(expected))]);
    }

    #[test]
    fn at_every_step_of_a_reset_no_child_can_be_claimed_before_its_parent_has_ended() {
        let mut rows =
            vec![row("1", Checkpoint::At(at(230)), Some("a")), row("2", Checkpoint::TrimHorizon, None)];
        for change in plan(&rows, &split(), &[], &Target::TrimHorizon, "arn:5", NOW).expect("a plan") {
            let after = change.after();
            rows.retain(|row| row.key != after.key);
            rows.push(after);
            let mut view = LeaseView::default();
            view.observe(rows.clone(), clock());
            for row in rows.iter().filter(|row| !row.parents.is_empty()) {
                assert!(!is_startable(row, |shard| view.get(&shard.into())), "{row:?}");
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
    fn clock() -> std::time::Instant {
        std::time::Instant::now()
    }

    #[test]
    fn a_reset_to_what_comes_skips_finished_shards_and_lets_those_being_read_end() {
        let rows = [row("0", Checkpoint::At(at(110)), Some("a")), row("1", Checkpoint::TrimHorizon, None)];
        let expected = ["move 0 LATEST Some(9000)", "move 1 LATEST Some(9000)", "new 2 LATEST Some(9000)"];
        assert_eq!(planned(&rows, &[], &Target::Latest).expect("a plan"), expected);
        let rows = [row("0", Checkpoint::ShardEnd, None), row("1", Checkpoint::TrimHorizon, None)];
        let expected = ["move 1 LATEST Some(9000)", "new 2 LATEST Some(9000)"];
        assert_eq!(planned(&rows, &[], &Target::Latest).expect("a plan"), expected);
    }

    /// Shard 0 was split into 1 and 2, and 2 into 3 and 4, while 0 is being read.
    #[test]
    fn what_a_reset_shard_must_wait_for_gets_its_row_before_it() {
        let listed = [
            shard("0", &[], 100, Some(199)),
            shard("1", &["0"], 200, None),
            shard("2", &["0"], 200, Some(299)),
            shard("3", &["2"], 300, None),
            shard("4", &["2"], 300, None),
        ];
        let planned = |rows: &[Lease], chosen: &[&str], target: &Target| -> Vec<String> {
            let chosen: Vec<ShardId> = chosen.iter().map(|id| (*id).into()).collect();
            let changes = plan(rows, &listed, &chosen, target, "arn:5", NOW).expect("a plan");
            changes.iter().map(|change| format!("{} {}", change.key(), change.after().checkpoint)).collect()
        };
        let reading = [row("0", Checkpoint::At(at(110)), Some("a"))];
        assert_eq!(planned(&reading, &["3"], &Target::Latest), ["2 TRIM_HORIZON", "3 LATEST"]);
        // Closed, but nobody has read it yet: its end is waited for.
        let all = ["0 LATEST", "1 LATEST", "2 LATEST", "3 LATEST", "4 LATEST"];
        assert_eq!(planned(&reading, &[], &Target::Latest), all);
        // The row of 2 was cleaned up: it is not read again for a child's sake.
        let begun =
            Lease { parents: ["2".into()].into(), ..Lease::new(&"4".into(), Checkpoint::At(at(310))) };
        assert_eq!(planned(std::slice::from_ref(&begun), &["3"], &Target::TrimHorizon), ["3 TRIM_HORIZON"]);
        // Nor after it was reset itself, with its child's row still there.
        let reread = [row("0", Checkpoint::TrimHorizon, None), begun];
        assert_eq!(planned(&reread, &["4"], &Target::TrimHorizon), ["4 TRIM_HORIZON"]);
    }

    /// At the end of 0 a lease would be made for 2, whose row was cleaned up, and it be read again, too.
    #[test]
    fn a_shard_whose_childs_row_is_gone_is_not_read_again_by_itself() {
        let mut listed = split();
        listed.push(shard("3", &["1", "2"], 300, None));
        let rows =
            [Lease { parents: ["1".into(), "2".into()].into(), ..row("1", Checkpoint::TrimHorizon, None) }];
        let rows = rows.map(|row| Lease { key: LeaseKey::from("3"), ..row });
        let planned = |chosen: &[&str]| {
            let chosen: Vec<ShardId> = chosen.iter().map(|id| (*id).into()).collect();
            let changes = plan(&rows, &listed, &chosen, &Target::TrimHorizon, "arn:5", NOW);
            changes.map(|changes| changes.len()).map_err(|refused| refused.to_string())
        };
        let refused = planned(&["0", "1"]).expect_err("2 is gone");
        assert!(refused.contains("shard 0 was") && refused.contains("child 2:"), "{refused}");
        assert_eq!(planned(&["1", "2"]), Ok(2));
        assert_eq!(planned(&["0", "1", "2"]), Ok(3));
        assert_eq!(planned(&[]), Ok(4));
    }

    #[test]
    fn a_time_holds_for_every_shard_and_must_have_passed() {
        let rows = [row("1", Checkpoint::At(at(230)), None)];
        let target = Target::Timestamp { millis: 8_000 };
        let expected = ["move 1 AT_TIMESTAMP Some(8000)"];
        assert_eq!(planned(&rows, &["1"], &target).expect("a plan"), expected);
        let now = planned(&rows, &["1"], &Target::Timestamp { millis: NOW });
        assert_eq!(now.expect("a plan"), ["move 1 AT_TIMESTAMP Some(9000)"]);
        assert_eq!(planned(&rows, &[], &Target::Timestamp { millis: NOW + 1 }), Err(Refused::Future));
    }

    #[test]
    fn a_number_needs_one_shard_that_has_it() {
        let rows = [row("0", Checkpoint::ShardEnd, None)];
        let to = |number| Target::After(at(number));
        for number in [100, 150, 199] {
            let moved = planned(&rows, &["0"], &to(number)).expect("a plan");
            assert_eq!(moved, [format!("move 0 {number} None")]);
        }
        assert_eq!(planned(&rows, &[], &to(150)), Err(Refused::OneShard));
        for number in [99, 200] {
            let refused = planned(&rows, &["0"], &to(number)).expect_err("not of the shard").to_string();
            assert!(refused.contains("begin at 100 and end at 199"), "{refused}");
        }
        assert_eq!(planned(&rows, &["9"], &Target::Latest), Err(Refused::NotListed("9".into())));
    }

    #[test]
    fn an_end_before_the_beginning_bounds_no_number() {
        let after_101 = |last| {
            let listed = [shard("0", &[], 100, Some(last))];
            plan(&[], &listed, &["0".into()], &Target::After(at(101)), "arn:5", NOW).is_ok()
        };
        assert_eq!([99, 100, 101].map(after_101), [true, false, true]);
    }

    #[test]
    fn held_rows_and_children_that_run_ahead_are_known() {
        let rows = [
            row("0", Checkpoint::At(at(110)), Some("a")),
            row("1", Checkpoint::At(at(230)), None),
            // Has not begun.
            row("2", Checkpoint::TrimHorizon, None),
        ];
        let reset = |chosen: &[ShardId]| {
            let changes = plan(&rows, &split(), chosen, &Target::TrimHorizon, "arn:5", NOW).expect("a plan");
            (changes.iter().map(Change::is_held).collect::<Vec<_>>(), overtaken(&rows, &changes))
        };
        assert_eq!(reset(&["0".into()]), (vec![true], vec!["1".into()]));
        assert_eq!(reset(&[]), (vec![true, false, false], vec![]));
    }
}
