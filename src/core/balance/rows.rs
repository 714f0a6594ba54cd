//! What each row of the lease table is to the worker that plans: its own load, another's, open to all, or its
//! own to begin.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Balance, Claim, Limits, Planner, Reason, open::Open, scale::Scale};
use crate::core::{
    lease::{HandOff, Lease, LeaseKey, WorkerId},
    lease_view::{LeaseView, Seen, Standing},
};

/// By throughput no lease is taken from a living worker more than twice in this time, but by one that has none:
/// rates change, and leases must not follow them to and fro.
const RESTLESS: Duration = Duration::from_secs(3600);

/// What one worker has, by the table.
#[derive(Debug, Default)]
pub(super) struct Load<'a> {
    pub(super) count: usize,
    pub(super) kbps: f64,
    /// What may be taken from it.
    pub(super) movable: Vec<&'a Lease>,
    /// What might be, but has moved to and fro of late.
    pub(super) restless: Vec<&'a Lease>,
}

impl Load<'_> {
    pub(super) fn add(&mut self, lease: &Lease, scale: &Scale) {
        self.count += 1;
        self.kbps += scale.kbps(lease);
    }
}

/// The rows that can be worked on, by what they are to the worker.
pub(super) struct Rows<'a> {
    view: &'a LeaseView,
    planner: Planner<'a>,
    limits: &'a Limits,
    scale: &'a Scale,
    now: Instant,
    /// What the worker has, or will have.
    pub(super) mine: Load<'a>,
    /// What others have, or will have.
    pub(super) loads: BTreeMap<&'a WorkerId, Load<'a>>,
    /// Still worked on here, but on their way to others.
    pub(super) leaving: usize,
    /// What was asked for, and is to be begun or taken by force now.
    pub(super) arrived: Vec<Claim>,
    /// What was ours before a restart.
    pub(super) returned: Vec<Claim>,
    pub(super) open: Vec<Open<'a>>,
    pub(super) total: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn sort(
        view: &'a LeaseView,
        planner: Planner<'a>,
        limits: &'a Limits,
        scale: &'a Scale,
        now: Instant,
    ) -> Self {
        let (mine, loads) = (Load::default(), BTreeMap::new());
        let (arrived, returned, open) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows = Self {
            view,
            planner,
            limits,
            scale,
            now,
            mine,
            loads,
            leaving: 0,
            arrived,
            returned,
            open,
            total: 0,
        };
        // What we work on is our load although its row is gone, or waits for a parent that was made anew.
        let mut unseen = planner.held.len();
        for seen in view.rows().filter(|seen| limits.let_begin(&seen.lease, view)) {
            if rows.add(seen) {
                rows.total += 1;
                unseen -= usize::from(planner.held.contains(&seen.lease.key));
            }
        }
        rows.mine.count += unseen;
        rows.total += unseen;
        rows
    }

    /// Adds a row. False if its shard has been processed to its end.
    fn add(&mut self, seen: &'a Seen) -> bool {
        let Self { view, planner: Planner { me, process, held, asked, .. }, limits, now, .. } = *self;
        let (lease, key) = (&seen.lease, &seen.lease.key);
        let own = lease.holder() == Some(me);
        let grace = if own { Duration::ZERO } else { limits.rejoin_grace };
        let asked = asked.get(key);
        let overdue = seen.asked_since().is_some_and(|since| now >= since + limits.hand_off_timeout);
        let claim = |reason| Claim { key: key.clone(), reason, ask: false };
        match view.standing(seen, limits.failover_time + grace, now) {
            Standing::Finished => return false,
            // Asked for by another worker: its load already, though we still work on it.
            _ if held.contains(key) && lease.is_leaving(me) => {
                self.leaving += 1;
                self.add_to(lease);
            }
            _ if held.contains(key) => self.mine.add(lease, self.scale),
            Standing::Free { since } => {
                self.open.push(Open { key, lease, reason: Reason::Free, since, heir: self.heir(lease) });
            }
            Standing::Held { .. } if own && asked.is_some() && !lease.is_namesakes(me, process) => {
                self.mine.add(lease, self.scale);
                let from = asked.map_or(me, HandOff::from).clone();
                self.arrived.push(claim(Reason::HandedOver { from }));
            }
            // Its holder is gone, before or after it saw the request. It comes in the room that is kept for it, so that
            // what is free does not take that.
            Standing::Expired { .. } if asked.is_some() && !own => {
                self.mine.add(lease, self.scale);
                self.arrived.push(claim(Reason::Expired));
            }
            Standing::Held { .. } | Standing::Expired { .. } if own && lease.is_left() => {
                self.returned.push(claim(Reason::Returned));
            }
            // Asked for before a restart, or so long ago that the request was given up.
            Standing::Held { .. } | Standing::Expired { .. } if lease.awaits(me).is_some() => {
                let from = lease.awaits(me).unwrap_or(me).clone();
                self.returned.push(claim(Reason::HandedOver { from }));
            }
            // Others leave it to us for a while yet.
            Standing::Expired { .. } if own && !limits.rejoin_grace.is_zero() => {
                self.returned.push(claim(Reason::Expired));
            }
            Standing::Expired { since } => {
                self.open.push(Open { key, lease, reason: Reason::Expired, since, heir: None });
            }
            Standing::Held { by, .. } if lease.is_coming_to(me) => {
                self.mine.add(lease, self.scale);
                if asked.is_some() && (overdue || lease.is_left()) {
                    self.arrived.push(claim(Reason::Stolen { from: by }));
                }
            }
            // The look is older than our request, or the request is still on its way.
            Standing::Held { .. } if asked.is_some() => self.mine.add(lease, self.scale),
            // Under our own name but not ours: another process may use it. Wait until it expires. It is our load
            // for the others, and they take back what we would have beyond it.
            Standing::Held { .. } if own => self.mine.add(lease, self.scale),
            Standing::Held { .. } => self.add_to_other(seen),
        }
        true
    }

    /// Adds to the load of the worker that has the lease, or will have it.
    fn add_to(&mut self, lease: &'a Lease) -> &mut Load<'a> {
        let load = self.loads.entry(lease.owner.as_ref().unwrap_or(self.planner.me)).or_default();
        load.add(lease, self.scale);
        load
    }

    fn add_to_other(&mut self, seen: &'a Seen) {
        let Self { view, planner, limits, now, .. } = *self;
        let lease = &seen.lease;
        let load = self.add_to(lease);
        // What is on its way from one worker to another is not taken from either, nor what waits for its holder
        // to come back.
        let moves = lease.checkpoint_owner.is_some() || seen.is_arriving(limits.failover_time, now);
        let free_to_go = !moves && !planner.avoided.contains(&lease.key);
        if free_to_go && view.is_alive(seen, limits.failover_time, now) {
            match limits.balance == Balance::Throughput && seen.is_restless(RESTLESS, now) {
                true => load.restless.push(lease),
                false => load.movable.push(lease),
            }
        }
    }

    /// Who held a parent of a free lease. Where looks are rare, who read the parent that ended last is the first to
    /// know that the child may begin; where they are not, all agree on the first parent's.
    fn heir(&self, lease: &Lease) -> Option<&'a WorkerId> {
        let mut heirs =
            lease.parents.iter().filter_map(|parent| self.view.last_holder(&parent.into())).peekable();
        let first = heirs.peek().copied();
        heirs.find(|heir| self.limits.are_looks_rare() && *heir == self.planner.me).or(first)
    }

    /// Takes what was ours before a restart, as far as there is room; says which leases that leaves over.
    pub(super) fn take_returned(&mut self, room: usize) -> Vec<LeaseKey> {
        let left_over = self.returned.iter().skip(room).map(|claim| claim.key.clone()).collect();
        self.returned.truncate(room);
        for lease in self.returned.iter().filter_map(|claim| self.view.get(&claim.key)) {
            self.mine.add(lease, self.scale);
        }
        left_over
    }
}
