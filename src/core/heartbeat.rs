//! Heartbeats of workers: one row a worker instead of one renewal a lease, and what its silence means.
//!
//! A lease row may name an [`Incarnation`]: then its holder lives as long as that worker row's counter
//! moves, and the lease's own counter may rest. Only remembers and judges; the coordinator looks and
//! confirms. Not the KCL's: its workers would take such leases for dead.
//!
//! Two rows cannot be written under one condition, so three rules stand in for it:
//!
//! 1. An incarnation is one unbroken run of beats. A beat counts for its sender only if the reply is there
//!    before the one before it has run out; else the incarnation is over for good and its leases with it.
//! 2. Others call an incarnation over only after a consistent read has shown its counter where it was seen
//!    `failover_time` ago: a stale look proves nothing. Whatever beat is applied after that read was
//!    answered too late by rule 1.
//! 3. A claim still needs the lease's own counter, which every claim and every checkpoint moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::core::lease::{Lease, WorkerId};

/// One unbroken run of heartbeats of one worker: the key of its row, which no other run ever has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(Arc<str>);

/// What keys of worker rows begin with. No shard's id does.
const PREFIX: &str = "worker/";

impl Incarnation {
    /// The incarnation number `number` of the process `process`, a number drawn at random, of `worker`.
    pub fn new(worker: &WorkerId, process: u64, number: u64) -> Self {
        Self(format!("{PREFIX}{process:016x}.{number}/{worker}").into())
    }

    /// Reads the key of a row; none if it is not that of a worker.
    pub fn parse(key: &str) -> Option<Self> {
        let (_, worker) = key.strip_prefix(PREFIX)?.split_once('/')?;
        (!worker.is_empty()).then(|| Self(key.into()))
    }

    /// The key of the row.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the worker.
    pub fn worker(&self) -> &str {
        let rest = self.0.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
        rest.map_or("", |(_, worker)| worker)
    }

    /// The number of the worker's process; none if the key was not written by this crate.
    pub fn process(&self) -> Option<u64> {
        let (run, worker) = self.0.strip_prefix(PREFIX)?.split_once('/')?;
        let (process, number) = run.split_once('.')?;
        let (process, number) = (u64::from_str_radix(process, 16).ok()?, number.parse().ok()?);
        // Only as it is written: signs, capitals or other lengths make it another key.
        (Self::new(&worker.into(), process, number) == *self).then_some(process)
    }

    /// Whether it is one of `worker`.
    pub fn is_of(&self, worker: &WorkerId) -> bool {
        self.worker() == worker.as_str()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The row of one incarnation in the lease table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerRow {
    /// Whose row it is, and its key.
    pub incarnation: Incarnation,
    /// Raised by every beat; observers judge by it whether the worker lives.
    pub counter: u64,
}

/// What this worker knows of the heartbeats of all.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    seen: BTreeMap<Incarnation, Beat>,
}

#[derive(Debug)]
struct Beat {
    /// None if there is no row.
    counter: Option<u64>,
    /// When the counter was first seen where it is. Never before the beat was sent.
    moved_at: Instant,
    /// The same, until the incarnation was over.
    alive_at: Instant,
    over: bool,
}

impl Beat {
    fn new(counter: Option<u64>, now: Instant) -> Self {
        Self { counter, moved_at: now, alive_at: now, over: false }
    }

    /// A row that went away or came back counts as one that moved: somebody did it just now. A lower
    /// counter is a stale look, and no sign of life.
    fn see(&mut self, counter: Option<u64>, now: Instant) {
        let stood = match (self.counter, counter) {
            (Some(known), Some(seen)) => seen <= known,
            (known, seen) => known == seen,
        };
        if stood {
            return;
        }
        (self.counter, self.moved_at) = (counter, now);
        if !self.over {
            self.alive_at = now;
        }
    }
}

impl Heartbeats {
    /// Takes in the worker rows of one look, which arrived at `now`. Remembers those that are there, and those
    /// that `leases` live by.
    pub(crate) fn observe<'a>(
        &mut self,
        rows: Vec<WorkerRow>,
        leases: impl Iterator<Item = &'a Lease>,
        now: Instant,
    ) {
        let mut known = std::mem::take(&mut self.seen);
        let mut take = |incarnation: &Incarnation, counter: Option<u64>| match known.remove(incarnation) {
            Some(mut beat) => {
                beat.see(counter, now);
                beat
            }
            None => Beat::new(counter, now),
        };
        for WorkerRow { incarnation, counter } in rows {
            let beat = take(&incarnation, Some(counter));
            self.seen.insert(incarnation, beat);
        }
        for incarnation in leases.filter_map(Lease::lives_by) {
            if !self.seen.contains_key(incarnation) {
                let beat = take(incarnation, None);
                self.seen.insert(incarnation.clone(), beat);
            }
        }
    }

