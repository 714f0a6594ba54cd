//! Draws a script from a seed.
//!
//! Each seed draws first which kinds of faults it has at all: few kinds often show more than all at once.

use std::time::Duration;

use kinesis_consumer::{
    Balance, Config, InitialPosition, OnShutdown, ShardOrder,
    io::{faulty::Fault, memory::Limits},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    faces::Face,
    fleet::{Begins, Edit, Setup},
    line::Quality,
    processor::Temper,
    resets::To,
    script::{Back, Beats, Door, Script, Step},
};

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

/// Those that may last for minutes.
const LASTING: [Kind; 5] = [Kind::Freeze, Kind::Temper, Kind::TableFaults, Kind::StreamFaults, Kind::Lines];

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl Script {
    /// The run of one seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut draft = Draft::of(seed);
        draft.reset();
        draft.limit_reads();
        draft.come_back();
        draft.balance_by_throughput();
        draft.limit_leases();
        draft.set_clocks();
        draft.limit_memory();
        draft.begin_at_a_time();
        draft.show_the_past();
        draft.lose_records();
        draft.measure();
        draft.outlast_rows();
        draft.last();
        draft.make_again();
        draft.script
    }
}

/// A script while it is drawn. Each part is drawn apart: a seed makes the same of everything else without it.
struct Draft {
    seed: u64,
    script: Script,
    kinds: Vec<Kind>,
    failover: u64,
    from_start: bool,
}

impl Draft {
    /// The fleet, and the kinds of faults that it has.
    fn of(seed: u64) -> Self {
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
        // A parent's row that is removed is lost without its order.
        let unordered = StdRng::seed_from_u64(seed ^ 0xbea9).random_bool(0.15);
        if unordered && !kinds.contains(&Kind::Operator) {
            config.shard_order = ShardOrder::None;
        }
        // Without latency a call and its answer are one step, and nothing can come between.
        let apart = &mut StdRng::seed_from_u64(seed ^ 0x1a7e);
        let latency = if apart.random_bool(0.7) { apart.random_range(1..=30) } else { 0 };
        let rate = (rng.random_range(1..=5), rng.random_range(50..=500));
        let setup = Setup {
            faces,
            aggregated,
            latency,
            recording: false,
            config,
            beats,
            temper,
            ..Setup::new(seed, shards)
        };
        let script = Script { setup, workers, rate, length, steps };
        Self { seed, script, kinds, failover, from_start }
    }

