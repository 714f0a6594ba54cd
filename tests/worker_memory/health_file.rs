//! The health file and the status beside it. Their ages are those of the file system, so these tests run in
//! real time.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use kinesis_consumer::{
    Batch, Config, Failure, Freezer, ShardContext, Verdict,
    health::{self, Reason, State, Status, Verdict as Health},
};

use crate::{
    logs::Lines,
    world::{SECOND, World, config, run},
};

/// A folder of its own for each test, removed in the end.
struct File {
    folder: PathBuf,
    path: PathBuf,
}

impl File {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Relaxed);
        let folder = std::env::temp_dir().join(format!("kinesis-consumer-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).expect("writable");
        Self { path: folder.join("health"), folder }
    }

    fn check(&self) -> Health {
        health::check(&self.path, SECOND).expect("readable")
    }

    fn status(&self) -> Option<Status> {
        Status::read(&self.path).expect("never half a file")
    }

    fn config(&self) -> Config {
        Config {
            health_file: Some(self.path.clone()),
            health_max_age: Some(SECOND),
            idle_time_between_reads: Duration::from_millis(200),
            ..config()
        }
    }

    /// Makes it as old as can be.
    fn age(&self) {
        let file = fs::File::options().write(true).open(&self.path).expect("there");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("set");
    }

    async fn becomes(&self, wanted: impl Fn(Health) -> bool) {
        until(|| wanted(self.check())).await;
    }
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time");
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn the_file_is_touched_while_a_shard_is_empty_and_gone_with_its_status_after_the_stop() {
    let (world, file) = (World::shards(1), File::new());
    assert_eq!(file.check(), Health::Missing);
    let worker = run(world.worker_with("a", file.config()).build(world.probe()).expect("valid"));
    file.becomes(Health::is_fresh).await;
    let first = fs::metadata(&file.path).expect("there").modified().expect("a time");
    until(|| fs::metadata(&file.path).is_ok_and(|data| data.modified().expect("a time") > first)).await;
    until(|| file.status().is_some_and(|status| status.health.ready)).await;
    let status = file.status().expect("there");
    assert_eq!((status.health.reason, status.health.leases), (Reason::Working, 1));
    assert_eq!((status.worker.as_str(), status.pid), ("a", std::process::id()));
    assert_eq!(status.max_age, SECOND);
    worker.stop().await;
    assert_eq!(file.check(), Health::Missing);
    assert_eq!(fs::read_dir(&file.folder).expect("there").count(), 0);
}

#[tokio::test]
async fn a_worker_that_fails_and_retries_or_has_no_shard_is_alive() {
    let world = World::shards(1);
    world.put(0, [1]);
    let (busy, spare) = (File::new(), File::new());
    let config = Config { retry_delay_min: Duration::from_secs(30), ..busy.config() };
    let failing = world.probe_with(|_, _| async { Err(Failure::retry("for ever")) });
    let first = run(world.worker_with("a", config).build(failing).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    let second = run(world.worker_with("b", spare.config()).build(world.probe()).expect("valid"));
    spare.becomes(Health::is_fresh).await;
    for _ in 0..3 {
        busy.age();
        spare.age();
        busy.becomes(Health::is_fresh).await;
        spare.becomes(Health::is_fresh).await;
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_stuck_shard_ages_the_file_although_its_sibling_moves_and_the_status_names_it() {
    let (world, file) = (World::shards(2), File::new());
    world.put(1, [1]);
    let stuck = world.probe_with(|_, _| std::future::pending());
    let worker = run(world.worker_with("a", file.config()).build(stuck).expect("valid"));
    world.trace.wait_for(1, "batch 1").await;
    file.becomes(|health| matches!(health, Health::Stale { .. })).await;
    until(|| file.status().is_some_and(|status| status.health.state == State::Stale)).await;
    let health = file.status().expect("there").health;
    assert_eq!((health.reason, health.shard), (Reason::ProcessorStuck, Some(world.shard(1))));
    assert!(health.age > SECOND);
    worker.crash().await;
}

#[tokio::test]
async fn a_frozen_process_touches_nothing() {
    let (world, file, freezer) = (World::shards(1), File::new(), Freezer::new());
    let worker = world.worker_with("a", file.config()).freezer(&freezer).build(world.probe());
    let worker = run(worker.expect("valid"));
    file.becomes(Health::is_fresh).await;
    freezer.freeze();
    file.becomes(|health| matches!(health, Health::Stale { .. })).await;
    freezer.thaw();
    file.becomes(Health::is_fresh).await;
    worker.crash().await;
}

#[tokio::test]
async fn files_of_an_earlier_run_are_gone_before_anything_else() {
    let (world, file) = (World::shards(1), File::new());
    fs::write(&file.path, "").expect("writable");
    fs::write(file.folder.join("health.json"), r#"{"half of a st"#).expect("writable");
    world.faults.cut();
    let worker = run(world.worker_with("a", file.config()).build(world.probe()).expect("valid"));
    file.becomes(|health| health == Health::Missing).await;
    until(|| matches!(Status::read(&file.path), Ok(Some(_)))).await;
    let health = file.status().expect("there").health;
    assert_eq!((health.reason, health.ready), (Reason::Starting, false));
    assert_eq!(file.check(), Health::Missing, "not before it is initialised");
    world.faults.heal();
    file.becomes(Health::is_fresh).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_refused_before_any_call() {
    let (world, file) = (World::shards(1), File::new());
    let config = Config { health_file: Some(file.path.join("no-such-folder").join("health")), ..config() };
    let handler = world.probe_with(|_, _| async { Ok(Verdict::Done) });
    let worker = run(world.worker_with("a", config).build(handler).expect("valid"));
    let error = worker.end().await.expect_err("refused").to_string();
    assert!(error.contains("no-such-folder") && error.contains("writable path"), "{error}");
    assert_eq!(world.faults.calls(kinesis_consumer::io::faulty::Op::Describe), 0);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_any_more_stops_nothing_and_comes_back() {
    let (lines, _guard) = Lines::listen();
    let (world, file) = (World::shards(1), File::new());
    let worker = run(world.worker_with("a", file.config()).build(world.probe()).expect("valid"));
    file.becomes(Health::is_fresh).await;
    fs::remove_dir_all(&file.folder).expect("removable");
    world.put(0, [1]);
    world.trace.wait_for(0, "batch 1").await;
    until(|| lines.of("health file not written; trying again") == 1).await;
    assert_eq!(file.check(), Health::Missing);
    world.put(0, [2]);
    world.trace.wait_for(0, "batch 2").await;
    fs::create_dir_all(&file.folder).expect("writable");
    file.becomes(Health::is_fresh).await;
    until(|| file.status().is_some()).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_file_is_fresh_while_a_long_batch_is_acknowledged_record_by_record() {
    let (world, file) = (World::shards(1), File::new());
    world.put(0, 1..=500);
    let slow = world.probe_with(|batch: Batch, context: ShardContext| async move {
        for record in &batch {
            tokio::time::sleep(Duration::from_millis(50)).await;
            context.acks().ack(record.position());
        }
        Ok(Verdict::Done)
    });
    let config = Config { max_records: 500, ..file.config() };
    let worker = run(world.worker_with("a", config).build(slow).expect("valid"));
    world.trace.wait_for_records(0, 500).await;
    // The first may be signs of the next batch being read ahead.
    for _ in 0..8 {
        file.becomes(Health::is_fresh).await;
        file.age();
    }
    file.becomes(Health::is_fresh).await;
    assert_eq!(world.trace.batches(0).len(), 1);
    worker.crash().await;
}
