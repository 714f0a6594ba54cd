//! What a worker measures, on the paused clock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use kinesis_consumer::{
    Batch, Config, Failure, ShardContext, Verdict,
    io::{
        BoxError,
        faulty::{Fault, Op},
        memory::MemoryMetrics,
    },
    metrics::{Metric, MetricsError, MetricsSink, Sample},
};

use crate::world::{Running, SECOND, World, config, id, run, until};

/// Levels and lags are taken this often.
const SAMPLE: Duration = Duration::from_secs(10);

fn measured(world: &World, id: &str, config: Config) -> (Running, MemoryMetrics) {
    let metrics = MemoryMetrics::new();
    let builder = world.worker_with(id, config).metrics(Arc::new(metrics.clone()));
    (run(builder.build(world.probe()).expect("valid")), metrics)
}

#[tokio::test(start_paused = true)]
async fn records_bytes_and_batches_are_counted_by_shard() {
    let world = World::shards(2);
    world.put(0, ["a", "bc"]);
    world.put(1, ["def"]);
    let (worker, metrics) = measured(&world, "a", config());
    world.trace.wait_for_records(0, 2).await;
    world.trace.wait_for_records(1, 1).await;
    until("the first batch is done", || metrics.sum(Metric::RecordsProcessed) >= 3.0).await;
    worker.stop().await;
    assert_eq!(metrics.values_of(Metric::RecordsProcessed, &id(0)), [2.0]);
    assert_eq!(metrics.values_of(Metric::RecordsProcessed, &id(1)), [1.0]);
    assert_eq!(metrics.sum(Metric::DataBytesProcessed), 6.0);
    assert_eq!(metrics.sum(Metric::ProcessSuccess), 2.0);
    assert_eq!(metrics.values(Metric::InitializeTime).len(), 2);
    assert_eq!(metrics.values(Metric::ShutdownTime).len(), 2);
    assert_eq!(metrics.sum(Metric::StartSuccess), 1.0);
    assert_eq!(metrics.sum(Metric::TakenLeases), 2.0);
}

