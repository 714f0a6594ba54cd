//! Reads one shard by polling: iterator, pages, batches; one batch ahead of the user's code.
//!
//! Throttles, expired iterators and an end without named children are normal paths. When to read is for
//! `core::pacing` to say; what a record in a page is made of, for `core::aggregation`.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::{Rng, RngExt};
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc},
};
use tracing::{debug, info, warn};

use crate::{
    clock,
    config::Config,
    core::{
        aggregation,
        backoff::Backoff,
        health::Doing,
        lease::{Checkpoint, Lease},
        pacing::{Limits, Pacing},
        record::{Batch, Record},
        shard::{ChildShard, Position, Shard, ShardId},
        shard_sync,
    },
    io::{
        LeaseError, Page, RecordSource, ShardFilter, ShardIterator, SourceError, StartFrom, StreamDescription,
    },
    worker::{
        faults::Faults,
        renewer::cause,
        shard::{End, Fetched},
        shard_link::ShardLink,
    },
};

/// A closed shard that is still listed has left the stream when it was refused that many times in a row.
const REFUSALS: u32 = 3;
/// A read may have to open its iterator first.
const READ_CALLS: u32 = 2;
/// A listing comes in pages, and rows may be looked at after it.
const LISTING_CALLS: u32 = 6;
/// Budget is counted in these, so that a semaphore can hold it.
const BUDGET_UNIT: usize = 1024;
/// A read brings at most so many bytes of data, and is paid for with no more: the least budget has room for it.
const MOST_BYTES: usize = 10 << 20;

/// The budget in units, for a semaphore.
pub(super) fn budget(bytes: usize) -> Semaphore {
    Semaphore::new((bytes / BUDGET_UNIT).min(Semaphore::MAX_PERMITS))
}

/// How much this host's clock is ahead of that of the stream, whose description has come just now, at most: an
/// answer's date has whole seconds, and takes its time to come.
pub(super) fn host_ahead_of(stream: &StreamDescription) -> Duration {
    let ahead = stream.described_at.and_then(|there| clock::wall().duration_since(there).ok());
    ahead.unwrap_or_default()
}

/// Where reading of a shard begins, and up to where its records are done already.
///
/// Always *at* the checkpoint, never after it: a checkpoint inside an aggregated record leaves a rest to
/// deliver. `pinned_millis` is the application's first start, for leases that have not begun; one that an
/// operator reset has a start of its own. `ahead` is by how much the host's clock is ahead of the stream's.
pub(super) fn start_of(
    row: &Lease,
    pinned_millis: Option<u64>,
    configured: Option<SystemTime>,
    ahead: Duration,
) -> (StartFrom, Option<Position>) {
    let pinned_millis = if row.reset_millis.is_some() { row.start_millis } else { pinned_millis };
    let pinned = pinned_millis.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    match &row.checkpoint {
        Checkpoint::At(position) => (StartFrom::At(position.sequence.clone()), Some(position.clone())),
        Checkpoint::TrimHorizon | Checkpoint::ShardEnd => (StartFrom::TrimHorizon, None),
        // A row of the Java KCL pins nothing: it counts from now, as it does there.
        Checkpoint::Latest => (StartFrom::Timestamp(pinned.unwrap_or_else(|| clock::wall() - ahead)), None),
        // Without any timestamp the oldest record skips nothing.
        Checkpoint::AtTimestamp => match pinned.or(configured) {
            Some(at) => (StartFrom::Timestamp(at), None),
            None => (StartFrom::TrimHorizon, None),
        },
    }
}

/// The reader of one shard.
pub(super) struct Reader<R> {
    pub(super) link: Arc<ShardLink>,
    pub(super) source: Arc<dyn RecordSource>,
    pub(super) config: Arc<Config>,
    pub(super) memory: Arc<Semaphore>,
    pub(super) fetched: mpsc::Sender<Fetched>,
    pub(super) row: Lease,
    /// The identity of the stream that the row was made for.
    pub(super) stream: Arc<str>,
    pub(super) rng: R,
}

/// Where the reader is: the place to reopen an iterator at, and what not to deliver again.
struct Place {
    from: StartFrom,
    /// Everything up to here was delivered or is done.
    through: Option<Position>,
}

