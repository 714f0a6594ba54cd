//! `leasectl`, the operator's tool: looks into a lease table, and changes it without losing a record.
//!
//! Each command is a module: it reads through the same doors as a worker, lets `core` decide, and writes by
//! conditional writes that fence a holder. It never makes a table, and prints no payload unless asked to.
//! Names and habits are those of `kafka-consumer-groups` and the AWS CLI.

mod args;
mod cost;
mod describe;
mod exit;
mod lag;
mod lease_json;
mod list;
mod output;
mod place;
mod release;
mod reset;
mod rows;
mod tail;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::{
    args::{Arguments, Command},
    exit::{Exit, Trouble},
    place::Place,
};

/// Runs the tool on the arguments of this process: the whole of `leasectl`.
///
/// The exit code is 0 if all was done, 1 if AWS could not be reached or refused, 2 for wrong arguments, 3 if
/// it was refused to protect records, 4 if the table, stream, worker or shard is not there, 5 if only a part
/// was done, 6 if `lag --max` was exceeded.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(Trouble::failed("start", &error)),
    };
    match done {
        Ok(()) => Exit::Done.code(),
        Err(trouble) => {
            eprintln!("leasectl: {trouble}");
            trouble.exit().code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Trouble> {
    let Arguments { global, command } = arguments;
    let place = match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "leasectl", &mut script);
            return output::text(&String::from_utf8_lossy(&script));
        }
        Command::Cost(ref wish) if global.table.is_none() => {
            return cost::run(None, wish, &global).await;
        }
        _ => Place::open(&global).await,
    };
    match command {
        Command::List => list::run(&place).await,
        Command::Describe(wish) => describe::run(&place, &wish).await,
        Command::Lag(wish) => lag::run(&place, &wish).await,
        Command::Watch(wish) => watch::run(&place, &wish).await,
        Command::Reset(wish) => reset::run(&place, &wish).await,
        Command::Release(wish) => release::release(&place, &wish).await,
        Command::Drain(wish) => release::drain(&place, &wish).await,
        Command::Export(wish) => rows::export(&place, &wish).await,
        Command::Import(wish) => rows::import(&place, &wish).await,
        Command::Cost(wish) => cost::run(Some(&place), &wish, &global).await,
        Command::Tail(wish) => tail::run(&place, &wish).await,
        Command::Completions { .. } => Ok(()),
    }
}
