//! What this worker knows of the lease table: the rows of the last look, and when each counter moved.
//!
//! Only remembers and judges; the coordinator looks, `balance` decides what to claim. There is no
//! timestamp in the table: a lease is expired when *we* have seen its counter stand still for
//! `failover_time` on our own monotonic clock; one that names a worker row, when that row's counter stood
//! still too. KCL: `DynamoDBLeaseTaker.updateAllLeases`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::core::{
    heartbeat::{Heartbeats, WorkerRow},
    lease::{Lease, LeaseKey, WorkerId},
};

/// The rows of the last look, each with what earlier looks taught about it.
#[derive(Debug, Default)]
pub(crate) struct LeaseView {
    rows: BTreeMap<LeaseKey, Seen>,
    /// Of workers that have heartbeats of their own.
    pub(crate) heartbeats: Heartbeats,
}

/// One row, and since when it stands as it does.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) lease: Lease,
    /// When the present counter was first seen. Never before its holder sent it.
    moved_at: Instant,
    /// When the present state of the hand-off was first seen.
    asked_at: Instant,
    /// Who holds the lease, or held it last, as far as was seen.
    last_holder: Option<WorkerId>,
    /// When the last two moves from one worker to another were seen, the latest first.
    moves: [Option<Instant>; 2],
}

/// Whether a lease can be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody holds it, for as long as we know since then.
    Free { since: Instant },
    /// Its holder has not been heard of for long enough; it could be claimed since then.
    Expired { since: Instant },
    /// Held, and its holder lives until proven otherwise at that time.
    Held { by: WorkerId, until: Instant },
    /// The shard has been processed to its end.
    Finished,
}

impl LeaseView {
    /// Takes in one look at the whole table, whose answer arrived at `now`. Rows that are gone are forgotten.
    ///
    /// Returns the keys of rows that showed an older counter than known: the look is stale, or the row was
    /// deleted and made anew. Nothing changes for them before a consistent read [confirms](Self::confirm) it.
    pub(crate) fn observe(&mut self, leases: Vec<Lease>, now: Instant) -> Vec<LeaseKey> {
        let mut known = std::mem::take(&mut self.rows);
        let (mut rows, mut doubtful) = (Vec::with_capacity(leases.len()), Vec::new());
        for lease in leases {
            let (mut moved_at, mut asked_at) = (now, now);
            let mut last_holder = lease.holder().cloned();
            let mut moves = [None; 2];
            if let Some(seen) = known.get(&lease.key) {
                // A look may be stale and show an older counter again: that is no sign of life.
                if seen.lease.counter > lease.counter && seen.lease.owner.is_some() {
                    rows.extend(known.remove_entry(&lease.key));
                    doubtful.push(lease.key);
                    continue;
                }
                if seen.lease.counter == lease.counter && seen.lease.is_of_holding(&lease) {
                    moved_at = seen.moved_at;
                }
                // Of the same holding: it may have gone to and fro since.
                let hand_off = |lease: &Lease| (lease.owner.clone(), lease.checkpoint_owner.clone());
                if hand_off(&seen.lease) == hand_off(&lease) && seen.lease.hands_over == lease.hands_over {
                    asked_at = seen.asked_at;
                }
                moves = seen.moves_with(last_holder.as_ref(), now);
                last_holder = last_holder.or_else(|| seen.last_holder.clone());
            }
            rows.push((lease.key.clone(), Seen { lease, moved_at, asked_at, last_holder, moves }));
        }
        // At once, which fills the nodes of the tree: rows that come one by one in order leave them half empty.
        self.rows = rows.into_iter().collect();
        doubtful
    }

    /// Takes in the worker rows of the same look.
    pub(crate) fn observe_workers(&mut self, workers: Vec<WorkerRow>, now: Instant) {
        self.heartbeats.observe(workers, self.rows.values().map(|seen| &seen.lease), now);
    }

