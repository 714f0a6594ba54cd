//! Whole fleets of real workers on one paused clock, over one lease table and one stream in memory.
//!
//! ```text
//! worker -> Line (latency, time-outs) -> faults by seed -> Tap (the observer looks on) -> table, stream
//! ```

mod aggregate;
mod calm;
pub(crate) mod faces;
mod feeds;
pub(crate) mod fleet;
mod health;
mod incidents;
mod index;
mod java;
pub(crate) mod line;
mod neighbours;
pub(crate) mod observer;
mod outages;
pub(crate) mod processor;
pub(crate) mod resets;
mod restless;
mod rules;
pub(crate) mod run;
mod sabotage;
mod scenarios;
pub(crate) mod script;
pub(crate) mod shards;
pub(crate) mod tap;
pub(crate) mod trace;
