//! In-memory twins of the doors, with the real semantics, for tests without servers.

mod lease_table;
mod limits;
mod metrics;
pub(crate) mod model;
pub(crate) mod numbers;
mod stream;

pub use self::{lease_table::MemoryLeaseStore, limits::Limits, metrics::MemoryMetrics, stream::MemoryStream};
