//! What the observer knows of a fleet, and the rules that it checks at each write and each delivery.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use kinesis_consumer::{
    Checkpoint, Incarnation, Lease, LeaseWrite, Mark, OwnerChange, ShardId, WorkerId, WorkerRow,
};
use tokio::time::Instant;

use super::{
    ahead::Pages,
    by_throughput::Holders,
    calm::Span,
    health::Work,
    moves::Account,
    observer::{Counts, Rules},
    processor::Seat,
    shards::{Keys, ShardLog, number},
    trace::{Trace, short},
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) start: Instant,
    pub(super) rules: Rules,
    pub(super) trace: Trace,
    pub(super) violations: Vec<String>,
    pub(super) shards: BTreeMap<ShardId, ShardLog>,
    pub(super) keys: Keys,
    pub(super) rows: BTreeMap<ShardId, RowLog>,
    /// Shards whose rows a person has removed since they were made.
    pub(super) removed: BTreeSet<ShardId>,
    /// Rows were removed or set back by hand.
    pub(super) touched: bool,
    pub(super) tenures: BTreeMap<(usize, ShardId), Tenure>,
    /// Until when leases are valid that live by a heartbeat, as long as that is unbroken.
    pub(super) pulses: BTreeMap<Incarnation, Instant>,
    pub(super) instances: Vec<Instance>,
    /// The earliest start of a worker that made a row, which is when the application began: what arrived since then
    /// must not be missed.
    pub(super) pinned: Option<u64>,
    /// The time at which the application is to begin, if it is to begin at one.
    pub(super) begins: Option<u64>,
    pub(super) are_looks_stale: bool,
    pub(super) counts: Counts,
    pub(super) moves: Vec<u64>,
    pub(super) account: Account,
    /// Who had each lease last, and when it came to another.
    pub(super) holders: BTreeMap<ShardId, Holders>,
}

/// One row of the table, from its making to its end.
#[derive(Debug, Default)]
pub(super) struct RowLog {
    pub(super) highest: u64,
    /// The instance whose claim was the last to be accepted; none after it gave the lease up.
    pub(super) holder: Option<usize>,
    /// Somebody has changed the row by hand: the holder cannot be known before the next claim.
    pub(super) edited: bool,
    /// Its last holder left it in its own name, and it has not been claimed since.
    pub(super) left_by: Option<usize>,
    /// Its holder has handed it over, and it has not been claimed since.
    pub(super) transferred: bool,
    /// To whom, and when.
    pub(super) handed_to: Option<(WorkerId, Instant)>,
    /// A worker that is not ours holds it.
    pub(super) held_elsewhere: Option<String>,
    /// Somebody has set the checkpoint back by hand.
    pub(super) rewound: bool,
    /// It says that the shard has been read to its end.
    pub(super) finished: bool,
    /// Whose load it is: its holder's, or that of the worker that has asked for it.
    pub(super) load_of: Option<String>,
}

/// One holding of one lease by one instance.
#[derive(Debug)]
pub(super) struct Tenure {
    /// Others may take the lease from then on, unless its heartbeat moves: nothing is to be delivered any
    /// more.
    pub(super) valid_until: Instant,
    /// What the row says that the lease lives by.
    pub(super) heartbeat: Option<Incarnation>,
    /// The lease was given up, or the shard ended.
    pub(super) over: bool,
    pub(super) claimed_at: Instant,
    /// It begins with the shard, not at a checkpoint.
    pub(super) fresh: bool,
    /// A page of the shard has been served.
    pub(super) opened: bool,
    /// The first of them had records, and that of the checkpoint was not there any more.
    pub(super) gap: bool,
    /// The last record before this holding; those of a start at a time may begin earlier.
    pub(super) base: u64,
    pub(super) exact: bool,
    /// Its records are those that arrived then or later: the time may still be to come.
    since: Option<u64>,
    pub(super) next: Option<u64>,
    /// The last batch failed: what of it is not acknowledged comes again.
    pub(super) retry_from: Option<u64>,
    pub(super) acked_through: u64,
    pub(super) acked: BTreeSet<u64>,
    /// At the claim the holding before could still have been valid.
    pub(super) took_alive: bool,
    /// The worker says that it holds the lease: it works on the shard.
    pub(super) begun: bool,
    /// Another worker has asked for the lease.
    pub(super) asked: bool,
    /// The last record up to which all was acknowledged when it sent the write that gives the lease up.
    pub(super) lets_go_at: Option<u64>,
    /// What was read and is not done with.
    pub(super) pages: Pages,
}

