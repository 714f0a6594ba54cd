//! Lease balancing: which leases this worker should claim now, and why.
//!
//! Only decides; the coordinator writes the claims and may lose the race for any of them. Finished
//! shards, and children whose parents have not ended, are nobody's load and are not claimed. What is taken
//! from a living worker is for `steals` to choose.
//! Terms follow the KCL's lease-count mode (`DynamoDBLeaseTaker`); the arithmetic is ours: stealing
//! needs a difference of two, so every steal makes the spread smaller and no two workers trade a lease.

mod scale;
mod steals;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use self::scale::{Even, Scale};
use crate::core::{
    lease::{HandOff, Lease, LeaseKey, WorkerId},
    lease_view::{LeaseView, Standing},
    shard_sync::is_startable,
};

/// What is spread evenly over the workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The number of leases. KCL: `LEASE_COUNT_BASED`.
    #[default]
    Count,
    /// The bytes that their shards bring, to within a tenth; idle shards are spread by number. KCL:
    /// `WORKER_UTILIZATION_AWARE` with throughput as its only measure.
    Throughput,
}

/// By throughput no lease is taken from a living worker more than twice in this time, but by one that has none:
/// rates change, and leases must not follow them to and fro.
const RESTLESS: Duration = Duration::from_secs(3600);

/// Who has nothing yet takes half of its share from living workers, or this many, before it looks again: peers
/// that joined in the same moment are seen only by what they take, and make the share smaller.
const TAKEN_BEFORE_PEERS_ARE_SEEN: usize = 4;

/// What bounds the claims of one worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most leases that the worker may hold. KCL: `maxLeasesForWorker`.
    pub(crate) max_leases: usize,
    /// Most leases stolen in one look. KCL: `maxLeasesToStealAtOneTime`.
    pub(crate) max_steals: usize,
    /// How long a counter must stand still.
    pub(crate) failover_time: Duration,
    /// Whether shards wait for their parents' ends.
    pub(crate) parents_first: bool,
    /// How much longer it must stand still for others than the worker that held the lease.
    pub(crate) rejoin_grace: Duration,
    /// How long a lease may stay free before it is claimed beyond the fair share: those below theirs may be
    /// at their own limit, or stopping, which nobody else knows. KCL: the "very old" rule, 3 x
    /// `failoverTimeMillis`.
    pub(crate) patience: Duration,
    /// Where looks are rare, how many each worker makes in the time that an expired lease, or a free one, may
    /// wait for one. Then those who look take the leases of those who do not, beyond their share; the spread is
    /// mended later, by hand-offs.
    pub(crate) looks_at_expired: Option<f64>,
    pub(crate) looks_at_free: Option<f64>,
    /// How long a holder may take to hand a lease over before it is stolen from it. KCL:
    /// `gracefulLeaseHandoffTimeoutMillis` and `failoverTimeMillis`, 40 s.
    pub(crate) hand_off_timeout: Duration,
    /// What is to be even.
    pub(crate) balance: Balance,
}

impl Limits {
    /// Whether the shard may be read as far as its parents go.
    pub(crate) fn let_begin(&self, lease: &Lease, view: &LeaseView) -> bool {
        !self.parents_first || is_startable(lease, |shard| view.get(&shard.into()))
    }
}

/// The worker that plans, and what only it knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planner<'a> {
    pub(crate) me: &'a WorkerId,
    /// Its process: another may have its id.
    pub(crate) process: u64,
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

impl Claim {
    /// Whether any peer may be claiming it in the same moment.
    pub(crate) fn is_anyones(&self) -> bool {
        matches!(self.reason, Reason::Free | Reason::Expired)
    }
}

/// Why a lease is claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Nobody held it.
    Free,
    /// Its holder had not been heard of for `failover_time`.
    Expired,
    /// This worker held it before it was restarted, and had left it to itself.
    Returned,
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
    /// How many more this worker has to get from others until no move makes the spread more even: those it has
    /// asked for, and those it would take if it were not for `max_steals`. KCL: `NeededLeases`, where a worker
    /// goes on needing the lease that a number of leases which workers do not divide leaves it short of.
    pub(crate) needed: usize,
}

/// What one worker has, by the table.
#[derive(Debug, Default)]
struct Load<'a> {
    count: usize,
    kbps: f64,
    /// What may be taken from it.
    movable: Vec<&'a Lease>,
    /// What might be, but has moved to and fro of late.
    restless: Vec<&'a Lease>,
}

impl Load<'_> {
    fn add(&mut self, lease: &Lease, scale: &Scale) {
        self.count += 1;
        self.kbps += scale.kbps(lease);
    }
}

/// A lease that nobody holds any more.
struct Open<'a> {
    key: &'a LeaseKey,
    lease: &'a Lease,
    reason: Reason,
    since: Instant,
    /// Who held its parent, as far as was seen.
    heir: Option<&'a WorkerId>,
}

