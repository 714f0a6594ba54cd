//! The rules, as plain data and functions: no async, clock, chance, log, lock or AWS type.
//!
//! Time comes in as `now`, chance as `rng`. Whatever can be wrong is decided here and tested here.

pub(crate) mod aggregation;
pub(crate) mod audit;
pub(crate) mod backoff;
pub(crate) mod balance;
pub(crate) mod census;
pub(crate) mod cleanup;
#[cfg(feature = "cli")]
pub(crate) mod cost;
pub(crate) mod cut_off;
pub(crate) mod health;
pub(crate) mod heartbeat;
pub(crate) mod lag;
pub(crate) mod lease;
#[cfg(feature = "cli")]
pub(crate) mod lease_state;
pub(crate) mod lease_view;
pub(crate) mod look_schedule;
pub(crate) mod metrics;
pub(crate) mod pacing;
pub(crate) mod progress;
pub(crate) mod race;
pub(crate) mod record;
#[cfg(feature = "cli")]
pub(crate) mod reset;
pub(crate) mod shard;
pub(crate) mod shard_sync;
#[cfg(test)]
pub(crate) mod testdata;
pub(crate) mod throughput;
pub(crate) mod trace_context;
pub(crate) mod watermark;
#[cfg(test)]
mod written_by_others;
