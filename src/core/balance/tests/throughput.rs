//! Balance by what the shards bring.

use super::*;

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
