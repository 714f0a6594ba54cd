//! The health file of real processes, asked by everything that a probe may run: the subcommand, GNU's find and
//! BusyBox's. A worker and each probe are processes of their own: this test once more.
#![cfg(unix)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    time::Duration,
};

use kinesis_consumer::{Config, InitialPosition, Ordering, Worker, health, local::LocalAws};

/// Says what this test is to be in a process of its own.
const ROLE: &str = "KINESIS_CONSUMER_TEST_ROLE";
/// The folder of the health file.
const FOLDER: &str = "KINESIS_CONSUMER_TEST_FOLDER";
/// The allowed age, as the probe is told it.
const MAX_AGE: &str = "2s";

/// Not a test of its own: what the processes do that the tests start.
#[test]
fn in_a_process_of_its_own() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("set"));
    if role == "worker" {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(work(&folder.join("health")));
    } else {
        let arguments = ["--file".into(), folder.join("health").into_os_string()];
        let age = role.to_str().map(|age| ["--max-age".into(), age.into()]).expect("text");
        let code = health::probe(arguments.into_iter().chain(age));
        std::process::exit((0..4).find(|n| ExitCode::from(*n) == code).expect("a known code").into());
    }
}

/// A worker that is stuck for ever with a record that says `stuck`.
async fn work(file: &Path) {
    let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let config = Config {
        initial_position: InitialPosition::TrimHorizon,
        idle_time_between_reads: Duration::from_millis(200),
        health_file: Some(file.to_owned()),
        health_max_age: Some(Duration::from_secs(2)),
        ..Config::default()
    };
    let worker = Worker::builder("app", "stream").aws(&aws).config(config);
    let worker = worker.each(Ordering::Shard, |record| async move {
        if &record.data()[..] == b"stuck" {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    worker.expect("valid").run().await.expect("it runs until it is killed");
}

/// This test in another role.
fn process(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", "in_a_process_of_its_own", "--nocapture"]);
    command.env(ROLE, role).env(FOLDER, folder);
    command
}

/// Killed in any case.
struct Running(Child);

impl Running {
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder of its own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("kinesis-consumer-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("writable");
        Self(folder)
    }

    /// What the subcommand answers: its exit code and its line.
    fn probe(&self, max_age: &str) -> (i32, String) {
        let Output { status, stderr, .. } = process(max_age, &self.0).output().expect("it runs");
        (status.code().expect("an exit code"), String::from_utf8_lossy(&stderr).trim().to_owned())
    }

    /// Asks until the answer has this code, and returns its line.
    async fn answers(&self, code: i32) -> String {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let (answer, line) = self.probe(MAX_AGE);
            if answer == code {
                return line;
            }
            assert!(tokio::time::Instant::now() < end, "never {code}, but {answer}: {line}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn started(name: &str) -> (LocalAws, Folder, Running) {
    let (aws, folder) = (LocalAws::start().await.expect("servers"), Folder::new(name));
    aws.create_stream("stream", 4);
    let worker = process("worker", &folder.0).envs(aws.env()).stdout(Stdio::null()).spawn();
    (aws, folder, Running(worker.expect("it starts")))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stuck_shard_among_many_makes_a_process_stale_and_the_probe_says_which() {
    let (aws, folder, _worker) = started("stuck").await;
    let stream = aws.stream("stream");
    let shards = stream.open_shards();
    let siblings = async {
        loop {
            for shard in &shards {
                stream.put_to(shard.hash_range.start, "key", "fine");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let check = async {
        assert!(folder.answers(0).await.starts_with("fresh: "));
        stream.put_to(shards[2].hash_range.start, "key", "stuck");
        let why = folder.answers(1).await;
        assert!(why.starts_with("stale: no progress for "), "{why}");
        assert!(why.ends_with(&format!("processor_stuck {}", shards[2].id)), "{why}");
    };
    tokio::select! {
        () = siblings => {}
        () = check => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_stale_and_fresh_again_when_it_goes_on() {
    let (_aws, folder, worker) = started("stopped").await;
    folder.answers(0).await;
    worker.signal("-STOP");
    let why = folder.answers(1).await;
    assert!(why.contains("process_silent"), "{why}");
    worker.signal("-CONT");
    folder.answers(0).await;
}

#[test]
fn the_subcommand_and_both_finds_agree_on_one_file() {
    let folder = Folder::new("find");
    let health = folder.0.join("health");
    let mut finds: Vec<&[&str]> = vec![&["find"], &["busybox", "find"]];
    finds.retain(|find| {
        let is_there = command(find).arg(&folder.0).output().is_ok_and(|output| output.status.success());
        if !is_there {
            eprintln!("SKIPPED: {} is not installed", find.join(" "));
        }
        is_there
    });
    let minute = Duration::from_secs(60);
    for (age, is_fresh) in [(0, true), (50, true), (70, false), (3600, false)] {
        let file = fs::File::create(&health).expect("writable");
        let now = file.metadata().and_then(|data| data.modified()).expect("a time");
        file.set_modified(now - Duration::from_secs(age)).expect("settable");
        assert_eq!(folder.probe("60s").0, i32::from(!is_fresh), "healthcheck, {age} s");
        assert_eq!(health::check(&health, minute).expect("readable").is_fresh(), is_fresh, "check, {age} s");
        for find in &finds {
            let arguments = ["-maxdepth", "1", "-name", "health", "-mmin", "-1"];
            let found = command(find).arg(&folder.0).args(arguments).output().expect("it runs");
            assert!(found.status.success(), "{find:?}: {found:?}");
            assert_eq!(!found.stdout.is_empty(), is_fresh, "{find:?}, {age} s");
        }
    }
    fs::remove_file(&health).expect("removable");
    assert_eq!(folder.probe("60s").0, 2);
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}
