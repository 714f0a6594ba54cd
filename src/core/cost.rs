//! What a fleet costs: calls a minute and dollars a month, ours beside the Java KCL's two modes.
//!
//! Only arithmetic. The intervals are those of the coordinator and the renewer, which a test counts; the KCL's
//! are those of its code at its defaults (`LeaseManagementConfig`, `MetricsConfig`). At rest and without
//! faults: moves, retries and reshards come on top, and are rare. Kinesis charges nothing for polling reads.

use crate::core::look_schedule::LEASES_A_BUDGET;

/// Minutes in the month that is billed: 30 days.
const MONTH: f64 = 43_200.0;
/// Read units are counted by 4 KB, halved for an eventually consistent read.
const READ_BYTES: f64 = 4096.0;
/// Write units are counted by 1 KB.
const WRITE_BYTES: f64 = 1024.0;
/// One page of a scan.
const PAGE_BYTES: f64 = 1_048_576.0;
/// What a row names the heartbeat of its holder with.
pub(crate) const HEARTBEAT_BYTES: f64 = 65.0;
/// A renewal or a heartbeat comes early by up to 2 % of half of the failover time; not one that is to take a
/// checkpoint along.
const EARLY: f64 = 0.99;

/// The fleet to predict for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fleet {
    /// Shards that are read.
    pub(crate) shards: f64,
    /// Workers that read them.
    pub(crate) workers: f64,
    /// The size of a row of the lease table.
    pub(crate) row_bytes: f64,
    /// How often a shard has a batch to checkpoint, a second; 0 at rest.
    pub(crate) batches: f64,
    /// `failover_time`, in seconds.
    pub(crate) failover: f64,
    /// `checkpoint_interval`, in seconds.
    pub(crate) checkpoint: f64,
    /// `scan_budget`, in read units a second for 25 leases of a worker, or fewer.
    pub(crate) scan_budget: f64,
}

/// Dollars: for a million write units, a million read units, a thousand calls of CloudWatch, a metric a month.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Prices {
    pub(crate) write: f64,
    pub(crate) read: f64,
    pub(crate) metric_calls: f64,
}

impl Default for Prices {
    /// On demand, us-east-1.
    fn default() -> Self {
        Self { write: 0.625, read: 0.125, metric_calls: 0.01 }
    }
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// This library, each lease renewed.
    Ours,
    /// This library, one heartbeat a worker.
    OursByWorker,
    /// The Java KCL 2.x, or 3.x in its compatible mode.
    Kcl2,
    /// The Java KCL 3.x.
    Kcl3,
}

/// What is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// DynamoDB write units.
    Write,
    /// DynamoDB read units.
    Read,
    /// Calls of CloudWatch.
    MetricCall,
}

/// One activity of the whole fleet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) what: &'static str,
    /// The call of AWS.
    pub(crate) call: &'static str,
    pub(crate) calls_a_minute: f64,
    pub(crate) unit: Unit,
    pub(crate) units_a_minute: f64,
}

impl Line {
    /// In a month, at `prices`.
    pub(crate) fn dollars(&self, prices: &Prices) -> f64 {
        let price = match self.unit {
            Unit::Write => prices.write / 1e6,
            Unit::Read => prices.read / 1e6,
            Unit::MetricCall => prices.metric_calls / 1e3,
        };
        self.units_a_minute * MONTH * price
    }
}

/// Every activity that costs something, dearest first in the usual case.
pub(crate) fn lines(fleet: &Fleet, who: Who) -> Vec<Line> {
    let mut lines = match who {
        Who::Ours | Who::OursByWorker => ours(fleet, who == Who::OursByWorker),
        Who::Kcl2 | Who::Kcl3 => kcl(fleet, who == Who::Kcl3),
    };
    lines.retain(|line| line.calls_a_minute > 0.0);
    lines
}

