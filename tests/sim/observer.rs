//! The observer: what the fleet has done, and whether it was allowed to.
//!
//! Sees every write that takes effect, every delivery and every acknowledgement, and checks the
//! invariants at once: I1 no loss, I2 safe checkpoints, I3 one accepted owner, I4 order, I6 limits and calm, I7
//! calls, I8 health. What can be judged only at rest (I5 liveness, even spread) is asked of it at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinesis_consumer::{
    Balance, Checkpoint, ClaimReason, HandOff, Lease, LeaseWrite, OwnerChange, ShardId, WorkerRow,
    health::Health, io::Page,
};
use tokio::time::Instant;

use super::{
    health::Work,
    moves::Account,
    processor::Seat,
    rules::{Instance, RowLog, State, kind},
    shards::Keys,
    trace::{Trace, short},
};

/// The rules that the observer holds a fleet to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) failover_time: Duration,
    pub(crate) parents_first: bool,
    pub(crate) max_steals: usize,
    pub(crate) rejoin_grace: Duration,
    pub(crate) balance: Balance,
    pub(crate) health_max_age: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) memory_budget: usize,
    pub(crate) measured: bool,
    /// The application reads every shard from its beginning.
    pub(crate) from_start: bool,
}

impl Rules {
    /// How long a worker waits for an answer.
    pub(crate) fn call_timeout(&self) -> Duration {
        (self.failover_time / 4).min(Duration::from_secs(5))
    }
}

#[derive(Debug)]
pub(crate) struct Observer(Mutex<State>);

/// What a run amounted to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) records: u64,
    pub(crate) deliveries: u64,
    pub(crate) claims: u64,
    pub(crate) stolen_alive: u64,
    pub(crate) handed_over: u64,
    pub(crate) calls: u64,
    pub(crate) writes: u64,
    /// Reads that the stream itself refused.
    pub(crate) throttled: u64,
}

/// How often each call was made.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Calls(pub(crate) BTreeMap<&'static str, u64>);

impl Calls {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().map(|(name, count)| (*name, count - before.of(name))).collect())
    }

    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> u64 {
        self.0.values().sum()
    }

    pub(crate) fn looks(&self) -> u64 {
        self.of("scan")
    }
}

