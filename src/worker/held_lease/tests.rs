use std::{
    collections::BTreeSet,
    future::pending,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use tokio::task::JoinSet;

use super::*;
use crate::{
    core::{lease::Checkpoint, shard::Position},
    io::{
        faulty::{Fault, Faults, FaultyLeaseStore, Op},
        memory::MemoryLeaseStore,
    },
};

const FAILOVER: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// A lease of worker `me`, the table that it is in, and the faults on the way there.
struct Held {
    table: MemoryLeaseStore,
    faults: Faults,
    lease: Arc<HeldLease>,
}

fn taker(store: &Arc<dyn LeaseStore>) -> Taker {
    Taker { me: "me".into(), store: store.clone(), failover_time: FAILOVER, heart: None }
}

async fn held() -> Held {
    held_in(table(), None).await
}

/// A lease that lives by the heartbeat of its worker, and that heartbeat.
async fn living() -> (Held, Arc<Heart>) {
    let (table, heart) = (table(), Arc::new(Heart::default()));
    beat(&heart, &table).await;
    (held_in(table, Some(heart.clone())).await, heart)
}

/// Begins the next incarnation.
async fn beat(heart: &Heart, table: &MemoryLeaseStore) -> Arc<Pulse> {
    heart.begin(&"me".into(), 1, table, FAILOVER).await.expect("no error").expect("not late")
}

fn table() -> MemoryLeaseStore {
    let table = MemoryLeaseStore::new();
    table.put_row(Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon));
    table
}

async fn held_in(table: MemoryLeaseStore, heart: Option<Arc<Heart>>) -> Held {
    let faults = Faults::new(1);
    let store: Arc<dyn LeaseStore> = Arc::new(FaultyLeaseStore::new(table.clone(), faults.clone()));
    let row = table.rows().remove(0);
    let claimed = HeldLease::claim(&row, &Taker { heart, ..taker(&store) }).await;
    let (_, lease) = claimed.expect("no error").expect("won");
    Held { table, faults, lease: Arc::new(lease) }
}

impl Held {
    fn row(&self) -> Lease {
        self.table.rows().remove(0)
    }

    async fn renew(&self) -> Result<(), WriteError> {
        self.lease.write(|tenure| Ok(tenure.renewal())).await
    }

    async fn checkpoint(&self, number: u64) -> Result<(), WriteError> {
        self.lease.write(|tenure| tenure.checkpoint(at(number))).await
    }

    /// Another worker takes the lease.
    async fn steal(&self) {
        self.table.write(&self.row().claim(&"thief".into())).await.expect("nobody else writes");
    }
}

fn at(number: u64) -> Checkpoint {
    Checkpoint::At(Position::at(number.to_string().parse().expect("digits")))
}

