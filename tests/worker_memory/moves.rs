//! What users notice of moves: how long a shard is silent while workers are replaced, added and killed under
//! load, at the default settings; and that nothing comes twice, out of order, or not at all.

use std::time::Duration;

use kinesis_consumer::{
    Config, InitialPosition, Lease, Verdict,
    io::faulty::{Fault, Faults, Op},
};
use tokio::{task::JoinSet, time::Instant};

use crate::world::{FAILOVER, Running, SECOND, World, config, run, until};

/// The longest that a record may wait while workers are replaced in turn.
const SILENCE: Duration = Duration::from_millis(1500);
/// A record comes to each shard so often.
const BETWEEN: Duration = Duration::from_millis(100);

/// A fleet under a steady load, on calls that take some time.
struct Load {
    world: World,
    shards: usize,
    /// When each record was put, into each shard.
    put: Vec<Instant>,
    seed: u64,
    workers: Vec<(String, Running)>,
}

/// Where records were late, repeated, lost or out of order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// The longest time from a record's put to its processing.
    silence: Duration,
    repeated: usize,
    lost: usize,
    disorder: usize,
}

impl Load {
    fn new(shards: usize, seed: u64) -> Self {
        let world = World::shards(shards);
        for op in [Op::ListLeases, Op::GetLease, Op::WriteLease, Op::HandOff, Op::CreateLease, Op::Beat] {
            world.faults.chance(op, 1.0, Fault::Delay(Duration::from_millis(10)));
        }
        for op in [Op::OpenIterator, Op::ReadRecords, Op::ListShards] {
            world.faults.chance(op, 1.0, Fault::Delay(Duration::from_millis(20)));
        }
        Self { world, shards, put: Vec::new(), seed, workers: Vec::new() }
    }

    fn start(&mut self, name: &str) {
        let config = Config { initial_position: InitialPosition::TrimHorizon, ..Config::default() };
        let seed = name.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        let worker = self.world.worker_with(name, config).seed(seed).build(self.world.probe());
        self.workers.push((name.to_owned(), run(worker.expect("valid"))));
    }

    fn take(&mut self, name: &str) -> Running {
        let at = self.workers.iter().position(|(is, _)| is == name).expect("it runs");
        self.workers.remove(at).1
    }

    /// Puts one record into each shard, and waits for the next time to.
    async fn step(&mut self) {
        for shard in 0..self.shards {
            self.world.put(shard, [self.put.len()]);
        }
        self.put.push(Instant::now());
        tokio::time::sleep(BETWEEN).await;
    }

    async fn go_on(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.step().await;
        }
    }

    /// Goes on until the running workers hold all leases, none two more than another; says how long it took.
    async fn until_even(&mut self) -> Duration {
        let began = Instant::now();
        while !self.is_even() {
            assert!(began.elapsed() < 60 * SECOND, "{:?}", self.world.owners());
            self.step().await;
        }
        began.elapsed()
    }

    fn is_even(&self) -> bool {
        let owners = self.world.owners();
        let load = |name: &String| owners.iter().filter(|owner| *owner == name).count();
        let loads: Vec<usize> = self.workers.iter().map(|(name, _)| load(name)).collect();
        let (Some(least), Some(most)) = (loads.iter().min(), loads.iter().max()) else { return false };
        let moving = self.world.table.rows().iter().any(|row| row.checkpoint_owner.is_some());
        most - least <= 1 && loads.iter().sum::<usize>() == self.shards && !moving
    }

    /// Waits until all is processed, and looks at what the processors saw of records from the `from`-th on.
    async fn findings(&self, from: usize) -> Findings {
        let wanted = self.put.len();
        for shard in 0..self.shards {
            until(format!("{wanted} records of shard {shard}"), || {
                let last = self.world.trace.records(shard);
                last.iter().any(|record| *record == (wanted - 1).to_string())
            })
            .await;
        }
        let mut findings = Findings::default();
        let mut seen = vec![Vec::new(); self.shards];
        for entry in self.world.trace.entries() {
            let shard: usize = entry.shard.as_str().rsplit('-').next().expect("n").parse().expect("a number");
            let Some(batch) = entry.what.strip_prefix("batch ") else { continue };
            for n in batch.split(' ').map(|n| n.parse::<usize>().expect("a number")).filter(|n| *n >= from) {
                seen[shard].push(n);
                let waited = entry.at.saturating_duration_since(self.put[n]);
                findings.silence = findings.silence.max(waited);
            }
        }
        for mut seen in seen {
            findings.disorder += seen.windows(2).filter(|pair| pair[1] < pair[0]).count();
            let all = seen.len();
            seen.sort_unstable();
            seen.dedup();
            findings.repeated += all - seen.len();
            findings.lost += wanted - from - seen.len();
        }
        findings
    }
}

