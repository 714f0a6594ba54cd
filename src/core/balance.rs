//! Lease balancing: which leases this worker should claim now, and why.
//!
//! Only decides; the coordinator writes the claims and may lose the race for any of them. Finished
//! shards, and children whose parents have not ended, are nobody's load and are not claimed.
//! Terms follow the KCL's lease-count mode (`DynamoDBLeaseTaker`); the arithmetic is ours: stealing
//! needs a difference of two, so every steal makes the spread smaller and no two workers trade a lease.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{Rng, seq::SliceRandom};

use crate::core::{
    lease::{LeaseKey, WorkerId},
    lease_view::{LeaseView, Standing},
    shard_sync::is_startable,
};

/// What bounds the claims of one worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most leases that the worker may hold. KCL: `maxLeasesForWorker`.
    pub(crate) max_leases: usize,
    /// Most leases stolen in one look. KCL: `maxLeasesToStealAtOneTime`.
    pub(crate) max_steals: usize,
    /// How long a counter must stand still.
    pub(crate) failover_time: Duration,
    /// How long a lease may stay free before it is claimed beyond the fair share: those below theirs may be
    /// at their own limit, or stopping, which nobody else knows. KCL: the "very old" rule, 3 x
    /// `failoverTimeMillis`.
    pub(crate) patience: Duration,
}

/// One lease to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) key: LeaseKey,
    pub(crate) reason: Reason,
}

/// Why a lease is claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Nobody held it.
    Free,
    /// Its holder had not been heard of for `failover_time`.
    Expired,
    /// Its holder has more than its fair share.
    Stolen {
        /// That worker.
        from: WorkerId,
    },
}

/// What to do after one look, and the numbers that led to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Most urgent first.
    pub(crate) claims: Vec<Claim>,
    /// Leases that stay unclaimed because this worker may hold no more.
    pub(crate) left_over: Vec<LeaseKey>,
    /// Leases that can be worked on, whoever holds them.
    pub(crate) total: usize,
    /// Workers that hold at least one of them, and this one.
    pub(crate) workers: usize,
    /// How many this worker still lacks to its fair share. KCL: `NeededLeases`.
    pub(crate) needed: usize,
}

/// Picks the leases `me` should claim, most urgent first; no more than its fair share and its limits.
///
/// `held` are the leases for which this worker has a running task, whatever the table says of them:
/// they are its load, and are never claimed again. Free and expired leases come first. Only when there
/// are none, up to `limits.max_steals` are stolen from the busiest workers, never below their share.
pub(crate) fn plan(
    view: &LeaseView,
    me: &WorkerId,
    held: &BTreeSet<LeaseKey>,
    limits: &Limits,
    now: Instant,
    rng: &mut impl Rng,
) -> Plan {
    let mut open = Vec::new();
    let mut loads: BTreeMap<WorkerId, Vec<LeaseKey>> = BTreeMap::new();
    let (mut total, mut mine) = (0, 0);
    for seen in view.rows().filter(|seen| is_startable(&seen.lease, |shard| view.get(&shard.into()))) {
        let key = &seen.lease.key;
        let standing = seen.standing(limits.failover_time, now);
        if standing == Standing::Finished {
            continue;
        }
        total += 1;
        match standing {
            _ if held.contains(key) => mine += 1,
            Standing::Free { since } => open.push((key, Reason::Free, since)),
            Standing::Expired { since } => open.push((key, Reason::Expired, since)),
            // Under our own name but not ours: another process may use it. Wait until it expires.
            Standing::Held { by, .. } if by == *me => {}
            Standing::Held { by, .. } => loads.entry(by).or_default().push(key.clone()),
            Standing::Finished => {}
        }
    }
    let workers = loads.len() + 1;
    let (floor, share) = (total / workers, total.div_ceil(workers));
    let room = limits.max_leases.saturating_sub(mine);
    let wanted = share.saturating_sub(mine);

    // A worker that claims in an order of its own meets its peers' claims less often.
    open.shuffle(rng);
    open.sort_by_key(|(_, reason, since)| (*reason != Reason::Free, now < *since + limits.patience));
    let overdue = |since: &Instant| now >= *since + limits.patience;
    let mut claims: Vec<Claim> = Vec::new();
    let mut left_over = Vec::new();
    for (key, reason, since) in open {
        let within_share = claims.len() < wanted;
        if claims.len() >= room {
            left_over.push(key.clone());
        } else if within_share || overdue(&since) {
            claims.push(Claim { key: key.clone(), reason });
        }
    }
    left_over.sort();

    if claims.is_empty() && left_over.is_empty() {
        claims = steals(loads, mine, floor, share, limits.max_steals.min(room), rng);
    }
    let needed = wanted.min(room);
    Plan { claims, left_over, total, workers, needed }
}

/// Takes from the busiest worker until the fair share or a limit is reached.
fn steals(
    mut loads: BTreeMap<WorkerId, Vec<LeaseKey>>,
    mut mine: usize,
    floor: usize,
    share: usize,
    most: usize,
    rng: &mut impl Rng,
) -> Vec<Claim> {
    let mut claims = Vec::new();
    for leases in loads.values_mut() {
        leases.shuffle(rng);
    }
    let mut victims: Vec<_> = loads.into_iter().collect();
    victims.shuffle(rng);
    while claims.len() < most && mine < share {
        let Some((from, leases)) = victims.iter_mut().max_by_key(|(_, leases)| leases.len()) else { break };
        if leases.len() < mine + 2 || leases.len() <= floor {
            break;
        }
        let Some(key) = leases.pop() else { break };
        claims.push(Claim { key, reason: Reason::Stolen { from: from.clone() } });
        mine += 1;
    }
    claims
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests;
