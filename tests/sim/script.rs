//! What happens to a fleet in one seed: its setup, its producers and its faults, drawn before anything runs.
//!
//! Each seed draws first which kinds of faults it has at all: few kinds often show more than all at once.

use std::{cell::Cell, fmt, time::Duration};

use kinesis_consumer::{
    Balance, Config, Heartbeat, InitialPosition, OnShutdown, ShardOrder,
    io::{faulty::Fault, memory::Limits},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    faces::Face,
    fleet::{Begins, Edit, Setup},
    line::Quality,
    processor::Temper,
    resets::To,
};

/// One thing that is done to the fleet.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A worker joins.
    Join,
    /// One worker dies; another with the same or a new id takes its place after a while, if at all.
    Crash {
        nth: usize,
        back: Option<Back>,
    },
    /// One worker is asked to stop.
    Stop {
        nth: usize,
        back: Option<Back>,
    },
    /// One worker stands still.
    Freeze {
        nth: usize,
        millis: u64,
    },
    /// A second process with the id of a worker that runs.
    Twin {
        nth: usize,
    },
    /// Two processes with one id that start in the same moment.
    Twins,
    /// The user's code of one worker, or of all, misbehaves.
    Temper {
        nth: Option<usize>,
        temper: Temper,
        millis: u64,
    },
    /// Calls of one worker, or of all, fail.
    Faults {
        nth: Option<usize>,
        door: Door,
        faults: Vec<(f64, Fault)>,
        millis: u64,
    },
    /// The line of one worker, or of all, is bad.
    Line {
        nth: Option<usize>,
        door: Door,
        quality: Quality,
        millis: u64,
    },
    Split(usize),
    Merge(usize),
    Double,
    Halve,
    /// Scans of the table show the past, each row its own.
    Stale {
        by: u64,
        millis: u64,
    },
    /// An operator sets one shard, or all, to where reading is to begin.
    Reset {
        nth: Option<usize>,
        to: To,
    },
    /// The oldest records of a shard leave the stream, all but this share.
    Trim {
        nth: usize,
        keep: f64,
    },
    /// A closed shard leaves the stream.
    Forget(usize),
    DropTable,
    DeleteWorkerRow(usize),
    DeleteRow(usize),
    EditRow(usize, Edit),
}

impl Step {
    /// Its name.
    pub(crate) fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '(', '{']).next().unwrap_or_default().to_lowercase()
    }
}

/// How a worker comes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    pub(crate) same_id: bool,
    pub(crate) after_millis: u64,
}

/// Which door of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    Table,
    Stream,
    Both,
}

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) setup: Setup,
    pub(crate) workers: usize,
    /// Producers put so many records every so many milliseconds.
    pub(crate) rate: (usize, u64),
    pub(crate) length: u64,
    /// With their times in milliseconds, in order.
    pub(crate) steps: Vec<(u64, Step)>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setup, workers, rate, length, steps } = self;
        writeln!(f, "heartbeats: {:?}", setup.beats)?;
        let (records, every) = rate;
        writeln!(f, "{workers} workers, {} shards, {records} records every {every} ms", setup.shards)?;
        writeln!(f, "{:?}, {} records in one, of {} bytes", setup.faces, setup.aggregated, setup.payload)?;
        if setup.limits != Limits::none() {
            writeln!(f, "reads are limited as by AWS")?;
        }
        if !setup.clock_behind.is_zero() {
            writeln!(f, "the hosts' clocks are {:?} ahead of the stream's", setup.clock_behind)?;
        }
        if let Some(Begins { at, head }) = setup.begins {
            writeln!(
                f,
                "begins with what comes {at} ms after the stream was made, {head} ms before its workers"
            )?;
        }
        if !setup.unequal.is_empty() {
            writeln!(f, "most leases of each worker, in turn: {:?}", setup.unequal)?;
        }
        if setup.hot > 0.0 {
            writeln!(f, "{:.2} of the records have one key", setup.hot)?;
        }
        writeln!(f, "{:?}\n{:?}", setup.config, setup.temper)?;
        for (at, step) in steps {
            writeln!(f, "{:>5}.{:03}  {step:?}", at / 1000, at % 1000)?;
        }
        writeln!(f, "{:>5}.{:03}  all faults end", length / 1000, length % 1000)
    }
}

