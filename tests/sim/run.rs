//! Plays a script, then asks what must hold once all faults are over.

use std::{collections::BTreeMap, time::Duration};

use kinesis_consumer::{
    Checkpoint, OnShutdown, Shard, ShardOrder, WorkerError,
    io::{faulty::Op, memory::Limits},
};
use tokio::time::Instant;

use super::{
    faces::Face,
    fleet::{Life, World},
    line::Quality,
    observer::{Calls, Counts},
    processor::Temper,
    script::{Back, Door, Script, Step},
    shards::{aggregated, number},
    trace::Trace,
};

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
    let mut player = Player { start, due: BTreeMap::new(), names: 0, needed: 1, world };
    player.script(script).await;
    let mut recovered = Duration::ZERO;
    if player.world.observer.violations().is_empty() {
        recovered = player.finale(script).await;
    }
    let mut faults = player.world.faults_met();
    for (_, step) in &script.steps {
        *faults.entry(step.kind()).or_default() += 1;
    }
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
enum Due {
    Thaw(usize),
    Temper(usize),
    Faults(usize, Door),
    Line(usize, Door),
    Fresh,
    Start(Option<String>),
}

struct Player {
    start: Instant,
    /// By time and a running number.
    due: BTreeMap<(u64, usize), Due>,
    names: usize,
    /// The least number of workers that can hold all leases.
    needed: usize,
    world: World,
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

    fn start_worker(&mut self, name: Option<String>) {
        self.names += 1;
        let name = name.unwrap_or_else(|| format!("w{}", self.names));
        self.world.start(&name);
    }

