//! The workers of a world, and everything that can be done to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use kinesis_consumer::{
    Config, Event, Report, Worker, WorkerError, WorkerHandle,
    io::faulty::{Faults, FaultyLeaseStore, FaultySink, FaultySource, Op},
};
use rand::{RngExt, seq::IndexedRandom};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    faces,
    fleet::{ByHand, World},
    line::{Line, Quality},
    measures::Measures,
    processor::{Seat, Temper},
    run::{STREAM_OPS, TABLE_OPS},
    script::Door,
    tap::Tap,
    trace::undated,
};

/// One life of one worker, from outside.
pub(crate) struct Instance {
    pub(crate) seat: Arc<Seat>,
    pub(crate) handle: WorkerHandle,
    pub(crate) table_faults: Faults,
    pub(crate) stream_faults: Faults,
    pub(crate) metrics_faults: Faults,
    /// What it has published, if it measures.
    pub(crate) measures: Measures,
    table_line: Arc<Mutex<Quality>>,
    stream_line: Arc<Mutex<Quality>>,
    task: AbortHandle,
    pub(crate) state: Life,
    started_at: Instant,
    ended_at: Option<Instant>,
    /// It has got beyond its start: from then on no outage ends it.
    has_run: bool,
    /// Another process with its id ran at some moment of its life, or had not long ended.
    has_namesake: bool,
    /// Its line was bad.
    was_cut_off: bool,
}

impl Instance {
    /// What goes wrong at a door, and with which calls.
    pub(crate) fn faults_at(&self, door: Door) -> Vec<(&Faults, &'static [Op])> {
        let (table, stream): ((_, &[Op]), (_, &[Op])) =
            ((&self.table_faults, &TABLE_OPS), (&self.stream_faults, &STREAM_OPS));
        match door {
            Door::Table => vec![table],
            Door::Stream => vec![stream],
            Door::Both => vec![table, stream],
            Door::Metrics => vec![(&self.metrics_faults, &[Op::Flush])],
        }
    }
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
impl World {
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
        observer.starts_at(no, self.stream_millis());
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
        let (measures, metrics_faults) = (Measures::default(), Faults::new(seed ^ 5));
        let builder = match self.setup.measured {
            true => builder.metrics(Arc::new(FaultySink::new(measures.clone(), metrics_faults.clone()))),
            false => builder,
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
                        if let Event::RetentionPassed { shard } = &other {
                            listener.observer.tells_of_gap(&listener, shard);
                        }
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
            metrics_faults,
            measures,
            table_line,
            stream_line,
            task,
            state: Life::Running,
            started_at: Instant::now(),
            ended_at: None,
            has_run: false,
            has_namesake,
            was_cut_off: false,
        });
        no
    }

    /// Whether something was done to a worker that may end it with this error.
    pub(crate) fn may_end_with(&self, no: usize, error: &WorkerError) -> bool {
        let instance = &self.instances[no];
        let starts = !instance.has_run && !self.observer.has_worked(no);
        // Looks may show the past.
        let meets = |edit: &&ByHand| edit.at + self.failover() >= instance.started_at;
        let mut edits = self.edits.values().filter(meets);
        let met = [instance.table_faults.met(), instance.stream_faults.met()];
        match error {
            WorkerError::WorkerIdInUse(_) => {
                instance.has_namesake || edits.any(|edit| edit.holder.as_ref() == Some(&instance.seat.name))
            }
            WorkerError::Denied { .. } => starts && met.iter().any(|met| met.contains_key("denied")),
            WorkerError::Unavailable { .. } => {
                starts && (instance.was_cut_off || met.iter().any(|met| !met.is_empty()))
            }
            WorkerError::WrongTable { .. } => starts && self.made_again,
            // An owner written by hand, and a counter: a worker of the KCL looks like that.
            WorkerError::ForeignHolder { lease, .. } => {
                self.edits.get(lease).is_some_and(|edit| meets(&edit))
            }
            _ => false,
        }
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

    /// Whether a worker has not begun to work yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.instances.iter().any(|instance| instance.state != Life::Over && !instance.has_run)
    }

    /// Takes note of workers that have ended, and of what the others say of themselves.
    pub(crate) fn reap(&mut self) {
        self.reap_ended();
        self.judge_losses();
        for instance in self.instances.iter_mut().filter(|instance| instance.state != Life::Over) {
            let (stopping, health) = (instance.state == Life::Stopping, instance.handle.health());
            instance.has_run |= health.ready;
            self.observer.judge(&instance.seat, &health, stopping);
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
                Err(error) => undated(&format!("ends: {error}")),
            });
            self.observer.ended(no);
            if let Ok(report) = &ending {
                self.observer.ended_well(no, &report.outlived);
            }
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
        self.observer.fleet_changes();
        self.setup.temper = Temper { slow: self.setup.temper.slow.min(50), ..Temper::default() };
        self.table.set_scan_staleness(Duration::ZERO);
        self.observer.looks_are_stale(false);
        let usual = self.usual();
        for no in 0..self.instances.len() {
            let instance = &self.instances[no];
            instance.table_faults.heal();
            instance.stream_faults.heal();
            instance.metrics_faults.heal();
            *instance.table_line.lock().expect("no panic") = usual;
            *instance.stream_line.lock().expect("no panic") = usual;
            *instance.seat.temper.lock().expect("no panic") = self.setup.temper;
            self.thaw(no);
        }
    }

    /// How many calls met a fault, by its kind.
    pub(crate) fn faults_met(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for instance in &self.instances {
            for faults in [&instance.table_faults, &instance.stream_faults, &instance.metrics_faults] {
                for (kind, count) in faults.met() {
                    *all.entry(format!("calls {kind}")).or_default() += count;
                }
            }
        }
        all
    }
}