impl Observer {
    pub(crate) fn new(rules: Rules, recording: bool) -> Self {
        Self(Mutex::new(State {
            start: Instant::now(),
            rules,
            trace: Trace::new(recording),
            violations: Vec::new(),
            shards: BTreeMap::new(),
            keys: Keys::default(),
            rows: BTreeMap::new(),
            removed: BTreeSet::new(),
            touched: false,
            tenures: BTreeMap::new(),
            pulses: BTreeMap::new(),
            instances: Vec::new(),
            pinned: None,
            begins: None,
            are_looks_stale: false,
            counts: Counts::default(),
            moves: Vec::new(),
            account: Account::default(),
            holders: BTreeMap::new(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, who: &str, what: impl FnOnce() -> String) {
        self.lock().note(who, what);
    }

    pub(crate) fn violate(&self, who: &str, what: impl fmt::Display) {
        self.lock().violate(who, what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(crate) fn trace(&self) -> Trace {
        self.lock().trace.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    // What the world does.

    pub(crate) fn joined(&self, name: &str) -> usize {
        let mut state = self.lock();
        state.instances.push(Instance {
            name: name.into(),
            joined_at: Some(Instant::now()),
            ..Instance::default()
        });
        state.fleet_changes();
        state.instances.len() - 1
    }

    /// The instance starts at that time by the stream's clock.
    pub(crate) fn starts_at(&self, no: usize, millis: u64) {
        self.lock().instances[no].starts_at = millis;
    }

    /// The most leases that the instance may hold, if there is a limit.
    pub(crate) fn may_hold(&self, no: usize, most: Option<usize>) {
        self.lock().instances[no].max_leases = most;
    }

    pub(crate) fn faults_go_on(&self) {
        self.lock().faults_go_on();
    }

    /// Something else than a worker that comes or goes happens to the fleet.
    pub(crate) fn fleet_changes(&self) {
        self.lock().fleet_changes();
    }

    /// From now on the instance must not do anything.
    pub(crate) fn ended(&self, no: usize) {
        let mut state = self.lock();
        state.instances[no].over = true;
        state.fleet_changes();
        let alive = state.instances[no].processors.values().sum::<usize>();
        if alive > 0 {
            let name = state.instances[no].name.clone();
            state.violate(&name, format!("{alive} processors outlive their worker"));
        }
    }

    pub(crate) fn asked_to_stop(&self, no: usize) {
        let mut state = self.lock();
        state.fleet_changes();
        let instance = &mut state.instances[no];
        (instance.stopping, instance.stops_since) = (true, Some(Instant::now()));
    }

    pub(crate) fn thawed(&self, no: usize) {
        let (instance, now) = (&mut self.lock().instances[no], Instant::now());
        instance.thawed = Some(now);
        instance.stops_since = instance.stops_since.map(|_| now);
    }

    /// The application begins with what arrives then.
    pub(crate) fn begins_at(&self, millis: u64) {
        self.lock().pinned = Some(millis);
    }

    pub(crate) fn shard_made(&self, shard: &ShardId, parents: &BTreeSet<ShardId>) {
        let mut state = self.lock();
        for parent in parents {
            state.shards.entry(parent.clone()).or_default().children.push(shard.clone());
        }
        let log = state.shards.entry(shard.clone()).or_default();
        log.parents = parents.iter().cloned().collect();
        state.fleet_changes();
    }

    pub(crate) fn put(&self, shard: &ShardId, key: u32, in_key: u32, arrived_millis: u64) {
        let mut state = self.lock();
        state.counts.records += 1;
        state.shards.entry(shard.clone()).or_default().put(key, in_key, arrived_millis);
        if let Some(at) = state.begins {
            state.leave_out_before(shard, at);
        }
    }

    /// The shard has left the stream: all of it is older than the retention period.
    pub(crate) fn shard_gone(&self, shard: &ShardId) {
        let mut state = self.lock();
        let missed = state.shards.entry(shard.clone()).or_default().leave();
        missed.into_iter().for_each(|(key, in_key)| state.keys.miss(key, in_key));
    }

    /// The oldest record that the shard still has; none if it has none.
    pub(crate) fn oldest(&self, shard: &ShardId, number: Option<u64>) {
        let mut state = self.lock();
        let log = state.shards.entry(shard.clone()).or_default();
        let missed = log.lose(number.map_or_else(|| log.last(), |number| number - 1));
        missed.into_iter().for_each(|(key, in_key)| state.keys.miss(key, in_key));
    }

    /// A person has removed the row, or the whole table.
    pub(crate) fn row_removed(&self, shard: &ShardId) {
        let mut state = self.lock();
        state.touched = true;
        state.holders.entry(shard.clone()).or_default().forget();
        if state.rows.remove(shard).is_some() {
            state.removed.insert(shard.clone());
        }
    }

    /// A person has changed the row.
    pub(crate) fn row_edited(&self, shard: &ShardId, counter: u64, rewound: bool) {
        let mut state = self.lock();
        let row = state.rows.entry(shard.clone()).or_default();
        (row.edited, row.highest, row.load_of) = (true, counter, None);
        row.held_elsewhere = None;
        row.rewound |= rewound;
        row.finished &= !rewound;
        let holder = row.holder;
        state.holders.entry(shard.clone()).or_default().edit();
        // Its holder may not have heard of its claim, and will read the row as it is now.
        if rewound
            && let Some(tenure) = holder.and_then(|no| state.tenures.get_mut(&(no, shard.clone())))
            && !tenure.begun
        {
            tenure.exact = false;
        }
    }

    /// A worker that is not ours has written to the row: it holds it from now on, or nobody does.
    pub(crate) fn written_elsewhere(&self, row: &Lease) {
        let shard = row.key.shard();
        self.row_edited(&shard, row.counter, false);
        let holder = row.holder().map(ToString::to_string);
        self.lock().rows.entry(shard).or_default().held_elsewhere = holder;
    }

    /// A worker that is not ours has processed these.
    pub(crate) fn read_elsewhere(&self, who: &str, shard: &ShardId, first: u64, last: u64) {
        self.lock().read_elsewhere(who, shard, first, last);
    }

    /// A worker that is not ours has marked the shard as ended.
    pub(crate) fn ended_elsewhere(&self, shard: &ShardId) {
        let mut state = self.lock();
        state.shards.entry(shard.clone()).or_default().ended = true;
        state.rows.entry(shard.clone()).or_default().finished = true;
    }

    // What workers do to the table.

    pub(crate) fn called(&self, seat: &Seat, name: &'static str, about: Option<&ShardId>) {
        let mut state = self.lock();
        state.counts.calls += 1;
        *state.instances[seat.no].calls.entry(name).or_default() += 1;
        state.counts_call(seat, about);
        state.stays_within_budget(seat);
        state.alive(seat, "makes a call");
    }

    pub(crate) fn read(&self, seat: &Seat, shard: &ShardId, page: &Page) {
        self.opened(seat, shard, page);
        let bytes: usize = page.records.iter().map(|record| record.data().len()).sum();
        self.lock().instances[seat.no].read_bytes += bytes as u64;
    }

    /// Whether looks may show rows as they were before.
    pub(crate) fn looks_are_stale(&self, stale: bool) {
        self.lock().are_looks_stale = stale;
    }

    pub(crate) fn throttled(&self, seat: &Seat, shard: &ShardId) {
        let mut state = self.lock();
        state.counts.throttled += 1;
        state.note(&seat.name, || format!("is refused a read of {}", short(shard.as_str())));
    }

    pub(crate) fn looks(&self, seat: &Seat) {
        let mut state = self.lock();
        let instance = &mut state.instances[seat.no];
        (instance.steals_since_look, instance.looked) = (0, Some(Instant::now()));
    }

    /// A look at the table was served, but the answer has not come yet.
    pub(crate) fn serves_look(&self, seat: &Seat) {
        let mut state = self.lock();
        state.instances[seat.no].served = Some(Instant::now());
        state.sees_peers(seat);
    }

    /// Whether an instance has looked at the table since then.
    pub(crate) fn looked_since(&self, no: usize, since: Instant) -> bool {
        self.lock().instances[no].looked.is_some_and(|at| at > since)
    }

    /// The answer has come.
    pub(crate) fn saw(&self, seat: &Seat) {
        self.lock().saw(seat);
    }

    pub(crate) fn created(&self, seat: &Seat, lease: &Lease) {
        let mut state = self.lock();
        state.counts.writes += 1;
        let shard = lease.key.shard();
        state.note(&seat.name, || {
            format!("makes lease {} at {}", short(lease.key.as_str()), lease.checkpoint)
        });
        if lease.checkpoint == Checkpoint::Latest {
            // Whatever it wrote: that may be wrong.
            let at = state.instances[seat.no].starts_at;
            state.pinned = Some(state.pinned.map_or(at, |pinned| pinned.min(at)));
        }
        if let (Checkpoint::AtTimestamp, Some(at)) = (&lease.checkpoint, lease.start_millis) {
            state.begins = Some(at);
            let shards: Vec<ShardId> = state.shards.keys().cloned().collect();
            shards.iter().for_each(|shard| state.leave_out_before(shard, at));
        }
        state.makes_anew(seat, &shard);
        state.removed.remove(&shard);
        state.rows.insert(shard, RowLog { highest: lease.counter, ..RowLog::default() });
    }

    pub(crate) fn deleted(&self, seat: &Seat, row: &Lease) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("deletes lease {}", short(row.key.as_str())));
        if !row.is_finished() {
            state.violate(&seat.name, format!("deleted the row of {}, which has not ended", row.key));
        }
        state.rows.remove(&row.key.shard());
        state.holders.entry(row.key.shard()).or_default().forget();
    }

    pub(crate) fn asked(&self, seat: &Seat, sent: Instant, request: &HandOff) {
        let mut state = self.lock();
        state.note(&seat.name, || {
            let what = if request.is_withdrawal() { "withdraws its request to" } else { "asks" };
            format!("{what} {} for {}", request.from(), short(request.key().as_str()))
        });
        if request.is_withdrawal() {
            return state.is_load_of(request.from().as_str(), &request.key().shard());
        }
        state.moves_to(seat, &request.key().shard());
        state.steals(seat, sent);
        let shard = request.key().shard();
        state.takes_by_throughput(seat, sent, &shard);
        if let Some(no) = state.rows.get(&shard).and_then(|row| row.holder)
            && let Some(tenure) = state.tenures.get_mut(&(no, shard))
        {
            tenure.asked = true;
        }
    }

    /// A write leaves its worker.
    pub(crate) fn sends(&self, seat: &Seat, write: &LeaseWrite) {
        let gives_up =
            matches!(write.owner(), OwnerChange::Leave | OwnerChange::Remove | OwnerChange::Transfer);
        let mut state = self.lock();
        if let Some(tenure) = state.tenures.get_mut(&(seat.no, write.key().shard())).filter(|_| gives_up) {
            tenure.lets_go_at.get_or_insert(tenure.acked_through);
        }
    }

    pub(crate) fn refused(&self, seat: &Seat, write: &LeaseWrite) {
        let kind = kind(write);
        self.note(&seat.name, || format!("is refused to {kind} {}", short(write.key().as_str())));
    }

    pub(crate) fn wrote(
        &self,
        seat: &Seat,
        sent: Instant,
        write: &LeaseWrite,
        before: &Lease,
        after: &Lease,
    ) {
        self.lock().wrote(seat, sent, write, before, after);
    }

    pub(crate) fn beat(&self, seat: &Seat, sent: Instant, row: &WorkerRow) {
        self.lock().beat(seat, sent, row);
    }

    /// The worker says that it took a lease, and why.
    pub(crate) fn taken(&self, seat: &Seat, shard: &ShardId, reason: &ClaimReason) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("holds {} ({reason:?})", short(shard.as_str())));
        let alive = state.tenures.get_mut(&(seat.no, shard.clone())).is_some_and(|tenure| {
            tenure.begun = true;
            tenure.took_alive
        });
        match reason {
            ClaimReason::Free | ClaimReason::Expired if alive => {
                state.violate(&seat.name, format!("took {shard} as {reason:?} from a living holder"));
            }
            ClaimReason::HandedOver { .. } => state.counts.handed_over += 1,
            _ => {}
        }
    }

    // What the user's code sees.

    pub(crate) fn processor_made(&self, seat: &Seat, shard: &ShardId) {
        let mut state = self.lock();
        let max = state.instances[seat.no].max_leases.unwrap_or(usize::MAX);
        let processors = &mut state.instances[seat.no].processors;
        let count = processors.entry(shard.clone()).or_default();
        *count += 1;
        let (count, all) = (*count, processors.values().filter(|count| **count > 0).count());
        if count > 1 {
            state.violate(&seat.name, format!("works on {shard} {count} times at once"));
        }
        if all > max {
            state.violate(&seat.name, format!("works on {all} shards, {max} are allowed"));
        }
        state.may_work(seat, shard, "is given");
    }

    pub(crate) fn processor_gone(&self, seat: &Seat, shard: &ShardId) {
        let mut state = self.lock();
        state.note_stall(seat.no, shard);
        let count = state.instances[seat.no].processors.entry(shard.clone()).or_default();
        *count = count.saturating_sub(1);
    }

    /// The user's code is polled with records of the shard in its hands.
    pub(crate) fn works(&self, seat: &Seat, shard: &ShardId) {
        self.lock().may_work(seat, shard, "works on");
    }

    pub(crate) fn delivered(&self, seat: &Seat, shard: &ShardId, first: u64, last: u64) {
        self.lock().delivered(seat, shard, first, last);
    }

    /// The user's code returned an error: what it did not acknowledge comes again.
    pub(crate) fn failed(&self, seat: &Seat, shard: &ShardId, first: u64) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("fails on {}", short(shard.as_str())));
        state.waits(seat, shard);
        if let Some(tenure) = state.tenures.get_mut(&(seat.no, shard.clone())) {
            tenure.retry_from = Some(first);
        }
    }

    pub(crate) fn acked(&self, seat: &Seat, shard: &ShardId, first: u64, last: u64) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("is done with {} {first}..={last}", short(shard.as_str())));
        state.signs(seat, shard, |_| ());
        if let Some(log) = state.shards.get_mut(shard) {
            (first..=last).for_each(|number| log.ack(number));
        }
        let mut moves_on = false;
        if let Some(tenure) = state.tenures.get_mut(&(seat.no, shard.clone())) {
            tenure.acked.extend((first..=last).filter(|number| Some(*number) < tenure.next));
            while tenure.acked.remove(&(tenure.acked_through + 1)) {
                tenure.acked_through += 1;
                moves_on = true;
            }
        }
        if moves_on {
            state.moves_on(seat.no, shard);
        }
    }

    /// The user's code gave a sign of progress.
    pub(super) fn signs(&self, seat: &Seat, shard: &ShardId, with: impl FnOnce(&mut Work)) {
        self.lock().signs(seat, shard, with);
    }

    /// The user's code asks for a checkpoint to be written now.
    pub(crate) fn demands(&self, seat: &Seat) {
        self.lock().demands(seat);
    }

    /// The user's code cannot go on with the shard.
    pub(crate) fn gives_up(&self, seat: &Seat, shard: &ShardId) {
        self.lock().instances[seat.no].gives_up.insert(shard.clone());
    }

    /// What a worker says of itself.
    pub(crate) fn judge(&self, seat: &Seat, health: &Health, stopping: bool) {
        self.lock().judge(seat, health, stopping);
    }

    // What is asked at the end.

    /// Shards with records that nobody has acknowledged: how many, and the first.
    pub(crate) fn unread(&self) -> Vec<(ShardId, usize, u64)> {
        let state = self.lock();
        let pinned = state.pinned.unwrap_or(0);
        let unread = state.shards.iter().filter_map(|(shard, log)| {
            let count = log.unread_count(pinned);
            Some((shard.clone(), count, log.unread(pinned)?))
        });
        unread.collect()
    }

    /// The last record of a shard that arrived before `millis`; 0 if none did.
    pub(crate) fn before(&self, shard: &ShardId, millis: u64) -> u64 {
        self.lock().shards.get(shard).map_or(0, |log| log.before(millis))
    }

    /// How many shards have not been read to their end.
    pub(crate) fn unended(&self) -> usize {
        self.lock().shards.values().filter(|log| !log.ended).count()
    }

    /// The number of accepted claims.
    pub(crate) fn moves(&self) -> usize {
        self.lock().moves.len()
    }

    /// Whether a person set the checkpoint back, for the next holder to find. The present one leaves it at its
    /// stop if it has nothing to add.
    pub(crate) fn is_rewound(&self, shard: &ShardId) -> bool {
        self.lock().rows.get(shard).is_some_and(|row| row.rewound)
    }

    /// Whether a lease has been handed over and not been claimed yet: who was given it finds out when its read
    /// budget allows.
    pub(crate) fn is_any_on_its_way(&self) -> bool {
        self.lock().rows.values().any(|row| row.transferred)
    }

    /// How many bytes one instance has read.
    pub(crate) fn read_bytes(&self, no: usize) -> u64 {
        self.lock().instances[no].read_bytes
    }

    /// Whether an instance has ever been given a shard to work on.
    pub(crate) fn has_worked(&self, no: usize) -> bool {
        !self.lock().instances[no].processors.is_empty()
    }

    /// How many shards one instance works on.
    pub(crate) fn works_on(&self, no: usize) -> usize {
        self.lock().instances[no].processors.values().filter(|count| **count > 0).count()
    }

    /// Calls of one instance so far, by their names.
    pub(crate) fn calls(&self, no: usize) -> Calls {
        Calls(self.lock().instances[no].calls.clone())
    }

    /// How many shards lie between the oldest unread one and the youngest.
    pub(crate) fn generations(&self) -> u32 {
        let state = self.lock();
        let mut depth: BTreeMap<&ShardId, u32> = BTreeMap::new();
        for (shard, log) in &state.shards {
            let above = log.parents.iter().filter_map(|parent| depth.get(parent)).max().copied().unwrap_or(0);
            depth.insert(shard, if log.ended { 0 } else { above + 1 });
        }
        depth.values().max().copied().unwrap_or(0)
    }
}
