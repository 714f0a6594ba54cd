//! When to look at the lease table: within a budget of read units, and when a look tells most.
//!
//! Only decides; the coordinator looks, and says what each look cost. Looks come from a purse that fills by
//! the budget and never holds much, so a worker cannot overspend for long, whatever happens in its fleet.
//!
//! A lease is known to be expired by two looks with `stillness` between them. Looks that can be afforded
//! more often need no care for that. Where one has to last for longer, they are made in pairs: the second one
//! `stillness` after the first. Each worker does so in its own time, so a fleet of many notices a crash almost
//! as soon as a small one: some worker begins a pair just after it.
//!
//! The KCL looks at the whole table in a fixed period, `2 x (failoverTimeMillis + epsilonMillis)`.

use std::time::{Duration, Instant};

/// What a row weighs, where the table does not say what a look cost.
const ROW_BYTES: f64 = 512.0;
/// Half a read unit of an eventually consistent scan.
const HALF_UNIT_BYTES: f64 = 4096.0;
/// Whoever holds more than that many leases may read more, in proportion: by a fifth of what their renewals
/// cost, at the default budget.
pub(crate) const LEASES_A_BUDGET: f64 = 25.0;
/// What a calm time saves: so many looks, or what the budget gives in so many seconds, if that is more.
const LOOKS_SAVED: f64 = 3.0;
const SECONDS_SAVED: f64 = 60.0;
/// No period is longer than that.
const LONGEST: f64 = 3600.0;

/// What bounds the looks of one worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Read units a second, for [`LEASES_A_BUDGET`] leases held, or fewer.
    pub(crate) budget: f64,
    /// The time between two looks that nobody needs to go below.
    pub(crate) shortest: Duration,
    /// How long a counter must stand still.
    pub(crate) stillness: Duration,
}

/// What the last look showed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shown {
    /// Leases are moving: look four times as often, as long as the purse allows.
    pub(crate) lively: bool,
    /// When the next lease of another worker would expire, if nothing of it moves.
    pub(crate) expiry: Option<Instant>,
}

/// The looks of one worker: what they cost, what is left for them, and which one comes next.
#[derive(Debug)]
pub(crate) struct LookSchedule {
    bounds: Bounds,
    /// Read units a second, for the leases that are held now.
    rate: f64,
    /// What the last look cost, in read units; none before the first.
    price: Option<f64>,
    /// What may be spent, in read units; below nothing if something cost more than was thought.
    saved: f64,
    saved_at: Instant,
    /// When the second look of a pair is due.
    second_at: Option<Instant>,
}

impl LookSchedule {
    pub(crate) fn new(bounds: Bounds, now: Instant) -> Self {
        Self { bounds, rate: bounds.budget, price: None, saved: 0.0, saved_at: now, second_at: None }
    }

    /// Takes note of a look at `rows` rows that cost `units`, if the table said so. A worker begins with a full
    /// purse, and its first look is free: without it there is no start.
    pub(crate) fn looked(&mut self, rows: usize, units: Option<f64>, now: Instant) {
        let counted = || (rows as f64 * ROW_BYTES / HALF_UNIT_BYTES).ceil() / 2.0;
        let units = units.unwrap_or_else(counted).max(0.5);
        let first = self.price.replace(units).is_none();
        self.fill(now);
        self.saved = if first { self.most_saved() } else { self.saved - units };
    }

    /// Takes note of reads of single rows.
    pub(crate) fn read(&mut self, units: f64) {
        // What is read because leases move must not keep a worker from looks.
        self.saved = (self.saved - units).max(self.saved.min(0.0));
    }

