//! How a fleet grows: 10 to 10,000 shards with a worker for every ten, real workers on a paused clock over a
//! table in memory. Prints a table and draws `benches/fleet.svg`; the figures are in `benches/README.md`.
//!
//! `cargo bench --bench fleet`; `FLEET_MOST=1000` stops there. The largest takes some minutes and 12 GB.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/large_fleets/stage.rs"]
mod stage;

use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed, time::Duration};

use stage::Stage;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1800);
/// How long a settled fleet is watched.
const CALM: Duration = Duration::from_secs(60);

/// One figure of a size.
type Figure = fn(&Row) -> f64;

/// The figures of one size.
struct Row {
    shards: usize,
    workers: usize,
    /// From the start of all workers to an even spread.
    settled: Duration,
    claims_a_lease: f64,
    /// Of all kinds, won and lost, until then.
    writes_a_lease: f64,
    /// At rest.
    read_units: f64,
    writes: f64,
    moves: u64,
    /// Of a processor, for each look at rest, what else the worker does included.
    look_micros: f64,
    bytes_a_row: f64,
    /// From a crash, and from a stop, to an even spread without that worker.
    crash: Duration,
    stop: Duration,
    join: Duration,
    join_moves: u64,
}

fn main() {
    let most = std::env::var("FLEET_MOST").ok().and_then(|most| most.parse().ok()).unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    println!(
        "shards workers | settled s, claims and writes a lease | at rest: read units/s a worker, writes/min a lease, \
         moves, µs a look | bytes a row | even again s after: crash, stop, join (moves)"
    );
    let mut rows = Vec::new();
    for shards in [10, 30, 100, 300, 1000, 3000, 10_000].into_iter().filter(|shards| *shards <= most) {
        let row = runtime.block_on(measure(shards, shards / 10));
        println!(
            "{:6} {:7} | {:5.1} {:4.1} {:4.1} | {:5.2} {:5.2} {} {:7.0} | {:4.0} | {:5.1} {:5.1} {:5.1} ({})",
            row.shards,
            row.workers,
            row.settled.as_secs_f64(),
            row.claims_a_lease,
            row.writes_a_lease,
            row.read_units,
            row.writes,
            row.moves,
            row.look_micros,
            row.bytes_a_row,
            row.crash.as_secs_f64(),
            row.stop.as_secs_f64(),
            row.join.as_secs_f64(),
            row.join_moves,
        );
        rows.push(row);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/fleet.svg");
        std::fs::write(path, svg(&rows)).expect("the plot can be written");
    }
}

/// Says how far a size has got: the largest take minutes.
fn tell(shards: usize, what: &str, took: Duration) {
    eprintln!("{shards} shards: {what} after {:.1} s", took.as_secs_f64());
}

async fn measure(shards: usize, workers: usize) -> Row {
    let mut stage = Stage::new(shards);
    // Reading is not what is measured.
    stage.config.idle_time_between_reads = 600 * SECOND;
    let memory = resident_bytes();
    stage.start_all(0..workers);
    let settled = stage.until("an even spread", PATIENCE, Stage::is_even).await;
    tell(shards, "even from the start", settled);
    let (claims, writes_to_settle) = (stage.calls().claims.load(Relaxed), stage.calls().writes.load(Relaxed));
    sleep(60 * SECOND).await;

    let calls = stage.calls();
    let (units, looks, moves) = (calls.read_units(), calls.looks.load(Relaxed), calls.claims.load(Relaxed));
    let (since, cpu) = (Instant::now(), cpu_time());
    sleep(CALM).await;
    let (spent, calls) = (cpu_time() - cpu, stage.calls());
    let read_units = (calls.read_units() - units) / CALM.as_secs_f64() / workers as f64;
    let writes = stage.writes_since(since).1 as f64 / shards as f64 / CALM.as_secs_f64() * 60.0;
    let look_micros = spent.as_secs_f64() * 1e6 / (calls.looks.load(Relaxed) - looks).max(1) as f64;
    let moves = calls.claims.load(Relaxed) - moves;
    let bytes_a_row = (resident_bytes() - memory).max(0.0) / (shards * workers) as f64;
    tell(shards, "watched at rest", CALM);

    let before = stage.calls().claims.load(Relaxed);
    stage.start("joiner");
    let join = stage.until("an even spread", PATIENCE, Stage::is_even).await;
    let join_moves = stage.calls().claims.load(Relaxed) - before;
    tell(shards, "even with a joiner", join);
    sleep(30 * SECOND).await;
    stage.crash("w0000").await;
    let crash = stage.until("an even spread", PATIENCE, Stage::is_even).await;
    tell(shards, "even without a crashed one", crash);
    sleep(30 * SECOND).await;
    stage.stop("joiner").await;
    let stop = match workers {
        1 => Duration::ZERO,
        _ => stage.until("an even spread", PATIENCE, Stage::is_even).await,
    };
    let claims_a_lease = claims as f64 / shards as f64;
    Row {
        shards,
        workers,
        settled,
        claims_a_lease,
        writes_a_lease: writes_to_settle as f64 / shards as f64,
        read_units,
        writes,
        moves,
        look_micros,
        bytes_a_row,
        crash,
        stop,
        join,
        join_moves,
    }
}

/// The time that this thread has had a processor, by the kernel; 0 where it does not say.
fn cpu_time() -> Duration {
    let nanos = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = nanos.and_then(|text| text.split(' ').next()?.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Memory in use, by the kernel; 0 where it does not say.
fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}

/// A log-log plot of the figures that grow.
fn svg(rows: &[Row]) -> String {
    let (width, height, left, bottom) = (760.0, 420.0, 60.0, 370.0);
    let x = |shards: f64| left + (shards.log10() - 1.0) / 3.0 * 480.0;
    // From 0.1 to 100,000.
    let y = |value: f64| bottom - (value.max(0.1).log10() + 1.0) / 6.0 * 340.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for power in 1..=4 {
        let at = x(10f64.powi(power));
        let _ = writeln!(
            out,
            "<line x1=\"{at}\" y1=\"30\" x2=\"{at}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text x=\"{at}\" y=\"{}\" \
             text-anchor=\"middle\">{} shards</text>",
            bottom + 18.0,
            10u32.pow(power as u32)
        );
    }
    for power in -1..=5 {
        let at = y(10f64.powi(power));
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" y1=\"{at}\" x2=\"540\" y2=\"{at}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{}\" \
             text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            10f64.powi(power)
        );
    }
    let series: [(&str, &str, Figure); 6] = [
        ("#d62728", "µs a look", |row| row.look_micros),
        ("#1f77b4", "read units/s a worker", |row| row.read_units),
        ("#2ca02c", "writes/min a lease", |row| row.writes),
        ("#8c564b", "s to even after the start", |row| row.settled.as_secs_f64()),
        ("#9467bd", "s to even after a crash", |row| row.crash.as_secs_f64()),
        ("#ff7f0e", "s to even after a join", |row| row.join.as_secs_f64()),
    ];
    for (n, (colour, name, value)) in series.into_iter().enumerate() {
        let points: Vec<String> =
            rows.iter().map(|row| format!("{:.1},{:.1}", x(row.shards as f64), y(value(row)))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"556\" \
             y=\"{}\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            60 + 20 * n
        );
    }
    out + "</svg>\n"
}
