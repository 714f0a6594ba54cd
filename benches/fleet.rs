//! How a fleet grows: 10 to 10,000 shards with a worker for every ten, real workers on a paused clock over a
//! table in memory. Prints a table and draws `benches/fleet.svg`; the figures are in `benches/README.md`.
//!
//! `cargo bench --bench fleet`; `FLEET_SIZES=10,1000` measures these alone. The largest takes ten
//! minutes and 7 GB.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/large_fleets/stage.rs"]
mod stage;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use stage::Stage;
use tokio::time::{Instant, sleep};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1800);
/// How long a settled fleet is watched.
const CALM: Duration = Duration::from_secs(300);

/// One figure of a size.
type Figure = fn(&Row) -> f64;

/// The figures of one size.
struct Row {
    shards: usize,
    workers: usize,
    /// From the start of all workers until each lease has a holder, and to an even spread.
    begun: Duration,
    settled: Duration,
    claims_a_lease: f64,
    /// Of all kinds, won and lost, until then.
    writes_a_lease: f64,
    /// At rest.
    read_units: f64,
    writes: f64,
    moves: u64,
    /// To take in what a look showed.
    look_micros: f64,
    /// To decide what to claim.
    plan_micros: f64,
    /// Of a processor, for all that one worker does in a second.
    worker_micros: f64,
    bytes_a_row: f64,
    /// From a crash until each lease has a holder again.
    held: Duration,
    /// From a crash, and from a stop, to an even spread without that worker.
    crash: Duration,
    stop: Duration,
    join: Duration,
    join_moves: u64,
}

fn main() {
    let sizes = std::env::var("FLEET_SIZES").unwrap_or_else(|_| "10,30,100,300,1000,3000,10000".into());
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().expect("a number of shards")).collect();
    let spans = Spans::default();
    tracing_subscriber::registry().with(spans.clone()).init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    println!("| {} |\n|{}", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    let mut rows = Vec::new();
    for &shards in &sizes {
        let row = runtime.block_on(measure(shards, shards / 10, &spans));
        println!("{row}");
        rows.push(row);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/fleet.svg");
        std::fs::write(path, svg(&rows)).expect("the plot can be written");
    }
    // Not a thousand views of the table in one process, which no cache of a processor holds.
    println!("\nwith two workers: shards, µs to take a look in, µs a decision");
    for shards in sizes {
        runtime.block_on(decide(shards, &spans));
    }
}

/// What looks and decisions cost of a table of that size, at rest.
async fn decide(shards: usize, spans: &Spans) {
    let mut stage = Stage::new(shards);
    stage.config.idle_time_between_reads = 600 * SECOND;
    stage.start_all(0..2);
    stage.until("an even spread", PATIENCE, Stage::is_even).await;
    spans.forget();
    sleep(120 * SECOND).await;
    println!("| {shards} | {:.0} | {:.0} |", spans.micros("take_in"), spans.micros("plan"));
}

/// Of the table that is printed, as it stands in the README.
const COLUMNS: [&str; 16] = [
    "shards",
    "workers",
    "all held after start, s",
    "even, s",
    "claims a lease",
    "writes a lease until then",
    "read units/s a worker",
    "writes/min a lease",
    "moves at rest",
    "µs to take a look in",
    "µs a decision",
    "processor µs/s a worker",
    "bytes a row",
    "even after a join, s (moves)",
    "all held, and even, after a crash, s",
    "even after a stop, s",
];

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = |time: Duration| format!("{:.1}", time.as_secs_f64());
        let cells = [
            self.shards.to_string(),
            self.workers.to_string(),
            secs(self.begun),
            secs(self.settled),
            format!("{:.1}", self.claims_a_lease),
            format!("{:.1}", self.writes_a_lease),
            format!("{:.1}", self.read_units),
            format!("{:.1}", self.writes),
            self.moves.to_string(),
            format!("{:.0}", self.look_micros),
            format!("{:.0}", self.plan_micros),
            format!("{:.0}", self.worker_micros),
            format!("{:.0}", self.bytes_a_row),
            format!("{} ({})", secs(self.join), self.join_moves),
            format!("{}, {}", secs(self.held), secs(self.crash)),
            secs(self.stop),
        ];
        write!(f, "| {} |", cells.join(" | "))
    }
}