#[derive(Debug, Default)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) over: bool,
    /// The most leases that it may hold, if there is a limit.
    pub(super) max_leases: Option<usize>,
    pub(super) calls: BTreeMap<&'static str, u64>,
    pub(super) read_bytes: u64,
    pub(super) steals_since_look: usize,
    /// When it last looked at the table.
    pub(super) looked: Option<Instant>,
    /// When the last look of it was served, and all that were answered, where that matters.
    pub(super) served: Option<Instant>,
    pub(super) looks: Vec<Instant>,
    pub(super) processors: BTreeMap<ShardId, usize>,
    pub(super) work: BTreeMap<ShardId, Work>,
    /// Those that had leases at its last look.
    pub(super) peers: BTreeSet<String>,
    /// When it last woke up.
    pub(super) thawed: Option<Instant>,
    /// It was asked to stop.
    pub(super) stopping: bool,
    /// When it was, or woke up since.
    pub(super) stops_since: Option<Instant>,
    /// When it started, by the stream's clock.
    pub(super) starts_at: u64,
    /// When it started, and when a page came last.
    pub(super) joined_at: Option<Instant>,
    pub(super) read_at: Option<Instant>,
    /// The user's code cannot go on with these.
    pub(super) gives_up: BTreeSet<ShardId>,
    /// The first lease that it gave up although nothing asked it to, and when: it must be about to end.
    pub(super) leaves: Option<(ShardId, Instant)>,
    /// It passed over records of these that had left the stream, and has to say so.
    pub(super) gaps: BTreeSet<ShardId>,
    /// It said so of these.
    pub(super) gaps_told: BTreeSet<ShardId>,
    pub(super) span: Span,
}

pub(super) fn kind(write: &LeaseWrite) -> String {
    let mark = match write.mark() {
        None => String::new(),
        Some(Mark::Done(Checkpoint::At(at)) | Mark::Advanced(Checkpoint::At(at))) => {
            format!(" at {}", number(at))
        }
        Some(Mark::Done(checkpoint) | Mark::Advanced(checkpoint)) => format!(" at {checkpoint}"),
        Some(Mark::Prepared(_)) => " with a prepared checkpoint".into(),
        Some(Mark::Reset(reset)) => format!(" reset to {}", reset.to),
    };
    let verb = match (write.owner(), write.mark()) {
        (OwnerChange::Set { .. }, _) => "claim",
        (OwnerChange::Leave, _) => "leave",
        (OwnerChange::Remove, _) => "release",
        (OwnerChange::Transfer, _) => "hand over",
        (OwnerChange::Keep, None) => "renew",
        (OwnerChange::Keep, Some(_)) => "checkpoint",
    };
    format!("{verb}{mark}")
}

impl State {
    pub(super) fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub(super) fn note(&mut self, who: &str, what: impl FnOnce() -> String) {
        let at = self.millis();
        self.trace.note(at, who, what);
    }

    pub(super) fn violate(&mut self, who: &str, what: impl fmt::Display) {
        let at = self.millis();
        self.note(who, || format!("VIOLATION: {what}"));
        self.violations.push(format!("{}.{:03} s: {who} {what}", at / 1000, at % 1000));
    }

    pub(super) fn alive(&mut self, seat: &Seat, what: &str) {
        if self.instances[seat.no].over {
            self.violate(&seat.name, format!("{what} after its end"));
        }
        if seat.freezer.is_frozen() {
            self.violate(&seat.name, format!("{what} while frozen"));
        }
    }