    /// Takes in a row that this worker has just written or read itself. What it asked of a holder is no sign of
    /// that one's life.
    pub(crate) fn note(&mut self, lease: Lease, now: Instant) {
        let before = self.rows.remove(&lease.key);
        let stands = |seen: &&Seen| seen.lease.counter == lease.counter && seen.lease.is_of_holding(&lease);
        let moved_at = before.as_ref().filter(stands).map_or(now, |seen| seen.moved_at);
        let moves = before.as_ref().map_or([None; 2], |seen| seen.moves_with(lease.holder(), now));
        let last_holder = lease.holder().cloned().or_else(|| before?.last_holder);
        self.rows.insert(lease.key.clone(), Seen { lease, moved_at, asked_at: now, last_holder, moves });
    }

    /// Takes in what a consistent read showed of a row, arrived at `now`: it counts even if it is older than
    /// what was known.
    pub(crate) fn confirm(&mut self, key: &LeaseKey, row: Option<Lease>, now: Instant) {
        let known = |row: &Lease| {
            self.get(key).is_some_and(|seen| seen.counter == row.counter && seen.is_of_holding(row))
        };
        match row {
            Some(row) if !known(&row) => self.note(row, now),
            Some(_) => {}
            None => drop(self.rows.remove(key)),
        }
    }

    /// All rows, by key.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Seen> {
        self.rows.values()
    }

    /// All leases, by key.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> + Clone {
        self.rows.values().map(|seen| &seen.lease)
    }

    /// One row.
    pub(crate) fn get(&self, key: &LeaseKey) -> Option<&Lease> {
        self.rows.get(key).map(|seen| &seen.lease)
    }

    /// Who held the lease last, as far as was seen.
    pub(crate) fn last_holder(&self, key: &LeaseKey) -> Option<&WorkerId> {
        self.rows.get(key)?.last_holder.as_ref()
    }

    /// When the next lease of another worker could be claimed, if nothing of it moves for `stillness`.
    pub(crate) fn next_expiry(&self, me: &WorkerId, stillness: Duration, now: Instant) -> Option<Instant> {
        let until = |seen: &Seen| match self.standing(seen, stillness, now) {
            // One that has passed waits for a consistent read.
            Standing::Held { by, until } if by != *me && now < until => Some(until),
            _ => None,
        };
        self.rows.values().filter_map(until).min()
    }

    /// When a lease was last seen to live, and whether silence since then proves anything: of a heartbeat only
    /// once a consistent read has shown that it is [over](Heartbeats::confirm), for a look may be stale.
    fn life(&self, seen: &Seen) -> (Instant, bool) {
        match seen.lease.lives_by().map(|incarnation| self.heartbeats.life(incarnation)) {
            None => (seen.moved_at, true),
            Some(None) => (seen.moved_at, false),
            Some(Some((beat_at, over))) => (seen.moved_at.max(beat_at), over),
        }
    }

    /// Whether the holder was heard of within `failover_time`, and has not left.
    pub(crate) fn is_alive(&self, seen: &Seen, failover_time: Duration, now: Instant) -> bool {
        let (alive_at, certain) = self.life(seen);
        let silent = certain && now >= alive_at + failover_time;
        !silent && !seen.lease.is_left()
    }

    /// How a lease stands at `now`, if it can be claimed once nothing of it has moved for `stillness`.
    pub(crate) fn standing(&self, seen: &Seen, stillness: Duration, now: Instant) -> Standing {
        let (alive_at, certain) = self.life(seen);
        let until = alive_at + stillness;
        match seen.lease.holder() {
            _ if seen.lease.is_finished() => Standing::Finished,
            None => Standing::Free { since: seen.moved_at },
            Some(_) if certain && now >= until => Standing::Expired { since: until },
            Some(by) => Standing::Held { by: by.clone(), until },
        }
    }

    /// The earliest time that an application start was pinned to in any row, in milliseconds.
    ///
    /// Workers that start a fresh table together may each pin a time of their own; the earliest holds for
    /// all, so that a shard split in between is not begun too late. What an operator reset has a start of its
    /// own, which says nothing of the others.
    pub(crate) fn pinned_start(&self) -> Option<u64> {
        let begun = self.leases().filter(|lease| lease.reset_millis.is_none());
        begun.filter_map(|lease| lease.start_millis).min()
    }
}

