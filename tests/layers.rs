//! Imports go one way: worker -> io -> core, processing -> worker, cli -> worker, io, core; AWS types only in `io` and the builder.

use std::{fs, path::Path};

/// Code lines of all files below `folder`, with `path:line`, comments and doc comments left out.
fn lines(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the crate") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("readable");
                let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
                found
                    .extend(code.map(|(n, line)| (format!("{}:{}", path.display(), n + 1), line.to_owned())));
            }
        }
    }
    assert!(!found.is_empty(), "nothing read below {folder}");
    found
}

/// Lines below `folder` that hold one of `words`, but for files named in `except`.
fn offenders(folder: &str, words: &[&str], except: &[&str]) -> Vec<String> {
    lines(folder)
        .into_iter()
        .filter(|(at, _)| !except.iter().any(|file| at.contains(file)))
        .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(at, line)| format!("{at}: {}", line.trim()))
        .collect()
}

#[track_caller]
fn none(offenders: &[String]) {
    assert!(offenders.is_empty(), "\n{}", offenders.join("\n"));
}

#[test]
fn the_rules_know_nothing_of_the_world() {
    let world = ["tokio", "tracing", "aws_", "crate::io", "crate::worker", "crate::clock", "Mutex", "RwLock"];
    none(&offenders("core", &world, &[]));
    none(&offenders(
        "core",
        &["async fn", "async move", "async {", ".await;", ".await?", "impl Future"],
        &[],
    ));
    none(&offenders("core", &["crate::config", "crate::error", "crate::processing", "crate::local"], &[]));
}

#[test]
fn the_rules_read_no_clock_and_draw_no_chance() {
    let sources = ["Instant::now", "SystemTime::now", "rand::rng", "from_os_rng", "thread_rng"];
    // Tests may start from the present.
    let code = offenders("core", &sources, &["tests.rs", "core/balance/tests/"]);
    let in_tests = |at: &String| {
        let (file, n) = at.split_once(".rs:").expect("path:line");
        let n: usize = n.split(':').next().and_then(|n| n.parse().ok()).expect("a line");
        let text = fs::read_to_string(format!("{file}.rs")).expect("readable");
        text.lines().position(|line| line.starts_with("mod tests")).is_some_and(|tests| n > tests)
    };
    none(&code.into_iter().filter(|at| !in_tests(at)).collect::<Vec<_>>());
}

/// The date is that of a record, of a first start, or of a file: whether a lease is held, and by whom, is the
/// same on hosts whose clocks differ by hours, or are set while a worker runs.
#[test]
fn no_lease_depends_on_the_date() {
    let dates = ["wall(", "clock::wall", "date(", "SystemTime"];
    none(&offenders("core", &["wall(", "clock::wall", "date("], &["update("]));
    let others = ["coordinator.rs", "upkeep.rs", "reader.rs", "health_file.rs", "reporter.rs"];
    none(&offenders("worker", &dates, &others));
}

#[test]
fn nothing_knows_the_operators_tool() {
    for layer in ["core", "io", "worker", "processing", "local"] {
        none(&offenders(layer, &["crate::cli"], &[]));
    }
    none(&offenders("cli", &["crate::processing", "crate::local"], &[]));
}

#[test]
fn the_tool_makes_aws_clients_in_one_place() {
    none(&offenders("cli", &["aws_"], &["place.rs"]));
}

#[test]
fn io_knows_no_worker() {
    none(&offenders("io", &["crate::worker", "crate::processing", "crate::config", "crate::local"], &[]));
}

#[test]
fn aws_is_named_only_in_io_and_the_builder() {
    none(&offenders("worker", &["aws_sdk", "aws_types", "aws_smithy"], &["builder.rs"]));
    none(&offenders("processing", &["aws_"], &[]));
}

#[test]
fn processing_uses_only_what_users_can_use() {
    none(&offenders("processing", &["crate::io", "crate::local", "crate::worker::s"], &[]));
}