fn lost(result: Result<(), WriteError>) -> LeaseLost {
    match result {
        Err(WriteError::Lost(why)) => why,
        other => panic!("not lost: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_reply_was_lost_is_a_holding() {
    let table = MemoryLeaseStore::new();
    let row = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    table.put_row(row.clone());
    let faults = Faults::new(1);
    faults.next(Op::WriteLease, 1, Fault::LostReply);
    let store: Arc<dyn LeaseStore> = Arc::new(FaultyLeaseStore::new(table.clone(), faults));
    let claimed = HeldLease::claim(&row, &taker(&store)).await;
    let (row, _) = claimed.expect("no error").expect("won");
    assert_eq!([row], table.rows()[..]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_another_worker_beat_is_a_lost_race() {
    let table = MemoryLeaseStore::new();
    let row = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    table.put_row(row.after(&row.claim(&"thief".into())));
    let store: Arc<dyn LeaseStore> = Arc::new(table);
    assert!(HeldLease::claim(&row, &taker(&store)).await.expect("no error").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_reply_was_lost_is_recognised_by_the_next_one() {
    let held = held().await;
    held.faults.next(Op::WriteLease, 1, Fault::LostReply);
    assert!(matches!(held.renew().await, Err(WriteError::Unavailable(_))));
    held.renew().await.expect("the first was ours");
    assert_eq!(held.lease.row().await, held.row());
    held.renew().await.expect("the counter is known again");
    assert_eq!(held.lease.why_lost(), None);
}

#[tokio::test(start_paused = true)]
async fn many_lost_replies_in_a_row_are_recognised() {
    let held = held().await;
    held.faults.next(Op::WriteLease, 1, Fault::Unavailable);
    held.faults.next(Op::WriteLease, 1, Fault::LostReply);
    for _ in 0..2 {
        assert!(matches!(held.renew().await, Err(WriteError::Unavailable(_))));
    }
    // The reply to the reading back may be lost too.
    held.faults.next(Op::GetLease, 2, Fault::LostReply);
    for _ in 0..2 {
        assert!(matches!(held.renew().await, Err(WriteError::Unavailable(_))));
    }
    held.checkpoint(5).await.expect("still ours");
    assert_eq!(held.row().checkpoint, at(5));
    assert_eq!(held.lease.row().await, held.row());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_reply_was_lost_is_success_and_is_not_written_again() {
    let held = held().await;
    held.faults.next(Op::WriteLease, 1, Fault::LostReply);
    assert!(matches!(held.checkpoint(7).await, Err(WriteError::Unavailable(_))));
    let written = held.row();
    assert_eq!(written.checkpoint, at(7));
    held.checkpoint(7).await.expect("success");
    assert_eq!(held.row(), written, "recognised, not repeated");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_in_doubt_beside_a_renewal_in_doubt_is_never_written_back() {
    for checkpoint_first in [true, false] {
        let held = held().await;
        let (first, second) = (Fault::Unavailable, Fault::LostReply);
        if checkpoint_first {
            held.faults.next(Op::WriteLease, 1, second);
            held.faults.next(Op::WriteLease, 1, Fault::Delay(FAILOVER / 10));
            held.checkpoint(7).await.expect_err("no reply");
            let dropped = tokio::time::timeout(FAILOVER / 20, held.renew()).await;
            dropped.expect_err("given up before it is sent");
        } else {
            held.faults.next(Op::WriteLease, 1, first);
            held.faults.next(Op::WriteLease, 1, second);
            held.renew().await.expect_err("no reply");
            held.checkpoint(7).await.expect_err("no reply");
        }
        let back = held.checkpoint(5).await;
        assert!(matches!(back, Err(WriteError::GoesBack(_))), "{checkpoint_first}: {back:?}");
        assert_eq!(held.row().checkpoint, at(7));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_left_is_not_renewed_though_a_checkpoint_in_doubt_looks_alike() {
    let held = held().await;
    held.faults.next(Op::WriteLease, 1, Fault::Unavailable);
    held.faults.next(Op::WriteLease, 1, Fault::LostReply);
    held.checkpoint(7).await.expect_err("no reply");
    held.lease.write(|tenure| tenure.leave(Some(at(7)))).await.expect_err("no reply");
    let renewal = held.renew().await;
    assert!(matches!(renewal, Err(WriteError::Lost(LeaseLost::Released))), "{renewal:?}");
    assert!(held.row().is_left() && held.row().checkpoint == at(7));
}

#[tokio::test(start_paused = true)]
async fn a_theft_with_nothing_in_doubt_is_a_loss() {
    let held = held().await;
    held.steal().await;
    assert_eq!(lost(held.renew().await), LeaseLost::Stolen);
    assert_eq!(held.lease.lost().await, LeaseLost::Stolen);
    let row = held.row();
    assert_eq!(lost(held.checkpoint(9).await), LeaseLost::Stolen);
    assert_eq!(held.row(), row, "no write after a loss");
}

#[tokio::test(start_paused = true)]
async fn a_theft_with_a_write_in_doubt_is_a_loss_whether_or_not_the_write_was_applied() {
    for fault in [Fault::Unavailable, Fault::LostReply] {
        let held = held().await;
        held.faults.next(Op::WriteLease, 1, fault);
        assert!(matches!(held.checkpoint(7).await, Err(WriteError::Unavailable(_))));
        held.steal().await;
        assert_eq!(lost(held.checkpoint(8).await), LeaseLost::Stolen, "{fault:?}");
        assert_ne!(held.row().checkpoint, at(8));
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_row_is_a_loss() {
    let held = held().await;
    held.table.remove_row(&held.row().key);
    assert_eq!(lost(held.renew().await), LeaseLost::Deleted);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_table_is_a_loss() {
    let held = held().await;
    held.table.drop_table();
    assert_eq!(lost(held.renew().await), LeaseLost::Deleted);
}

#[tokio::test(start_paused = true)]
async fn the_holding_ends_failover_time_after_the_last_success_was_sent() {
    let held = held().await;
    let start = clock::now();
    held.faults.next(Op::WriteLease, 1, Fault::DelayedReply(3 * SECOND));
    held.renew().await.expect("slow, but done");
    held.faults.cut();
    assert_eq!(held.lease.lost().await, LeaseLost::Expired);
    assert_eq!(clock::now() - start, FAILOVER, "not from when the reply came");
    held.faults.heal();
    assert_eq!(lost(held.renew().await), LeaseLost::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_moves_the_end_of_the_holding() {
    let held = held().await;
    let start = clock::now();
    let lost = held.lease.lost();
    tokio::pin!(lost);
    assert!(tokio::time::timeout(6 * SECOND, &mut lost).await.is_err());
    held.renew().await.expect("renewed");
    assert_eq!(lost.await, LeaseLost::Expired);
    assert_eq!(clock::now() - start, 6 * SECOND + FAILOVER);
}

#[tokio::test(start_paused = true)]
async fn guarded_work_is_dropped_at_the_deadline_and_never_polled_again() {
    let held = held().await;
    let (polls, last_poll) = (AtomicU32::new(0), Mutex::new(clock::now()));
    let end = held.lease.valid_until();
    let work = async {
        loop {
            polls.fetch_add(1, Relaxed);
            *last_poll.lock().unwrap() = clock::now();
            clock::sleep(SECOND / 3).await;
        }
    };
    let why = held.lease.guard::<_>(work).await;
    assert_eq!(why, Err(LeaseLost::Expired));
    assert_eq!(clock::now(), end);
    assert!(*last_poll.lock().unwrap() < end);
    let polled = polls.load(Relaxed);
    clock::sleep(FAILOVER).await;
    assert_eq!(polls.load(Relaxed), polled);
}

#[tokio::test(start_paused = true)]
async fn guarded_work_that_wakes_after_the_clock_jumped_is_not_polled() {
    let held = held().await;
    let woken = tokio::sync::Notify::new();
    let ran_on = AtomicU32::new(0);
    let work = async {
        woken.notified().await;
        ran_on.fetch_add(1, Relaxed);
    };
    let frozen = async {
        // The process stands still, and everything that is due comes at once: the work is woken as the time is up.
        woken.notify_one();
        tokio::time::advance(FAILOVER * 6).await;
    };
    let (guarded, ()) = tokio::join!(biased; held.lease.guard(work), frozen);
    assert_eq!(guarded, Err(LeaseLost::Expired));
    assert_eq!(ran_on.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn guarded_work_is_not_begun_without_the_lease_and_is_finished_with_it() {
    let held = held().await;
    assert_eq!(held.lease.guard(async { 7 }).await, Ok(7));
    held.lease.lose(LeaseLost::Stolen);
    let guarded = held.lease.guard(async { unreachable!("the lease is gone") }).await;
    assert_eq!(guarded.map(|(): ()| ()), Err(LeaseLost::Stolen));
}

#[tokio::test(start_paused = true)]
async fn guarded_work_is_dropped_when_the_lease_is_stolen() {
    let held = held().await;
    let start = clock::now();
    let thief = async {
        clock::sleep(SECOND).await;
        held.steal().await;
        held.renew().await.expect_err("stolen");
    };
    let (guarded, ()) = tokio::join!(held.lease.guard(pending::<()>()), thief);
    assert_eq!((guarded, clock::now() - start), (Err(LeaseLost::Stolen), SECOND));
}

#[tokio::test(start_paused = true)]
async fn renewals_and_checkpoints_at_one_time_never_conflict_with_each_other() {
    let held = held().await;
    held.faults.chance(Op::WriteLease, 0.2, Fault::Delay(SECOND / 20));
    held.faults.chance(Op::WriteLease, 0.2, Fault::DelayedReply(SECOND / 20));
    held.faults.chance(Op::WriteLease, 0.1, Fault::LostReply);
    held.faults.chance(Op::WriteLease, 0.1, Fault::Unavailable);
    let highest = Arc::new(Mutex::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..10_u64 {
        let (lease, highest) = (held.lease.clone(), highest.clone());
        writers.spawn(async move {
            for n in 0..50 {
                clock::sleep(Duration::from_millis(1 + (writer * 7 + n * 13) % 20)).await;
                let result = if writer % 2 == 0 {
                    lease.write(|tenure| Ok(tenure.renewal())).await
                } else {
                    lease
                        .write(|tenure| {
                            let next = tenure.row().checkpoint.position().map_or(1, |at| {
                                at.sequence.as_str().parse::<u64>().expect("a small number") + 1
                            });
                            *highest.lock().unwrap() = next;
                            tenure.checkpoint(at(next))
                        })
                        .await
                };
                assert!(matches!(result, Ok(()) | Err(WriteError::Unavailable(_))), "{result:?}");
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("no conflict");
    }
    held.faults.heal();
    held.renew().await.expect("still ours");
    assert_eq!(held.lease.row().await, held.row());
    let highest = *highest.lock().unwrap();
    assert!([at(highest), at(highest - 1)].contains(&held.row().checkpoint));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_its_caller_drops_leaves_the_lease_usable() {
    let dropped = |held: Held, fault| async move {
        held.faults.next(Op::WriteLease, 1, fault);
        let write = tokio::time::timeout(SECOND, held.checkpoint(7)).await;
        assert!(write.is_err(), "dropped while it waits");
        held
    };
    // Dropped before it took effect, and after.
    let held_before = dropped(held().await, Fault::Delay(2 * SECOND)).await;
    held_before.checkpoint(6).await.expect("the dropped one was never made");
    assert_eq!(held_before.row().checkpoint, at(6));
    let held_after = dropped(held().await, Fault::DelayedReply(2 * SECOND)).await;
    held_after.checkpoint(8).await.expect("the dropped one is recognised");
    assert_eq!(held_after.row().checkpoint, at(8));
    assert_eq!(held_after.lease.why_lost(), None);
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_reply_was_lost_is_recognised() {
    let held = held().await;
    held.faults.next(Op::WriteLease, 1, Fault::LostReply);
    let release = |tenure: &Tenure| tenure.release(Some(at(9)));
    held.lease.write(release).await.expect_err("no reply");
    held.lease.write(release).await.expect("done already");
    assert_eq!((held.row().owner, held.row().checkpoint), (None, at(9)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_after_the_lease_was_given_up() {
    for finish in [true, false] {
        let held = held().await;
        let give_up = |tenure: &Tenure| match finish {
            true => Ok(tenure.finish(BTreeSet::new())),
            false => tenure.release(None),
        };
        held.lease.write(give_up).await.expect("given up");
        let row = held.row();
        assert_eq!(lost(held.renew().await), LeaseLost::Released);
        assert_eq!(held.row(), row);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namesake_is_a_thief_like_any_other() {
    let held = held().await;
    held.table.write(&held.row().claim(&"me".into())).await.expect("allowed");
    assert_eq!(lost(held.renew().await), LeaseLost::Stolen);
}

/// Neither owner nor counter would tell: the renewal without a reply could have led to this row.
#[tokio::test(start_paused = true)]
async fn a_namesakes_claim_is_not_taken_for_a_renewal_whose_reply_was_lost() {
    let held = held().await;
    held.faults.next(Op::WriteLease, 1, Fault::Unavailable);
    held.renew().await.expect_err("no reply");
    held.table.write(&held.row().claim(&Claimant::new(&"me".into(), 2, 1))).await.expect("allowed");
    assert_eq!(lost(held.renew().await), LeaseLost::Stolen);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_shows_a_namesakes_claim_ends_the_holding() {
    let held = held().await;
    held.table.write(&held.row().claim(&Claimant::new(&"me".into(), 2, 1))).await.expect("allowed");
    held.lease.observe(Some(&held.row()));
    assert_eq!(held.lease.why_lost(), Some(LeaseLost::Stolen));
}

#[tokio::test(start_paused = true)]
async fn what_is_read_from_is_what_the_claim_met_and_not_what_was_seen_before() {
    let table = MemoryLeaseStore::new();
    let seen = Lease { counter: 7, ..Lease::new(&"shardId-0".into(), at(100)) };
    // Deleted meanwhile, made anew, and written up to the same counter.
    table.put_row(Lease { checkpoint: at(5), ..seen.clone() });
    let store: Arc<dyn LeaseStore> = Arc::new(table.clone());
    let claimed = HeldLease::claim(&seen, &taker(&store)).await;
    let (row, lease) = claimed.expect("no error").expect("won");
    assert_eq!((&row.checkpoint, [&row]), (&at(5), [&table.rows()[0]]));
    lease.write(|tenure| tenure.checkpoint(at(6))).await.expect("forward");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_turns_out_to_be_finished_is_not_held() {
    let table = MemoryLeaseStore::new();
    let seen = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    table.put_row(Lease { checkpoint: Checkpoint::ShardEnd, ..seen.clone() });
    let store: Arc<dyn LeaseStore> = Arc::new(table);
    let claimed = HeldLease::claim(&seen, &taker(&store)).await;
    assert!(claimed.expect("no error").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_a_reply_is_no_holding_while_the_row_is_anothers() {
    let table = MemoryLeaseStore::new();
    let row = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    table.put_row(row.after(&row.claim(&"thief".into())));
    let faults = Faults::new(1);
    faults.next(Op::WriteLease, 1, Fault::Unavailable);
    let store: Arc<dyn LeaseStore> = Arc::new(FaultyLeaseStore::new(table, faults));
    let claimed = HeldLease::claim(&row, &taker(&store)).await;
    assert!(matches!(claimed, Err(LeaseError::Unavailable { .. })), "{claimed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_lives_by_a_heartbeat_is_written_only_if_looks_or_beats_stay_away() {
    let (held, heart) = living().await;
    let (start, pulse) = (clock::now(), heart.current().expect("beats"));
    assert_eq!(held.row().heartbeat.as_ref(), Some(pulse.incarnation()));
    let due = || (held.lease.renewal_due(FAILOVER / 2) - start).as_millis();
    // Three quarters of the failover time after the last beat, or a whole one after the last look.
    assert_eq!(due(), 7_500);
    clock::sleep(5 * SECOND).await;
    assert!(pulse.answered(clock::now()));
    assert_eq!((due(), held.lease.valid_until() - start), (10_000, 5 * SECOND + FAILOVER));
    assert!(!held.lease.observe(Some(&held.row())));
    assert_eq!(due(), 12_500);
    assert!(held.lease.observe(None));
    assert_eq!(due(), 0, "a look without the row: at once");
    held.lease.renew().await.expect("ours");
    assert_eq!(due(), 12_500);
    clock::sleep(8 * SECOND).await;
    held.lease.renew().await.expect("ours");
    clock::sleep(2 * SECOND).await;
    assert!(pulse.is_broken());
    assert_eq!(due(), 18_000, "by itself, once the heart has stopped");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_takes_the_lease_over_to_the_heartbeat_that_beats_now() {
    let (held, heart) = living().await;
    let start = clock::now();
    let next = beat(&heart, &held.table).await;
    assert_ne!(held.row().heartbeat.as_ref(), Some(next.incarnation()));
    for _ in 0..2 {
        held.lease.renew().await.expect("ours");
        assert_eq!(held.row().heartbeat.as_ref(), Some(next.incarnation()));
    }
    clock::sleep(5 * SECOND).await;
    assert!(next.answered(clock::now()));
    assert_eq!(held.lease.valid_until(), start + 5 * SECOND + FAILOVER);
}

#[tokio::test(start_paused = true)]
async fn a_look_ends_the_holding_if_it_shows_anothers_later_row_and_makes_other_rows_doubtful() {
    // The counter of the holding is 1. In doubt only with a heartbeat; lost with or without.
    for (whose, counter, doubtful, lost) in [
        ("ours", 1, false, false),
        ("ours", 0, false, false),
        ("ours", 2, true, false),
        ("theirs", 0, true, false),
        ("theirs", 1, true, false),
        ("theirs", 2, true, true),
        ("nobody's", 0, true, false),
    ] {
        for (held, lives) in [(held().await, false), (living().await.0, true)] {
            let row = match whose {
                "ours" => Some(Lease { counter, ..held.row() }),
                "theirs" => Some(Lease { owner: Some("thief".into()), counter, ..held.row() }),
                _ => None,
            };
            assert_eq!(held.lease.observe(row.as_ref()), doubtful && lives, "{row:?}");
            assert_eq!(held.lease.why_lost(), lost.then_some(LeaseLost::Stolen), "{row:?}");
        }
    }
    // With a write in doubt the next one finds out.
    let (held, _) = living().await;
    held.faults.next(Op::WriteLease, 1, Fault::Unavailable);
    held.renew().await.expect_err("no reply");
    assert!(!held.lease.observe(Some(&held.row())), "as before the write");
    let theirs = Lease { owner: Some("thief".into()), counter: 2, ..held.row() };
    assert!(held.lease.observe(Some(&theirs)));
    assert_eq!(held.lease.why_lost(), None);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_noticed_by_a_look_or_by_the_next_write() {
    for by_look in [true, false] {
        let held = held().await;
        let ask = held.row().ask(&"next".into()).expect("it hands over");
        held.table.put_row(held.row().after_request(&ask));
        assert!(!held.lease.is_asked());
        match by_look {
            true => assert!(!held.lease.observe(Some(&held.row()))),
            false => held.renew().await.expect("still ours"),
        }
        assert!(held.lease.is_asked());
        held.lease.asked().await;
        held.lease.write(|tenure| tenure.release(None)).await.expect("handed over");
        assert_eq!(held.row().holder(), Some(&"next".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_shard_may_still_be_given_up_once_until_its_time_is_over() {
    let stalled = held().await;
    assert!(stalled.lease.can_give_up());
    stalled.lease.lose(LeaseLost::Stalled);
    clock::sleep(FAILOVER - Duration::from_millis(1)).await;
    assert!(stalled.lease.can_give_up());
    clock::sleep(Duration::from_millis(1)).await;
    assert!(!stalled.lease.can_give_up(), "others may have it");

    let stalled = held().await;
    stalled.lease.lose(LeaseLost::Stalled);
    assert!(!stalled.lease.is_given_up());
    stalled.lease.write(|tenure| tenure.release(None)).await.expect("given up");
    assert!(stalled.lease.is_given_up() && !stalled.lease.can_give_up());

    let stolen = held().await;
    stolen.lease.lose(LeaseLost::Stolen);
    assert!(!stolen.lease.can_give_up());
    // What is left to itself is not given up: nobody else may take it yet.
    let left = held().await;
    left.lease.write(|tenure| tenure.leave(None)).await.expect("left");
    assert_eq!((left.lease.is_given_up(), left.lease.why_lost()), (false, Some(LeaseLost::Released)));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_made_anew_is_known_by_its_lower_counter() {
    for (counter, why) in [(0, LeaseLost::Deleted), (1, LeaseLost::Stolen), (2, LeaseLost::Stolen)] {
        let held = held().await;
        held.table.put_row(Lease { owner: Some("other".into()), counter, ..held.row() });
        assert_eq!(lost(held.renew().await), why, "{counter}");
    }
}

#[tokio::test(start_paused = true)]
async fn guarded_work_may_give_the_lease_up_and_go_on() {
    let held = held().await;
    let work = async {
        held.lease.write(|tenure| tenure.release(None)).await.expect("given up");
        clock::sleep(FAILOVER * 2).await;
        7
    };
    assert_eq!(held.lease.guard(work).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_throughput_once_measured_goes_with_the_next_write() {
    let held = held().await;
    held.lease.measured(12.5).await;
    held.renew().await.expect("ours");
    assert_eq!(held.row().throughput_kbps, Some(12.5));
}

#[tokio::test(start_paused = true)]
async fn a_write_is_tried_again_until_its_time_is_over_and_not_at_its_end() {
    let held = held().await;
    let before = held.faults.calls(Op::WriteLease);
    held.faults.next(Op::WriteLease, 5, Fault::Unavailable);
    let tried = async |millis| {
        let until = clock::now() + Duration::from_millis(millis);
        let result = held.lease.write_until(until, |tenure| Ok(tenure.renewal())).await;
        (result.is_ok(), held.faults.calls(Op::WriteLease) - before)
    };
    assert_eq!(tried(50).await, (false, 1), "the pause would end with the time");
    assert_eq!(tried(150).await, (false, 3), "one pause, and the next would");
    assert_eq!(tried(1000).await, (true, 6), "until the table answers");
}

#[tokio::test(start_paused = true)]
async fn what_was_let_go_can_be_given_up_or_left_once() {
    for leave in [false, true] {
        let held = held().await;
        held.lease.lose(LeaseLost::Released);
        assert!(held.lease.can_give_up() && !held.lease.is_given_up());
        let end = |tenure: &Tenure| if leave { tenure.leave(None) } else { tenure.release(None) };
        held.lease.write(end).await.expect("nobody else writes");
        assert_eq!((held.lease.is_given_up(), held.lease.can_give_up()), (!leave, false));
        assert_eq!(lost(held.renew().await), LeaseLost::Released);
    }
}