    /// Counts a lease taken from a living holder, or asked for; but not what was sent before the last look, and
    /// has been on its way since.
    pub(super) fn steals(&mut self, seat: &Seat, sent: Instant) {
        let instance = &mut self.instances[seat.no];
        if instance.looked.is_some_and(|looked| sent < looked) {
            return;
        }
        instance.steals_since_look += 1;
        let (steals, most) = (instance.steals_since_look, self.rules.max_steals);
        if steals > most {
            self.violate(&seat.name, format!("took {steals} leases in one look, {most} are allowed"));
        }
    }

    /// A beat has taken effect. One that does so after the heartbeat's validity is no sign of life: others may
    /// have taken the leases in between, without a trace in that row.
    pub(super) fn beat(&mut self, seat: &Seat, sent: Instant, row: &WorkerRow) {
        self.counts.writes += 1;
        let valid_until = sent + self.rules.failover_time;
        if !row.incarnation.is_of(&seat.name.as_str().into()) {
            self.violate(&seat.name, format!("beats for {}", row.incarnation));
        }
        match self.pulses.get_mut(&row.incarnation) {
            None => drop(self.pulses.insert(row.incarnation.clone(), valid_until)),
            Some(until) if Instant::now() < *until => *until = valid_until.max(*until),
            Some(_) => {}
        }
        self.note(&seat.name, || format!("beats {} of {}", row.counter, row.incarnation));
    }

    /// Until when nobody may take a lease from its holder.
    pub(super) fn valid_until(&self, tenure: &Tenure) -> Instant {
        let pulse = tenure.heartbeat.as_ref().and_then(|heartbeat| self.pulses.get(heartbeat));
        pulse.map_or(tenure.valid_until, |until| tenure.valid_until.max(*until))
    }

    pub(super) fn wrote(
        &mut self,
        seat: &Seat,
        sent: Instant,
        write: &LeaseWrite,
        before: &Lease,
        after: &Lease,
    ) {
        self.counts.writes += 1;
        let shard = after.key.shard();
        let valid_until = sent + self.rules.failover_time;
        self.note(&seat.name, || {
            let (kind, shard) = (kind(write), short(shard.as_str()));
            format!("{kind} {shard}, counter {}", after.counter)
        });
        let row = self.rows.entry(shard.clone()).or_default();
        let (highest, holder, edited) = (row.highest, row.holder, row.edited);
        let elsewhere = row.held_elsewhere.clone();
        // Whoever did not hear that it had left says so again.
        let again = matches!(write.owner(), OwnerChange::Leave) && row.left_by == Some(seat.no);
        (row.highest, row.finished) = (after.counter, after.is_finished());
        if after.counter <= highest && highest > 0 {
            self.violate(
                &seat.name,
                format!("set the counter of {shard} from {highest} to {}", after.counter),
            );
        }
        match write.owner() {
            OwnerChange::Set { owner, .. } => self.claimed(seat, owner, valid_until, before, after),
            _ if elsewhere.is_some() || holder != Some(seat.no) && !edited && !again => {
                let ours = || holder.map_or("nobody's", |no| self.instances[no].name.as_str()).to_owned();
                let now = elsewhere.map_or_else(ours, |who| format!("{who}'s"));
                let kind = kind(write);
                self.violate(&seat.name, format!("was allowed to {kind} {shard}, which is {now}"));
            }
            change => {
                let gone = matches!(change, OwnerChange::Leave | OwnerChange::Remove | OwnerChange::Transfer);
                if gone && let Some(row) = self.rows.get_mut(&shard) {
                    row.holder = None;
                    row.left_by = matches!(change, OwnerChange::Leave).then_some(seat.no);
                    row.transferred = matches!(change, OwnerChange::Transfer);
                    let to = after.owner.clone().filter(|_| row.transferred);
                    row.handed_to = to.map(|to| (to, Instant::now()));
                    if !row.transferred {
                        row.load_of = None;
                    }
                }
                match (change, after.is_finished()) {
                    (_, true) | (OwnerChange::Keep, _) => {}
                    (change, false) => {
                        self.gave_up(seat, change, &shard);
                        self.lets_go(seat, after);
                    }
                }
                if matches!(change, OwnerChange::Transfer) {
                    self.comes_to(after.owner.as_ref().map(WorkerId::as_str), &shard);
                }
                if matches!(change, OwnerChange::Remove) {
                    self.comes_to(None, &shard);
                }
                if let Some(tenure) = self.tenures.get_mut(&(seat.no, shard.clone())) {
                    tenure.valid_until = tenure.valid_until.max(valid_until);
                    tenure.heartbeat = after.lives_by().cloned();
                    tenure.over |= gone;
                }
            }
        }
        if let Some(Mark::Done(checkpoint) | Mark::Advanced(checkpoint)) = write.mark() {
            self.checkpointed(seat, &shard, checkpoint, before);
        }
    }

