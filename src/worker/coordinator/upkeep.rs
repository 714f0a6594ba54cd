//! Upkeep of the lease table: rows that are missing, in doubt, or finished.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use rand::RngExt;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::Coordinator;
use crate::{
    clock,
    config::{LeaseTable, ShardOrder},
    core::{
        audit::{self, Coverage},
        cleanup::Cleanup,
        lease::{Checkpoint, Lease, LeaseKey},
        race::Race,
        shard::{HashKeyRange, ShardId},
        shard_sync::{self, Begin},
    },
    io::{BoxError, ShardFilter},
    worker::{coordinator::CALLS_AT_ONCE, renewer::cause},
};

/// How often shards are listed to audit rows without a range, and where the stream is not the worker's any more.
const LIST_INTERVAL: Duration = Duration::from_secs(60);
/// How often shards are listed by a worker that does not wait for parents: children begin so long after a
/// reshard at the latest, and sooner the more workers there are.
const SEARCH_INTERVAL: Duration = Duration::from_secs(20);
/// So long after a look rows are made by it at the latest.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// So long rows are kept that nobody needs any more. By then every call is over that was decided on by a look from
/// before: none makes them again.
const KEPT: Duration = Duration::from_secs(60);
const _: () = assert!(KEPT.as_secs() >= 2 * GOOD_FOR.as_secs());
/// Rows in doubt that are read again in one look.
const CONFIRMED_AT_ONCE: usize = 8;

impl Coordinator {
    /// Makes the leases that are missing: all at first, later where the hash keys show a hole.
    /// True if the next look is to come soon.
    pub(super) async fn repair(&mut self) -> bool {
        let fresh = self.view.leases().next().is_none();
        // Who does not wait for parents does not learn of children from their ends.
        let at_once = self.parts.config.shard_order == ShardOrder::None;
        let due = at_once && clock::now() >= self.list_after;
        let mut coverage = audit::coverage(self.view.leases(), None);
        if matches!(coverage, Coverage::Unknown(_)) && clock::now() >= self.list_after {
            // Rows of old KCL versions have no range: the listing has it.
            self.list_after = clock::now() + LIST_INTERVAL;
            let listed = self.parts.source.list_shards(ShardFilter::All);
            if let Some(Ok(listed)) = self.stop.run_until_cancelled(listed).await {
                coverage = audit::coverage(self.view.leases(), Some(&listed));
            }
        }
        let suspicious = match coverage {
            Coverage::Whole => self.holes.see(&[]),
            Coverage::Holes(holes) => self.holes.see(&holes),
            Coverage::Empty => self.holes.see(&[HashKeyRange::ALL]),
            Coverage::Unknown(_) => false,
        };
        let orphaned = self.orphaned_parents();
        if !fresh && !suspicious && !due && orphaned.is_empty() || clock::now() < self.repair_after {
            return false;
        }
        if at_once {
            self.list_after = clock::now() + SEARCH_INTERVAL.mul_f64(self.parts.rng.random_range(0.8..1.0));
        }
        let leases: Vec<Lease> = self.view.leases().cloned().collect();
        let (stop, late) = (self.stop.clone(), self.seen_at + GOOD_FOR);
        let missing = stop.run_until_cancelled(self.missing(&leases, fresh || suspicious)).await;
        let mut missing = match missing {
            None => return false,
            Some(Ok(missing)) if !missing.is_empty() && clock::now() >= late => {
                if let Some(faults) = self.list_faults.failed() {
                    warn!(
                        faults,
                        "listing shards took so long that leases may have changed meanwhile; trying again"
                    );
                }
                return false;
            }
            Some(Ok(missing)) => {
                let to_make: BTreeSet<ShardId> = missing.iter().map(|lease| lease.key.shard()).collect();
                self.settled_parents.extend(orphaned.difference(&to_make).cloned());
                if fresh {
                    // What was closed at the application's beginning has nothing for it.
                    let before = shard_sync::absent_parents(missing.iter());
                    self.settled_parents.extend(before);
                }
                self.list_faults.over();
                missing
            }
            Some(Err(error)) => {
                if let Some(faults) = self.list_faults.failed() {
                    warn!(faults, error = %error, cause = cause(error.as_ref()), "listing shards failed; trying again");
                }
                return false;
            }
        };
        // Under these no row can be made. Nobody was faster: to look again soon would show the same.
        missing.retain(|lease| !self.is_anothers(&lease.key));
        if at_once && !missing.is_empty() {
            info!(leases = missing.len(), "shards found");
            // Their children may be there already.
            self.list_after = clock::now();
        } else if !fresh && !missing.is_empty() {
            warn!(leases = missing.len(), "leases were missing and are made again");
        }
        self.make(missing, late).await
    }

