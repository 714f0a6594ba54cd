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

#[test]
fn the_first_worker_takes_all_that_is_there() {
    assert_eq!(keys(&table("free: 1 2 3 4").plan("a", &limits())), [1, 2, 3, 4]);
}

#[test]
fn free_and_expired_leases_are_claimed_before_any_is_stolen() {
    let plan = table("a: 1 2 3 4 5 | b: | expired: 6").plan("b", &limits());
    assert_eq!(plan.claims, [Claim { key: (&shard(6)).into(), reason: Reason::Expired, ask: false }]);
}

#[test]
fn where_looks_are_rare_those_who_look_take_the_leases_of_those_who_do_not() {
    // 13 leases, 4 workers: a share of 4, and the first to look has no room in its own.
    let table = table("a: 1 2 3 4 | b: 5 6 | c: 7 8 | d: 9 10 | expired: 11 12 13");
    let plan_with = |looks_at_expired, looks_at_free| {
        table.plan("a", &Limits { looks_at_expired, looks_at_free, ..limits() }).claims.len()
    };
    assert_eq!(plan_with(None, None), 0);
    // All of them while anybody else would come too late, its part if some others come.
    assert_eq!(plan_with(Some(0.1), None), 3);
    assert_eq!(plan_with(Some(0.5), None), 2);
    assert_eq!(plan_with(None, Some(0.1)), 0, "none of them is free");
    let most = Limits { max_leases: 5, looks_at_expired: Some(0.1), ..limits() };
    assert_eq!(table.plan("a", &most).claims.len(), 1);
}

#[test]
fn where_looks_are_rare_what_is_free_is_taken_besides_what_has_expired() {
    let table = table("a: 1 2 3 4 | b: 5 6 | c: 7 8 | d: 9 10 | expired: 11 12 13 | free: 14");
    for (expired, free, claimed) in
        [(None, None, vec![]), (Some(0.1), Some(0.1), vec![11, 12, 13, 14]), (None, Some(0.1), vec![14])]
    {
        let rare = Limits { looks_at_expired: expired, looks_at_free: free, ..limits() };
        assert_eq!(keys(&table.plan("a", &rare)), claimed, "{expired:?} {free:?}");
    }
}

#[test]
fn a_free_lease_goes_before_an_expired_one() {
    let plan = table("a: 1 2 | expired: 3 | free: 4").plan("b", &Limits { max_leases: 1, ..limits() });
    assert_eq!(keys(&plan), [4]);
}

#[test]
fn a_joiner_steals_its_fair_share_at_once() {
    let plan = table("a: 1 2 3 4").plan("b", &limits());
    assert_eq!(plan.claims.len(), 2);
    assert!(plan.claims.iter().all(|claim| claim.reason == Reason::Stolen { from: "a".into() }));
    assert_eq!(plan.needed, 2);
}

#[test]
fn a_joiner_takes_half_of_its_share_before_it_has_seen_who_joins_with_it() {
    let held: String = (0..40).map(|n| format!("{n} ")).collect();
    let plan = table(&format!("a: {held}")).plan("b", &limits());
    assert_eq!((plan.claims.len(), plan.needed), (10, 20));
    let by_throughput = Limits { balance: Balance::Throughput, ..limits() };
    // To within a tenth of the mean.
    assert_eq!(table(&format!("a: {held}")).plan("b", &by_throughput).claims.len(), 18);
}

/// The leases of workers by how many they have.
fn counted(loads: &[(&str, usize)]) -> Table {
    let (mut text, mut next) = (String::new(), 0);
    for (who, count) in loads {
        let held: String = (next..next + count).map(|n| format!("{n} ")).collect();
        text += &format!("| {who}: {held}");
        next += count;
    }
    table(&text[1..])
}