    async fn script(&mut self, script: &Script) {
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
    fn replace_ended(&mut self) {
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

    fn undo(&mut self, due: Due) {
        let world = &mut self.world;
        match due {
            Due::Thaw(no) => world.thaw(no),
            Due::Temper(no) => world.temper(no, world.setup.temper),
            Due::Faults(no, door) => {
                let name = world.instances[no].seat.name.clone();
                world.observer.note(&name, || format!("has no more faults at {door:?}"));
                if door != Door::Stream {
                    world.instances[no].table_faults.heal();
                }
                if door != Door::Table {
                    world.instances[no].stream_faults.heal();
                }
            }
            Due::Line(no, door) => {
                let usual = world.usual();
                self.line(no, door, usual);
            }
            Due::Fresh => world.table.set_scan_staleness(Duration::ZERO),
            Due::Start(name) => self.start_worker(name),
        }
    }

    fn line(&mut self, no: usize, door: Door, quality: Quality) {
        if door != Door::Stream {
            self.world.table_line(no, quality);
        }
        if door != Door::Table {
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

    async fn step(&mut self, step: &Step) {
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
                    let (table, stream) = (&TABLE_OPS, &STREAM_OPS);
                    for (chance, fault) in faults {
                        if *door != Door::Stream {
                            table.iter().for_each(|op| instance.table_faults.chance(*op, *chance, *fault));
                        }
                        if *door != Door::Table {
                            stream.iter().for_each(|op| instance.stream_faults.chance(*op, *chance, *fault));
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
                self.world.observer.note("table", || format!("scans show it {by} ms ago"));
                self.world.table.set_scan_staleness(Duration::from_millis(*by));
                self.later(*millis, Due::Fresh);
            }
            Step::Split(nth) => self.world.split(*nth),
            Step::Merge(nth) => self.world.merge(*nth),
            Step::Double => {
                let open = self.world.stream.open_shards().len();
                self.world.reshard((2 * open).min(40));
            }
            Step::Halve => {
                let open = self.world.stream.open_shards().len();
                self.world.reshard(open.div_ceil(2));
            }
            Step::Reset { nth, to } => self.world.reset(*nth, *to),
            Step::DropTable => self.world.drop_table(),
            Step::DeleteWorkerRow(nth) => self.world.delete_worker_row(*nth),
            Step::DeleteRow(nth) => self.world.delete_row(*nth),
            Step::EditRow(nth, edit) => self.world.edit_row(*nth, *edit),
        }
    }

    /// Ends all faults, and holds the fleet to liveness, calm, budgets and a clean end.
    async fn finale(&mut self, script: &Script) -> Duration {
        let world = &mut self.world;
        world.heal();
        self.due.clear();
        let most = script.setup.config.max_leases_for_worker.unwrap_or(usize::MAX);
        let needed = world.observer.unended().div_ceil(most).max(1);
        self.needed = needed;
        self.fill_up();
        self.world.put_into_each();
        let ended = Instant::now();
        let bound = self.bound(script);
        let read = self.until(bound, |world| world.observer.unread().is_empty()).await;
        let recovered = ended.elapsed();
        let world = &mut self.world;
        if !read {
            let unread = world.observer.unread();
            world
                .observer
                .violate("fleet", format!("left unread after {bound:?} without faults: {unread:?}"));
            return recovered;
        }
        if !world.observer.violations().is_empty() {
            return recovered;
        }
        self.rest(script, bound).await;
        if !self.world.observer.violations().is_empty() {
            return recovered;
        }
        // What was read before, and is read again for a row that was removed, is not unread.
        let end = Instant::now() + bound + self.backlog(script);
        while !self.left(script).is_empty() && Instant::now() < end {
            self.world.advance(script.setup.config.failover_time).await;
        }
        self.answer(script).await;
        self.stop_all(script).await;
        recovered
    }

    /// What comes into any shard while the fleet is at rest is processed with the next read: no shard is held
    /// by somebody who does not read it.
    async fn answer(&mut self, script: &Script) {
        self.world.put_into_each();
        let records = u32::try_from(aggregated()).expect("few");
        let work = Duration::from_millis(self.world.setup.temper.slow) * records;
        // What was read last is paid for with up to five seconds, and so is a read that was refused.
        let plain = script.setup.payload == 0 && script.setup.limits == Limits::none();
        let paid = Duration::from_secs(if plain { 1 } else { 6 });
        let bound = script.setup.config.idle_time_between_reads + work + paid;
        if !self.until(bound, |world| world.observer.unread().is_empty()).await {
            let unread = self.world.observer.unread();
            self.world.observer.violate("fleet", format!("left unread after {bound:?} at rest: {unread:?}"));
        }
    }

    /// Within this time after the last fault everything is read.
    fn bound(&self, script: &Script) -> Duration {
        let config = &script.setup.config;
        let generations = self.world.observer.generations();
        // A namesake is waited for, leases expire, back-offs of up to 5 s run out; shards that a worker could
        // not go on with are avoided for a minute.
        let avoided = script.steps.iter().any(|(_, step)| matches!(step, Step::Temper { .. }));
        let steps = Duration::from_secs(10) + config.stall_timeout * u32::from(avoided);
        4 * config.failover_time
            + steps
            + Duration::from_secs(if avoided { 70 } else { 0 })
            + generations * (3 * config.idle_time_between_reads + config.failover_time)
            + self.backlog(script)
    }

    /// How many records of each shard are to be read, for the first time or once more: all those after the
    /// checkpoint. Without a row those that nobody has read, or all of them if a person removed rows.
    fn left(&self, script: &Script) -> Vec<usize> {
        let removed = |(_, step): &(u64, Step)| matches!(step, Step::DropTable | Step::DeleteRow(_));
        let removed = script.steps.iter().any(removed);
        let (rows, unread) = (self.world.table.rows(), self.world.observer.unread());
        let left = |shard: Shard| {
            let all = self.world.stream.records(&shard.id).len() * aggregated() as usize;
            let done = match rows.iter().find(|row| row.key.shard() == shard.id) {
                Some(row) if row.is_finished() => all,
                Some(row) => row.checkpoint.position().map_or(0, |at| number(at) as usize),
                None if removed => 0,
                None => {
                    let first = unread.iter().find(|(id, ..)| *id == shard.id);
                    first.map_or(all, |(_, _, first)| *first as usize - 1)
                }
            };
            all.saturating_sub(done)
        };
        self.world.stream.shards().into_iter().map(left).filter(|left| *left > 0).collect()
    }

    /// How long it takes to read what is left: five reads and 2 MiB a second of each shard, and the work on each.
    fn backlog(&self, script: &Script) -> Duration {
        let most = script.setup.config.max_records;
        let left = self.left(script);
        let batches: usize = left.iter().map(|count| count.div_ceil(most) + 1).sum();
        let each = Duration::from_millis(210) + Duration::from_millis(script.setup.temper.slow);
        // A closure takes as long for each record as others for each batch.
        let one_by_one = script.setup.faces.contains(&Face::Each);
        let records: usize = if one_by_one { left.iter().sum() } else { 0 };
        let slow = Duration::from_millis(self.world.setup.temper.slow);
        // Workers keep to the limits of AWS, also where nothing else does.
        let bytes: usize = left.iter().sum::<usize>() * script.setup.payload;
        let paid = Duration::from_secs_f64(bytes as f64 / Limits::aws().read_bytes as f64);
        paid + each * u32::try_from(batches).expect("few") + slow * u32::try_from(records).expect("few")
    }

    /// A process that ended because another has its id leaves the fleet too small for its limits; so do shards
    /// that are read again because a row below them was deleted.
    fn fill_up(&mut self) {
        if let Some(most) = self.world.setup.config.max_leases_for_worker {
            let open = self.world.table.rows().iter().filter(|row| !row.is_finished()).count();
            self.needed = self.needed.max(open.div_ceil(most));
        }
        while self.world.running().len() < self.needed {
            self.start_worker(None);
        }
    }

    async fn until(&mut self, limit: Duration, done: impl Fn(&World) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !done(&self.world) && self.world.observer.violations().is_empty() {
            if Instant::now() >= end {
                return false;
            }
            self.world.advance(Duration::from_millis(50)).await;
            self.replace_ended();
            self.fill_up();
        }
        true
    }

    /// At rest the leases are spread evenly, none moves, and calls stay within their budget.
    async fn rest(&mut self, script: &Script, bound: Duration) {
        let config = &script.setup.config;
        let window = 3 * config.failover_time;
        // A look at many rows has to be saved for; each generation needs one to be claimed, and one to be even.
        let look = Duration::from_secs_f64(self.world.table.rows().len() as f64 / 16.0 / config.scan_budget);
        let looks = 2 * (self.world.observer.generations() + 1);
        // Where leases are asked for a few in each look, half of them may have to be.
        let unfinished = self.world.observer.unended() as u32;
        let steals =
            config.max_leases_to_steal_at_one_time.map_or(0, |most| unfinished.div_ceil(2 * most as u32));
        let looks = (looks + steals) * look;
        let end = Instant::now() + bound + 2 * window + looks;
        loop {
            let moves = self.world.observer.moves();
            let before = self.calls();
            // A second after the last move no shard has been read by two.
            self.world.advance(window / 2).await;
            let throttled = self.world.observer.counts().throttled;
            self.world.advance(window / 2).await;
            self.replace_ended();
            self.fill_up();
            if !self.world.observer.violations().is_empty() {
                return;
            }
            let calm = self.world.observer.moves() == moves;
            if calm && self.is_even() && !self.world.has_twins() {
                let throttled = self.world.observer.counts().throttled - throttled;
                if throttled > 0 {
                    let often = format!("is refused {throttled} reads in {:?} at rest", window / 2);
                    self.world.observer.violate("fleet", often);
                }
                return self.check_budget(script, window, &before);
            }
            if Instant::now() >= end {
                let rows: Vec<String> = self
                    .world
                    .table
                    .rows()
                    .iter()
                    .map(|row| format!("{}: {:?}", row.key, row.owner))
                    .collect();
                let why = match calm {
                    _ if self.world.has_twins() => "two workers with one id still run",
                    true => "the leases are not spread evenly",
                    false => "leases still move",
                };
                return self.world.observer.violate("fleet", format!("{why} at rest: {rows:?}"));
            }
        }
    }

    fn calls(&self) -> Vec<Calls> {
        (0..self.world.instances.len()).map(|no| self.world.observer.calls(no)).collect()
    }

    fn loads(&self) -> BTreeMap<String, usize> {
        let mut loads: BTreeMap<String, usize> = BTreeMap::new();
        for no in self.world.running() {
            loads.insert(self.world.instances[no].seat.name.clone(), 0);
        }
        for row in self.world.table.rows().iter().filter(|row| !row.is_finished()) {
            let owner = row.owner.as_ref().map_or("nobody", |owner| owner.as_str());
            *loads.entry(owner.into()).or_default() += 1;
        }
        loads
    }

    fn is_even(&self) -> bool {
        let loads = self.loads();
        let (least, most) = (loads.values().min(), loads.values().max());
        let even = most.zip(least).is_none_or(|(most, least)| most - least <= 1);
        even && !loads.contains_key("nobody") && !self.world.observer.is_any_on_its_way()
    }

    fn check_budget(&self, script: &Script, window: Duration, before: &[Calls]) {
        let config = &script.setup.config;
        let per = |interval: Duration| window.as_secs_f64() / interval.as_secs_f64();
        let looks = per(config.failover_time / 10).min(per(Duration::from_secs(1)).max(1.0));
        let loads = self.loads();
        for no in self.world.running() {
            let name = &self.world.instances[no].seat.name;
            // A worker that was started meanwhile.
            let Some(before) = before.get(no) else { continue };
            let made = self.world.observer.calls(no).since(before);
            let (calls, looked) = (made.all(), made.looks());
            let held = loads.get(name).copied().unwrap_or(0) as f64;
            let renewals = per(config.failover_time / 2) * 1.2 + 2.0;
            let reads = per(config.idle_time_between_reads) * 1.2 + 2.0;
            // A look after the leases have moved comes sooner, for three periods.
            let most_looks = (per(config.failover_time / 10).max(looks) / 0.8 + 15.0).ceil();
            if looked as f64 > most_looks {
                self.world.observer.violate(
                    name,
                    format!("looked {looked} times in {window:?} at rest, at most {most_looks}"),
                );
            }
            // Who does not wait for parents looks for children.
            let listings = match config.shard_order {
                ShardOrder::ParentsFirst => 0.0,
                ShardOrder::None => per(Duration::from_secs(16)) + 2.0,
            };
            // Shards that ended within the window are held no more; they were read, and their rows cleaned up.
            let ended = (made.of("create") + made.of("delete")) as f64;
            // One renewal more: the worker's own heartbeat.
            let most =
                (most_looks + (held + ended) * (renewals + reads) + ended + renewals + listings).ceil();
            if calls as f64 > most {
                self.world
                    .observer
                    .violate(name, format!("made {made:?} in {window:?} at rest, at most {most}"));
            }
        }
    }

    /// Everybody stops: in time, with every lease free and every checkpoint at the last record.
    async fn stop_all(&mut self, script: &Script) {
        let config = &script.setup.config;
        let running = self.world.running();
        running.iter().for_each(|no| self.world.stop(*no));
        let limit = config.shutdown_timeout + config.failover_time + Duration::from_secs(1);
        let all_over = |world: &World| world.instances.iter().all(|instance| instance.state == Life::Over);
        if !self.world.until(limit, all_over).await {
            self.world.observer.violate("fleet", format!("a worker has not stopped within {limit:?}"));
            return;
        }
        self.replace_ended();
        for row in self.world.table.rows().iter().filter(|row| !row.is_finished()) {
            if config.on_shutdown == OnShutdown::Release && row.holder().is_some() {
                let held = format!("{} still has a holder after a clean stop: {:?}", row.key, row.holder());
                self.world.observer.violate("fleet", held);
            }
            let last = self.world.stream.records(&row.key.shard()).len() as u64 * aggregated();
            let stored = match &row.checkpoint {
                Checkpoint::At(position) => number(position),
                _ => row.start_millis.map_or(0, |at| self.world.observer.before(&row.key.shard(), at)),
            };
            let rewound = self.world.observer.is_rewound(&row.key.shard());
            if stored != last
                && !rewound
                && config.initial_position == kinesis_consumer::InitialPosition::TrimHorizon
            {
                let behind = format!("{} is at {stored} of {last} after a clean stop", row.key);
                self.world.observer.violate("fleet", behind);
            }
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

/// The rule that a violation is of: what it says, without the time, names and numbers.
fn rule(violation: &str) -> String {
    let said = violation.split_once(" s: ").map_or(violation, |(_, said)| said);
    let (said, _) = said.split_once(": ").unwrap_or((said, ""));
    let words = said.split_whitespace().skip(1).filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// Leaves out steps as long as the run still breaks the same rule first.
pub(crate) fn shrink(script: &Script) -> Script {
    let broken = |script: &Script| run(script, false).violations.first().map(|violation| rule(violation));
    let rule = broken(script);
    let fails = |script: &Script| rule.is_some() && broken(script) == rule;
    let mut best = script.clone();
    let mut tries = 0;
    let mut at = best.steps.len();
    while at > 0 && tries < 100 {
        at -= 1;
        tries += 1;
        let mut without = best.clone();
        without.steps.remove(at);
        if fails(&without) {
            best = without;
        }
    }
    let plain = Script {
        setup: super::fleet::Setup { temper: Temper::default(), ..best.setup.clone() },
        ..best.clone()
    };
    if fails(&plain) { plain } else { best }
}

#[cfg(test)]
mod tests {
    use super::rule;

    #[test]
    fn violations_are_told_apart_by_their_rules_and_not_by_names_and_numbers() {
        let claims = |who: &str, shard: &str| {
            format!("12.345 s: {who} was allowed to claim {shard}, which is {who}'s")
        };
        assert_eq!(rule(&claims("w1", "shardId-000000000002")), rule(&claims("w20", "shardId-000000000011")));
        let given = |why: &str| rule(&format!("1.005 s: w3 is given shardId-000000000002 3..=7, but {why}"));
        assert_eq!(
            given("its parent shardId-000000000001 has not ended"),
            "is given but its parent has not ended"
        );
        assert_ne!(
            given("its parent shardId-000000000001 has not ended"),
            given("12 is what comes next for this holder")
        );
        let at_rest =
            |why: &str| rule(&format!("71.005 s: fleet {why} at rest: [\"shardId-000000000002: None\"]"));
        assert_eq!(at_rest("leases still move"), "leases still move at rest");
        assert_ne!(at_rest("leases still move"), at_rest("the leases are not spread evenly"));
    }
}
