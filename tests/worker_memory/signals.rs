//! The signals that stop a worker, sent to a process of their own: this test once more.

#![cfg(unix)]

use std::{
    future::{pending, ready},
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use kinesis_consumer::{Config, ShardContext, WorkerError, shutdown_signal};

use crate::world::{SECOND, World, config, until};

/// Set where this test is the process that gets the signals.
const RECEIVER: &str = "KINESIS_CONSUMER_TEST_RECEIVER";

/// A worker whose only batch never ends.
async fn receive() {
    let world = World::shards(1);
    world.put(0, [1]);
    let stuck = world.probe_with(|_, context: ShardContext| async move {
        println!("at work");
        context.stopping().await;
        println!("stopping");
        pending().await
    });
    let worker = world.worker("a").build(stuck).expect("valid");
    match worker.run_until(shutdown_signal()).await {
        Err(WorkerError::Aborted) => println!("aborted with lease of {:?}", world.owners()),
        other => println!("ended otherwise: {other:?}"),
    }
}

/// Killed in any case.
struct Receiver(Child);

impl Receiver {
    fn terminate(&self) {
        let sent = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_first_signal_asks_for_a_stop_and_a_second_one_aborts_it() {
    if std::env::var_os(RECEIVER).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.expect("a runtime").block_on(receive());
    }
    let mut receiver = Command::new(std::env::current_exe().expect("a path"))
        .args([
            "--exact",
            "signals::a_first_signal_asks_for_a_stop_and_a_second_one_aborts_it",
            "--nocapture",
        ])
        .env(RECEIVER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .map(Receiver)
        .expect("it starts");
    let mut lines = BufReader::new(receiver.0.stdout.take().expect("piped")).lines();
    let mut says = |wanted: &str| {
        let mut seen = Vec::new();
        for line in lines.by_ref() {
            seen.push(line.expect("text"));
            if seen.last().is_some_and(|line| line.contains(wanted)) {
                return;
            }
        }
        panic!("never said {wanted:?}: {seen:?}");
    };
    says("at work");
    receiver.terminate();
    says("stopping");
    receiver.terminate();
    says("aborted with lease of [\"a\"]");
}

#[tokio::test(start_paused = true)]
async fn a_future_of_ones_own_stops_the_worker_and_never_aborts_it() {
    let world = World::shards(1);
    world.put(0, [1]);
    let slow = world.probe_with(|_, context: ShardContext| async move {
        context.stopping().await;
        tokio::time::sleep(10 * SECOND).await;
        Ok(kinesis_consumer::Verdict::Done)
    });
    let config = Config { shutdown_timeout: 60 * SECOND, ..config() };
    let worker = world.worker_with("a", config).build(slow).expect("valid");
    let trace = world.trace.clone();
    let signal = async {
        until("a batch", || !trace.batches(0).is_empty()).await;
        ready(()).await;
    };
    let report = worker.run_until(signal).await.expect("no error");
    assert_eq!((report.released.len(), world.checkpointed(0).as_deref()), (1, Some("1")));
}
