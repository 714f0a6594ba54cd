//! Whole fleets of real workers on one paused clock, over one lease table and one stream in memory.
//!
//! ```text
//! worker -> Line (latency, time-outs) -> faults by seed -> Tap (the observer looks on) -> table, stream
//! ```

/// Makes each scenario a test with leases that are renewed one by one, and one with leases that live by their
/// worker's heartbeat.
macro_rules! in_both_modes {
    ($($scenario:ident),* $(,)?) => {
        mod by_leases {
            $(
                #[tokio::test(start_paused = true)]
                async fn $scenario() {
                    super::$scenario().await;
                }
            )*
        }
        mod by_heartbeats {
            use crate::sim::script::{Beats, Mode};
            $(
                #[tokio::test(start_paused = true)]
                async fn $scenario() {
                    let _mode = Mode::of(Beats::Worker);
                    super::$scenario().await;
                }
            )*
        }
    };
}

mod aggregate;
mod ahead;
mod by_throughput;
mod calm;
mod downstream;
mod draw;
pub(crate) mod faces;
mod feeds;
mod finale;
pub(crate) mod fleet;
mod hand_over;
mod health;
mod incidents;
mod index;
mod instances;
mod java;
pub(crate) mod line;
mod losses;
mod made_again;
pub(crate) mod measures;
mod moves;
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
pub(crate) mod shrink;
mod starts;
mod stops;
pub(crate) mod tap;
pub(crate) mod trace;
