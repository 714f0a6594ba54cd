//! `release` and `drain`: leases go from their holder to nobody, by the hand-off of the protocol where the
//! holder takes part in it, else by force.
//!
//! The tool asks for the lease in its own name, as a worker would: the holder finishes what is in hand,
//! checkpoints and transfers it, and the tool gives it to nobody. Should the tool end in between, the lease
//! expires like any other.

use std::{process, sync::Arc, time::Duration};

use serde_json::json;
use tokio::task::JoinSet;

use super::{
    args::{Drain, How, Release, millis},
    exit::{Exit, Trouble},
    output::{columns, either},
    place::{self, Place, chosen, patiently},
};
use crate::{
    clock,
    core::lease::{HandOff, Lease, WorkerId},
    io::{LeaseError, LeaseStore},
};

/// How often a lease that was asked for is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Leases that are asked for at one time.
const AT_ONCE: usize = 32;
/// A holder renews every few seconds: it is faster than us now and then, not always.
const TRIES: usize = 10;

/// What became of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody held it.
    WasFree,
    /// The shard has ended; there is nothing to give up.
    WasFinished,
    HandedOver,
    Fenced,
    /// Still held, and why.
    Kept(String),
}

impl Fate {
    fn word(&self) -> String {
        match self {
            Self::WasFree => "was free".into(),
            Self::WasFinished => "finished".into(),
            Self::HandedOver => "handed over".into(),
            Self::Fenced => "taken; holder fenced".into(),
            Self::Kept(why) => format!("kept: {why}"),
        }
    }
}

pub(super) async fn release(place: &Place, wish: &Release) -> Result<(), Trouble> {
    let store = place.store().await?;
    let leases = place.leases(&*store).await?;
    let chosen = chosen(&leases, &wish.shards)?.into_iter().cloned().collect();
    free(place, &store, chosen, &wish.how).await
}

pub(super) async fn drain(place: &Place, wish: &Drain) -> Result<(), Trouble> {
    let store = place.store().await?;
    let worker = WorkerId::from(wish.worker.as_str());
    let mut leases = place.leases(&*store).await?;
    leases.retain(|lease| lease.holder() == Some(&worker) && !lease.is_finished());
    if leases.is_empty() {
        return Err(Trouble::not_found(format!("{worker} holds no lease of {}", place.table()?)));
    }
    free(place, &store, leases, &wish.how).await?;
    eprintln!("leasectl: {worker} takes its share again at its next look, if it runs on: stop it now");
    Ok(())
}

/// Gives these leases free, and says what became of each.
async fn free(
    place: &Place,
    store: &Arc<dyn LeaseStore>,
    leases: Vec<Lease>,
    how: &How,
) -> Result<(), Trouble> {
    let name = format!("leasectl-{}-{}", process::id(), millis(place::now()));
    let mut waiting = leases.into_iter().enumerate();
    let (mut under_way, mut fates) = (JoinSet::new(), Vec::new());
    let (force, timeout) = (how.force, how.timeout);
    loop {
        while under_way.len() < AT_ONCE {
            let Some((n, lease)) = waiting.next() else { break };
            // A name for each: workers balance, and take nothing from somebody who holds one lease only.
            let (me, store) = (WorkerId::from(format!("{name}-{n}")), Arc::clone(store));
            under_way.spawn(async move {
                let holder = lease.holder().cloned();
                let key = lease.key.clone();
                let fate = free_one(&*store, lease, &me, timeout, force).await;
                let fate = fate.unwrap_or_else(|trouble| Fate::Kept(trouble.to_string()));
                (key, holder, fate)
            });
        }
        match under_way.join_next().await {
            None => break,
            Some(Ok(fate)) => fates.push(fate),
            Some(Err(error)) => return Err(Trouble::failed("release a lease", &error)),
        }
    }
    fates.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let kept = fates.iter().filter(|(.., fate)| matches!(fate, Fate::Kept(_))).count();
    let holder_name =
        |holder: &Option<WorkerId>| holder.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let table = || {
        let row = |(key, holder, fate): &(_, Option<WorkerId>, Fate)| {
            let key: &crate::LeaseKey = key;
            vec![key.to_string(), holder_name(holder), fate.word()]
        };
        columns(&["SHARD", "HELD BY", "RESULT"], &fates.iter().map(row).collect::<Vec<_>>())
    };
    either(place.format, table, || {
        let line = |(key, holder, fate): &(crate::LeaseKey, Option<WorkerId>, Fate)| json!({ "shard": key.as_str(), "held_by": holder_name(holder), "free": !matches!(fate, Fate::Kept(_)), "result": fate.word() });
        json!({ "leases": fates.iter().map(line).collect::<Vec<_>>() })
    })?;
    match (kept, fates.len()) {
        (0, _) => Ok(()),
        (kept, all) if kept == all => {
            Err(Trouble::refused("no lease was given free; --force takes them and fences the holder"))
        }
        (kept, all) => Err(Trouble::new(
            Exit::Partial,
            format!("{kept} of {all} leases are still held; --force takes them and fences the holder"),
        )),
    }
}

