//! What holds instead of an even number of leases where they are balanced by what their shards bring: no lease is
//! taken to and fro, and at rest none is left whose move would help.

use std::collections::BTreeMap;

use kinesis_consumer::{Balance, Lease, ShardId};
use tokio::time::Instant;

use super::{
    processor::Seat,
    rules::{State, Tenure},
};

/// So often a worker may see a lease move before it takes it no more from a living one, and once more for a look
/// whose answer was lost.
const MOVES_SEEN: usize = 2 + 1;
/// Loads may differ from their mean by this part of it, and so much of the mean lease an idle one weighs.
const TOLERANCE: f64 = 0.1;

/// To whom a lease came, or that nobody had it any more, and when.
#[derive(Debug, Default)]
pub(super) struct Holders {
    came: Vec<(Instant, Option<String>)>,
    /// Those before went with the row. Who did not see it gone remembers them, if it was made anew.
    forgotten: usize,
    /// A person has given it to somebody, or to nobody.
    edited: bool,
}

impl Holders {
    /// The row is gone.
    pub(super) fn forget(&mut self) {
        self.forgotten = self.came.len();
    }

    /// A person changed the row.
    pub(super) fn edit(&mut self) {
        self.note(None);
        self.edited = true;
    }

    fn note(&mut self, who: Option<&str>) {
        if self.came.last().is_none_or(|(_, last)| last.as_deref() != who) {
            self.came.push((Instant::now(), who.map(Into::into)));
        }
    }

    /// How often the lease has moved from one to another.
    fn moves(&self) -> usize {
        moves(self.came.iter().map(|(_, who)| who))
    }

    /// How often it has, as `looks` show it.
    fn moves_seen(&self, looks: &[Instant]) -> usize {
        let known = &self.came[self.forgotten..];
        // What comes in the moment of a look may come after it.
        let at = |look: &Instant| known.iter().rev().find(|(came, _)| came < look).map(|(_, who)| who);
        moves(looks.iter().filter_map(at))
    }
}

fn moves<'a>(holders: impl Iterator<Item = &'a Option<String>>) -> usize {
    let mut holders: Vec<&String> = holders.flatten().collect();
    holders.dedup();
    holders.len().saturating_sub(1)
}

impl State {
    /// The lease comes to `who`, or is nobody's.
    pub(super) fn comes_to(&mut self, who: Option<&str>, shard: &ShardId) {
        self.holders.entry(shard.clone()).or_default().note(who);
    }

    /// The answer to a look at the table has come.
    pub(super) fn saw(&mut self, seat: &Seat) {
        let instance = &mut self.instances[seat.no];
        // What a stale one shows is not known.
        if self.rules.balance == Balance::Throughput && !self.are_looks_stale {
            instance.looks.extend(instance.served);
        }
    }

    /// Whether the worker had a lease at `sent`, and has it now, that does not go to another.
    fn has_any(&self, seat: &Seat, sent: Instant) -> bool {
        let is_held = |((no, shard), tenure): (&(usize, ShardId), &Tenure)| {
            let is_its = self.rows.get(shard).is_some_and(|row| row.holder == Some(*no));
            let works = self.instances[*no].processors.get(shard).is_some_and(|count| *count > 0);
            let stays = works && tenure.begun && !tenure.asked && tenure.claimed_at <= sent;
            *no == seat.no && is_its && stays && Instant::now() < self.valid_until(tenure)
        };
        self.tenures.iter().any(is_held)
    }

    /// A worker takes a lease from a living one, or asks for it. Who has nothing cannot trade; and what was sent
    /// before the last look, and has been on its way since, was decided on what was seen then.
    pub(super) fn takes_by_throughput(&mut self, seat: &Seat, sent: Instant, shard: &ShardId) {
        let is_old = self.instances[seat.no].looked.is_some_and(|looked| sent < looked);
        if self.rules.balance != Balance::Throughput || is_old || !self.has_any(seat, sent) {
            return;
        }
        let looks = &self.instances[seat.no].looks;
        let seen = self.holders.get(shard).map_or(0, |holders| holders.moves_seen(looks));
        if seen >= MOVES_SEEN {
            self.violate(&seat.name, format!("takes {shard}, which has moved {seen} times before its eyes"));
        }
    }