#[tokio::test(start_paused = true)]
async fn levels_are_those_of_the_fleet_and_end_with_the_worker() {
    let world = World::shards(4);
    let (first, of_first) = measured(&world, "a", config());
    let (second, of_second) = measured(&world, "b", config());
    until("two each", || {
        [&of_first, &of_second].iter().all(|metrics| metrics.last(Metric::CurrentLeases) == Some(2.0))
    })
    .await;
    for metrics in [&of_first, &of_second] {
        tokio::time::sleep(SAMPLE * 2).await;
        let last = |metric| metrics.last(metric).expect("taken");
        let fleet = [Metric::TotalLeases, Metric::NumWorkers, Metric::NeededLeases, Metric::UnownedLeases];
        assert_eq!(fleet.map(last), [4.0, 2.0, 0.0, 0.0]);
        assert!(last(Metric::FleetMillisBehindLatest) < 3000.0, "at the tip");
    }
    first.stop().await;
    assert_eq!(of_first.last(Metric::CurrentLeases), Some(0.0));
    assert_eq!(of_first.forgotten().len() as f64, of_first.sum(Metric::TakenLeases));
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_lag_of_a_shard_that_is_stuck_grows() {
    let world = World::shards(1);
    world.put(0, [1]);
    let metrics = MemoryMetrics::new();
    let stuck = world.probe_with(|_, _| std::future::pending());
    let builder = world.worker("a").metrics(Arc::new(metrics.clone()));
    let worker = run(builder.build(stuck).expect("valid"));
    world.trace.wait_for(0, "batch 1").await;
    tokio::time::sleep(SECOND * 95).await;
    let lag = metrics.values_of(Metric::MillisBehindLatest, &id(0));
    assert!(lag.len() >= 9 && lag.is_sorted(), "{lag:?}");
    assert!((80_000.0..100_000.0).contains(lag.last().expect("one")), "{lag:?}");
    let (worst, unwritten) = (Metric::FleetMillisBehindLatest, Metric::MillisSinceCheckpoint);
    assert_eq!(metrics.last(worst).as_ref(), lag.last());
    assert!(metrics.last(unwritten).expect("one") > 80_000.0);
    worker.crash().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_since_a_checkpoint_is_that_since_the_last_one_while_anything_waits_for_the_next() {
    let world = World::shards(1);
    world.put(0, [1, 2]);
    let (metrics, delivered) = (MemoryMetrics::new(), Arc::new(Mutex::new(None)));
    let later = world.probe_with({
        let delivered = delivered.clone();
        move |batch: Batch, context: ShardContext| {
            *delivered.lock().expect("no panic") = Some((context.acks(), batch));
            async { Ok(Verdict::AckLater) }
        }
    });
    let worker = run(world.worker("a").metrics(Arc::new(metrics.clone())).build(later).expect("valid"));
    tokio::time::sleep(60 * SECOND).await;
    let waits = || metrics.last(Metric::MillisSinceCheckpoint).expect("taken");
    assert!((45_000.0..=60_000.0).contains(&waits()), "{}", waits());
    let (acks, batch) = delivered.lock().expect("no panic").take().expect("a batch");
    acks.ack(batch.first());
    world.checkpoint_at(0, "1").await;
    tokio::time::sleep(30 * SECOND).await;
    assert!((15_000.0..=30_000.0).contains(&waits()), "{}", waits());
    acks.ack(batch.last());
    world.checkpoint_at(0, "2").await;
    tokio::time::sleep(SAMPLE).await;
    assert_eq!(waits(), 0.0);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_nobody_may_hold_is_seen_and_its_wait_is_the_applications_lag() {
    let world = World::shards(3);
    let few = Config { max_leases_for_worker: Some(2), ..config() };
    let (worker, metrics) = measured(&world, "a", few);
    until("two leases", || metrics.last(Metric::CurrentLeases) == Some(2.0)).await;
    tokio::time::sleep(SECOND * 60).await;
    let last = |metric| metrics.last(metric).expect("taken");
    let levels = [Metric::UnownedLeases, Metric::LeaseSpillover, Metric::TotalLeases];
    assert_eq!(levels.map(last), [1.0, 1.0, 3.0]);
    assert!((60_000.0..90_000.0).contains(&last(Metric::MillisUnowned)), "{}", last(Metric::MillisUnowned));
    assert_eq!(last(Metric::FleetMillisBehindLatest), last(Metric::MillisUnowned));
    assert!(last(Metric::MillisBehindLatest) < 3000.0, "the others are read");
    assert_eq!((last(Metric::ExpiredLeases), last(Metric::VeryOldLeases)), (1.0, 1.0));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_processor_shows_as_retries_and_its_records_count_once() {
    let world = World::shards(1);
    world.put(0, [1, 2]);
    let metrics = MemoryMetrics::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let failing = world.probe_with(move |_, _| {
        let try_no = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move { if try_no < 3 { Err(Failure::retry("not yet")) } else { Ok(Verdict::Done) } }
    });
    let builder = world.worker("a").metrics(Arc::new(metrics.clone()));
    let worker = run(builder.build(failing).expect("valid"));
    until("processed", || metrics.sum(Metric::RecordsProcessed) > 0.0).await;
    worker.stop().await;
    assert_eq!(metrics.sum(Metric::Retries), 3.0);
    assert_eq!(metrics.values(Metric::ProcessSuccess), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(metrics.values(Metric::ProcessRecordsTime).len(), 4);
    assert_eq!(metrics.sum(Metric::RecordsProcessed), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_given_up_at_the_stop_is_not_counted_as_processed() {
    let world = World::shards(1);
    world.put(0, [1]);
    let metrics = MemoryMetrics::new();
    let failing = world.probe_with(|_, _| async { Err(Failure::retry("never")) });
    let builder = world.worker("a").metrics(Arc::new(metrics.clone()));
    let worker = run(builder.build(failing).expect("valid"));
    until("tried", || metrics.sum(Metric::Retries) > 0.0).await;
    worker.stop().await;
    assert_eq!(metrics.sum(Metric::RecordsProcessed), 0.0);
}

#[tokio::test(start_paused = true)]
async fn pulled_shards_are_measured_from_one_batch_to_the_next() {
    let world = World::shards(1);
    world.put(0, [1, 2, 3]);
    let metrics = MemoryMetrics::new();
    let builder = world.worker("a").metrics(Arc::new(metrics.clone()));
    let (worker, mut shards) = builder.stream().expect("valid");
    let worker = run(worker);
    let mut shard = shards.next().await.expect("one");
    let kinesis_consumer::ShardEvent::Batch(batch) = shard.next().await else { panic!("no batch") };
    tokio::time::sleep(SECOND).await;
    assert_eq!(metrics.sum(Metric::RecordsProcessed), 0.0, "not acknowledged");
    shard.context().acks().ack_through(batch.last());
    assert_eq!(metrics.sum(Metric::RecordsProcessed), 3.0);
    let _ = tokio::time::timeout(SECOND, shard.next()).await;
    assert_eq!(metrics.sum(Metric::RecordsProcessed), 3.0);
    assert_eq!(metrics.values(Metric::ProcessRecordsTime), [1000.0]);
    drop(shard);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_how_they_ended() {
    let world = World::shards(1);
    let (worker, metrics) = measured(&world, "a", config());
    until("reading", || metrics.sum(Metric::GetRecordsSuccess) >= 3.0).await;
    world.faults.next(Op::ReadRecords, 1, Fault::Throttled);
    world.faults.next(Op::ListLeases, 1, Fault::Unavailable);
    until("both met", || {
        metrics.outcomes(Metric::GetRecordsTime).contains(&"throttled")
            && metrics.outcomes(Metric::ListLeasesTime).contains(&"error")
    })
    .await;
    until("a look that failed", || metrics.values(Metric::LookSuccess).contains(&0.0)).await;
    world.put(0, [1]);
    until("a renewal and a checkpoint", || {
        metrics.sum(Metric::RenewLeaseSuccess) > 0.0 && metrics.sum(Metric::UpdateLeaseSuccess) > 0.0
    })
    .await;
    worker.stop().await;
    assert_eq!(metrics.sum(Metric::TakeLeaseSuccess), 1.0);
    assert!(metrics.sum(Metric::CreateLeaseSuccess) >= 1.0 && metrics.sum(Metric::ListShardsSuccess) >= 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_handed_over_is_timed_and_one_that_is_lost_says_why() {
    let world = World::shards(2);
    let (first, of_first) = measured(&world, "a", config());
    until("both", || of_first.sum(Metric::TakenLeases) == 2.0).await;
    let (second, of_second) = measured(&world, "b", config());
    until("handed over", || of_second.sum(Metric::TakenLeases) == 1.0).await;
    let took = of_second.values(Metric::HandOverTime);
    assert!(took.len() == 1 && took[0] < 5000.0, "{took:?}");
    assert_eq!(of_first.sum(Metric::LostLeases), 0.0, "given up on request");
    let mut left = world.table.rows().into_iter().find(|row| row.owner == Some("a".into())).expect("one");
    (left.owner, left.counter) = (Some("somebody".into()), left.counter + 1);
    world.table.put_row(left);
    until("lost", || of_first.sum(Metric::LostLeases) > 0.0).await;
    assert_eq!(of_first.outcomes(Metric::LostLeases), ["stolen"]);
    second.stop().await;
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn sinks_publish_once_a_minute_and_at_the_stop() {
    let world = World::shards(1);
    let (worker, metrics) = measured(&world, "a", config());
    tokio::time::sleep(SECOND * 600).await;
    assert!((10..=11).contains(&metrics.flushes()), "{}", metrics.flushes());
    let before = metrics.flushes();
    worker.stop().await;
    assert_eq!(metrics.flushes(), before + 1);
}

/// A sink that cannot publish, for this reason, and counts how often it was asked to.
#[derive(Debug)]
struct Failing(fn(BoxError) -> MetricsError, AtomicUsize);

#[async_trait]
impl MetricsSink for Failing {
    fn record(&self, _: &Sample<'_>) {}

    async fn flush(&self) -> Result<(), MetricsError> {
        self.1.fetch_add(1, SeqCst);
        Err(self.0("no".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_values_are_tried_again_though_another_sink_refused_them_for_good() {
    let world = World::shards(1);
    let busy = Arc::new(Failing(MetricsError::Unavailable, AtomicUsize::new(0)));
    let wrong = Arc::new(Failing(MetricsError::Refused, AtomicUsize::new(0)));
    let builder = world.worker_with("a", config()).metrics(busy.clone()).metrics(wrong);
    let worker = run(builder.build(world.probe()).expect("valid"));
    world.put(0, [1]);
    world.checkpoint_at(0, "1").await;
    let before = busy.1.load(SeqCst);
    worker.stop().await;
    assert!(busy.1.load(SeqCst) > before + 1, "not tried again");
}

/// Each call takes for ever.
#[derive(Debug)]
struct Hangs;

#[async_trait]
impl MetricsSink for Hangs {
    fn record(&self, _: &Sample<'_>) {}

    async fn flush(&self) -> Result<(), MetricsError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_keeps_no_level_from_being_taken_and_no_other_sink_from_publishing() {
    let world = World::shards(3);
    let metrics = MemoryMetrics::new();
    let builder =
        world.worker_with("a", config()).metrics(Arc::new(Hangs)).metrics(Arc::new(metrics.clone()));
    let worker = run(builder.build(world.probe()).expect("valid"));
    tokio::time::sleep(SECOND * 600).await;
    assert!((9..=11).contains(&metrics.flushes()), "{}", metrics.flushes());
    let levels = metrics.values(Metric::CurrentLeases);
    assert!(levels.len() >= 55, "{} in ten minutes", levels.len());
    let before = metrics.flushes();
    worker.stop().await;
    assert_eq!(metrics.flushes(), before + 1);
    assert_eq!(metrics.last(Metric::CurrentLeases), Some(0.0), "the last values are published");
}