/// The kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Membership,
    Freeze,
    Temper,
    TableFaults,
    StreamFaults,
    Lines,
    Reshard,
    Operator,
    Twin,
}

const KINDS: [Kind; 9] = [
    Kind::Membership,
    Kind::Freeze,
    Kind::Temper,
    Kind::TableFaults,
    Kind::StreamFaults,
    Kind::Lines,
    Kind::Reshard,
    Kind::Operator,
    Kind::Twin,
];

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl Script {
    /// The run of one seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut config = config(rng);
        let patience = StdRng::seed_from_u64(seed ^ 0x4ea1).random_range(1000..=12_000);
        config.health_max_age = Some(Duration::from_millis(patience));
        let failover = millis(config.failover_time);
        let most = if rng.random_bool(0.2) { 8 } else { 4 };
        let workers = rng.random_range(1..=most);
        let most = if rng.random_bool(0.1) { 32 } else { 8 };
        let shards = rng.random_range(1..=most);
        let length = rng.random_range(5 * failover..=20 * failover).min(60_000);
        let drawn: Vec<Kind> = KINDS.iter().copied().filter(|_| rng.random_bool(0.35)).collect();
        let from_start = config.initial_position == InitialPosition::TrimHorizon;
        let allowed = |kind: &Kind| match kind {
            Kind::Operator => from_start,
            Kind::Reshard => shards <= 16,
            _ => true,
        };
        let kinds: Vec<Kind> = drawn.iter().copied().filter(allowed).collect();
        let mut steps = Vec::new();
        for _ in 0..rng.random_range(0..=12) {
            if let Some(kind) = kinds.choose(rng) {
                steps.push((rng.random_range(0..length), step(*kind, failover, rng)));
            }
        }
        // Drawn apart: a seed makes the same of everything else under each kind of heartbeat.
        let (beats, apart) = (Beats::of(seed), &mut StdRng::seed_from_u64(seed ^ 0xbea7));
        if beats != Beats::Lease && kinds.contains(&Kind::Operator) {
            let row = |rng: &mut StdRng| Step::DeleteWorkerRow(rng.random_range(0..64));
            steps.extend((0..2).map(|_| (apart.random_range(0..length), row(apart))));
        }
        steps.sort_by_key(|(at, _)| *at);
        let slow = if rng.random_bool(0.5) { rng.random_range(0..300) } else { 0 };
        let later = if rng.random_bool(0.2) { rng.random_range(0.0..1.0) } else { 0.0 };
        let durable = if rng.random_bool(0.2) { rng.random_range(0.0..1.0) } else { 0.0 };
        let prepares = if rng.random_bool(0.2) { rng.random_range(0.0..1.0) } else { 0.0 };
        let temper = Temper { slow, later, durable, prepares, ..Temper::default() };
        let faces = match rng.random_range(0..8) {
            0 => vec![Face::Each],
            1 => vec![Face::Pull],
            2 => vec![Face::Processor, Face::Each, Face::Pull],
            _ => vec![Face::Processor],
        };
        let aggregated = if rng.random_bool(0.2) { rng.random_range(2..=5) } else { 1 };
        // Drawn apart: a seed makes the same of everything else. A parent's row that is removed is lost without
        // its order.
        if !kinds.contains(&Kind::Operator) && StdRng::seed_from_u64(seed ^ 0xbea9).random_bool(0.15) {
            config.shard_order = ShardOrder::None;
        }
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x4e5e7);
        // Nor where rows are removed: a parent that was reset and has no row any more looks finished beside
        // children that had been claimed before.
        let unharmed = !kinds.contains(&Kind::Operator) && config.shard_order == ShardOrder::ParentsFirst;
        if from_start && unharmed && apart.random_bool(0.4) {
            let resets =
                (0..apart.random_range(1..=3)).map(|_| (apart.random_range(0..length), reset(apart)));
            steps.extend(resets.collect::<Vec<_>>());
            steps.sort_by_key(|(at, _)| *at);
        }
        // Without latency a call and its answer are one step, and nothing can come between.
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x1a7e);
        let latency = if apart.random_bool(0.7) { apart.random_range(1..=30) } else { 0 };
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x11_1175);
        let limits = if apart.random_bool(0.4) { Limits::aws() } else { Limits::none() };
        // Large ones share their bytes, but not when they are packed.
        let large = aggregated == 1 && apart.random_bool(0.15);
        let mut payload = if large { apart.random_range(16..=256) << 10 } else { 0 };
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x96ace);
        if apart.random_bool(0.25) {
            let grace = apart.random_range(failover / 10..=3 * failover);
            config.rejoin_grace = Duration::from_millis(grace);
            if apart.random_bool(0.5) {
                config.on_shutdown = OnShutdown::Keep;
            }
            let count = apart.random_range(1..=4);
            let returns =
                (0..count).map(|_| (apart.random_range(0..length), returns(failover + grace, apart)));
            steps.extend(returns.collect::<Vec<_>>());
            steps.sort_by_key(|(at, _)| *at);
        }
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x3e164);
        let mut hot = 0.0;
        if apart.random_bool(0.2) {
            config.balance = Balance::Throughput;
            if apart.random_bool(0.5) {
                hot = apart.random_range(0.1..0.8);
            }
            // Those of few bytes are all as good as idle.
            if aggregated == 1 && payload == 0 && apart.random_bool(0.8) {
                payload = apart.random_range(1..=32) << 10;
            }
        }
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x40_0e5);
        let unequal = match apart.random_bool(0.15) {
            true => (0..apart.random_range(2..=4)).map(|_| apart.random_range(1..=8)).collect(),
            false => Vec::new(),
        };
        let apart = &mut StdRng::seed_from_u64(seed ^ 0xc1_0c4);
        // A reset names a time of the host's.
        let is_reset = steps.iter().any(|(_, step)| matches!(step, Step::Reset { .. }));
        let clock_behind = match apart.random_bool(0.15) && !is_reset {
            true => Duration::from_millis(apart.random_range(1..=3_600_000)),
            false => Duration::ZERO,
        };
        let apart = &mut StdRng::seed_from_u64(seed ^ 0xb4d_6e7);
        if apart.random_bool(0.25) {
            config.memory_budget = apart.random_range(10..=16) << 20;
            if aggregated == 1 && apart.random_bool(0.7) {
                payload = apart.random_range(128..=512) << 10;
            }
        }
        let apart = &mut StdRng::seed_from_u64(seed ^ 0xa7_71e);
        let mut begins = None;
        if from_start && !is_reset && apart.random_bool(0.15) {
            let head = if apart.random_bool(0.7) { apart.random_range(1000..=10_000) } else { 0 };
            let at = match apart.random_range(0..4) {
                0 => apart.random_range(-60_000..=0),
                1 | 2 => apart.random_range(0..=head.max(1)),
                _ => head + apart.random_range(0..=length as i64),
            };
            begins = Some(Begins { at, head: head as u64 });
        }
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x57a1e);
        if apart.random_bool(0.2) {
            for _ in 0..apart.random_range(1..=3) {
                let (by, millis) =
                    (apart.random_range(1..=failover / 2), apart.random_range(failover / 10..=8 * failover));
                steps.push((apart.random_range(0..length), Step::Stale { by, millis }));
            }
            steps.sort_by_key(|(at, _)| *at);
        }
        // Where nothing is set back: what is to be read again is not there any more.
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x7_4140);
        let set_back = steps.iter().any(|(_, step)| matches!(step, Step::Reset { .. }));
        if from_start
            && begins.is_none()
            && !set_back
            && !kinds.contains(&Kind::Operator)
            && apart.random_bool(0.25)
        {
            let losses = (0..apart.random_range(1..=4)).map(|_| (apart.random_range(0..length), loss(apart)));
            steps.extend(losses.collect::<Vec<_>>());
            steps.sort_by_key(|(at, _)| *at);
        }
        let setup = Setup {
            begins,
            clock_behind,
            unequal,
            hot,
            limits,
            payload,
            faces,
            aggregated,
            latency,
            recording: false,
            config,
            beats,
            temper,
            ..Setup::new(seed, shards)
        };
        let rate = (rng.random_range(1..=5), rng.random_range(50..=500));
        Self { setup, workers, rate, length, steps }
    }
}