    pub(super) fn claimed(
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
        let (holder, edited) = (row.holder, row.edited);
        let waits_for = holder.or(row.left_by).filter(|_| !edited && before.checkpoint_owner.is_none());
        let (handed_to, load_of) = (row.handed_to.take(), row.load_of.take());
        if handed_to.as_ref().is_some_and(|(to, _)| to.as_str() == seat.name) {
            // What was asked for has come: another may be asked for before the next look.
            let steals = &mut self.instances[seat.no].steals_since_look;
            *steals = steals.saturating_sub(1);
        }
        *row = RowLog { highest: row.highest, holder: Some(seat.no), load_of, ..RowLog::default() };
        if let Some((to, at)) = handed_to.filter(|(to, _)| !edited && to.as_str() != seat.name) {
            self.takes_on_its_way(seat, &shard, &to, at);
        }
        self.instances[seat.no].gives_up.remove(&shard);
        let took_alive = !edited
            && holder.filter(|no| *no != seat.no).is_some_and(|no| {
                let tenure = self.tenures.get(&(no, shard.clone()));
                tenure.is_some_and(|tenure| !tenure.over && Instant::now() < self.valid_until(tenure))
            });
        match took_alive {
            true => self.moves_to(seat, &shard),
            false => self.is_load_of(&seat.name, &shard),
        }
        if took_alive {
            self.counts.stolen_alive += 1;
            if before.checkpoint_owner.is_none() {
                self.steals(seat, valid_until - self.rules.failover_time);
                self.takes_by_throughput(seat, valid_until - self.rules.failover_time, &shard);
            }
        } else if let Some(no) = waits_for {
            self.takes_in_time(seat, &shard, no);
        }
        self.comes_to(Some(&seat.name), &shard);
        let log = self.shards.entry(shard.clone()).or_default();
        let (base, exact) = match (&after.checkpoint, after.start_millis) {
            (Checkpoint::At(position), _) => (number(position), true),
            (Checkpoint::Latest, Some(at)) if after.reset_millis.is_none() => {
                (log.before(self.pinned.unwrap_or(at)), false)
            }
            (Checkpoint::Latest | Checkpoint::AtTimestamp, Some(at)) => (log.before(at), false),
            _ => (0, true),
        };
        let since = after.start_millis.filter(|_| after.checkpoint == Checkpoint::AtTimestamp);
        let acked_through = after.checkpoint.position().map_or(base, number);
        let tenure = Tenure {
            valid_until,
            heartbeat: after.lives_by().cloned(),
            over: false,
            base,
            exact,
            since,
            next: None,
            retry_from: None,
            acked_through,
            acked: BTreeSet::new(),
            took_alive,
            claimed_at: Instant::now(),
            fresh: after.checkpoint.position().is_none(),
            opened: false,
            gap: false,
            begun: false,
            asked: false,
            lets_go_at: None,
            pages: Pages::default(),
        };
        self.tenures.insert((seat.no, shard), tenure);
    }

    /// A worker makes a row. What has been read to its end is not begun again, unless a person removed rows or set
    /// them back: then nobody can know.
    pub(super) fn makes_anew(&mut self, seat: &Seat, shard: &ShardId) {
        if !self.touched && self.shards.get(shard).is_some_and(|log| log.ended) {
            let again = format!("makes a lease again for {shard}, which has been read to its end");
            self.violate(&seat.name, again);
        }
    }

