//! Proof that each rule of the end of a run can speak: worlds without faults that do not come to rest, do more than
//! they need to while they rest, or do not end cleanly.

use std::time::Duration;

use kinesis_consumer::{
    Checkpoint, Lease,
    io::{RecordSource, StartFrom, memory::Limits},
};
use tokio::{task::JoinSet, time::sleep};

use super::{
    fleet::{Setup, World},
    sabotage::{Liar, Lie, SECOND, calm, said_of, says},
    script::{Script, Step},
};

fn lied_to_by(lie: Lie) -> impl FnOnce(&mut World) {
    move |world| world.store = Liar::of(world, lie)
}

fn with(script: &Script, change: impl FnOnce(&mut Setup)) -> Script {
    let mut script = script.clone();
    change(&mut script.setup);
    script
}

#[tokio::test(start_paused = true)]
async fn a_calm_script_comes_to_rest_and_ends_cleanly() {
    assert_eq!(said_of(&calm(), |_| ()).await, "");
}

#[tokio::test(start_paused = true)]
async fn leases_that_somebody_frees_again_and_again_are_caught() {
    let restless = |world: &mut World| {
        let (table, observer) = (world.table.clone(), world.observer.clone());
        world.beside(async move {
            loop {
                sleep(SECOND).await;
                let Some(row) = table.rows().into_iter().next() else { continue };
                let row = Lease { owner: None, checkpoint_owner: None, counter: row.counter + 1, ..row };
                observer.row_edited(&row.key.shard(), row.counter, false);
                table.put_row(row);
            }
        });
    };
    says(&said_of(&calm(), restless).await, "leases still move at rest");
}

/// One worker dies in the fifth second of a calm script.
fn with_a_death(change: impl FnOnce(&mut Setup)) -> Script {
    Script { workers: 3, steps: vec![(5000, Step::Crash { nth: 0, back: None })], ..with(&calm(), change) }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_does_not_leave_those_who_come_back_their_time_is_caught() {
    let grace = with_a_death(|setup| setup.config.rejoin_grace = 3 * SECOND);
    assert_eq!(said_of(&grace, |_| ()).await, "");
    let impatient = |world: &mut World| world.setup.config.rejoin_grace = Duration::ZERO;
    says(&said_of(&grace, impatient).await, "before w1 had the time to come back");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_waits_for_longer_than_it_should_for_those_who_do_not_come_back_is_caught() {
    let no_grace = with_a_death(|_| ());
    assert_eq!(said_of(&no_grace, |_| ()).await, "");
    let patient = |world: &mut World| world.setup.config.rejoin_grace = 60 * SECOND;
    says(&said_of(&no_grace, patient).await, "s without faults: [(shardId-");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_nobody_takes_is_caught() {
    let left_over = |world: &mut World| {
        let table = world.table.clone();
        let stream = Some("arn:aws:kinesis:eu-west-1:123456789012:stream/another:1700000000".into());
        world.beside(async move {
            sleep(3 * SECOND).await;
            let row = Lease::new(&"shardId-000000000777".into(), Checkpoint::TrimHorizon);
            table.put_row(Lease { stream, ..row });
        });
    };
    says(&said_of(&calm(), left_over).await, "the leases are not spread evenly at rest");
}

/// The second never gets beyond its first call; that it works is made up.
#[tokio::test(start_paused = true)]
async fn two_workers_of_one_id_that_stay_are_caught() {
    let twins = |world: &mut World| {
        world.start("twin");
        let hangs = Liar::of(world, Lie::Hangs);
        let usual = std::mem::replace(&mut world.store, hangs);
        let second = world.start("twin");
        world.store = usual;
        world.observer.lock().instances[second].processors.insert("shardId-000000000777".into(), 1);
    };
    says(&said_of(&calm(), twins).await, "two workers with one id still run at rest");
}

#[tokio::test(start_paused = true)]
async fn workers_that_look_or_call_more_often_than_their_settings_say_are_caught() {
    let eight = Script { setup: Setup::new(5, 8), ..calm() };
    let seldom = with(&eight, |setup| {
        setup.config.failover_time = 20 * SECOND;
        setup.config.idle_time_between_reads = SECOND;
    });
    let often = |world: &mut World| world.setup.config.failover_time = SECOND;
    says(&said_of(&seldom, often).await, "times in 60s at rest, at most");
    let seldom = Script { setup: Setup::new(5, 16), ..calm() };
    let seldom = with(&seldom, |setup| setup.config.idle_time_between_reads = SECOND);
    let often = |world: &mut World| world.setup.config.idle_time_between_reads = SECOND / 5;
    says(&said_of(&seldom, often).await, "calls in 6s at rest, at most");
}

#[tokio::test(start_paused = true)]
async fn reads_beyond_the_limits_of_a_shard_are_caught() {
    let limited = with(&calm(), |setup| setup.limits = Limits::aws());
    assert_eq!(said_of(&limited, |_| ()).await, "");
    let another_reads = |world: &mut World| {
        let stream = world.stream.clone();
        let shard = stream.open_shards()[0].id.clone();
        world.beside(async move {
            loop {
                let iterator = stream.open(&shard, &StartFrom::Latest).await.expect("an iterator");
                drop(stream.read(&shard, &iterator, 1).await);
                sleep(Duration::from_millis(400)).await;
            }
        });
    };
    says(&said_of(&limited, another_reads).await, "fleet is refused ");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_does_not_end_or_leaves_something_behind_is_caught() {
    let far_away = with(&calm(), |setup| setup.latency = 100);
    let stands_still = |world: &mut World| {
        let no = world.start("a");
        let (observer, freezer) = (world.observer.clone(), world.instances[no].seat.freezer.clone());
        world.beside(async move {
            while !observer.lock().instances[no].stopping {
                sleep(SECOND / 1000).await;
            }
            freezer.freeze();
        });
    };
    says(&said_of(&far_away, stands_still).await, "a worker has not stopped within");
    says(&said_of(&calm(), lied_to_by(Lie::NoReleases)).await, "still has a holder after a clean stop");
    let forgets = |world: &mut World| {
        let (table, observer) = (world.table.clone(), world.observer.clone());
        world.beside(async move {
            let row = loop {
                sleep(SECOND / 1000).await;
                let row = table.rows().into_iter().next().filter(|row| row.holder().is_none());
                let stops = observer.lock().instances.iter().all(|instance| instance.stopping);
                if let Some(row) = row.filter(|_| stops) {
                    break row;
                }
            };
            table.put_row(Lease { checkpoint: Checkpoint::TrimHorizon, ..row });
        });
    };
    says(&said_of(&calm(), forgets).await, "is at 0 of ");
    says(&said_of(&calm(), forgets).await, " after a clean stop");
    says(&said_of(&calm(), lied_to_by(Lie::NoCheckpoints)).await, " was acknowledged");
    let forgotten = |_: &mut World| {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending::<()>());
        std::mem::forget(tasks);
    };
    says(&said_of(&calm(), forgotten).await, "tasks are left when everything has ended");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_is_caught() {
    super::super::quiet();
    says(&said_of(&calm(), lied_to_by(Lie::Panics)).await, "a worker panicked");
}