#[test]
fn workers_that_see_one_another_below_their_share_take_different_leases_and_leave_everybody_theirs() {
    for counts in [
        &[("a", 29), ("b", 28), ("c", 27), ("d", 2), ("e", 3), ("f", 1)][..],
        &[("a", 67), ("b", 67), ("c", 66), ("d", 50), ("e", 50), ("f", 50), ("g", 50), ("h", 50), ("i", 50)],
        &[("a", 2), ("b", 30), ("c", 1), ("d", 31), ("e", 1)],
    ] {
        let table = counted(counts);
        let mut loads: BTreeMap<String, i64> =
            counts.iter().map(|(who, count)| ((*who).to_owned(), *count as i64)).collect();
        let mut taken = BTreeSet::new();
        for (me, _) in counts {
            for claim in table.plan(me, &limits()).claims {
                assert!(taken.insert(claim.key.clone()), "{me} takes {} too", claim.key);
                let Reason::Stolen { from } = claim.reason else { panic!("{claim:?}") };
                *loads.entry(from.to_string()).or_default() -= 1;
                *loads.entry((*me).to_owned()).or_default() += 1;
            }
        }
        let (least, most) = (loads.values().min(), loads.values().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{loads:?}");
    }
}

#[test]
fn what_was_handed_over_to_a_worker_that_forgot_asking_is_taken_at_once_within_its_limit() {
    let mut table = table("a: 1 2 3 | b: 4 5");
    // `b` asked for two before it was restarted; `c` has claimed what it has.
    let handed = |lease: &Lease| match lease.owner.as_ref().map(WorkerId::as_str) {
        Some("b") => Lease { hands_over: Some("a".into()), ..lease.clone() },
        owner => {
            Lease { hands_over: owner.map(|owner| WorkerId::from(owner).as_str().into()), ..lease.clone() }
        }
    };
    table.view.observe(table.view.leases().map(handed).collect(), table.now);
    let of = |me: &str, limits: &Limits| {
        let plan = by(&me.into(), &BTreeSet::new(), |planner| {
            plan(&table.view, planner, limits, table.now, &mut StdRng::seed_from_u64(1))
        });
        plan.claims
            .into_iter()
            .filter(|claim| claim.reason == Reason::HandedOver { from: "a".into() })
            .count()
    };
    assert_eq!(of("b", &limits()), 2);
    assert_eq!(of("b", &Limits { max_leases: 1, ..limits() }), 1);
    assert_eq!(of("a", &limits()), 0, "what it claimed itself may be another process's");
}

#[test]
fn a_worker_needs_what_moves_can_still_bring_it() {
    for (held, me, most, needed) in [
        ("a: 1 2 3 4", "b", 1, 2),
        ("a: 1 2 3 4", "b", 0, 2),
        // As even as eleven, eleven and ten of thirty-two.
        ("a: 1 2 3 4 | b: 5 6 7 8 | c: 9 10 11", "c", 9, 0),
        ("a: 1 2 3 4 | b: 5 6 7 | c: 8 9", "c", 9, 1),
        ("a: 1 2 3 4 | b: 5 6 7 | c: 8 9", "b", 9, 0),
        // What is free is claimed, not needed.
        ("a: 1 2 3 4 | free: 5 6", "b", 9, 0),
    ] {
        let plan = table(held).plan(me, &Limits { max_steals: most, ..limits() });
        assert_eq!(plan.needed, needed, "{me} of {held}: {plan:?}");
    }
    let cramped = table("a: 1 2 3 4").plan("b", &Limits { max_leases: 1, ..limits() });
    assert_eq!(cramped.needed, 1, "no more than it may hold");
}

/// `b` next to `a`, which holds four leases and hands them over on request.
fn willing() -> Table {
    let mut table = table("a: 1 2 3 4");
    let willing = |lease: &Lease| Lease { hands_over: Some("a".into()), ..lease.clone() };
    table.view.observe(table.view.leases().map(willing).collect(), table.now);
    table
}

#[test]
fn a_holder_that_hands_over_is_asked_and_not_robbed() {
    let plan = willing().plan("b", &limits());
    assert!(plan.claims.iter().all(|claim| claim.ask), "{plan:?}");
    assert_eq!(plan.claims.len(), 2);
}

#[test]
fn a_lease_on_its_way_counts_for_where_it_goes_and_is_taken_once_it_arrives() {
    let mut table = willing();
    let asked = |lease: &Lease| (lease.key.clone(), lease.ask(&"b".into()).expect("willing"));
    let asks: BTreeMap<LeaseKey, HandOff> = table.view.leases().take(2).map(asked).collect();
    let on_the_way =
        |lease: &Lease| asks.get(&lease.key).map_or_else(|| lease.clone(), |ask| lease.after_request(ask));
    table.view.observe(table.view.leases().map(on_the_way).collect(), table.now);
    let held = BTreeSet::new();
    let b = |view: &LeaseView, now| {
        let planner = Planner { process: 1, me: &"b".into(), held: &held, asked: &asks, avoided: &held };
        plan(view, planner, &limits(), now, &mut StdRng::seed_from_u64(1))
    };
    let waiting = b(&table.view, table.now);
    assert_eq!((&waiting.claims[..], waiting.needed, waiting.workers), (&[][..], 2, 2));
    // The third worker sees two of two, and asks for nothing that is on its way.
    assert!(keys(&table.plan("c", &limits())).iter().all(|n| *n > 2));

    let arrived = |lease: &Lease| match asks.contains_key(&lease.key) {
        true => Lease { checkpoint_owner: None, counter: 1, ..lease.clone() },
        false => lease.clone(),
    };
    table.view.observe(table.view.leases().map(arrived).collect(), table.now);
    let plan = b(&table.view, table.now);
    assert_eq!((keys(&plan), plan.needed), (vec![1, 2], 0));
    assert!(
        plan.claims.iter().all(|claim| claim.reason == Reason::HandedOver { from: "a".into() } && !claim.ask)
    );
}

#[test]
fn what_a_namesake_took_has_not_been_handed_over() {
    let table = willing();
    let lease = table.view.get(&(&shard(1)).into()).expect("a lease").clone();
    let asks = [(lease.key.clone(), lease.ask(&"b".into()).expect("willing"))].into();
    for (process, arrives) in [(1, true), (2, false)] {
        let claimed = Lease {
            owner: Some("b".into()),
            hands_over: Some(Claimant::new(&"b".into(), 1, 1)),
            ..lease.clone()
        };
        let mut view = LeaseView::default();
        view.observe(vec![claimed], table.now);
        let held = BTreeSet::new();
        let planner = Planner { process, me: &"b".into(), held: &held, asked: &asks, avoided: &held };
        let plan = plan(&view, planner, &limits(), table.now, &mut StdRng::seed_from_u64(1));
        assert_eq!(!plan.claims.is_empty(), arrives, "process {process}");
    }
}

#[test]
fn what_was_asked_for_keeps_its_room_when_its_holder_dies() {
    let mut table = willing();
    let asked = |lease: &Lease| (lease.key.clone(), lease.ask(&"b".into()).expect("willing"));
    let asks: BTreeMap<LeaseKey, HandOff> = table.view.leases().take(2).map(asked).collect();
    let on_the_way =
        |lease: &Lease| asks.get(&lease.key).map_or_else(|| lease.clone(), |ask| lease.after_request(ask));
    let rows: Vec<Lease> = table.view.leases().map(on_the_way).collect();
    table.view.observe(rows.clone(), table.now);
    let late = table.now + FAILOVER;
    table.view.observe(rows, late);
    let held = BTreeSet::new();
    let planner = Planner { process: 1, me: &"b".into(), held: &held, asked: &asks, avoided: &held };
    let limits = Limits { max_leases: 3, ..limits() };
    let plan = plan(&table.view, planner, &limits, late, &mut StdRng::seed_from_u64(1));
    assert_eq!(plan.claims.len(), 3, "two that it asked for and one more");
    assert!(plan.claims.iter().all(|claim| claim.reason == Reason::Expired && !claim.ask));
    assert!(asks.keys().all(|key| plan.claims.iter().any(|claim| claim.key == *key)));
}

#[test]
fn a_look_that_is_older_than_a_request_makes_no_more_of_them() {
    let table = willing();
    let asked = |lease: &Lease| (lease.key.clone(), lease.ask(&"b".into()).expect("willing"));
    let asks: BTreeMap<LeaseKey, HandOff> = table.view.leases().take(2).map(asked).collect();
    let planner = Planner {
        process: 1,
        me: &"b".into(),
        held: &BTreeSet::new(),
        asked: &asks,
        avoided: &BTreeSet::new(),
    };
    let plan = plan(&table.view, planner, &limits(), table.now, &mut StdRng::seed_from_u64(1));
    assert_eq!((&plan.claims[..], plan.needed), (&[][..], 2));
}

#[test]
fn a_holder_that_takes_too_long_to_hand_over_is_robbed() {
    let mut table = willing();
    let lease = table.view.get(&(&shard(1)).into()).expect("a lease").clone();
    let ask = lease.ask(&"b".into()).expect("willing");
    let asks: BTreeMap<LeaseKey, HandOff> = [(lease.key.clone(), ask.clone())].into();
    table.view.observe(vec![lease.after_request(&ask)], table.now);
    let renewed = Lease { counter: 9, ..lease.after_request(&ask) };
    let late = table.now + limits().hand_off_timeout;
    table.view.observe(vec![renewed], late);
    let held = BTreeSet::new();
    let planner = Planner { process: 1, me: &"b".into(), held: &held, asked: &asks, avoided: &held };
    let plan = plan(&table.view, planner, &limits(), late, &mut StdRng::seed_from_u64(1));
    assert_eq!(
        plan.claims,
        [Claim { key: lease.key, reason: Reason::Stolen { from: "a".into() }, ask: false }]
    );
}

#[test]
fn stealing_stops_at_its_limit_and_at_the_workers_own() {
    let table = table("a: 1 2 3 4 5 6 7 8");
    assert_eq!(table.plan("b", &Limits { max_steals: 1, ..limits() }).claims.len(), 1);
    assert_eq!(table.plan("b", &Limits { max_leases: 3, ..limits() }).claims.len(), 3);
}

#[test]
fn a_difference_of_one_is_left_alone() {
    assert!(table("a: 1 2 | b: 3").plan("b", &limits()).claims.is_empty());
    assert!(table("a: 1 2 | b: 3 | c: 4 5").plan("b", &limits()).claims.is_empty());
}

#[test]
fn finished_shards_and_blocked_children_are_not_load_and_not_claimed() {
    let mut table = table("a: 1 | done: 2 3 4 | free: 5 | b: 6");
    let child = Lease { parents: [shard(1)].into(), ..Lease::new(&shard(7), Checkpoint::TrimHorizon) };
    let ready =
        Lease { parents: [shard(2), shard(99)].into(), ..Lease::new(&shard(8), Checkpoint::TrimHorizon) };
    let rows = table.view.leases().cloned().chain([child, ready]).collect();
    table.view.observe(rows, table.now);
    let plan = table.plan("c", &limits());
    assert_eq!((plan.total, plan.workers), (4, 3));
    assert!(keys(&plan).iter().all(|n| [5, 8].contains(n)), "{plan:?}");
}

#[test]
fn leases_beyond_the_limit_are_named_once_no_other_worker_took_them() {
    let (table, limits) = (table("free: 1 2 3"), Limits { max_leases: 2, ..limits() });
    let plan = table.plan("a", &limits);
    assert_eq!((plan.claims.len(), plan.left_over.len()), (2, 0));
    let later = Table { now: table.now + limits.patience, view: table.view };
    assert_eq!(later.plan("a", &limits).left_over.len(), 1);
}

#[test]
fn a_shard_that_is_avoided_is_nobodys_load_here_and_not_claimed() {
    let avoided = [2, 3, 4].map(|n| LeaseKey::from(&shard(n))).into();
    for (text, expected) in [("a: 1 | free: 2 | b: 3 5", vec![]), ("a: 1 | free: 2 | b: 3 4 5", vec![5])] {
        let table = table(text);
        for seed in 0..8 {
            let held = table.held_by("a");
            let planner = Planner {
                process: 1,
                me: &"a".into(),
                held: &held,
                asked: &BTreeMap::new(),
                avoided: &avoided,
            };
            let plan = plan(&table.view, planner, &limits(), table.now, &mut StdRng::seed_from_u64(seed));
            assert_eq!(keys(&plan), expected, "{text}, seed {seed}");
        }
    }
}

#[test]
fn a_lease_left_free_for_long_is_claimed_beyond_the_fair_share() {
    // Five leases, three workers: `a` has its share of two. The others may be at their own limits.
    let table = table("a: 1 2 | b: 3 | free: 4 | c: 5");
    let limits = limits();
    assert!(table.plan("a", &limits).claims.is_empty());
    let since = table.now;
    let (mut view, now) = (table.view, since + limits.patience);
    let moved =
        |lease: &Lease| Lease { counter: lease.counter + u64::from(lease.owner.is_some()), ..lease.clone() };
    view.observe(view.leases().map(moved).collect(), now);
    assert_eq!(keys(&Table { view, now }.plan("a", &limits)), [4]);
}

#[test]
fn a_lease_under_our_name_that_we_do_not_hold_is_claimed_only_once_expired() {
    // Nor are they stolen, as if the other process were another worker.
    let table = table("me: 1 2 3");
    let claims = |now| {
        by(&"me".into(), &BTreeSet::new(), |me| {
            plan(&table.view, me, &limits(), now, &mut StdRng::seed_from_u64(1))
        })
        .claims
    };
    assert!(claims(table.now).is_empty());
    assert_eq!(claims(table.now + FAILOVER).len(), 3);
}

/// A fleet on one table: each worker in turn looks, plans and claims, until a whole round claims nothing.
fn settle(
    mut owners: Vec<Option<usize>>,
    maxes: &[usize],
    steals: usize,
    seed: u64,
) -> (Vec<Option<usize>>, usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let (mut moves, mut rounds) = (0, 0u32);
    let name = |w: usize| format!("w{w}");
    let mut view = LeaseView::default();
    loop {
        let before = moves;
        for (me, max) in maxes.iter().enumerate() {
            let leases = owners
                .iter()
                .enumerate()
                .map(|(n, owner)| Lease {
                    owner: owner.map(|w| name(w).as_str().into()),
                    // Live workers renew: every owned lease is seen moving.
                    counter: owner.map_or(0, |_| u64::from(rounds)),
                    ..Lease::new(&shard(n), Checkpoint::TrimHorizon)
                })
                .collect();
            let now = start + FAILOVER * rounds / 2;
            view.observe(leases, now);
            let held = owners
                .iter()
                .enumerate()
                .filter(|(_, o)| **o == Some(me))
                .map(|(n, _)| (&shard(n)).into())
                .collect();
            let limits = Limits { max_leases: *max, max_steals: steals, ..limits() };
            let plan = by(&name(me).as_str().into(), &held, |me| plan(&view, me, &limits, now, &mut rng));
            let stolen = plan.claims.iter().filter(|c| matches!(c.reason, Reason::Stolen { .. })).count();
            assert!(stolen <= steals, "stole {stolen} of at most {steals}");
            for n in keys(&plan) {
                owners[n] = Some(me);
                moves += 1;
            }
            assert!(owners.iter().filter(|o| **o == Some(me)).count() <= *max, "over its limit");
        }
        rounds += 1;
        if (moves == before && rounds > 8) || rounds > 400 {
            return (owners, moves, rounds as usize);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_fleet_settles_evenly_and_then_nothing_moves(
        shards in 1usize..120,
        workers in 1usize..12,
        owned in 0usize..120,
        steals in prop_oneof![Just(1usize), Just(3), Just(usize::MAX)],
        seed: u64,
    ) {
        let owners = (0..shards).map(|n| (n < owned).then_some(0)).collect();
        let (owners, moves, rounds) = settle(owners, &vec![usize::MAX; workers], steals, seed);
        let counts: Vec<usize> = (0..workers).map(|w| owners.iter().filter(|o| **o == Some(w)).count()).collect();
        prop_assert!(owners.iter().all(Option::is_some));
        let (least, most) = (counts.iter().min().expect("a worker"), counts.iter().max().expect("a worker"));
        prop_assert!(most - least <= 1, "{:?}", counts);
        prop_assert!(rounds <= 400 && moves <= shards * 4, "{} moves in {} rounds", moves, rounds);
    }

    #[test]
    fn limits_are_kept_and_what_can_be_held_is_held(
        shards in 1usize..60,
        maxes in prop::collection::vec(1usize..20, 1..8),
        seed: u64,
    ) {
        let (owners, _, _) = settle(vec![None; shards], &maxes, usize::MAX, seed);
        let held = owners.iter().flatten().count();
        prop_assert_eq!(held, shards.min(maxes.iter().sum()));
    }
}

#[test]
fn a_lease_that_is_worked_on_is_load_although_its_row_is_gone() {
    let table = table("free: 1 2");
    let held = BTreeSet::from([LeaseKey::from(&shard(7))]);
    let limits = Limits { max_leases: 2, ..limits() };
    let plan = by(&"me".into(), &held, |me| {
        plan(&table.view, me, &limits, table.now, &mut StdRng::seed_from_u64(1))
    });
    assert_eq!((plan.claims.len(), plan.left_over.len()), (1, 0));
}

#[test]
fn a_lease_that_is_leaving_takes_room_until_it_has_left() {
    let table = table("a: 1 2 | free: 3");
    let leaving = |lease: &Lease| match lease.key == (&shard(1)).into() {
        true => Lease { owner: Some("b".into()), checkpoint_owner: Some("a".into()), ..lease.clone() },
        false => lease.clone(),
    };
    let mut view = LeaseView::default();
    view.observe(table.view.leases().map(leaving).collect(), table.now);
    let held = BTreeSet::from([1, 2].map(|n| LeaseKey::from(&shard(n))));
    let limits = Limits { max_leases: 2, ..limits() };
    let plan =
        by(&"a".into(), &held, |me| plan(&view, me, &limits, table.now, &mut StdRng::seed_from_u64(1)));
    assert_eq!((plan.claims.len(), plan.left_over.len()), (0, 0));
    assert_eq!((plan.total, plan.workers), (3, 2), "it is the load of the worker that asked for it");
}

#[test]
fn what_has_been_free_for_too_long_goes_before_what_is_fresh() {
    let start = Instant::now();
    let limits = Limits { max_leases: 1, ..limits() };
    let now = start + limits.patience;
    let lease = |n| Lease::new(&shard(n), Checkpoint::TrimHorizon);
    for (seed, long) in (0..40).map(|seed| (seed, usize::try_from(seed % 4).expect("small"))) {
        // At this very moment, it has been long enough.
        let mut view = LeaseView::default();
        view.observe(vec![lease(long)], start);
        view.observe((0..4).map(lease).collect(), now);
        let rng = &mut StdRng::seed_from_u64(seed);
        let plan = by(&"a".into(), &BTreeSet::new(), |me| plan(&view, me, &limits, now, rng));
        assert_eq!(keys(&plan), [long], "seed {seed}");
    }
}

/// `worker` stopped on purpose and left its leases to itself.
fn left_by(worker: &str, table: Table) -> Table {
    let left = |lease: &Lease| match lease.owner.as_ref().is_some_and(|owner| owner.as_str() == worker) {
        true => Lease { left_at: Some(lease.counter), ..lease.clone() },
        false => lease.clone(),
    };
    let (mut view, now) = (table.view, table.now);
    view.observe(view.leases().map(left).collect(), now);
    Table { view, now }
}

/// What `me` claims although it holds nothing.
fn returning(table: &Table, me: &str, limits: &Limits) -> Vec<(usize, Reason)> {
    let nothing = BTreeSet::new();
    let rng = &mut StdRng::seed_from_u64(1);
    let plan = by(&me.into(), &nothing, |me| plan(&table.view, me, limits, table.now, rng));
    let reasons: Vec<Reason> = plan.claims.iter().map(|claim| claim.reason.clone()).collect();
    keys(&plan).into_iter().zip(reasons).collect()
}

#[test]
fn a_worker_that_comes_back_takes_what_it_left_at_once_and_all_of_it() {
    let table = left_by("a", table("a: 1 2 3 | b: 4"));
    let claims = returning(&table, "a", &limits());
    assert_eq!(claims, [1, 2, 3].map(|n| (n, Reason::Returned)));
    let bounded = returning(&table, "a", &Limits { max_leases: 2, ..limits() });
    assert_eq!(bounded.len(), 2);
}

#[test]
fn a_lease_written_since_it_was_left_is_not_left_any_more() {
    let mut table = left_by("a", table("a: 1 | b: 2"));
    let renewed = |lease: &Lease| Lease { counter: lease.counter + 1, ..lease.clone() };
    table.view.observe(table.view.leases().map(renewed).collect(), table.now);
    assert_eq!(returning(&table, "a", &limits()), []);
}

/// `time` later: the living have renewed their leases, and what was left or has expired stands still.
fn rested(table: Table, time: Duration) -> Table {
    let now = table.now + time;
    let dead = |lease: &Lease| lease.owner == Some("dead".into());
    let (mut view, renewed) = (table.view, |lease: &Lease| match lease.is_left() || dead(lease) {
        true => lease.clone(),
        false => Lease { counter: lease.counter + 1, ..lease.clone() },
    });
    view.observe(view.leases().map(renewed).collect(), now);
    Table { view, now }
}

#[test]
fn what_a_worker_left_counts_as_its_load_and_is_taken_by_nobody_before_its_grace_is_over() {
    let grace = Limits { rejoin_grace: FAILOVER * 3, ..limits() };
    let table = rested(left_by("a", table("a: 1 2 3 | b: 4 5 6")), FAILOVER * 4 - Duration::from_millis(1));
    let (b, joiner) = (table.plan("b", &grace), table.plan("c", &grace));
    assert_eq!((b.claims.len(), b.workers), (0, 2));
    assert_eq!((joiner.claims.len(), joiner.workers), (1, 3));
    assert!(keys(&joiner).iter().all(|n| *n > 3), "{joiner:?}");
    let table = rested(table, Duration::from_millis(1));
    assert_eq!(keys(&table.plan("b", &grace)), [1, 2, 3]);
}

#[test]
fn within_the_grace_a_crashed_worker_takes_its_own_leases_once_they_have_expired() {
    let table = table("expired: 1 2 | b: 3 4");
    let grace = Limits { rejoin_grace: FAILOVER, ..limits() };
    assert_eq!(table.plan("b", &grace).claims, []);
    assert_eq!(returning(&table, "dead", &grace), [1, 2].map(|n| (n, Reason::Expired)));
}

#[test]
fn only_within_the_grace_does_a_crashed_worker_take_its_own_beyond_the_fair_share() {
    let crashed = || table("expired: 1 2 3 | b: 4 | c: 5");
    let grace = Limits { rejoin_grace: FAILOVER, ..limits() };
    assert_eq!(returning(&crashed(), "dead", &grace), [1, 2, 3].map(|n| (n, Reason::Expired)));
    assert_eq!(returning(&crashed(), "dead", &limits()).len(), 2);
    // Others keep to their share, also once the grace is over.
    assert_eq!(rested(crashed(), FAILOVER).plan("b", &grace).claims.len(), 2);
}

/// Two children of a shard that `a` has just finished.
fn split_by(a: &str, others: &str) -> Table {
    let before = table(&format!("{a}: 1 | {others}"));
    let (mut view, now) = (before.view, before.now);
    let finished = |lease: &Lease| match lease.key == (&shard(1)).into() {
        true => Lease { owner: None, checkpoint: Checkpoint::ShardEnd, counter: 1, ..lease.clone() },
        false => lease.clone(),
    };
    let child = |n| Lease { parents: [shard(1)].into(), ..Lease::new(&shard(n), Checkpoint::TrimHorizon) };
    view.observe(view.leases().map(finished).chain([child(8), child(9)]).collect(), now);
    Table { view, now }
}

#[test]
fn children_are_left_for_a_look_to_the_holder_of_their_parent_if_it_has_room() {
    let table = split_by("a", "a: 2 | b: 3 4 | c: 5 6");
    // Eight leases, three workers: each may have three.
    assert_eq!(keys(&table.plan("a", &limits())), [8, 9]);
    assert_eq!(keys(&table.plan("b", &limits())).len(), 0);
    let later = Table { now: table.now + limits().patience / 2, view: table.view };
    let limits = Limits { failover_time: FAILOVER * 9, ..limits() };
    assert_eq!(keys(&later.plan("b", &limits)).len(), 1);
}

#[test]
fn children_whose_parents_holder_has_its_share_are_anyones() {
    let table = split_by("a", "a: 2 3 4 | b: 5 | c: 6");
    assert_eq!(keys(&table.plan("b", &limits())), [8, 9]);
    let dead = split_by("dead", "b: 3 | c: 5");
    assert_eq!(keys(&dead.plan("b", &limits())).len(), 1);
}

#[test]
fn an_heir_takes_its_children_before_what_anyone_may_take() {
    let table = split_by("a", "a: 2 | b: 3 4 | free: 5 6");
    assert_eq!(keys(&table.plan("a", &Limits { max_leases: 3, ..limits() })), [8, 9]);
}

#[test]
fn no_more_children_are_left_to_their_heir_than_it_has_room_for() {
    // Seven leases, three workers: `a` may have one more.
    let table = split_by("a", "a: 2 3 | b: 4 | c: 5 6");
    assert_eq!(keys(&table.plan("b", &limits())).len(), 1);
}

#[test]
fn a_merged_shard_is_left_to_the_holder_of_its_first_parent_and_where_looks_are_rare_to_either() {
    let before = table("a: 1 4 | b: 2 5");
    let (mut view, now) = (before.view, before.now);
    let parents = [1, 2].map(shard);
    let finished = |lease: &Lease| match parents.iter().any(|parent| lease.key == parent.into()) {
        true => Lease { owner: None, checkpoint: Checkpoint::ShardEnd, counter: 1, ..lease.clone() },
        false => lease.clone(),
    };
    let merged = Lease { parents: parents.clone().into(), ..Lease::new(&shard(8), Checkpoint::TrimHorizon) };
    view.observe(view.leases().map(finished).chain([merged]).collect(), now);
    let table = Table { view, now };
    // Each has room for it.
    for (looks, me, claimed) in
        [(None, "a", vec![8]), (None, "b", vec![]), (Some(1.0), "a", vec![8]), (Some(1.0), "b", vec![8])]
    {
        let plan = table.plan(me, &Limits { looks_at_expired: looks, ..limits() });
        assert_eq!(keys(&plan), claimed, "{me}, {looks:?}");
    }
}

/// A fleet that balances by throughput, each worker in turn, until a whole round claims nothing; the owners
/// then, and how many leases moved.
fn settle_by_throughput(
    rates: &[u32],
    mut owners: Vec<usize>,
    workers: usize,
    seed: u64,
) -> (Vec<usize>, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let limits = Limits { balance: Balance::Throughput, ..limits() };
    let (now, name) = (Instant::now(), |w: usize| WorkerId::from(format!("w{w}")));
    let mut moves = 0;
    for _ in 0..200 {
        let before = moves;
        for me in 0..workers {
            let lease = |n: usize| Lease {
                owner: Some(name(owners[n])),
                throughput_kbps: Some(f64::from(rates[n])),
                ..Lease::new(&shard(n), Checkpoint::TrimHorizon)
            };
            let mut view = LeaseView::default();
            view.observe((0..rates.len()).map(lease).collect(), now);
            let mine = (0..rates.len()).filter(|n| owners[*n] == me).map(|n| (&shard(n)).into()).collect();
            let plan = by(&name(me), &mine, |me| plan(&view, me, &limits, now, &mut rng));
            for n in keys(&plan) {
                owners[n] = me;
                moves += 1;
            }
        }
        if moves == before {
            return (owners, moves);
        }
    }
    panic!("leases move without end: {rates:?}");
}

/// The load of each worker.
fn sums(rates: &[u32], owners: &[usize], workers: usize) -> Vec<u32> {
    let of = |w| rates.iter().zip(owners).filter(move |(_, owner)| **owner == w).map(|(rate, _)| rate);
    (0..workers).map(|w| of(w).sum()).collect()
}

/// The rates of "2x100 50".
fn rates(text: &str) -> Vec<f64> {
    let one = |text: &str| {
        let (times, rate) = text.split_once('x').unwrap_or(("1", text));
        vec![rate.parse().expect("a rate"); times.parse().expect("a number")]
    };
    text.split(' ').flat_map(one).collect()
}

#[test]
fn the_table_of_what_is_taken_by_throughput_holds() {
    for Row { line, cells } in rows(CASES, "weigh") {
        let now = Instant::now();
        let mut leases = Vec::new();
        for (owner, held) in cells[1].split(", ").map(|part| part.split_once(": ").expect("who: rates")) {
            leases.extend(rates(held).into_iter().zip(leases.len()..).map(|(rate, n)| Lease {
                owner: Some(owner.into()),
                throughput_kbps: Some(rate),
                ..Lease::new(&shard(n), Checkpoint::TrimHorizon)
            }));
        }
        let most = cells[2].strip_prefix("steals ").map(|most| most.parse().expect("a number"));
        let limits =
            Limits { balance: Balance::Throughput, max_steals: most.unwrap_or(usize::MAX), ..limits() };
        let parts = cells[3].split(", ").filter_map(|part| part.split_once(" of "));
        let mut expected: Vec<(String, f64)> = parts
            .flat_map(|(taken, from)| rates(taken).into_iter().map(|rate| (from.into(), rate)))
            .collect();
        expected.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
        let mut view = LeaseView::default();
        view.observe(leases, now);
        let table = Table { view, now };
        for seed in 0..8 {
            let held = table.held_by("foo");
            let plan = by(&"foo".into(), &held, |foo| {
                plan(&table.view, foo, &limits, now, &mut StdRng::seed_from_u64(seed))
            });
            let rate = |key| table.view.get(key).expect("a lease").throughput_kbps.expect("a rate");
            let mut taken: Vec<(String, f64)> = plan
                .claims
                .iter()
                .map(|claim| match &claim.reason {
                    Reason::Stolen { from } => (from.to_string(), rate(&claim.key)),
                    other => panic!("line {line}: {other:?}"),
                })
                .collect();
            taken.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
            assert_eq!(taken, expected, "line {line}, seed {seed}");
        }
    }
}

#[test]
fn by_throughput_one_hot_shard_weighs_as_much_as_many_cold_ones() {
    let rates = [900, 100, 100, 100, 100, 100, 100, 100, 100, 100];
    let (owners, moves) = settle_by_throughput(&rates, vec![0, 0, 0, 0, 0, 1, 1, 1, 1, 1], 2, 1);
    let sums = sums(&rates, &owners, 2);
    assert!(sums.iter().all(|sum| (780..=1020).contains(sum)), "{sums:?}");
    assert!(moves <= 5, "{moves}");
}

#[test]
fn by_throughput_idle_shards_are_spread_by_number() {
    let (owners, _) = settle_by_throughput(&[0; 9], vec![0; 9], 3, 1);
    let counts = sums(&[1; 9], &owners, 3);
    assert_eq!(counts, [3, 3, 3]);
    let (owners, _) = settle_by_throughput(&[0; 2], vec![0; 2], 3, 1);
    assert_ne!(owners[0], owners[1]);
}

#[test]
fn by_throughput_a_difference_within_a_tenth_is_left_alone() {
    let rates = [100, 100, 105, 105];
    assert_eq!(settle_by_throughput(&rates, vec![0, 0, 1, 1], 2, 1).1, 0);
}

#[test]
fn by_throughput_free_leases_go_to_whom_they_make_even() {
    let now = Instant::now();
    let row = |n: usize, owner: Option<&str>, kbps: Option<u32>| Lease {
        owner: owner.map(WorkerId::from),
        throughput_kbps: kbps.map(f64::from),
        ..Lease::new(&shard(n), Checkpoint::TrimHorizon)
    };
    let claims = |me: &str, rows: Vec<Lease>| {
        let mut view = LeaseView::default();
        view.observe(rows, now);
        let table = Table { view, now };
        keys(&table.plan(me, &Limits { balance: Balance::Throughput, ..limits() }))
    };
    // `a` has one lease, and more than half of the load.
    let rows = |free: [Option<u32>; 3]| {
        let held = [row(1, Some("a"), Some(500)), row(2, Some("b"), Some(50)), row(3, Some("b"), Some(50))];
        held.into_iter().chain((4..).zip(free).map(|(n, kbps)| row(n, None, kbps))).collect()
    };
    let even: Vec<Lease> = rows([Some(100), Some(100), Some(100)]);
    assert_eq!((claims("a", even.clone()), claims("b", even)), (vec![], vec![4, 5, 6]));
    // What is not known counts as much as the others do on average.
    let unknown: Vec<Lease> = rows([None, None, None]);
    assert_eq!((claims("a", unknown.clone()).len(), claims("b", unknown).len()), (1, 3));
    // The heavy one is left to whoever has room for it, but not by everybody.
    let heavy: Vec<Lease> = rows([Some(1000), Some(10), Some(10)]);
    let (a, b) = (claims("a", heavy.clone()), claims("b", heavy));
    assert!(a.contains(&4) || b.contains(&4), "{a:?} {b:?}");
}

/// Leases of which is known what their shards bring, by throughput: owners, if any, and KiB/s, numbered from 1.
fn weighed(leases: &[(Option<&str>, f64)]) -> Table {
    let now = Instant::now();
    let row = |(n, (owner, kbps)): (usize, &(Option<&str>, f64))| Lease {
        owner: owner.map(WorkerId::from),
        throughput_kbps: Some(*kbps),
        ..Lease::new(&shard(n), Checkpoint::TrimHorizon)
    };
    let mut view = LeaseView::default();
    view.observe((1..).zip(leases).map(row).collect(), now);
    Table { view, now }
}

#[test]
fn by_throughput_what_takes_a_worker_more_than_a_tenth_beyond_the_mean_comes_last() {
    // Each lease weighs 300 more than it brings: a mean of 4400, and up to 4840 is even.
    let fits = weighed(&[(None, 4540.0), (None, 4640.0), (Some("b"), 1410.0), (Some("c"), 1410.0)]);
    let limits = Limits { balance: Balance::Throughput, max_leases: 1, ..limits() };
    for seed in 0..16 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let plan = by(&"a".into(), &BTreeSet::new(), |a| plan(&fits.view, a, &limits, fits.now, rng));
        assert_eq!(keys(&plan), [1], "seed {seed}");
    }
}

#[test]
fn by_throughput_a_worker_that_has_the_mean_takes_nothing_more() {
    // Each lease weighs 100 more than it brings: a mean of 1650.
    for (mine, claimed) in [(1550.0, vec![]), (1549.0, vec![3])] {
        let table = weighed(&[(Some("a"), mine), (Some("b"), 2550.0 - mine), (None, 450.0)]);
        let plan = table.plan("a", &Limits { balance: Balance::Throughput, ..limits() });
        assert_eq!(keys(&plan), claimed, "{mine}");
    }
}

#[test]
fn by_throughput_a_worker_with_no_room_takes_nothing_however_much_it_would_help() {
    let table = weighed(&[(Some("a"), 10.0), (Some("b"), 500.0), (Some("b"), 500.0)]);
    for (max_leases, taken) in [(1, 0), (2, 1)] {
        let limits = Limits { balance: Balance::Throughput, max_leases, ..limits() };
        assert_eq!(table.plan("a", &limits).claims.len(), taken, "{max_leases} allowed");
    }
}

/// The moves of each lease, in steps, of workers that watch one another balance by throughput for that many
/// steps of 20 s; `kbps` is what a shard brings at a step.
fn moves_at(
    shards: usize,
    workers: usize,
    steps: u32,
    seed: u64,
    kbps: impl Fn(usize, u32) -> u32,
) -> Vec<Vec<u32>> {
    let step = Duration::from_secs(20);
    let (mut rng, start) = (StdRng::seed_from_u64(seed), Instant::now());
    let limits = Limits { balance: Balance::Throughput, failover_time: step * 2, ..limits() };
    let name = |w: usize| WorkerId::from(format!("w{w}"));
    let mut owners: Vec<usize> = (0..shards).map(|n| n % workers).collect();
    let mut meters: Vec<Meter> = (0..shards).map(|_| Meter::new(None, start)).collect();
    let mut views: Vec<LeaseView> = (0..workers).map(|_| LeaseView::default()).collect();
    let mut moves = vec![Vec::new(); shards];
    for n in 1..=steps {
        let now = start + step * n;
        let rates: Vec<f64> = meters
            .iter_mut()
            .enumerate()
            .map(|(shard, meter)| {
                meter.add(kbps(shard, n) as usize * 1024 * 20);
                meter.read(now)
            })
            .collect();
        let look = |owners: &[usize]| -> Vec<Lease> {
            let lease = |(n_th, owner): (usize, &usize)| Lease {
                owner: Some(name(*owner)),
                counter: u64::from(n) * 10,
                throughput_kbps: Some(rates[n_th]),
                ..Lease::new(&shard(n_th), Checkpoint::TrimHorizon)
            };
            owners.iter().enumerate().map(lease).collect()
        };
        views.iter_mut().for_each(|view| view.observe(look(&owners), now).clear());
        for me in 0..workers {
            let mine = (0..shards).filter(|n| owners[*n] == me).map(|n| (&shard(n)).into()).collect();
            let plan = by(&name(me), &mine, |planner| plan(&views[me], planner, &limits, now, &mut rng));
            for moved in keys(&plan) {
                owners[moved] = me;
                moves[moved].push(n);
                views.iter_mut().for_each(|view| view.observe(look(&owners), now).clear());
            }
        }
    }
    moves
}

#[test]
fn by_throughput_shards_that_burst_in_turn_stay_where_they_are() {
    // Two minutes: three steps the one, three the other.
    let kbps = |shard: usize, n: u32| match shard {
        0 | 1 => {
            if (n / 3) as usize % 2 == shard {
                2000
            } else {
                0
            }
        }
        _ => 100,
    };
    for seed in 0..10 {
        let moves = moves_at(8, 2, 6 * 180, seed, kbps);
        // Until each has been seen to burst once or twice.
        let late = moves.iter().flatten().filter(|step| **step > 30).count();
        assert_eq!(late, 0, "{moves:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn by_throughput_no_lease_moves_more_than_twice_an_hour_however_rates_change(
        rates in prop::collection::vec((0u32..3000, 0u32..3000, 1u32..200, 0u32..200), 4..14),
        workers in 2usize..5,
        seed: u64,
    ) {
        let kbps = |shard: usize, n: u32| {
            let (one, other, half_period, shift) = rates[shard];
            if ((n + shift) / half_period).is_multiple_of(2) { one } else { other }
        };
        let moves = moves_at(rates.len(), workers, 4 * 180, seed, kbps);
        for moves in &moves {
            prop_assert!(moves.windows(3).all(|three| three[2] - three[0] >= 180), "{:?}", moves);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn by_throughput_repeated_plans_reach_a_fixed_point_with_no_more_than_a_heavy_lease_between(
        rates in prop::collection::vec(0u32..5000, 1..80),
        workers in 1usize..9,
        all_on_one: bool,
        seed: u64,
    ) {
        let owners = (0..rates.len()).map(|n| if all_on_one { 0 } else { n % workers }).collect();
        let (owners, moves) = settle_by_throughput(&rates, owners, workers, seed);
        prop_assert!(moves <= rates.len() * 3, "{} moves", moves);
        let sums = sums(&rates, &owners, workers);
        let mean = f64::from(rates.iter().sum::<u32>()) / workers as f64;
        let heaviest = f64::from(*rates.iter().max().expect("a rate"));
        // Idle shards weigh a tenth of the mean lease.
        let most = 1.35 * mean + heaviest + 10.0;
        prop_assert!(sums.iter().all(|sum| f64::from(*sum) <= most), "{:?}, mean {}", sums, mean);
    }
}
