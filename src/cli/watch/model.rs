//! What `watch` knows: the rows of the last look, what moved since, and the lag as last measured.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    cli::lag::Behind,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::{Lease, LeaseKey, WorkerId},
        lease_state::{self, State},
        lease_view::{LeaseView, Standing},
    },
    io::Rows,
};

/// Moves that are remembered.
const MOVES: usize = 100;
/// Lag measurements that are remembered, for the little curve.
const CURVE: usize = 24;
/// Over which time rates are taken.
const WINDOW: Duration = Duration::from_secs(60);

/// Everything on the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) table: String,
    pub(super) failover_time: Duration,
    /// When the last look was, as a date.
    pub(super) looked_at: String,
    /// The last look or measurement that failed.
    pub(super) fault: Option<String>,
    /// All moves since the start.
    pub(super) moved: usize,
    /// The latest moves, newest first: when, and what.
    pub(super) moves: VecDeque<(String, String)>,
    /// The first line of the shards that is shown.
    pub(super) top: usize,
    view: LeaseView,
    began: Option<Instant>,
    writes: VecDeque<(Instant, WorkerId, u64)>,
    lag: BTreeMap<LeaseKey, Behind>,
    curves: BTreeMap<LeaseKey, VecDeque<u64>>,
}

/// One line of the workers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct WorkerLine {
    pub(super) id: WorkerId,
    pub(super) leases: usize,
    /// Whether none of its leases has expired.
    pub(super) alive: bool,
    /// Writes to the table, a minute.
    pub(super) writes: f64,
    /// Of its shard that is furthest behind.
    pub(super) lag: Option<Duration>,
}

impl Model {
    pub(super) fn new(table: &str, failover_time: Duration) -> Self {
        Self {
            table: table.to_owned(),
            failover_time,
            looked_at: String::new(),
            fault: None,
            moved: 0,
            moves: VecDeque::new(),
            top: 0,
            view: LeaseView::default(),
            began: None,
            writes: VecDeque::new(),
            lag: BTreeMap::new(),
            curves: BTreeMap::new(),
        }
    }

