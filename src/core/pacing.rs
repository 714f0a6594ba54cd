//! Pacing: when this shard may be read again.
//!
//! Kinesis allows each shard five reads and 2 MiB a second, shared by every application that polls it,
//! and answers a read of up to 10 MiB by refusing reads until it is paid for. We stay within that on our
//! own, read on at once while we are behind, and wait out the idle time at the tip. Whether there is room
//! for another page is for the reader to decide. KCL: `KinesisSleepTimeController`; AWS: quotas of
//! `GetRecords`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::core::backoff::Backoff;

/// What one reader may ask of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// At the tip, how long after the start of a read the next one starts.
    pub(crate) idle: Duration,
    /// Reads in any one second; at least 1.
    pub(crate) reads_per_second: usize,
    /// Bytes a second, on average; at least 1.
    pub(crate) bytes_per_second: u64,
}

impl Limits {
    /// The limits of AWS for one shard, with this idle time. KCL: `idleTimeBetweenReadsInMillis`.
    pub(crate) const fn aws(idle: Duration) -> Self {
        Self { idle, reads_per_second: 5, bytes_per_second: 2 * 1024 * 1024 }
    }
}

/// When one shard may be read again.
///
/// Every read is announced by [`on_read`](Self::on_read) and answered by exactly one of the other three.
#[derive(Debug)]
pub(crate) struct Pacing {
    limits: Limits,
    /// The last answers, no more than may come in a second; each no earlier than Kinesis counted its read.
    answers: VecDeque<Instant>,
    /// When the read under way began.
    began: Option<Instant>,
    /// Until when the bytes read so far use up the limit.
    paid: Option<Instant>,
    /// The end of the back-off, or of the pause that others' reads need.
    rested: Option<Instant>,
    /// The end of the idle time.
    idle: Option<Instant>,
    backoff: Backoff,
    /// Reads a second that we take for our share while others read the shard too; none while alone.
    share: Option<f64>,
}

