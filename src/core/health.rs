//! Health: whether a restart would help, judged by what the parts of a worker say they are doing.
//!
//! Only judges. A part that waits says until when, so that a wait that never ends is found out too; what AWS
//! does is no fault of the process: a call is a wait until its time-out. No part hides another: the slowest
//! decides. What a probe looks at is written by the worker.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::core::shard::ShardId;

/// How a worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// Whether a restart would help.
    pub state: State,
    /// Why, in one word. From half of the allowed age on it is what the slowest part will be called if it
    /// makes no progress until the end.
    pub reason: Reason,
    /// The shard that the reason is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardId>,
    /// For how long the slowest part has gone without a sign of progress; zero while all wait or move.
    #[serde(rename = "age_millis", with = "millis")]
    pub age: Duration,
    /// Whether the worker does what it is there for: its first shards are being read, the lease table and
    /// the stream answer, and it is not stopping. For readiness, never for restarts.
    pub ready: bool,
    /// How many leases it holds.
    pub leases: usize,
}

/// Whether a restart would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It would not.
    Fresh,
    /// It would: a part of the worker has made no progress for `health_max_age`.
    Stale,
}

/// Why a worker is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// All is well.
    Working,
    /// It checks the stream, the table and its permissions, or waits for a predecessor's leases.
    Starting,
    /// There is no lease for it, now: a spare.
    NoLeases,
    /// The processor failed on a shard, and the same records come again after a delay.
    Retrying,
    /// The lease table does not answer.
    LeaseTableUnavailable,
    /// Reads of a shard fail.
    ReadsFailing,
    /// It was asked to stop, or has stopped.
    Stopping,
    /// The user's code has made no progress on a shard.
    ProcessorStuck,
    /// A read of a shard has not returned, long after its time-out.
    ReaderStuck,
    /// The loop that looks at the lease table has stopped.
    CoordinatorStuck,
}

impl Reason {
    /// The word in the status file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Starting => "starting",
            Self::NoLeases => "no_leases",
            Self::Retrying => "retrying",
            Self::LeaseTableUnavailable => "lease_table_unavailable",
            Self::ReadsFailing => "reads_failing",
            Self::Stopping => "stopping",
            Self::ProcessorStuck => "processor_stuck",
            Self::ReaderStuck => "reader_stuck",
            Self::CoordinatorStuck => "coordinator_stuck",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Health {
    /// Whether a restart would not help.
    pub fn is_fresh(&self) -> bool {
        self.state == State::Fresh
    }
}

/// What a part of a worker is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nothing, until something comes from outside or from another part, which answers for itself.
    #[default]
    Idle,
    /// A wait that ends by itself, at the latest then.
    Waiting { until: Instant },
    /// Work; this was its last sign of progress.
    Working { since: Instant },
}

impl Doing {
    /// For how long it has been without progress that it owes.
    fn age(self, now: Instant) -> Duration {
        match self {
            Self::Idle => Duration::ZERO,
            Self::Waiting { until: owed } | Self::Working { since: owed } => {
                now.saturating_duration_since(owed)
            }
        }
    }
}

/// What is known of a worker as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerSigns {
    pub(crate) coordinator: Doing,
    pub(crate) phase: Phase,
    /// Since when every call to the lease table has failed.
    pub(crate) table_failing: Option<Instant>,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Starting,
    /// Initialised; its first shards are not all read yet.
    Opening,
    Running,
    Stopping,
}

/// What is known of a shard that the worker holds.
#[derive(Clone, Debug)]
pub(crate) struct ShardSigns {
    pub(crate) shard: ShardId,
    pub(crate) reader: Doing,
    /// The user's code.
    pub(crate) work: Doing,
    /// Whether the user's code failed and waits for another try.
    pub(crate) retrying: bool,
    /// Since when every read has failed.
    pub(crate) reads_failing: Option<Instant>,
}

