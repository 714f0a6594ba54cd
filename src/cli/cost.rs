//! `cost`: what a fleet costs a month. The arithmetic is in `core::cost`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    args::{Cost, Global},
    exit::Trouble,
    output::{columns, either},
    place::Place,
};
use crate::core::cost::{Fleet, Line, Prices, Who, lines};

const ALL: [(Who, &str, &str); 4] = [
    (Who::Ours, "ours", "this library"),
    (Who::OursByWorker, "ours_by_worker", "this library, heartbeat: worker"),
    (Who::Kcl2, "kcl_2", "Java KCL 2.x"),
    (Who::Kcl3, "kcl_3", "Java KCL 3.x"),
];

pub(super) async fn run(place: Option<&Place>, wish: &Cost, global: &Global) -> Result<(), Trouble> {
    let (shards, workers) = match place {
        None => (16, 1),
        Some(place) => {
            let leases = place.leases(&*place.store().await?).await?;
            let open = || leases.iter().filter(|lease| !lease.is_finished());
            let holders: BTreeSet<_> = open().filter_map(|lease| lease.holder()).collect();
            (open().count().max(1), holders.len().max(1))
        }
    };
    let fleet = Fleet {
        shards: wish.shards.map_or(shards as f64, f64::from),
        workers: wish.workers.map_or(workers as f64, f64::from),
        row_bytes: f64::from(wish.row_bytes),
        batches: wish.batches,
        failover: global.failover_time.as_secs_f64(),
        checkpoint: wish.checkpoint_interval.as_secs_f64(),
        scan_budget: wish.scan_budget,
    };
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let sound = [fleet.shards, fleet.workers, fleet.failover, fleet.checkpoint, fleet.scan_budget];
    if !sound.into_iter().all(positive) || !fleet.batches.is_finite() || fleet.batches < 0.0 {
        return Err(Trouble::usage("shards, workers, times and budgets must be above 0, batches at least 0"));
    }
    let default = Prices::default();
    let prices = Prices {
        write: wish.write_price.unwrap_or(default.write),
        read: wish.read_price.unwrap_or(default.read),
        ..default
    };
    either(global.output, || table(&fleet, &prices), || document(&fleet, &prices))
}

fn dollars(lines: &[Line], prices: &Prices) -> f64 {
    lines.iter().map(|line| line.dollars(prices)).sum()
}

fn table(fleet: &Fleet, prices: &Prices) -> String {
    let mut rows = Vec::new();
    for (who, _, name) in ALL {
        let lines = lines(fleet, who);
        for (n, line) in lines.iter().enumerate() {
            rows.push(vec![
                if n == 0 { name.to_owned() } else { String::new() },
                line.what.to_owned(),
                line.call.to_owned(),
                format!("{:.1}", line.calls_a_minute),
                format!("{:.2}", line.dollars(prices)),
            ]);
        }
        rows.push(vec![
            String::new(),
            "all".into(),
            String::new(),
            String::new(),
            format!("{:.2}", dollars(&lines, prices)),
        ]);
    }
    let Fleet { shards, workers, batches, failover, .. } = fleet;
    format!(
        "{shards} shards, {workers} workers, {batches} batches a second a shard, failover time {failover} s\n\n{}\n{}",
        columns(&["WHO", "WHAT", "CALL", "A MINUTE", "$ A MONTH"], &rows),
        "On demand, 30 days; at the prices of us-east-1 unless others are given. Shards and metrics themselves come on top.\n"
    )
}

fn document(fleet: &Fleet, prices: &Prices) -> Value {
    let who = ALL.map(|(who, key, _)| {
        let lines = lines(fleet, who);
        let line = |line: &Line| {
            json!({
                "what": line.what,
                "call": line.call,
                "calls_a_minute": line.calls_a_minute,
                "dollars_a_month": line.dollars(prices),
            })
        };
        let total = dollars(&lines, prices);
        json!({ "who": key, "lines": lines.iter().map(line).collect::<Vec<_>>(), "dollars_a_month": total })
    });
    json!({ "shards": fleet.shards, "workers": fleet.workers, "fleets": who })
}
