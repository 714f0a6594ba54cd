//! What is taken from living workers by number, by request or by force.

use super::*;

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

#[test]
fn a_lease_that_was_handed_over_is_left_to_its_next_holder_until_that_has_had_the_time_to_claim_it() {
    let Table { mut view, now } = table("a: 1 | b: 2 3 4");
    let from_c = Claimant::new(&"c".into(), 1, 1);
    let arriving = |lease: &Lease| match lease.owner == Some("b".into()) {
        true => Lease { hands_over: Some(from_c.clone()), counter: lease.counter + 1, ..lease.clone() },
        false => lease.clone(),
    };
    let rows: Vec<Lease> = view.leases().map(arriving).collect();
    let handed_over = |lease: &Lease| Lease { checkpoint_owner: Some("c".into()), ..lease.clone() };
    let asked = rows.iter().map(|row| if row.hands_over.is_some() { handed_over(row) } else { row.clone() });
    view.observe(asked.collect(), now);
    for (passed, taken) in [(Duration::ZERO, 0), (FAILOVER - Duration::from_millis(1), 0), (FAILOVER, 1)] {
        // All of them are alive, one way or another.
        let renewed = |row: &Lease| Lease { counter: row.counter + passed.as_millis() as u64, ..row.clone() };
        let now = now + passed;
        view.observe(rows.iter().map(renewed).collect(), now);
        let held = [LeaseKey::from(&shard(1))].into();
        let plan = by(&"a".into(), &held, |a| plan(&view, a, &limits(), now, &mut StdRng::seed_from_u64(1)));
        assert_eq!(plan.claims.len(), taken, "{passed:?}");
    }
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
        let (all, workers) = (counts.iter().map(|(_, count)| count).sum::<usize>(), counts.len());
        let (floor, share) = (all / workers, all.div_ceil(workers));
        let beyond: usize = counts.iter().map(|(_, count)| count.saturating_sub(share)).sum();
        let lacking: usize = counts.iter().map(|(_, count)| floor.saturating_sub(*count)).sum();
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
        assert_eq!(taken.len(), beyond.max(lacking), "no more than it takes: {counts:?}");
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

/// The requests of `b` for two of the leases, and the rows after them.
fn two_asked_for(table: &Table) -> (BTreeMap<LeaseKey, HandOff>, Vec<Lease>) {
    let asked = |lease: &Lease| (lease.key.clone(), lease.ask(&"b".into()).expect("willing"));
    let asks: BTreeMap<LeaseKey, HandOff> = table.view.leases().take(2).map(asked).collect();
    let on_the_way =
        |lease: &Lease| asks.get(&lease.key).map_or_else(|| lease.clone(), |ask| lease.after_request(ask));
    let rows = table.view.leases().map(on_the_way).collect();
    (asks, rows)
}

#[test]
fn a_lease_on_its_way_counts_for_where_it_goes_and_is_taken_once_it_arrives() {
    let mut table = willing();
    let (asks, rows) = two_asked_for(&table);
    table.view.observe(rows, table.now);
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
    let given = |claim: &Claim| claim.reason == Reason::HandedOver { from: "a".into() };
    assert!(plan.claims.iter().all(|claim| given(claim) && !claim.ask && !claim.is_anyones()));
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
    let (asks, rows) = two_asked_for(&table);
    table.view.observe(rows.clone(), table.now);
    let late = table.now + FAILOVER;
    table.view.observe(rows, late);
    let (held, nothing) = (BTreeSet::new(), BTreeMap::new());
    let claims = |asked, max_leases, seed| {
        let planner = Planner { process: 1, me: &"b".into(), held: &held, asked, avoided: &held };
        let limits = Limits { max_leases, ..limits() };
        plan(&table.view, planner, &limits, late, &mut StdRng::seed_from_u64(seed)).claims
    };
    for seed in 0..16 {
        let claims = claims(&asks, 3, seed);
        assert_eq!(claims.len(), 3, "two that it asked for and one more");
        assert!(claims.iter().all(|claim| claim.reason == Reason::Expired && claim.is_anyones()));
        assert!(asks.keys().all(|key| claims.iter().any(|claim| claim.key == *key)), "seed {seed}");
    }
    // No room is kept for what it does not know of.
    assert_eq!(claims(&nothing, 1, 0).len(), 1);
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
fn what_was_asked_for_of_a_holder_that_is_gone_keeps_its_room_although_the_look_is_older() {
    let table = willing();
    let lease = table.view.get(&(&shard(1)).into()).expect("a lease").clone();
    let asks: BTreeMap<LeaseKey, HandOff> =
        [(lease.key.clone(), lease.ask(&"b".into()).expect("willing"))].into();
    let (held, limits) = (BTreeSet::new(), Limits { max_leases: 1, ..limits() });
    let planner = Planner { process: 1, me: &"b".into(), held: &held, asked: &asks, avoided: &held };
    for seed in 0..20 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let plan = plan(&table.view, planner, &limits, table.now + FAILOVER, rng);
        assert_eq!(plan.claims, [Claim { key: lease.key.clone(), reason: Reason::Expired, ask: false }]);
    }
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
