//! Free and expired leases: who claims them, and the children of shards that have ended.

use super::*;

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

#[test]
fn what_is_worked_on_is_load_and_not_claimed_again_whatever_its_row_says() {
    for rows in ["free: 1 2 | b: 3", "expired: 1 2 | b: 3", "c: 1 2 | b: 3", "a: 1 2 | b: 3", "b: 3"] {
        let table = table(rows);
        let held = BTreeSet::from([1, 2].map(|n| LeaseKey::from(&shard(n))));
        let rng = &mut StdRng::seed_from_u64(1);
        let plan = by(&"a".into(), &held, |me| plan(&table.view, me, &limits(), table.now, rng));
        assert_eq!((keys(&plan), plan.total, plan.workers), (vec![], 3, 2), "{rows}");
    }
}
