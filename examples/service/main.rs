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
//! Exit codes: 0 stopped in order; 1 could not go on, or work was cut off or leases not released when the time to
//! stop was over; 2 the settings are wrong.

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
use exposition::Exposition;
use kinesis_consumer::{
    BuildError, OnShutdown, Ordering, Record, Report, Worker, health, metrics::PrometheusSink,
    shutdown_signal,
};
use settings::{LogFormat, Settings};
use tokio::select;
use tracing::{error, info, warn};
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
    match env::args_os().nth(1).map(|command| command.to_string_lossy().into_owned()).as_deref() {
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
    let settings = match settings::load(env::vars_os()) {
        Ok(settings) => settings,
        Err(problems) => return Ok(refused(&problems)),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match settings.service.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    for hint in &settings.hints {
        warn!(hint, "a setting goes by another name here");
    }
    let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let metrics = PrometheusSink::new();
    let worker = match worker(&settings, &aws, &metrics) {
        Ok(worker) => worker,
        Err(error) => return Ok(refused(&[error.to_string()])),
    };
    let page = match settings.service.metrics_address {
        Some(address) => Exposition::serve(address, metrics).await?,
        None => Exposition::default(),
    };
    info!(
        application = settings.service.application,
        stream = settings.service.stream,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    let report = run(worker, page).await?;
    Ok(if is_forced(&report, settings.worker.on_shutdown) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether the stop took longer than it may, so that records come again or shards rest until their leases expire.
/// The worker's last line says which: `worker stopped`.
fn is_forced(report: &Report, wish: OnShutdown) -> bool {
    !report.cut_off.is_empty() || wish == OnShutdown::Release && !report.kept.is_empty()
}

/// Works until a signal comes, or until nobody could watch the work any more: then it stops in order and ends
/// with an error, for the next start to serve the page again. Others take the shards meanwhile.
async fn run(worker: Worker, mut page: Exposition) -> Result<Report, Box<dyn Error>> {
    let mut unwatched = None;
    let end = async {
        select! {
            second_signal = shutdown_signal() => second_signal,
            error = page.ended() => {
                unwatched = Some(error);
                ().into()
            }
        }
    };
    let report = worker.run_until(end).await?;
    unwatched.map_or(Ok(report), |error| Err(error.into()))
}

/// `config`: for a look before a deploy. Standard output is what the consumer would run with.
fn show_settings() -> ExitCode {
    let settings = match settings::load(env::vars_os()) {
        Ok(settings) => settings,
        Err(problems) => return refused(&problems),
    };
    let nowhere = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
    if let Err(error) = worker(&settings, &nowhere, &PrometheusSink::new()) {
        return refused(&[error.to_string()]);
    }
    for hint in &settings.hints {
        eprintln!("{hint}");
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

#[cfg(test)]
mod tests {
    use kinesis_consumer::{
        Config, InitialPosition,
        io::{
            faulty::{Faults, FaultyLeaseStore},
            memory::{MemoryLeaseStore, MemoryStream},
        },
    };

    use super::*;

    /// What goes wrong with a stop.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Ends {
        Well,
        Stuck,
        WithoutTable,
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_that_cuts_work_off_or_releases_nothing_is_told_from_one_in_order() {
        for (ends, wish, forced) in [
            (Ends::Well, OnShutdown::Release, false),
            (Ends::Well, OnShutdown::Keep, false),
            (Ends::Stuck, OnShutdown::Release, true),
            (Ends::Stuck, OnShutdown::Keep, true),
            (Ends::WithoutTable, OnShutdown::Release, true),
        ] {
            let (stream, faults) = (MemoryStream::new("stream", 1), Faults::new(1));
            stream.put("key", "1");
            let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
            let worker = Worker::builder("app", "stream")
                .source(Arc::new(stream))
                .lease_store(Arc::new(FaultyLeaseStore::new(MemoryLeaseStore::new(), faults.clone())))
                .config(Config {
                    initial_position: InitialPosition::TrimHorizon,
                    on_shutdown: wish,
                    ..Config::default()
                })
                .each(Ordering::Shard, move |_| {
                    let _ = begun.send(());
                    async move {
                        match ends {
                            Ends::Stuck => std::future::pending().await,
                            Ends::Well | Ends::WithoutTable => Ok(()),
                        }
                    }
                })
                .expect("valid");
            let handle = worker.handle();
            let (report, ()) = tokio::join!(run(worker, Exposition::default()), async {
                begins.recv().await.expect("a record");
                if ends == Ends::WithoutTable {
                    faults.cut();
                }
                handle.shutdown().await;
            });
            let report = report.expect("a report");
            assert_eq!(is_forced(&report, wish), forced, "{ends:?} {wish:?}: {report:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_not_served_any_more_ends_the_process_in_order() {
        let died: [fn() -> io::Result<()>; 3] =
            [|| Ok(()), || Err(io::Error::other("no socket")), || panic!("a bug")];
        for (died, says) in died.into_iter().zip(["returned", "no socket", "panic"]) {
            let table = MemoryLeaseStore::new();
            let worker = Worker::builder("app", "stream")
                .source(Arc::new(MemoryStream::new("stream", 2)))
                .lease_store(Arc::new(table.clone()))
                .each(Ordering::Shard, |_| async { Ok(()) })
                .expect("valid");
            let handle = worker.handle();
            let page = Exposition::of(async move {
                assert!(handle.ready().await);
                died()
            });
            let error = run(worker, page).await.expect_err("nobody can watch it");
            assert!(error.to_string().contains(says), "{error}");
            let rows = table.rows();
            assert!(rows.len() == 2 && rows.iter().all(|row| row.owner.is_none()), "all released: {rows:?}");
        }
    }
}