impl<R: Rng> Reader<R> {
    /// Reads until the shard ends or the user's side lets go. To be dropped when the lease is lost.
    pub(super) async fn run(mut self, start: (StartFrom, Option<Position>)) {
        let mut place = Place { from: start.0, through: start.1 };
        let mut pacing = Pacing::new(Limits::aws(self.config.idle_time_between_reads));
        let mut iterator: Option<ShardIterator> = None;
        let mut faults = self.link.fault_logs.reads.row();
        let mut aggregates = self.link.fault_logs.aggregates.row();
        let mut expected_bytes = 64 * 1024;
        // The last page ended at the tip of the shard.
        let mut at_tip = false;
        let mut refusals = 0;
        let mut limit = self.config.max_records;
        let since = match (&self.row.checkpoint, &place.from) {
            (Checkpoint::AtTimestamp, StartFrom::Timestamp(since)) => Some(*since),
            _ => None,
        };
        loop {
            // A place in the queue first: what is read is then sure to be taken.
            self.link.set_reader(Doing::Idle);
            let Ok(slot) = self.fetched.clone().reserve_owned().await else { return };
            let permit = self.afford(expected_bytes).await;
            self.rest(&pacing).await;
            pacing.on_read(clock::now());
            self.call(READ_CALLS);
            let page = match self.read(&place, &mut iterator, limit).await {
                Ok(page) => page,
                // The next holder reads what this one could not.
                Err(_) if self.link.is_draining() => {
                    self.link.set_reader(Doing::Idle);
                    return;
                }
                Err(error) => {
                    let now = clock::now();
                    // These are answers.
                    let answers =
                        matches!(error, SourceError::Throttled { .. } | SourceError::ExpiredIterator);
                    self.link.read_succeeds(answers);
                    match error {
                        SourceError::ExpiredIterator => {
                            debug!(shard = %self.link.shard, "iterator expired; opening another");
                            iterator = None;
                            pacing.on_page(now, 0, false);
                        }
                        SourceError::NoShard(_) if !self.is_gone(&mut refusals).await => {
                            if let Some(faults) = faults.failed() {
                                warn!(shard = %self.link.shard, faults, "the shard cannot be read, and has not left its stream; \
                                    was the stream deleted and made again?");
                            }
                            iterator = None;
                            pacing.on_error(clock::now(), &mut self.rng);
                        }
                        SourceError::NoShard(_) => {
                            warn!(shard = %self.link.shard, after = ?place.through, "the shard has left the stream; \
                                what was not read of it is gone");
                            // Also after a page at the tip: what came between it and the shard's end nobody has seen.
                            self.link.set_gap();
                            let children = self.find_children().await;
                            let other_parents = self.find_other_parents(&children).await;
                            self.link.set_reader(Doing::Idle);
                            slot.send(Fetched::End(End { children, other_parents }));
                            return;
                        }
                        SourceError::Throttled { .. } => {
                            debug!(shard = %self.link.shard, "reads are throttled");
                            pacing.on_throttle(now, &mut self.rng);
                        }
                        error => {
                            if let Some(faults) = faults.failed() {
                                warn!(shard = %self.link.shard, faults, %error, cause = cause(&error), "read failed; trying again");
                            }
                            // Perhaps a page was too large for the time that a call has: ten records can be.
                            limit = (limit / 2).max(1);
                            pacing.on_error(now, &mut self.rng);
                        }
                    }
                    continue;
                }
            };
            if let Some(count) = faults.over() {
                info!(shard = %self.link.shard, count, "reads succeed again");
            }
            refusals = 0;
            // Slowly: on a slow link most reads then stay below what timed out.
            limit = self.config.max_records.min(limit + limit / 4 + 1);
            self.link.opened.cancel();
            self.link.read_succeeds(true);
            let bytes =
                page.records.iter().map(|record| record.data().len() + record.partition_key().len()).sum();
            // An empty page is no sign of the tip: gaps in a shard are read page by page.
            pacing.on_page(clock::now(), bytes, page.behind.is_zero());
            // Twice the last page covers most next ones; a larger one is paid for after it was read.
            expected_bytes = (2 * bytes).clamp(64 * 1024, MOST_BYTES);
            let Ok(permit) = self.settle(permit, bytes) else {
                debug!(shard = %self.link.shard, bytes, "no memory for a page larger than was expected; it is read again");
                if self.link.is_draining() {
                    self.link.set_reader(Doing::Idle);
                    return;
                }
                continue;
            };

            let (next, children, behind) = (page.next, page.children, page.behind);
            if let (StartFrom::At(at), Some(first)) = (&place.from, page.records.first())
                && first.position().sequence > *at
                && !at_tip
            {
                self.link.set_gap();
            }
            // A shard at rest for long has nothing left of what was processed, and nothing that was not.
            at_tip = behind.is_zero();
            if let Some(last) = page.records.last() {
                place.from = StartFrom::After(last.position().sequence.clone());
            }
            // How old the oldest of them is, however near its end the page is to the tip.
            let age = page.records.first().map_or(behind, |first| {
                clock::wall().duration_since(first.arrived_at()).unwrap_or_default().max(behind)
            });
            let mut records = page.records;
            // A time that is about to come is taken for now, and what arrives until then comes too.
            records.retain(|record| since.is_none_or(|since| record.arrived_at() >= since));
            let records = self.expand(records, &mut place.through, &mut aggregates);
            let last = records.last().map(Record::position);
            self.link.meter.read(behind, last);
            self.link.on_read(age, last);
            let ended = next.is_none();
            iterator = next;
            if records.is_empty() {
                // Kept, it would leave no place in the queue for the end of the shard.
                drop(slot);
            } else {
                self.link.set_reader(Doing::Idle);
                slot.send(Fetched::Batch(Batch::new(records, behind), permit));
            }
            // That was the last read: the next holder begins where this one ended, and finds the shard's end.
            if self.link.is_draining() {
                self.link.set_reader(Doing::Idle);
                return;
            }
            if ended {
                // A child that does not name this shard as a parent would begin before its end: the listing tells.
                let known = children.iter().all(|child| child.parents.contains(&self.link.shard));
                let named = known && !children.is_empty();
                let children = if named { children } else { self.find_children().await };
                let other_parents = self.find_other_parents(&children).await;
                self.link.set_reader(Doing::Idle);
                // Fails only when the user's side has let go, and then nobody asks.
                let _ = self.fetched.send(Fetched::End(End { children, other_parents })).await;
                return;
            }
        }
    }

