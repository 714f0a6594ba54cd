//! `leasectl`: looks into the lease table of an application, and changes it without losing a record.

use std::process::ExitCode;

fn main() -> ExitCode {
    kinesis_consumer::cli::main()
}
