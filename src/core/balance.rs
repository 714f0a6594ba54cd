//! Lease balancing: which leases this worker should claim now, and why.
//!
//! Only decides; the coordinator writes the claims and may lose the race for any of them. Finished shards, and
//! children whose parents have not ended, are nobody's load and are not claimed. `rows` says what each row is to
//! the worker, `open` chooses among the leases that nobody holds, and `steals` among those of living workers.
//!
//! Terms follow the KCL's lease-count mode (`DynamoDBLeaseTaker`); the arithmetic is ours: stealing
//! needs a difference of two, so every steal makes the spread smaller and no two workers trade a lease.

mod open;
mod rows;
mod scale;
mod steals;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::Rng;
use serde::{Deserialize, Serialize};

use self::{
    open::Chooser,
    rows::Rows,
    scale::{Even, Scale},
    steals::Thief,
};
use crate::core::{
    lease::{HandOff, Lease, LeaseKey, WorkerId},
    lease_view::LeaseView,
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

    /// Whether a worker sees only after a while what others do.
    fn are_looks_rare(&self) -> bool {
        self.looks_at_expired.is_some()
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
    let scale = Scale::of(view.leases(), limits.balance);
    let mut rows = Rows::sort(view, planner, limits, &scale, now);
    let (total, workers) = (rows.total, rows.loads.len() + 1);
    let (floor, share) = (total / workers, total.div_ceil(workers));
    let room = limits.max_leases.saturating_sub(rows.mine.count + rows.leaving);
    let mut left_over = rows.take_returned(room);
    let Rows { mine, loads, open, mut arrived, mut returned, .. } = rows;
    let room = room - returned.len();
    let even = Even::new(&scale, &mine, &loads, open.iter().map(|open| open.lease));
    let wanted = share.saturating_sub(mine.count);
    let chooser = Chooser { planner, limits, loads: &loads, even: &even, workers, share, wanted, room, now };
    let mut chosen = chooser.choose(open, even.weight(&mine), rng);
    left_over.append(&mut chosen.left_over);
    left_over.sort();

    let mut claims = chosen.claims;
    let mut needed = planner.asked.len().saturating_sub(arrived.len());
    if claims.is_empty() && left_over.is_empty() && !chosen.awaits_heirs {
        let (me, count, weight) = (planner.me, mine.count, chosen.weight);
        let thief = Thief { me, count, weight, most: room, at_once: limits.max_steals };
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
