//! What must hold once all faults are over: all is read soon, the fleet comes to rest and answers, and ends cleanly.

use std::{collections::BTreeMap, time::Duration};

use kinesis_consumer::{
    Balance, Checkpoint, InitialPosition, OnShutdown, Shard, ShardOrder, io::memory::Limits,
};
use tokio::time::Instant;

use super::{
    by_throughput::better_move,
    faces::Face,
    fleet::World,
    instances::Life,
    observer::Calls,
    run::Player,
    script::{Script, Step},
    shards::{aggregated, number},
};

/// What the averages of shards' throughput remember, about.
const MEMORY: Duration = Duration::from_secs(600);

impl Player {
    /// Ends all faults, and holds the fleet to liveness, calm, budgets and a clean end.
    pub(super) async fn finale(&mut self, script: &Script) -> Duration {
        let world = &mut self.world;
        world.heal();
        self.due.clear();
        self.needed = world.observer.unended();
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
        if script.setup.measured {
            self.measures().await;
        }
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
        // Who alone could not read tries so often whether it can.
        let blind = script.steps.iter().any(|(_, step)| step.is_blinding());
        let trial = Duration::from_secs(if blind { 30 } else { 0 });
        let steps = Duration::from_secs(10) + config.stall_timeout * u32::from(avoided) + trial;
        4 * config.failover_time
            + config.rejoin_grace
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
            let (all, lost) = self.world.observer.ends_of(&shard.id);
            let (all, lost) = (all as usize, lost as usize);
            let done = match rows.iter().find(|row| row.key.shard() == shard.id) {
                Some(row) if row.is_finished() => all,
                Some(row) => match (row.checkpoint.position(), row.start_millis) {
                    (Some(at), _) => number(at) as usize,
                    (None, Some(since)) => self.world.observer.before(&shard.id, since) as usize,
                    (None, None) => 0,
                },
                None if removed => 0,
                None => {
                    let first = unread.iter().find(|(id, ..)| *id == shard.id);
                    first.map_or(all, |(_, _, first)| *first as usize - 1)
                }
            };
            all.saturating_sub(done.max(lost))
        };
        self.world.stream.shards().into_iter().map(left).filter(|left| *left > 0).collect()
    }

    /// How long it takes to read what is left: five reads and 2 MiB a second of each shard, and the work on each.
    pub(super) fn backlog(&self, script: &Script) -> Duration {
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
        let open = self.world.table.rows().iter().filter(|row| !row.is_finished()).count();
        self.needed = self.needed.max(open);
        let most = |world: &World, no| world.setup.max_leases_of(no).unwrap_or(usize::MAX);
        loop {
            let running = self.world.running().into_iter();
            let room = running.map(|no| most(&self.world, no)).fold(0, usize::saturating_add);
            if room >= self.needed.max(1) {
                break;
            }
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

    /// For so long a look at all rows has to be saved for.
    fn look(&self, script: &Script) -> Duration {
        let units = self.world.table.rows().len() as f64 / 16.0;
        Duration::from_secs_f64(units / script.setup.config.scan_budget)
    }

    /// At rest the leases are spread evenly, none moves, and calls stay within their budget.
    async fn rest(&mut self, script: &Script, bound: Duration) {
        let config = &script.setup.config;
        let window = 3 * config.failover_time;
        // Each generation needs a look to be claimed, and one to be even.
        let look = self.look(script);
        let looks = 2 * (self.world.observer.generations() + 1);
        // Where leases are asked for a few in each look, half of them may have to be.
        let unfinished = self.world.observer.unended() as u32;
        let steals =
            config.max_leases_to_steal_at_one_time.map_or(0, |most| unfinished.div_ceil(2 * most as u32));
        let looks = (looks + steals) * look;
        // Averages fade for as long, each from another height, and leases follow them.
        let fading = if config.balance == Balance::Throughput { 2 * MEMORY } else { Duration::ZERO };
        let end = Instant::now() + bound + 2 * window + looks + fading;
        // After a page of 10 MB a shard refuses reads for so long, and who read it may have handed it over.
        let pages_fade = if script.setup.payload > 0 { Duration::from_secs(5) } else { Duration::ZERO };
        loop {
            self.world.advance(pages_fade).await;
            let moves = self.world.observer.moves();
            let before = self.calls();
            // What is read again, since a person removed a row, is read without pauses.
            let most = config.max_records;
            let pages: usize = self.left(script).iter().map(|count| count.div_ceil(most)).sum();
            // Whoever starts tries to read. And a second after the last move no shard has been read by two.
            let starting = self.world.is_starting();
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
                if throttled > 0 && !starting {
                    let often = format!("is refused {throttled} reads in {:?} at rest", window / 2);
                    self.world.observer.violate("fleet", often);
                }
                return self.check_budget(script, window, &before, pages);
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
        let even = match self.world.setup.config.balance {
            Balance::Count => self.is_even_by_count(&loads),
            Balance::Throughput => self.is_even_by_throughput(&loads),
        };
        // What somebody left who may come back is nobody's to read.
        let running = self.world.running();
        let is_here = |name: &String| running.iter().any(|no| self.world.instances[*no].seat.name == *name);
        even && loads.keys().all(is_here) && !self.world.observer.is_any_on_its_way()
    }

    /// How many more leases each worker may hold.
    fn rooms(&self, loads: &BTreeMap<String, usize>) -> BTreeMap<String, usize> {
        let running = self.world.running().into_iter();
        let room = |no: usize| {
            let name = self.world.instances[no].seat.name.clone();
            let most = self.world.setup.max_leases_of(no).unwrap_or(usize::MAX);
            let room = most.saturating_sub(loads.get(&name).copied().unwrap_or(0));
            (name, room)
        };
        running.map(room).collect()
    }

    /// Nobody that has room holds two leases less than another, unless it has its share: that others have no room
    /// for theirs nobody can know.
    fn is_even_by_count(&self, loads: &BTreeMap<String, usize>) -> bool {
        let share = loads.values().sum::<usize>().div_ceil(loads.len().max(1));
        let most = loads.values().max().copied().unwrap_or(0);
        let even = |(name, room): (&String, &usize)| {
            let load = loads.get(name).copied().unwrap_or(0);
            *room == 0 || load >= share || most <= load + 1
        };
        self.rooms(loads).iter().all(even)
    }

    fn is_even_by_throughput(&self, loads: &BTreeMap<String, usize>) -> bool {
        // A worker takes up to the mean of all, and does not know who may not have that much.
        if !self.world.setup.unequal.is_empty() {
            return true;
        }
        let mut rows = self.world.table.rows();
        rows.retain(|row| !row.is_finished());
        let state = self.world.observer.lock();
        better_move(&rows, &self.rooms(loads), |row| state.is_restless(&row.key.shard())).is_none()
    }

    fn check_budget(&self, script: &Script, window: Duration, before: &[Calls], pages: usize) {
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
            let most = (most_looks + (held + ended) * (renewals + reads) + ended + renewals + listings)
                .ceil()
                + pages as f64;
            if calls as f64 > most {
                self.world.observer.violate(
                    name,
                    format!("makes too many calls in {window:?} at rest, at most {most}: {made:?}"),
                );
            }
        }
    }

    /// Everybody stops in time, and publishes what it measured.
    pub(super) async fn all_stop(&mut self, script: &Script) -> bool {
        let config = &script.setup.config;
        let running = self.world.running();
        running.iter().for_each(|no| self.world.stop(*no));
        let limit = config.shutdown_timeout + config.failover_time + Duration::from_secs(1);
        let all_over = |world: &World| world.instances.iter().all(|instance| instance.state == Life::Over);
        if !self.world.until(limit, all_over).await {
            self.world.observer.violate("fleet", format!("a worker has not stopped within {limit:?}"));
            return false;
        }
        self.replace_ended();
        if script.setup.measured {
            self.world.last_measures_are_published(&running);
        }
        true
    }

    /// Everybody stops: in time, with every lease free and every checkpoint at the last record.
    async fn stop_all(&mut self, script: &Script) {
        let config = &script.setup.config;
        if !self.all_stop(script).await {
            return;
        }
        for row in self.world.table.rows().iter().filter(|row| !row.is_finished()) {
            if config.on_shutdown == OnShutdown::Release && row.holder().is_some() {
                let held = format!("{} still has a holder after a clean stop: {:?}", row.key, row.holder());
                self.world.observer.violate("fleet", held);
            }
            let (last, lost) = self.world.observer.ends_of(&row.key.shard());
            let stored = match &row.checkpoint {
                Checkpoint::At(position) => number(position),
                _ => row.start_millis.map_or(0, |at| self.world.observer.before(&row.key.shard(), at)),
            };
            let rewound = self.world.observer.is_rewound(&row.key.shard());
            if stored.max(lost) != last && !rewound && config.initial_position == InitialPosition::TrimHorizon
            {
                let behind = format!("{} is at {stored} of {last} after a clean stop", row.key);
                self.world.observer.violate("fleet", behind);
            }
        }
    }
}
