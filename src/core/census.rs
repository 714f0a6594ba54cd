//! What one look at the lease table says of the leases that nobody works on, for those who watch.
//!
//! Decides nothing: who takes them is for `balance` to say.

use std::{collections::BTreeSet, time::Instant};

use crate::core::{
    balance::Limits,
    lease::LeaseKey,
    lease_view::{LeaseView, Standing},
};

/// The leases that could be worked on and have no living holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// How many. KCL: `ExpiredLeases`.
    pub(crate) unowned: usize,
    /// How many of them for longer than the patience of the limits. KCL: `VeryOldLeases`.
    pub(crate) very_old: usize,
    /// Since when the first of them has been seen without a sign of life.
    pub(crate) since: Option<Instant>,
}

/// Counts them; `held` are those that this worker works on, whatever the look says.
pub(crate) fn census(view: &LeaseView, held: &BTreeSet<LeaseKey>, limits: &Limits, now: Instant) -> Census {
    let mut census = Census::default();
    for seen in view.rows() {
        let (since, last_sign) = match view.standing(seen, limits.failover_time, now) {
            Standing::Free { since } => (since, since),
            // Its holder may have died right after the last sign of life.
            Standing::Expired { since } => (since, since.checked_sub(limits.failover_time).unwrap_or(since)),
            Standing::Held { .. } | Standing::Finished => continue,
        };
        if held.contains(&seen.lease.key) || !limits.let_begin(&seen.lease, view) {
            continue;
        }
        census.unowned += 1;
        census.very_old += usize::from(now >= since + limits.patience);
        census.since = Some(census.since.map_or(last_sign, |first| first.min(last_sign)));
    }
    census
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::{
        balance::Balance,
        lease::{Checkpoint, Lease, WorkerId},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn row(shard: &str, owner: Option<&str>) -> Lease {
        let lease = Lease::new(&shard.into(), Checkpoint::TrimHorizon);
        Lease { owner: owner.map(WorkerId::from), counter: 7, ..lease }
    }

    fn count(view: &LeaseView, held: &[&str], now: Instant) -> Census {
        let held = held.iter().map(|key| LeaseKey::from(*key)).collect();
        census(view, &held, &limits(), now)
    }

    fn limits() -> Limits {
        Limits {
            max_leases: usize::MAX,
            max_steals: usize::MAX,
            failover_time: SECOND * 10,
            parents_first: true,
            rejoin_grace: Duration::ZERO,
            patience: SECOND * 3,
            looks_at_expired: None,
            looks_at_free: None,
            hand_off_timeout: SECOND * 40,
            balance: Balance::Count,
        }
    }

    #[test]
    fn free_and_expired_leases_are_counted_and_the_longest_wait_is_known() {
        let (mut view, start) = (LeaseView::default(), Instant::now());
        let rows = vec![row("0", None), row("1", Some("a")), row("2", Some("a"))];
        view.observe(rows.clone(), start);
        assert_eq!(count(&view, &[], start), Census { unowned: 1, very_old: 0, since: Some(start) });
        let moved = [rows[0].clone(), rows[1].clone(), Lease { counter: 8, ..rows[2].clone() }];
        view.observe(moved.to_vec(), start + SECOND * 9);
        let later = start + SECOND * 11;
        assert_eq!(count(&view, &[], later), Census { unowned: 2, very_old: 1, since: Some(start) });
        assert_eq!(count(&view, &["0", "1"], later), Census::default(), "held here");
    }

    #[test]
    fn what_nobody_may_begin_is_not_counted() {
        let (mut view, start) = (LeaseView::default(), Instant::now());
        let child = Lease { parents: ["0".into()].into(), ..row("1", None) };
        let done = Lease { checkpoint: Checkpoint::ShardEnd, ..row("2", None) };
        view.observe(vec![row("0", Some("a")), child, done], start);
        assert_eq!(count(&view, &[], start), Census::default());
        let at_once = Limits { parents_first: false, ..limits() };
        let child_too = Census { unowned: 1, very_old: 0, since: Some(start) };
        assert_eq!(census(&view, &BTreeSet::new(), &at_once, start), child_too);
    }
}