impl Pacing {
    /// Nothing read yet: the first read may start at once.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            answers: VecDeque::new(),
            began: None,
            paid: None,
            rested: None,
            idle: None,
            // A page of 10 MiB, ours or another reader's, shuts a shard for five seconds.
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            share: None,
        }
    }

    /// When the next read may start, `now` or later.
    pub(crate) fn next_read(&self, now: Instant) -> Instant {
        self.soonest_read(now).max(self.idle.unwrap_or(now))
    }

    /// The same for a read that is worth the idle time.
    pub(crate) fn soonest_read(&self, now: Instant) -> Instant {
        let full = self.answers.len() == self.most_reads();
        let slot = self.answers.front().filter(|_| full).map(|oldest| *oldest + SECOND);
        [slot, self.paid, self.rested].into_iter().flatten().fold(now, Instant::max)
    }

    /// Takes note that a read starts now.
    pub(crate) fn on_read(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// Takes note of a page of `bytes`; `caught_up` if it ends at the shard's tip.
    pub(crate) fn on_page(&mut self, now: Instant, bytes: usize, caught_up: bool) {
        let began = self.answered(now);
        self.backoff.reset();
        let cost = Duration::from_secs_f64(bytes as f64 / self.limits.bytes_per_second.max(1) as f64);
        // From now on, not from when it began: the way there takes another time at every read.
        self.paid = Some(now + cost);
        self.idle = caught_up.then(|| began + self.limits.idle);
        self.rested = self.share.map(|share| began + SECOND.div_f64(share));
    }

    /// Takes note that the read was throttled: another reader uses the shard too.
    pub(crate) fn on_throttle(&mut self, now: Instant, rng: &mut impl Rng) {
        self.on_error(now, rng);
        // With back-off alone, whoever reads most often keeps the shard for itself. Halving at each throttle
        // and regaining at a constant pace makes the shares meet (as TCP's congestion control does).
        let share = self.share.unwrap_or_else(|| self.most_reads() as f64);
        self.share = Some((share / 2.0).max(LEAST_SHARE));
    }

    /// Takes note that the read failed otherwise.
    pub(crate) fn on_error(&mut self, now: Instant, rng: &mut impl Rng) {
        self.answered(now);
        self.idle = None;
        self.rested = Some(now + self.backoff.next(rng));
    }

    /// Ends the read under way and says when it began.
    fn answered(&mut self, now: Instant) -> Instant {
        let last = self.answers.back().copied().unwrap_or(now);
        let regained = now.saturating_duration_since(last).as_secs_f64() * REGAINED_PER_SECOND;
        let most = self.most_reads() as f64;
        self.share = self.share.map(|share| share + regained).filter(|share| *share < most);
        if self.answers.len() == self.most_reads() {
            self.answers.pop_front();
        }
        self.answers.push_back(now);
        self.began.take().unwrap_or(now)
    }

    fn most_reads(&self) -> usize {
        self.limits.reads_per_second.max(1)
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Reads a second; no throttle takes the last read in five seconds.
const LEAST_SHARE: f64 = 0.2;
/// Reads a second gained in each second: 10 s after a single throttle it is forgotten. Measured with three
/// readers: at 0.1 they leave a fifth of the shard unused, at 0.5 a third of their reads is refused.
const REGAINED_PER_SECOND: f64 = 0.25;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any moment will do for a start")]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const MIB: usize = 1024 * 1024;
    const LATENCY: Duration = Duration::from_millis(10);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// One reader on its own clock.
    struct Reader {
        start: Instant,
        now: Instant,
        pacing: Pacing,
        rng: StdRng,
    }

    impl Reader {
        fn idle(idle: Duration) -> Self {
            let start = Instant::now();
            let pacing = Pacing::new(Limits::aws(idle));
            Self { start, now: start, pacing, rng: StdRng::seed_from_u64(1) }
        }

        /// Waits until it may read, reads, and says when since the start it did.
        fn read(&mut self, bytes: usize, caught_up: bool) -> Duration {
            let began = self.begin();
            self.pacing.on_page(self.now, bytes, caught_up);
            began
        }

        fn begin(&mut self) -> Duration {
            self.now = self.pacing.next_read(self.now);
            self.pacing.on_read(self.now);
            let began = self.now - self.start;
            self.now += LATENCY;
            began
        }
    }

    #[test]
    fn a_reader_that_is_behind_reads_on_at_once_five_times_a_second() {
        let mut reader = Reader::idle(ms(1500));
        let times: Vec<_> = (0..7).map(|_| reader.read(100, false).as_millis()).collect();
        // The sixth read waits until a second after the answer to the first.
        assert_eq!(times, [0, 10, 20, 30, 40, 1010, 1020]);
    }

    #[test]
    fn a_big_page_is_paid_for_before_the_next_read() {
        let mut reader = Reader::idle(ms(1500));
        reader.read(10 * MIB, false);
        assert_eq!(reader.read(MIB, false), ms(5010));
        assert_eq!(reader.read(0, false), ms(5520));
    }

    #[test]
    fn time_without_reads_saves_up_nothing() {
        let mut reader = Reader::idle(ms(1500));
        reader.read(MIB, false);
        reader.now += ms(60_000);
        reader.read(10 * MIB, false);
        assert_eq!(reader.read(0, false), ms(65_020));
    }

    #[test]
    fn a_read_that_cannot_wait_leaves_out_the_idle_time_and_nothing_else() {
        let mut reader = Reader::idle(ms(1500));
        let soonest = |reader: &Reader| reader.pacing.soonest_read(reader.now) - reader.start;
        reader.read(0, true);
        assert_eq!(soonest(&reader), ms(10));
        reader.read(2 * MIB, true);
        assert_eq!(soonest(&reader), ms(2510), "paid for");
        reader.read(0, true);
        reader.begin();
        reader.pacing.on_throttle(reader.now, &mut reader.rng);
        assert_eq!(soonest(&reader), reader.pacing.next_read(reader.now) - reader.start, "backed off");
    }

    #[test]
    fn at_the_tip_reads_start_an_idle_time_apart() {
        let mut reader = Reader::idle(ms(1500));
        let times: Vec<_> = (0..4).map(|_| reader.read(100, true).as_millis()).collect();
        assert_eq!(times, [0, 1500, 3000, 4500]);
    }

    #[test]
    fn an_idle_time_of_zero_still_keeps_to_five_reads_a_second() {
        let mut reader = Reader::idle(Duration::ZERO);
        let last = (0..51).map(|_| reader.read(0, true)).last();
        assert!(last >= Some(ms(10_000)), "{last:?}");
    }

    #[test]
    fn a_page_that_falls_behind_again_ends_the_idle_time() {
        let mut reader = Reader::idle(ms(1500));
        assert_eq!(reader.read(100, true), ms(0));
        assert_eq!(reader.read(100, false), ms(1500));
        assert_eq!(reader.read(0, true).as_millis(), 1510);
    }

    #[test]
    fn ten_seconds_after_a_single_throttle_it_is_forgotten() {
        for (pause, spacing) in [(ms(9_980), 200), (ms(9_990), 10)] {
            let mut reader = Reader::idle(ms(0));
            reader.begin();
            reader.pacing.on_throttle(reader.now, &mut reader.rng);
            reader.now += pause;
            let first = reader.read(0, false);
            let second = reader.read(0, false);
            assert_eq!((second - first).as_millis(), spacing, "after {pause:?}");
        }
    }

    #[test]
    fn throttles_push_back_further_and_further_until_a_read_succeeds() {
        let waits: Vec<Vec<u128>> = (0..200)
            .map(|seed| {
                let mut reader = Reader::idle(ms(0));
                reader.rng = StdRng::seed_from_u64(seed);
                let wait = |reader: &mut Reader, throttled: bool| {
                    let before = reader.now;
                    reader.begin();
                    match throttled {
                        true => reader.pacing.on_throttle(reader.now, &mut reader.rng),
                        false => reader.pacing.on_page(reader.now, 0, false),
                    }
                    (reader.now - before - LATENCY).as_millis()
                };
                let mut waits: Vec<_> = (0..8).map(|_| wait(&mut reader, true)).collect();
                assert_eq!(reader.pacing.backoff.failures(), 8);
                waits.push(wait(&mut reader, false));
                waits.push(wait(&mut reader, true));
                waits.push(wait(&mut reader, true));
                waits
            })
            .collect();
        let mean = |n: usize| waits.iter().map(|waits| waits[n]).sum::<u128>() / waits.len() as u128;
        assert_eq!(mean(0), 0);
        assert!((100..200).contains(&mean(1)), "{}", mean(1));
        assert!((1..7).all(|n| mean(n) < mean(n + 1)), "{:?}", (0..11).map(mean).collect::<Vec<_>>());
        assert!(waits.iter().flatten().all(|wait| *wait <= 5000));
        assert!((100..200).contains(&mean(10)), "{}", mean(10));
    }

    /// A shard as AWS limits it: it counts what it answers, not what it refuses.
    #[derive(Default)]
    struct Shard {
        reads: VecDeque<Instant>,
        shut_until: Option<Instant>,
    }

    impl Shard {
        fn answers(&mut self, now: Instant, bytes: usize) -> bool {
            self.reads.retain(|at| now - *at < SECOND);
            let answers = self.reads.len() < 5 && self.shut_until.is_none_or(|until| until <= now);
            if answers {
                self.reads.push_back(now);
                let from = self.shut_until.map_or(now, |until| until.max(now));
                self.shut_until = Some(from + SECOND * u32::try_from(bytes).expect("small") / (2 << 20));
            }
            answers
        }
    }

    /// Lets readers share a shard for ten minutes: how many pages each got, how many reads were refused.
    fn share(readers: usize, bytes: usize, caught_up: bool) -> (Vec<usize>, usize) {
        let start = Instant::now();
        let mut rng = StdRng::seed_from_u64(3);
        let mut shard = Shard::default();
        let mut pacings: Vec<Pacing> = (0..readers).map(|_| Pacing::new(Limits::aws(ms(200)))).collect();
        let mut free = vec![start; readers];
        let (mut pages, mut refused) = (vec![0; readers], 0);
        loop {
            let next = |n: &usize| pacings[*n].next_read(free[*n]);
            let Some(n) = (0..readers).min_by_key(next) else { break };
            let now = next(&n);
            if now - start > ms(600_000) {
                break;
            }
            pacings[n].on_read(now);
            // The way there takes another time at every read, or readers lock into step.
            let there = now + ms(rng.random_range(1..15));
            free[n] = there + ms(5);
            if shard.answers(there, bytes) {
                pages[n] += 1;
                free[n] += ms(30) * u32::try_from(bytes / MIB).expect("small");
                pacings[n].on_page(free[n], bytes, caught_up);
            } else {
                refused += 1;
                pacings[n].on_throttle(free[n], &mut rng);
            }
        }
        (pages, refused)
    }

    #[test]
    fn a_reader_alone_is_never_throttled() {
        for (bytes, caught_up) in [(0, true), (0, false), (MIB / 3, false), (10 * MIB, false)] {
            let (pages, refused) = share(1, bytes, caught_up);
            assert_eq!(refused, 0, "{bytes} bytes, {pages:?}");
        }
    }

    #[test]
    fn readers_at_the_tip_or_behind_share_a_shard_evenly() {
        for caught_up in [true, false] {
            let (pages, refused) = share(3, 0, caught_up);
            let total: usize = pages.iter().sum();
            assert!(total > 2400, "of 3000: {pages:?}");
            assert!(pages.iter().all(|n| n * 10 > total * 3), "{pages:?}");
            assert!(refused * 4 < total, "{refused} refused for {pages:?}");
        }
    }

    #[test]
    fn readers_of_big_pages_all_get_on() {
        for (bytes, capacity) in [(MIB / 2, 2400), (2 * MIB, 600), (10 * MIB, 120)] {
            let (pages, _) = share(3, bytes, false);
            let total: usize = pages.iter().sum();
            assert!(total * 2 > capacity, "{bytes} bytes, {pages:?} of {capacity}");
            assert!(pages.iter().all(|n| n * 8 > total), "{bytes} bytes, {pages:?}");
        }
    }

    proptest! {
        #[test]
        fn no_second_sees_more_than_five_reads_and_no_byte_is_read_unpaid(
            reads in prop::collection::vec((0..3 * MIB, any::<bool>(), 0..900_u64), 1..60),
        ) {
            let mut reader = Reader::idle(ms(300));
            let (mut times, mut total) = (Vec::new(), 0);
            for (bytes, caught_up, pause) in reads {
                times.push(reader.read(bytes, caught_up));
                let earned = (reader.now - reader.start).as_secs_f64() * 2.0 * MIB as f64;
                // All pages but the last are paid for.
                prop_assert!(total as f64 <= earned + 1.0);
                total += bytes;
                reader.now += ms(pause);
            }
            for window in times.windows(6) {
                prop_assert!(window[5] - window[0] >= SECOND);
            }
        }
    }
}
