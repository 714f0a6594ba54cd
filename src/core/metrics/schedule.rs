//! When a worker publishes: once in each minute of the day, at a second of its own.
//!
//! By the date, so that each minute of CloudWatch gets exactly one value of a gauge from each worker; and
//! away from the turn of the minute, so that a clock that is set a little brings none twice.

use std::time::Duration;

use crate::core::lease::WorkerId;

const MINUTE: Duration = Duration::from_secs(60);
/// Nobody publishes within this of the turn of a minute.
const MARGIN: Duration = Duration::from_secs(3);

/// The moment of each minute at which this worker publishes: workers are spread over the minute.
pub(crate) fn phase(worker: &WorkerId) -> Duration {
    // FNV-1a: the same in every process and version.
    let hash = worker.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let span = (MINUTE - MARGIN * 2).as_millis() as u64;
    MARGIN + Duration::from_millis((hash >> 16) % span)
}

/// How long to wait for the next moment of `phase`, at `date` since the epoch. `again`: it was just met, and
/// a timer that fired a little early does not meet it twice.
pub(crate) fn wait(date: Duration, phase: Duration, again: bool) -> Duration {
    let minute = MINUTE.as_nanos();
    let into = date.as_nanos() % minute;
    let wait = (phase.as_nanos() + minute - into) % minute;
    let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(0));
    if again && wait < MINUTE / 2 { wait + MINUTE } else { wait }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};

    use super::*;

    #[test]
    fn a_fleet_spreads_over_the_minute() {
        let mut seconds = [0; 60];
        for n in 0..540 {
            seconds[phase(&format!("cart-worker-7d9f-{n}").as_str().into()).as_secs() as usize] += 1;
        }
        assert_eq!((seconds[..3].iter().sum::<i32>(), seconds[57..].iter().sum::<i32>()), (0, 0));
        // Ten a second on average.
        assert!(seconds.iter().all(|count| *count <= 25), "{seconds:?}");
        assert!(seconds[3..57].iter().all(|count| *count >= 1), "{seconds:?}");
    }

    #[test]
    fn a_worker_keeps_its_moment_in_every_process_and_version() {
        // FNV-1a, calculated apart from this code.
        for (worker, millis) in [("a", 16_665), ("cart-worker-0", 32_735), ("größe", 33_385)] {
            assert_eq!(phase(&worker.into()), Duration::from_millis(millis), "{worker}");
        }
    }

    #[test]
    fn the_next_moment_is_within_a_minute_and_one_just_met_is_not_met_twice() {
        let seconds = Duration::from_secs;
        for (date, again, expected) in [
            (0, false, 20),
            (20, false, 0),
            (21, false, 59),
            (70, false, 10),
            (60 * 1_000_000 + 19, false, 1),
            (20, true, 60),
            (19, true, 61),
            (50, true, 30),
            (51, true, 89),
        ] {
            assert_eq!(wait(seconds(date), seconds(20), again), seconds(expected), "at {date}, {again}");
        }
    }

    proptest! {
        #[test]
        fn each_minute_is_met_once_whenever_the_timer_fires_within_a_second(
            start in 0..1_000_000_000_u64,
            worker in "[a-z]{1,9}",
            errors in proptest::collection::vec(-900..900_i64, 1..50),
        ) {
            let phase = phase(&worker.as_str().into());
            let mut now = Duration::from_millis(start);
            let mut last = None;
            for error in errors {
                let wait = wait(now, phase, last.is_some());
                let at = i64::try_from((now + wait).as_millis()).expect("small") + error;
                now = now.max(Duration::from_millis(u64::try_from(at).unwrap_or(0)));
                let minute = now.as_secs() / 60;
                if let Some(last) = last {
                    prop_assert!(minute == last + 1, "minute {} after {}", minute, last);
                }
                last = Some(minute);
            }
        }
    }
}
