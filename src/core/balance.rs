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
    lease::{HandOff, Lease, LeaseKey, WorkerId},
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
    /// How long a holder may take to hand a lease over before it is stolen from it. KCL:
    /// `gracefulLeaseHandoffTimeoutMillis` and `failoverTimeMillis`, 40 s.
    pub(crate) hand_off_timeout: Duration,
}

/// The worker that plans, and what only it knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planner<'a> {
    pub(crate) me: &'a WorkerId,
    /// The leases for which it has a running task, whatever the table says of them: they are its load, and
    /// are never claimed again.
    pub(crate) held: &'a BTreeSet<LeaseKey>,
    /// The leases that it leaves to others for a while, because its user's code could not go on with them.
    pub(crate) avoided: &'a BTreeSet<LeaseKey>,
    /// The leases that it asked for in this life.
    pub(crate) asked: &'a BTreeMap<LeaseKey, HandOff>,
}

/// One lease to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) key: LeaseKey,
    pub(crate) reason: Reason,
    /// To be asked for; its holder goes on until it has handed it over.
    pub(crate) ask: bool,
}

/// Why a lease is claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Nobody held it.
    Free,
    /// Its holder had not been heard of for `failover_time`.
    Expired,
    /// Its holder had more than its fair share, and cannot hand over.
    Stolen {
        /// That worker.
        from: WorkerId,
    },
    /// Its holder had more than its fair share, and handed it over on request.
    HandedOver {
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

/// Picks the leases `planner` should claim, most urgent first; no more than its fair share and its limits.
///
/// Free and expired leases come first. Only when there are none, up to `limits.max_steals` are asked for, or
/// stolen where the holder cannot hand over, from the busiest workers and never below their share. A lease
/// on its way counts as the load of the worker that it goes to.
pub(crate) fn plan(
    view: &LeaseView,
    planner: Planner<'_>,
    limits: &Limits,
    now: Instant,
    rng: &mut impl Rng,
) -> Plan {
    let me = planner.me;
    let mut open = Vec::new();
    let mut arrived = Vec::new();
    let mut loads: BTreeMap<WorkerId, Vec<&Lease>> = BTreeMap::new();
    let (mut total, mut mine) = (0, 0);
    // What we work on is our load although its row is gone, or waits for a parent that was made anew.
    let mut unseen = planner.held.len();
    let mut leaving = 0;
    for seen in view.rows().filter(|seen| is_startable(&seen.lease, |shard| view.get(&shard.into()))) {
        let (lease, key) = (&seen.lease, &seen.lease.key);
        let standing = seen.standing(limits.failover_time, now);
        if standing == Standing::Finished {
            continue;
        }
        total += 1;
        unseen -= usize::from(planner.held.contains(key));
        let overdue = seen.asked_since().is_some_and(|since| now >= since + limits.hand_off_timeout);
        match standing {
            // Asked for by another worker: its load already, though we still work on it.
            _ if planner.held.contains(key) && lease.is_leaving(me) => {
                leaving += 1;
                loads.entry(lease.owner.clone().unwrap_or_else(|| me.clone())).or_default().push(lease);
            }
            _ if planner.held.contains(key) => mine += 1,
            Standing::Free { since } => open.push((key, Reason::Free, since)),
            Standing::Expired { since } => open.push((key, Reason::Expired, since)),
            Standing::Held { by, .. } if lease.is_coming_to(me) => {
                mine += 1;
                if overdue && planner.asked.contains_key(key) {
                    arrived.push(Claim { key: key.clone(), reason: Reason::Stolen { from: by }, ask: false });
                }
            }
            Standing::Held { by, .. } if by == *me && planner.asked.contains_key(key) => {
                mine += 1;
                let from = planner.asked[key].from().clone();
                arrived.push(Claim { key: key.clone(), reason: Reason::HandedOver { from }, ask: false });
            }
            // The look is older than our request, or the request is still on its way.
            Standing::Held { .. } if planner.asked.contains_key(key) => mine += 1,
            // Under our own name but not ours: another process may use it. Wait until it expires.
            Standing::Held { by, .. } if by == *me => {}
            Standing::Held { by, .. } => {
                loads.entry(lease.owner.clone().unwrap_or(by)).or_default().push(lease);
            }
            Standing::Finished => {}
        }
    }
    (mine, total) = (mine + unseen, total + unseen);
    let workers = loads.len() + 1;
    let (floor, share) = (total / workers, total.div_ceil(workers));
    let room = limits.max_leases.saturating_sub(mine + leaving);
    let wanted = share.saturating_sub(mine);

    // A worker that claims in an order of its own meets its peers' claims less often.
    open.shuffle(rng);
    open.sort_by_key(|(_, reason, since)| (*reason != Reason::Free, now < *since + limits.patience));
    let overdue = |since: &Instant| now >= *since + limits.patience;
    let mut claims: Vec<Claim> = Vec::new();
    let mut left_over = Vec::new();
    for (key, reason, since) in open {
        let within_share = claims.len() < wanted;
        if planner.avoided.contains(key) {
            continue;
        }
        if claims.len() >= room {
            // Others may still take it, within their share.
            left_over.extend(overdue(&since).then(|| key.clone()));
        } else if within_share || overdue(&since) {
            claims.push(Claim { key: key.clone(), reason, ask: false });
        }
    }
    left_over.sort();

    if claims.is_empty() && left_over.is_empty() {
        let most = limits.max_steals.min(room);
        claims = steals(loads, Share { me, avoided: planner.avoided, mine, floor, share, most }, rng);
    }
    let needed = wanted.min(room);
    arrived.append(&mut claims);
    Plan { claims: arrived, left_over, total, workers, needed }
}

/// What a worker that steals has and may have.
struct Share<'a> {
    me: &'a WorkerId,
    avoided: &'a BTreeSet<LeaseKey>,
    mine: usize,
    floor: usize,
    share: usize,
    most: usize,
}

/// Takes from the busiest worker until the fair share or a limit is reached.
fn steals(loads: BTreeMap<WorkerId, Vec<&Lease>>, mut share: Share<'_>, rng: &mut impl Rng) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut victims: Vec<_> = loads.into_iter().map(|(from, leases)| (from, leases.len(), leases)).collect();
    victims.shuffle(rng);
    for (_, _, leases) in &mut victims {
        // What is on its way from one worker to another is not taken from either.
        leases.retain(|lease| lease.checkpoint_owner.is_none() && !share.avoided.contains(&lease.key));
        leases.shuffle(rng);
    }
    while claims.len() < share.most && share.mine < share.share {
        let Some((from, load, leases)) = victims.iter_mut().max_by_key(|(_, load, _)| *load) else { break };
        if *load < share.mine + 2 || *load <= share.floor {
            break;
        }
        let Some(lease) = leases.pop() else { break };
        let (from, ask) = (from.clone(), lease.ask(share.me).is_some());
        let reason = if ask { Reason::HandedOver { from } } else { Reason::Stolen { from } };
        claims.push(Claim { key: lease.key.clone(), reason, ask });
        *load -= 1;
        share.mine += 1;
    }
    claims
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests;
