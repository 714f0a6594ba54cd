//! Keeps everything going while the script waits: lines from workers, puts, the screen, Ctrl-C.

use std::{future::Future, pin::Pin, pin::pin, time::Duration};

use kinesis_consumer::shutdown_signal;
use tokio::{
    select,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, Interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    BoxError,
    cloud::Cloud,
    fleet::{Fleet, Line},
    ledger::{Ledger, State},
    producer::{self, Put},
    screen::Screen,
};

/// How often the screen and the processes are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Batches of puts that wait to be counted before the producer has to.
const PUTS_WAITING: usize = 64;

pub(crate) struct Stage {
    pub(crate) ledger: Ledger,
    pub(crate) screen: Screen,
    fleet: Fleet,
    lines: mpsc::Receiver<Line>,
    puts: Option<mpsc::Receiver<Vec<Put>>>,
    producer: JoinSet<Result<usize, BoxError>>,
    stop_producer: CancellationToken,
    interrupted: Pin<Box<dyn Future<Output = ()> + Send>>,
    tick: Interval,
}

impl Stage {
    pub(crate) fn new() -> Result<Self, BoxError> {
        let (fleet, lines) = Fleet::new()?;
        Ok(Self {
            ledger: Ledger::default(),
            screen: Screen::new(),
            fleet,
            lines,
            puts: None,
            producer: JoinSet::new(),
            stop_producer: CancellationToken::new(),
            interrupted: Box::pin(async { drop(shutdown_signal().await) }),
            tick: tokio::time::interval(TICK),
        })
    }

    /// Starts a worker; returns its process id.
    pub(crate) fn start(&mut self, name: &str, cloud: &Cloud) -> Result<u32, BoxError> {
        let pid = self.fleet.start(name, cloud)?;
        self.ledger.worker_started(name, pid);
        Ok(pid)
    }

    /// Kills a worker with SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) -> Result<(), BoxError> {
        self.ledger.set_state(name, State::Killed);
        self.fleet.kill(name)
    }

    /// Stops a worker with SIGTERM.
    pub(crate) async fn terminate(&mut self, name: &str) -> Result<(), BoxError> {
        self.ledger.set_state(name, State::Stopping);
        self.fleet.terminate(name).await
    }

    pub(crate) fn start_producer(&mut self, cloud: &Cloud) {
        let (told, puts) = mpsc::channel(PUTS_WAITING);
        self.puts = Some(puts);
        let stop = self.stop_producer.clone();
        self.producer.spawn(producer::run(cloud.kinesis().clone(), cloud.stream().to_owned(), told, stop));
    }

    /// Lets the producer put what it has begun, then end. [`Self::until`] sees the last puts counted.
    pub(crate) fn stop_producer(&self) {
        self.stop_producer.cancel();
    }

    /// Whether the producer has ended and all that it put is counted.
    pub(crate) fn all_is_put(&self) -> bool {
        self.puts.is_none()
    }

    /// Goes on for a while.
    pub(crate) async fn play(&mut self, duration: Duration) -> Result<(), BoxError> {
        self.until(duration, |_| false).await?;
        Ok(())
    }

    /// Goes on until `done`, and returns how long that took; nothing if `limit` came first.
    pub(crate) async fn until(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<Option<Duration>, BoxError> {
        let started = Instant::now();
        while !done(self) {
            let Some(left) = limit.checked_sub(started.elapsed()) else { return Ok(None) };
            if let Ok(stepped) = timeout(left, self.step()).await {
                stepped?;
            }
        }
        Ok(Some(started.elapsed()))
    }

    /// Goes on while `work` does.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, BoxError> {
        let mut work = pin!(work);
        loop {
            select! {
                biased;
                done = &mut work => return done,
                stepped = self.step() => stepped?,
            }
        }
    }

    /// Kills what still runs, and counts the last lines.
    pub(crate) async fn end(self) -> (Ledger, Screen) {
        let Self { mut ledger, screen, fleet, mut lines, mut producer, .. } = self;
        fleet.end().await;
        producer.shutdown().await;
        while let Some(line) = lines.recv().await {
            if let Line::Report(line) = line {
                ledger.hear(&line);
            }
        }
        (ledger, screen)
    }

    /// One thing that happens. Cancel-safe.
    async fn step(&mut self) -> Result<(), BoxError> {
        select! {
            biased;
            () = &mut self.interrupted => Err("interrupted".into()),
            _ = self.tick.tick() => {
                self.look_after_workers()?;
                Ok(self.screen.show(&mut self.ledger)?)
            }
            Some(ended) = self.producer.join_next() => ended?.map(drop),
            // Before the lines: what was put should be known when it is processed.
            puts = next(&mut self.puts) => {
                match puts {
                    Some(puts) => self.ledger.put(puts),
                    None => self.puts = None,
                }
                Ok(())
            }
            Some(line) = self.lines.recv() => match line {
                Line::Report(line) if self.ledger.hear(&line) => Ok(()),
                Line::Report(line) => Err(format!("a worker said: {line}").into()),
                Line::Log(line) => Ok(self.screen.say(&format!("| {line}"))?),
            },
        }
    }

    fn look_after_workers(&mut self) -> Result<(), BoxError> {
        for (name, status) in self.fleet.ended()? {
            let state = self.ledger.workers.get(&name).map(|worker| worker.state);
            match state {
                Some(State::Killed) => {}
                Some(State::Stopping) if status.success() => self.ledger.set_state(&name, State::Stopped),
                _ => return Err(format!("worker {name} ended, {status}; its log is above").into()),
            }
        }
        Ok(())
    }
}

async fn next(puts: &mut Option<mpsc::Receiver<Vec<Put>>>) -> Option<Vec<Put>> {
    match puts {
        Some(puts) => puts.recv().await,
        None => std::future::pending().await,
    }
}
