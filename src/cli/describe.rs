//! `describe`: how each lease stands, and what follows from it.

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Value, json};

use super::{
    args::Describe,
    exit::Trouble,
    lease_json, output,
    output::either,
    place::{Place, chosen, find},
};
use crate::{
    clock,
    core::{
        lease::{Lease, LeaseKey},
        lease_state::{State, state},
        lease_view::{LeaseView, Standing},
    },
    io::{LeaseStore, Rows},
};

/// Looks at the table while it is observed.
const LOOKS: u32 = 10;

pub(super) async fn run(place: &Place, wish: &Describe) -> Result<(), Trouble> {
    let store = place.store().await?;
    let first = place.scan(&*store).await?;
    let (leases, alive) =
        if wish.observe { observe(place, &*store, first).await? } else { (first.leases, BTreeMap::new()) };
    let chosen = chosen(&leases, &wish.shards)?;
    let state_of = |lease: &Lease| {
        let silent = alive.get(&lease.key).is_some_and(|alive| !alive);
        state(lease, |shard| find(&leases, shard), silent)
    };
    let states: Vec<(&Lease, State)> = chosen.iter().map(|lease| (*lease, state_of(lease))).collect();
    let meaning = |lease: &Lease, state: &State| match (state, alive.get(&lease.key)) {
        (State::Held(by), Some(true)) if lease.lives_by().is_some() => {
            format!("{by} reads it, and its heartbeat moved while it was observed")
        }
        (State::Held(by), Some(true)) => format!("{by} reads it, and renewed it while it was observed"),
        _ => state.meaning(),
    };
    let table = || {
        let text = states.iter().map(|(lease, state)| paragraph(lease, state, &meaning(lease, state)));
        text.collect::<Vec<_>>().join("\n")
    };
    either(place.format, table, || {
        let described = states.iter().map(|(lease, state)| {
            let mut value = lease_json::lease(lease, state);
            value["meaning"] = json!(meaning(lease, state));
            value["alive"] = json!(alive.get(&lease.key));
            value
        });
        Value::Array(described.collect())
    })
}

/// Looks on for the failover time. Says of each held lease whether its holder renewed it, or gave
/// another sign of life.
async fn observe(
    place: &Place,
    store: &dyn LeaseStore,
    first: Rows,
) -> Result<(Vec<Lease>, BTreeMap<LeaseKey, bool>), Trouble> {
    let mut view = LeaseView::default();
    let take_in = |view: &mut LeaseView, rows: Rows| {
        let now = clock::now();
        view.observe(rows.leases, now);
        view.observe_workers(rows.workers, now);
    };
    take_in(&mut view, first);
    let end: Instant = clock::now() + place.failover_time;
    while clock::now() < end {
        clock::sleep(place.failover_time / LOOKS).await;
        take_in(&mut view, place.scan(store).await?);
    }
    let leases: Vec<Lease> = view.leases().cloned().collect();
    let now = clock::now();
    let suspects = view.heartbeats.suspects(view.leases(), place.failover_time, now);
    for (incarnation, row) in place.read_again(store, suspects).await? {
        view.heartbeats.confirm(&incarnation, row.as_ref(), now);
    }
    let alive = view.rows().filter_map(|seen| match view.standing(seen, place.failover_time, now) {
        Standing::Held { .. } => Some((seen.lease.key.clone(), true)),
        Standing::Expired { .. } => Some((seen.lease.key.clone(), false)),
        Standing::Free { .. } | Standing::Finished => None,
    });
    Ok((leases, alive.collect()))
}

fn paragraph(lease: &Lease, state: &State, meaning: &str) -> String {
    let mut text = format!("{}\n", lease.key);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            text += &format!("  {:16}{value}\n", format!("{name}:"));
        }
    };
    let shards = |shards: &std::collections::BTreeSet<crate::core::shard::ShardId>| {
        shards.iter().map(|shard| shard.as_str()).collect::<Vec<_>>().join(", ")
    };
    line("state", Some(format!("{}: {meaning}", state.word())));
    line("owner", lease.owner.as_ref().map(ToString::to_string));
    line("handing over", lease.checkpoint_owner.as_ref().map(ToString::to_string));
    line("checkpoint", Some(lease_json::checkpoint(lease)));
    line("prepared", lease.pending.as_ref().map(|pending| pending.at.to_string()));
    line("counter", Some(lease.counter.to_string()));
    line("heartbeat", lease.lives_by().map(ToString::to_string));
    line("owner switches", Some(format!("{} since the last checkpoint", lease.owner_switches)));
    line("parents", Some(shards(&lease.parents)));
    line("children", Some(shards(&lease.children)));
    line("hash keys", lease.hash_range.map(|range| format!("{}-{}", range.start, range.end)));
    line("throughput", lease.throughput_kbps.map(|kbps| format!("{kbps} KiB/s, as the Java KCL measured")));
    line("reset", lease.reset_millis.map(output::millis_date));
    line("stream", lease.stream.as_deref().map(str::to_owned));
    let hands_over = lease_json::hands_over(lease);
    line(
        "hands over",
        lease
            .owner
            .as_ref()
            .map(|_| if hands_over { "on request" } else { "no: a Java KCL 2.x, or unknown" }.to_owned()),
    );
    text
}
