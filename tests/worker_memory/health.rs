//! The health file. Its age is that of the file system, so these tests run in real time.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use kinesis_consumer::{
    Batch, Config, Failure, ShardContext, Verdict,
    health::{self, Verdict as Health},
};

use crate::world::{World, config, run};

/// A path of its own for each test, removed in the end.
struct File(PathBuf);

impl File {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Relaxed);
        Self(std::env::temp_dir().join(format!("kinesis-consumer-{}-{n}", std::process::id())))
    }

    fn check(&self, max_age: Duration) -> Health {
        health::check(&self.0, max_age).expect("readable")
    }

    fn config(&self) -> Config {
        Config {
            health_file: Some(self.0.clone()),
            idle_time_between_reads: Duration::from_millis(200),
            ..config()
        }
    }

    /// Makes it as old as can be.
    fn age(&self) {
        let file = std::fs::File::options().write(true).open(&self.0).expect("there");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("set");
    }

    async fn becomes(&self, wanted: impl Fn(Health) -> bool) {
        let wait = async {
            while !wanted(self.check(Duration::from_secs(1))) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time");
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn the_file_is_fresh_while_an_empty_shard_is_read_and_gone_after_the_stop() {
    let (world, file) = (World::shards(1), File::new());
    assert_eq!(file.check(Duration::from_secs(1)), Health::Missing);
    let worker = run(world.worker_with("a", file.config()).build(world.probe()).expect("valid"));
    file.becomes(Health::is_fresh).await;
    let first = std::fs::metadata(&file.0).expect("there").modified().expect("a time");
    file.becomes(|_| std::fs::metadata(&file.0).is_ok_and(|data| data.modified().expect("a time") > first))
        .await;
    worker.stop().await;
    assert_eq!(file.check(Duration::from_secs(1)), Health::Missing);
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
async fn a_worker_that_is_stuck_with_records_waiting_goes_stale() {
    let (world, file) = (World::shards(1), File::new());
    world.put(0, 1..=9);
    let stuck = world.probe_with(|_, _| std::future::pending());
    let config = Config { max_records: 1, ..file.config() };
    let worker = run(world.worker_with("a", config).build(stuck).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    file.becomes(|health| matches!(health, Health::Stale { .. })).await;
    worker.crash().await;
}

#[tokio::test]
async fn a_file_of_an_earlier_run_is_not_fresh() {
    let (world, file) = (World::shards(1), File::new());
    std::fs::write(&file.0, "").expect("writable");
    world.faults.cut();
    let worker = run(world.worker_with("a", file.config()).build(world.probe()).expect("valid"));
    file.becomes(|health| health == Health::Missing).await;
    world.faults.heal();
    file.becomes(Health::is_fresh).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_refused_before_any_call() {
    let (world, file) = (World::shards(1), File::new());
    let config = Config { health_file: Some(file.0.join("no-such-folder").join("health")), ..config() };
    let handler = world.probe_with(|_, _| async { Ok(Verdict::Done) });
    let worker = run(world.worker_with("a", config).build(handler).expect("valid"));
    let error = worker.end().await.expect_err("refused").to_string();
    assert!(error.contains("no-such-folder") && error.contains("writable path"), "{error}");
    assert_eq!(world.faults.calls(kinesis_consumer::io::faulty::Op::Describe), 0);
}

#[tokio::test]
async fn the_file_is_fresh_while_a_long_batch_is_acknowledged_record_by_record() {
    let (world, file) = (World::shards(1), File::new());
    world.put(0, 0..1000);
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
