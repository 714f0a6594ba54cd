//! Fleets of real workers under faults, on one paused clock, each rule checked at every step.
//!
//! - `cargo test --test simulation`: a few seeds, the named scenarios, and the sabotages.
//! - `SIM_SEEDS=20000 cargo test --release --test simulation random -- --nocapture`: many seeds, and what
//!   they amount to. `SIM_FIRST=n` begins at another one, `SIM_JOBS=n` sets the threads.
//! - `SIM_SEED=7 cargo test --test simulation random -- --nocapture`: one seed, with all that happened.
//!
//! A failing seed is shrunk: steps of its script, workers, shards, records and time are left out as long as it still
//! fails, and the command that runs the rest is printed. A new fault is a
//! `Step` in `sim/script.rs`, drawn in `sim/draw.rs`, and what it does in `sim/run.rs`; a new rule is a check in `sim/rules.rs`, with
//! a sabotage that it must catch.

mod sim;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kinesis_consumer::Config;
use sim::{
    fleet::{Setup, World},
    processor::PANIC,
    run::{Outcome, run},
    script::{Script, Step},
    shrink::{Cuts, shrink},
};
use tokio::time::Instant;

/// Seeds in a plain `cargo test`.
const SEEDS: u64 = 40;

/// Panics that are part of the simulation say nothing.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let simulated = info.payload().downcast_ref::<String>().is_some_and(|text| text.contains(PANIC))
                || info.payload().downcast_ref::<&str>().is_some_and(|text| text.contains(PANIC));
            if !simulated {
                usual(info);
            }
        }));
    });
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

/// What to read when a script fails.
fn explain(script: &Script, outcome: &Outcome) -> String {
    format!("{script}\n{}\n{}\n", outcome.trace, outcome.violations.join("\n"))
}

#[test]
fn random_fleets_keep_every_promise() {
    quiet();
    if let Some(seed) = number("SIM_SEED") {
        let script = Cuts::read(|name| std::env::var(name).ok()).of(&Script::draw(seed));
        let outcome = run(&script, true);
        println!("{script}\n{}", outcome.trace);
        assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
        return;
    }
    let (first, count) = (number("SIM_FIRST").unwrap_or(0), number("SIM_SEEDS").unwrap_or(SEEDS));
    let jobs = number("SIM_JOBS")
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
    let (next, failed, sum) = (AtomicU64::new(first), Mutex::new(Vec::new()), Mutex::new(Sum::default()));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while failed.lock().expect("no panic").len() < 10 {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let outcome = run(&Script::draw(seed), false);
                    sum.lock().expect("no panic").add(seed, &outcome);
                    if let Some(violation) = outcome.violations.first() {
                        println!("seed {seed}: {violation}");
                        failed.lock().expect("no panic").push(seed);
                    }
                }
            });
        }
    });
    println!("{}\n{:.1?} of wall time", sum.into_inner().expect("no panic"), start.elapsed());
    println!("the same again: SIM_FIRST={first} SIM_SEEDS={count} cargo test --test simulation random");
    let mut failed = failed.into_inner().expect("no panic");
    failed.sort_unstable();
    if let Some(seed) = failed.first() {
        let whole = Script::draw(*seed);
        let cuts = shrink(&whole);
        let script = cuts.of(&whole);
        let (all, rest) = (Cuts::default().command(*seed), cuts.command(*seed));
        panic!(
            "seed {seed} fails. Repeat it with\n\n    {all}\n\nor what is left of it, which is shown here, with\n\n    \
             {rest}\n\n{}\nfailed: {failed:?}",
            explain(&script, &run(&script, true))
        );
    }
}

/// What all seeds together amount to.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    simulated: Duration,
    records: u64,
    deliveries: u64,
    claims: u64,
    stolen_alive: u64,
    handed_over: u64,
    calls: u64,
    throttled: u64,
    faults: BTreeMap<String, u64>,
    /// And its seed.
    longest_recovery: (Duration, u64),
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        let counts = outcome.counts;
        self.seeds += 1;
        self.simulated += outcome.simulated;
        self.records += counts.records;
        self.deliveries += counts.deliveries;
        self.claims += counts.claims;
        self.stolen_alive += counts.stolen_alive;
        self.handed_over += counts.handed_over;
        self.calls += counts.calls;
        self.throttled += counts.throttled;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        self.longest_recovery = self.longest_recovery.max((outcome.recovered, seed));
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.simulated.as_secs_f64() / 3600.0;
        writeln!(f, "{} seeds, {hours:.1} simulated hours, {} calls", self.seeds, self.calls)?;
        let Self { records, deliveries, throttled, .. } = self;
        writeln!(
            f,
            "{records} records, {deliveries} deliveries, {throttled} reads refused by the limits of shards"
        )?;
        let (claims, handed_over, alive) = (self.claims, self.handed_over, self.stolen_alive);
        writeln!(f, "{claims} claims: {handed_over} handed over, {alive} more from living holders")?;
        let (longest, seed) = self.longest_recovery;
        writeln!(f, "longest recovery after the last fault: {longest:?} (seed {seed})")?;
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(f, "faults: {}", faults.join(", "))
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    quiet();
    for seed in 0..8 {
        let script = Script::draw(seed);
        let (first, second) = (run(&script, true).trace, run(&script, true).trace);
        let differs = first.lines.iter().zip(&second.lines).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.lines.len(), second.lines.len(), "seed {seed}");
    }
}

/// Rows that a person removed make shards be read again that had been read: within the limit of leases that is work
/// for more workers than the stream seems to need, and before what is new all comes again.
#[test]
fn a_fleet_that_reads_again_what_had_been_read_is_given_the_workers_and_the_time_for_it() {
    let script = |shards, config: fn(Config) -> Config, rate, length, steps| {
        let setup = Setup::new(1, shards);
        Script { setup: Setup { config: config(setup.config), ..setup }, workers: 2, rate, length, steps }
    };
    let few_leases = |config| Config { max_leases_for_worker: Some(3), ..config };
    let small_reads = |config| Config { max_records: 12, ..config };
    let mut scripts: Vec<Script> = (0..6)
        .map(|nth| vec![(13_235, Step::Double), (30_020, Step::DeleteRow(nth))])
        .map(|steps| script(3, few_leases, (2, 74), 32_286, steps))
        .collect();
    let steps = vec![(13_604, Step::Merge(0)), (54_390, Step::DeleteRow(0))];
    scripts.push(script(2, small_reads, (4, 58), 60_000, steps));
    for script in scripts {
        let outcome = run(&script, true);
        assert!(outcome.violations.is_empty(), "{}", explain(&script, &outcome));
    }
}

#[tokio::test(start_paused = true)]
async fn two_workers_read_everything_although_one_crashes_and_comes_back() {
    let mut world = World::new(Setup::new(1, 4));
    world.start("a");
    world.start("b");
    world.put(100);
    world.advance(Duration::from_secs(3)).await;
    world.crash(0).await;
    world.put(100);
    world.advance(Duration::from_secs(1)).await;
    world.start("a");
    world.put(50);
    let read = world.until(Duration::from_secs(20), |world| world.observer.unread().is_empty()).await;
    let trace = world.observer.trace();
    let violations = world.observer.violations();
    assert!(read && violations.is_empty(), "{trace}\n{violations:#?}");
    assert_eq!(world.close().await, 0, "tasks are left");
}
