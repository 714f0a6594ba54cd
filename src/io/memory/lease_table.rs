//! The lease table in memory: every condition of the real one, and its stale scans if asked for.
//!
//! The rules are those of [`LeaseWrite::is_allowed_on`] and [`Lease::after`]; what a DynamoDB item can and
//! cannot hold is not checked here.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    clock,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::{HandOff, Lease, LeaseKey, LeaseWrite},
    },
    io::{LeaseError, LeaseStore, Rows},
};

/// A lease table in memory. Clones share the table, as workers do.
///
/// There is no table before [`open`](LeaseStore::open) makes it. Reads are never stale unless
/// [`set_scan_staleness`](Self::set_scan_staleness) says so.
#[derive(Clone, Debug, Default)]
pub struct MemoryLeaseStore(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    made: bool,
    leases: Kept<LeaseKey, Lease>,
    workers: Kept<Incarnation, WorkerRow>,
    staleness: Duration,
    /// Scans show each row at an age of its own, up to that.
    ages: Option<StdRng>,
}

impl MemoryLeaseStore {
    /// No table yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every later scan show the table as it was that long ago. Default: as it is.
    ///
    /// DynamoDB's scans are eventually consistent: they usually lag by milliseconds, and promise nothing.
    /// Changes made before this call are seen at once.
    pub fn set_scan_staleness(&self, staleness: Duration) {
        self.set_scans(staleness, None);
    }

    /// Makes every later scan show each row as it was some time ago, at most `most`: the time of each row in each
    /// scan is its own, drawn by `seed`. Default: all as they are.
    ///
    /// As DynamoDB has it, where a scan may be served by many replicas: one row may be older than another that was
    /// written before it, and older than in the scan before. A row made lately may be missing, and one deleted
    /// lately be there. Changes made before this call are seen at once.
    pub fn set_scan_ages(&self, most: Duration, seed: u64) {
        self.set_scans(most, Some(StdRng::seed_from_u64(seed)));
    }

    fn set_scans(&self, staleness: Duration, ages: Option<StdRng>) {
        let mut table = self.lock();
        (table.staleness, table.ages) = (staleness, ages);
        table.leases.replaced.clear();
        table.workers.replaced.clear();
    }

    /// All leases as they are, ordered by key; none without a table.
    pub fn rows(&self) -> Vec<Lease> {
        self.lock().leases.rows.values().cloned().collect()
    }

    /// All worker rows as they are, ordered by key; none without a table.
    pub fn worker_rows(&self) -> Vec<WorkerRow> {
        self.lock().workers.rows.values().cloned().collect()
    }

    /// Puts a row whatever was there, as a person with a console would; makes the table if need be.
    pub fn put_row(&self, row: Lease) {
        let mut table = self.lock();
        table.made = true;
        table.put(row);
    }

    /// Removes a row, whoever holds the lease, and returns it.
    pub fn remove_row(&self, key: &LeaseKey) -> Option<Lease> {
        let mut table = self.lock();
        let staleness = table.staleness;
        table.leases.replace(key.clone(), None, staleness)
    }

    /// Removes a worker row, although the worker may live, and returns it.
    pub fn remove_worker_row(&self, incarnation: &Incarnation) -> Option<WorkerRow> {
        let mut table = self.lock();
        let staleness = table.staleness;
        table.workers.replace(incarnation.clone(), None, staleness)
    }

