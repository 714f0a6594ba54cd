//! Three workers share a stream, one is killed, one is stopped, the shards are doubled; nothing is lost.
//!
//! `cargo run --example quickstart` needs no AWS account: Kinesis and DynamoDB run inside it, on loopback.
//! A producer puts cart events keyed by product; each worker is a process of its own that uses the AWS SDK.
//! **What you would write yourself is [`work`], below**; the rest is the stage it plays on.
//!
//! The same on other servers, or on AWS, where it costs some cents: it makes a stream and a lease table of
//! its own and deletes both in the end.
//!
//! ```sh
//! AWS_ENDPOINT_URL=http://127.0.0.1:5000 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x \
//!     cargo run --example quickstart
//! QUICKSTART_AWS=1 AWS_PROFILE=… cargo run --example quickstart
//! ```

mod cloud;
mod fleet;
mod ledger;
mod producer;
mod report;
mod screen;
mod script;
mod stage;

use std::{error::Error, process::ExitCode};

use aws_config::BehaviorVersion;
use kinesis_consumer::{Config, InitialPosition, Ordering, Worker, shutdown_signal};
use serde::{Deserialize, Serialize};

use crate::report::Reporter;

type BoxError = Box<dyn Error + Send + Sync>;

/// What the producer puts, as JSON; the partition key is the product.
#[derive(Debug, Deserialize, Serialize)]
struct CartEvent {
    /// Counts the events of this product, from 1.
    number: usize,
    cart: String,
    quantity: u32,
}

/// One worker. Start as many processes like this as you want: they share the shards of the stream.
async fn work(name: &str, application: &str, stream: &str) -> Result<(), BoxError> {
    // Region, credentials and endpoints come from where every AWS program finds them.
    let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let config = Config {
        // By default the host's name with a random part; here the name that the screen shows.
        worker_id: Some(name.to_owned()),
        // Where an application begins that has no checkpoint yet: here at the oldest record.
        initial_position: InitialPosition::TrimHorizon,
        ..Config::default()
    };
    let reporter = Reporter::new(name);
    let process = reporter.clone();
    // The application is also the name of the lease table, which is made if it is missing.
    let worker = Worker::builder(application, stream).aws(&aws).config(config).each(
        Ordering::Shard,
        move |record| {
            let process = process.clone();
            async move {
                // An error, here by `?`, brings the same record again after a delay; none is skipped.
                let event: CartEvent = serde_json::from_slice(record.data())?;
                // `Ok` says that the record is done and need not come again, so the effect goes first.
                process.record(record.shard(), record.partition_key(), event.number)?;
                Ok(())
            }
        },
    )?;
    let events = worker.handle().events();
    // At SIGTERM or Ctrl-C it finishes the work in hand, writes checkpoints and lets go of its shards.
    let (ended, ()) = tokio::join!(worker.run_until(shutdown_signal()), reporter.follow(events));
    ended?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match arguments[..] {
        [] => script::run().await,
        [fleet::WORKER, name, application, stream] => {
            report::end_with_parent();
            report::log_warnings();
            work(name, application, stream).await.map(|()| ExitCode::SUCCESS)
        }
        _ => Err("it takes no arguments".into()),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("quickstart: {error}");
        ExitCode::FAILURE
    })
}