fn ours(fleet: &Fleet, by_worker: bool) -> Vec<Line> {
    let beating = Fleet { row_bytes: fleet.row_bytes + HEARTBEAT_BYTES, ..*fleet };
    let fleet = if by_worker { &beating } else { fleet };
    let rows = fleet.shards + if by_worker { fleet.workers } else { 0.0 };
    let (renewals, checkpoints) = writes_a_minute(fleet, by_worker);
    let beats = fleet.workers * 60.0 / (fleet.failover / 2.0 * EARLY);
    let renewals = if by_worker { beats } else { fleet.shards * renewals };
    let checkpoints = fleet.shards * checkpoints;
    // By `look_schedule`: once a second, or as often as the budget affords, which grows with the leases held.
    let budget = fleet.scan_budget * (fleet.shards / fleet.workers / LEASES_A_BUDGET).max(1.0);
    let look = (fleet.failover / 10.0).min(1.0);
    let afforded = (rows * fleet.row_bytes / READ_BYTES).ceil() / 2.0 / budget;
    let looks = fleet.workers * 60.0 / afforded.max(look);
    vec![
        write(if by_worker { "heartbeats of workers" } else { "renewals" }, renewals, fleet),
        write("checkpoints", checkpoints, fleet),
        scan("looks at the table", looks, rows, fleet),
        metrics("metrics", fleet.workers),
    ]
}

/// The writes of one lease a minute: bare renewals, and checkpoints. From one write to the next: the first
/// batch since then is written as soon as the checkpoint interval is over, unless a renewal comes before and
/// takes it along.
fn writes_a_minute(fleet: &Fleet, by_worker: bool) -> (f64, f64) {
    let due = if by_worker { f64::INFINITY } else { fleet.failover / 2.0 };
    let between = 1.0 / fleet.batches;
    let (mut now, mut renewals, mut checkpoints) = (0.0, 0.0, 0.0);
    for _ in 0..10_000 {
        // Not the one of this very moment, whichever way it is rounded.
        let batch = ((now / between + 1e-6).floor() + 1.0) * between;
        let checkpoint = batch.max(now + fleet.checkpoint);
        let renewal = now + if batch <= now + due { due } else { due * EARLY };
        if checkpoint.min(renewal).is_infinite() {
            break;
        }
        *(if checkpoint <= renewal { &mut checkpoints } else { &mut renewals }) += 60.0;
        now = checkpoint.min(renewal);
    }
    (renewals / now.max(1.0), checkpoints / now.max(1.0))
}

fn kcl(fleet: &Fleet, three: bool) -> Vec<Line> {
    let Fleet { shards, workers, .. } = *fleet;
    // Every failover time divided by three, less 25 ms, whatever a checkpoint has just written.
    let renew = fleet.failover / 3.0 - 0.025;
    // About 25 metrics of a worker and 10 of a shard at the default level, 20 in a call, every 10 s.
    let puts = workers * 6.0 * ((25.0 + 10.0 * shards / workers) / 20.0).ceil();
    let mut lines = vec![
        write("renewals", shards * 60.0 / renew, fleet),
        write("checkpoints", shards * 60.0 * fleet.batches, fleet),
    ];
    if three {
        lines.extend([
            scan("assignment by the leader", 3.0, shards, fleet),
            // A row of its own, of one unit.
            Line { units_a_minute: 2.0, ..write("leader's lock", 2.0, fleet) },
            read("leader's lock", "GetItem", (workers - 1.0) * 4.0, 1.0),
            read("discovery of own leases", "Query", workers * 60.0 / 9.975, 0.5),
            write("statistics of workers", workers * 2.0, fleet),
        ]);
    } else {
        lines.push(scan(
            "looks at the table",
            workers * 60.0 / (2.0 * (fleet.failover + 0.025)),
            shards,
            fleet,
        ));
        lines.push(scan("election of a leader", workers * 0.2, shards, fleet));
    }
    lines.push(scan("audit", 0.5, shards, fleet));
    lines.push(metrics("metrics", puts));
    lines
}

