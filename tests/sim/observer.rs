//! The observer: what the fleet has done, and whether it was allowed to.
//!
//! Sees every write that takes effect, every delivery and every acknowledgement, and checks the
//! invariants at once: I1 no loss, I2 safe checkpoints, I3 one accepted owner, I4 order, I6 limits. What
//! can be judged only at rest (I5 liveness, calm, budgets) is asked of it at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinesis_consumer::{
    Checkpoint, ClaimReason, HandOff, Lease, LeaseWrite, Mark, OwnerChange, ShardId, WorkerId,
};
use tokio::time::Instant;

use super::{
    processor::Seat,
    shards::{Keys, ShardLog, number},
    trace::{Trace, short},
};

/// The rules that the observer holds a fleet to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) failover_time: Duration,
    pub(crate) max_leases: usize,
    pub(crate) max_steals: usize,
}

#[derive(Debug)]
pub(crate) struct Observer(Mutex<State>);

#[derive(Debug)]
struct State {
    start: Instant,
    rules: Rules,
    trace: Trace,
    violations: Vec<String>,
    shards: BTreeMap<ShardId, ShardLog>,
    keys: Keys,
    rows: BTreeMap<ShardId, RowLog>,
    /// Shards whose row a person has removed.
    removed: BTreeSet<ShardId>,
    tenures: BTreeMap<(usize, ShardId), Tenure>,
    instances: Vec<Instance>,
    /// The latest start that a row was pinned to: what arrived since then must not be missed.
    pinned: u64,
    counts: Counts,
    moves: Vec<u64>,
}

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
}

/// One row of the table, from its making to its end.
#[derive(Debug, Default)]
struct RowLog {
    highest: u64,
    /// The instance whose claim was the last to be accepted; none after it gave the lease up.
    holder: Option<usize>,
    /// It was removed by hand before. Its counter may meet one that somebody remembers of the row before it.
    remade: bool,
    /// Somebody has changed the row by hand: the holder cannot be known before the next claim.
    edited: bool,
}

/// One holding of one lease by one instance.
#[derive(Debug)]
struct Tenure {
    /// Others may take the lease from then on: nothing is to be delivered any more.
    valid_until: Instant,
    /// The lease was given up, or the shard ended.
    over: bool,
    /// The last record before this holding; those of a start at a time may begin earlier.
    base: u64,
    exact: bool,
    next: Option<u64>,
    /// The last batch failed: what of it is not acknowledged comes again.
    retry_from: Option<u64>,
    acked_through: u64,
    acked: BTreeSet<u64>,
    /// At the claim the holding before could still have been valid.
    took_alive: bool,
}

