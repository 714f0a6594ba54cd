//! What an operator may write to a lease: take it from its holder, and move its checkpoint anywhere.
//!
//! Both raise the counter and remove the owner in one write, conditional on the row as it was seen. A holder,
//! the Java KCL's included, meets another counter at its next write and stops; its last checkpoints find the
//! condition broken, so none goes over a reset. Whoever claims the lease next begins where the row says.

use crate::core::lease::{Checkpoint, Lease, LeaseWrite, Mark};

/// Where an operator wants a lease to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reset {
    /// The new checkpoint; may be behind the old one.
    pub to: Checkpoint,
    /// When reading begins, in milliseconds since the epoch, for `AT_TIMESTAMP` and `LATEST`; else none.
    pub start_millis: Option<u64>,
    /// The present, in milliseconds since the epoch.
    pub at_millis: u64,
}

impl Lease {
    /// The write that moves the lease to where `reset` says and gives it to nobody.
    pub fn reset(&self, reset: Reset) -> LeaseWrite {
        LeaseWrite::taking_away(self, Some(Mark::Reset(reset)))
    }

    /// The write that gives the lease to nobody. The checkpoint stays. KCL: `evictLease`.
    pub fn evict(&self) -> LeaseWrite {
        LeaseWrite::taking_away(self, None)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::core::{
        lease::{LeaseKey, Tenure},
        shard::Position,
    };

    fn at(number: u64) -> Checkpoint {
        Checkpoint::At(Position::at(number.to_string().parse().expect("digits")))
    }

    fn tenure(owner: &str, checkpoint: Checkpoint) -> Tenure {
        let row = Lease { counter: 7, ..Lease::new(&"shardId-0".into(), checkpoint) };
        Tenure::begin(&row, &row.claim(&owner.into()), Instant::now()).expect("a claim")
    }

    fn back() -> Reset {
        Reset { to: Checkpoint::TrimHorizon, start_millis: None, at_millis: 5 }
    }

    #[test]
    fn a_reset_moves_the_checkpoint_back_and_fences_whoever_held_the_lease() {
        let held = tenure("a", at(900));
        let seen = held.row().clone();
        let write = seen.reset(back());
        assert!(write.is_allowed_on(&seen));
        let row = seen.after(&write);
        assert_eq!((row.checkpoint.clone(), row.holder(), row.counter), (Checkpoint::TrimHorizon, None, 9));
        for late in [held.renewal(), held.checkpoint(at(901)).expect("forward"), held.finish([].into())] {
            assert!(!late.is_allowed_on(&row), "{late:?}");
            assert!(!late.took_effect_on(&row, &"a".into()) || late.mark().is_none(), "{late:?}");
        }
        assert!(row.claim(&"b".into()).is_allowed_on(&row));
    }

    #[test]
    fn a_reset_of_a_row_that_was_renewed_meanwhile_is_refused() {
        let mut held = tenure("a", at(900));
        let seen = held.row().clone();
        let renewal = held.renewal();
        held.accept(&renewal, Instant::now());
        assert!(!seen.reset(back()).is_allowed_on(held.row()));
        assert!(!seen.evict().is_allowed_on(held.row()));
    }

    #[test]
    fn an_evicted_lease_keeps_its_checkpoint_and_a_pending_hand_off_ends() {
        let mut seen = tenure("a", at(900)).row().clone();
        seen.checkpoint_owner = Some("a".into());
        seen.owner = Some("b".into());
        let write = seen.evict();
        assert!(write.is_allowed_on(&seen));
        let row = seen.after(&write);
        assert_eq!((row.owner, row.checkpoint_owner, row.checkpoint), (None, None, at(900)));
        assert_eq!(row.key, LeaseKey::from("shardId-0"));
        assert_eq!(row.hands_over, Some("a".into()));
    }

    #[test]
    fn a_prepared_checkpoint_does_not_outlive_a_reset() {
        let mut held = tenure("a", at(900));
        let prepare = held.prepare(at(950), None).expect("forward");
        held.accept(&prepare, Instant::now());
        let row = held.row().after(&held.row().reset(back()));
        assert_eq!(row.pending, None);
    }
}