    /// When the incarnation was last known to live, and whether it is known to be over; none if nothing is
    /// known of it yet.
    pub(crate) fn life(&self, incarnation: &Incarnation) -> Option<(Instant, bool)> {
        self.seen.get(incarnation).map(|beat| (beat.alive_at, beat.over))
    }

    /// Those whose counters stood still for `failover_time`, and that are not known to be over yet: read them
    /// consistently and [confirm](Self::confirm).
    pub(crate) fn suspects<'a>(
        &self,
        leases: impl Iterator<Item = &'a Lease>,
        failover_time: Duration,
        now: Instant,
    ) -> BTreeSet<Incarnation> {
        let suspect = |incarnation: &&Incarnation| {
            let beat = self.seen.get(*incarnation);
            beat.is_some_and(|beat| !beat.over && now >= beat.alive_at + failover_time)
        };
        leases.filter_map(Lease::lives_by).filter(suspect).cloned().collect()
    }

    /// Takes in what a consistent read, asked for after `failover_time` had passed and arrived at `now`,
    /// showed of a suspect's row: it is over if nothing has moved.
    pub(crate) fn confirm(&mut self, incarnation: &Incarnation, row: Option<&WorkerRow>, now: Instant) {
        let counter = row.map(|row| row.counter);
        let beat = self.seen.entry(incarnation.clone()).or_insert_with(|| Beat::new(counter, now));
        if beat.counter == counter {
            beat.over = true;
        } else {
            // Also if it is lower: a row made anew by hand.
            (beat.counter, beat.moved_at, beat.alive_at) = (counter, now, now);
        }
    }

    /// Rows that stood still for `patience` and that no lease lives by. Whoever wrote them is over if
    /// `patience` is `failover_time` or more, so deleting one at this counter takes nothing from anybody.
    pub(crate) fn forgettable<'a>(
        &self,
        leases: impl Iterator<Item = &'a Lease>,
        patience: Duration,
        now: Instant,
    ) -> Vec<WorkerRow> {
        let named: BTreeSet<&Incarnation> = leases.filter_map(Lease::lives_by).collect();
        let stale = self
            .seen
            .iter()
            .filter(|(incarnation, beat)| !named.contains(incarnation) && now >= beat.moved_at + patience);
        let row = |(incarnation, beat): (&Incarnation, &Beat)| {
            let incarnation = incarnation.clone();
            beat.counter.map(|counter| WorkerRow { incarnation, counter })
        };
        stale.filter_map(row).collect()
    }

    /// Those whose counters were seen to move, or were seen first, less than `failover_time` ago.
    #[cfg(feature = "cli")]
    pub(crate) fn beating(
        &self,
        failover_time: Duration,
        now: Instant,
    ) -> impl Iterator<Item = &Incarnation> {
        let moved = move |(_, beat): &(&Incarnation, &Beat)| {
            beat.counter.is_some() && now < beat.moved_at + failover_time
        };
        self.seen.iter().filter(moved).map(|(incarnation, _)| incarnation)
    }

    /// The rows of `worker`, with their counters.
    pub(crate) fn rows_of(&self, worker: &WorkerId) -> BTreeMap<Incarnation, u64> {
        let of = self.seen.iter().filter(|(incarnation, _)| incarnation.is_of(worker));
        of.filter_map(|(incarnation, beat)| Some((incarnation.clone(), beat.counter?))).collect()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;
    use crate::core::lease::Checkpoint;

    const FAILOVER: Duration = Duration::from_secs(10);

    fn incarnation() -> Incarnation {
        Incarnation::new(&"a".into(), 1, 1)
    }

    fn row(counter: u64) -> WorkerRow {
        WorkerRow { incarnation: incarnation(), counter }
    }

    fn lease() -> Lease {
        let lease = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
        lease.after(&lease.claim(&"a".into()).living_by(incarnation()))
    }

    fn look(beats: &mut Heartbeats, counter: Option<u64>, now: Instant) {
        beats.observe(counter.map(row).into_iter().collect(), [&lease()].into_iter(), now);
    }

    fn suspects(beats: &Heartbeats, now: Instant) -> usize {
        beats.suspects([&lease()].into_iter(), FAILOVER, now).len()
    }

    #[test]
    fn the_key_of_a_row_names_its_worker_whatever_it_is_called() {
        for name in ["a", "pod/3", "worker/x/y", "größe"] {
            let made = Incarnation::new(&name.into(), 0xbeef, 1);
            assert_eq!(Incarnation::parse(made.as_str()).as_ref(), Some(&made));
            assert_eq!((made.worker(), made.process()), (name, Some(0xbeef)));
            assert_eq!([made.to_string(), format!("{made:?}")], [made.as_str(), made.as_str()]);
        }
        for key in ["", "worker/", "worker/x", "worker/x/", "shardId-000000000000"] {
            assert_eq!(Incarnation::parse(key), None, "{key}");
        }
        for key in [
            "worker/+00000000000beef.1/a",
            "worker/BEEF.1/a",
            "worker/000000000000beef.x/a",
            "worker/beef/a.b",
        ] {
            let read = Incarnation::parse(key).expect("it names a worker");
            assert_eq!(read.process(), None, "{key} is not as this crate writes it");
        }
    }

    #[test]
    fn the_rows_of_a_worker_are_all_of_its_incarnations_and_nobody_elses() {
        let of = |worker: &str, number| Incarnation::new(&worker.into(), 1, number);
        let row = |(incarnation, counter)| WorkerRow { incarnation, counter };
        let mut beats = Heartbeats::default();
        let rows = [(of("a", 1), 7), (of("a", 2), 8), (of("b", 1), 9)].map(row).into();
        beats.observe(rows, std::iter::empty(), Instant::now());
        assert_eq!(beats.rows_of(&"a".into()), [(of("a", 1), 7), (of("a", 2), 8)].into());
    }

    #[test]
    fn a_worker_is_over_only_once_a_consistent_read_shows_its_counter_where_it_was() {
        let (start, mut beats) = (Instant::now(), Heartbeats::default());
        look(&mut beats, Some(7), start);
        let late = start + FAILOVER;
        look(&mut beats, Some(7), late - Duration::from_nanos(1));
        assert_eq!(suspects(&beats, late - Duration::from_nanos(1)), 0);
        look(&mut beats, Some(7), late);
        assert_eq!(suspects(&beats, late), 1);
        assert_eq!(beats.life(&incarnation()), Some((start, false)));
        // The look was stale: the worker lives.
        beats.confirm(&incarnation(), Some(&row(8)), late);
        assert_eq!((suspects(&beats, late), beats.life(&incarnation())), (0, Some((late, false))));
        look(&mut beats, Some(7), late + FAILOVER);
        beats.confirm(&incarnation(), Some(&row(8)), late + FAILOVER);
        assert_eq!(beats.life(&incarnation()), Some((late, true)));
    }

    #[test]
    fn who_is_over_stays_over_though_a_late_beat_arrives() {
        let (start, mut beats) = (Instant::now(), Heartbeats::default());
        look(&mut beats, Some(7), start);
        beats.confirm(&incarnation(), Some(&row(7)), start + FAILOVER);
        look(&mut beats, Some(8), start + FAILOVER);
        assert_eq!(beats.life(&incarnation()), Some((start, true)));
    }

    #[test]
    fn a_row_that_is_missing_counts_as_still_from_the_moment_it_is_missed() {
        let (start, mut beats) = (Instant::now(), Heartbeats::default());
        look(&mut beats, Some(7), start);
        // Deleted by hand just after a beat that this worker has not seen.
        let missed = start + FAILOVER - Duration::from_secs(1);
        look(&mut beats, None, missed);
        assert_eq!((suspects(&beats, start + FAILOVER), suspects(&beats, missed + FAILOVER)), (0, 1));
        beats.confirm(&incarnation(), None, missed + FAILOVER);
        assert_eq!(beats.life(&incarnation()), Some((missed, true)));
        let mut beats = Heartbeats::default();
        look(&mut beats, None, start);
        assert_eq!((suspects(&beats, start), suspects(&beats, start + FAILOVER)), (0, 1));
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_row_beats_until_it_has_stood_still_for_failover_time_and_one_that_is_missing_does_not() {
        let (start, mut beats) = (Instant::now(), Heartbeats::default());
        look(&mut beats, Some(7), start);
        let beating = |beats: &Heartbeats, now| beats.beating(FAILOVER, now).count();
        let end = start + FAILOVER;
        assert_eq!([end - Duration::from_nanos(1), end].map(|now| beating(&beats, now)), [1, 0]);
        look(&mut beats, None, end);
        assert_eq!(beating(&beats, end), 0);
    }

    #[test]
    fn a_row_is_forgotten_only_when_it_stands_still_and_no_lease_lives_by_it() {
        let (start, mut beats) = (Instant::now(), Heartbeats::default());
        look(&mut beats, Some(7), start);
        let (late, none) = (start + FAILOVER * 2, || std::iter::empty());
        assert_eq!(beats.forgettable([&lease()].into_iter(), FAILOVER * 2, late), []);
        assert_eq!(beats.forgettable(none(), FAILOVER * 2, late - Duration::from_nanos(1)), []);
        assert_eq!(beats.forgettable(none(), FAILOVER * 2, late), [row(7)]);
        // A zombie's late beat: what is deleted is what was seen to stand still.
        beats.confirm(&incarnation(), Some(&row(7)), late);
        beats.observe(vec![row(8)], none(), late);
        assert_eq!(beats.forgettable(none(), FAILOVER * 2, late), []);
        beats.observe(vec![], none(), late);
        assert_eq!(beats.life(&incarnation()), None, "what nobody needs is not remembered");
    }
}
