//! A worker for side-by-side runs with other consumers: all settings come from the environment, each event
//! is one line, `<milliseconds since process start> EVENT details`.
//!
//! Environment: `STREAM`, `APP` (application and lease table), `WORKER` (id), `KINESIS`, `DYNAMODB`,
//! `CLOUDWATCH` (endpoint URLs; without them AWS), `METRICS` (1 = publish), `FAILOVER_MS`, `IDLE_MS`, `MAX_RECORDS`, `STEAL`, `MAX_LEASES`,
//! `POSITION` (TRIM_HORIZON | LATEST), `CHECKPOINT` (batch | none), `WANT` (records after which to say
//! DONE), `EXIT` (0 = go on after DONE), `LATENCY` (1 = payloads begin with the time of the put in
//! milliseconds), `RECORDS` (a file to which each record is appended as one line).

use std::{
    env,
    error::Error,
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_kinesis::config::Credentials;
use kinesis_consumer::{
    Batch, Config, Drain, Drained, EndOfShard, Failure, InitialPosition, LeaseLost, RecordProcessor,
    ShardContext, ShardDone, ShardStart, Verdict, Worker, shutdown_signal,
};

type BoxError = Box<dyn Error + Send + Sync>;

fn set<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok().filter(|value| !value.is_empty())?.parse().ok()
}

fn text(name: &str, default: &str) -> String {
    set(name).unwrap_or_else(|| default.into())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures by the clock")]
fn epoch_millis() -> u128 {
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// Counts and tells, for all shards.
struct Bench {
    started: u128,
    worker: String,
    want: u64,
    exit: bool,
    latency: bool,
    checkpoints: bool,
    count: AtomicU64,
    first: AtomicBool,
    done: AtomicBool,
    latencies: Mutex<Vec<u128>>,
    records: Option<Mutex<BufWriter<File>>>,
}

impl Bench {
    fn from_env() -> Result<Self, BoxError> {
        let records = match set::<String>("RECORDS") {
            Some(path) => {
                Some(Mutex::new(BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?)))
            }
            None => None,
        };
        Ok(Self {
            started: process_start(),
            worker: text("WORKER", &format!("w-{}", std::process::id())),
            want: set("WANT").unwrap_or(0),
            exit: text("EXIT", "1") == "1",
            latency: text("LATENCY", "") == "1",
            checkpoints: text("CHECKPOINT", "batch") != "none",
            count: AtomicU64::new(0),
            first: AtomicBool::new(false),
            done: AtomicBool::new(false),
            latencies: Mutex::new(Vec::new()),
            records,
        })
    }

    fn say(&self, event: &str) {
        println!("{} {event}", epoch_millis().saturating_sub(self.started));
    }

    /// Takes in a batch: counts it, writes it down, measures it.
    fn take(&self, batch: &Batch) -> std::io::Result<()> {
        if !self.first.swap(true, Relaxed) {
            self.say(&format!("FIRST_RECORD {}", batch.shard()));
        }
        let now = epoch_millis();
        if let Some(file) = &self.records {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            for record in batch {
                let (at, key) = (record.position(), record.partition_key());
                let data = String::from_utf8_lossy(record.data());
                writeln!(file, "{now} {} {} {} {key} {data}", self.worker, record.shard(), at.sequence)?;
            }
            file.flush()?;
        }
        if self.latency {
            let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            for record in batch {
                let data = String::from_utf8_lossy(record.data());
                let put = data.split(' ').next().and_then(|millis| millis.parse().ok());
                latencies.extend(put.map(|put: u128| now.saturating_sub(put)));
            }
        }
        let added = batch.records().len() as u64;
        let count = self.count.fetch_add(added, Relaxed) + added;
        if self.want > 0 && count >= self.want && !self.done.swap(true, Relaxed) {
            self.tell_done(count);
        }
        Ok(())
    }

    fn tell_done(&self, count: u64) {
        self.say(&format!("DONE {count}"));
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.sort_unstable();
        if let Some(max) = latencies.last() {
            let at = |part: usize| latencies[(latencies.len() * part / 100).min(latencies.len() - 1)];
            self.say(&format!("LAT p50 {} p99 {} max {max}", at(50), at(99)));
        }
        if self.exit {
            std::process::exit(0);
        }
    }
}

/// When this process started, in milliseconds since the epoch; now, where the system does not tell.
fn process_start() -> u128 {
    let read = || -> Option<u128> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let ticks: u128 = stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
        let up = std::fs::read_to_string("/proc/uptime").ok()?;
        let up: f64 = up.split(' ').next()?.parse().ok()?;
        // The kernel counts a hundred ticks a second on every platform that has this file.
        Some(epoch_millis().saturating_sub((up * 1000.0) as u128) + ticks * 10)
    };
    read().unwrap_or_else(epoch_millis)
}