/// Says how far a size has got: the largest take minutes.
fn tell(shards: usize, what: &str, took: Duration) {
    eprintln!("{shards} shards: {what} after {:.1} s", took.as_secs_f64());
}

async fn measure(shards: usize, workers: usize, spans: &Spans) -> Row {
    let mut stage = Stage::new(shards);
    // Reading is not what is measured.
    stage.config.idle_time_between_reads = 600 * SECOND;
    let memory = resident_bytes();
    stage.start_all(0..workers);
    let begun = stage.until("a holder for each lease", PATIENCE, Stage::is_held).await;
    let settled = begun + stage.until("an even spread", PATIENCE, Stage::is_even).await;
    tell(shards, "even from the start", settled);
    let (claims, writes_to_settle) = (stage.calls().claims.load(Relaxed), stage.calls().writes.load(Relaxed));
    sleep(60 * SECOND).await;

    let calls = stage.calls();
    let (units, moves) = (calls.read_units(), calls.claims.load(Relaxed));
    let (since, cpu) = (Instant::now(), cpu_time());
    spans.forget();
    sleep(CALM).await;
    let (spent, calls) = (cpu_time() - cpu, stage.calls());
    let read_units = (calls.read_units() - units) / CALM.as_secs_f64() / workers as f64;
    let writes = stage.writes_since(since).1 as f64 / shards as f64 / CALM.as_secs_f64() * 60.0;
    let worker_micros = spent.as_secs_f64() * 1e6 / CALM.as_secs_f64() / workers as f64;
    let moves = calls.claims.load(Relaxed) - moves;
    let bytes_a_row = (resident_bytes() - memory).max(0.0) / (shards * workers) as f64;
    tell(shards, "watched at rest", CALM);

    let before = stage.calls().claims.load(Relaxed);
    stage.start("joiner");
    let join = stage.until("an even spread", PATIENCE, Stage::is_even).await;
    tell(shards, "even with a joiner", join);
    sleep(30 * SECOND).await;
    let join_moves = stage.calls().claims.load(Relaxed) - before;
    stage.crash("w0000").await;
    let held = stage.until("a holder for each lease", PATIENCE, Stage::is_held).await;
    let crash = held + stage.until("an even spread", PATIENCE, Stage::is_even).await;
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
        begun,
        settled,
        claims_a_lease,
        writes_a_lease: writes_to_settle as f64 / shards as f64,
        read_units,
        writes,
        moves,
        look_micros: spans.micros("take_in"),
        plan_micros: spans.micros("plan"),
        worker_micros,
        bytes_a_row,
        held,
        crash,
        stop,
        join,
        join_moves,
    }
}

/// How long looks and decisions take: the time between the events of these names.
#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<&'static str, Spent>>>);

#[derive(Debug, Default)]
struct Spent {
    entered_at: Option<std::time::Instant>,
    each: Vec<Duration>,
}

impl Spans {
    fn forget(&self) {
        self.0.lock().expect("no panic").clear();
    }

    /// The median, for the processor may have been another's in between.
    fn micros(&self, name: &str) -> f64 {
        let mut spans = self.0.lock().expect("no panic");
        let each = spans.get_mut(name).map(|spent| &mut spent.each);
        let median = each.and_then(|each| {
            each.sort_unstable();
            each.get(each.len() / 2)
        });
        median.map_or(0.0, |median| median.as_secs_f64() * 1e6)
    }
}

impl<S: Subscriber> Layer<S> for Spans {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event() && ["take_in", "taken_in", "plan", "planned"].contains(&metadata.name())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let now = real_now();
        let (what, begins) = match event.metadata().name() {
            "take_in" => ("take_in", true),
            "taken_in" => ("take_in", false),
            "plan" => ("plan", true),
            _ => ("plan", false),
        };
        let mut spans = self.0.lock().expect("no panic");
        let spent = spans.entry(what).or_default();
        match begins {
            true => spent.entered_at = Some(now),
            false => spent.each.extend(spent.entered_at.take().map(|entered| now - entered)),
        }
    }
}

/// The clock of the machine: the runtime's stands still during a decision.
#[expect(clippy::disallowed_methods, reason = "what is measured here is real")]
fn real_now() -> std::time::Instant {
    std::time::Instant::now()
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
    let series: [(&str, &str, Figure); 7] = [
        ("#d62728", "µs to take a look in", |row| row.look_micros),
        ("#e377c2", "µs a decision", |row| row.plan_micros),
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