    /// Whether the lease has moved so often that only a worker that has nothing may take it.
    pub(super) fn is_restless(&self, shard: &ShardId) -> bool {
        self.holders.get(shard).is_some_and(|holders| holders.edited || holders.moves() + 1 >= MOVES_SEEN)
    }
}

/// A lease whose move would make the spread by throughput more even, and whom it would come to. `rooms` says how
/// many more each worker may hold; `restless` leases come only to those that have nothing.
pub(super) fn better_move(
    rows: &[Lease],
    rooms: &BTreeMap<String, usize>,
    restless: impl Fn(&Lease) -> bool,
) -> Option<(ShardId, String)> {
    let known: Vec<f64> = rows.iter().filter_map(|row| row.throughput_kbps).collect();
    let typical = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let kbps = |row: &Lease| row.throughput_kbps.unwrap_or(typical).max(0.0);
    let all: f64 = rows.iter().map(kbps).sum();
    let least = (all / rows.len().max(1) as f64 * TOLERANCE).max(1.0);
    let mut held: BTreeMap<&str, Vec<&Lease>> = BTreeMap::new();
    for row in rows {
        held.entry(row.holder()?.as_str()).or_default().push(row);
    }
    let weight = |leases: &[&Lease]| leases.iter().map(|row| kbps(row) + least).sum::<f64>();
    let nothing = Vec::new();
    for (taker, _) in rooms.iter().filter(|(_, room)| **room > 0) {
        let own = held.get(taker.as_str()).unwrap_or(&nothing);
        let others: Vec<&Vec<&Lease>> =
            held.iter().filter(|(who, _)| *who != taker).map(|(_, leases)| leases).collect();
        let mean = (all + least * rows.len() as f64) / (others.len() + 1) as f64;
        let margin = mean * TOLERANCE;
        let busiest = others.into_iter().max_by(|a, b| weight(a).total_cmp(&weight(b)));
        let Some(busiest) = busiest.filter(|busiest| weight(busiest) > mean + margin) else { continue };
        if weight(own) >= mean {
            continue;
        }
        // A little less than what a worker would see as helpful: sums differ by their order.
        let helps = |row: &Lease| weight(own) + kbps(row) + least < weight(busiest) - margin - 0.001;
        let free_to_go = |row: &&&Lease| own.is_empty() || !restless(row);
        if let Some(row) = busiest.iter().filter(free_to_go).find(|row| helps(row)) {
            return Some((row.key.shard(), taker.clone()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use kinesis_consumer::Checkpoint;

    use super::*;

    /// What would help of `"a: 900 100 | b: 100"`, rates in KiB/s, where nobody has a limit.
    fn better(loads: &str, restless: bool) -> Option<String> {
        let (mut rows, mut rooms) = (Vec::new(), BTreeMap::new());
        for (who, rates) in loads.split(" | ").map(|load| load.split_once(':').expect("who: rates")) {
            rooms.insert(who.to_owned(), usize::MAX);
            for rate in rates.split_whitespace() {
                let shard = format!("shardId-{:012}", rows.len());
                let row = Lease::new(&shard.as_str().into(), Checkpoint::TrimHorizon);
                let throughput_kbps = Some(rate.parse().expect("a rate"));
                rows.push(Lease { owner: Some(who.into()), throughput_kbps, ..row });
            }
        }
        let (shard, taker) = better_move(&rows, &rooms, |_| restless)?;
        Some(format!("{} to {taker}", super::super::trace::short(shard.as_str())))
    }

    #[test]
    fn a_move_that_would_help_is_found_and_no_other() {
        for (loads, expected) in [
            ("a: 900 100 | b: 100", Some("#1 to b")),
            ("a: 900 | b: 100 100", None),
            ("a: 100 100 | b: 110 100", None),
            ("a: 0 0 0 | b: 0", Some("#0 to b")),
            ("a: 0 0 | b: 0", None),
            ("a: 900 100 | b:", Some("#0 to b")),
        ] {
            assert_eq!(better(loads, false).as_deref(), expected, "{loads}");
        }
        assert_eq!(better("a: 900 100 | b: 100", true), None, "it has moved too often");
        assert_eq!(
            better("a: 900 100 | b:", true).as_deref(),
            Some("#0 to b"),
            "who has nothing cannot trade"
        );
    }
}
