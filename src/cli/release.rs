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
    core::lease::{HandOff, Lease, LeaseKey, WorkerId},
    io::{LeaseError, LeaseStore},
};

/// How often a lease that was asked for is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Leases that are asked for at one time.
const AT_ONCE: usize = 32;
/// Between two tries of a call that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a request is taken back, or a lease that has come given free, before that is given up.
const PATIENCE: Duration = Duration::from_secs(30);
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
            let key: &LeaseKey = key;
            vec![key.to_string(), holder_name(holder), fate.word()]
        };
        columns(&["SHARD", "HELD BY", "RESULT"], &fates.iter().map(row).collect::<Vec<_>>())
    };
    either(place.format, table, || {
        let line = |(key, holder, fate): &(LeaseKey, Option<WorkerId>, Fate)| json!({ "shard": key.as_str(), "held_by": holder_name(holder), "free": !matches!(fate, Fate::Kept(_)), "result": fate.word() });
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
    fence(store, &lease.key).await
}

/// Takes a lease from its holder.
async fn fence(store: &dyn LeaseStore, key: &LeaseKey) -> Result<Fate, Trouble> {
    let mut unknown = false;
    for _ in 0..TRIES {
        let row = patiently(|| store.get(key)).await?;
        let Some(row) = row.filter(|row| row.holder().is_some()) else {
            return Ok(if unknown { Fate::Fenced } else { Fate::WasFree });
        };
        match store.write(&row.evict()).await {
            Ok(()) => return Ok(Fate::Fenced),
            Err(LeaseError::Conflict(_)) => clock::sleep(LOOK).await,
            // Done or not? The row tells.
            Err(LeaseError::Unavailable { .. }) => {
                unknown = true;
                clock::sleep(AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Fate::Kept("its row changes all the time, or cannot be written".into()))
}

/// Asks for a lease and gives it to nobody once it has come. Says why it did not come; the request is taken
/// back then, until the row shows it gone: a holder would hand over to nobody.
async fn ask_and_wait(
    store: &dyn LeaseStore,
    ask: HandOff,
    me: &WorkerId,
    timeout: Duration,
) -> Result<Option<String>, Trouble> {
    let until = clock::now() + timeout;
    let end = until + PATIENCE;
    let from = ask.from().clone();
    let mut asked = false;
    loop {
        let row = match store.get(ask.key()).await {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(Some("its row is gone".into())),
            Err(error) if clock::now() >= end => {
                let why = Trouble::from(error);
                return Ok(Some(format!(
                    "it was asked for as {me}, and what came of it cannot be read: {why}"
                )));
            }
            Err(_) => {
                clock::sleep(AGAIN).await;
                continue;
            }
        };
        let now = clock::now();
        let done = if row.is_coming_to(me) && now < until {
            clock::sleep(LOOK).await;
            continue;
        } else if row.is_coming_to(me) {
            if now >= end {
                return Ok(Some(format!(
                    "{from} did not hand it over in time, and the request could not be taken back: {from} may \
                    hand it to {me}, which is nobody, and it expires then"
                )));
            }
            store.hand_off(&ask.clone().withdrawn()).await.map(|()| Some(late(&from)))
        } else if row.holder() == Some(me) {
            if now >= end {
                return Ok(Some(format!("{from} handed it to {me}, which could not let it go: it expires")));
            }
            store.write(&row.evict()).await.map(|()| None)
        } else if row.holder() != Some(&from) {
            // Ended, or taken already: a request ends only by being met.
            return Ok(None);
        } else if row.checkpoint_owner.is_some() {
            return Ok(Some("another hand-off is under way".into()));
        } else if asked || now >= until {
            return Ok(Some(late(&from)));
        } else {
            match store.hand_off(&ask).await {
                Err(error @ (LeaseError::Conflict(_) | LeaseError::Unavailable { .. })) => Err(error),
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    asked = true;
                    continue;
                }
            }
        };
        match done {
            Ok(fate) => return Ok(fate),
            // Changed at this very moment, or unknown: the row tells.
            Err(LeaseError::Conflict(_)) => clock::sleep(LOOK).await,
            Err(_) => clock::sleep(AGAIN).await,
        }
    }
}

fn late(from: &WorkerId) -> String {
    format!("{from} did not hand it over in time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::lease::Checkpoint,
        io::{
            faulty::{Fault, Faults, FaultyLeaseStore, Op},
            memory::MemoryLeaseStore,
        },
    };

    struct Scene {
        table: MemoryLeaseStore,
        faults: Faults,
    }

    impl Scene {
        /// One lease, held by `a`, which hands over on request, but is dead.
        fn held() -> Self {
            let table = MemoryLeaseStore::new();
            let (owner, hands_over) = (Some("a".into()), Some("a".into()));
            table.put_row(Lease { owner, hands_over, ..Lease::new(&"0".into(), Checkpoint::TrimHorizon) });
            Self { table, faults: Faults::new(1) }
        }

        fn row(&self) -> Lease {
            self.table.rows().remove(0)
        }

        async fn free(&self, force: bool) -> Fate {
            let store = FaultyLeaseStore::new(self.table.clone(), self.faults.clone());
            let fate = free_one(&store, self.row(), &"tool".into(), Duration::from_secs(5), force).await;
            fate.expect("an answer")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_taken_back_until_the_row_shows_it_gone() {
        for fault in [Fault::Throttled, Fault::LostReply] {
            let scene = Scene::held();
            let before = scene.row();
            scene.faults.next(Op::HandOff, 1, fault);
            let asks = if fault == Fault::Throttled { 2 } else { 1 };
            let freed = scene.free(false);
            tokio::pin!(freed);
            let seen = tokio::select! {
                fate = &mut freed => panic!("too early: {fate:?}"),
                () = clock::sleep(Duration::from_secs(3)) => scene.row(),
            };
            assert!(seen.is_coming_to(&"tool".into()), "asked, by {asks} calls");
            assert_eq!(scene.faults.calls(Op::HandOff), asks);
            scene.faults.next(Op::HandOff, 3, fault);
            scene.faults.next(Op::GetLease, 2, Fault::Unavailable);
            assert_eq!(freed.await, Fate::Kept("a did not hand it over in time".into()));
            assert_eq!(scene.row(), before, "nothing is left behind");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_cannot_be_taken_back_is_told_of_in_the_end() {
        let scene = Scene::held();
        let freed = scene.free(false);
        tokio::pin!(freed);
        tokio::select! {
            fate = &mut freed => panic!("too early: {fate:?}"),
            () = clock::sleep(Duration::from_secs(3)) => scene.faults.chance(Op::HandOff, 1.0, Fault::Throttled),
        }
        let Fate::Kept(why) = freed.await else { panic!("freed") };
        assert!(why.contains("could not be taken back") && why.contains("tool"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_has_come_is_given_free_however_often_that_takes() {
        let scene = Scene::held();
        scene.faults.next(Op::WriteLease, 3, Fault::Throttled);
        scene.faults.next(Op::WriteLease, 1, Fault::LostReply);
        let freed = scene.free(false);
        tokio::pin!(freed);
        tokio::select! {
            fate = &mut freed => panic!("too early: {fate:?}"),
            () = clock::sleep(Duration::from_secs(3)) => {}
        }
        // The holder does as it was asked.
        scene.table.put_row(Lease { checkpoint_owner: None, counter: 7, ..scene.row() });
        assert_eq!(freed.await, Fate::HandedOver);
        assert_eq!((scene.row().holder(), scene.faults.calls(Op::WriteLease)), (None, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn force_waits_between_its_tries_and_ends() {
        let scene = Scene::held();
        scene.faults.next(Op::WriteLease, 1, Fault::LostReply);
        assert_eq!(scene.free(true).await, Fate::Fenced);
        let scene = Scene::held();
        scene.faults.chance(Op::WriteLease, 1.0, Fault::Throttled);
        let began = clock::now();
        assert!(matches!(scene.free(true).await, Fate::Kept(_)));
        assert!(clock::now() - began >= Duration::from_secs(5) + AGAIN * 9, "not all at once");
        assert_eq!(scene.row().holder(), Some(&"a".into()));
    }
}
