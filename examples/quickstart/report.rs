//! The worker's side of the pipe: what it did, one line each, to the parent.
//!
//! A line is written in one piece before the record is acknowledged, so that not even `kill -9` parts
//! what the lease table says from what the parent heard.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use kinesis_consumer::{Event, Events, ShardId};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Tells the parent.
#[derive(Clone)]
pub(crate) struct Reporter {
    name: Arc<str>,
}

impl Reporter {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// The effect of a record: here a line, in your program perhaps a row in a database.
    pub(crate) fn record(&self, shard: &ShardId, product: &str, number: usize) -> io::Result<()> {
        self.say(&format!("did {shard} {product} {number}"))
    }

    /// Tells of leases taken and given up, until the worker has ended.
    pub(crate) async fn follow(&self, mut events: Events) {
        while let Some(event) = events.next().await {
            let told = match event {
                Event::LeaseTaken { shard, .. } => self.say(&format!("took {shard}")),
                Event::LeaseLost { shard, .. }
                | Event::LeaseReleased { shard }
                | Event::ShardGivenUp { shard, .. } => self.say(&format!("gave {shard}")),
                Event::ShardEnded { shard } => self.say(&format!("ended {shard}")),
                _ => Ok(()),
            };
            if told.is_err() {
                // The parent is gone, and this process goes with it.
                return;
            }
        }
    }

    fn say(&self, what: &str) -> io::Result<()> {
        // All workers share the pipe: a line below 4 KiB in one write stays whole, and the order of lines is
        // the order of what happened, across processes too.
        io::stdout().lock().write_all(format!("{} {what}\n", self.name).as_bytes())
    }
}

/// Ends this process when the parent closes our standard input, by dying if need be.
///
/// A thread and not a task: it must work when nothing else does, and nobody should wait for it.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
}

/// Warnings to standard error, which the parent shows; `RUST_LOG` asks for more.
pub(crate) fn log_warnings() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
}