/// What the leases of a fleet live by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beats {
    Lease,
    Worker,
    /// Some of its workers have a heartbeat, as while a fleet changes over.
    Mixed,
}

thread_local! {
    static SCENARIO: Cell<Beats> = const { Cell::new(Beats::Lease) };
}

/// What leases live by in the scenarios of this thread, until it is dropped.
pub(crate) struct Mode(());

impl Mode {
    pub(crate) fn of(beats: Beats) -> Self {
        SCENARIO.set(beats);
        Self(())
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        SCENARIO.set(Beats::Lease);
    }
}

impl Beats {
    /// What leases live by in a scenario.
    pub(crate) fn of_scenario() -> Self {
        SCENARIO.get()
    }

    fn of(seed: u64) -> Self {
        match std::env::var("SIM_HEARTBEAT").as_deref() {
            Ok("lease") => Self::Lease,
            Ok("worker") => Self::Worker,
            Ok("mixed") => Self::Mixed,
            Ok(other) => panic!("SIM_HEARTBEAT is lease, worker or mixed, not {other}"),
            Err(_) => match StdRng::seed_from_u64(seed ^ 0xbea8).random_range(0..5) {
                0 | 1 => Self::Lease,
                2 | 3 => Self::Worker,
                _ => Self::Mixed,
            },
        }
    }

