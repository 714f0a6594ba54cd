//! Workers that come back to what they left, and the grace that others give them.

use super::*;

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
fn what_a_worker_lost_by_its_own_clock_and_nobody_took_yet_is_its_load_still() {
    // It stood still, and has dropped what it held. For its peers its leases have not expired, or wait for it.
    let frozen = table("a: 1 2 3 | b: 4 5 | c: 6 7 | expired: 8");
    assert_eq!(returning(&frozen, "a", &limits()), []);
    let joiner = returning(&frozen, "d", &limits());
    assert_eq!(joiner, [(8, Reason::Expired)]);
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