    pub(super) fn checkpointed(&mut self, seat: &Seat, shard: &ShardId, to: &Checkpoint, before: &Lease) {
        if *to < before.checkpoint {
            self.violate(&seat.name, format!("took the checkpoint of {shard} back to {to}"));
        }
        let log = self.shards.entry(shard.clone()).or_default();
        let through = match to {
            Checkpoint::At(position) => number(position),
            Checkpoint::ShardEnd => log.last(),
            start => return self.violate(&seat.name, format!("checkpointed {shard} at {start}")),
        };
        let nothing_left = log.last() == 0 || log.gone;
        let lost = log.lost();
        let (childless, ended) = (log.children.is_empty(), *to == Checkpoint::ShardEnd);
        log.ended |= ended;
        if ended {
            let children = log.children.clone();
            if childless {
                self.violate(&seat.name, format!("ended {shard}, which is open"));
            }
            for child in children {
                let made = self.rows.contains_key(&child) || self.removed.contains(&child);
                if !made && !self.shards.get(&child).is_some_and(|log| log.ended || log.gone) {
                    self.violate(&seat.name, format!("ended {shard} before there is a lease for {child}"));
                }
            }
        }
        let tenure = self.tenures.get(&(seat.no, shard.clone()));
        // What is older than an application's beginning is none of its own, and at the end what is lost is not owed.
        let older = tenure.map_or(0, |tenure| self.older(tenure, shard));
        let acked = tenure.map_or(0, |tenure| tenure.acked_through).max(older);
        if acked.max(if ended { lost } else { 0 }) < through && !(ended && nothing_left) {
            self.violate(
                &seat.name,
                format!("checkpointed {shard} at {through} with {} not acknowledged", acked + 1),
            );
        }
    }

    /// Nobody has to be given what arrived before the application's beginning, and whoever is may be given some of it.
    pub(super) fn leave_out_before(&mut self, shard: &ShardId, at: u64) {
        let log = self.shards.entry(shard.clone()).or_default();
        log.leave_out(log.before(at)).into_iter().for_each(|(key, in_key)| self.keys.miss(key, in_key));
    }

    /// The last record of a shard from before the time at which the application was to begin.
    fn older(&self, tenure: &Tenure, shard: &ShardId) -> u64 {
        let log = self.shards.get(shard).zip(tenure.since);
        log.map_or(0, |(log, since)| log.before(since))
    }

    /// Whoever lets a lease go leaves the next holder nothing that its processor had acknowledged when it sent the
    /// write.
    fn lets_go(&mut self, seat: &Seat, after: &Lease) {
        let shard = after.key.shard();
        let rewound = self.rows.get(&shard).is_some_and(|row| row.rewound || row.edited);
        let Some(tenure) = self.tenures.get(&(seat.no, shard.clone())).filter(|_| !rewound) else { return };
        // What came before the holding was read by others, or skipped on purpose; what has left is nobody's.
        let lost = self.shards.get(&shard).map_or(0, ShardLog::lost);
        let before = tenure.base.max(lost).max(self.older(tenure, &shard));
        let owed =
            tenure.lets_go_at.filter(|through| tenure.next.is_some() && *through > before).unwrap_or(0);
        let stored = after.checkpoint.position().map_or(0, number);
        if stored < owed {
            let why = format!("lets {shard} go at {stored}, and all through {owed} was acknowledged");
            self.violate(&seat.name, why);
        }
    }

    pub(super) fn may_work(&mut self, seat: &Seat, shard: &ShardId, what: &str) {
        self.alive(seat, &format!("{what} {shard}"));
        let tenure = self.tenures.get(&(seat.no, shard.clone()));
        let late = match tenure {
            None => Some("without a lease".to_owned()),
            Some(tenure) if tenure.over => Some("after it gave the lease up".to_owned()),
            Some(tenure) => Instant::now()
                .checked_duration_since(self.valid_until(tenure))
                .map(|late| format!("{late:?} after its lease could have been taken")),
        };
        if let Some(late) = late {
            self.violate(&seat.name, format!("{what} {shard} {late}"));
        }
    }