async fn free_one(
    store: &dyn LeaseStore,
    lease: Lease,
    me: &WorkerId,
    timeout: Duration,
    force: bool,
) -> Result<Fate, Trouble> {
    // What was listed may be a moment old.
    let row = patiently(|| store.get(&lease.key)).await?;
    let Some(row) = row else { return Ok(Fate::Kept("its row is gone".into())) };
    if row.is_finished() {
        return Ok(Fate::WasFinished);
    }
    if row.holder().is_none() {
        return Ok(Fate::WasFree);
    }
    let why = match row.ask(me) {
        Some(ask) => match ask_and_wait(store, ask, me, timeout).await? {
            None => return Ok(Fate::HandedOver),
            Some(why) => why,
        },
        None if row.checkpoint_owner.is_some() => "another hand-off is under way".into(),
        None => "its holder does not hand over: a Java KCL 2.x, or an older version".into(),
    };
    if !force {
        return Ok(Fate::Kept(why));
    }
    for _ in 0..TRIES {
        let row = patiently(|| store.get(&lease.key)).await?;
        let Some(row) = row.filter(|row| row.holder().is_some()) else { return Ok(Fate::WasFree) };
        match store.write(&row.evict()).await {
            Ok(()) => return Ok(Fate::Fenced),
            // Changed meanwhile, or unknown: the row tells.
            Err(LeaseError::Conflict(_) | LeaseError::Unavailable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Fate::Kept("its row changes all the time".into()))
}

/// Asks for a lease and gives it to nobody once it has come. Says why it did not come; the request is taken
/// back then.
async fn ask_and_wait(
    store: &dyn LeaseStore,
    ask: HandOff,
    me: &WorkerId,
    timeout: Duration,
) -> Result<Option<String>, Trouble> {
    match store.hand_off(&ask).await {
        Ok(()) => {}
        Err(LeaseError::Conflict(_)) => return Ok(Some("it changed before it was asked for".into())),
        Err(error) => return Err(error.into()),
    }
    let until = clock::now() + timeout;
    let key = ask.key().clone();
    let mut withdrawn = false;
    loop {
        let row = patiently(|| store.get(&key)).await?;
        match row {
            Some(row) if row.is_coming_to(me) && clock::now() < until => clock::sleep(LOOK).await,
            Some(row) if row.is_coming_to(me) && !withdrawn => {
                withdrawn = true;
                if store.hand_off(&ask.clone().withdrawn()).await.is_ok() {
                    return Ok(Some(format!("{} did not hand it over in time", ask.from())));
                }
                // Handed over at this very moment, or unknown: the row tells.
            }
            Some(row) if row.holder() == Some(me) => {
                if store.write(&row.evict()).await.is_ok() {
                    return Ok(None);
                }
            }
            Some(row) if withdrawn && row.holder() == Some(ask.from()) => {
                return Ok(Some(format!("{} did not hand it over in time", ask.from())));
            }
            // Ended, or taken already: a request ends only by being met.
            Some(_) => return Ok(None),
            None => return Ok(Some("its row is gone".into())),
        }
    }
}
