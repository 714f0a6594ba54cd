//! Which rows of finished shards are deleted, and when.
//!
//! Rows stay until every call is over that was decided on before they were there: a row that goes at once could be
//! made again by such a call, and its shard be read twice. Follows the Java KCL (`LeaseCleanupManager`) but for that:
//! its rows go with the next of its rounds, one a minute (`leaseCleanupIntervalMillis`).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::core::{
    lease::{Checkpoint, Lease, LeaseKey},
    shard::ShardId,
};

/// Since when the leases of finished shards have been of no use, as this worker has seen it.
#[derive(Debug, Default)]
pub(crate) struct Cleanup {
    useless_since: BTreeMap<LeaseKey, Instant>,
}

impl Cleanup {
    /// The leases of finished shards to delete at `now`: nobody has needed them for a time of `kept`.
    ///
    /// All children noted in such a row have leases and have begun, so that no sync takes the shard for a new
    /// one; and its own parents' rows are gone, so that rows go in the order of the shards. A row without
    /// children noted stays: ask the stream for them.
    pub(crate) fn due<'a>(
        &mut self,
        leases: impl Iterator<Item = &'a Lease> + Clone,
        kept: Duration,
        now: Instant,
    ) -> Vec<&'a Lease> {
        // Most looks find nothing of the kind.
        if !leases.clone().any(Lease::is_finished) {
            self.useless_since.clear();
            return Vec::new();
        }
        let rows: BTreeMap<&str, &Lease> = leases.map(|lease| (lease.key.as_str(), lease)).collect();
        let begun = |child: &ShardId| rows.get(child.as_str()).is_some_and(|row| has_begun(row));
        let is_useless = |lease: &Lease| {
            lease.is_finished() && !lease.children.is_empty() && lease.children.iter().all(begun)
        };
        let useless: Vec<&Lease> = rows.values().copied().filter(|lease| is_useless(lease)).collect();
        let since = |lease: &&Lease| *self.useless_since.get(&lease.key).unwrap_or(&now);
        self.useless_since = useless.iter().map(|lease| (lease.key.clone(), since(lease))).collect();
        let is_due = |lease: &&Lease| {
            now >= self.useless_since[&lease.key] + kept
                && !lease.parents.iter().any(|parent| rows.contains_key(parent.as_str()))
        };
        useless.into_iter().filter(is_due).collect()
    }
}

fn has_begun(lease: &Lease) -> bool {
    match lease.checkpoint {
        Checkpoint::At(_) | Checkpoint::ShardEnd => true,
        // As the KCL has it: whoever began at the tip does not need the past.
        Checkpoint::Latest => true,
        Checkpoint::TrimHorizon | Checkpoint::AtTimestamp => false,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;

    const KEPT: Duration = Duration::from_secs(10);

    fn at(number: &str) -> Checkpoint {
        Checkpoint::parse(number, 0).expect("a number")
    }

    fn row(shard: &str, checkpoint: Checkpoint) -> Lease {
        Lease::new(&shard.into(), checkpoint)
    }

    /// A finished row of shard 2, whose parent is 1 and whose children are these.
    fn finished(children: &[&str]) -> Lease {
        Lease {
            parents: ["1".into()].into(),
            children: children.iter().copied().map(ShardId::from).collect(),
            ..row("2", Checkpoint::ShardEnd)
        }
    }

    /// The shards whose rows are due after the first of these looks, the second, and so on.
    fn due(looks: &[(Duration, &[Lease])]) -> Vec<String> {
        let (mut cleanup, start) = (Cleanup::default(), Instant::now());
        let keys =
            |leases: Vec<&Lease>| leases.iter().map(|lease| lease.key.as_str()).collect::<Vec<_>>().join(" ");
        looks.iter().map(|(at, rows)| keys(cleanup.due(rows.iter(), KEPT, start + *at))).collect()
    }

    #[test]
    fn a_finished_row_is_due_once_its_children_have_begun_and_its_parents_rows_are_gone() {
        for (child, parent, is_due) in [
            (Some(at("7")), false, true),
            (Some(Checkpoint::ShardEnd), false, true),
            (Some(Checkpoint::Latest), false, true),
            (Some(Checkpoint::TrimHorizon), false, false),
            (Some(Checkpoint::AtTimestamp), false, false),
            (None, false, false),
            (Some(at("7")), true, false),
        ] {
            let mut rows = vec![finished(&["3", "4"]), row("4", Checkpoint::ShardEnd)];
            rows.extend(child.map(|checkpoint| row("3", checkpoint)));
            rows.extend(parent.then(|| row("1", Checkpoint::ShardEnd)));
            let expected = if is_due { "2" } else { "" };
            assert_eq!(due(&[(Duration::ZERO, &rows), (KEPT, &rows)]), ["", expected]);
        }
        let childless = [finished(&[])];
        assert_eq!(due(&[(Duration::ZERO, &childless), (KEPT, &childless)]), ["", ""], "they are not known");
        let unfinished = [Lease { checkpoint: at("9"), ..finished(&["3"]) }, row("3", at("7"))];
        assert_eq!(due(&[(Duration::ZERO, &unfinished), (KEPT, &unfinished)]), ["", ""]);
    }

    #[test]
    fn a_row_is_kept_for_as_long_as_calls_may_be_under_way_that_know_nothing_of_it() {
        let early = [finished(&["3"]), row("3", Checkpoint::TrimHorizon)];
        let begun = [finished(&["3"]), row("3", at("7"))];
        let second = Duration::from_secs(1);
        let looks: [(Duration, &[Lease]); 4] =
            [(Duration::ZERO, &early), (second, &begun), (KEPT, &begun), (second + KEPT, &begun)];
        assert_eq!(due(&looks), ["", "", "", "2"], "counted from the last that had to come");
        let reset = [Lease { checkpoint: at("1"), ..finished(&["3"]) }, row("3", at("7"))];
        for between in [&reset as &[Lease], &[]] {
            let again: [(Duration, &[Lease]); 4] =
                [(Duration::ZERO, &begun), (second, between), (KEPT, &begun), (second + KEPT, &begun)];
            assert_eq!(due(&again), ["", "", "", ""], "read to its end once more");
        }
    }

    #[test]
    fn what_waits_for_its_parents_row_to_go_is_due_right_after_it() {
        let parent = Lease { children: ["2".into()].into(), ..row("1", Checkpoint::ShardEnd) };
        let rows = [parent, finished(&["3"]), row("3", at("7"))];
        assert_eq!(due(&[(Duration::ZERO, &rows), (KEPT, &rows), (KEPT, &rows[1..])]), ["", "1", "2"]);
    }
}