    /// What the leases of one worker live by, the `no`th that starts.
    pub(crate) fn of_worker(self, no: usize) -> Heartbeat {
        match self {
            Self::Worker => Heartbeat::Worker,
            Self::Mixed if no.is_multiple_of(2) => Heartbeat::Worker,
            Self::Lease | Self::Mixed => Heartbeat::Lease,
        }
    }
}

fn config(rng: &mut StdRng) -> Config {
    let failover = *[1000, 1000, 2000, 2000, 3000, 5000].choose(rng).expect("some");
    let between =
        |rng: &mut StdRng, least: u64, most: u64| Duration::from_millis(rng.random_range(least..=most));
    let limit = |rng: &mut StdRng, most| rng.random_bool(0.2).then(|| rng.random_range(1..=most));
    Config {
        initial_position: match rng.random_bool(0.85) {
            true => InitialPosition::TrimHorizon,
            false => InitialPosition::Latest,
        },
        failover_time: Duration::from_millis(failover),
        max_leases_for_worker: limit(rng, 6),
        max_leases_to_steal_at_one_time: limit(rng, 3),
        scan_budget: *[5.0, 5.0, 1.0, 50.0].choose(rng).expect("some"),
        on_shutdown: if rng.random_bool(0.85) { OnShutdown::Release } else { OnShutdown::Keep },
        idle_time_between_reads: between(rng, 200, 1000),
        max_records: rng.random_range(5..=50),
        checkpoint_interval: between(rng, 100, 3000),
        retry_delay_min: between(rng, 10, 200),
        retry_delay_max: between(rng, 200, 2000),
        stall_timeout: between(rng, 3000, 30_000),
        shutdown_timeout: between(rng, 500, 5000),
        ..Config::default()
    }
}

fn step(kind: Kind, failover: u64, rng: &mut StdRng) -> Step {
    let nth = rng.random_range(0..64);
    let some = rng.random_bool(0.7).then_some(nth);
    let span = rng.random_range(failover / 10..=4 * failover);
    let back = |rng: &mut StdRng| {
        let (same_id, after_millis) = (rng.random_bool(0.5), rng.random_range(0..=2 * failover));
        rng.random_bool(0.7).then_some(Back { same_id, after_millis })
    };
    match kind {
        Kind::Membership => match rng.random_range(0..4) {
            0 => Step::Join,
            1 => Step::Stop { nth, back: back(rng) },
            _ => Step::Crash { nth, back: back(rng) },
        },
        Kind::Freeze => Step::Freeze { nth, millis: span },
        Kind::Twin if rng.random_bool(0.5) => Step::Twins,
        Kind::Twin => Step::Twin { nth },
        Kind::Temper => Step::Temper { nth: some, temper: temper(failover, rng), millis: span },
        Kind::TableFaults => {
            Step::Faults { nth: some, door: Door::Table, faults: faults(failover, rng), millis: span }
        }
        Kind::StreamFaults => {
            Step::Faults { nth: some, door: Door::Stream, faults: faults(failover, rng), millis: span }
        }
        Kind::Lines => {
            let door = *[Door::Table, Door::Stream, Door::Both].choose(rng).expect("some");
            Step::Line { nth: some, door, quality: quality(failover, rng), millis: span }
        }
        Kind::Reshard => match rng.random_range(0..6) {
            0 | 1 => Step::Split(nth),
            2 | 3 => Step::Merge(nth),
            4 => Step::Double,
            _ => Step::Halve,
        },
        Kind::Operator => match rng.random_range(0..9) {
            0 => Step::DropTable,
            1 | 2 => Step::DeleteRow(nth),
            3 | 4 => Step::Stale { by: rng.random_range(1..=failover / 2), millis: span },
            5 => Step::EditRow(nth, Edit::NoOwner),
            6 => Step::EditRow(nth, Edit::OtherOwner),
            7 => Step::EditRow(nth, Edit::Rewind),
            _ => Step::EditRow(nth, Edit::Counter),
        },
    }
}