/// Judges a worker. The slowest part decides; of two equally slow ones the first.
pub(crate) fn assess(
    worker: &WorkerSigns,
    shards: impl IntoIterator<Item = ShardSigns>,
    now: Instant,
    max_age: Duration,
) -> Health {
    let mut slowest = (worker.coordinator.age(now), Reason::CoordinatorStuck, None);
    let mut trouble = None;
    let mut reads_failing = None;
    let mut leases = 0;
    for signs in shards {
        leases += 1;
        for (doing, reason) in [(signs.work, Reason::ProcessorStuck), (signs.reader, Reason::ReaderStuck)] {
            let age = doing.age(now);
            if age > slowest.0 {
                slowest = (age, reason, Some(signs.shard.clone()));
            }
        }
        if let Some(since) = signs.reads_failing
            && reads_failing.as_ref().is_none_or(|(first, _)| since < *first)
        {
            reads_failing = Some((since, signs.shard.clone()));
        }
        if signs.retrying {
            trouble.get_or_insert((Reason::Retrying, Some(signs.shard)));
        }
    }
    let too_long = |since: Instant| now.saturating_duration_since(since) > max_age;
    let outage = worker.table_failing.is_some_and(too_long)
        || reads_failing.as_ref().is_some_and(|(since, _)| too_long(*since));
    let ready = worker.phase == Phase::Running && !outage;
    let (age, stuck, at) = slowest;
    // Told in time: a probe with a little less patience finds the reason too.
    if age > max_age / 2 {
        let state = if age > max_age { State::Stale } else { State::Fresh };
        return Health { state, reason: stuck, shard: at, age, ready, leases };
    }
    let (reason, shard) = match worker.phase {
        Phase::Stopping => (Reason::Stopping, None),
        Phase::Starting => (Reason::Starting, None),
        _ if worker.table_failing.is_some() => (Reason::LeaseTableUnavailable, None),
        _ => match (reads_failing, trouble) {
            (Some((_, shard)), _) => (Reason::ReadsFailing, Some(shard)),
            (None, Some(trouble)) => trouble,
            (None, None) if leases == 0 => (Reason::NoLeases, None),
            (None, None) => (Reason::Working, None),
        },
    };
    Health { state: State::Fresh, reason, shard, age, ready, leases }
}

/// Durations as whole milliseconds, for programs that read the status file.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any moment will do for a start")]
mod tests {
    use super::*;

    const MAX_AGE: Duration = Duration::from_secs(30);