    /// Takes in a look that came at `now`, or on `date`, as people say.
    pub(super) fn look(&mut self, rows: Rows, now: Instant, date: &str) {
        let Rows { leases, workers, .. } = rows;
        let first = self.began.is_none();
        self.began.get_or_insert(now);
        for lease in &leases {
            let Some(before) = self.view.get(&lease.key) else {
                if !first {
                    self.note(date, format!("{} made", lease.key));
                }
                continue;
            };
            let (was, is) = (before.holder().cloned(), lease.holder().cloned());
            let ended = lease.is_finished() && !before.is_finished();
            if let Some(holder) = is.clone().or_else(|| was.clone()) {
                self.writes.push_back((now, holder, lease.counter.saturating_sub(before.counter)));
            }
            let name = |worker: &Option<WorkerId>| {
                worker.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string)
            };
            if ended {
                self.note(date, format!("{} ended", lease.key));
            } else if was != is {
                self.moved += 1;
                self.note(date, format!("{}  {} \u{2192} {}", lease.key, name(&was), name(&is)));
            }
        }
        for beat in &workers {
            let worker = WorkerId::from(beat.incarnation.worker());
            if let Some(before) = self.view.heartbeats.rows_of(&worker).get(&beat.incarnation) {
                self.writes.push_back((now, worker, beat.counter.saturating_sub(*before)));
            }
        }
        while self.writes.front().is_some_and(|(at, ..)| *at + WINDOW < now) {
            self.writes.pop_front();
        }
        self.view.observe(leases, now);
        self.view.observe_workers(workers, now);
        self.looked_at = date.to_owned();
        self.fault = None;
    }

    /// Workers whose heartbeats seem to stand still; a look may be stale, so read their rows again.
    pub(super) fn suspects(&self, now: Instant) -> BTreeSet<Incarnation> {
        self.view.heartbeats.suspects(self.view.leases(), self.failover_time, now)
    }

    /// Takes in what the row of a suspect shows.
    pub(super) fn confirm(&mut self, incarnation: &Incarnation, row: Option<&WorkerRow>, now: Instant) {
        self.view.heartbeats.confirm(incarnation, row, now);
    }

    fn note(&mut self, date: &str, what: String) {
        // The time of day is enough.
        let time = date.get(11..19).unwrap_or(date).to_owned();
        self.moves.push_front((time, what));
        self.moves.truncate(MOVES);
    }

    /// Takes in what was found in the stream.
    pub(super) fn measured(&mut self, found: Vec<(Lease, Behind)>) {
        for (lease, behind) in found {
            if let Some(time) = behind.time() {
                let curve = self.curves.entry(lease.key.clone()).or_default();
                curve.push_back(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                if curve.len() > CURVE {
                    curve.pop_front();
                }
            }
            self.lag.insert(lease.key, behind);
        }
    }

    pub(super) fn fail(&mut self, why: &str) {
        self.fault = Some(why.to_owned());
    }

    pub(super) fn scroll(&mut self, by: isize) {
        let last = self.view.rows().count().saturating_sub(1);
        self.top = self.top.saturating_add_signed(by).min(last);
    }

    /// All rows, by key.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.view.leases().cloned().collect()
    }

    /// Each row with its state.
    pub(super) fn states(&self, now: Instant) -> Vec<(&Lease, State)> {
        let state = |seen| {
            let seen: &crate::core::lease_view::Seen = seen;
            let silent =
                matches!(self.view.standing(seen, self.failover_time, now), Standing::Expired { .. });
            let find = |shard: &crate::core::shard::ShardId| self.view.get(&shard.into());
            (&seen.lease, lease_state::state(&seen.lease, find, silent))
        };
        self.view.rows().map(state).collect()
    }

    pub(super) fn behind(&self, key: &LeaseKey) -> Option<&Behind> {
        self.lag.get(key)
    }

    /// The lags of a shard, oldest first, in milliseconds.
    pub(super) fn curve(&self, key: &LeaseKey) -> Vec<u64> {
        self.curves.get(key).map(|curve| curve.iter().copied().collect()).unwrap_or_default()
    }

    /// Of the shard that is furthest behind.
    pub(super) fn most_behind(&self) -> Option<Duration> {
        self.view.leases().filter_map(|lease| self.lag.get(&lease.key)?.time()).max()
    }

    /// The workers that hold unfinished leases, and those whose heartbeats move, by id.
    pub(super) fn workers(&self, now: Instant) -> Vec<WorkerLine> {
        let minutes = self.began.map_or(0.0, |began| (now - began).min(WINDOW).as_secs_f64() / 60.0);
        let line = |id: &WorkerId| {
            let wrote = self.writes.iter().filter(|(_, worker, _)| worker == id);
            let writes: u64 = wrote.map(|(.., writes)| writes).sum();
            let writes = if minutes > 0.0 { writes as f64 / minutes } else { 0.0 };
            WorkerLine { id: id.clone(), leases: 0, alive: true, writes, lag: None }
        };
        let beating = self.view.heartbeats.beating(self.failover_time, now);
        let beating = beating.map(|incarnation| WorkerId::from(incarnation.worker()));
        let mut workers: BTreeMap<WorkerId, WorkerLine> = beating.map(|id| (id.clone(), line(&id))).collect();
        for (lease, state) in self.states(now) {
            let Some(holder) = lease.holder().filter(|_| state != State::Finished) else { continue };
            let line = workers.entry(holder.clone()).or_insert_with(|| line(holder));
            line.leases += 1;
            line.alive &= !matches!(state, State::Expired(_));
            line.lag = line.lag.max(self.lag.get(&lease.key).and_then(Behind::time));
        }
        workers.into_values().collect()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;
    use crate::core::lease::Checkpoint;

    const FAILOVER: Duration = Duration::from_secs(10);

    fn row(n: usize, owner: Option<&str>, counter: u64) -> Lease {
        let shard = format!("shardId-{n:012}").as_str().into();
        Lease { owner: owner.map(Into::into), counter, ..Lease::new(&shard, Checkpoint::TrimHorizon) }
    }

    fn leases(leases: Vec<Lease>) -> Rows {
        Rows { leases, ..Rows::default() }
    }

    #[test]
    fn a_move_is_noted_once_and_a_renewal_is_none() {
        let (mut model, start) = (Model::new("t", FAILOVER), Instant::now());
        model.look(leases(vec![row(0, Some("a"), 1)]), start, "2026-11-22T08:30:00Z");
        model.look(leases(vec![row(0, Some("a"), 2)]), start + FAILOVER / 2, "2026-11-22T08:30:05Z");
        assert_eq!(model.moved, 0);
        model.look(
            leases(vec![row(0, Some("b"), 3), row(1, None, 0)]),
            start + FAILOVER,
            "2026-11-22T08:30:10Z",
        );
        assert_eq!(model.moved, 1);
        let moves: Vec<&str> = model.moves.iter().map(|(_, what)| what.as_str()).collect();
        assert_eq!(moves, ["shardId-000000000001 made", "shardId-000000000000  a \u{2192} b"]);
        assert_eq!(model.moves[0].0, "08:30:10");
    }

    #[test]
    fn a_worker_that_is_silent_is_shown_as_such_and_writes_are_counted_by_the_minute() {
        let (mut model, start) = (Model::new("t", FAILOVER), Instant::now());
        for n in 0..=6 {
            let rows = leases(vec![row(0, Some("a"), n), row(1, Some("b"), 7)]);
            model.look(rows, start + FAILOVER / 2 * n as u32, "2026-11-22T08:30:00Z");
        }
        let workers = model.workers(start + FAILOVER * 3);
        let lines: Vec<(&str, bool, f64)> =
            workers.iter().map(|w| (w.id.as_str(), w.alive, w.writes)).collect();
        assert_eq!(lines, [("a", true, 12.0), ("b", false, 0.0)]);
    }

    #[test]
    fn a_worker_that_has_a_heartbeat_lives_by_it_though_its_leases_rest() {
        let (mut model, start) = (Model::new("t", FAILOVER), Instant::now());
        let of = |worker: &str| Incarnation::new(&worker.into(), 1, 1);
        let by_heartbeat = |n, worker| Lease { heartbeat: Some(of(worker)), ..row(n, Some(worker), 7) };
        let beat = |worker, counter| WorkerRow { incarnation: of(worker), counter };
        let silent = beat("b", 4);
        for n in 0..=6 {
            let leases = vec![by_heartbeat(0, "a"), by_heartbeat(1, "b")];
            let workers = vec![beat("a", n), silent.clone(), beat("spare", n), beat("spare and dead", 4)];
            let rows = Rows { leases, workers, ..Rows::default() };
            model.look(rows, start + FAILOVER / 2 * n as u32, "2026-11-22T08:30:00Z");
        }
        let end = start + FAILOVER * 3;
        let alive = |model: &Model| -> Vec<bool> { model.workers(end).iter().map(|w| w.alive).collect() };
        assert_eq!(alive(&model), [true, true, true], "the looks may be stale");
        assert_eq!(model.suspects(end), [of("b")].into());
        model.confirm(&silent.incarnation, Some(&silent), end);
        assert_eq!(alive(&model), [true, false, true]);
        let lines = model.workers(end);
        let lines: Vec<_> = lines.iter().map(|line| (line.id.as_str(), line.leases, line.writes)).collect();
        assert_eq!(lines, [("a", 1, 12.0), ("b", 1, 0.0), ("spare", 0, 12.0)], "beats are writes");
    }
}