#[tokio::test(start_paused = true)]
async fn a_rolling_restart_keeps_no_record_waiting_and_repeats_none() {
    for seed in 0..12 {
        let mut load = Load::new(12, seed);
        ["a", "b", "c"].iter().for_each(|name| load.start(name));
        load.until_even().await;
        load.go_on(8 * SECOND + Duration::from_millis(270 * seed)).await;
        let from = load.put.len();
        for (old, new) in [("a", "d"), ("b", "e"), ("c", "f")] {
            // The next one is there before the old one goes, or some time later.
            if seed % 2 == 0 {
                load.start(new);
                load.go_on(4 * SECOND + Duration::from_millis(130 * seed)).await;
            }
            let (old, mut stopping) = (load.take(old), JoinSet::new());
            stopping.spawn(old.stop());
            while stopping.try_join_next().is_none() {
                load.step().await;
            }
            load.go_on(4 * SECOND + Duration::from_millis(170 * seed)).await;
            if seed % 2 == 1 {
                load.start(new);
                load.go_on(4 * SECOND + Duration::from_millis(130 * seed)).await;
            }
            assert!(load.is_even(), "{:?}", load.world.owners());
        }
        let findings = load.findings(from).await;
        println!("seed {seed}: {findings:?}");
        let expected = Findings { silence: findings.silence, ..Findings::default() };
        assert_eq!(findings, expected, "seed {seed}");
        assert!(findings.silence <= SILENCE, "seed {seed}: {findings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_grows_from_one_to_four_is_even_soon_and_again_after_a_stop_and_a_crash() {
    for seed in 0..6 {
        let mut load = Load::new(32, seed);
        load.start("a");
        load.until_even().await;
        load.go_on(5 * SECOND + Duration::from_millis(270 * seed)).await;
        let from = load.put.len();
        ["b", "c", "d"].iter().for_each(|name| load.start(name));
        let joined = load.until_even().await;
        load.go_on(15 * SECOND + Duration::from_millis(370 * seed)).await;
        let findings = load.findings(from).await;
        let stopped = load.take("b");
        let mut stopping = JoinSet::new();
        stopping.spawn(stopped.stop());
        let stop = load.until_even().await;
        load.go_on(15 * SECOND + Duration::from_millis(370 * seed)).await;
        let findings_after = load.findings(from).await;
        load.take("c").crash().await;
        let crash = load.until_even().await;
        println!(
            "seed {seed}: even {joined:?} after joins, {stop:?} after a stop, {crash:?} after a crash; {findings:?} {findings_after:?}"
        );
        assert!(joined <= 5 * SECOND, "{joined:?}");
        assert!(stop <= SILENCE, "{stop:?}");
        assert!(crash <= FAILOVER + SILENCE, "{crash:?}");
        for findings in [findings, findings_after] {
            let expected = Findings { silence: findings.silence, ..Findings::default() };
            assert_eq!(findings, expected, "seed {seed}");
            assert!(findings.silence <= SILENCE, "seed {seed}: {findings:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_code_holds_on_to_a_lease_that_was_asked_for_looks_no_more_often() {
    let world = World::shards(2);
    (0..2).for_each(|shard| world.put(shard, ["never done"]));
    let faults = Faults::new(1);
    let stuck = world.probe_with(|_, _| std::future::pending());
    let first = run(world.cut_off_by(&faults, "a", config()).build(stuck).expect("valid"));
    until("both leases", || world.owners() == ["a", "a"]).await;
    let second = run(world.worker("b").build(world.probe()).expect("valid"));
    until("a request", || world.table.rows().iter().any(|row| row.checkpoint_owner.is_some())).await;
    tokio::time::sleep(FAILOVER / 2).await;
    let looks = faults.calls(Op::ListLeases);
    tokio::time::sleep(FAILOVER).await;
    let looks = faults.calls(Op::ListLeases) - looks;
    assert!(looks <= 12, "{looks} looks in {FAILOVER:?}");
    assert!(world.table.rows().iter().any(|row| row.checkpoint_owner.is_some()), "it is still asked for");
    second.crash().await;
    first.crash().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_over_is_noticed_at_once_however_little_may_be_read() {
    let world = World::shards(20);
    let config = Config { scan_budget: 0.1, ..config() };
    let slow = || {
        world.probe_with(|_, _| async {
            tokio::time::sleep(5 * SECOND).await;
            Ok(Verdict::Done)
        })
    };
    let first = run(world.worker_with("a", config.clone()).build(slow()).expect("valid"));
    until("all leases", || world.owners().iter().all(|owner| owner == "a")).await;
    (0..20).for_each(|shard| world.put(shard, ["in hand while it is asked for"]));
    until("records in hand", || (0..20).all(|shard| !world.trace.batches(shard).is_empty())).await;
    let second = run(world.worker_with("b", config).build(slow()).expect("valid"));
    let claimed_by = |name: &str| {
        let is_of = |row: &&Lease| row.hands_over.as_ref().is_some_and(|by| by.worker().as_str() == name);
        world.table.rows().iter().filter(is_of).count()
    };
    let is_given = |row: &Lease| row.checkpoint_owner.is_none() && row.holder() == Some(&"b".into());
    until("a hand-over", || world.table.rows().iter().any(is_given)).await;
    let began = Instant::now();
    until("an even spread", || claimed_by("b") == 10).await;
    assert!(began.elapsed() <= 4 * SECOND, "{:?}", began.elapsed());
    second.stop().await;
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_and_is_not_handed_over_counts_as_taken() {
    let world = World::shards(8);
    (0..8).for_each(|shard| world.put(shard, ["never done"]));
    let stuck = world.probe_with(|_, _| std::future::pending());
    let first = run(world.worker("a").build(stuck).expect("valid"));
    until("records in hand", || (0..8).all(|shard| !world.trace.batches(shard).is_empty())).await;
    let config = Config { max_leases_to_steal_at_one_time: Some(2), ..config() };
    let second = run(world.worker_with("b", config).build(world.probe()).expect("valid"));
    let asked_for = || world.table.rows().iter().filter(|row| row.checkpoint_owner.is_some()).count();
    until("requests", || asked_for() == 2).await;
    let began = Instant::now();
    while began.elapsed() < FAILOVER {
        tokio::time::sleep(SECOND / 10).await;
        assert_eq!(asked_for(), 2);
    }
    second.crash().await;
    first.crash().await;
}