impl Seen {
    /// Since when the lease is on its way from one worker to another; none if it is not.
    pub(crate) fn asked_since(&self) -> Option<Instant> {
        self.lease.checkpoint_owner.as_ref().map(|_| self.asked_at)
    }

    /// Whether the lease was handed over less than `time` ago to a worker that has not claimed it yet. A KCL's that
    /// took it leaves the row like that for good.
    pub(crate) fn is_arriving(&self, time: Duration, now: Instant) -> bool {
        let handed_over = self.lease.owner.as_ref().is_some_and(|to| self.lease.awaits(to).is_some());
        handed_over && now < self.asked_at + time
    }

    /// The moves that were seen, if `holder` holds the lease at `now`.
    fn moves_with(&self, holder: Option<&WorkerId>, now: Instant) -> [Option<Instant>; 2] {
        let moved = holder.is_some() && self.last_holder.is_some() && holder != self.last_holder.as_ref();
        if moved { [Some(now), self.moves[0]] } else { self.moves }
    }

    /// Whether the lease was seen to move twice in the last `time`.
    pub(crate) fn is_restless(&self, time: Duration, now: Instant) -> bool {
        self.moves[1].is_some_and(|before_last| now < before_last + time)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;
    use crate::core::{
        heartbeat::Incarnation,
        lease::{Checkpoint, Claimant},
    };

    const FAILOVER: Duration = Duration::from_secs(10);

    fn row(owner: Option<&str>, counter: u64) -> Lease {
        Lease {
            owner: owner.map(WorkerId::from),
            counter,
            ..Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon)
        }
    }

    fn standing(view: &LeaseView, now: Instant) -> Standing {
        view.standing(view.rows().next().expect("one row"), FAILOVER, now)
    }

    /// A lease of `a` that lives by a heartbeat, and that heartbeat's row.
    fn by_heartbeat(counter: u64) -> (Lease, WorkerRow) {
        let incarnation = Incarnation::new(&"a".into(), 1, 1);
        let lease = Lease { heartbeat: Some(incarnation.clone()), ..row(Some("a"), 7) };
        (lease, WorkerRow { incarnation, counter })
    }

    fn look(view: &mut LeaseView, (lease, beat): (Lease, WorkerRow), now: Instant) {
        view.observe(vec![lease], now);
        view.observe_workers(vec![beat], now);
    }

