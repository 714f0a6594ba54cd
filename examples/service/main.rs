//! A consumer as one deploys it: settings from a file and the environment, SIGTERM, a liveness probe, logs.
//! `k8s/` runs this binary; make it yours by putting your work into [`handle`].
//!
//! ```sh
//! CONSUMER_APPLICATION=cart-worker CONSUMER_STREAM=cart-queue cargo run --example service
//! ```
//!
//! | command | does |
//! |---|---|
//! | (none) | consumes until SIGTERM or Ctrl-C |
//! | `config` | says what the settings are, as JSON, and what is wrong with them; reaches nothing |
//! | `healthcheck --file FILE` | the probe, without a shell: exit code 0 fresh, 1 stale, 2 missing; see [`health::cli`] |
//!
//! Exit codes: 0 stopped in order, 1 could not go on, 2 the settings are wrong.

mod exposition;
mod kcl_names;
mod settings;

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use aws_config::{BehaviorVersion, SdkConfig};
use kinesis_consumer::{
    BuildError, Ordering, Record, Worker, health, metrics::PrometheusSink, shutdown_signal,
};
use settings::{LogFormat, Settings};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

const WRONG_SETTINGS: u8 = 2;

/// Your work goes here. An error brings the same record again, after a delay.
async fn handle(record: Record, print: bool) -> Result<(), io::Error> {
    if print {
        let line = serde_json::json!({
            "shard": record.shard().as_str(),
            "position": record.position().to_string(),
            "key": record.partition_key(),
            "data": String::from_utf8_lossy(record.data()),
        });
        writeln!(io::stdout().lock(), "{line}")?;
    }
    Ok(())
}

fn worker(settings: &Settings, aws: &SdkConfig, metrics: &PrometheusSink) -> Result<Worker, BuildError> {
    let print = settings.service.print_records;
    Worker::builder(&settings.service.application, &settings.service.stream)
        .aws(aws)
        .metrics(Arc::new(metrics.clone()))
        .config(settings.worker.clone())
        .each(Ordering::Shard, move |record| async move { Ok(handle(record, print).await?) })
}

fn main() -> ExitCode {
    if let Some(code) = health::cli() {
        return code;
    }
    match env::args().nth(1).as_deref() {
        None => {}
        Some("config") => return show_settings(),
        Some(other) => {
            eprintln!("{other}: no such command; there are config and healthcheck");
            return ExitCode::from(WRONG_SETTINGS);
        }
    }
    match consume() {
        Ok(code) => code,
        Err(cause) => {
            error!(error = causes(&*cause), "the consumer ends");
            ExitCode::FAILURE
        }
    }
}

// Waiting for AWS takes no core, and a node has many. Give it more if your work is on the CPU.
#[tokio::main(worker_threads = 2)]
async fn consume() -> Result<ExitCode, Box<dyn Error>> {
    let settings = match settings::load(env::vars()) {
        Ok(settings) => settings,
        Err(problems) => return Ok(refused(&problems)),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match settings.service.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let metrics = PrometheusSink::new();
    let worker = match worker(&settings, &aws, &metrics) {
        Ok(worker) => worker,
        Err(error) => return Ok(refused(&[error.to_string()])),
    };
    let _server = match settings.service.metrics_address {
        Some(address) => Some(exposition::serve(address, metrics).await?),
        None => None,
    };
    info!(
        application = settings.service.application,
        stream = settings.service.stream,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    worker.run_until(shutdown_signal()).await?;
    Ok(ExitCode::SUCCESS)
}

/// `config`: for a look before a deploy. Standard output is what the consumer would run with.
fn show_settings() -> ExitCode {
    let settings = match settings::load(env::vars()) {
        Ok(settings) => settings,
        Err(problems) => return refused(&problems),
    };
    let nowhere = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
    if let Err(error) = worker(&settings, &nowhere, &PrometheusSink::new()) {
        return refused(&[error.to_string()]);
    }
    println!("{:#}", settings.to_json());
    ExitCode::SUCCESS
}

fn refused(problems: &[String]) -> ExitCode {
    for problem in problems {
        eprintln!("{problem}");
    }
    ExitCode::from(WRONG_SETTINGS)
}

/// The error and what caused it, in one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