/// Picks the leases `planner` should claim, most urgent first; no more than its fair share and its limits.
///
/// What the worker held before a restart comes first, then free and expired leases. Only when there are
/// none, up to `limits.max_steals` are asked for, or stolen where the holder cannot hand over, from the
/// busiest workers and never below their share. A lease on its way counts as the load of the worker that it
/// goes to; one that waits for its holder to come back, as that worker's. A child is left for a look to the
/// worker that read its parent, which has its records' state and is the first to know.
pub(crate) fn plan(
    view: &LeaseView,
    planner: Planner<'_>,
    limits: &Limits,
    now: Instant,
    rng: &mut impl Rng,
) -> Plan {
    let me = planner.me;
    let mut open = Vec::new();
    let (mut arrived, mut returned) = (Vec::new(), Vec::new());
    let mut loads: BTreeMap<&WorkerId, Load<'_>> = BTreeMap::new();
    let mut mine = Load::default();
    let mut total = 0;
    // What we work on is our load although its row is gone, or waits for a parent that was made anew.
    let mut unseen = planner.held.len();
    let mut leaving = 0;
    let scale = Scale::of(view.leases(), limits.balance);
    let rare = limits.looks_at_expired.is_some();
    for seen in view.rows().filter(|seen| limits.let_begin(&seen.lease, view)) {
        let (lease, key) = (&seen.lease, &seen.lease.key);
        let own = lease.holder() == Some(me);
        let grace = if own { Duration::ZERO } else { limits.rejoin_grace };
        let standing = view.standing(seen, limits.failover_time + grace, now);
        if standing == Standing::Finished {
            continue;
        }
        total += 1;
        let (held, asked) = (planner.held.contains(key), planner.asked.get(key));
        unseen -= usize::from(held);
        let overdue = seen.asked_since().is_some_and(|since| now >= since + limits.hand_off_timeout);
        let claim = |reason| Claim { key: key.clone(), reason, ask: false };
        match standing {
            // Asked for by another worker: its load already, though we still work on it.
            _ if held && lease.is_leaving(me) => {
                leaving += 1;
                loads.entry(lease.owner.as_ref().unwrap_or(me)).or_default().add(lease, &scale);
            }
            _ if held => mine.add(lease, &scale),
            Standing::Free { since } => {
                let mut heirs =
                    lease.parents.iter().filter_map(|parent| view.last_holder(&parent.into())).peekable();
                // Where looks are rare, who read the parent that ended last is the first to know that the child
                // may begin; where they are not, all agree on the first parent's.
                let first = heirs.peek().copied();
                let heir = heirs.find(|heir| rare && *heir == me).or(first);
                open.push(Open { key, lease, reason: Reason::Free, since, heir });
            }
            Standing::Held { .. } if own && asked.is_some() && !lease.is_namesakes(me, planner.process) => {
                mine.add(lease, &scale);
                let from = asked.map_or(me, HandOff::from).clone();
                arrived.push(claim(Reason::HandedOver { from }));
            }
            // Its holder is gone. It comes in the room that is kept for it, so that what is free does not take that.
            Standing::Expired { .. } if asked.is_some() && lease.is_coming_to(me) => {
                mine.add(lease, &scale);
                arrived.push(claim(Reason::Expired));
            }
            Standing::Held { .. } | Standing::Expired { .. } if own && lease.is_left() => {
                returned.push(claim(Reason::Returned));
            }
            // Asked for before a restart, or so long ago that the request was given up.
            Standing::Held { .. } | Standing::Expired { .. } if lease.awaits(me).is_some() => {
                let from = lease.awaits(me).unwrap_or(me).clone();
                returned.push(claim(Reason::HandedOver { from }));
            }
            // Others leave it to us for a while yet.
            Standing::Expired { .. } if own && !limits.rejoin_grace.is_zero() => {
                returned.push(claim(Reason::Expired));
            }
            Standing::Expired { since } => {
                open.push(Open { key, lease, reason: Reason::Expired, since, heir: None });
            }
            Standing::Held { by, .. } if lease.is_coming_to(me) => {
                mine.add(lease, &scale);
                if asked.is_some() && (overdue || lease.is_left()) {
                    arrived.push(claim(Reason::Stolen { from: by }));
                }
            }
            // The look is older than our request, or the request is still on its way.
            Standing::Held { .. } if asked.is_some() => mine.add(lease, &scale),
            // Under our own name but not ours: another process may use it. Wait until it expires. It is our load
            // for the others, and they take back what we would have beyond it.
            Standing::Held { .. } if own => mine.add(lease, &scale),
            Standing::Held { .. } => {
                let load = loads.entry(lease.owner.as_ref().unwrap_or(me)).or_default();
                load.add(lease, &scale);
                // What is on its way from one worker to another is not taken from either, nor what waits for
                // its holder to come back.
                let moves = lease.checkpoint_owner.is_some() || seen.is_arriving(limits.failover_time, now);
                let free_to_go = !moves && !planner.avoided.contains(key);
                if free_to_go && view.is_alive(seen, limits.failover_time, now) {
                    match limits.balance == Balance::Throughput && seen.is_restless(RESTLESS, now) {
                        true => load.restless.push(lease),
                        false => load.movable.push(lease),
                    }
                }
            }
            Standing::Finished => {}
        }
    }
    (mine.count, total) = (mine.count + unseen, total + unseen);
    let workers = loads.len() + 1;
    let (floor, share) = (total / workers, total.div_ceil(workers));
    let room = limits.max_leases.saturating_sub(mine.count + leaving);
    let mut left_over: Vec<LeaseKey> = returned.iter().skip(room).map(|claim| claim.key.clone()).collect();
    returned.truncate(room);
    for lease in returned.iter().filter_map(|claim| view.get(&claim.key)) {
        mine.add(lease, &scale);
    }
    let room = room - returned.len();
    let wanted = share.saturating_sub(mine.count);
    let even = Even::new(scale, &mine, &loads, open.iter().map(|open| open.lease));
    let mut weight = even.weight(&mine);

    // From a place of its own round the table: a worker meets the claims of a peer only where that one began.
    let place = if open.is_empty() { 0 } else { rng.random_range(0..open.len()) };
    open.rotate_left(place);
    let overdue = |open: &Open<'_>| now >= open.since + limits.patience;
    // What is too heavy for our share comes last: somebody else may have room for it.
    let heavy = |open: &Open<'_>| {
        limits.balance == Balance::Throughput && weight + even.of(open.lease) > even.mean + even.margin()
    };
    open.sort_by_key(|open| {
        (open.reason != Reason::Free, !overdue(open), heavy(open), open.heir != Some(me))
    });
    let hasty = |looks: Option<f64>, reason: &Reason| {
        let found = open.iter().filter(|open| open.reason == *reason && !planner.avoided.contains(open.key));
        looks.map_or(0, |looks| (found.count() as f64 / (workers as f64 * looks).max(1.0)).ceil() as usize)
    };
    let hasty = hasty(limits.looks_at_expired, &Reason::Expired) + hasty(limits.looks_at_free, &Reason::Free);
    // What this worker has just made to begin others may see only after a while.
    let inherited = |open: &Open<'_>| rare && open.heir == Some(me);
    let mut claims: Vec<Claim> = Vec::new();
    let mut awaited: BTreeMap<&WorkerId, usize> = BTreeMap::new();
    for open in open {
        let within_share = match limits.balance {
            Balance::Count => claims.len() < wanted,
            // As long as a lease is free, somebody is below the mean.
            Balance::Throughput => weight < even.mean,
        };
        if planner.avoided.contains(open.key) {
            continue;
        }
        // An heir that is alive and has not its share yet takes it at its next look.
        if let Some((heir, load)) = open.heir.and_then(|heir| loads.get_key_value(heir))
            && now < open.since + limits.patience / 2
        {
            let awaited = awaited.entry(heir).or_default();
            let has_room = match limits.balance {
                Balance::Count => load.count + *awaited < share,
                Balance::Throughput => even.has_room(load, *awaited),
            };
            if has_room {
                *awaited += 1;
                continue;
            }
        }
        if claims.len() >= room {
            // Others may still take it, within their share.
            left_over.extend(overdue(&open).then(|| open.key.clone()));
        } else if within_share || overdue(&open) || claims.len() < hasty || inherited(&open) {
            weight += even.of(open.lease);
            claims.push(Claim { key: open.key.clone(), reason: open.reason, ask: false });
        }
    }
    left_over.sort();

    let mut needed = planner.asked.len().saturating_sub(arrived.len());
    if claims.is_empty() && left_over.is_empty() && awaited.is_empty() {
        let thief = steals::Thief { me, count: mine.count, weight, most: room, at_once: limits.max_steals };
        claims = match limits.balance {
            Balance::Count => steals::by_count(&loads, &thief, (floor, share), rng),
            Balance::Throughput => steals::by_throughput(loads, &thief, &even, rng),
        };
        needed += claims.len();
        claims.truncate(limits.max_steals);
        if mine.count == 0 && limits.balance == Balance::Count {
            claims.truncate(share.div_ceil(2).max(TAKEN_BEFORE_PEERS_ARE_SEEN));
        }
    }
    arrived.append(&mut returned);
    arrived.append(&mut claims);
    Plan { claims: arrived, left_over, total, workers, needed }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests;
