//! A probe for images whose own program is not a worker of this crate, or not this one.
//!
//! `healthcheck --file /run/health [--max-age 30s] [--ready]`, as an exec probe of Kubernetes runs it. Exits with
//! 0 if the file is fresh, 1 if it is stale, 2 if it is missing, 3 after a mistake on the command line.
//!
//! A worker's own program has the same as its subcommand: see `kinesis_consumer::health::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kinesis_consumer::health::probe(std::env::args_os().skip(1))
}