struct Processor {
    bench: Arc<Bench>,
    shard: String,
}

impl RecordProcessor for Processor {
    async fn process(&mut self, batch: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        self.bench.take(&batch)?;
        Ok(if self.bench.checkpoints { Verdict::Done } else { Verdict::AckLater })
    }

    async fn shard_ended(&mut self, end: EndOfShard) -> Result<ShardDone, Failure> {
        let done = end.complete().await?;
        self.bench.say(&format!("SHARD_ENDED {}", self.shard));
        Ok(done)
    }

    async fn draining(&mut self, drain: Drain) -> Result<Drained, Failure> {
        match drain.finish().await {
            Ok(drained) => Ok(drained),
            Err(error) => {
                self.bench.say(&format!("CKPT_ERR {error}"));
                Err(error.into())
            }
        }
    }

    async fn lease_lost(&mut self, _: LeaseLost) {
        self.bench.say(&format!("LEASE_LOST {}", self.shard));
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let bench = Arc::new(Bench::from_env()?);
    let local = set::<String>("KINESIS").is_some();
    let mut aws = aws_config::defaults(BehaviorVersion::latest());
    if local {
        let credentials = Credentials::new("test", "test", None, None, "bench");
        aws = aws.region(Region::new(text("AWS_REGION", "us-east-1"))).credentials_provider(credentials);
    }
    let aws = aws.load().await;
    let mut kinesis = aws_sdk_kinesis::config::Builder::from(&aws);
    kinesis.set_endpoint_url(set("KINESIS"));
    let mut dynamodb = aws_sdk_dynamodb::config::Builder::from(&aws);
    dynamodb.set_endpoint_url(set("DYNAMODB"));

    let defaults = Config::default();
    let millis = |name: &str, default: Duration| set(name).map_or(default, Duration::from_millis);
    let config = Config {
        worker_id: Some(bench.worker.clone()),
        initial_position: match text("POSITION", "TRIM_HORIZON").as_str() {
            "LATEST" => InitialPosition::Latest,
            _ => InitialPosition::TrimHorizon,
        },
        failover_time: millis("FAILOVER_MS", defaults.failover_time),
        idle_time_between_reads: millis("IDLE_MS", defaults.idle_time_between_reads),
        max_records: set("MAX_RECORDS").unwrap_or(defaults.max_records),
        max_leases_for_worker: set("MAX_LEASES"),
        max_leases_to_steal_at_one_time: set("STEAL"),
        ..defaults
    };
    let mut worker = Worker::builder(text("APP", "app"), text("STREAM", "s"));
    if text("METRICS", "") == "1" {
        let mut cloudwatch = aws_sdk_cloudwatch::config::Builder::from(&aws);
        cloudwatch.set_endpoint_url(set("CLOUDWATCH"));
        worker = worker.cloudwatch(aws_sdk_cloudwatch::Client::from_conf(cloudwatch.build()));
    }
    let worker = worker
        .kinesis(aws_sdk_kinesis::Client::from_conf(kinesis.build()))
        .dynamodb(aws_sdk_dynamodb::Client::from_conf(dynamodb.build()))
        .config(config)
        .build({
            let bench = bench.clone();
            move |start: ShardStart| {
                let bench = bench.clone();
                async move {
                    let from = start.from.map_or_else(|| "-".into(), |from| from.to_string());
                    bench.say(&format!("INIT {} {from}", start.shard));
                    Ok(Processor { bench, shard: start.shard.to_string() })
                }
            }
        })?;
    bench.say(&format!("STARTED {}", bench.worker));
    worker.run_until(shutdown_signal()).await?;
    bench.say(&format!("STOPPED {}", bench.count.load(Relaxed)));
    Ok(())
}
