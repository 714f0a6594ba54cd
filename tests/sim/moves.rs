//! I6, calm: leases move between living workers only to make the spread even, and hardly more of them than it takes.
//!
//! From the loads of a moment follows the least number of moves after which no worker has two leases more than
//! another. A move that lowers it is what balancing is for. Any other is needless, and few of them are forgiven:
//! workers that look at the same time do not know of each other's requests. Nor does anybody know that a worker is
//! dead before its leases have expired: as long as a lease has no living holder nothing is judged. So after each
//! change of the fleet every worker may be wrong twice, and [`FORGIVEN`] times more in all. A change is a worker
//! that joins, stops or dies, a resharding, and a fault that begins or ends; one that lasts is a change anew every
//! ten failover times, since leases are lost and found all the while. Faults allow for nothing else. Nothing
//! is saved up: with each change the account begins anew, and claims of leases that nobody holds, or has any more,
//! earn nothing.

use std::collections::{BTreeMap, BTreeSet};

use kinesis_consumer::{Balance, ShardId};
use tokio::time::Instant;

use super::{processor::Seat, rules::State, trace::short};

/// Needless moves after one change of the fleet, beyond two for each worker.
const FORGIVEN: usize = 2;
/// A fault that lasts is a change anew after so many failover times.
const LASTING: u32 = 10;

/// Of the time since the fleet has changed.
#[derive(Debug)]
pub(super) struct Account {
    since: Instant,
    needless: usize,
}

impl Default for Account {
    fn default() -> Self {
        Self { since: Instant::now(), needless: 0 }
    }
}

/// After how many moves no worker has two leases more than another, at the least. Leases that nobody has are for
/// those that lack some.
fn least_moves(loads: impl Iterator<Item = usize>, free: usize) -> usize {
    let mut loads: Vec<usize> = loads.collect();
    loads.sort_unstable_by(|a, b| b.cmp(a));
    let workers = loads.len().max(1);
    let all = loads.iter().sum::<usize>() + free;
    let share = |nth| all / workers + usize::from(nth < all % workers);
    loads.iter().zip(0..).map(|(load, nth)| load.saturating_sub(share(nth))).sum()
}

impl State {
    /// Something happens to the fleet.
    pub(super) fn fleet_changes(&mut self) {
        self.account = Account::default();
    }

    /// Something is at fault, as before.
    pub(super) fn faults_go_on(&mut self) {
        if self.account.since.elapsed() > LASTING * self.rules.failover_time {
            self.fleet_changes();
        }
    }

    /// The answer to a look at the table is on its way to a worker. Who has nothing is not in the table.
    pub(super) fn sees_peers(&mut self, seat: &Seat) {
        let peers: BTreeSet<String> = self.rows.values().filter_map(|row| row.load_of.clone()).collect();
        self.instances[seat.no].peers = peers;
    }

    fn is_living(&self, name: &str) -> bool {
        self.instances.iter().any(|one| one.name == name && !one.over && !one.stopping)
    }

    /// How many leases that can be worked on each living worker has, or will have when what it asked for has come,
    /// of those that one of them can know of; and the leases that nobody has.
    fn loads<'a>(&'a self, seat: &'a Seat, from: &'a str) -> (BTreeMap<&'a str, usize>, Vec<&'a ShardId>) {
        let peers = self.instances[seat.no].peers.iter().map(String::as_str);
        let known = peers.filter(|name| self.is_living(name)).chain([seat.name.as_str(), from]);
        let mut loads: BTreeMap<&str, usize> = known.map(|name| (name, 0)).collect();
        let waits = |parent: &ShardId| self.rows.get(parent).is_some_and(|row| !row.finished);
        let mut free = Vec::new();
        for (shard, row) in self.rows.iter().filter(|(_, row)| !row.finished) {
            let parents = self.shards.get(shard).map_or(&[][..], |log| &log.parents);
            if self.rules.parents_first && parents.iter().any(waits) {
                continue;
            }
            match row.load_of.as_ref().and_then(|name| loads.get_mut(name.as_str())) {
                Some(load) => *load += 1,
                None if row.load_of.as_deref().is_some_and(|name| self.is_living(name)) => {}
                None => free.push(shard),
            }
        }
        (loads, free)
    }

    /// As one worker sees it: what its user's code could not go on with it leaves to others.
    fn least_moves(&self, seat: &Seat, from: &str) -> usize {
        let (loads, free) = self.loads(seat, from);
        let avoided = &self.instances[seat.no].gives_up;
        least_moves(loads.into_values(), free.into_iter().filter(|shard| !avoided.contains(*shard)).count())
    }

    /// Of two processes with one id neither knows what the other has, and both are in want until one ends.
    fn has_namesakes(&self) -> bool {
        let living = self.instances.iter().filter(|one| !one.over);
        let mut names = BTreeSet::new();
        !living.map(|one| &one.name).all(|name| names.insert(name))
    }

    /// The lease is to be the load of `who` from now on.
    pub(super) fn is_load_of(&mut self, who: &str, shard: &ShardId) {
        self.rows.entry(shard.clone()).or_default().load_of = Some(who.to_owned());
    }

    /// A worker takes a lease from a living one, or asks for it.
    pub(super) fn moves_to(&mut self, seat: &Seat, shard: &ShardId) {
        let row = self.rows.entry(shard.clone()).or_default();
        let (from, holder) = (row.load_of.clone(), row.holder);
        // What it asked for, and takes since it is not handed over; and what a person has changed since.
        let Some(from) = from.as_deref().filter(|from| *from != seat.name) else {
            return self.is_load_of(&seat.name, shard);
        };
        let before = self.least_moves(seat, from);
        self.is_load_of(&seat.name, shard);
        let stays = |no: usize| !self.instances[no].over && !self.instances[no].stopping;
        // What shards bring changes, and leases follow it: each is held to a limit of its own.
        let is_judged = self.rules.balance == Balance::Count && holder.is_some_and(stays);
        if !is_judged || self.has_namesakes() || self.least_moves(seat, from) < before {
            return;
        }
        let (loads, free) = self.loads(seat, from);
        // Some are a dead worker's, as far as its peers can know.
        if !free.is_empty() {
            return;
        }
        let most = FORGIVEN + 2 * self.instances.iter().filter(|one| !one.over && !one.stopping).count();
        let seen = format!("{loads:?}");
        self.account.needless += 1;
        let needless = self.account.needless;
        self.note(&seat.name, || format!("moves {} from {from} for nothing: {seen}", short(shard.as_str())));
        if needless > most {
            let moves = format!(
                "moves between living workers for nothing since the fleet has changed, at most {most}"
            );
            self.violate(&seat.name, format!("makes one of {needless} {moves}: {shard} from {from}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_moves_are_needed_as_there_are_leases_beyond_the_shares() {
        for (loads, free, expected) in [
            ([4, 0, 0], 0, 2),
            ([4, 4, 0], 0, 2),
            ([5, 3, 1], 0, 2),
            ([3, 3, 2], 0, 0),
            ([2, 3, 3], 0, 0),
            ([4, 2, 2], 0, 1),
            ([4, 0, 0], 8, 0),
            ([6, 0, 0], 3, 3),
            ([0, 0, 0], 7, 0),
        ] {
            assert_eq!(least_moves(loads.into_iter(), free), expected, "{loads:?} and {free} free");
        }
        assert_eq!(least_moves([].into_iter(), 3), 0);
    }
}