#[derive(Debug, Default)]
struct Instance {
    name: String,
    over: bool,
    calls: u64,
    looks: u64,
    steals_since_look: usize,
    processors: BTreeMap<ShardId, usize>,
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
            tenures: BTreeMap::new(),
            instances: Vec::new(),
            pinned: 0,
            counts: Counts::default(),
            moves: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
        state.instances.push(Instance { name: name.into(), ..Instance::default() });
        state.instances.len() - 1
    }

    /// From now on the instance must not do anything.
    pub(crate) fn ended(&self, no: usize) {
        let mut state = self.lock();
        state.instances[no].over = true;
        let alive = state.instances[no].processors.values().sum::<usize>();
        if alive > 0 {
            let name = state.instances[no].name.clone();
            state.violate(&name, format!("{alive} processors outlive their worker"));
        }
    }

    pub(crate) fn shard_made(&self, shard: &ShardId, parents: &BTreeSet<ShardId>) {
        let mut state = self.lock();
        for parent in parents {
            state.shards.entry(parent.clone()).or_default().children.push(shard.clone());
        }
        let log = state.shards.entry(shard.clone()).or_default();
        log.parents = parents.iter().cloned().collect();
    }

    pub(crate) fn put(&self, shard: &ShardId, key: u32, in_key: u32, arrived_millis: u64) {
        let mut state = self.lock();
        state.counts.records += 1;
        state.shards.entry(shard.clone()).or_default().put(key, in_key, arrived_millis);
    }

    /// A person has removed the row, or the whole table.
    pub(crate) fn row_removed(&self, shard: &ShardId) {
        let mut state = self.lock();
        state.rows.remove(shard);
        state.removed.insert(shard.clone());
    }

    /// A person has changed the row.
    pub(crate) fn row_edited(&self, shard: &ShardId, counter: u64) {
        let mut state = self.lock();
        let row = state.rows.entry(shard.clone()).or_default();
        (row.edited, row.highest) = (true, counter);
    }

    // What workers do to the table.

    pub(crate) fn called(&self, seat: &Seat) {
        let mut state = self.lock();
        state.counts.calls += 1;
        state.instances[seat.no].calls += 1;
        state.alive(seat, "makes a call");
    }

    pub(crate) fn looks(&self, seat: &Seat) {
        let mut state = self.lock();
        state.instances[seat.no].looks += 1;
        state.instances[seat.no].steals_since_look = 0;
    }

    pub(crate) fn created(&self, seat: &Seat, lease: &Lease) {
        let mut state = self.lock();
        let shard = lease.key.shard();
        state.note(&seat.name, || {
            format!("makes lease {} at {}", short(lease.key.as_str()), lease.checkpoint)
        });
        if let (Checkpoint::Latest, Some(at)) = (&lease.checkpoint, lease.start_millis) {
            state.pinned = state.pinned.max(at);
        }
        let remade = state.removed.contains(&shard);
        state.rows.insert(shard, RowLog { highest: lease.counter, remade, ..RowLog::default() });
    }

    pub(crate) fn deleted(&self, seat: &Seat, row: &Lease) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("deletes lease {}", short(row.key.as_str())));
        if !row.is_finished() {
            state.violate(&seat.name, format!("deleted the row of {}, which has not ended", row.key));
        }
        state.rows.remove(&row.key.shard());
    }

    pub(crate) fn asked(&self, seat: &Seat, request: &HandOff) {
        let mut state = self.lock();
        state.note(&seat.name, || {
            let what = if request.is_withdrawal() { "withdraws its request to" } else { "asks" };
            format!("{what} {} for {}", request.from(), short(request.key().as_str()))
        });
        if !request.is_withdrawal() {
            state.steals(seat);
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

    /// The worker says that it took a lease, and why.
    pub(crate) fn taken(&self, seat: &Seat, shard: &ShardId, reason: &ClaimReason) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("holds {} ({reason:?})", short(shard.as_str())));
        let alive = state.tenures.get(&(seat.no, shard.clone())).is_some_and(|tenure| tenure.took_alive);
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
        let max = state.rules.max_leases;
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
        if let Some(tenure) = state.tenures.get_mut(&(seat.no, shard.clone())) {
            tenure.retry_from = Some(first);
        }
    }

    pub(crate) fn acked(&self, seat: &Seat, shard: &ShardId, first: u64, last: u64) {
        let mut state = self.lock();
        state.note(&seat.name, || format!("is done with {} {first}..={last}", short(shard.as_str())));
        if let Some(log) = state.shards.get_mut(shard) {
            (first..=last).for_each(|number| log.ack(number));
        }
        if let Some(tenure) = state.tenures.get_mut(&(seat.no, shard.clone())) {
            tenure.acked.extend((first..=last).filter(|number| Some(*number) < tenure.next));
            while tenure.acked.remove(&(tenure.acked_through + 1)) {
                tenure.acked_through += 1;
            }
        }
    }

    // What is asked at the end.

    /// Shards with records that nobody has acknowledged: how many, and the first.
    pub(crate) fn unread(&self) -> Vec<(ShardId, usize, u64)> {
        let state = self.lock();
        let pinned = state.pinned;
        let unread = state
            .shards
            .iter()
            .filter_map(|(shard, log)| Some((shard.clone(), log.unread_count(pinned), log.unread(pinned)?)));
        unread.collect()
    }

    /// How many shards have not been read to their end.
    pub(crate) fn unended(&self) -> usize {
        self.lock().shards.values().filter(|log| !log.ended).count()
    }

    /// The number of accepted claims.
    pub(crate) fn moves(&self) -> usize {
        self.lock().moves.len()
    }

    /// Calls and looks of one instance so far.
    pub(crate) fn calls(&self, no: usize) -> (u64, u64) {
        let state = self.lock();
        (state.instances[no].calls, state.instances[no].looks)
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

fn kind(write: &LeaseWrite) -> String {
    let mark = match write.mark() {
        None => String::new(),
        Some(Mark::Done(Checkpoint::At(at)) | Mark::Advanced(Checkpoint::At(at))) => {
            format!(" at {}", number(at))
        }
        Some(Mark::Done(checkpoint) | Mark::Advanced(checkpoint)) => format!(" at {checkpoint}"),
        Some(Mark::Prepared(_)) => " with a prepared checkpoint".into(),
    };
    let verb = match (write.owner(), write.mark()) {
        (OwnerChange::Set { .. }, _) => "claim",
        (OwnerChange::Remove, _) => "release",
        (OwnerChange::Transfer, _) => "hand over",
        (OwnerChange::Keep, None) => "renew",
        (OwnerChange::Keep, Some(_)) => "checkpoint",
    };
    format!("{verb}{mark}")
}

impl State {
    fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn note(&mut self, who: &str, what: impl FnOnce() -> String) {
        let at = self.millis();
        self.trace.note(at, who, what);
    }

    fn violate(&mut self, who: &str, what: impl fmt::Display) {
        let at = self.millis();
        self.note(who, || format!("VIOLATION: {what}"));
        self.violations.push(format!("{}.{:03} s: {who} {what}", at / 1000, at % 1000));
    }

    fn alive(&mut self, seat: &Seat, what: &str) {
        if self.instances[seat.no].over {
            self.violate(&seat.name, format!("{what} after its end"));
        }
        if seat.freezer.is_frozen() {
            self.violate(&seat.name, format!("{what} while frozen"));
        }
    }

    /// Counts a lease taken from a living holder, or asked for.
    fn steals(&mut self, seat: &Seat) {
        let instance = &mut self.instances[seat.no];
        instance.steals_since_look += 1;
        let (steals, most) = (instance.steals_since_look, self.rules.max_steals);
        if steals > most {
            self.violate(&seat.name, format!("took {steals} leases in one look, {most} are allowed"));
        }
    }

    fn wrote(&mut self, seat: &Seat, sent: Instant, write: &LeaseWrite, before: &Lease, after: &Lease) {
        self.counts.writes += 1;
        let shard = after.key.shard();
        let valid_until = sent + self.rules.failover_time;
        self.note(&seat.name, || {
            let (kind, shard) = (kind(write), short(shard.as_str()));
            format!("{kind} {shard}, counter {}", after.counter)
        });
        let row = self.rows.entry(shard.clone()).or_default();
        let (highest, holder, edited) = (row.highest, row.holder, row.edited);
        row.highest = after.counter;
        if after.counter <= highest && highest > 0 {
            self.violate(
                &seat.name,
                format!("set the counter of {shard} from {highest} to {}", after.counter),
            );
        }
        match write.owner() {
            OwnerChange::Set { owner, .. } => self.claimed(seat, owner, valid_until, before, after),
            _ if holder != Some(seat.no) && !edited => {
                let now = holder.map_or("nobody's", |no| self.instances[no].name.as_str()).to_owned();
                let kind = kind(write);
                self.violate(&seat.name, format!("was allowed to {kind} {shard}, which is {now}"));
            }
            change => {
                let gone = matches!(change, OwnerChange::Remove | OwnerChange::Transfer);
                if gone && let Some(row) = self.rows.get_mut(&shard) {
                    row.holder = None;
                }
                if let Some(tenure) = self.tenures.get_mut(&(seat.no, shard.clone())) {
                    tenure.valid_until = tenure.valid_until.max(valid_until);
                    tenure.over |= gone;
                }
            }
        }
        if let Some(Mark::Done(checkpoint) | Mark::Advanced(checkpoint)) = write.mark() {
            self.checkpointed(seat, &shard, checkpoint, before);
        }
    }

    fn claimed(
        &mut self,
        seat: &Seat,
        owner: &WorkerId,
        valid_until: Instant,
        before: &Lease,
        after: &Lease,
    ) {
        let shard = after.key.shard();
        self.counts.claims += 1;
        let at = self.millis();
        self.moves.push(at);
        if owner.as_str() != seat.name {
            self.violate(&seat.name, format!("claimed {shard} for {owner}"));
        }
        let row = self.rows.entry(shard.clone()).or_default();
        let (holder, edited) = (row.holder, row.edited || row.remade);
        let remade = row.remade;
        (row.holder, row.edited) = (Some(seat.no), false);
        let took_alive = !edited
            && holder.filter(|no| *no != seat.no).is_some_and(|no| {
                let tenure = self.tenures.get(&(no, shard.clone()));
                tenure.is_some_and(|tenure| !tenure.over && Instant::now() < tenure.valid_until)
            });
        if took_alive {
            self.counts.stolen_alive += 1;
            if before.checkpoint_owner.is_none() {
                self.steals(seat);
            }
        }
        let log = self.shards.entry(shard.clone()).or_default();
        let (base, exact) = match (&after.checkpoint, after.start_millis) {
            // A claim may have been made from what the row was before, if the counters meet.
            _ if remade => (log.last(), false),
            (Checkpoint::At(position), _) => (number(position), true),
            (Checkpoint::Latest | Checkpoint::AtTimestamp, Some(at)) => (log.before(at), false),
            _ => (0, true),
        };
        let acked_through = after.checkpoint.position().map_or(0, number);
        let tenure = Tenure {
            valid_until,
            over: false,
            base,
            exact,
            next: None,
            retry_from: None,
            acked_through,
            acked: BTreeSet::new(),
            took_alive,
        };
        self.tenures.insert((seat.no, shard), tenure);
    }

    fn checkpointed(&mut self, seat: &Seat, shard: &ShardId, to: &Checkpoint, before: &Lease) {
        if *to < before.checkpoint {
            self.violate(&seat.name, format!("took the checkpoint of {shard} back to {to}"));
        }
        let log = self.shards.entry(shard.clone()).or_default();
        let through = match to {
            Checkpoint::At(position) => number(position),
            Checkpoint::ShardEnd => log.last(),
            start => return self.violate(&seat.name, format!("checkpointed {shard} at {start}")),
        };
        let nothing_put = log.last() == 0;
        let (childless, ended) = (log.children.is_empty(), *to == Checkpoint::ShardEnd);
        log.ended |= ended;
        if ended {
            let children = log.children.clone();
            if childless {
                self.violate(&seat.name, format!("ended {shard}, which is open"));
            }
            for child in children {
                if !self.rows.contains_key(&child) && !self.shards.get(&child).is_some_and(|log| log.ended) {
                    self.violate(&seat.name, format!("ended {shard} before there is a lease for {child}"));
                }
            }
        }
        let acked = self.tenures.get(&(seat.no, shard.clone())).map_or(0, |tenure| tenure.acked_through);
        if acked < through && !(ended && nothing_put) {
            self.violate(
                &seat.name,
                format!("checkpointed {shard} at {through} with {} not acknowledged", acked + 1),
            );
        }
    }

    fn may_work(&mut self, seat: &Seat, shard: &ShardId, what: &str) {
        self.alive(seat, &format!("{what} {shard}"));
        let tenure = self.tenures.get(&(seat.no, shard.clone()));
        let late = match tenure {
            None => Some("without a lease".to_owned()),
            Some(tenure) if tenure.over => Some("after it gave the lease up".to_owned()),
            Some(tenure) => Instant::now()
                .checked_duration_since(tenure.valid_until)
                .map(|late| format!("{late:?} after its lease could have been taken")),
        };
        if let Some(late) = late {
            self.violate(&seat.name, format!("{what} {shard} {late}"));
        }
    }

    fn delivered(&mut self, seat: &Seat, shard: &ShardId, first: u64, last: u64) {
        self.note(&seat.name, || format!("is given {} {first}..={last}", short(shard.as_str())));
        self.may_work(seat, shard, "is given");
        self.counts.deliveries += last + 1 - first;
        let log = self.shards.entry(shard.clone()).or_default();
        let parents = log.parents.clone();
        let mut wrong = Vec::new();
        for number in first..=last {
            wrong.extend(log.deliver(number, first - 1).err());
            if let Some((key, in_key)) = log.in_key(number) {
                wrong.extend(self.keys.deliver(key, in_key).err());
            }
        }
        for parent in parents {
            let unended = self.shards.get(&parent).is_some_and(|log| !log.ended);
            if unended && self.rows.contains_key(&parent) {
                wrong.push(format!("its parent {parent} has not ended"));
            }
        }
        if let Some(tenure) = self.tenures.get_mut(&(seat.no, shard.clone())) {
            let next = match tenure.retry_from.take() {
                Some(from) => Some(from.max(tenure.acked_through + 1)),
                None => tenure.next,
            };
            let expected = match next {
                Some(next) => first == next,
                None if tenure.exact => first == tenure.base + 1,
                None => first <= tenure.base + 1,
            };
            if !expected {
                let next = next.unwrap_or(tenure.base + 1);
                wrong.push(format!("{next} is what comes next for this holder"));
            }
            if tenure.next.is_none() {
                tenure.acked_through = first - 1;
            }
            tenure.next = Some(last + 1);
        }
        for why in wrong {
            self.violate(&seat.name, format!("is given {shard} {first}..={last}, but {why}"));
        }
    }
}
