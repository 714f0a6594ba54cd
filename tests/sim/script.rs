//! What happens to a fleet in one run: its setup, its producers and its faults, written down before anything runs.

use std::{cell::Cell, fmt};

use kinesis_consumer::{
    Heartbeat,
    io::{faulty::Fault, memory::Limits},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    fleet::{Begins, Edit, Setup},
    line::Quality,
    processor::Temper,
    resets::To,
};

/// One thing that is done to the fleet.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A worker joins.
    Join,
    /// One worker dies; another with the same or a new id takes its place after a while, if at all.
    Crash {
        nth: usize,
        back: Option<Back>,
    },
    /// One worker is asked to stop.
    Stop {
        nth: usize,
        back: Option<Back>,
    },
    /// One worker stands still.
    Freeze {
        nth: usize,
        millis: u64,
    },
    /// A second process with the id of a worker that runs.
    Twin {
        nth: usize,
    },
    /// Two processes with one id that start in the same moment.
    Twins,
    /// The user's code of one worker, or of all, misbehaves.
    Temper {
        nth: Option<usize>,
        temper: Temper,
        millis: u64,
    },
    /// Calls of one worker, or of all, fail.
    Faults {
        nth: Option<usize>,
        door: Door,
        faults: Vec<(f64, Fault)>,
        millis: u64,
    },
    /// The line of one worker, or of all, is bad.
    Line {
        nth: Option<usize>,
        door: Door,
        quality: Quality,
        millis: u64,
    },
    Split(usize),
    Merge(usize),
    Double,
    Halve,
    /// Scans of the table show the past, each row its own.
    Stale {
        by: u64,
        millis: u64,
    },
    /// An operator sets one shard, or all, to where reading is to begin.
    Reset {
        nth: Option<usize>,
        to: To,
    },
    /// The oldest records of a shard leave the stream, all but this share.
    Trim {
        nth: usize,
        keep: f64,
    },
    /// A closed shard leaves the stream.
    Forget(usize),
    DropTable,
    DeleteWorkerRow(usize),
    DeleteRow(usize),
    EditRow(usize, Edit),
}

impl Step {
    /// The same for another time.
    pub(super) fn lasting(mut self, time: u64) -> Self {
        if let Self::Freeze { millis, .. }
        | Self::Temper { millis, .. }
        | Self::Faults { millis, .. }
        | Self::Line { millis, .. } = &mut self
        {
            *millis = time;
        }
        self
    }

    /// Whether it keeps a worker from reading for so long that it gives its leases up.
    pub(crate) fn is_blinding(&self) -> bool {
        match self {
            Self::Faults { door, millis, .. } | Self::Line { door, millis, .. } => {
                door.is_to_stream() && *millis >= 60_000
            }
            _ => false,
        }
    }

    /// Its name.
    pub(crate) fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '(', '{']).next().unwrap_or_default().to_lowercase()
    }
}

/// How a worker comes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    pub(crate) same_id: bool,
    pub(crate) after_millis: u64,
}

/// Which door of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    Table,
    Stream,
    /// The table and the stream.
    Both,
    Metrics,
}

impl Door {
    pub(crate) fn is_to_table(self) -> bool {
        matches!(self, Self::Table | Self::Both)
    }

    pub(crate) fn is_to_stream(self) -> bool {
        matches!(self, Self::Stream | Self::Both)
    }
}

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) setup: Setup,
    pub(crate) workers: usize,
    /// Producers put so many records every so many milliseconds.
    pub(crate) rate: (usize, u64),
    pub(crate) length: u64,
    /// With their times in milliseconds, in order.
    pub(crate) steps: Vec<(u64, Step)>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setup, workers, rate, length, steps } = self;
        writeln!(f, "heartbeats: {:?}", setup.beats)?;
        let (records, every) = rate;
        writeln!(f, "{workers} workers, {} shards, {records} records every {every} ms", setup.shards)?;
        writeln!(f, "{:?}, {} records in one, of {} bytes", setup.faces, setup.aggregated, setup.payload)?;
        if setup.limits != Limits::none() {
            writeln!(f, "reads are limited as by AWS")?;
        }
        if !setup.clock_behind.is_zero() {
            writeln!(f, "the hosts' clocks are {:?} ahead of the stream's", setup.clock_behind)?;
        }
        if let Some(Begins { at, head }) = setup.begins {
            writeln!(
                f,
                "begins with what comes {at} ms after the stream was made, {head} ms before its workers"
            )?;
        }
        if !setup.unequal.is_empty() {
            writeln!(f, "most leases of each worker, in turn: {:?}", setup.unequal)?;
        }
        if setup.latency > 0 {
            writeln!(f, "a request takes up to {} ms, and so does its answer", setup.latency)?;
        }
        if setup.measured {
            writeln!(f, "what workers measure is published")?;
        }
        if setup.hot > 0.0 {
            writeln!(f, "{:.2} of the records have one key", setup.hot)?;
        }
        writeln!(f, "{:?}\n{:?}", setup.config, setup.temper)?;
        for (at, step) in steps {
            writeln!(f, "{:>5}.{:03}  {step:?}", at / 1000, at % 1000)?;
        }
        if let Some(shards) = setup.made_again {
            writeln!(
                f,
                "{:>5}.{:03}  the stream is made again with {shards} shards",
                length / 1000,
                length % 1000
            )?;
        }
        writeln!(f, "{:>5}.{:03}  all faults end", length / 1000, length % 1000)
    }
}

/// What the leases of a fleet live by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beats {
    Lease,
    Worker,
    /// Some of its workers have a heartbeat, as while a fleet changes over.
    Mixed,
}

thread_local! {
    static SCENARIO: Cell<Beats> = const { Cell::new(Beats::Lease) };
}

/// What leases live by in the scenarios of this thread, until it is dropped.
pub(crate) struct Mode(());

impl Mode {
    pub(crate) fn of(beats: Beats) -> Self {
        SCENARIO.set(beats);
        Self(())
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        SCENARIO.set(Beats::Lease);
    }
}

impl Beats {
    /// What leases live by in a scenario.
    pub(crate) fn of_scenario() -> Self {
        SCENARIO.get()
    }

    pub(super) fn of(seed: u64) -> Self {
        match std::env::var("SIM_HEARTBEAT").as_deref() {
            Ok("lease") => Self::Lease,
            Ok("worker") => Self::Worker,
            Ok("mixed") => Self::Mixed,
            Ok(other) => panic!("SIM_HEARTBEAT is lease, worker or mixed, not {other}"),
            Err(_) => match StdRng::seed_from_u64(seed ^ 0xbea8).random_range(0..5) {
                0 | 1 => Self::Lease,
                2 | 3 => Self::Worker,
                _ => Self::Mixed,
            },
        }
    }

    /// What the leases of one worker live by, the `no`th that starts.
    pub(crate) fn of_worker(self, no: usize) -> Heartbeat {
        match self {
            Self::Worker => Heartbeat::Worker,
            Self::Mixed if no.is_multiple_of(2) => Heartbeat::Worker,
            Self::Lease | Self::Mixed => Heartbeat::Lease,
        }
    }
}
