//! A stream is doubled and halved under load, step by step, while three workers read it; then a picture of it.
//!
//! `cargo run --example reshard_drill [-- picture.svg]` needs no AWS account: Kinesis and DynamoDB run inside
//! it, on loopback. It prints what was lost, repeated or out of order, and fails if anything was.

mod ledger;
mod picture;

use std::{
    error::Error,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_kinesis::{Client, types::ScalingType};
use kinesis_consumer::{
    ClaimReason, Config, Event, InitialPosition, Ordering, Worker, WorkerHandle,
    io::{DynamoDbLeaseStore, LeaseStore},
    local::LocalAws,
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ledger::Ledger,
    picture::{Picture, Sample},
};

type BoxError = Box<dyn Error + Send + Sync>;

const STREAM: &str = "drill";
const WORKERS: [&str; 3] = ["a", "b", "c"];
const SHARDS: i32 = 4;
/// When the number of shards becomes what, in seconds from the start.
const STEPS: [(u64, i32); 5] = [(3, 8), (8, 16), (13, 32), (19, 16), (24, 8)];
/// When the producer stops.
const END: Duration = Duration::from_secs(29);
/// How long everything may take to be processed then.
const PATIENCE: Duration = Duration::from_secs(60);
/// 40 records every 50 ms, of 200 keys.
const BATCH: u64 = 40;
const PERIOD: Duration = Duration::from_millis(50);
const KEYS: u64 = 200;
const SAMPLE: Duration = Duration::from_millis(250);

type Shared<T> = Arc<Mutex<T>>;

/// A panic elsewhere leaves the figures so far.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tokio::main]
async fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| "target/reshard_drill.svg".into());
    match drill(Path::new(&path)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("reshard_drill: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The whole drill; whether nothing was lost, repeated or out of order.
async fn drill(path: &Path) -> Result<bool, BoxError> {
    let aws = LocalAws::start().await?;
    aws.create_stream(STREAM, SHARDS as usize);
    let (ledger, moves) = (Shared::<Ledger>::default(), Shared::<usize>::default());
    let mut workers = JoinSet::new();
    let mut handles = Vec::new();
    let mut beside = JoinSet::new();
    for name in WORKERS {
        let worker = worker(&aws, name, ledger.clone())?;
        let handle = worker.handle();
        beside.spawn(count_moves(handle.clone(), moves.clone()));
        handles.push(handle);
        workers.spawn(worker.run());
    }
    for handle in &handles {
        handle.ready().await;
    }
    let (start, stop) = (Instant::now(), CancellationToken::new());
    let mut sampler = JoinSet::new();
    sampler.spawn(sample(start, aws.dynamodb_client(), ledger.clone(), moves.clone(), stop.clone()));
    let mut steps = JoinSet::new();
    steps.spawn(reshard(start, aws.kinesis_client()));
    produce(start, &aws, &ledger).await;
    steps.join_next().await.ok_or("no steps")???;
    let end = Instant::now() + PATIENCE;
    while !lock(&ledger).is_done() && Instant::now() < end {
        sleep(SAMPLE).await;
    }
    // What still came twice would come now.
    sleep(Duration::from_secs(3)).await;
    stop.cancel();
    let samples = sampler.join_next().await.ok_or("no samples")??;
    for handle in &handles {
        handle.shutdown().await;
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    beside.shutdown().await;
    let figures = lock(&ledger).figures();
    let moved = *lock(&moves);
    let caption = format!("{figures}; {moved} moves between workers");
    println!("{caption}");
    let steps = [(0, SHARDS)].into_iter().chain(STEPS);
    let marks = steps.map(|(at, shards)| (at as f64, format!("{shards} shards"))).collect();
    let picture = Picture { workers: &WORKERS, marks, samples, caption };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, picture.svg())?;
    println!("picture: {}", path.display());
    Ok(figures.is_clean())
}

fn worker(aws: &LocalAws, name: &str, ledger: Shared<Ledger>) -> Result<Worker, BoxError> {
    let config = Config {
        worker_id: Some(name.into()),
        initial_position: InitialPosition::TrimHorizon,
        idle_time_between_reads: Duration::from_millis(250),
        ..Config::default()
    };
    let builder =
        Worker::builder("drill", STREAM).kinesis(aws.kinesis_client()).dynamodb(aws.dynamodb_client());
    Ok(builder.config(config).each(Ordering::Shard, move |record| {
        let ledger = ledger.clone();
        async move {
            let number = std::str::from_utf8(record.data())?.parse()?;
            lock(&ledger).processed(record.partition_key(), number);
            Ok(())
        }
    })?)
}

/// Counts the leases that went from one worker to another; a new shard's first is none of these.
async fn count_moves(handle: WorkerHandle, moves: Shared<usize>) {
    let mut events = handle.events();
    while let Some(event) = events.next().await {
        if let Event::LeaseTaken { reason, .. } = event
            && reason != ClaimReason::Free
        {
            *lock(&moves) += 1;
        }
    }
}

async fn reshard(start: Instant, kinesis: Client) -> Result<(), BoxError> {
    for (at, shards) in STEPS {
        sleep_until(start + Duration::from_secs(at)).await;
        let call = kinesis.update_shard_count().stream_name(STREAM).target_shard_count(shards);
        call.scaling_type(ScalingType::UniformScaling).send().await?;
        println!("{at:>3} s: {shards} shards");
    }
    Ok(())
}

async fn produce(start: Instant, aws: &LocalAws, ledger: &Mutex<Ledger>) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut records = (0..).map(|n| (format!("key-{}", n % KEYS), n / KEYS));
    while start.elapsed() < END {
        period.tick().await;
        for (key, number) in records.by_ref().take(BATCH as usize) {
            // Noted first: a worker may be faster than this line.
            lock(ledger).put(&key, number);
            aws.put(STREAM, &key, number.to_string());
        }
    }
}

/// Looks at the table and the ledger until `stop`.
async fn sample(
    start: Instant,
    dynamodb: aws_sdk_dynamodb::Client,
    ledger: Shared<Ledger>,
    moves: Shared<usize>,
    stop: CancellationToken,
) -> Vec<Sample> {
    let table = DynamoDbLeaseStore::new(dynamodb, "drill", Duration::from_secs(5));
    let mut samples = Vec::new();
    let mut period = interval(SAMPLE);
    while !stop.is_cancelled() {
        period.tick().await;
        let Ok(rows) = table.list().await else { continue };
        let held = |name: &str| {
            let of = rows.iter().filter(|row| !row.is_finished());
            of.filter(|row| row.holder().is_some_and(|holder| holder.as_str() == name)).count()
        };
        let leases = WORKERS.iter().map(|name| held(name) as f64).collect();
        let lag = lock(&ledger).lag(Instant::now()).as_secs_f64();
        let moves = *lock(&moves) as f64;
        samples.push(Sample { at: start.elapsed().as_secs_f64(), leases, lag, moves });
    }
    samples
}
