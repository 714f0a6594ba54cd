//! A lease as JSON, and its state: what `list` and `describe` print for programs.

use serde_json::{Value, json};

use super::output;
use crate::core::{
    heartbeat::Incarnation,
    lease::{Checkpoint, Claimant, Lease},
    lease_state::State,
};

/// Every field, by the names of the library. Numbers that JSON cannot carry are strings.
pub(super) fn lease(lease: &Lease, state: &State) -> Value {
    json!({
        "shard": lease.key.as_str(),
        "state": state.word(),
        "owner": lease.owner.as_ref().map(|worker| worker.as_str()),
        "checkpoint_owner": lease.checkpoint_owner.as_ref().map(|worker| worker.as_str()),
        "counter": lease.counter,
        "owner_switches": lease.owner_switches,
        "heartbeat": lease.lives_by().map(Incarnation::as_str),
        "checkpoint": lease.checkpoint.text(),
        "sub": lease.checkpoint.sub(),
        "pending": lease.pending.as_ref().map(|pending| pending.at.text()),
        "parents": lease.parents,
        "children": lease.children,
        "starting_hash_key": lease.hash_range.map(|range| range.start.to_string()),
        "ending_hash_key": lease.hash_range.map(|range| range.end.to_string()),
        "throughput_kbps": lease.throughput_kbps,
        "start": lease.start_millis.map(output::millis_date),
        "reset": lease.reset_millis.map(output::millis_date),
        "stream": lease.stream.as_deref(),
        "hands_over": hands_over(lease),
    })
}

/// Whether the owner said that it hands the lease over on request.
pub(super) fn hands_over(lease: &Lease) -> bool {
    lease.owner.is_some() && lease.hands_over.as_ref().map(Claimant::worker) == lease.owner.as_ref()
}

/// A checkpoint for a column: what was done, or where the shard begins.
pub(super) fn checkpoint(lease: &Lease) -> String {
    let start = lease
        .start_millis
        .filter(|_| matches!(lease.checkpoint, Checkpoint::Latest | Checkpoint::AtTimestamp));
    match start {
        Some(millis) => format!("{} {}", lease.checkpoint, output::millis_date(millis)),
        None => lease.checkpoint.to_string(),
    }
}
