//! `list`: the leases of a table and their holders; or the lease tables of the account.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    exit::Trouble,
    lease_json,
    output::{columns, either},
    place::{Place, find},
};
use crate::{
    core::lease_state::{State, state},
    io::Rows,
};

pub(super) async fn run(place: &Place) -> Result<(), Trouble> {
    if !place.has_table() {
        return tables(place).await;
    }
    let store = place.store().await?;
    let Rows { leases, workers: beats, .. } = place.scan(&*store).await?;
    let states: Vec<State> =
        leases.iter().map(|lease| state(lease, |shard| find(&leases, shard), false)).collect();
    let mut workers: BTreeMap<&str, usize> = BTreeMap::new();
    for holder in leases.iter().filter(|lease| !lease.is_finished()).filter_map(|lease| lease.holder()) {
        *workers.entry(holder.as_str()).or_default() += 1;
    }
    // Those that hold nothing show only if they have a heartbeat.
    for beat in &beats {
        workers.entry(beat.incarnation.worker()).or_default();
    }
    let table = || {
        let rows: Vec<Vec<String>> = leases
            .iter()
            .zip(&states)
            .map(|(lease, state)| {
                let owner = lease.holder().map_or("-", |worker| worker.as_str());
                let (counter, switches) = (lease.counter.to_string(), lease.owner_switches.to_string());
                let cells = [lease.key.as_str(), state.word(), owner, &counter, &switches];
                let mut cells: Vec<String> = cells.map(str::to_owned).into();
                cells.push(lease_json::checkpoint(lease));
                cells
            })
            .collect();
        let holders: Vec<Vec<String>> =
            workers.iter().map(|(worker, leases)| vec![(*worker).to_owned(), leases.to_string()]).collect();
        let leases = columns(&["SHARD", "STATE", "HOLDER", "COUNTER", "SWITCHES", "CHECKPOINT"], &rows);
        format!("{leases}\n{}", columns(&["WORKER", "LEASES"], &holders))
    };
    either(place.format, table, || {
        let leases: Vec<_> =
            leases.iter().zip(&states).map(|(lease, state)| lease_json::lease(lease, state)).collect();
        json!({ "leases": leases, "workers": workers })
    })
}

async fn tables(place: &Place) -> Result<(), Trouble> {
    let (tables, hidden) = place.rows().tables().await?;
    let table = || {
        let cells =
            tables.iter().map(|table| vec![table.name.clone(), table.rows.to_string(), table.status.clone()]);
        columns(&["TABLE", "ROWS", "STATUS"], &cells.collect::<Vec<_>>())
    };
    either(place.format, table, || {
        let line = |table: &crate::io::lease_rows::TableLine| json!({ "table": table.name, "rows": table.rows, "status": table.status });
        json!({ "tables": tables.iter().map(line).collect::<Vec<_>>() })
    })?;
    if hidden > 0 {
        eprintln!("leasectl: {hidden} more tables may not be looked at, for want of dynamodb:DescribeTable");
    }
    Ok(())
}