    /// Makes leases until it is `late`. True if that comes first, or if peers make them, too: the next look shows
    /// what they made.
    async fn make(&mut self, mut missing: Vec<Lease>, late: Instant) -> bool {
        // Each worker pins the time of its start, and the earliest holds for all: who tries every row sees it.
        let pins = missing.iter().any(|lease| lease.checkpoint == Checkpoint::Latest);
        let races = !pins && !shard_sync::have_parents_among_them(&missing);
        if races && !missing.is_empty() {
            let place = self.parts.rng.random_range(0..missing.len());
            missing.rotate_left(place);
        }
        // Else in the order of the shards, so that a crash in the midst leaves no child without its parent.
        let mut race = Race::new(CALLS_AT_ONCE);
        let mut missing = missing.into_iter();
        let mut under_way = JoinSet::new();
        loop {
            let at_once = if races { race.at_once() } else { CALLS_AT_ONCE };
            while under_way.len() < at_once && !race.is_lost() && clock::now() < late {
                let Some(mut lease) = missing.next() else { break };
                lease.stream = Some(self.identity.clone());
                let call = race.begin();
                let store = self.parts.store.clone();
                under_way.spawn(self.parts.gate.pass(async move {
                    // It may have stood still since then.
                    let created = match clock::now() < late {
                        true => Some(store.create(&lease).await),
                        false => None,
                    };
                    // Somebody was faster, and may begin elsewhere. Not read now, it is at the next look.
                    let others = match created {
                        Some(Ok(false)) if !races => store.get(&lease.key).await.ok().flatten(),
                        _ => None,
                    };
                    (lease, call, created, others)
                }));
            }
            // After a stop it is all the same whether they are made.
            let done = self.stop.run_until_cancelled(under_way.join_next()).await.flatten();
            let Some(done) = done else { return race.is_lost() || clock::now() >= late };
            let (lease, call, created, others) = done.expect("creations do not panic and are not aborted");
            self.parts.vitals.turn();
            match created {
                None => {}
                Some(Ok(true)) => {
                    race.over(call, true);
                    self.view.note(lease, clock::now());
                }
                Some(Ok(false)) if races => race.over(call, false),
                Some(Ok(false)) => {
                    if let Some(row) = others.filter(|row| !audit::is_foreign(row, &self.identity)) {
                        self.view.note(row, clock::now());
                    }
                }
                Some(Err(error)) => {
                    if let Some(faults) = self.write_faults.failed() {
                        warn!(lease = %lease.key, faults, %error, cause = cause(&error), "lease not made; trying again");
                    }
                    missing = Vec::new().into_iter();
                }
            }
        }
    }

    /// The parents without a row of shards that have not begun, but for those that are settled; none if they
    /// were asked for a moment ago.
    fn orphaned_parents(&mut self) -> BTreeSet<ShardId> {
        let claimed = self.view.leases().filter(|lease| lease.counter > 0 && !lease.parents.is_empty());
        let new = claimed.map(|lease| lease.key.shard()).filter(|shard| !self.claimed.contains(shard));
        let new: Vec<ShardId> = new.collect();
        self.claimed.extend(new);
        let mut absent = shard_sync::absent_parents(self.view.leases());
        self.settled_parents.retain(|parent| absent.contains(parent));
        absent.retain(|parent| !self.settled_parents.contains(parent));
        if absent.is_empty() || clock::now() < self.parents_after {
            return BTreeSet::new();
        }
        self.parents_after = clock::now() + self.parts.config.look_interval();
        absent
    }