    /// A look failed, and may have cost what one costs.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.fill(now);
        self.saved = (self.saved - self.price()).max(self.saved.min(0.0));
    }

    /// Fits the budget to the leases that the worker holds.
    pub(crate) fn hold(&mut self, leases: usize, now: Instant) {
        self.fill(now);
        self.rate = self.bounds.budget * (leases as f64 / LEASES_A_BUDGET).max(1.0);
    }

    /// How long to wait between reads of `units`: `usual`, or while the purse is empty as long as they take half
    /// of the budget.
    pub(crate) fn pause(&self, usual: Duration, units: f64) -> Duration {
        match self.saved > 0.0 {
            true => usual,
            false => usual.max(Duration::from_secs_f64((units * 2.0 / self.rate).min(LONGEST))),
        }
    }

    fn price(&self) -> f64 {
        self.price.unwrap_or(0.5)
    }

    fn most_saved(&self) -> f64 {
        (self.price() * LOOKS_SAVED).max(self.rate * SECONDS_SAVED)
    }

    fn fill(&mut self, now: Instant) {
        let past = now.saturating_duration_since(self.saved_at).as_secs_f64();
        self.saved_at = self.saved_at.max(now);
        self.saved = (self.saved + past * self.rate).min(self.most_saved());
    }

    /// When the purse holds the price of so many looks.
    fn affordable(&self, looks: f64, now: Instant) -> Instant {
        let lacking = self.price() * looks - self.saved;
        let past = now.saturating_duration_since(self.saved_at);
        now + Duration::from_secs_f64((lacking / self.rate).clamp(0.0, LONGEST)).saturating_sub(past)
    }

    /// The time between two looks that the budget affords.
    pub(crate) fn period(&self) -> Duration {
        Duration::from_secs_f64((self.price() / self.rate).min(LONGEST)).max(self.bounds.shortest)
    }

    /// How long others may need to see what this worker sees: at most as long as leases live.
    pub(crate) fn patience(&self) -> Duration {
        self.period().min(self.bounds.stillness / 2).max(self.bounds.shortest) * 2
    }

    /// For how long a move makes others likely, so that looks come more often.
    pub(crate) fn lively_for(&self) -> Duration {
        if self.are_rare() { self.patience() / 2 } else { self.patience() * 3 / 2 }
    }

    /// Whether looks come in pairs.
    pub(crate) fn is_paired(&self) -> bool {
        self.period() > self.bounds.stillness
    }

    /// Whether a worker sees only after a while what others do.
    pub(crate) fn are_rare(&self) -> bool {
        self.looks_in_time().is_some()
    }

    /// The looks of one worker in the time that anybody should wait for a look; none if every worker looks
    /// often enough for itself.
    pub(crate) fn looks_in_time(&self) -> Option<f64> {
        let looks = self.bounds.shortest.as_secs_f64() / self.period().as_secs_f64();
        let looks = if self.is_paired() { looks / 2.0 } else { looks };
        (looks < 0.65).then_some(looks)
    }

    /// The soonest that a look may be made which cannot wait.
    pub(crate) fn soonest(&self, now: Instant) -> Instant {
        self.affordable(1.0, now)
    }

    /// When to look again, after a look that was over at `now`. `chance` is drawn from 0 to 1.
    ///
    /// A look in its turn leaves the price of another in the purse: for the moment when a lease expires.
    pub(crate) fn next(&mut self, shown: Shown, chance: f64, now: Instant) -> Instant {
        self.fill(now);
        let (period, paired) = (self.period(), self.is_paired());
        let was_second = self.second_at.take_if(|at| now >= *at).is_some();
        // Whoever looks seldom must not do so together with others, whatever made them begin together.
        let spread = match period > self.bounds.stillness / 2 {
            true => 0.5 + 1.1 * chance,
            false => 0.85 + 0.3 * chance,
        };
        let wait = match () {
            () if shown.lively => period / 4,
            () if was_second => (period * 2).saturating_sub(self.bounds.stillness),
            () => period,
        };
        let cheap = period <= self.bounds.shortest;
        let reserve = if cheap { 1.0 } else { 2.0 };
        let usual = (now + wait.mul_f64(spread)).max(self.affordable(reserve, now));
        if !paired {
            self.second_at = None;
        }
        let expiry = match (self.second_at, shown.expiry) {
            (Some(second), _) => Some(second),
            (None, Some(expiry)) if paired && !was_second => {
                self.second_at = Some(expiry.min(now + self.bounds.stillness));
                self.second_at
            }
            (None, Some(_)) if paired => None,
            (None, expiry) => expiry,
        };
        match expiry {
            // However many leases are about to expire.
            Some(expiry) => usual
                .min(expiry.max(now + period.min(self.bounds.stillness) / 10).max(self.affordable(1.0, now))),
            None => usual,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const STILL: Duration = Duration::from_secs(10);
    const BOUNDS: Bounds = Bounds { budget: 5.0, shortest: SECOND, stillness: STILL };

    /// One worker that holds so many leases of a table with so many rows, and its looks.
    struct Looks {
        schedule: LookSchedule,
        rows: usize,
        start: Instant,
        at: Instant,
        /// What was spent since the start, and when.
        spent: Vec<(Duration, f64)>,
    }

    impl Looks {
        fn of(rows: usize, held: usize) -> Self {
            let start = Instant::now();
            let mut schedule = LookSchedule::new(BOUNDS, start);
            schedule.looked(rows, None, start);
            schedule.hold(held, start);
            Self { schedule, rows, start, at: start, spent: Vec::new() }
        }

        fn next(&mut self, shown: Shown, chance: f64) -> Duration {
            let before = self.at;
            self.at = self.schedule.next(shown, chance, self.at);
            self.schedule.looked(self.rows, None, self.at);
            self.spent.push((self.at - self.start, self.schedule.price()));
            self.at - before
        }

        /// So many looks of a calm fleet.
        fn rest(&mut self, looks: usize) {
            for n in 0..looks {
                self.next(self.calm(), (n * 7 % 10) as f64 / 10.0);
            }
        }

        /// A peer whose leases are renewed: nothing stands still.
        fn calm(&self) -> Shown {
            Shown { lively: false, expiry: Some(self.at + STILL) }
        }

        fn a_second(&self) -> f64 {
            self.spent.iter().map(|(_, units)| units).sum::<f64>() / (self.at - self.start).as_secs_f64()
        }
    }

    #[test]
    fn a_small_table_is_looked_at_once_a_second() {
        for (rows, held) in [(0, 0), (16, 16), (80, 8), (80, 80)] {
            let mut looks = Looks::of(rows, held);
            for n in 0..100 {
                let waited = looks.next(looks.calm(), f64::from(n % 10) / 10.0);
                assert!((0.85..=1.15).contains(&waited.as_secs_f64()), "{rows}: {waited:?}");
            }
        }
    }

    #[test]
    fn the_period_is_the_price_of_a_look_by_the_budget_which_grows_with_the_leases_held() {
        for (rows, held, period) in [
            (160, 16, 2.0),
            (500, 50, 3.2),
            (500, 125, 1.28),
            (1000, 10, 12.6),
            (1000, 100, 3.15),
            (10_000, 10, 125.0),
            (10_000, 1000, 3.125),
        ] {
            let found = Looks::of(rows, held).schedule.period().as_secs_f64();
            assert!((found - period).abs() < 0.1, "{rows} rows, {held} held: {found}");
        }
    }

    #[test]
    fn what_the_table_says_of_a_look_counts_more_than_the_number_of_rows() {
        let mut looks = Looks::of(100, 10);
        looks.schedule.looked(100, Some(50.0), looks.at);
        assert_eq!(looks.schedule.period(), 10 * SECOND);
    }

    #[test]
    fn a_lease_that_stands_still_is_looked_at_the_moment_it_expires() {
        for (rows, held) in [(500, 50), (1000, 100), (700, 10)] {
            let mut looks = Looks::of(rows, held);
            looks.rest(50);
            let expiry = looks.at + looks.schedule.period() * 7 / 10;
            looks.next(Shown { lively: false, expiry: Some(expiry) }, 0.5);
            assert_eq!(looks.at, expiry, "{rows}");
        }
    }

    #[test]
    fn looks_at_a_large_table_come_in_pairs_that_leases_expire_between() {
        let mut looks = Looks::of(10_000, 10);
        looks.rest(20);
        let gaps: Vec<f64> =
            (0..20).map(|n| looks.next(looks.calm(), f64::from(n % 7) / 7.0).as_secs_f64()).collect();
        let pairs = gaps.iter().filter(|gap| **gap == 10.0).count();
        assert_eq!(pairs, 10, "{gaps:?}");
    }

    #[test]
    fn nobody_looks_for_an_expiry_where_no_other_worker_holds_a_lease() {
        let mut looks = Looks::of(10_000, 10);
        let gaps: Vec<f64> = (0..40).map(|_| looks.next(Shown::default(), 0.5).as_secs_f64()).collect();
        assert!(gaps[20..].iter().all(|gap| *gap >= 125.0), "{gaps:?}");
    }

    #[test]
    fn at_rest_most_of_the_budget_is_spent_and_no_more() {
        for (rows, held) in [(160, 10), (500, 10), (500, 50), (1000, 10), (10_000, 10), (10_000, 100)] {
            let mut looks = Looks::of(rows, held);
            looks.rest(400);
            let part = looks.a_second() / looks.schedule.rate;
            assert!((0.75..=1.02).contains(&part), "{rows} rows, {held} held: {part}");
        }
    }

    #[test]
    fn leases_that_move_are_followed_closely_until_the_purse_is_empty() {
        let mut looks = Looks::of(500, 10);
        looks.rest(50);
        let period = looks.schedule.period();
        let lively = |looks: &Looks| Shown { lively: true, ..looks.calm() };
        let gaps: Vec<Duration> = (0..20).map(|_| looks.next(lively(&looks), 0.5)).collect();
        assert!(gaps[0] < period / 3, "{gaps:?}");
        assert!(gaps[19] >= period * 9 / 10, "{gaps:?}");
    }

    /// A worker with a full purse, whose looks cost so many units: of 5 a second, 300 or three looks are saved.
    fn priced(units: f64) -> (LookSchedule, Instant) {
        let start = Instant::now();
        let mut schedule = LookSchedule::new(BOUNDS, start);
        schedule.looked(0, Some(units), start);
        (schedule, start)
    }

    #[test]
    fn others_are_given_two_periods_and_at_most_the_life_of_a_lease_to_see_what_a_worker_sees() {
        for (units, period, patience, lively_for) in [
            (0.5, 1.0, 2.0, 3.0),
            (6.5, 1.3, 2.6, 3.9),
            // From here on looks are rare, and a move makes others likely for a period.
            (10.0, 2.0, 4.0, 2.0),
            (20.0, 4.0, 8.0, 4.0),
            (25.0, 5.0, 10.0, 5.0),
            (40.0, 8.0, 10.0, 5.0),
            (100.0, 20.0, 10.0, 5.0),
        ] {
            let (schedule, _) = priced(units);
            let found = [schedule.period(), schedule.patience(), schedule.lively_for()];
            assert_eq!(found, [period, patience, lively_for].map(Duration::from_secs_f64), "{units}");
        }
    }

    #[test]
    fn looks_are_rare_where_fewer_than_065_of_them_come_in_the_shortest_period_and_paired_beyond_stillness() {
        for (units, paired, looks) in [
            (0.5, false, None),
            (7.5, false, None),
            (8.0, false, Some(0.625)),
            (10.0, false, Some(0.5)),
            (40.0, false, Some(0.125)),
            (50.0, false, Some(0.1)),
            // Two looks of a pair see what one would.
            (100.0, true, Some(0.025)),
            (400.0, true, Some(0.00625)),
        ] {
            let (schedule, _) = priced(units);
            let found = (schedule.is_paired(), schedule.looks_in_time(), schedule.are_rare());
            assert_eq!(found, (paired, looks, looks.is_some()), "{units}");
        }
        let bounds = Bounds { budget: 0.5, shortest: Duration::from_millis(650), stillness: STILL };
        let just_often_enough = LookSchedule::new(bounds, Instant::now());
        assert_eq!(just_often_enough.period(), SECOND);
        assert_eq!(just_often_enough.looks_in_time(), None);
    }

    #[test]
    fn reads_of_rows_empty_the_purse_and_leave_no_debt() {
        let (mut schedule, start) = priced(100.0);
        for (units, left) in [(100.0, 200.0), (50.0, 150.0), (0.5, 149.5), (400.0, 0.0), (1.0, 0.0)] {
            schedule.read(units);
            assert_eq!(schedule.saved, left, "after {units}");
        }
        schedule.looked(0, Some(100.0), start);
        schedule.read(10.0);
        assert_eq!(schedule.saved, -100.0, "the debt of a look stays as it is");
    }

    #[test]
    fn a_failed_look_costs_what_the_last_one_did_and_leaves_no_debt() {
        let (mut schedule, start) = priced(100.0);
        for (at, left) in [(0, 200.0), (0, 100.0), (10, 50.0), (10, 0.0), (12, 0.0)] {
            schedule.failed(start + at * SECOND);
            assert_eq!(schedule.saved, left, "at {at} s");
        }
        let mut unpriced = LookSchedule::new(BOUNDS, start);
        unpriced.failed(start + SECOND / 5);
        assert_eq!(unpriced.saved, 0.5, "half a unit before the first look");
    }

    #[test]
    fn reads_pause_while_the_purse_is_empty_until_half_of_the_budget_has_paid_for_them() {
        // The purse, the leases held, the usual pause and the units read; in seconds, what is paused.
        for (saved, held, usual, units, pause) in [
            (300.0, 0, 1, 10.0, 1),
            (0.1, 0, 1, 10.0, 1),
            (0.0, 0, 1, 10.0, 4),
            (-5.0, 0, 1, 10.0, 4),
            (0.0, 50, 1, 10.0, 2),
            (0.0, 0, 1, 1000.0, 400),
            (0.0, 0, 7, 10.0, 7),
            (0.0, 0, 1, 1e9, 3600),
        ] {
            let (mut schedule, start) = priced(100.0);
            schedule.hold(held, start);
            schedule.saved = saved;
            let found = schedule.pause(usual * SECOND, units);
            assert_eq!(found, pause * SECOND, "{saved} saved, {held} held, {usual} s, {units} units");
        }
    }

    #[test]
    fn looks_spread_widely_where_less_than_two_of_them_come_in_the_stillness_of_a_lease() {
        for (units, lively, chance, wait) in [
            (20.0, false, 0.0, 3.4),
            (20.0, false, 1.0, 4.6),
            (25.0, false, 0.0, 4.25),
            (25.0, false, 1.0, 5.75),
            (40.0, false, 0.0, 4.0),
            (40.0, false, 0.5, 8.4),
            (40.0, false, 1.0, 12.8),
            (20.0, true, 0.5, 1.0),
            (40.0, true, 0.5, 2.1),
        ] {
            let (mut schedule, start) = priced(units);
            let next = schedule.next(Shown { lively, expiry: None }, chance, start);
            assert_eq!(next - start, Duration::from_secs_f64(wait), "{units} units, {chance}");
        }
    }

    #[test]
    fn the_second_look_of_a_pair_stays_due_whatever_is_seen_before_and_the_next_pair_waits_two_periods() {
        let (mut schedule, start) = priced(100.0);
        let calm = |now| Shown { lively: false, expiry: Some(now + STILL) };
        let second = start + STILL;
        assert_eq!(schedule.next(calm(start), 0.5, start), second);
        let between = start + 4 * SECOND;
        assert_eq!(schedule.next(calm(between), 0.5, between), second);
        // Two periods of 20 s without the 10 s of the pair, by a spread of 1.05.
        assert_eq!(schedule.next(calm(second), 0.5, second) - second, Duration::from_secs_f64(31.5));
    }

    #[test]
    fn leases_about_to_expire_bring_looks_no_closer_than_a_tenth_of_the_period_or_the_stillness() {
        for (units, wait) in [(20.0, 0.4), (40.0, 0.8), (100.0, 1.0)] {
            let (mut schedule, start) = priced(units);
            let next = schedule.next(Shown { lively: false, expiry: Some(start) }, 0.5, start);
            assert_eq!(next - start, Duration::from_secs_f64(wait), "{units}");
        }
    }

    proptest! {
        #[test]
        fn no_run_of_looks_costs_more_than_the_budget_and_what_was_saved(
            rows in 1usize..12_000,
            held in 0usize..500,
            events in proptest::collection::vec((0u8..6, 0.0..1.0, 0.0..20.0), 1..200),
        ) {
            let mut looks = Looks::of(rows, held);
            for (event, chance, wait) in events {
                let in_a_while = looks.at + Duration::from_secs_f64(wait);
                match event {
                    0 => looks.rest(1),
                    1 => _ = looks.next(Shown { lively: true, ..looks.calm() }, chance),
                    2 => _ = looks.next(Shown { lively: false, expiry: Some(in_a_while) }, chance),
                    3 => _ = looks.next(Shown { lively: true, expiry: Some(in_a_while) }, chance),
                    4 => _ = looks.next(Shown::default(), chance),
                    _ => {
                        // A look that cannot wait.
                        looks.at = looks.schedule.soonest(looks.at);
                        looks.schedule.looked(looks.rows, None, looks.at);
                        looks.spent.push((looks.at - looks.start, looks.schedule.price()));
                    }
                }
            }
            let burst = looks.schedule.most_saved() + 0.01;
            for (first, (from, _)) in looks.spent.iter().enumerate() {
                let mut units = 0.0;
                for (at, price) in &looks.spent[first..] {
                    units += price;
                    let allowed = (*at - *from).as_secs_f64() * looks.schedule.rate + burst;
                    prop_assert!(units <= allowed, "{units} units, {allowed} allowed");
                }
            }
        }
    }
}