    /// Deletes the whole table, rows and all.
    pub fn drop_table(&self) {
        let mut table = self.lock();
        *table = Table { staleness: table.staleness, ages: table.ages.take(), ..Table::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn check(&self) -> Result<(), LeaseError> {
        if self.made { Ok(()) } else { Err(LeaseError::NoTable { table: "in memory".into() }) }
    }

    fn lease(&self, key: &LeaseKey) -> Result<Option<&Lease>, LeaseError> {
        self.check()?;
        Ok(self.leases.rows.get(key))
    }

    fn worker(&self, incarnation: &Incarnation) -> Result<Option<&WorkerRow>, LeaseError> {
        self.check()?;
        Ok(self.workers.rows.get(incarnation))
    }

    fn put(&mut self, row: Lease) {
        self.leases.replace(row.key.clone(), Some(row), self.staleness);
    }
}

/// Rows, and what each recent change replaced, oldest first: scans undo what is too new for them to see.
#[derive(Debug)]
struct Kept<K, R> {
    rows: BTreeMap<K, R>,
    replaced: VecDeque<(Instant, K, Option<R>)>,
}

impl<K, R> Default for Kept<K, R> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), replaced: VecDeque::new() }
    }
}

impl<K: Ord + Clone, R: Clone> Kept<K, R> {
    /// Changes one row and remembers what was there for as long as scans may show it.
    fn replace(&mut self, key: K, row: Option<R>, staleness: Duration) -> Option<R> {
        let before = match row {
            Some(row) => self.rows.insert(key.clone(), row),
            None => self.rows.remove(&key),
        };
        if !staleness.is_zero() {
            let now = clock::now();
            while self.replaced.front().is_some_and(|(at, ..)| *at + staleness <= now) {
                self.replaced.pop_front();
            }
            self.replaced.push_back((now, key, before.clone()));
        }
        before
    }

    /// The rows as a scan sees them: each at the age that `ages` draws for it, or all at `staleness`.
    fn scan(&self, staleness: Duration, mut ages: Option<&mut StdRng>) -> Vec<R> {
        let mut rows = self.rows.clone();
        let mut drawn: BTreeMap<&K, Duration> = BTreeMap::new();
        let now = clock::now();
        for (at, key, before) in self.replaced.iter().rev() {
            let age = *drawn.entry(key).or_insert_with(|| match &mut ages {
                Some(rng) => rng.random_range(Duration::ZERO..=staleness),
                None => staleness,
            });
            if *at + age <= now {
                continue;
            }
            match before {
                Some(row) => rows.insert(key.clone(), row.clone()),
                None => rows.remove(key),
            };
        }
        rows.into_values().collect()
    }
}