    /// The user's records in a page, without those that were delivered or done before.
    fn expand(
        &self,
        page: Vec<Record>,
        through: &mut Option<Position>,
        aggregates: &mut Faults,
    ) -> Vec<Record> {
        let mut expanded = aggregation::expand(page, self.row.hash_range);
        if expanded.dropped + expanded.broken > 0 {
            let (dropped, broken) = (expanded.dropped, expanded.broken);
            match aggregates.failed() {
                Some(pages) => {
                    warn!(shard = %self.link.shard, pages, dropped, broken, "aggregated records of another shard, or broken, left out");
                }
                None => debug!(shard = %self.link.shard, dropped, broken, "aggregated records left out"),
            }
        }
        let done = expanded.records.partition_point(|record| Some(record.position()) <= through.as_ref());
        expanded.records.drain(..done);
        if let Some(last) = expanded.records.last() {
            *through = Some(last.position().clone());
        }
        expanded.records
    }

    /// Waits until the shard may be read again. Once a drain is asked for, as soon as Kinesis allows it: what
    /// has come meanwhile would else wait for the next holder's first look.
    async fn rest(&self, pacing: &Pacing) {
        let next_read = pacing.next_read(clock::now());
        self.link.set_reader(Doing::Waiting { until: next_read });
        select! {
            biased;
            _ = self.link.draining() => clock::sleep_until(pacing.soonest_read(clock::now())).await,
            () = clock::sleep_until(next_read) => {}
        }
    }

    /// Says that so many calls follow, each within its time-out.
    fn call(&self, calls: u32) {
        let until = clock::now() + self.config.read_timeout() * calls;
        self.link.set_reader(Doing::Waiting { until });
    }

    async fn read(
        &self,
        place: &Place,
        iterator: &mut Option<ShardIterator>,
        limit: usize,
    ) -> Result<Page, SourceError> {
        let shard = &self.link.shard;
        let from = match iterator {
            Some(from) => from,
            None => iterator.insert(self.source.open(shard, &place.from).await?),
        };
        self.source.read(shard, from, limit).await
    }