    fn apart(&self, what: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ what)
    }

    /// Some moment of the script.
    fn moment(&self, rng: &mut StdRng) -> u64 {
        rng.random_range(0..self.script.length)
    }

    fn add(&mut self, steps: Vec<(u64, Step)>) {
        self.script.steps.extend(steps);
        self.script.steps.sort_by_key(|(at, _)| *at);
    }

    fn is_reset(&self) -> bool {
        self.script.steps.iter().any(|(_, step)| matches!(step, Step::Reset { .. }))
    }

    fn reset(&mut self) {
        let rng = &mut self.apart(0x4e5e7);
        // Not where rows are removed: a parent that was reset and has no row any more looks finished beside
        // children that had been claimed before.
        let unharmed = !self.kinds.contains(&Kind::Operator)
            && self.script.setup.config.shard_order == ShardOrder::ParentsFirst;
        if self.from_start && unharmed && rng.random_bool(0.4) {
            let resets = (0..rng.random_range(1..=3)).map(|_| (self.moment(rng), reset(rng))).collect();
            self.add(resets);
        }
    }

    fn limit_reads(&mut self) {
        let (rng, setup) = (&mut self.apart(0x11_1175), &mut self.script.setup);
        setup.limits = if rng.random_bool(0.4) { Limits::aws() } else { Limits::none() };
        // Large ones share their bytes, but not when they are packed.
        let large = setup.aggregated == 1 && rng.random_bool(0.15);
        setup.payload = if large { rng.random_range(16..=256) << 10 } else { 0 };
    }

    fn come_back(&mut self) {
        let rng = &mut self.apart(0x96ace);
        if rng.random_bool(0.25) {
            let grace = rng.random_range(self.failover / 10..=3 * self.failover);
            let config = &mut self.script.setup.config;
            config.rejoin_grace = Duration::from_millis(grace);
            if rng.random_bool(0.5) {
                config.on_shutdown = OnShutdown::Keep;
            }
            let count = rng.random_range(1..=4);
            let time = self.failover + grace;
            let returns = (0..count).map(|_| (self.moment(rng), returns(time, rng))).collect();
            self.add(returns);
        }
    }

    fn balance_by_throughput(&mut self) {
        let (rng, setup) = (&mut self.apart(0x3e164), &mut self.script.setup);
        if rng.random_bool(0.2) {
            setup.config.balance = Balance::Throughput;
            if rng.random_bool(0.5) {
                setup.hot = rng.random_range(0.1..0.8);
            }
            // Those of few bytes are all as good as idle.
            if setup.aggregated == 1 && setup.payload == 0 && rng.random_bool(0.8) {
                setup.payload = rng.random_range(1..=32) << 10;
            }
        }
    }

    fn limit_leases(&mut self) {
        let rng = &mut self.apart(0x40_0e5);
        if rng.random_bool(0.15) {
            let most = (0..rng.random_range(2..=4)).map(|_| rng.random_range(1..=8));
            self.script.setup.unequal = most.collect();
        }
    }

    fn set_clocks(&mut self) {
        let rng = &mut self.apart(0xc1_0c4);
        // A reset names a time of the host's.
        if rng.random_bool(0.15) && !self.is_reset() {
            self.script.setup.clock_behind = Duration::from_millis(rng.random_range(1..=3_600_000));
        }
    }

    fn limit_memory(&mut self) {
        let (rng, setup) = (&mut self.apart(0xb4d_6e7), &mut self.script.setup);
        if rng.random_bool(0.25) {
            setup.config.memory_budget = rng.random_range(10..=16) << 20;
            if setup.aggregated == 1 && rng.random_bool(0.7) {
                setup.payload = rng.random_range(128..=512) << 10;
            }
        }
    }

    fn begin_at_a_time(&mut self) {
        let rng = &mut self.apart(0xa7_71e);
        if self.from_start && !self.is_reset() && rng.random_bool(0.15) {
            let head = if rng.random_bool(0.7) { rng.random_range(1000..=10_000) } else { 0 };
            let at = match rng.random_range(0..4) {
                0 => rng.random_range(-60_000..=0),
                1 | 2 => rng.random_range(0..=head.max(1)),
                _ => head + rng.random_range(0..=self.script.length as i64),
            };
            self.script.setup.begins = Some(Begins { at, head: head as u64 });
        }
    }

    /// Looks at the table that are late.
    fn show_the_past(&mut self) {
        let rng = &mut self.apart(0x57a1e);
        if rng.random_bool(0.2) {
            let stale = |rng: &mut StdRng| Step::Stale {
                by: rng.random_range(1..=self.failover / 2),
                millis: rng.random_range(self.failover / 10..=8 * self.failover),
            };
            let count = rng.random_range(1..=3);
            let drawn = (0..count).map(|_| (stale(rng), self.moment(rng)));
            let looks = drawn.map(|(step, at)| (at, step)).collect();
            self.add(looks);
        }
    }

    fn lose_records(&mut self) {
        let rng = &mut self.apart(0x7_4140);
        // Where nothing is set back: what is to be read again is not there any more.
        let read_once = self.from_start
            && self.script.setup.begins.is_none()
            && !self.is_reset()
            && !self.kinds.contains(&Kind::Operator);
        if read_once && rng.random_bool(0.25) {
            let losses = (0..rng.random_range(1..=4)).map(|_| (self.moment(rng), loss(rng))).collect();
            self.add(losses);
        }
    }

    fn measure(&mut self) {
        let rng = &mut self.apart(0x3ea5);
        self.script.setup.measured = rng.random_bool(0.25);
        if self.script.setup.measured {
            let fault = |rng: &mut StdRng| {
                let (nth, fault) = (rng.random_range(0..64), metrics_fault(rng));
                let nth = rng.random_bool(0.5).then_some(nth);
                let (door, faults) = (Door::Metrics, vec![(1.0, fault)]);
                // They are published once a minute.
                Step::Faults { nth, door, faults, millis: rng.random_range(1000..=120_000) }
            };
            let drawn = (0..rng.random_range(0..=2)).map(|_| (fault(rng), self.moment(rng)));
            let faults = drawn.map(|(step, at)| (at, step)).collect();
            self.add(faults);
        }
    }

    fn make_again(&mut self) {
        let rng = &mut self.apart(0x4ea_6a17);
        if rng.random_bool(0.02) {
            let setup = &mut self.script.setup;
            setup.made_again = Some(rng.random_range(1..=2 * setup.shards));
        }
    }

    /// Rarely one fault goes on for minutes, and all else meanwhile, at its ease.
    fn last(&mut self) {
        let rng = &mut self.apart(0x3107e5);
        if rng.random_bool(0.02) {
            let (at, millis) = (self.moment(rng), rng.random_range(60_000..=900_000));
            let kind = *LASTING.choose(rng).expect("some");
            self.stretch(self.script.length + millis);
            self.add(vec![(at, step(kind, self.failover, rng).lasting(millis))]);
        }
    }

    /// Rows of shards that have ended are deleted a minute later: some scripts go on for longer.
    fn outlast_rows(&mut self) {
        let rng = &mut self.apart(0x07_1a57);
        if self.kinds.contains(&Kind::Reshard) && rng.random_bool(0.15) {
            self.stretch(rng.random_range(120_000..=300_000));
        }
    }

    fn stretch(&mut self, longer: u64) {
        let Script { rate, length, steps, .. } = &mut self.script;
        steps.iter_mut().for_each(|(at, _)| *at = *at * longer / *length);
        rate.1 = rate.1.max(longer / 500);
        *length = longer;
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

/// Of every call: those are a minute apart.
fn metrics_fault(rng: &mut impl Rng) -> Fault {
    let late = Duration::from_secs(*[1, 60, 3600].choose(rng).expect("some"));
    let kinds = [
        Fault::Unavailable,
        Fault::Throttled,
        Fault::Denied,
        Fault::LostReply,
        Fault::Delay(late),
        Fault::DelayedReply(late),
    ];
    *kinds.choose(rng).expect("some")
}

fn quality(failover: u64, rng: &mut impl Rng) -> Quality {
    match rng.random_range(0..4) {
        0 => Quality { deaf: true, ..Quality::default() },
        1 => Quality { latency: rng.random_range(1..=50), ..Quality::default() },
        2 => Quality { latency: rng.random_range(50..=failover / 2), ..Quality::default() },
        _ => Quality { expires: rng.random_range(0.0..1.0), ..Quality::default() },
    }
}
