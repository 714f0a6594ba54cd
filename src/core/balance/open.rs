//! Which leases to take of those that nobody holds any more: the worker's fair share, and what waits for too long.

use std::{collections::BTreeMap, time::Instant};

use rand::{Rng, RngExt};

use super::{Balance, Claim, Limits, Planner, Reason, rows::Load, scale::Even};
use crate::core::lease::{Lease, LeaseKey, WorkerId};

/// A lease that nobody holds any more.
pub(super) struct Open<'a> {
    pub(super) key: &'a LeaseKey,
    pub(super) lease: &'a Lease,
    pub(super) reason: Reason,
    pub(super) since: Instant,
    /// Who held its parent, as far as was seen.
    pub(super) heir: Option<&'a WorkerId>,
}

/// What the choice depends on.
pub(super) struct Chooser<'a> {
    pub(super) planner: Planner<'a>,
    pub(super) limits: &'a Limits,
    pub(super) loads: &'a BTreeMap<&'a WorkerId, Load<'a>>,
    pub(super) even: &'a Even<'a>,
    pub(super) workers: usize,
    /// The fair share of each worker.
    pub(super) share: usize,
    /// How many this worker lacks to its own.
    pub(super) wanted: usize,
    /// How many it may claim.
    pub(super) room: usize,
    pub(super) now: Instant,
}

/// What is chosen.
#[derive(Default)]
pub(super) struct Chosen {
    pub(super) claims: Vec<Claim>,
    /// Those that have waited for long, and for which there is no room.
    pub(super) left_over: Vec<LeaseKey>,
    /// Whether some are left to the heirs of their parents for a look.
    pub(super) awaits_heirs: bool,
    /// What the worker then has, of use by throughput only.
    pub(super) weight: f64,
}

impl Chooser<'_> {
    /// Chooses of `open`, most urgent first, for a worker that has `weight` already.
    pub(super) fn choose(&self, mut open: Vec<Open<'_>>, weight: f64, rng: &mut impl Rng) -> Chosen {
        let (limits, me) = (self.limits, self.planner.me);
        // From a place of its own round the table: a worker meets the claims of a peer only where that one began.
        let place = if open.is_empty() { 0 } else { rng.random_range(0..open.len()) };
        open.rotate_left(place);
        // What is too heavy for our share comes last: somebody else may have room for it.
        let heavy = |open: &Open<'_>| {
            let most = self.even.mean + self.even.margin();
            limits.balance == Balance::Throughput && weight + self.even.of(open.lease) > most
        };
        open.sort_by_key(|open| {
            (open.reason != Reason::Free, !self.is_overdue(open), heavy(open), open.heir != Some(me))
        });
        let hasty = self.hasty(&open, limits.looks_at_expired, &Reason::Expired)
            + self.hasty(&open, limits.looks_at_free, &Reason::Free);
        // What this worker has just made to begin others may see only after a while.
        let inherited = |open: &Open<'_>| limits.are_looks_rare() && open.heir == Some(me);
        let mut chosen = Chosen { weight, ..Chosen::default() };
        let mut awaited = BTreeMap::new();
        for open in open {
            if self.planner.avoided.contains(open.key) || self.is_left_to_heir(&open, &mut awaited) {
                continue;
            }
            let within_share = match limits.balance {
                Balance::Count => chosen.claims.len() < self.wanted,
                // As long as a lease is free, somebody is below the mean.
                Balance::Throughput => chosen.weight < self.even.mean,
            };
            let overdue = self.is_overdue(&open);
            if chosen.claims.len() >= self.room {
                // Others may still take it, within their share.
                chosen.left_over.extend(overdue.then(|| open.key.clone()));
            } else if within_share || overdue || chosen.claims.len() < hasty || inherited(&open) {
                chosen.weight += self.even.of(open.lease);
                chosen.claims.push(Claim { key: open.key.clone(), reason: open.reason, ask: false });
            }
        }
        chosen.awaits_heirs = !awaited.is_empty();
        chosen
    }

    fn is_overdue(&self, open: &Open<'_>) -> bool {
        self.now >= open.since + self.limits.patience
    }

    /// How many of a kind to take beyond the share, where only so many `looks` are made in the time that one may wait.
    fn hasty(&self, open: &[Open<'_>], looks: Option<f64>, kind: &Reason) -> usize {
        let found =
            open.iter().filter(|open| open.reason == *kind && !self.planner.avoided.contains(open.key));
        let looks = looks.map(|looks| (self.workers as f64 * looks).max(1.0));
        looks.map_or(0, |looks| (found.count() as f64 / looks).ceil() as usize)
    }

    /// Whether an heir that is alive and has not its share yet takes it at its next look. Counts what each is left.
    fn is_left_to_heir<'o>(&self, open: &Open<'o>, awaited: &mut BTreeMap<&'o WorkerId, usize>) -> bool {
        let Some(heir) = open.heir.filter(|_| self.now < open.since + self.limits.patience / 2) else {
            return false;
        };
        let Some(load) = self.loads.get(heir) else { return false };
        let coming = awaited.get(heir).copied().unwrap_or(0);
        let has_room = match self.limits.balance {
            Balance::Count => load.count + coming < self.share,
            Balance::Throughput => self.even.has_room(load, coming),
        };
        if has_room {
            awaited.insert(heir, coming + 1);
        }
        has_room
    }
}
