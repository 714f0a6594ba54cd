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

use crate::{
    clock,
    core::lease::{HandOff, Lease, LeaseKey, LeaseWrite},
    io::{LeaseError, LeaseStore},
};

/// A lease table in memory. Clones share the table, as workers do.
///
/// There is no table before [`open`](LeaseStore::open) makes it. Reads are never stale unless
/// [`set_scan_staleness`](Self::set_scan_staleness) says so.
#[derive(Clone, Debug, Default)]
pub struct MemoryLeaseStore(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// None before it is made.
    rows: Option<BTreeMap<LeaseKey, Lease>>,
    staleness: Duration,
    /// What each recent change replaced, oldest first: scans undo what is too new for them to see.
    replaced: VecDeque<(Instant, LeaseKey, Option<Lease>)>,
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
        let mut table = self.lock();
        table.staleness = staleness;
        table.replaced.clear();
    }

    /// All rows as they are, ordered by key; none without a table.
    pub fn rows(&self) -> Vec<Lease> {
        self.lock().rows.iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Puts a row whatever was there, as a person with a console would; makes the table if need be.
    pub fn put_row(&self, row: Lease) {
        let mut table = self.lock();
        table.rows.get_or_insert_default();
        table.replace(row.key.clone(), Some(row));
    }

    /// Removes a row, whoever holds the lease, and returns it.
    pub fn remove_row(&self, key: &LeaseKey) -> Option<Lease> {
        self.lock().replace(key.clone(), None)
    }

    /// Deletes the whole table, rows and all.
    pub fn drop_table(&self) {
        let mut table = self.lock();
        table.rows = None;
        table.replaced.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn rows(&self) -> Result<&BTreeMap<LeaseKey, Lease>, LeaseError> {
        self.rows.as_ref().ok_or_else(|| LeaseError::NoTable { table: "in memory".into() })
    }

    /// Changes one row and remembers what was there for as long as scans may show it.
    fn replace(&mut self, key: LeaseKey, row: Option<Lease>) -> Option<Lease> {
        let rows = self.rows.as_mut()?;
        let before = match row {
            Some(row) => rows.insert(key.clone(), row),
            None => rows.remove(&key),
        };
        if !self.staleness.is_zero() {
            let now = clock::now();
            while self.replaced.front().is_some_and(|(at, ..)| *at + self.staleness <= now) {
                self.replaced.pop_front();
            }
            self.replaced.push_back((now, key, before.clone()));
        }
        before
    }

    /// The rows as a scan sees them.
    fn scan(&self) -> Result<Vec<Lease>, LeaseError> {
        let mut rows = self.rows()?.clone();
        let now = clock::now();
        for (at, key, before) in self.replaced.iter().rev() {
            if *at + self.staleness <= now {
                break;
            }
            match before {
                Some(row) => rows.insert(key.clone(), row.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows.into_values().collect())
    }
}

#[async_trait]
impl LeaseStore for MemoryLeaseStore {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        let mut table = self.lock();
        if create {
            table.rows.get_or_insert_default();
        }
        table.rows().map(drop)
    }

    async fn list(&self) -> Result<Vec<Lease>, LeaseError> {
        self.lock().scan()
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        Ok(self.lock().rows()?.get(key).cloned())
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        let mut table = self.lock();
        if table.rows()?.contains_key(&lease.key) {
            return Ok(false);
        }
        table.replace(lease.key.clone(), Some(lease.clone()));
        Ok(true)
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        let mut table = self.lock();
        let row = match table.rows()?.get(write.key()) {
            Some(row) if write.is_allowed_on(row) => row.after(write),
            _ => return Err(LeaseError::Conflict(write.key().clone())),
        };
        table.replace(row.key.clone(), Some(row));
        Ok(())
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        let mut table = self.lock();
        let row = match table.rows()?.get(request.key()) {
            Some(row) if request.is_allowed_on(row) => row.after_request(request),
            _ => return Err(LeaseError::Conflict(request.key().clone())),
        };
        table.replace(row.key.clone(), Some(row));
        Ok(())
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        let mut table = self.lock();
        let unchanged = table.rows()?.get(&seen.key).is_some_and(|row| row.counter == seen.counter);
        if unchanged {
            table.replace(seen.key.clone(), None);
        }
        Ok(unchanged)
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test(start_paused = true)]
    async fn what_scans_cannot_see_any_more_is_forgotten() {
        let table = MemoryLeaseStore::new();
        table.set_scan_staleness(Duration::from_secs(1));
        for counter in 0..100 {
            table.put_row(row("a", counter));
            clock::sleep(Duration::from_millis(300)).await;
        }
        assert!(table.lock().replaced.len() <= 4);
    }
}
