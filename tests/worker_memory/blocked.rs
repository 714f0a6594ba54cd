//! User's code that blocks its thread, on real threads and the real clock. How long anything takes is not looked at:
//! each worker waits for what the other does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use kinesis_consumer::{Batch, Config, Event, ShardContext, Verdict};

use crate::world::{SECOND, World, config, event, run, until};

/// Short, for this is the real clock.
fn short() -> Config {
    Config { failover_time: SECOND, ..config() }
}

/// F7: the thread is the only one of its worker, so nothing renews its leases meanwhile.
#[test]
fn code_that_blocks_its_workers_only_thread_until_its_leases_are_taken_is_dropped_and_not_finished() {
    let world = Arc::new(World::shards(2));
    world.put(0, ["blocks"]);
    let (unblock, blocked) = mpsc::channel::<()>();
    let (blocked, entered) = (Arc::new(Mutex::new(blocked)), Arc::new(AtomicBool::new(false)));
    let finished = Arc::new(AtomicBool::new(false));
    let handler = {
        let (entered, finished) = (entered.clone(), finished.clone());
        move |_: Batch, _: ShardContext| {
            let (blocked, entered, finished) = (blocked.clone(), entered.clone(), finished.clone());
            async move {
                if !entered.swap(true, SeqCst) {
                    blocked.lock().expect("no panic").recv().expect("the other end");
                    tokio::task::yield_now().await;
                    finished.store(true, SeqCst);
                }
                Ok(Verdict::Done)
            }
        }
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let first = {
        let world = world.clone();
        thread::spawn(move || {
            runtime().block_on(async {
                let worker =
                    run(world.worker_with("a", short()).build(world.probe_with(handler)).expect("valid"));
                let mut events = worker.handle.events();
                let lost = |event| matches!(event, Event::LeaseLost { .. }).then_some(());
                event(&mut events, lost).await;
                event(&mut events, lost).await;
                stopped.await.expect("the other end");
                worker.stop().await;
            });
        })
    };
    runtime().block_on(async {
        until("the code blocks", || entered.load(SeqCst)).await;
        let worker = run(world.worker_with("b", short()).build(world.probe()).expect("valid"));
        until("both leases taken over", || world.owners() == ["b", "b"]).await;
        world.trace.wait_for_records(0, 2).await;
        unblock.send(()).expect("it waits");
        until("a share of its own again", || world.owners().contains(&"a".to_owned())).await;
        stop.send(()).expect("it waits");
        worker.stop().await;
    });
    first.join().expect("no panic");
    assert!(!finished.load(SeqCst), "it went on after its lease had been taken");
}

/// F7: of two threads one is left to renew the leases, also that of the shard whose code blocks.
#[test]
fn code_that_blocks_one_of_two_threads_loses_no_lease() {
    let world = Arc::new(World::shards(2));
    world.put(0, ["first", "second"]);
    let (unblock, blocked) = mpsc::channel::<()>();
    let (blocked, entered) = (Arc::new(Mutex::new(blocked)), Arc::new(AtomicBool::new(false)));
    let handler = {
        let entered = entered.clone();
        move |_: Batch, _: ShardContext| {
            let (blocked, entered) = (blocked.clone(), entered.clone());
            async move {
                entered.store(true, SeqCst);
                // With an end, so that a test that fails ends, too.
                blocked.lock().expect("no panic").recv_timeout(20 * SECOND)?;
                Ok(Verdict::Done)
            }
        }
    };
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    threads.expect("a runtime").block_on(async {
        let config = Config { max_records: 1, ..short() };
        let worker = run(world.worker_with("a", config).build(world.probe_with(handler)).expect("valid"));
        for _ in 0..2 {
            until("the code blocks", || entered.swap(false, SeqCst)).await;
            let before = world.row(0).counter;
            until("renewals", || world.row(0).counter >= before + 4).await;
            unblock.send(()).expect("it waits");
        }
        world.checkpoint_at(0, "second").await;
        assert_eq!(worker.stop().await.lost, []);
    });
    assert_eq!(world.trace.records(0), ["first", "second"]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
