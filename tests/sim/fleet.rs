//! The world of a fleet: its stream and its table, and what is done to them. Its workers are in `instances.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use kinesis_consumer::{
    Checkpoint, Config, InitialPosition, ShardId, ShardOrder,
    io::{
        LeaseStore, RecordSource,
        memory::{Limits, MemoryLeaseStore, MemoryStream},
    },
};
use md5::{Digest, Md5};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::Instant};

use super::{
    aggregate::aggregate,
    faces::Face,
    hand_over::Steps,
    instances::{Ending, Instance, Life},
    line::Network,
    observer::{Observer, Rules},
    processor::Temper,
    script::Beats,
    shards::{aggregate_by, number},
    trace::short,
};

/// Keys of what producers put.
const KEYS: u32 = 40;

/// An application that begins at a time, in milliseconds from when the stream is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begins {
    /// What comes from then on is its.
    pub(crate) at: i64,
    /// So long records come and shards are split and merged before its first worker starts.
    pub(crate) head: u64,
}

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    /// If it begins neither at the beginning nor at the tip.
    pub(crate) begins: Option<Begins>,
    /// The most leases of each worker, in turn; empty if the configuration says it for all.
    pub(crate) unequal: Vec<usize>,
    pub(crate) beats: Beats,
    pub(crate) shards: usize,
    pub(crate) temper: Temper,
    pub(crate) recording: bool,
    /// Each worker has one of these.
    pub(crate) faces: Vec<Face>,
    /// How many of the user's records are packed into one.
    pub(crate) aggregated: u64,
    /// The size of a record in bytes; 0 for the least.
    pub(crate) payload: usize,
    /// The share of the records that have one and the same key.
    pub(crate) hot: f64,
    /// What each shard lets be read.
    pub(crate) limits: Limits,
    /// How many milliseconds a request takes at most, and so does its reply, where nothing is wrong.
    pub(crate) latency: u64,
    /// How much the clocks of all hosts are ahead of the stream's.
    pub(crate) clock_behind: Duration,
    /// In the end the stream is deleted and made again with so many shards.
    pub(crate) made_again: Option<usize>,
    /// Workers publish what they measure.
    pub(crate) measured: bool,
}

impl Setup {
    /// A calm fleet with short times.
    pub(crate) fn new(seed: u64, shards: usize) -> Self {
        let config = Config {
            initial_position: InitialPosition::TrimHorizon,
            failover_time: Duration::from_secs(2),
            idle_time_between_reads: Duration::from_millis(200),
            checkpoint_interval: Duration::from_secs(1),
            retry_delay_max: Duration::from_secs(1),
            shutdown_timeout: Duration::from_secs(5),
            health_max_age: Some(Duration::from_secs(10)),
            ..Config::default()
        };
        Self {
            seed,
            config,
            begins: None,
            unequal: Vec::new(),
            beats: Beats::of_scenario(),
            shards,
            temper: Temper::default(),
            recording: true,
            faces: vec![Face::Processor],
            aggregated: 1,
            payload: 0,
            hot: 0.0,
            limits: Limits::none(),
            latency: 0,
            clock_behind: Duration::ZERO,
            made_again: None,
            measured: false,
        }
    }