#[async_trait]
impl LeaseStore for MemoryLeaseStore {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        let mut table = self.lock();
        table.made |= create;
        table.check()
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        let mut table = self.lock();
        table.check()?;
        let Table { leases, workers, staleness, ages, .. } = &mut *table;
        let leases = leases.scan(*staleness, ages.as_mut());
        let workers = workers.scan(*staleness, ages.as_mut());
        Ok(Rows { leases, workers, read_units: None })
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        Ok(self.lock().lease(key)?.cloned())
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        let mut table = self.lock();
        let absent = table.lease(&lease.key)?.is_none();
        if absent {
            table.put(lease.clone());
        }
        Ok(absent)
    }

    async fn may_create(&self, _: &LeaseKey) -> Result<(), LeaseError> {
        self.lock().check()
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        let mut table = self.lock();
        let row = match table.lease(write.key())? {
            Some(row) if write.is_allowed_on(row) => row.after(write),
            _ => return Err(LeaseError::Conflict(write.key().clone())),
        };
        table.put(row);
        Ok(())
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        let mut table = self.lock();
        let row = match table.lease(request.key())? {
            Some(row) if request.is_allowed_on(row) => row.after_request(request),
            _ => return Err(LeaseError::Conflict(request.key().clone())),
        };
        table.put(row);
        Ok(())
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        let mut table = self.lock();
        let unchanged = table.lease(&seen.key)?.is_some_and(|row| {
            row.counter == seen.counter
                && row.is_of_holding(seen)
                && row.checkpoint_owner == seen.checkpoint_owner
                && row.checkpoint.text() == seen.checkpoint.text()
        });
        let staleness = table.staleness;
        if unchanged {
            table.leases.replace(seen.key.clone(), None, staleness);
        }
        Ok(unchanged)
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        Ok(self.lock().worker(incarnation)?.cloned())
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        let mut table = self.lock();
        let known = table.worker(&row.incarnation)?.map(|row| row.counter);
        let allowed = known.map_or(row.counter == 0, |counter| counter < row.counter);
        let staleness = table.staleness;
        if allowed {
            table.workers.replace(row.incarnation.clone(), Some(row.clone()), staleness);
        }
        Ok(allowed)
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        let mut table = self.lock();
        let unchanged = table.worker(&seen.incarnation)? == Some(seen);
        let staleness = table.staleness;
        if unchanged {
            table.workers.replace(seen.incarnation.clone(), None, staleness);
        }
        Ok(unchanged)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::core::lease::Checkpoint;

    fn row(shard: &str, counter: u64) -> Lease {
        Lease { counter, ..Lease::new(&shard.into(), Checkpoint::TrimHorizon) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_scan_shows_the_table_as_it_was_and_get_shows_it_as_it_is() {
        let table = MemoryLeaseStore::new();
        table.put_row(row("a", 0));
        table.set_scan_staleness(Duration::from_secs(3));
        clock::sleep(Duration::from_secs(1)).await;
        table.put_row(row("a", 1));
        table.put_row(row("b", 0));
        clock::sleep(Duration::from_secs(1)).await;
        table.remove_row(&"a".into());
        assert_eq!(table.list().await.unwrap(), [row("a", 0)]);
        assert_eq!(table.get(&"a".into()).await.unwrap(), None);

        clock::sleep(Duration::from_secs(2)).await;
        assert_eq!(table.list().await.unwrap(), [row("a", 1), row("b", 0)]);
        clock::sleep(Duration::from_secs(1)).await;
        assert_eq!(table.list().await.unwrap(), table.rows());
    }

    /// A row that changes twice, one that is made and one that is deleted: in one scan each is old or new whatever
    /// the others are, and the row that changes may be older than it was in the scan before.
    #[tokio::test(start_paused = true)]
    async fn rows_of_one_scan_are_of_different_ages_and_those_made_and_deleted_too() {
        let seen = async |seed| {
            let table = MemoryLeaseStore::new();
            ["changes", "goes"].iter().for_each(|key| table.put_row(row(key, 0)));
            table.set_scan_ages(Duration::from_secs(4), seed);
            clock::sleep(Duration::from_secs(1)).await;
            table.put_row(row("changes", 1));
            table.put_row(row("comes", 0));
            table.remove_row(&"goes".into());
            clock::sleep(Duration::from_secs(1)).await;
            table.put_row(row("changes", 2));
            clock::sleep(Duration::from_secs(1)).await;
            let mut scans = Vec::new();
            for _ in 0..200 {
                let rows = table.list().await.unwrap();
                let is_there = |key: &str| rows.iter().any(|row| row.key == key.into());
                let changes = rows.iter().find(|row| row.key == "changes".into()).unwrap().counter;
                scans.push((changes, is_there("comes"), is_there("goes")));
            }
            assert_eq!(table.get(&"changes".into()).await.unwrap(), Some(row("changes", 2)));
            clock::sleep(Duration::from_secs(3)).await;
            assert_eq!(table.list().await.unwrap(), table.rows(), "nothing is older than four seconds");
            scans
        };
        let scans = seen(7).await;
        let kinds: BTreeSet<_> = scans.iter().copied().collect();
        assert_eq!(kinds.len(), 3 * 2 * 2, "{kinds:?}");
        assert!(scans.windows(2).any(|two| two[1].0 < two[0].0), "a scan goes back");
        assert_eq!(scans, seen(7).await, "the same seed");
        assert_ne!(scans, seen(8).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_scans_cannot_see_any_more_is_forgotten() {
        let table = MemoryLeaseStore::new();
        table.set_scan_staleness(Duration::from_secs(1));
        for counter in 0..100 {
            table.put_row(row("a", counter));
            clock::sleep(Duration::from_millis(300)).await;
        }
        assert!(table.lock().leases.replaced.len() <= 4);
    }
}
