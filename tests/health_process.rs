//! The health file of real processes, asked by everything that a probe may run: the subcommand, GNU's find and
//! BusyBox's. A worker and each probe are processes of their own: this test once more.
#![cfg(unix)]

#[path = "support/way.rs"]
mod way;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    time::Duration,
};

use kinesis_consumer::{
    Config, Failure, InitialPosition, Ordering, Worker, health,
    local::{Fault, LocalAws},
};
use tokio::time::Instant;
use way::Way;

/// Says what this test is to be in a process of its own.
const ROLE: &str = "KINESIS_CONSUMER_TEST_ROLE";
/// The folder of the health file.
const FOLDER: &str = "KINESIS_CONSUMER_TEST_FOLDER";
/// The allowed age, as the probe is told it.
const MAX_AGE: &str = "3s";

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

/// A worker that is stuck for ever with a record that says `stuck`, and tries one that says `fails` once a minute.
async fn work(file: &Path) {
    let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let config = Config {
        initial_position: InitialPosition::TrimHorizon,
        idle_time_between_reads: Duration::from_millis(200),
        health_file: Some(file.to_owned()),
        health_max_age: Some(Duration::from_secs(3)),
        failover_time: Duration::from_secs(4),
        retry_delay_min: Duration::from_secs(60),
        retry_delay_max: Duration::from_secs(60),
        ..Config::default()
    };
    let worker = Worker::builder("app", "stream").aws(&aws).config(config);
    let worker = worker.each(Ordering::Shard, |record| async move {
        match &record.data()[..] {
            b"stuck" => std::future::pending().await,
            b"fails" => Err(Failure::retry("for ever")),
            _ => Ok(()),
        }
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
        self.says(code, "").await
    }

    /// Asks until the answer has this code and its line says `why`, and returns the line.
    async fn says(&self, code: i32, why: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (answer, line) = self.probe(MAX_AGE);
            if answer == code && line.contains(why) {
                return line;
            }
            assert!(Instant::now() < end, "never {code} and {why}, but {answer}: {line}");
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
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 4);
    let (folder, worker) = worker(name, &aws, aws.dynamodb_url());
    (aws, folder, worker)
}

/// A worker on this lease table.
fn worker(name: &str, aws: &LocalAws, dynamodb: &str) -> (Folder, Running) {
    let folder = Folder::new(name);
    let mut process = process("worker", &folder.0);
    process.envs(aws.env()).env("AWS_ENDPOINT_URL_DYNAMODB", dynamodb).stdout(Stdio::null());
    let worker = Running(process.spawn().expect("it starts"));
    (folder, worker)
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

/// What no restart would mend, each for several times the allowed age.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_or_in_a_retry_or_throttled_or_without_dynamodb_a_process_stays_fresh() {
    let one_shard = LocalAws::start().await.expect("servers");
    one_shard.create_stream("stream", 1);
    let (first, _first) = worker("holder", &one_shard, one_shard.dynamodb_url());
    first.says(0, "working").await;
    let (spare, _spare) = worker("spare", &one_shard, one_shard.dynamodb_url());
    let (fails, failing, _failing) = started("failing").await;
    fails.put("stream", "key", "fails");
    let (throttles, throttled, _throttled) = started("throttled").await;
    let cut_off = LocalAws::start().await.expect("servers");
    cut_off.create_stream("stream", 4);
    let way = Way::to(cut_off.dynamodb_url()).await;
    let (alone, _alone) = worker("alone", &cut_off, &way.url);

    spare.says(0, "no_leases").await;
    failing.says(0, "retrying").await;
    throttled.says(0, "working").await;
    throttles.inject("GetRecords", 100_000, &Fault::throttle());
    let read = throttles.calls("GetRecords");
    alone.says(0, "working").await;
    way.swallow();
    let long = Instant::now() + Duration::from_secs(9);
    while Instant::now() < long {
        for folder in [&spare, &failing, &throttled, &alone] {
            let (code, line) = folder.probe(MAX_AGE);
            assert_eq!(code, 0, "{line}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(throttles.calls("GetRecords") > read, "it reads on");
    assert!(way.swallowed() > 0, "it asks on");
    // Its leases are gone, and it says why it takes none.
    alone.says(0, "lease_table_unavailable").await;
    way.heal();
    alone.says(0, "working").await;
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
