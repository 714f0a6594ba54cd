//! Plays a script; what must hold in the end is asked in `finale.rs`.

use std::{collections::BTreeMap, time::Duration};

use kinesis_consumer::{WorkerError, io::faulty::Op};
use rand::RngExt;
use tokio::time::Instant;

use super::{
    fleet::{Begins, Edit, World},
    instances::Life,
    line::Quality,
    observer::Counts,
    script::{Back, Door, Script, Step},
    trace::Trace,
};

/// No stream is doubled beyond this.
const MOST_SHARDS: usize = 40;

/// What came out of one run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    /// How long after the last fault everything was read.
    pub(crate) recovered: Duration,
    pub(crate) simulated: Duration,
    /// Faults by kind: calls that met one, and what else was done to the fleet.
    pub(crate) faults: BTreeMap<String, u64>,
}

/// Runs a script on a runtime of its own.
pub(crate) fn run(script: &Script, recording: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(play(script, recording, |_| ()))
}

/// Plays a script in a world that `prepare` may have sabotaged.
pub(crate) async fn play(script: &Script, recording: bool, prepare: impl FnOnce(&mut World)) -> Outcome {
    let mut setup = script.setup.clone();
    setup.recording = recording;
    let mut world = World::new(setup);
    prepare(&mut world);
    let start = Instant::now();
    let mut player =
        Player { start, due: BTreeMap::new(), names: 0, needed: 1, done: BTreeMap::new(), world };
    player.script(script).await;
    let mut recovered = Duration::ZERO;
    if player.world.observer.violations().is_empty() {
        let gone = match script.setup.made_again {
            Some(shards) => player.with_another_stream(script, shards).await,
            None => false,
        };
        if !gone {
            recovered = player.finale(script).await;
        }
    }
    let mut faults = player.world.faults_met();
    faults.append(&mut player.done);
    let (observer, simulated) = (player.world.observer.clone(), start.elapsed());
    let left = player.world.close().await;
    if left > 0 && observer.violations().is_empty() {
        observer.violate("world", format!("{left} tasks are left when everything has ended"));
    }
    Outcome {
        violations: observer.violations(),
        trace: observer.trace(),
        counts: observer.counts(),
        recovered,
        simulated,
        faults,
    }
}

/// What is to be done later.
#[derive(Debug)]
pub(super) enum Due {
    Thaw(usize),
    Temper(usize),
    Faults(usize, Door),
    Line(usize, Door),
    Fresh,
    Start(Option<String>),
}

pub(super) struct Player {
    start: Instant,
    /// By time and a running number.
    pub(super) due: BTreeMap<(u64, usize), Due>,
    names: usize,
    /// So many leases the workers must have room for.
    pub(super) needed: usize,
    /// Steps that met what they were meant for, by kind.
    done: BTreeMap<String, u64>,
    pub(super) world: World,
}

impl Player {
    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn later(&mut self, millis: u64, due: Due) {
        let key = (self.now() + millis, self.due.len() + self.names * 1000);
        let key = (key.0, (key.1..).find(|n| !self.due.contains_key(&(key.0, *n))).expect("a number"));
        self.due.insert(key, due);
    }

    pub(super) fn start_worker(&mut self, name: Option<String>) {
        self.names += 1;
        let name = name.unwrap_or_else(|| format!("w{}", self.names));
        self.world.start(&name);
    }

    /// What comes into the stream, and becomes of its shards, before the application's first start.
    async fn head(&mut self, millis: u64, (count, every): (usize, u64)) {
        let (mut put, step) = (0, millis / 4 + 1);
        while self.now() < millis {
            self.world.put(count);
            put += 1;
            tokio::time::sleep(Duration::from_millis(every)).await;
            if put * every > step {
                put = 0;
                let nth = self.world.rng.random_range(0..64);
                if self.world.rng.random_bool(0.5) { self.world.split(nth) } else { self.world.merge(nth) }
            }
        }
        self.start = Instant::now();
    }