/// A worker that dies or stops, and comes back with its id before others take its leases, or after it.
fn returns(time: u64, rng: &mut StdRng) -> Step {
    let nth = rng.random_range(0..64);
    let back = Some(Back { same_id: true, after_millis: rng.random_range(0..=2 * time) });
    match rng.random_bool(0.5) {
        true => Step::Crash { nth, back },
        false => Step::Stop { nth, back },
    }
}

fn loss(rng: &mut StdRng) -> Step {
    let nth = rng.random_range(0..64);
    match rng.random_bool(0.6) {
        true => Step::Trim { nth, keep: rng.random_range(0.0..1.0) },
        false => Step::Forget(nth),
    }
}

fn reset(rng: &mut StdRng) -> Step {
    let nth = rng.random_bool(0.5).then(|| rng.random_range(0..64));
    let to = match rng.random_range(0..4) {
        0 | 1 => To::Oldest,
        2 => To::Ago(rng.random_range(0..20_000)),
        _ => To::Next,
    };
    Step::Reset { nth, to }
}

fn temper(failover: u64, rng: &mut impl Rng) -> Temper {
    let slow = rng.random_range(0..=2 * failover);
    let chance = rng.random_range(0.05..1.0);
    match rng.random_range(0..7) {
        0 => Temper { slow, ..Temper::default() },
        1 => Temper { fails: chance, ..Temper::default() },
        2 => Temper { panics: chance / 3.0, slow: slow / 10, ..Temper::default() },
        3 => Temper { gives_up: chance / 3.0, ..Temper::default() },
        4 => Temper { later: chance, prepares: chance / 2.0, slow, ..Temper::default() },
        5 => Temper { halves: chance, durable: chance, slow: slow / 10, ..Temper::default() },
        _ => Temper { stuck: true, ..Temper::default() },
    }
}

/// Faults of 30, 60 or 100 % of the calls, in all, or a few of each kind.
fn faults(failover: u64, rng: &mut impl Rng) -> Vec<(f64, Fault)> {
    let share = *[0.05, 0.3, 0.6, 1.0].choose(rng).expect("some");
    let delay = Duration::from_millis(rng.random_range(1..=failover / 2));
    let kinds = [
        Fault::Unavailable,
        Fault::Throttled,
        Fault::LostReply,
        Fault::Delay(delay),
        Fault::DelayedReply(delay),
    ];
    match rng.random_range(0..10) {
        0..6 => vec![(share, *kinds.choose(rng).expect("some"))],
        6 => vec![(share, Fault::Denied)],
        _ => kinds.iter().map(|fault| (share / 5.0, *fault)).collect(),
    }
}

fn quality(failover: u64, rng: &mut impl Rng) -> Quality {
    match rng.random_range(0..4) {
        0 => Quality { deaf: true, ..Quality::default() },
        1 => Quality { latency: rng.random_range(1..=50), ..Quality::default() },
        2 => Quality { latency: rng.random_range(50..=failover / 2), ..Quality::default() },
        _ => Quality { expires: rng.random_range(0.0..1.0), ..Quality::default() },
    }
}
