mod claims;
mod returns;
mod steals;
mod throughput;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::core::{
    lease::{Checkpoint, Claimant, Lease},
    shard::ShardId,
    testdata::{Row, rows},
    throughput::Meter,
};

const CASES: &str = include_str!("../testdata/taker.txt");

const FAILOVER: Duration = Duration::from_secs(10);

fn limits() -> Limits {
    Limits {
        max_leases: usize::MAX,
        max_steals: usize::MAX,
        failover_time: FAILOVER,
        parents_first: true,
        rejoin_grace: Duration::ZERO,
        balance: Balance::Count,
        patience: FAILOVER * 3,
        looks_at_expired: None,
        looks_at_free: None,
        hand_off_timeout: FAILOVER * 4,
    }
}

fn shard(n: usize) -> ShardId {
    format!("shardId-{n:04}").into()
}

/// A table written as `"a: 1 2 | b: 3 | expired: 4 | free: 5 | done: 6"`, and the time of the look.
struct Table {
    view: LeaseView,
    now: Instant,
}

fn table(text: &str) -> Table {
    let start = Instant::now();
    let now = start + FAILOVER;
    let (mut old, mut fresh) = (Vec::new(), Vec::new());
    for part in text.split('|') {
        let (who, shards) = part.split_once(':').expect("who: shards");
        for n in shards.split_whitespace() {
            let mut lease = Lease::new(&shard(n.parse().expect("a number")), Checkpoint::TrimHorizon);
            match who.trim() {
                "free" => {}
                "expired" => lease.owner = Some("dead".into()),
                "done" => lease.checkpoint = Checkpoint::ShardEnd,
                owner => lease.owner = Some(owner.into()),
            }
            if who.trim() == "expired" {
                old.push(lease.clone());
            }
            fresh.push(lease);
        }
    }
    let mut view = LeaseView::default();
    view.observe(old, start);
    view.observe(fresh, now);
    Table { view, now }
}

impl Table {
    fn held_by(&self, me: &str) -> BTreeSet<LeaseKey> {
        let mine =
            |lease: &&Lease| lease.owner.as_ref().is_some_and(|o| o.as_str() == me) && !lease.is_finished();
        self.view.leases().filter(mine).map(|lease| lease.key.clone()).collect()
    }

    fn plan(&self, me: &str, limits: &Limits) -> Plan {
        let rng = &mut StdRng::seed_from_u64(1);
        by(&me.into(), &self.held_by(me), |planner| plan(&self.view, planner, limits, self.now, rng))
    }
}

/// A planner that has asked for nothing yet.
fn by(me: &WorkerId, held: &BTreeSet<LeaseKey>, plan: impl FnOnce(Planner<'_>) -> Plan) -> Plan {
    plan(Planner { process: 1, me, held, asked: &BTreeMap::new(), avoided: &BTreeSet::new() })
}

fn keys(plan: &Plan) -> Vec<usize> {
    let mut all: Vec<usize> = plan
        .claims
        .iter()
        .map(|claim| claim.key.as_str().rsplit('-').next().expect("a number").parse().expect("a number"))
        .collect();
    all.sort_unstable();
    all
}

/// The table of a row of testdata/taker.txt at the time of the look.
fn of_row(text: &str) -> Table {
    let start = Instant::now();
    let now = start + limits().patience + FAILOVER;
    let (mut rows, mut views) = (Vec::new(), Vec::new());
    for part in text.split(", ") {
        let (who, numbers) = part.split_once(": ").expect("who: leases");
        for n in numbers.split(' ') {
            let (owner, seen) = match who {
                "waited" => (None, start),
                "free" => (None, now),
                "dead" => (Some("a dead one"), start),
                "expired" => (Some("another dead one"), now - FAILOVER),
                living => (Some(living), now),
            };
            let lease = Lease::new(&shard(n.parse().expect("a number")), Checkpoint::TrimHorizon);
            rows.push(Lease { owner: owner.map(WorkerId::from), ..lease });
            views.push(seen);
        }
    }
    let mut view = LeaseView::default();
    // Each row is first seen when its holder was last heard of.
    for at in [start, now - FAILOVER, now] {
        let seen = rows.iter().zip(&views).filter(|(_, seen)| **seen <= at);
        view.observe(seen.map(|(row, _)| row.clone()).collect(), at);
    }
    Table { view, now }
}

#[test]
fn the_table_of_the_taker_holds() {
    for Row { line, cells } in rows(CASES, "take") {
        let table = of_row(cells[1]);
        let mut limits = Limits { max_steals: 1, ..limits() };
        for setting in cells[2].split(", ").filter(|setting| !setting.is_empty()) {
            match setting.split_once(' ').expect("a setting and a number") {
                ("max", most) => limits.max_leases = most.parse().expect("a number"),
                ("steals", most) => limits.max_steals = most.parse().expect("a number"),
                other => panic!("line {line}: {other:?}"),
            }
        }
        let plan = table.plan("foo", &limits);
        let count = |wanted: &Reason| plan.claims.iter().filter(|claim| claim.reason == *wanted).count();
        let mut taken: Vec<String> = Vec::new();
        taken.extend(Some(count(&Reason::Free)).filter(|n| *n > 0).map(|n| format!("{n} free")));
        taken.extend(Some(count(&Reason::Expired)).filter(|n| *n > 0).map(|n| format!("{n} expired")));
        for from in ["bar", "baz", "qux"] {
            let stolen = count(&Reason::Stolen { from: from.into() });
            taken.extend(Some(stolen).filter(|n| *n > 0).map(|n| format!("{n} of {from}")));
        }
        let taken = if taken.is_empty() { "nothing".to_owned() } else { taken.join(" ") };
        // Where two are equally busy, either will do.
        let either = ["bar", "baz"].map(|from| cells[3].replace("bar or baz", from));
        assert!(either.contains(&taken), "line {line}: {taken}");
        assert!(plan.claims.iter().all(|claim| !claim.ask), "line {line}");
    }
}
