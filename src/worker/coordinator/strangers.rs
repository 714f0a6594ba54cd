//! Who else uses the table: another process under our own id; workers that do not know heartbeats.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::{Coordinator, heartbeats};
use crate::{
    clock,
    core::{
        audit::is_foreign,
        lease::{Claimant, Lease, LeaseKey, WorkerId},
    },
    error::WorkerError,
    io::Rows,
};

/// A row of another process with our id is one if it moved in that many looks.
const LOOKS_AT_NAMESAKE: u32 = 3;

/// What looks have shown of others so far.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// Rows under our own id that are not ours.
    namesakes: BTreeMap<String, Row>,
    /// For each other process with our id, none where the row does not say, in how many looks they moved.
    namesake_looks: BTreeMap<Option<u64>, u32>,
    /// Leases of workers that do not know heartbeats; only if we have one.
    foreign: BTreeMap<LeaseKey, Foreign>,
    /// The rows of other streams that the last look showed. They have been told of.
    other_streams: BTreeSet<LeaseKey>,
}

/// A lease of a worker that does not know heartbeats, as it seems.
#[derive(Debug)]
struct Foreign {
    holder: WorkerId,
    /// The last claim of one that does. A lease on its way between such workers names the holder before.
    left_by: Option<Claimant>,
    counter: u64,
}

impl Foreign {
    /// Whether its holder has renewed it since it was as `before`: nothing but the counter has changed. Under
    /// another claim the lease has come back to its holder, or to one of the same name.
    fn is_renewed_since(&self, before: &Self) -> bool {
        (&self.holder, &self.left_by) == (&before.holder, &before.left_by) && self.counter > before.counter
    }
}

/// A row under our own id.
#[derive(Debug, Clone, Copy)]
struct Row {
    counter: u64,
    /// Whose it is, if it says so.
    process: Option<u64>,
    /// Or the row of the worker itself.
    is_lease: bool,
}

impl Coordinator {
    /// Rows under our own id are those of our predecessor, or of a live namesake. We have written nothing
    /// yet, so a counter that moves is the proof of a namesake; one that stands still makes the lease expire.
    /// Rows that our predecessor marked as left need no proof.
    /// In the same way leases of the KCL's workers are those of a fleet that ended, or of one that lives.
    pub(super) async fn await_strangers(&mut self) -> Result<(), WorkerError> {
        let (before, foreign) = (self.rows_under_our_id(), self.foreign_leases());
        if before.is_empty() && foreign.is_empty() {
            return Ok(());
        }
        info!(
            worker = %self.parts.me, own = before.len(), foreign = foreign.len(),
            "rows under this worker's id, or of workers without heartbeats: waiting to see that no other process renews them"
        );
        self.strangers.foreign = foreign;
        // A live holder renews within half of the failover time; its write may be delayed by as much.
        let until = clock::now() + self.parts.config.failover_time;
        while clock::now() < until {
            let now = clock::now();
            let next = self.looks.soonest(now).max(now + self.parts.config.look_interval()).min(until);
            if self.stop.run_until_cancelled(clock::sleep_until(next)).await.is_none() {
                return Ok(());
            }
            self.parts.vitals.turn();
            // A failed look proves nothing; the next one may.
            let asked_at = clock::now();
            let rows = match self.stop.run_until_cancelled(self.parts.store.scan()).await {
                Some(Ok(rows)) => rows,
                Some(Err(_)) => continue,
                None => return Ok(()),
            };
            self.seen_at = asked_at;
            heartbeats::take_in(&mut self.view, &mut self.looks, rows, &self.identity, clock::now());
            let moved =
                |(key, row): (&String, &Row)| before.get(key).is_some_and(|then| then.counter < row.counter);
            if self.rows_under_our_id().iter().any(moved) {
                return Err(WorkerError::WorkerIdInUse(self.parts.me.to_string()));
            }
            self.look_for_foreigners()?;
        }
        Ok(())
    }

    /// Tells of rows of other streams, once for as long as there are any. Where one has the key of a shard of
    /// ours, nobody can read that shard.
    pub(super) fn tell_foreign(&mut self, rows: &Rows) {
        let foreign = || rows.leases.iter().filter(|lease| is_foreign(lease, &self.identity));
        let keys: BTreeSet<LeaseKey> = foreign().map(|lease| lease.key.clone()).collect();
        let count = keys.len();
        let told = !std::mem::replace(&mut self.strangers.other_streams, keys).is_empty();
        if let Some(lease) = foreign().next().filter(|_| !told) {
            warn!(lease = %lease.key, stream = lease.stream.as_deref(), count, "rows of other streams in the lease table are left alone; use one application name for each stream");
        }
    }