    /// The most leases of the `no`th worker that starts.
    pub(crate) fn max_leases_of(&self, no: usize) -> Option<usize> {
        match self.unequal[..] {
            [] => self.config.max_leases_for_worker,
            ref most => Some(most[no % most.len()]),
        }
    }
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) observer: Arc<Observer>,
    pub(crate) stream: MemoryStream,
    pub(crate) table: MemoryLeaseStore,
    /// What workers are given instead: sabotages go here.
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) source: Arc<dyn RecordSource>,
    /// Where the calls to the table of those workers are counted.
    pub(crate) steps: Option<Steps>,
    pub(crate) instances: Vec<Instance>,
    pub(super) runs: JoinSet<(usize, Ending)>,
    pub(super) beside: JoinSet<()>,
    pub(super) network: Network,
    pub(super) rng: StdRng,
    keys: BTreeMap<u32, u32>,
    payload: Bytes,
    known: BTreeSet<ShardId>,
    /// What people have last done to each row, by its key.
    pub(crate) edits: BTreeMap<String, ByHand>,
    /// Its stream was deleted, and another one made under its name.
    pub(crate) made_again: bool,
    /// Endings that nobody asked for.
    pub(crate) endings: Vec<(usize, Ending)>,
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let rules = Rules {
            failover_time: setup.config.failover_time,
            parents_first: setup.config.shard_order == ShardOrder::ParentsFirst,
            max_steals: setup.config.max_leases_to_steal_at_one_time.unwrap_or(usize::MAX),
            rejoin_grace: setup.config.rejoin_grace,
            balance: setup.config.balance,
            health_max_age: setup.config.health_max_age.expect("set, for the observer to know it"),
            stall_timeout: setup.config.stall_timeout,
            shutdown_timeout: setup.config.shutdown_timeout,
            memory_budget: setup.config.memory_budget,
            measured: setup.measured,
            from_start: setup.config.initial_position == InitialPosition::TrimHorizon
                && setup.begins.is_none(),
        };
        aggregate_by(setup.aggregated);
        let mut stream = MemoryStream::new("stream", setup.shards).with_limits(setup.limits);
        if !setup.clock_behind.is_zero() {
            stream = stream.with_clock_behind(setup.clock_behind);
        }
        let table = MemoryLeaseStore::new();
        let mut world = Self {
            observer: Arc::new(Observer::new(rules, setup.recording)),
            store: Arc::new(table.clone()),
            source: Arc::new(stream.clone()),
            steps: None,
            stream,
            table,
            instances: Vec::new(),
            runs: JoinSet::new(),
            beside: JoinSet::new(),
            network: Network::default(),
            rng: StdRng::seed_from_u64(setup.seed),
            keys: BTreeMap::new(),
            payload: vec![0; setup.payload].into(),
            known: BTreeSet::new(),
            edits: BTreeMap::new(),
            made_again: false,
            endings: Vec::new(),
            setup,
        };
        world.learn_shards();
        if let Some(begins) = world.setup.begins {
            let made = now() - world.setup.clock_behind;
            let ahead = Duration::from_millis(begins.at.unsigned_abs());
            let at = if begins.at < 0 { made - ahead } else { made + ahead };
            world.setup.config.initial_position = InitialPosition::AtTimestamp(at);
            world.observer.begins_at(millis(at));
        }
        world
    }

    pub(crate) fn failover(&self) -> Duration {
        self.setup.config.failover_time
    }

    /// Lets time pass.
    pub(crate) async fn advance(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
        self.reap();
    }

    /// Waits until `done`, at most for `limit`. False if it did not come true.
    pub(crate) async fn until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !done(self) {
            if Instant::now() >= end {
                return false;
            }
            self.advance(Duration::from_millis(50)).await;
        }
        true
    }

    /// Lets something run beside the fleet until the end.
    pub(crate) fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.spawn(task);
    }

    // The stream.

    /// The time by its clock.
    pub(crate) fn stream_millis(&self) -> u64 {
        millis(now() - self.setup.clock_behind)
    }

    /// Puts `count` records with random partition keys.
    pub(crate) fn put(&mut self, count: usize) {
        for _ in 0..count {
            let is_hot = self.setup.hot > 0.0 && self.rng.random_bool(self.setup.hot);
            let key = if is_hot { 0 } else { self.rng.random_range(0..KEYS) };
            self.put_key(key);
        }
    }

    /// Puts one record into every open shard, each with a key of its own.
    pub(crate) fn put_into_each(&mut self) {
        for shard in self.stream.open_shards() {
            self.put_into(&shard.id);
        }
    }

    pub(crate) fn put_key(&mut self, key: u32) -> ShardId {
        let in_key = self.keys.entry(key).or_default();
        let (name, count) = (format!("key-{key}"), self.setup.aggregated);
        let payload = |n: u64| match self.setup.payload {
            0 => Bytes::from(n.to_string()),
            _ => self.payload.clone(),
        };
        let numbers = u64::from(*in_key) + 1..=u64::from(*in_key) + count;
        let payloads: Vec<Bytes> = numbers.map(payload).collect();
        let data = if count == 1 { payloads[0].clone() } else { aggregate(&name, &payloads) };
        let (shard, _) = self.stream.put(&name, data);
        let last = self.stream.records(&shard).pop().expect("the record");
        let arrived = millis(last.arrived_at());
        for _ in 0..count {
            *in_key += 1;
            self.observer.put(&shard, key, *in_key, arrived);
        }
        shard
    }

    fn learn_shards(&mut self) {
        for shard in self.stream.shards() {
            if self.known.insert(shard.id.clone()) {
                let parents: Vec<String> =
                    shard.parents.iter().map(|parent| short(parent.as_str())).collect();
                self.observer
                    .note("stream", || format!("has shard {} after {parents:?}", short(shard.id.as_str())));
                self.observer.shard_made(&shard.id, &shard.parents);
            }
        }
    }

    /// Splits one open shard.
    pub(crate) fn split(&mut self, nth: usize) {
        let open = self.stream.open_shards();
        self.stream.split(&open[nth % open.len()].id);
        self.learn_shards();
    }

    /// Merges an open shard with its neighbour, if it has one.
    pub(crate) fn merge(&mut self, nth: usize) {
        let open = self.stream.open_shards();
        if open.len() > 1 {
            let at = nth % (open.len() - 1);
            self.stream.merge(&open[at].id, &open[at + 1].id);
            self.learn_shards();
        }
    }

    /// Takes note of the records that have left the stream for their age.
    pub(crate) fn learn_losses(&mut self) {
        for shard in self.stream.shards() {
            let oldest = self.stream.records(&shard.id).first().map(|record| number(record.position()));
            self.observer.oldest(&shard.id, oldest);
        }
    }

    /// Puts one record into an open shard.
    pub(crate) fn put_into(&mut self, shard: &ShardId) {
        let open = self.stream.open_shards();
        let range = open.iter().find(|open| open.id == *shard).expect("open").hash_range;
        let belongs = |key: &u32| {
            let hash = u128::from_be_bytes(Md5::digest(format!("key-{key}")).into());
            (range.start..=range.end).contains(&hash)
        };
        let key = (KEYS..).find(|key| !self.keys.contains_key(key) && belongs(key)).expect("a key");
        self.put_key(key);
    }

    /// Takes a closed shard out of the stream.
    pub(crate) fn forget(&mut self, shard: &ShardId) {
        self.observer.note("stream", || format!("has no shard {} any more", short(shard.as_str())));
        self.stream.forget(shard);
        self.observer.shard_gone(shard);
    }

    /// Splits and merges to another number of open shards.
    pub(crate) fn reshard(&mut self, count: usize) {
        let open = self.stream.open_shards().len();
        self.stream.update_shard_count(count.clamp(open.div_ceil(2), open * 2));
        self.learn_shards();
    }

    // The table.

    pub(crate) fn drop_table(&mut self) {
        self.observer.note("operator", || "drops the table".into());
        for row in self.table.rows() {
            self.observer.row_removed(&row.key.shard());
        }
        self.table.drop_table();
    }

    pub(crate) fn delete_worker_row(&mut self, nth: usize) {
        let rows = self.table.worker_rows();
        if let Some(row) = rows.get(nth % rows.len().max(1)) {
            self.observer.note("operator", || format!("deletes the row {}", row.incarnation));
            self.table.remove_worker_row(&row.incarnation);
        }
    }

    pub(crate) fn delete_row(&mut self, nth: usize) {
        let rows = self.table.rows();
        if let Some(row) = rows.get(nth % rows.len().max(1)) {
            self.delete(&row.key.shard());
        }
    }

    pub(crate) fn delete(&mut self, shard: &ShardId) {
        self.observer.note("operator", || format!("deletes the row of {}", short(shard.as_str())));
        self.table.remove_row(&shard.into());
        self.observer.row_removed(shard);
    }

    /// Changes a row as a person would: the counter is raised or forgotten, the owner removed or replaced.
    pub(crate) fn edit_row(&mut self, nth: usize, edit: Edit) {
        let rows = self.table.rows();
        let Some(mut row) = rows.get(nth % rows.len().max(1)).cloned() else { return };
        match edit {
            Edit::NoOwner => (row.owner, row.checkpoint_owner) = (None, None),
            // That nobody has claimed it is all that keeps a child waiting whose parent's row is deleted, too.
            Edit::OtherOwner | Edit::Counter if row.counter == 0 => return,
            Edit::OtherOwner => {
                (row.owner, row.checkpoint_owner) = (Some("somebody".into()), None);
                row.counter += 1;
            }
            Edit::Counter => row.counter += 7,
            Edit::Rewind => row.checkpoint = Checkpoint::TrimHorizon,
        }
        self.observer.note("operator", || format!("changes {}: {edit:?}", short(row.key.as_str())));
        let holder = rows[nth % rows.len()].holder().map(ToString::to_string);
        self.edits.insert(row.key.to_string(), ByHand { at: Instant::now(), holder });
        self.observer.row_edited(&row.key.shard(), row.counter, edit == Edit::Rewind);
        self.table.put_row(row);
    }

    /// Ends everything that is still under way; no task of the simulation is left after it.
    pub(crate) async fn close(mut self) -> usize {
        for no in 0..self.instances.len() {
            if self.instances[no].state != Life::Over {
                self.crash(no).await;
            }
        }
        self.network.take().shutdown().await;
        self.runs.shutdown().await;
        self.beside.shutdown().await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    }
}

/// A change that a person made to a row.
#[derive(Clone, Debug)]
pub(crate) struct ByHand {
    pub(crate) at: Instant,
    /// Who held the lease.
    pub(crate) holder: Option<String>,
}

/// What people do to rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Edit {
    NoOwner,
    OtherOwner,
    Counter,
    /// The checkpoint goes back to the shard's beginning, and nothing else changes.
    Rewind,
}

fn millis(date: SystemTime) -> u64 {
    date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The date of the hosts.
fn now() -> SystemTime {
    let stream = MemoryStream::new("clock", 1);
    let (shard, _) = stream.put("tick", "");
    stream.records(&shard)[0].arrived_at()
}
