//! `reset`: moves checkpoints. What is written is decided in `core::reset`; here the writes are made.

use serde_json::json;

use super::{
    args::{Reset, millis},
    exit::{Exit, Trouble},
    lease_json,
    output::{columns, either},
    place::{self, Place, patiently, shards},
};
use crate::{
    core::{
        audit,
        lease::{Lease, LeaseKey, Mark},
        reset::{self, Change, Refused},
    },
    io::{LeaseError, LeaseStore},
};

/// A holder renews every few seconds: it is faster than us now and then, not always.
const TRIES: usize = 10;

pub(super) async fn run(place: &Place, wish: &Reset) -> Result<(), Trouble> {
    let store = place.store().await?;
    let leases = place.leases(&*store).await?;
    let source = place.source(&leases)?;
    let stream = patiently(|| source.describe()).await?;
    let listed = shards(&*source).await?;
    if let Some(why) = audit::belongs_elsewhere(&leases, &listed, &stream.identity()) {
        return Err(Trouble::refused(why));
    }
    let now = place::now();
    let target = wish.to.target(now);
    let changes = reset::plan(&leases, &listed, &wish.shards, &target, &stream.identity(), millis(now));
    let changes = changes.map_err(|refused| match refused {
        Refused::NotListed(_) => Trouble::not_found(refused.to_string()),
        Refused::OneShard | Refused::Future => Trouble::usage(refused.to_string()),
        Refused::NotOfShard { .. } | Refused::LongOver { .. } => Trouble::refused(refused.to_string()),
    })?;
    let held: Vec<&Change> = changes.iter().filter(|change| change.is_held()).collect();
    if !held.is_empty() && !wish.force && !wish.dry_run {
        let holders: Vec<String> = held.iter().take(10).map(|change| held_by(change)).collect();
        return Err(Trouble::refused(format!(
            "{} leases are held ({}); stop the workers, or reset all the same with --force, which fences them",
            held.len(),
            holders.join(", ")
        )));
    }
    let mut undone = Vec::new();
    if !wish.dry_run {
        for change in &changes {
            if let Err(why) = make(&*store, change, wish.force).await {
                undone.push((change.key().clone(), why));
            }
        }
    }
    let done = |change: &Change| !wish.dry_run && !undone.iter().any(|(key, _)| key == change.key());
    let table = || {
        let rows: Vec<Vec<String>> = changes
            .iter()
            .map(|change| {
                let from = match change {
                    Change::Move(row, _) => lease_json::checkpoint(row),
                    Change::Create(_) => "(new row)".into(),
                };
                let holder = if change.is_held() { held_by(change) } else { "-".into() };
                let result = if done(change) {
                    "done"
                } else if wish.dry_run {
                    "dry run"
                } else {
                    "not done"
                };
                vec![
                    change.key().to_string(),
                    holder,
                    from,
                    lease_json::checkpoint(&change.after()),
                    result.into(),
                ]
            })
            .collect();
        columns(&["SHARD", "HELD BY", "FROM", "TO", "RESULT"], &rows)
    };
    either(place.format, table, || {
        let change = |change: &Change| {
            let (from, holder) = match change {
                Change::Move(row, _) => {
                    (Some(row.checkpoint.text().to_owned()), row.holder().map(ToString::to_string))
                }
                Change::Create(_) => (None, None),
            };
            json!({
                "shard": change.key().as_str(),
                "held_by": holder,
                "from": from,
                "to": change.after().checkpoint.text(),
                "done": done(change),
            })
        };
        json!({ "dry_run": wish.dry_run, "changes": changes.iter().map(change).collect::<Vec<_>>() })
    })?;
    for key in reset::overtaken(&leases, &changes) {
        eprintln!("leasectl: {key} continues a shard that was reset, and goes on where it was");
    }
    match &undone[..] {
        [] => Ok(()),
        undone => {
            let why: Vec<String> = undone.iter().map(|(key, why)| format!("{key}: {why}")).collect();
            Err(Trouble::new(Exit::Partial, format!("not reset: {}", why.join("; "))))
        }
    }
}

fn held_by(change: &Change) -> String {
    match change {
        Change::Move(row, _) => row.holder().map_or_else(|| "-".into(), ToString::to_string),
        Change::Create(_) => "-".into(),
    }
}

/// Makes one change, on the row as it stands by then.
async fn make(store: &dyn LeaseStore, change: &Change, force: bool) -> Result<(), Trouble> {
    let (mut write, reset) = match change {
        Change::Create(row) if store.create(row).await? => return Ok(()),
        // A worker made the row meanwhile.
        Change::Create(row) => (None, reset_to(row)),
        Change::Move(_, write) => match write.mark() {
            Some(Mark::Reset(reset)) => (Some((**write).clone()), reset.clone()),
            _ => return Err(Trouble::new(Exit::Failed, "the plan is no reset")),
        },
    };
    let key: &LeaseKey = change.key();
    for _ in 0..TRIES {
        if let Some(write) = &write {
            match store.write(write).await {
                Ok(()) => return Ok(()),
                Err(LeaseError::Conflict(_)) => {}
                // Applied or not? The row tells, in the next round.
                Err(LeaseError::Unavailable { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let row = patiently(|| store.get(key)).await?;
        let Some(row) = row else { return Err(Trouble::new(Exit::Partial, "its row is gone")) };
        if write.as_ref().is_some_and(|write| write.took_effect_on(&row, &"".into())) {
            return Ok(());
        }
        if let Some(holder) = row.holder().filter(|_| !force) {
            return Err(Trouble::refused(format!("{holder} holds it now")));
        }
        write = Some(row.reset(reset.clone()));
    }
    Err(Trouble::new(Exit::Partial, "its row changes all the time"))
}

/// The reset that a new row stands for.
fn reset_to(row: &Lease) -> crate::Reset {
    crate::Reset {
        to: row.checkpoint.clone(),
        start_millis: row.start_millis,
        at_millis: row.reset_millis.unwrap_or_default(),
    }
}
