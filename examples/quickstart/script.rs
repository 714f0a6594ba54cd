//! What happens, in order, and the verdict.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use crate::{
    BoxError,
    cloud::Cloud,
    ledger::{Ledger, State},
    screen::{Screen, Sign, numbers},
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
const PAUSE: Duration = Duration::from_secs(8);

/// What the script measured; none if it never happened.
#[derive(Default)]
struct Times {
    kill: Option<Duration>,
    term: Option<Duration>,
    doubled: Option<Duration>,
    /// The server cannot do it.
    never_doubled: bool,
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
    let can_split = stage.during(cloud.can_split()).await?;
    if !can_split {
        stage.screen.say("this server puts records into shards that were split: no doubling here")?;
    }
    let shards = stage.during(cloud.create_stream(SHARDS)).await?;
    stage.ledger.expect_shards(&shards);
    stage.start_producer(cloud);
    stage.screen.say(&format!("three workers start on stream {} with {SHARDS} shards", cloud.stream()))?;
    let at = stage.screen.elapsed();
    for name in ["w1", "w2", "w3"] {
        stage.start(name, cloud)?;
    }
    stage.until(PATIENCE, |stage| stage.ledger.is_even()).await?.ok_or("shards stay unread")?;
    let even = seconds(stage.screen.elapsed() - at);
    stage.screen.say(&format!("each shard is read, evenly spread, after {even}"))?;
    stage.play(PAUSE).await?;

    let shards = stage.ledger.shards_of("w1");
    stage.screen.say(&format!("kill -9 w1, which reads shards {}", numbers(&shards)))?;
    let at = stage.screen.elapsed();
    stage.kill("w1")?;
    times.kill = taken_over(stage, &shards, at).await?;
    stage.play(PAUSE).await?;

    stage.screen.say("another worker starts: w4")?;
    let at = stage.screen.elapsed();
    stage.start("w4", cloud)?;
    stage.until(PATIENCE, |stage| stage.ledger.is_even()).await?.ok_or("w4 gets no share")?;
    stage.screen.say(&format!("evenly spread again after {}", seconds(stage.screen.elapsed() - at)))?;
    stage.play(PAUSE).await?;

    times.never_doubled = !can_split;
    if can_split {
        times.doubled = double(stage, cloud).await?;
        stage.play(PAUSE).await?;
    }

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

/// Doubles the shards; returns how long it took until all children were read.
async fn double(stage: &mut Stage, cloud: &Cloud) -> Result<Option<Duration>, BoxError> {
    let twice = SHARDS * 2;
    stage.screen.say(&format!("from {SHARDS} to {twice} shards: all parents end, children begin"))?;
    let at = stage.screen.elapsed();
    let children = stage.during(cloud.set_shards(twice)).await?;
    stage.ledger.expect_shards(&children);
    if stage.until(PATIENCE, |stage| stage.ledger.are_read(&children)).await?.is_none() {
        stage.screen.say("not all children are read")?;
        return Ok(None);
    }
    let took = stage.screen.elapsed() - at;
    stage.screen.say(&format!("all {} children are read after {}", children.len(), seconds(took)))?;
    Ok(Some(took))
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
    let zero = |count: usize| if count == 0 { Sign::Good } else { Sign::Bad };
    let (lost, order) = (ledger.lost(), ledger.out_of_order);
    screen.say("verdict")?;
    screen.figure(Sign::None, "records put", &ledger.put.to_string(), "")?;
    screen.figure(Sign::None, "records processed", &ledger.processed.to_string(), "")?;
    screen.figure(zero(lost), "lost", &lost.to_string(), "must be 0")?;
    screen.figure(zero(order), "out of order", &order.to_string(), "must be 0")?;
    let killed = ledger.repeats_of_killed;
    let why = format!("{killed} after the kill, {} as shards moved", ledger.repeats - killed);
    screen.figure(Sign::None, "processed again", &ledger.repeats.to_string(), &why)?;
    let rows = [
        ("kill -9 to all shards read", times.kill, Some(KILL_LIMIT)),
        ("SIGTERM to all shards read", times.term, Some(TERM_LIMIT)),
        ("doubling to all children read", times.doubled, None),
    ];
    let mut passed = lost == 0 && order == 0;
    for (what, took, limit) in rows {
        let sign = match (took, limit) {
            (None, None) if times.never_doubled => continue,
            (None, _) => Sign::Bad,
            (Some(took), Some(limit)) if took > limit => Sign::Late,
            (Some(_), Some(_)) => Sign::Good,
            (Some(_), None) => Sign::None,
        };
        passed &= sign != Sign::Bad;
        let figure = took.map_or_else(|| "never".to_owned(), seconds);
        let limit = limit.map(|limit| format!("at most {}", seconds(limit))).unwrap_or_default();
        screen.figure(sign, what, &figure, &limit)?;
    }
    Ok(passed)
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