fn write(what: &'static str, calls: f64, fleet: &Fleet) -> Line {
    let units = (fleet.row_bytes / WRITE_BYTES).ceil().max(1.0);
    Line { what, call: "UpdateItem", calls_a_minute: calls, unit: Unit::Write, units_a_minute: calls * units }
}

/// Scans of a table of `rows`, each in as many pages as it takes.
fn scan(what: &'static str, scans: f64, rows: f64, fleet: &Fleet) -> Line {
    let bytes = rows * fleet.row_bytes;
    let pages = (bytes / PAGE_BYTES).ceil().max(1.0);
    let units = (bytes / READ_BYTES).ceil().max(1.0) / 2.0;
    Line {
        what,
        call: "Scan",
        calls_a_minute: scans * pages,
        unit: Unit::Read,
        units_a_minute: scans * units,
    }
}

fn read(what: &'static str, call: &'static str, calls: f64, units: f64) -> Line {
    Line { what, call, calls_a_minute: calls, unit: Unit::Read, units_a_minute: calls * units }
}

fn metrics(what: &'static str, calls: f64) -> Line {
    Line { what, call: "PutMetricData", calls_a_minute: calls, unit: Unit::MetricCall, units_a_minute: calls }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testdata::{Row, rows};

    const CASES: &str = include_str!("testdata/cost.txt");

    const KINDS: [(Who, &str); 4] = [
        (Who::Ours, "ours"),
        (Who::OursByWorker, "ours by worker"),
        (Who::Kcl2, "KCL 2"),
        (Who::Kcl3, "KCL 3"),
    ];

    const REST: Fleet = Fleet {
        shards: 16.0,
        workers: 1.0,
        row_bytes: 500.0,
        batches: 0.0,
        failover: 10.0,
        checkpoint: 5.0,
        scan_budget: 5.0,
    };

    fn calls(fleet: &Fleet, who: Who, call: &str) -> f64 {
        lines(fleet, who).iter().filter(|line| line.call == call).map(|line| line.calls_a_minute).sum()
    }

    #[track_caller]
    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= expected.abs() / 100.0, "{found} is not {expected}");
    }

    #[test]
    fn every_line_of_a_fleet_is_that_of_the_table() {
        let number = |cell: &str| cell.parse::<f64>().expect("a number");
        let table = rows(CASES, "lines");
        for Row { cells, .. } in rows(CASES, "fleets") {
            let [shards, workers, row_bytes, batches, failover, checkpoint, scan_budget] =
                [1, 2, 3, 4, 5, 6, 7].map(|n| number(cells[n]));
            let fleet = Fleet { shards, workers, row_bytes, batches, failover, checkpoint, scan_budget };
            for (who, name) in KINDS {
                let expected = table.iter().filter(|row| row.cells[..2] == [cells[0], name]);
                let found = lines(&fleet, who);
                assert_eq!(found.len(), expected.clone().count(), "{name}: {found:?}");
                for (found, Row { line, cells }) in found.iter().zip(expected) {
                    assert_eq!([found.what, found.call], cells[2..4], "line {line}");
                    let dollars = found.dollars(&Prices::default());
                    for (found, cell) in
                        [found.calls_a_minute, found.units_a_minute, dollars].iter().zip(&cells[4..])
                    {
                        let off = (found / number(cell) - 1.0).abs();
                        assert!(off < 1e-5, "line {line}: {found} is not {cell}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_kcl_at_rest_renews_a_lease_eighteen_times_a_minute() {
        near(calls(&REST, Who::Kcl2, "UpdateItem") / 16.0, 18.14);
        near(calls(&REST, Who::Kcl2, "Scan"), 2.99 + 0.2 + 0.5);
        near(calls(&REST, Who::Kcl3, "Query"), 6.02);
    }

    #[test]
    fn a_fleet_of_the_kcl_reads_a_thousand_rows_as_its_formulas_say() {
        let fleet = Fleet { shards: 1000.0, workers: 100.0, ..REST };
        let units = |who| -> f64 {
            let scans = lines(&fleet, who).into_iter().filter(|line| line.call == "Scan");
            scans.map(|line| line.units_a_minute).sum()
        };
        near(units(Who::Kcl2), (100.0 * 3.19 + 0.5) * 61.5);
        near(units(Who::Kcl3), 3.5 * 61.5);
    }

    #[test]
    fn a_checkpoint_of_ours_takes_the_place_of_a_renewal_and_one_of_the_kcl_does_not() {
        let busy = Fleet { batches: 1.0, checkpoint: 2.0, ..REST };
        near(calls(&busy, Who::Ours, "UpdateItem") / 16.0, 30.0);
        near(calls(&busy, Who::Kcl2, "UpdateItem") / 16.0, 78.14);
        near(calls(&Fleet { batches: 1.0, ..REST }, Who::Ours, "UpdateItem") / 16.0, 12.0);
    }

    #[test]
    fn a_batch_that_comes_seldom_shares_its_write_with_a_renewal() {
        for batches in [0.19, 0.1, 0.05, 0.01] {
            let found = calls(&Fleet { batches, ..REST }, Who::Ours, "UpdateItem") / 16.0;
            assert!((12.0..=12.2).contains(&found), "{batches}: {found}");
            let found = calls(&Fleet { batches, ..REST }, Who::OursByWorker, "UpdateItem");
            near(found, 16.0 * 60.0 * batches + 12.12);
        }
        // Renewals are rarer than checkpoints may be: a batch between two of them has a write of its own.
        let rare = Fleet { batches: 1.0 / 12.0, failover: 20.0, ..REST };
        near(calls(&rare, Who::Ours, "UpdateItem") / 16.0, 7.5);
    }

    #[test]
    fn heartbeats_of_workers_cost_by_the_worker() {
        let large = Fleet { shards: 1000.0, workers: 10.0, ..REST };
        assert!(calls(&large, Who::OursByWorker, "UpdateItem") / 1000.0 <= 0.2);
        let busy = Fleet { batches: 1.0, ..large };
        near(calls(&busy, Who::OursByWorker, "UpdateItem"), 12_000.0 + 121.2);
    }

    #[test]
    fn looks_keep_to_the_read_budget_of_a_worker() {
        for (shards, workers, budget) in [
            (1.0, 1.0, 5.0),
            (16.0, 4.0, 5.0),
            (500.0, 50.0, 5.0),
            (500.0, 4.0, 25.0),
            (10_000.0, 1000.0, 5.0),
        ] {
            let fleet = Fleet { shards, workers, ..REST };
            let line = lines(&fleet, Who::Ours).into_iter().find(|line| line.call == "Scan").expect("looks");
            assert!(line.units_a_minute <= workers * budget * 60.0 * 1.01, "{shards}: {line:?}");
        }
    }

    #[test]
    fn a_small_table_is_looked_at_once_a_second_or_ten_times_in_a_shorter_failover_time() {
        for (failover, looks) in [(60.0, 60.0), (10.0, 60.0), (5.0, 120.0)] {
            let fleet = Fleet { shards: 1.0, failover, ..REST };
            near(calls(&fleet, Who::Ours, "Scan"), looks);
        }
    }

    #[test]
    fn dollars_are_those_of_the_price_list() {
        let renewals = lines(&REST, Who::Kcl2)[0];
        near(renewals.dollars(&Prices::default()), 16.0 * 783_555.0 * 0.625e-6);
        let metrics = lines(&Fleet { shards: 1.0, ..REST }, Who::Kcl2).pop().expect("metrics");
        near(metrics.dollars(&Prices::default()), 5.18);
    }
}