    /// Whether a shard that Kinesis says it does not know has really left the stream. Ending it could not be
    /// taken back, and an open shard never leaves: then the answer was wrong, or the stream was made anew.
    async fn is_gone(&mut self, refusals: &mut u32) -> bool {
        *refusals += 1;
        let listed = self.list().await;
        let gone = match listed.iter().find(|shard| shard.id == self.link.shard) {
            None => true,
            Some(shard) => !shard.is_open() && *refusals >= REFUSALS,
        };
        // Asked after the listing, which then was of this stream, too. One made anew may have fewer shards.
        gone && self.is_same_stream().await
    }

    /// Whether the stream is certainly still the one that the row was made for.
    async fn is_same_stream(&self) -> bool {
        self.call(1);
        match self.source.describe().await {
            Ok(found) => found.identity() == self.stream,
            Err(error) => {
                debug!(shard = %self.link.shard, %error, cause = cause(&error), "the stream was not described");
                false
            }
        }
    }

    /// Waits for memory budget, unless the user's side has nothing to do: what is processed next is
    /// always allowed, only reading ahead has to be paid for.
    async fn afford(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        let began = clock::now();
        let permit = loop {
            if self.link.is_hungry() {
                break self.memory.clone().try_acquire_many_owned(units).ok();
            }
            select! {
                biased;
                () = self.link.hungry.notified() => {}
                permit = self.memory.clone().acquire_many_owned(units) => break permit.ok(),
            }
        };
        self.link.reads_waited(clock::now().saturating_duration_since(began));
        permit
    }

    /// Gives back what a page did not need, or takes what it needs more. A page that there is no memory for is not to
    /// be kept, unless the user's side waits for it.
    fn settle(
        &self,
        permit: Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        let Some(mut permit) = permit else { return Ok(None) };
        let needed = bytes.min(MOST_BYTES).div_ceil(BUDGET_UNIT);
        let surplus = permit.num_permits().saturating_sub(needed);
        let missing = needed.saturating_sub(permit.num_permits());
        drop(permit.split(surplus));
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        match self.memory.clone().try_acquire_many_owned(missing) {
            Ok(more) => permit.merge(more),
            Err(_) if self.link.is_hungry() => {}
            Err(error) => return Err(error),
        }
        Ok(Some(permit))
    }

    /// The leases to make before those of the children: of other parents that have none yet. Asks until it is
    /// answered.
    async fn find_other_parents(&mut self, children: &[ChildShard]) -> Vec<Lease> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut faults = self.link.fault_logs.listings.row();
        loop {
            self.call(LISTING_CALLS);
            match self.other_parents(children).await {
                Ok(parents) => return parents,
                Err(error) => {
                    if let Some(faults) = faults.failed() {
                        warn!(shard = %self.link.shard, faults, %error, cause = cause(&error), "other parents not looked up; trying again");
                    }
                }
            }
            let delay = backoff.next(&mut self.rng);
            self.link.set_reader(Doing::Waiting { until: clock::now() + delay });
            clock::sleep(delay).await;
        }
    }

    async fn other_parents(&mut self, children: &[ChildShard]) -> Result<Vec<Lease>, LeaseError> {
        let others = children.iter().flat_map(|child| &child.parents);
        let mut without_lease = false;
        for parent in others.filter(|parent| **parent != self.link.shard) {
            without_lease |= self.link.store.get(&parent.into()).await?.is_none();
        }
        if !without_lease {
            return Ok(Vec::new());
        }
        let leases = self.link.store.list().await?;
        let leased: BTreeSet<ShardId> = leases.iter().map(|lease| lease.key.shard()).collect();
        Ok(shard_sync::other_parents(&self.list().await, children, |shard| leased.contains(shard)))
    }

    /// The shards that continue this one, from the listing; none if there are none.
    async fn find_children(&mut self) -> Vec<ChildShard> {
        shard_sync::children_of(&self.list().await, &self.link.shard)
    }

    /// The whole listing, however long it takes.
    async fn list(&mut self) -> Vec<Shard> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut faults = self.link.fault_logs.listings.row();
        loop {
            self.call(LISTING_CALLS);
            match self.source.list_shards(ShardFilter::All).await {
                Ok(listed) => return listed,
                Err(error) => {
                    if let Some(faults) = faults.failed() {
                        warn!(shard = %self.link.shard, faults, %error, cause = cause(&error), "listing shards failed; trying again");
                    }
                }
            }
            let spread = self.rng.random_range(0..50);
            clock::sleep(backoff.next(&mut self.rng) + Duration::from_millis(spread)).await;
        }
    }
}