    #[test]
    fn a_lease_that_lives_by_a_heartbeat_is_held_as_long_as_that_moves() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        for step in 0..10 {
            look(&mut view, by_heartbeat(u64::from(step)), start + FAILOVER * step / 2);
        }
        let last = start + FAILOVER * 9 / 2;
        let held = Standing::Held { by: "a".into(), until: last + FAILOVER };
        assert_eq!(standing(&view, last), held);
        // It stood still, but the look may be stale.
        assert_eq!(standing(&view, last + FAILOVER), held);
        assert_eq!(view.next_expiry(&"me".into(), FAILOVER, last + FAILOVER), None, "no look will tell");
        let beat = by_heartbeat(9).1;
        view.heartbeats.confirm(&beat.incarnation, Some(&beat), last + FAILOVER);
        assert_eq!(standing(&view, last + FAILOVER), Standing::Expired { since: last + FAILOVER });
    }

    #[test]
    fn a_write_to_the_lease_itself_is_a_sign_of_life_too() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        look(&mut view, by_heartbeat(0), start);
        let (lease, beat) = by_heartbeat(0);
        let later = start + FAILOVER / 2;
        look(&mut view, (Lease { counter: 8, ..lease }, beat.clone()), later);
        view.heartbeats.confirm(&beat.incarnation, Some(&beat), start + FAILOVER);
        assert!(matches!(standing(&view, start + FAILOVER), Standing::Held { .. }));
        assert_eq!(standing(&view, later + FAILOVER), Standing::Expired { since: later + FAILOVER });
    }

    #[test]
    fn a_heartbeat_speaks_only_for_the_worker_and_the_life_that_claimed_the_lease() {
        let start = Instant::now();
        let (lease, beat) = by_heartbeat(0);
        // Taken by a worker of the KCL, which leaves the attribute; restarted under the same id.
        let java = Lease { owner: Some("java".into()), ..lease.clone() };
        let predecessors = Lease { heartbeat: Some(Incarnation::new(&"a".into(), 1, 0)), ..lease };
        for lease in [java, predecessors] {
            let mut view = LeaseView::default();
            for step in 0..=4 {
                let now = start + FAILOVER * step / 4;
                look(&mut view, (lease.clone(), WorkerRow { counter: step.into(), ..beat.clone() }), now);
            }
            for silent in view.heartbeats.suspects(view.leases(), FAILOVER, start + FAILOVER) {
                view.heartbeats.confirm(&silent, None, start + FAILOVER);
            }
            assert_eq!(standing(&view, start + FAILOVER), Standing::Expired { since: start + FAILOVER });
        }
    }

    #[test]
    fn a_lease_on_its_way_is_not_taken_for_newly_asked_for_when_its_row_is_read_again() {
        let (mut view, start) = (LeaseView::default(), Instant::now());
        let asked = Lease { checkpoint_owner: Some("b".into()), ..row(Some("a"), 7) };
        view.observe(vec![asked.clone()], start);
        view.confirm(&asked.key, Some(asked.clone()), start + FAILOVER / 2);
        assert_eq!(view.rows().next().expect("one row").asked_since(), Some(start));
    }

    #[test]
    fn a_row_that_was_made_anew_is_known_by_its_new_counter_once_it_is_confirmed() {
        let (mut view, start) = (LeaseView::default(), Instant::now());
        view.observe(vec![row(Some("a"), 70)], start);
        let later = start + FAILOVER / 2;
        let key = row(None, 0).key;
        assert_eq!(view.observe(vec![row(Some("b"), 3)], later), std::slice::from_ref(&key));
        view.confirm(&key, Some(row(Some("a"), 70)), later);
        assert_eq!(view.next_expiry(&"me".into(), FAILOVER, later), Some(start + FAILOVER), "it was stale");
        view.confirm(&key, Some(row(Some("a"), 3)), later);
        assert_eq!(view.get(&key).map(|row| row.counter), Some(3), "anew, by the same holder");
        view.confirm(&key, Some(row(Some("b"), 3)), later);
        assert_eq!(view.next_expiry(&"me".into(), FAILOVER, later), Some(later + FAILOVER));
        assert_eq!(view.observe(vec![row(Some("b"), 4)], later), []);
        view.confirm(&key, None, later);
        assert_eq!(view.get(&key), None);
    }

    #[test]
    fn a_lease_expires_when_its_counter_stood_still_for_failover_time_on_our_clock() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        view.observe(vec![row(Some("a"), 7)], start);
        view.observe(vec![row(Some("a"), 7)], start + FAILOVER / 2);
        let until = start + FAILOVER;
        let held = Standing::Held { by: "a".into(), until };
        assert_eq!(standing(&view, until - Duration::from_nanos(1)), held);
        assert_eq!(standing(&view, until), Standing::Expired { since: until });
    }

    #[test]
    fn a_request_is_no_sign_of_its_holders_life() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        let held = Lease { hands_over: Some("a".into()), ..row(Some("a"), 7) };
        let ask = held.ask(&"me".into()).expect("a holder to ask");
        view.observe(vec![held.clone()], start);
        view.note(held.after_request(&ask), start + FAILOVER / 2);
        let seen = view.rows().next().expect("one row");
        assert_eq!(seen.asked_since(), Some(start + FAILOVER / 2));
        assert_eq!(standing(&view, start + FAILOVER), Standing::Expired { since: start + FAILOVER });
    }

    #[test]
    fn a_counter_that_moved_is_a_sign_of_life() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        view.observe(vec![row(Some("a"), 7)], start);
        view.observe(vec![row(Some("a"), 8)], start + FAILOVER / 2);
        assert!(matches!(standing(&view, start + FAILOVER), Standing::Held { .. }));
    }

    #[test]
    fn a_lease_that_was_handed_over_is_arriving_also_at_whom_it_was_before() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        let claimed_by = |who: &str| Some(Claimant::new(&who.into(), 1, 1));
        view.observe(vec![Lease { hands_over: claimed_by("b"), ..row(Some("b"), 7) }], start);
        let arriving = |view: &LeaseView, now| view.rows().any(|seen| seen.is_arriving(FAILOVER, now));
        assert!(!arriving(&view, start), "claimed");
        // Taken by another and handed over between two looks.
        let later = start + FAILOVER * 2;
        let handed_over = Lease { hands_over: claimed_by("a"), ..row(Some("b"), 9) };
        view.observe(vec![handed_over.clone()], later);
        assert!(arriving(&view, later));
        let last = later + FAILOVER - Duration::from_millis(1);
        view.observe(vec![Lease { counter: 10, ..handed_over }], last);
        assert!(arriving(&view, last));
        assert!(!arriving(&view, last + Duration::from_millis(1)));
    }

    #[test]
    fn a_stale_look_is_no_sign_of_life() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        view.observe(vec![row(Some("a"), 8)], start);
        view.observe(vec![row(Some("a"), 7)], start + FAILOVER / 2);
        view.observe(vec![row(Some("a"), 8)], start + FAILOVER * 3 / 4);
        assert!(matches!(standing(&view, start + FAILOVER), Standing::Expired { .. }));
    }

    #[test]
    fn only_of_a_held_lease_is_an_older_counter_doubtful() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        for (seen, next, doubtful) in [
            (row(Some("a"), 8), row(Some("a"), 8), false),
            (row(Some("a"), 8), row(None, 7), true),
            (row(None, 8), row(Some("a"), 7), false),
        ] {
            view.observe(vec![], start);
            view.observe(vec![seen.clone()], start);
            assert_eq!(view.observe(vec![next.clone()], start).len(), usize::from(doubtful), "{next:?}");
            assert_eq!(view.leases().next(), Some(if doubtful { &seen } else { &next }));
        }
    }

    #[test]
    fn another_holder_or_another_claim_is_a_sign_of_life_whatever_the_counter() {
        let start = Instant::now();
        for next in [row(Some("b"), 7), Lease { hands_over: Some("a".into()), ..row(Some("a"), 7) }] {
            let mut view = LeaseView::default();
            view.observe(vec![row(Some("a"), 7)], start);
            view.observe(vec![next.clone()], start + FAILOVER / 2);
            assert!(matches!(standing(&view, start + FAILOVER), Standing::Held { .. }), "{next:?}");
        }
    }

    #[test]
    fn a_holder_is_alive_until_it_leaves_or_has_been_silent_for_failover_time() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        let alive = |view: &LeaseView, after: Duration| {
            view.is_alive(view.rows().next().expect("one row"), FAILOVER, start + after)
        };
        view.observe(vec![row(Some("a"), 7)], start);
        assert!(alive(&view, FAILOVER - Duration::from_nanos(1)) && !alive(&view, FAILOVER));
        view.observe(vec![Lease { left_at: Some(8), ..row(Some("a"), 8) }], start);
        assert!(!alive(&view, Duration::ZERO));
        // Of a heartbeat silence proves nothing before it is confirmed.
        let mut view = LeaseView::default();
        look(&mut view, by_heartbeat(1), start);
        assert!(alive(&view, FAILOVER * 2));
    }

    #[test]
    fn who_held_a_lease_is_remembered_while_nobody_does() {
        let (start, mut view, key) = (Instant::now(), LeaseView::default(), row(None, 0).key);
        assert_eq!(view.last_holder(&key), None);
        view.observe(vec![row(Some("a"), 7)], start);
        view.observe(vec![row(None, 8)], start);
        assert_eq!(view.last_holder(&key), Some(&"a".into()));
        view.note(row(None, 9), start);
        assert_eq!(view.last_holder(&key), Some(&"a".into()));
        view.note(row(Some("b"), 10), start);
        view.observe(vec![row(None, 11)], start);
        assert_eq!(view.last_holder(&key), Some(&"b".into()));
    }

    #[test]
    fn a_lease_is_restless_for_a_while_after_two_moves_between_workers() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        let mut restless_after = |owner: Option<&str>, counter, after: Duration| {
            view.observe(vec![row(owner, counter)], start + after);
            view.rows().next().expect("one row").is_restless(FAILOVER, start + after)
        };
        let second = Duration::from_secs(1);
        for (owner, counter) in [(None, 0), (Some("a"), 1), (Some("a"), 2), (None, 2)] {
            assert!(!restless_after(owner, counter, Duration::ZERO), "no move: {owner:?}");
        }
        assert!(!restless_after(Some("b"), 3, second * 2));
        assert!(restless_after(Some("a"), 4, second * 4));
        assert!(restless_after(Some("a"), 5, second * 2 + FAILOVER - Duration::from_millis(1)));
        assert!(!restless_after(Some("a"), 6, second * 2 + FAILOVER));
    }

    #[test]
    fn a_request_is_as_old_as_the_first_look_that_showed_it() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        let asked_by = |worker: &str, counter| Lease {
            checkpoint_owner: Some("a".into()),
            ..row(Some(worker), counter)
        };
        let mut since = |lease, after: u32| {
            view.observe(vec![lease], start + FAILOVER * after);
            view.rows().next().expect("one row").asked_since().map(|since| since - start)
        };
        assert_eq!(since(row(Some("a"), 1), 0), None);
        assert_eq!(since(asked_by("b", 1), 1), Some(FAILOVER));
        assert_eq!(since(asked_by("b", 2), 2), Some(FAILOVER), "the holder goes on renewing");
        assert_eq!(since(asked_by("c", 3), 3), Some(FAILOVER * 3));
        assert_eq!(since(row(Some("c"), 4), 4), None);
    }

    #[test]
    fn a_row_that_was_made_anew_is_seen_anew() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        view.observe(vec![row(Some("a"), 8)], start);
        view.observe(vec![], start + FAILOVER / 2);
        view.observe(vec![row(None, 0)], start + FAILOVER / 2);
        assert_eq!(standing(&view, start + FAILOVER), Standing::Free { since: start + FAILOVER / 2 });
    }

    #[test]
    fn a_released_lease_is_free_at_once_and_a_finished_one_never() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        view.observe(vec![row(None, 3)], start);
        assert_eq!(standing(&view, start), Standing::Free { since: start });
        view.observe(vec![Lease { checkpoint: Checkpoint::ShardEnd, ..row(None, 4) }], start);
        assert_eq!(standing(&view, start + FAILOVER * 9), Standing::Finished);
    }

    #[test]
    fn the_start_of_a_lease_that_was_reset_is_not_that_of_the_application() {
        let mut view = LeaseView::default();
        let pinned = |n: &str, start_millis, reset_millis| Lease {
            key: n.into(),
            start_millis,
            reset_millis,
            ..row(None, 0)
        };
        let rows = [pinned("0", Some(500), None), pinned("1", Some(100), Some(900)), pinned("2", None, None)];
        view.observe(rows.to_vec(), Instant::now());
        assert_eq!(view.pinned_start(), Some(500));
    }

    #[test]
    fn an_application_began_at_the_earliest_time_that_a_row_says() {
        let pinned = |key: &str, start_millis| Lease { key: key.into(), start_millis, ..row(None, 0) };
        let (start, mut view) = (Instant::now(), LeaseView::default());
        assert_eq!(view.pinned_start(), None);
        view.observe(vec![pinned("0", Some(70)), pinned("1", None), pinned("2", Some(40))], start);
        assert_eq!(view.pinned_start(), Some(40));
    }

    #[test]
    fn the_next_expiry_is_that_of_the_peer_seen_moving_longest_ago() {
        let (start, mut view) = (Instant::now(), LeaseView::default());
        let second = Lease { key: "shardId-1".into(), ..row(Some("b"), 1) };
        view.observe(vec![row(Some("a"), 7)], start);
        view.observe(vec![row(Some("a"), 7), second], start + FAILOVER / 2);
        assert_eq!(view.next_expiry(&"me".into(), FAILOVER, start), Some(start + FAILOVER));
        assert_eq!(view.next_expiry(&"a".into(), FAILOVER, start), Some(start + FAILOVER * 3 / 2));
    }
}
