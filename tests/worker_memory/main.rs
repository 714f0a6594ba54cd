//! The worker on the in-memory twins: every promise on a paused clock, without a server.

mod blocked;
mod checkpoints;
mod cloudwatch;
mod faces;
mod failures;
mod fleet;
mod health;
mod health_file;
mod heartbeats;
mod logs;
mod metrics;
mod moves;
mod operator;
mod reading;
mod rejoin;
mod retention;
mod shard_end;
mod shard_order;
mod signals;
mod start;
mod stop;
mod world;
