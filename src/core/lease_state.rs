//! What a lease row says, in one word and one sentence: for people who look at the table.
//!
//! Nothing is decided by it. Whether a holder is alive cannot be read in one look: a counter that stands
//! still for the failover time, of the lease or of the heartbeat it names, is what `lease_view` goes by, so
//! silence comes in as an argument.

use crate::core::{
    lease::{Lease, WorkerId},
    shard::ShardId,
};

/// How a lease stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The shard has been processed to its end.
    Finished,
    /// On its way from one worker to another.
    HandOff {
        /// Who still has to checkpoint.
        from: WorkerId,
        /// Who holds the lease next.
        to: WorkerId,
    },
    /// Held, and its holder lives, or was looked at only once.
    Held(WorkerId),
    /// Held by name, but the holder gave no sign of life for the failover time.
    Expired(WorkerId),
    /// Its holder stopped on purpose, and left the lease to itself when it comes back.
    Left(WorkerId),
    /// Nobody's, and nobody may take it before these shards have ended.
    Waiting(Vec<ShardId>),
    /// Nobody's; anyone may take it.
    Free,
}

/// How `lease` stands. `find` looks up the lease of a shard; `silent` says that the holder was seen to give
/// no sign of life for the failover time.
pub(crate) fn state<'a>(lease: &Lease, find: impl Fn(&ShardId) -> Option<&'a Lease>, silent: bool) -> State {
    let unfinished = |shard: &&ShardId| find(shard).is_some_and(|parent| !parent.is_finished());
    match (lease.is_finished(), lease.holder(), &lease.owner) {
        (true, ..) => State::Finished,
        (_, Some(holder), _) if lease.is_left() => State::Left(holder.clone()),
        (_, Some(holder), _) if silent => State::Expired(holder.clone()),
        (_, Some(holder), Some(owner)) if holder != owner => {
            State::HandOff { from: holder.clone(), to: owner.clone() }
        }
        (_, Some(holder), _) => State::Held(holder.clone()),
        (_, None, _) => match lease.parents.iter().filter(unfinished).cloned().collect::<Vec<_>>() {
            parents if parents.is_empty() => State::Free,
            parents => State::Waiting(parents),
        },
    }
}

impl State {
    /// The word for a column.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::HandOff { .. } => "hand-off",
            Self::Held(_) => "held",
            Self::Expired(_) => "expired",
            Self::Left(_) => "left",
            Self::Waiting(_) => "waiting",
            Self::Free => "free",
        }
    }

    /// What follows from it.
    pub(crate) fn meaning(&self) -> String {
        match self {
            Self::Finished => {
                "every record was processed; the row is deleted a minute after the shard's children have begun".into()
            }
            Self::HandOff { from, to } => {
                format!("{from} finishes the batch in hand and checkpoints, then {to} goes on")
            }
            Self::Held(by) => {
                format!("{by} reads it and keeps it; one look does not show whether {by} is alive")
            }
            Self::Expired(by) => {
                format!(
                    "{by} gave no sign of life for the failover time; any worker takes it at its next look"
                )
            }
            Self::Left(by) => {
                format!("{by} stopped and takes it when it is back; others, once its grace is over")
            }
            Self::Waiting(parents) => {
                let parents: Vec<&str> = parents.iter().map(ShardId::as_str).collect();
                format!(
                    "its parents have not ended: {}; only workers with shard_order none begin it",
                    parents.join(", ")
                )
            }
            Self::Free => "nobody reads it; any worker takes it at its next look".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lease::Checkpoint;

    fn row(id: &str, owner: Option<&str>) -> Lease {
        Lease { owner: owner.map(Into::into), ..Lease::new(&id.into(), Checkpoint::TrimHorizon) }
    }

    fn said(lease: &Lease, others: &[Lease], silent: bool) -> State {
        state(lease, |shard| others.iter().find(|row| row.key.shard() == *shard), silent)
    }

    #[test]
    fn every_state_has_its_word_and_its_rows() {
        let child = Lease { parents: ["0".into()].into(), ..row("1", None) };
        let ended = Lease { checkpoint: Checkpoint::ShardEnd, ..row("0", None) };
        let moving = Lease { checkpoint_owner: Some("a".into()), ..row("0", Some("b")) };
        for (lease, others, silent, word) in [
            (&ended, vec![], false, "finished"),
            (&moving, vec![], false, "hand-off"),
            (&moving, vec![], true, "expired"),
            (&row("0", Some("a")), vec![], false, "held"),
            (&row("0", Some("a")), vec![], true, "expired"),
            (&Lease { left_at: Some(0), ..row("0", Some("a")) }, vec![], true, "left"),
            (&Lease { left_at: Some(0), counter: 1, ..row("0", Some("a")) }, vec![], true, "expired"),
            (&row("0", None), vec![], false, "free"),
            (&row("0", None), vec![], true, "free"),
            (&child, vec![row("0", Some("a"))], false, "waiting"),
            (&child, vec![ended.clone()], false, "free"),
            (&child, vec![], false, "free"),
        ] {
            assert_eq!(said(lease, &others, silent).word(), word, "{lease:?}");
        }
        assert_eq!(said(&moving, &[], false), State::HandOff { from: "a".into(), to: "b".into() });
        assert_eq!(
            said(&moving, &[], true),
            State::Expired("a".into()),
            "the one who must checkpoint is silent"
        );
    }

    #[test]
    fn what_a_state_means_names_who_it_is_about() {
        let child = Lease { parents: ["0".into()].into(), ..row("1", None) };
        assert!(said(&child, &[row("0", None)], false).meaning().contains("not ended: 0;"));
        assert!(said(&row("0", Some("a")), &[], true).meaning().starts_with("a gave no sign of life"));
    }
}
