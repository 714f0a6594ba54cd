//! What a worker reads ahead of the user's code stays within its memory budget.
//!
//! Of each shard one page comes on top of the budget: the one that the user's code works on, or, while it has nothing
//! to do, the one that it is about to be given. Whether the worker still has a page, its records tell: their data
//! notes when it is dropped.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use kinesis_consumer::{Record, ShardId, io::Page};
use tokio::time::Instant;

use super::{
    observer::Observer,
    processor::Seat,
    rules::State,
    shards::{aggregated, number},
};

/// Smaller pages never come to the least budget.
const LEAST_BYTES: usize = 64 << 10;

/// The pages of one holding that its worker has, oldest first.
#[derive(Debug, Default)]
pub(super) struct Pages(VecDeque<PageLog>);

#[derive(Debug)]
struct PageLog {
    first: u64,
    bytes: usize,
    kept: Weak<()>,
}

/// The data of a record, and a sign that somebody has it.
struct Data(Bytes, #[expect(dead_code, reason = "it is dropped with the data")] Arc<()>);

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Pages {
    /// The records up to `given` were given to the user's code, which is or is not at work on the last of them.
    fn ahead(&mut self, given: u64, at_work: bool) -> usize {
        self.0.retain(|page| page.kept.strong_count() > 0);
        let begun = self.0.partition_point(|page| page.first <= given);
        let on_top = if begun > 0 && at_work { begun } else { begun + 1 };
        self.0.iter().skip(on_top).map(|page| page.bytes).sum()
    }
}

impl Observer {
    /// A page has come to a worker.
    pub(crate) fn got(&self, seat: &Seat, shard: &ShardId, page: &mut Page) {
        self.lock().instances[seat.no].read_at = Some(Instant::now());
        let bytes = |record: &Record| record.data().len() + record.partition_key().len();
        let bytes = page.records.iter().map(bytes).sum();
        if aggregated() > 1 || bytes < LEAST_BYTES {
            return;
        }
        let kept = Arc::new(());
        for record in &mut page.records {
            let data = Bytes::from_owner(Data(record.data().clone(), kept.clone()));
            let (key, at) = (record.partition_key().to_owned(), record.position().clone());
            *record = Record::new(shard.clone(), at, key, record.arrived_at(), data);
        }
        let page = PageLog { first: number(page.records[0].position()), bytes, kept: Arc::downgrade(&kept) };
        if let Some(tenure) = self.lock().tenures.get_mut(&(seat.no, shard.clone())) {
            tenure.pages.0.push_back(page);
        }
    }
}

impl State {
    /// The worker has come to rest after whatever it did last.
    pub(super) fn stays_within_budget(&mut self, seat: &Seat) {
        let mut ahead = 0;
        for ((no, shard), tenure) in self.tenures.range_mut((seat.no, ShardId::from(""))..) {
            if *no != seat.no {
                break;
            }
            let given = tenure.next.map_or(0, |next| next - 1);
            let at_work = self.instances[seat.no].work.get(shard).is_some_and(|work| work.is_called());
            ahead += tenure.pages.ahead(given, at_work);
        }
        let most = self.rules.memory_budget;
        if ahead > most {
            self.violate(&seat.name, format!("has {ahead} bytes ahead of its code, {most} are allowed"));
        }
    }
}
