//! `release` and `drain`: of holders that live, and of those that are dead.

use kinesis_consumer::{Heartbeat, Lease, io::LeaseStore, local::LocalAws};

use crate::stage::{Running, at, leasectl, lives_by_heartbeat, row, rows, store, until};

#[tokio::test]
async fn a_living_worker_hands_over_what_is_released_and_nothing_comes_twice() {
    release_and_drain(Heartbeat::Lease).await;
}

#[tokio::test]
async fn a_worker_with_a_heartbeat_hands_over_what_is_released_and_nothing_comes_twice() {
    release_and_drain(Heartbeat::Worker).await;
}

async fn release_and_drain(heartbeat: Heartbeat) {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 2);
    let worker = Running::start_with(&aws, "a", heartbeat);
    for n in 0..20 {
        aws.put("stream", &format!("key-{n}"), format!("{n}"));
    }
    until("all records", async || worker.seen().len() == 20).await;
    until("the kind of lease", async || lives_by_heartbeat(&aws).await == (heartbeat == Heartbeat::Worker))
        .await;
    let released = leasectl(&aws, "release -t app 0").await.ended(0);
    assert!(released.out.contains("handed over"), "{released:?}");
    let drained = leasectl(&aws, "drain -t app a").await.ended(0);
    assert!(drained.err.contains("stop it now"), "{drained:?}");
    for n in 20..40 {
        aws.put("stream", &format!("key-{n}"), format!("{n}"));
    }
    until("the rest", async || worker.seen().len() >= 40).await;
    worker.stop().await;
    let held = rows(&aws).await.iter().filter(|row| row.holder().is_some()).count();
    assert_eq!(held, 0, "no lease is left in the tool's name");
}

#[tokio::test]
async fn what_a_dead_worker_holds_is_taken_only_by_force() {
    let aws = LocalAws::start().await.expect("servers");
    let store = store(&aws).await;
    let dead = Lease { owner: Some("dead".into()), counter: 9, ..row(0, at(5)) };
    let willing =
        Lease { hands_over: Some("dead".into()), ..Lease { owner: dead.owner.clone(), ..row(1, at(6)) } };
    for row in [&dead, &willing, &row(2, at(7))] {
        store.create(row).await.expect("put");
    }
    let kept = leasectl(&aws, "drain -t app dead --timeout 300ms").await.ended(3);
    assert!(kept.out.contains("does not hand over") && kept.out.contains("in time"), "{kept:?}");
    assert_eq!(rows(&aws).await[..2], [dead.clone(), willing.clone()], "nothing is left behind");
    leasectl(&aws, "drain -t app dead --timeout 300ms --force").await.ended(0);
    let free = rows(&aws).await;
    assert_eq!((free[0].holder(), free[0].counter, &free[0].checkpoint), (None, 10, &at(5)));
    assert_eq!((free[1].holder(), free[1].checkpoint_owner.clone(), free[1].counter), (None, None, 1));
    leasectl(&aws, "drain -t app dead").await.ended(4);
}