    fn start() -> Instant {
        Instant::now()
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn running() -> WorkerSigns {
        WorkerSigns { phase: Phase::Running, ..WorkerSigns::default() }
    }

    fn shard(name: &str) -> ShardSigns {
        ShardSigns {
            shard: name.into(),
            reader: Doing::Idle,
            work: Doing::Idle,
            retrying: false,
            reads_failing: None,
        }
    }

    #[test]
    fn one_stuck_shard_is_not_masked_by_its_siblings() {
        let t0 = start();
        let now = t0 + secs(100);
        let moving = |n: u64| ShardSigns { work: Doing::Working { since: now - secs(n) }, ..shard("moving") };
        let stuck = ShardSigns { work: Doing::Working { since: now - secs(31) }, ..shard("stuck") };
        let health = assess(&running(), [moving(1), stuck, moving(29)], now, MAX_AGE);
        assert!(health.state == State::Stale && !health.is_fresh());
        assert_eq!((health.reason, health.age), (Reason::ProcessorStuck, secs(31)));
        assert_eq!((health.shard, health.leases), (Some("stuck".into()), 3));
    }

    #[test]
    fn of_parts_equally_slow_the_first_is_named() {
        let t0 = start();
        let stuck = Doing::Working { since: t0 };
        let both = |name| ShardSigns { work: stuck, reader: stuck, ..shard(name) };
        let told = |worker: &WorkerSigns| {
            let health = assess(worker, [both("a"), both("b")], t0 + secs(31), MAX_AGE);
            (health.reason, health.shard)
        };
        assert_eq!(told(&running()), (Reason::ProcessorStuck, Some("a".into())));
        assert_eq!(told(&WorkerSigns { coordinator: stuck, ..running() }), (Reason::CoordinatorStuck, None));
    }

    #[test]
    fn of_shards_whose_reads_fail_the_one_that_began_first_is_named() {
        let t0 = start();
        let failing = |name, n| ShardSigns { reads_failing: Some(t0 + secs(n)), ..shard(name) };
        let shards = [failing("a", 2), failing("b", 1), failing("c", 1), failing("d", 3)];
        let health = assess(&running(), shards, t0 + secs(3), MAX_AGE);
        assert_eq!((health.reason, health.shard), (Reason::ReadsFailing, Some("b".into())));
    }

    #[test]
    fn work_is_stale_only_past_the_allowed_age() {
        let t0 = start();
        let told = |secs_later: u64| {
            let signs = ShardSigns { work: Doing::Working { since: t0 }, ..shard("a") };
            let health = assess(&running(), [signs], t0 + secs(secs_later), MAX_AGE);
            (health.state, health.reason)
        };
        assert_eq!(told(0), (State::Fresh, Reason::Working));
        assert_eq!(told(15), (State::Fresh, Reason::Working));
        assert_eq!(told(16), (State::Fresh, Reason::ProcessorStuck));
        assert_eq!(told(30), (State::Fresh, Reason::ProcessorStuck));
        assert_eq!(told(31), (State::Stale, Reason::ProcessorStuck));
    }

    #[test]
    fn a_wait_is_fresh_however_long_until_it_should_have_ended() {
        let t0 = start();
        let signs = |after: u64| {
            let signs = ShardSigns { reader: Doing::Waiting { until: t0 + secs(600) }, ..shard("a") };
            assess(&running(), [signs], t0 + secs(after), MAX_AGE)
        };
        assert!(signs(600).is_fresh());
        assert_eq!(signs(600).age, Duration::ZERO);
        assert!(signs(630).is_fresh());
        assert_eq!(signs(631).reason, Reason::ReaderStuck);
    }

    #[test]
    fn a_coordinator_that_does_not_come_round_is_stale_even_without_leases() {
        let t0 = start();
        let worker = WorkerSigns { coordinator: Doing::Waiting { until: t0 }, ..running() };
        let health = assess(&worker, [], t0 + secs(31), MAX_AGE);
        assert_eq!((health.state, health.reason), (State::Stale, Reason::CoordinatorStuck));
    }

    #[test]
    fn an_outage_makes_unready_after_the_allowed_age_and_never_stale() {
        let t0 = start();
        let table = WorkerSigns { table_failing: Some(t0), ..running() };
        let reads = || ShardSigns { reads_failing: Some(t0), ..shard("a") };
        for after in [1, 30, 31, 3600] {
            let now = t0 + secs(after);
            let by_table = assess(&table, [shard("a")], now, MAX_AGE);
            let by_reads = assess(&running(), [shard("b"), reads()], now, MAX_AGE);
            assert!(by_table.is_fresh() && by_reads.is_fresh());
            assert_eq!((by_table.ready, by_reads.ready), (after <= 30, after <= 30), "{after}");
            assert_eq!(by_table.reason, Reason::LeaseTableUnavailable);
            assert_eq!((by_reads.reason, by_reads.shard), (Reason::ReadsFailing, Some("a".into())));
        }
    }

    #[test]
    fn a_spare_is_ready_a_starting_or_stopping_worker_is_not() {
        let of = |phase| assess(&WorkerSigns { phase, ..WorkerSigns::default() }, [], start(), MAX_AGE);
        let told = |phase| (of(phase).reason, of(phase).ready);
        assert_eq!(told(Phase::Running), (Reason::NoLeases, true));
        assert_eq!(told(Phase::Opening), (Reason::NoLeases, false));
        assert_eq!(told(Phase::Starting), (Reason::Starting, false));
        assert_eq!(told(Phase::Stopping), (Reason::Stopping, false));
    }

    #[test]
    fn a_retry_is_told_by_shard() {
        let retrying = ShardSigns { retrying: true, ..shard("b") };
        let health = assess(&running(), [shard("a"), retrying], start(), MAX_AGE);
        assert_eq!((health.reason, health.shard.as_ref()), (Reason::Retrying, Some(&"b".into())));
        assert!(health.is_fresh() && health.ready);
    }

    #[test]
    fn what_is_written_is_read_back_unchanged() {
        let age = Duration::from_millis(1234);
        let shard = Some("a".into());
        let (state, reason) = (State::Stale, Reason::ReaderStuck);
        let health = Health { state, reason, shard, age, ready: true, leases: 3 };
        let text = serde_json::to_string(&health).expect("text");
        assert!(text.contains(r#""age_millis":1234"#), "{text}");
        assert_eq!(serde_json::from_str::<Health>(&text).expect("health"), health);
    }

    #[test]
    fn the_words_of_reasons_are_those_that_serde_writes() {
        for reason in [
            Reason::Working,
            Reason::Starting,
            Reason::NoLeases,
            Reason::Retrying,
            Reason::LeaseTableUnavailable,
            Reason::ReadsFailing,
            Reason::Stopping,
            Reason::ProcessorStuck,
            Reason::ReaderStuck,
            Reason::CoordinatorStuck,
        ] {
            assert_eq!(serde_json::to_string(&reason).expect("text"), format!("\"{reason}\""));
        }
    }
}