    pub(super) fn read_elsewhere(&mut self, who: &str, shard: &ShardId, first: u64, last: u64) {
        self.note(who, || format!("is done with {} {first}..={last}", short(shard.as_str())));
        let log = self.shards.entry(shard.clone()).or_default();
        let mut wrong = Vec::new();
        for number in first..=last {
            wrong.extend(log.deliver(number, first - 1).err());
            log.ack(number);
            if let Some((key, in_key)) = log.in_key(number).filter(|_| self.rules.parents_first) {
                wrong.extend(self.keys.deliver(key, in_key).err());
            }
        }
        for why in wrong {
            self.violate(who, format!("read {shard} {first}..={last}, but {why}"));
        }
    }

    pub(super) fn delivered(&mut self, seat: &Seat, shard: &ShardId, first: u64, last: u64) {
        self.note(&seat.name, || format!("is given {} {first}..={last}", short(shard.as_str())));
        self.may_work(seat, shard, "is given");
        self.signs(seat, shard, |_| ());
        self.counts.deliveries += last + 1 - first;
        let log = self.shards.entry(shard.clone()).or_default();
        // What came before it has left the stream.
        let (parents, skips) = (log.parents.clone(), log.losses.contains(&(first - 1)));
        let mut wrong = Vec::new();
        for number in first..=last {
            wrong.extend(log.deliver(number, first - 1).err());
            if let Some((key, in_key)) = log.in_key(number).filter(|_| self.rules.parents_first) {
                wrong.extend(self.keys.deliver(key, in_key).err());
            }
        }
        for parent in parents {
            let tenure = self.tenures.get(&(seat.no, shard.clone()));
            // A parent that was set back keeps only those waiting that have not begun.
            let waits = |log: &ShardLog| {
                // The claim may have been on its way, after the parents were looked at.
                let under_way = self.rules.failover_time / 2;
                log.reset_at.is_none_or(|at| {
                    tenure.is_none_or(|tenure| tenure.fresh && at + under_way < tenure.claimed_at)
                })
            };
            // One that had ended before the application was to begin has nothing to give, whatever row it has got.
            let gives = |log: &ShardLog| self.begins.is_none_or(|at| log.before(at) < log.last());
            let unended = self
                .shards
                .get(&parent)
                .is_some_and(|log| !log.ended && !log.gone && gives(log) && waits(log));
            // An application that began at the tip reads no shard that was closed before.
            if self.rules.parents_first
                && unended
                && (self.rules.from_start || self.rows.contains_key(&parent))
            {
                wrong.push(format!("its parent {parent} has not ended"));
            }
        }
        if !self.has_unfinished(seat.no, shard) {
            self.moves_on(seat.no, shard);
        }
        let tenure = self.tenures.get(&(seat.no, shard.clone())).filter(|tenure| tenure.since.is_some());
        let begins_with = tenure.map(|tenure| self.older(tenure, shard) + 1);
        if let Some(tenure) = self.tenures.get_mut(&(seat.no, shard.clone())) {
            let next = match tenure.retry_from.take() {
                Some(from) => Some(from.max(tenure.acked_through + 1)),
                None => tenure.next,
            };
            // What has left the stream comes if it had been read by then, and is passed over if not.
            let comes = |next: u64| first == next || (skips && next < first);
            let expected = match next {
                Some(next) => comes(next),
                None if let Some(first) = begins_with => comes(first),
                None if tenure.exact => comes(tenure.base + 1),
                None => first <= tenure.base + 1,
            };
            if !expected {
                let next = next.or(begins_with).unwrap_or(tenure.base + 1);
                wrong.push(format!("{next} is what comes next for this holder"));
            }
            let finds_gap = tenure.next.is_none() && tenure.gap && skips && tenure.base + 1 < first;
            if tenure.next.is_none() {
                tenure.acked_through = first - 1;
            } else if skips {
                tenure.acked_through = tenure.acked_through.max(first - 1);
            }
            if finds_gap {
                self.instances[seat.no].gaps.insert(shard.clone());
            }
            tenure.next = Some(last + 1);
        }
        for why in wrong {
            self.violate(&seat.name, format!("is given {shard} {first}..={last}, but {why}"));
        }
    }
}