    async fn script(&mut self, script: &Script) {
        if let Some(Begins { head, .. }) = script.setup.begins {
            self.head(head, script.rate).await;
        }
        for _ in 0..script.workers {
            self.start_worker(None);
        }
        let mut steps = script.steps.iter().peekable();
        let (count, every) = script.rate;
        let mut next_put = 0;
        loop {
            let next_step = steps.peek().map_or(script.length, |(at, _)| *at);
            let next_due = self.due.keys().next().map_or(script.length, |(at, _)| *at);
            let next = next_step.min(next_due).min(next_put).min(script.length);
            tokio::time::sleep_until(self.start + Duration::from_millis(next)).await;
            self.world.reap();
            self.replace_ended();
            if !self.world.observer.violations().is_empty() || self.now() >= script.length {
                return;
            }
            if self.due.values().any(|due| self.goes_on(due)) {
                self.world.observer.faults_go_on();
            }
            if next_put <= next {
                self.world.put(count);
                next_put = next + every;
            }
            if next_due <= next
                && let Some((_, due)) = self.due.pop_first()
            {
                self.undo(due);
            }
            if next_step <= next
                && let Some((_, step)) = steps.next()
            {
                self.step(step).await;
            }
        }
    }

    /// As an orchestrator does: a worker that ended by itself is started again.
    pub(super) fn replace_ended(&mut self) {
        for (no, ending) in std::mem::take(&mut self.world.endings) {
            let name = self.world.instances[no].seat.name.clone();
            match ending {
                Err(error) if self.world.may_end_with(no, &error) => {
                    if !matches!(error, WorkerError::WorkerIdInUse(_)) {
                        self.later(1000, Due::Start(None));
                    }
                }
                other => self.world.observer.violate(&name, format!("ended by itself: {other:?}")),
            }
        }
    }

    /// Whether something is at fault that moves leases.
    fn goes_on(&self, due: &Due) -> bool {
        let lives = |no: &usize| self.world.instances[*no].state != Life::Over;
        match due {
            Due::Start(_) | Due::Faults(_, Door::Metrics) => false,
            Due::Fresh => true,
            Due::Thaw(no) | Due::Temper(no) | Due::Faults(no, _) | Due::Line(no, _) => lives(no),
        }
    }

    fn undo(&mut self, due: Due) {
        let world = &mut self.world;
        if !matches!(due, Due::Faults(_, Door::Metrics)) {
            world.observer.fleet_changes();
        }
        match due {
            Due::Thaw(no) => world.thaw(no),
            Due::Temper(no) => world.temper(no, world.setup.temper),
            Due::Faults(no, door) => {
                let name = world.instances[no].seat.name.clone();
                world.observer.note(&name, || format!("has no more faults at {door:?}"));
                world.instances[no].faults_at(door).iter().for_each(|(faults, _)| faults.heal());
            }
            Due::Line(no, door) => {
                let usual = world.usual();
                self.line(no, door, usual);
            }
            Due::Fresh => {
                world.table.set_scan_staleness(Duration::ZERO);
                world.observer.looks_are_stale(false);
            }
            Due::Start(name) => self.start_worker(name),
        }
    }

    fn line(&mut self, no: usize, door: Door, quality: Quality) {
        if door.is_to_table() {
            self.world.table_line(no, quality);
        }
        if door.is_to_stream() {
            self.world.stream_line(no, quality);
        }
    }

    /// The workers that a step is meant for.
    fn targets(&self, nth: Option<usize>) -> Vec<usize> {
        let running = self.world.running();
        match nth {
            Some(nth) if !running.is_empty() => vec![running[nth % running.len()]],
            Some(_) => Vec::new(),
            None => running,
        }
    }

    fn come_back(&mut self, no: usize, back: Option<Back>) {
        if let Some(Back { same_id, after_millis }) = back {
            let name = same_id.then(|| self.world.instances[no].seat.name.clone());
            self.later(after_millis, Due::Start(name));
        }
    }

    /// Whether there is something that a step can be done to.
    fn meets(&self, step: &Step) -> bool {
        let frozen = |no: &usize| self.world.instances[*no].seat.freezer.is_frozen();
        let open = || self.world.stream.open_shards().len();
        let rows = || self.world.table.rows();
        match step {
            Step::Crash { nth, .. } | Step::Stop { nth, .. } | Step::Twin { nth } => {
                !self.targets(Some(*nth)).is_empty()
            }
            Step::Freeze { nth, .. } => self.targets(Some(*nth)).iter().any(|no| !frozen(no)),
            Step::Temper { nth, .. } | Step::Faults { nth, .. } | Step::Line { nth, .. } => {
                !self.targets(*nth).is_empty()
            }
            Step::Merge(_) | Step::Halve => open() > 1,
            Step::Double => open() < MOST_SHARDS,
            Step::DropTable | Step::DeleteRow(_) | Step::Reset { .. } => !rows().is_empty(),
            Step::EditRow(nth, edit) => {
                let rows = rows();
                let row = rows.get(nth % rows.len().max(1));
                row.is_some_and(|row| *edit != Edit::Counter || row.counter > 0)
            }
            Step::Trim { .. } => self
                .world
                .stream
                .shards()
                .iter()
                .any(|shard| !self.world.stream.records(&shard.id).is_empty()),
            Step::Forget(_) => !self.world.oldest_closed().is_empty(),
            Step::DeleteWorkerRow(_) => !self.world.table.worker_rows().is_empty(),
            _ => true,
        }
    }

