//! A fleet of real workers, and everything that can be done to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use kinesis_consumer::{
    Checkpoint, Config, Event, Report, ShardId, ShardOrder, Worker, WorkerError, WorkerHandle,
    io::{
        LeaseStore, MetricsSink, RecordSource,
        faulty::{Faults, FaultyLeaseStore, FaultySource},
        memory::{Limits, MemoryLeaseStore, MemoryStream},
    },
};
use md5::{Digest, Md5};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    aggregate::aggregate,
    faces::{self, Face},
    hand_over::Steps,
    line::{Line, Network, Quality},
    observer::{Observer, Rules},
    processor::{Seat, Temper},
    script::Beats,
    shards::{aggregate_by, number},
    tap::Tap,
    trace::short,
};

/// Keys of what producers put.
const KEYS: u32 = 40;

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) config: Config,
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
}

impl Setup {
    /// A calm fleet with short times.
    pub(crate) fn new(seed: u64, shards: usize) -> Self {
        let config = Config {
            initial_position: kinesis_consumer::InitialPosition::TrimHorizon,
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

/// One life of one worker, from outside.
pub(crate) struct Instance {
    pub(crate) seat: Arc<Seat>,
    pub(crate) handle: WorkerHandle,
    pub(crate) table_faults: Faults,
    pub(crate) stream_faults: Faults,
    table_line: Arc<Mutex<Quality>>,
    stream_line: Arc<Mutex<Quality>>,
    task: AbortHandle,
    pub(crate) state: Life,
    ended_at: Option<Instant>,
    /// Another process with its id ran at some moment of its life, or had not long ended.
    has_namesake: bool,
    /// Its line was bad.
    was_cut_off: bool,
}

/// Where a life stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    Running,
    /// Asked to stop.
    Stopping,
    Over,
}

/// How a life ended by itself.
pub(crate) type Ending = Result<Report, WorkerError>;

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) observer: Arc<Observer>,
    pub(crate) stream: MemoryStream,
    pub(crate) table: MemoryLeaseStore,
    /// What workers are given instead: sabotages go here.
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) source: Arc<dyn RecordSource>,
    /// Where workers that start from now on publish what they measure.
    pub(crate) metrics: Option<Arc<dyn MetricsSink>>,
    /// Where the calls to the table of those workers are counted.
    pub(crate) steps: Option<Steps>,
    pub(crate) instances: Vec<Instance>,
    runs: JoinSet<(usize, Ending)>,
    beside: JoinSet<()>,
    network: Network,
    rng: StdRng,
    keys: BTreeMap<u32, u32>,
    payload: Bytes,
    known: BTreeSet<ShardId>,
    /// A person has changed a row.
    pub(crate) edited: bool,
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
            from_start: setup.config.initial_position == kinesis_consumer::InitialPosition::TrimHorizon,
        };
        aggregate_by(setup.aggregated);
        let stream = MemoryStream::new("stream", setup.shards).with_limits(setup.limits);
        let table = MemoryLeaseStore::new();
        let mut world = Self {
            observer: Arc::new(Observer::new(rules, setup.recording)),
            store: Arc::new(table.clone()),
            source: Arc::new(stream.clone()),
            metrics: None,
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
            edited: false,
            endings: Vec::new(),
            setup,
        };
        world.learn_shards();
        world
    }

    /// How many calls met a fault, by its kind.
    pub(crate) fn faults_met(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for instance in &self.instances {
            for faults in [&instance.table_faults, &instance.stream_faults] {
                for (kind, count) in faults.met() {
                    *all.entry(format!("calls {kind}")).or_default() += count;
                }
            }
        }
        all
    }

    pub(crate) fn failover(&self) -> Duration {
        self.setup.config.failover_time
    }

    /// Lets time pass. Stops early at a violation.
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

    // Workers.

    /// Starts a worker under `name`; says its number.
    pub(crate) fn start(&mut self, name: &str) -> usize {
        let (config, observer) = (&self.setup.config, &self.observer);
        let timeout = (config.failover_time / 4).min(Duration::from_secs(5));
        let seed: u64 = self.rng.random();
        let seat = Seat::new(name, observer, self.setup.temper, seed);
        let no = seat.no;
        let heartbeat = self.setup.beats.of_worker(no);
        let max_leases_for_worker = self.setup.max_leases_of(no);
        observer.may_hold(no, max_leases_for_worker);
        let (table_faults, stream_faults) = (Faults::new(seed ^ 1), Faults::new(seed ^ 2));
        let tap = Tap { inner: self.store.clone(), seat: seat.clone() };
        let faulty = FaultyLeaseStore::new(tap, table_faults.clone());
        let table = Line::new(faulty, seat.clone(), self.network.clone(), timeout, seed ^ 3);
        let tap = Tap { inner: self.source.clone(), seat: seat.clone() };
        let faulty = FaultySource::new(tap, stream_faults.clone());
        let stream = Line::new(faulty, seat.clone(), self.network.clone(), timeout, seed ^ 4);
        let table = table.through(self.steps.clone());
        let (table_line, stream_line) = (table.quality(), stream.quality());
        for line in [&table_line, &stream_line] {
            *line.lock().expect("no panic") = self.usual();
        }
        let face = *self.setup.faces.choose(&mut self.rng).expect("a face");
        let builder = Worker::builder("app", "stream")
            .source(Arc::new(stream))
            .lease_store(Arc::new(table))
            .seed(seed)
            .freezer(&seat.freezer)
            .config(Config {
                worker_id: Some(name.into()),
                heartbeat,
                max_leases_for_worker,
                ..config.clone()
            });
        let builder = match &self.metrics {
            Some(sink) => builder.metrics(sink.clone()),
            None => builder,
        };
        let (worker, user) = faces::build(builder, face, &seat).expect("a valid configuration");
        let handle = worker.handle();
        let mut events = handle.events();
        let listener = seat.clone();
        self.beside.spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::LeaseTaken { shard, reason } => {
                        listener.observer.taken(&listener, &shard, &reason);
                    }
                    other => {
                        listener.observer.note(&listener.name, || format!("{other:?}"));
                    }
                }
            }
        });
        observer.note(name, || format!("starts as {face:?}"));
        let task = self.runs.spawn(async move { (no, tokio::join!(worker.run(), user).0) });
        // What a process sent before it died may still move its rows.
        let recent = |ended: Instant| ended.elapsed() <= config.failover_time;
        let mut has_namesake = false;
        for other in self.instances.iter_mut().filter(|other| other.seat.name == name) {
            if other.ended_at.is_none_or(recent) {
                (has_namesake, other.has_namesake) = (true, true);
            }
        }
        self.instances.push(Instance {
            seat,
            handle,
            table_faults,
            stream_faults,
            table_line,
            stream_line,
            task,
            state: Life::Running,
            ended_at: None,
            has_namesake,
            was_cut_off: false,
        });
        no
    }

    /// Whether something was done to a worker that may end it with this error.
    pub(crate) fn may_end_with(&self, no: usize, error: &WorkerError) -> bool {
        let instance = &self.instances[no];
        let met = [instance.table_faults.met(), instance.stream_faults.met()];
        match error {
            WorkerError::WorkerIdInUse(_) => instance.has_namesake || self.edited,
            WorkerError::Denied { .. } => met.iter().any(|met| met.contains_key("denied")),
            WorkerError::Unavailable { .. } => instance.was_cut_off || met.iter().any(|met| !met.is_empty()),
            // An owner written by hand, and a counter: a worker of the KCL looks like that.
            WorkerError::ForeignHolder { .. } => self.edited,
            _ => false,
        }
    }

    /// Lets something run beside the fleet until the end.
    pub(crate) fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.spawn(task);
    }

    /// Numbers of the workers that run and have not been asked to stop.
    pub(crate) fn running(&self) -> Vec<usize> {
        let running = |(no, instance): (usize, &Instance)| (instance.state == Life::Running).then_some(no);
        self.instances.iter().enumerate().filter_map(running).collect()
    }

    /// Kills a worker: all of its tasks are dropped where they stand.
    pub(crate) async fn crash(&mut self, no: usize) {
        let instance = &mut self.instances[no];
        (instance.state, instance.ended_at) = (Life::Over, Some(Instant::now()));
        let name = instance.seat.name.clone();
        self.observer.note(&name, || "crashes".into());
        instance.task.abort();
        // Its tasks are dropped one after the other; none of them is polled.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        self.observer.ended(no);
    }

    /// Whether two workers with one id hold leases. One that holds none is a spare, and in nobody's way.
    pub(crate) fn has_twins(&self) -> bool {
        let mut names = BTreeSet::new();
        let holds = |no: &usize| self.observer.works_on(*no) > 0;
        !self.running().into_iter().filter(holds).all(|no| names.insert(self.instances[no].seat.name.clone()))
    }

    pub(crate) fn freeze(&mut self, no: usize) {
        self.observer.note(&self.instances[no].seat.name, || "freezes".into());
        self.instances[no].seat.freezer.freeze();
    }

    pub(crate) fn thaw(&mut self, no: usize) {
        if self.instances[no].seat.freezer.is_frozen() {
            self.observer.note(&self.instances[no].seat.name, || "wakes up".into());
            self.instances[no].seat.freezer.thaw();
            self.observer.thawed(no);
        }
    }

    /// Asks a worker to stop, and does not wait.
    pub(crate) fn stop(&mut self, no: usize) {
        let instance = &mut self.instances[no];
        if instance.state == Life::Running {
            instance.state = Life::Stopping;
            self.observer.asked_to_stop(no);
            self.observer.note(&instance.seat.name, || "is asked to stop".into());
            let handle = instance.handle.clone();
            self.beside.spawn(async move { handle.shutdown().await });
        }
    }

    /// Takes note of workers that have ended, and of what the others say of themselves.
    pub(crate) fn reap(&mut self) {
        self.reap_ended();
        for instance in self.instances.iter().filter(|instance| instance.state != Life::Over) {
            let stopping = instance.state == Life::Stopping;
            self.observer.judge(&instance.seat, &instance.handle.health(), stopping);
        }
    }

    fn reap_ended(&mut self) {
        while let Some(ended) = self.runs.try_join_next() {
            let (no, ending) = match ended {
                Ok(ended) => ended,
                Err(error) if error.is_cancelled() => continue,
                Err(error) => {
                    self.observer.violate("world", format!("a worker panicked: {error}"));
                    continue;
                }
            };
            let name = self.instances[no].seat.name.clone();
            self.observer.note(&name, || match &ending {
                Ok(_) => "ends".into(),
                Err(error) => format!("ends: {error}"),
            });
            self.observer.ended(no);
            let asked = self.instances[no].state == Life::Stopping;
            let instance = &mut self.instances[no];
            (instance.state, instance.ended_at) = (Life::Over, Some(Instant::now()));
            if !asked || ending.is_err() {
                self.endings.push((no, ending));
            }
        }
    }

    /// Changes how the user's code of one worker behaves.
    pub(crate) fn temper(&mut self, no: usize, temper: Temper) {
        let seat = &self.instances[no].seat;
        self.observer.note(&seat.name, || format!("has {temper:?}"));
        *seat.temper.lock().expect("no panic") = temper;
    }

    pub(crate) fn table_line(&mut self, no: usize, quality: Quality) {
        let usual = self.usual();
        let instance = &mut self.instances[no];
        instance.was_cut_off |= quality != usual;
        self.observer.note(&instance.seat.name, || format!("reaches the table with {quality:?}"));
        *instance.table_line.lock().expect("no panic") = quality;
    }

    pub(crate) fn stream_line(&mut self, no: usize, quality: Quality) {
        let usual = self.usual();
        let instance = &mut self.instances[no];
        instance.was_cut_off |= quality != usual;
        self.observer.note(&instance.seat.name, || format!("reaches the stream with {quality:?}"));
        *instance.stream_line.lock().expect("no panic") = quality;
    }

    /// The line of a worker where nothing is wrong.
    pub(crate) fn usual(&self) -> Quality {
        Quality { latency: self.setup.latency, ..Quality::default() }
    }

    /// Ends every fault.
    pub(crate) fn heal(&mut self) {
        self.observer.note("world", || "all faults end".into());
        self.setup.temper = Temper { slow: self.setup.temper.slow.min(50), ..Temper::default() };
        self.table.set_scan_staleness(Duration::ZERO);
        let usual = self.usual();
        for no in 0..self.instances.len() {
            let instance = &self.instances[no];
            instance.table_faults.heal();
            instance.stream_faults.heal();
            *instance.table_line.lock().expect("no panic") = usual;
            *instance.stream_line.lock().expect("no panic") = usual;
            *instance.seat.temper.lock().expect("no panic") = self.setup.temper;
            self.thaw(no);
        }
    }

    // The stream.

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
        let arrived = last.arrived_at().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for _ in 0..count {
            *in_key += 1;
            self.observer.put(&shard, key, *in_key, arrived.as_millis() as u64);
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
            Edit::OtherOwner => {
                (row.owner, row.checkpoint_owner) = (Some("somebody".into()), None);
                row.counter += 1;
            }
            // That nobody has claimed it is all that keeps a child waiting whose parent's row is deleted, too.
            Edit::Counter if row.counter == 0 => return,
            Edit::Counter => row.counter += 7,
            Edit::Rewind => row.checkpoint = Checkpoint::TrimHorizon,
        }
        self.observer.note("operator", || format!("changes {}: {edit:?}", short(row.key.as_str())));
        self.edited = true;
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

/// What people do to rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Edit {
    NoOwner,
    OtherOwner,
    Counter,
    /// The checkpoint goes back to the shard's beginning, and nothing else changes.
    Rewind,
}
