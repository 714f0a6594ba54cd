//! What happens, in order, and the verdict.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use crate::{
    BoxError,
    cloud::Cloud,
    ledger::{Ledger, State},
    screen::{Screen, numbers},
    stage::Stage,
};

const SHARDS: i32 = 8;
/// The worker's default `failover_time` (10 s) and one look at the lease table.
const KILL_LIMIT: Duration = Duration::from_millis(11_500);
/// One look at the lease table.
const TERM_LIMIT: Duration = Duration::from_millis(1_500);
/// After this a step counts as impossible.
const PATIENCE: Duration = Duration::from_secs(45);
/// To look at the screen between steps.
const PAUSE: Duration = Duration::from_secs(5);

/// What the script measured; none if it never happened.
#[derive(Default)]
struct Times {
    kill: Option<Duration>,
    term: Option<Duration>,
    doubled: Option<Duration>,
}

/// Plays the script; fails if a record was lost or out of order, or shards were left unread.
pub(crate) async fn run() -> Result<ExitCode, BoxError> {
    if cfg!(not(unix)) {
        return Err("this example kills and stops processes with Unix signals".into());
    }
    let cloud = Cloud::open().await?;
    let mut stage = Stage::new()?;
    let played = play(&mut stage, &cloud).await;
    // Whatever happened: no process, stream or table stays behind.
    let (ledger, mut screen) = stage.end().await;
    let closed = cloud.close().await;
    if let Err(error) = closed {
        screen.say(&format!("not all is cleaned up: {error}"))?;
    }
    let passed = verdict(&ledger, &mut screen, &played?)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play(stage: &mut Stage, cloud: &Cloud) -> Result<Times, BoxError> {
    let mut times = Times::default();
    stage.screen.say(&cloud.describe())?;
    let shards = stage.during(cloud.create_stream(SHARDS)).await?;
    stage.ledger.expect_shards(&shards);
    stage.start_producer(cloud);
    for name in ["w1", "w2", "w3"] {
        stage.start(name, cloud)?;
    }
    stage.screen.say(&format!("three workers start on stream {} with {SHARDS} shards", cloud.stream()))?;
    let even = stage.until(PATIENCE, |stage| stage.ledger.is_even()).await?.ok_or("shards stay unread")?;
    stage.screen.say(&format!("each shard is read, evenly spread, after {}", seconds(even)))?;
    stage.play(PAUSE).await?;

    let shards = stage.ledger.shards_of("w1");
    stage.screen.say(&format!("kill -9 w1, which reads shards {}", numbers(&shards)))?;
    let at = stage.screen.elapsed();
    stage.kill("w1")?;
    times.kill = taken_over(stage, &shards, at).await?;
    stage.play(PAUSE).await?;

    stage.start("w4", cloud)?;
    stage.screen.say("another worker starts: w4")?;
    let even = stage.until(PATIENCE, |stage| stage.ledger.is_even()).await?.ok_or("w4 gets no share")?;
    stage.screen.say(&format!("evenly spread again after {}", seconds(even)))?;
    stage.play(PAUSE).await?;

    let twice = SHARDS * 2;
    stage.screen.say(&format!("from {SHARDS} to {twice} shards: all parents end, children begin"))?;
    let asked = stage.screen.elapsed();
    let children = stage.during(cloud.set_shards(twice)).await?;
    stage.ledger.expect_shards(&children);
    if stage.until(PATIENCE, |stage| stage.ledger.are_read(&children)).await?.is_some() {
        let took = stage.screen.elapsed() - asked;
        stage.screen.say(&format!("all {} children are read after {}", children.len(), seconds(took)))?;
        times.doubled = Some(took);
    }
    stage.play(PAUSE).await?;

    let shards = stage.ledger.shards_of("w2");
    stage.screen.say(&format!("SIGTERM to w2, which reads shards {}", numbers(&shards)))?;
    let at = stage.screen.elapsed();
    stage.terminate("w2").await?;
    times.term = taken_over(stage, &shards, at).await?;
    stage.play(PAUSE).await?;

    stage.stop_producer();
    let drained = |stage: &Stage| stage.all_is_put() && stage.ledger.lost() == 0;
    let drained = stage.until(PATIENCE, drained).await?;
    stage.screen.say(&match drained {
        Some(took) => format!("the producer has stopped; all is processed {} later", seconds(took)),
        None => "the producer has stopped; not all is processed".to_owned(),
    })?;
    let left: Vec<String> = stage.ledger.running().cloned().collect();
    for name in &left {
        stage.terminate(name).await?;
    }
    let stopped = |stage: &Stage| stage.ledger.workers.values().all(|w| w.state != State::Stopping);
    stage.until(PATIENCE, stopped).await?.ok_or("workers do not stop")?;
    Ok(times)
}

/// Waits until all these shards are read again, which must be by others; returns the time since `at`.
async fn taken_over(
    stage: &mut Stage,
    shards: &BTreeSet<String>,
    at: Duration,
) -> Result<Option<Duration>, BoxError> {
    if stage.until(PATIENCE, |stage| stage.ledger.are_read(shards)).await?.is_none() {
        stage.screen.say("its shards stay unread")?;
        return Ok(None);
    }
    let took = stage.screen.elapsed() - at;
    stage.screen.say(&format!("its shards are read by others after {}", seconds(took)))?;
    Ok(Some(took))
}

fn verdict(ledger: &Ledger, screen: &mut Screen, times: &Times) -> Result<bool, BoxError> {
    let (lost, order) = (ledger.lost(), ledger.out_of_order);
    screen.say("verdict")?;
    screen.verdict("records put", &ledger.put.to_string(), "", true)?;
    screen.verdict("records processed", &ledger.processed.to_string(), "", true)?;
    screen.verdict("lost", &lost.to_string(), "must be 0", lost == 0)?;
    screen.verdict("out of order", &order.to_string(), "must be 0", order == 0)?;
    let why = format!(
        "{} of them the killed worker had processed after its last checkpoint",
        ledger.repeats_of_killed
    );
    screen.verdict("processed again", &ledger.repeats.to_string(), &why, true)?;
    for (what, took, limit) in [
        ("kill -9 to shards read by others", times.kill, Some(KILL_LIMIT)),
        ("SIGTERM to shards read by others", times.term, Some(TERM_LIMIT)),
        ("doubling to all children read", times.doubled, None),
    ] {
        let good = took.is_some_and(|took| limit.is_none_or(|limit| took <= limit));
        let figure = took.map_or_else(|| "never".to_owned(), seconds);
        let limit = limit.map(|limit| format!("at most {}", seconds(limit))).unwrap_or_default();
        screen.verdict(what, &figure, &limit, good)?;
    }
    let happened = times.kill.is_some() && times.term.is_some() && times.doubled.is_some();
    Ok(lost == 0 && order == 0 && happened)
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
