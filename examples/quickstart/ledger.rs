//! What was put, what was processed, and who holds which shard: figures, and nothing assumed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::producer::{self, Put};

/// Records a second are those of so many last seconds: a shard at its tip is read once a second.
const RATE_OVER: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) workers: BTreeMap<String, Worker>,
    shards: BTreeMap<String, Shard>,
    /// By product.
    products: BTreeMap<usize, Product>,
    pub(crate) put: usize,
    /// Different records.
    pub(crate) processed: usize,
    /// Deliveries of a record after its first.
    pub(crate) repeats: usize,
    /// Those of them that a killed worker had before.
    pub(crate) repeats_of_killed: usize,
    /// First deliveries of a record after one of a later record of its product.
    pub(crate) out_of_order: usize,
}

pub(crate) struct Worker {
    pub(crate) pid: u32,
    pub(crate) state: State,
    recent: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// By SIGKILL.
    Killed,
    /// It has SIGTERM.
    Stopping,
    Stopped,
}

#[derive(Default)]
struct Shard {
    owner: Option<String>,
    /// Who processed a record of it last.
    reader: Option<String>,
    ended: bool,
    /// Accepted by Kinesis and perhaps not yet processed, oldest first.
    waiting: VecDeque<Put>,
}

#[derive(Default)]
struct Product {
    put: BTreeSet<usize>,
    /// Who had it first.
    processed: BTreeMap<usize, String>,
}

impl Product {
    fn has(&self, number: usize) -> bool {
        self.processed.contains_key(&number)
    }
}

impl Ledger {
    pub(crate) fn worker_started(&mut self, name: &str, pid: u32) {
        let worker = Worker { pid, state: State::Running, recent: VecDeque::new() };
        self.workers.insert(name.to_owned(), worker);
    }

    pub(crate) fn set_state(&mut self, name: &str, state: State) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.state = state;
        }
    }

    pub(crate) fn expect_shards(&mut self, shards: &BTreeSet<String>) {
        for shard in shards {
            self.shards.entry(shard.clone()).or_default();
        }
    }

    pub(crate) fn put(&mut self, puts: Vec<Put>) {
        for put in puts {
            self.put += 1;
            let product = self.products.entry(put.product).or_default();
            product.put.insert(put.number);
            if !product.has(put.number) {
                self.shards.entry(put.shard.clone()).or_default().waiting.push_back(put);
            }
        }
    }

    /// Takes in a line of a worker; false if it makes no sense.
    pub(crate) fn hear(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [worker, "did", shard, product, number] => {
                let (Some(product), Ok(number)) = (producer::product(product), number.parse()) else {
                    return false;
                };
                self.did(worker, shard, product, number);
            }
            [worker, "took", shard] => {
                self.shards.entry(shard.to_owned()).or_default().owner = Some(worker.to_owned());
            }
            [worker, gave @ ("gave" | "ended"), shard] => {
                let shard = self.shards.entry(shard.to_owned()).or_default();
                shard.ended |= gave == "ended";
                // The next owner may have been faster to say so.
                shard.owner.take_if(|owner| owner == worker);
            }
            _ => return false,
        }
        true
    }

    fn did(&mut self, worker: &str, shard: &str, product: usize, number: usize) {
        let now = Instant::now();
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.recent.push_back(now);
        }
        let entry = self.products.entry(product).or_default();
        match entry.processed.get(&number) {
            Some(first) => {
                self.repeats += 1;
                let killed = self.workers.get(first).is_some_and(|worker| worker.state == State::Killed);
                self.repeats_of_killed += usize::from(killed);
            }
            None => {
                self.processed += 1;
                let later = entry.processed.last_key_value().is_some_and(|(last, _)| *last > number);
                self.out_of_order += usize::from(later);
                entry.processed.insert(number, worker.to_owned());
            }
        }
        let shard = self.shards.entry(shard.to_owned()).or_default();
        shard.reader = Some(worker.to_owned());
        let products = &self.products;
        let done = |put: &mut Put| products.get(&put.product).is_some_and(|product| product.has(put.number));
        while shard.waiting.pop_front_if(done).is_some() {}
    }

    /// Records that were accepted and never processed.
    pub(crate) fn lost(&self) -> usize {
        let lost = |product: &Product| product.put.iter().filter(|number| !product.has(**number)).count();
        self.products.values().map(lost).sum()
    }

    /// The shards that `worker` holds and that are not read to their end.
    pub(crate) fn shards_of(&self, worker: &str) -> BTreeSet<String> {
        let held = |shard: &Shard| !shard.ended && shard.owner.as_deref() == Some(worker);
        self.shards.iter().filter(|(_, shard)| held(shard)).map(|(id, _)| id.clone()).collect()
    }

    /// The shards that nobody holds: their parents have not ended, or their owner let go of them.
    pub(crate) fn free_shards(&self) -> BTreeSet<String> {
        let free = |shard: &Shard| !shard.ended && shard.owner.is_none();
        self.shards.iter().filter(|(_, shard)| free(shard)).map(|(id, _)| id.clone()).collect()
    }

    /// Whether each of these has an owner that still runs and that reads it: a record is the proof,
    /// unless none waits.
    pub(crate) fn are_read(&self, shards: &BTreeSet<String>) -> bool {
        let is_read = |shard: &Shard| {
            let owner = shard.owner.as_ref().filter(|owner| {
                self.workers.get(*owner).is_some_and(|worker| worker.state == State::Running)
            });
            shard.ended || owner.is_some() && (shard.reader.as_ref() == owner || shard.waiting.is_empty())
        };
        shards.iter().all(|id| self.shards.get(id).is_some_and(is_read))
    }

    /// Whether every shard is read and no running worker holds two shards more than another.
    pub(crate) fn is_even(&self) -> bool {
        let counts: Vec<usize> = self.running().map(|name| self.shards_of(name).len()).collect();
        let (Some(least), Some(most)) = (counts.iter().min(), counts.iter().max()) else { return false };
        most - least <= 1 && self.are_read(&self.shards.keys().cloned().collect())
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &String> {
        self.workers.iter().filter(|(_, worker)| worker.state == State::Running).map(|(name, _)| name)
    }

    /// For how long the oldest unprocessed record of these shards has been waiting.
    pub(crate) fn lag(&self, shards: &BTreeSet<String>) -> Duration {
        let oldest = shards.iter().filter_map(|id| self.shards.get(id)?.waiting.front());
        oldest.map(|put| put.at.elapsed()).max().unwrap_or_default()
    }

    /// Records a second of each worker.
    pub(crate) fn rate(&mut self, worker: &str) -> f64 {
        let Some(worker) = self.workers.get_mut(worker) else { return 0.0 };
        while worker.recent.pop_front_if(|at| at.elapsed() > RATE_OVER).is_some() {}
        worker.recent.len() as f64 / RATE_OVER.as_secs_f64()
    }
}