    /// The leases to make: those of shards that nobody reads, if there are `holes`, and those whose rows
    /// somebody removed before their shards were finished.
    async fn missing(&mut self, leases: &[Lease], holes: bool) -> Result<Vec<Lease>, BoxError> {
        let begin = self.begin.pinned_by(leases);
        if leases.is_empty() {
            let at =
                |millis| ShardFilter::AtTimestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            let filter = match begin {
                Begin::TrimHorizon => ShardFilter::AtTrimHorizon,
                // Not those that are open now: one that was split since then still has the first records.
                Begin::Latest { pinned_millis } => at(pinned_millis),
                Begin::Timestamp { millis } => at(millis),
            };
            let mut listed = self.parts.source.list_shards(filter).await?;
            if listed.is_empty() {
                // Older than the stream: all that it has came since then.
                listed = self.parts.source.list_shards(ShardFilter::AtTrimHorizon).await?;
            }
            // Not from every server: some ignore the filter. Then the lineage decides.
            if let Some(initial) = shard_sync::initial(&listed, begin) {
                return Ok(initial);
            }
        }
        let listed = self.parts.source.list_shards(ShardFilter::All).await?;
        if leases.is_empty() {
            return Ok(shard_sync::missing(&listed, leases, begin, true));
        }
        // What has left the stream is nobody's parent any more.
        let ids: BTreeSet<&ShardId> = listed.iter().map(|shard| &shard.id).collect();
        self.claimed.retain(|shard| ids.contains(shard));
        let order = self.parts.config.shard_order;
        let to_make = |claimed: &BTreeSet<ShardId>, leases: &[Lease]| match order {
            ShardOrder::ParentsFirst => {
                shard_sync::to_make(&listed, leases, begin, holes, |shard| claimed.contains(shard))
            }
            ShardOrder::None => {
                shard_sync::to_make_at_once(&listed, leases, begin, |shard| claimed.contains(shard))
            }
        };
        let (mut leases, mut asked) = (leases.to_vec(), BTreeSet::new());
        loop {
            let made = to_make(&self.claimed, &leases);
            // Seldom enough for another call. Of a stream that was made again nobody has read anything, and its
            // shards have the ids of others.
            if !made.is_empty() && asked.is_empty() {
                let identity = self.parts.source.describe().await?.identity();
                if identity != self.identity {
                    self.repair_after = clock::now() + LIST_INTERVAL;
                    return Err("the stream was deleted and made again".into());
                }
            }
            let mut doubtful = shard_sync::in_doubt(&listed, &made, &leases);
            doubtful.retain(|key| asked.insert(key.clone()));
            if doubtful.is_empty() {
                return Ok(made);
            }
            self.confirm_rows(&mut leases, doubtful).await?;
        }
    }

    /// Replaces these rows by what they are now.
    async fn confirm_rows(&mut self, leases: &mut Vec<Lease>, keys: Vec<LeaseKey>) -> Result<(), BoxError> {
        let count = keys.len();
        let read = self.read_rows(keys).await;
        if read.len() < count {
            return Err("rows that were in doubt could not be read".into());
        }
        let read: BTreeMap<LeaseKey, Option<Lease>> = read.into_iter().collect();
        leases.retain(|lease| !read.contains_key(&lease.key));
        leases.extend(read.into_values().flatten());
        Ok(())
    }

    /// Somebody dropped the table. Made again it is empty, and the application begins anew.
    pub(super) async fn remake_table(&mut self) {
        if self.parts.config.lease_table == LeaseTable::CreateIfMissing {
            if let Some(faults) = self.table_faults.failed() {
                error!(
                    table = self.parts.table,
                    faults, "the lease table is gone, and with it all checkpoints; it is made again"
                );
            }
            match self.stop.run_until_cancelled(self.parts.store.open(true)).await {
                Some(Ok(())) => {
                    self.table_faults.over();
                    self.cleanup = Cleanup::default();
                }
                Some(Err(error)) => debug!(%error, "the lease table was not made"),
                None => {}
            }
        }
    }

    /// Deletes rows that nobody needs, unless the worker is to stop.
    pub(super) async fn tidy_up(&mut self) {
        let stop = self.stop.clone();
        let tidy = async {
            self.clean_up().await;
            self.forget_workers().await;
        };
        stop.run_until_cancelled(tidy).await;
    }

    /// Deletes the leases of finished shards whose children have begun long enough ago; the rest at the next looks.
    async fn clean_up(&mut self) {
        let due = self.cleanup.due(self.view.leases(), KEPT, clock::now());
        let mut under_way = JoinSet::new();
        for lease in due.into_iter().take(CALLS_AT_ONCE) {
            let (store, lease) = (self.parts.store.clone(), lease.clone());
            under_way.spawn(self.parts.gate.pass(async move {
                match store.delete(&lease).await {
                    Ok(true) => debug!(lease = %lease.key, "finished lease deleted"),
                    Ok(false) => {}
                    Err(error) => {
                        debug!(lease = %lease.key, %error, "finished lease not deleted; trying again");
                    }
                }
            }));
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Reads rows again that showed an older counter than known. Without it a row that was deleted and made
    /// anew would never be claimed, or claimed from its living holder once the counters meet.
    pub(super) async fn confirm(&mut self, doubtful: Vec<LeaseKey>) {
        // Our own are confirmed by their writes, if there will be any.
        let rests = self.pulse.is_wanted();
        let unsure = doubtful.into_iter().filter(|key| rests || !self.links.contains_key(key));
        let unsure: Vec<LeaseKey> = unsure.take(CONFIRMED_AT_ONCE).collect();
        self.fetch(unsure).await;
    }
}
