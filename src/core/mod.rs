//! The rules, as plain data and functions: no async, clock, chance, log, lock or AWS type.
//!
//! Time comes in as `now`, chance as `rng`. Whatever can be wrong is decided here and tested here.

pub(crate) mod lease;
pub(crate) mod record;
pub(crate) mod shard;