    async fn step(&mut self, step: &Step) {
        if self.meets(step) {
            *self.done.entry(step.kind()).or_default() += 1;
        }
        if !matches!(step, Step::Faults { door: Door::Metrics, .. }) {
            self.world.observer.fleet_changes();
        }
        match step {
            Step::Join => self.start_worker(None),
            Step::Crash { nth, back } => {
                for no in self.targets(Some(*nth)) {
                    self.world.crash(no).await;
                    self.come_back(no, *back);
                }
            }
            Step::Stop { nth, back } => {
                for no in self.targets(Some(*nth)) {
                    self.world.stop(no);
                    self.come_back(no, *back);
                }
            }
            Step::Freeze { nth, millis } => {
                for no in self.targets(Some(*nth)) {
                    self.world.freeze(no);
                    self.later(*millis, Due::Thaw(no));
                }
            }
            Step::Twins => {
                self.start_worker(None);
                let name = self.world.instances.last().map(|instance| instance.seat.name.clone());
                self.start_worker(name);
            }
            Step::Twin { nth } => {
                for no in self.targets(Some(*nth)) {
                    let name = self.world.instances[no].seat.name.clone();
                    self.start_worker(Some(name));
                }
            }
            Step::Temper { nth, temper, millis } => {
                for no in self.targets(*nth) {
                    self.world.temper(no, *temper);
                    self.later(*millis, Due::Temper(no));
                }
            }
            Step::Faults { nth, door, faults, millis } => {
                for no in self.targets(*nth) {
                    let instance = &self.world.instances[no];
                    self.world
                        .observer
                        .note(&instance.seat.name, || format!("has faults at {door:?}: {faults:?}"));
                    for (met, ops) in instance.faults_at(*door) {
                        for (chance, fault) in faults {
                            ops.iter().for_each(|op| met.chance(*op, *chance, *fault));
                        }
                    }
                    self.later(*millis, Due::Faults(no, *door));
                }
            }
            Step::Line { nth, door, quality, millis } => {
                for no in self.targets(*nth) {
                    self.line(no, *door, *quality);
                    self.later(*millis, Due::Line(no, *door));
                }
            }
            Step::Stale { by, millis } => {
                self.world.observer.note("table", || format!("scans show each row up to {by} ms ago"));
                let seed = self.world.setup.seed ^ self.now();
                self.world.table.set_scan_ages(Duration::from_millis(*by), seed);
                self.world.observer.looks_are_stale(true);
                self.later(*millis, Due::Fresh);
            }
            Step::Split(nth) => self.world.split(*nth),
            Step::Merge(nth) => self.world.merge(*nth),
            Step::Double => {
                let open = self.world.stream.open_shards().len();
                self.world.reshard((2 * open).min(MOST_SHARDS));
            }
            Step::Halve => {
                let open = self.world.stream.open_shards().len();
                self.world.reshard(open.div_ceil(2));
            }
            Step::Reset { nth, to } => self.world.reset(*nth, *to),
            Step::Trim { nth, keep } => self.world.trim(*nth, *keep),
            Step::Forget(nth) => {
                let closed = self.world.oldest_closed();
                closed.get(nth % closed.len().max(1)).into_iter().for_each(|shard| self.world.forget(shard));
            }
            Step::DropTable => self.world.drop_table(),
            Step::DeleteWorkerRow(nth) => self.world.delete_worker_row(*nth),
            Step::DeleteRow(nth) => self.world.delete_row(*nth),
            Step::EditRow(nth, edit) => self.world.edit_row(*nth, *edit),
        }
    }
}

pub(crate) const TABLE_OPS: [Op; 10] = [
    Op::OpenTable,
    Op::ListLeases,
    Op::GetLease,
    Op::CreateLease,
    Op::WriteLease,
    Op::HandOff,
    Op::DeleteLease,
    Op::GetWorker,
    Op::Beat,
    Op::ForgetWorker,
];
pub(crate) const STREAM_OPS: [Op; 4] = [Op::Describe, Op::ListShards, Op::OpenIterator, Op::ReadRecords];