    /// Whether the row with this key is another stream's: it can neither be made nor read.
    pub(super) fn is_anothers(&self, key: &LeaseKey) -> bool {
        self.strangers.other_streams.contains(key)
    }

    pub(super) fn look_for_strangers(&mut self) -> Result<(), WorkerError> {
        self.look_for_namesake()?;
        self.look_for_foreigners()
    }

    /// Rows under our id that are not ours and whose counters go on moving are those of another process: one
    /// of the two must end, and not both: the one that holds nothing; of two that do, or of two that do not, the one
    /// with the higher number.
    fn look_for_namesake(&mut self) -> Result<(), WorkerError> {
        let mut rows = self.rows_under_our_id();
        // Of an earlier holding of this process: a late write may still move it.
        rows.retain(|_, row| row.process != Some(self.parts.process));
        // A process that holds nothing ends by itself as soon as it sees one that does.
        let holding: BTreeSet<Option<u64>> =
            rows.values().filter(|row| row.is_lease).map(|row| row.process).collect();
        let holds = !self.links.is_empty();
        let strangers = &mut self.strangers;
        let moved: BTreeSet<Option<u64>> = rows
            .iter()
            .filter(|(key, row)| strangers.namesakes.get(*key).is_some_and(|then| row.counter > then.counter))
            .map(|(_, row)| row.process)
            .collect();
        strangers.namesakes = rows;
        for other in moved {
            let looks = strangers.namesake_looks.entry(other).or_default();
            *looks = looks.saturating_add(1);
            let first = other.is_some_and(|other| self.parts.process < other);
            let stays = if holding.contains(&other) { holds && first } else { holds || first };
            // The late writes of a process that has ended may move them, too, but not for long.
            if *looks >= LOOKS_AT_NAMESAKE && !stays {
                return Err(WorkerError::WorkerIdInUse(self.parts.me.to_string()));
            }
        }
        Ok(())
    }

    /// Leases that we neither hold nor have asked for, and worker rows, that bear our id.
    fn rows_under_our_id(&self) -> BTreeMap<String, Row> {
        let me = &self.parts.me;
        let leases = self.view.leases().filter(|lease| {
            let known = self.links.contains_key(&lease.key) || self.asked.contains_key(&lease.key);
            lease.holder() == Some(me) && !lease.is_finished() && !lease.is_left() && !known
        });
        let leases = leases.map(|lease| {
            let claimant = lease.hands_over.as_ref().filter(|claimant| claimant.worker() == me);
            let process = claimant.and_then(Claimant::process);
            (lease.key.to_string(), Row { counter: lease.counter, process, is_lease: true })
        });
        let workers = self.view.heartbeats.rows_of(me).into_iter();
        let workers = workers.map(|(row, counter)| {
            (row.to_string(), Row { counter, process: row.process(), is_lease: false })
        });
        leases.chain(workers).collect()
    }

    /// A lease that moves under a holder that does not know heartbeats has a live one. The claim itself is not
    /// enough: the row may have been edited by hand.
    fn look_for_foreigners(&mut self) -> Result<(), WorkerError> {
        let foreign = self.foreign_leases();
        let known = &self.strangers.foreign;
        let renewed = foreign
            .iter()
            .find(|(key, now)| known.get(*key).is_some_and(|before| now.is_renewed_since(before)));
        if let Some((lease, Foreign { holder, .. })) = renewed {
            let (lease, holder) = (lease.to_string(), holder.to_string());
            return Err(WorkerError::ForeignHolder { lease, holder });
        }
        self.strangers.foreign = foreign;
        Ok(())
    }

    /// Leases of others that did not say that they hand over: all workers of this crate do, the KCL's do not.
    fn foreign_leases(&self) -> BTreeMap<LeaseKey, Foreign> {
        if !self.pulse.is_wanted() {
            return BTreeMap::new();
        }
        let foreign = |lease: &&Lease| {
            let others = lease.holder().is_some_and(|holder| *holder != self.parts.me);
            others
                && !lease.is_finished()
                && lease.hands_over.as_ref().map(Claimant::worker) != lease.holder()
        };
        let entry = |lease: &Lease| {
            let (holder, left_by) = (lease.holder()?.clone(), lease.hands_over.clone());
            Some((lease.key.clone(), Foreign { holder, left_by, counter: lease.counter }))
        };
        self.view.leases().filter(foreign).filter_map(entry).collect()
    }
}
