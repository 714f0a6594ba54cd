//! Proof that each rule of the observer can speak: it is fed what no worker of ours would do. Rules that a whole
//! world breaks are in `sabotage.rs`; which rule is broken where is in `rules.txt`.

use std::{
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kinesis_consumer::{
    Balance, Checkpoint, ClaimReason, Claimant, Incarnation, Lease, LeaseWrite, Position, Record, ShardId,
    Tenure, WorkerRow, io::Page,
};
use tokio::time::Instant;

use super::{
    health::Call,
    observer::{Observer, Rules},
    processor::{Seat, Temper},
};

const SECOND: Duration = Duration::from_secs(1);
/// In the shard before anything happens, all of one key.
const RECORDS: u32 = 10;

/// An observer of one shard with records, and two workers of which it has been told nothing else.
struct Feed {
    observer: Arc<Observer>,
    a: Arc<Seat>,
    b: Arc<Seat>,
    shard: ShardId,
    row: Lease,
}

impl Feed {
    fn new() -> Self {
        Self::under(Balance::Count, Duration::ZERO)
    }

    fn under(balance: Balance, rejoin_grace: Duration) -> Self {
        let rules = Rules {
            failover_time: 2 * SECOND,
            parents_first: true,
            max_steals: 1,
            rejoin_grace,
            balance,
            health_max_age: 10 * SECOND,
            stall_timeout: 30 * SECOND,
            shutdown_timeout: 5 * SECOND,
            measured: false,
            memory_budget: 1 << 20,
            from_start: true,
        };
        let observer = Arc::new(Observer::new(rules, true));
        let [a, b] = ["a", "b"].map(|name| Seat::new(name, &observer, Temper::default(), 1));
        (0..2).for_each(|no| observer.may_hold(no, Some(1)));
        let shard = id(1);
        observer.shard_made(&shard, &[].into());
        (1..=RECORDS).for_each(|n| observer.put(&shard, 0, n, 0));
        let row = Lease::new(&shard, Checkpoint::TrimHorizon);
        observer.created(&a, &row);
        Self { observer, a, b, shard, row }
    }

    fn wrote(&self, seat: &Arc<Seat>, write: &LeaseWrite, before: &Lease) {
        self.observer.wrote(seat, Instant::now(), write, before, &before.after(write));
    }

    /// Lets a worker claim the lease as it is in `seen`.
    fn claims(&self, seat: &Arc<Seat>, seen: &Lease) -> Tenure {
        let claim = seen.claim(&Claimant::new(&seat.name.as_str().into(), 1, seen.counter));
        self.wrote(seat, &claim, seen);
        Tenure::begin(seen, &claim, Instant::now().into_std()).expect("a claim")
    }

    /// Lets the first worker claim the lease and process all records.
    fn processed(&self) -> Tenure {
        let tenure = self.claims(&self.a, &self.row);
        self.observer.delivered(&self.a, &self.shard, 1, RECORDS.into());
        self.observer.acked(&self.a, &self.shard, 1, RECORDS.into());
        tenure
    }

    #[track_caller]
    fn says(&self, what: &str) {
        let violations = self.observer.violations().join("\n");
        assert!(violations.contains(what), "expected {what:?} in:\n{violations}");
    }

    #[track_caller]
    fn is_silent(&self) {
        assert_eq!(self.observer.violations(), [""; 0]);
    }
}

fn id(n: u64) -> ShardId {
    format!("shardId-{n:012}").into()
}

fn position(number: u64) -> Position {
    Position::at(number.to_string().parse().expect("digits"))
}

fn at(number: u64) -> Checkpoint {
    Checkpoint::At(position(number))
}

/// What `act` makes the observer say.
#[track_caller]
fn fed(act: impl FnOnce(&Feed), what: &str) {
    let feed = Feed::new();
    act(&feed);
    feed.says(what);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_does_all_as_it_should_is_not_spoken_of() {
    let feed = Feed::new();
    let mut tenure = feed.processed();
    for number in [5, RECORDS.into()] {
        let write = tenure.checkpoint(at(number)).expect("forward");
        feed.wrote(&feed.a, &write, tenure.row());
        tenure.accept(&write, Instant::now().into_std());
    }
    feed.is_silent();
}

#[tokio::test(start_paused = true)]
async fn workers_that_live_after_their_end_or_while_frozen_are_caught() {
    fed(
        |feed| {
            feed.claims(&feed.a, &feed.row);
            feed.observer.processor_made(&feed.a, &feed.shard);
            feed.observer.ended(feed.a.no);
        },
        "1 processors outlive their worker",
    );
    fed(
        |feed| {
            feed.observer.ended(feed.a.no);
            feed.observer.called(&feed.a, "scan", None);
        },
        "makes a call after its end",
    );
    fed(
        |feed| {
            feed.a.freezer.freeze();
            feed.observer.called(&feed.a, "scan", None);
        },
        "makes a call while frozen",
    );
}

#[tokio::test(start_paused = true)]
async fn work_without_a_lease_is_caught() {
    fed(|feed| feed.observer.works(&feed.a, &feed.shard), "without a lease");
    fed(
        |feed| {
            let tenure = feed.claims(&feed.a, &feed.row);
            feed.wrote(&feed.a, &tenure.release(None).expect("no checkpoint"), tenure.row());
            feed.observer.works(&feed.a, &feed.shard);
        },
        "after it gave the lease up",
    );
    let feed = Feed::new();
    feed.claims(&feed.a, &feed.row);
    feed.observer.works(&feed.a, &feed.shard);
    feed.is_silent();
    tokio::time::advance(3 * SECOND).await;
    feed.observer.works(&feed.a, &feed.shard);
    feed.says("after its lease could have been taken");
}

#[tokio::test(start_paused = true)]
async fn two_processors_of_one_shard_and_more_shards_than_allowed_are_caught() {
    fed(
        |feed| {
            feed.claims(&feed.a, &feed.row);
            (0..2).for_each(|_| feed.observer.processor_made(&feed.a, &feed.shard));
        },
        "2 times at once",
    );
    fed(
        |feed| (1..=2).for_each(|n| feed.observer.processor_made(&feed.a, &id(n))),
        "works on 2 shards, 1 are allowed",
    );
}

#[tokio::test(start_paused = true)]
async fn claims_from_the_living_beyond_the_limit_and_in_anothers_name_are_caught() {
    let feed = Feed::new();
    let mut row = feed.claims(&feed.a, &feed.row).row().clone();
    for thief in [&feed.b, &feed.a] {
        row = feed.claims(thief, &row).row().clone();
    }
    feed.is_silent();
    feed.claims(&feed.b, &row);
    feed.says("took 2 leases in one look, 1 are allowed");
    fed(
        |feed| {
            let claim = feed.row.claim(&Claimant::new(&"b".into(), 1, 0));
            feed.wrote(&feed.a, &claim, &feed.row);
        },
        "claimed shardId-000000000001 for b",
    );
}

#[tokio::test(start_paused = true)]
async fn by_throughput_a_lease_that_two_workers_trade_is_caught_by_its_third_move() {
    let feed = Feed::under(Balance::Throughput, Duration::ZERO);
    let own = [(&feed.a, id(2)), (&feed.b, id(3))].map(|(seat, shard)| {
        let row = Lease::new(&shard, Checkpoint::TrimHorizon);
        feed.observer.created(seat, &row);
        feed.claims(seat, &row);
        feed.observer.taken(seat, &shard, &ClaimReason::Free);
        feed.observer.processor_made(seat, &shard);
        seat
    });
    let mut row = feed.claims(&feed.a, &feed.row).row().clone();
    for thief in [&feed.b, &feed.a, &feed.b, &feed.a] {
        feed.is_silent();
        tokio::time::advance(SECOND / 10).await;
        for seat in own {
            feed.observer.looks(seat);
            feed.observer.serves_look(seat);
            feed.observer.saw(seat);
        }
        tokio::time::advance(SECOND / 10).await;
        row = feed.claims(thief, &row).row().clone();
    }
    feed.says("takes shardId-000000000001, which has moved 3 times before its eyes");
}

#[tokio::test(start_paused = true)]
async fn who_reads_further_ahead_than_its_budget_allows_is_caught() {
    // A megabyte, and what the code is at work on or is about to be given.
    let page = |numbers: RangeInclusive<u64>, bytes: usize| {
        let record = |n: u64| Record::new(id(1), position(n), "", SystemTime::UNIX_EPOCH, vec![0; bytes]);
        Page { records: numbers.map(record).collect(), next: None, children: vec![], behind: Duration::ZERO }
    };
    let feed = Feed::new();
    feed.claims(&feed.a, &feed.row);
    let gets = |mut page: Page| {
        feed.observer.got(&feed.a, &feed.shard, &mut page);
        feed.observer.called(&feed.a, "read", Some(&feed.shard));
        page
    };
    let first = gets(page(1..=2, 2 << 20));
    feed.observer.delivered(&feed.a, &feed.shard, 1, 2);
    let call = Call::of(&feed.a, &feed.shard);
    let second = gets(page(3..=4, 1 << 19));
    drop(call);
    // The code is done, and is about to be given the second one.
    let third = gets(page(5..=5, 1 << 20));
    feed.observer.delivered(&feed.a, &feed.shard, 3, 4);
    let _call = Call::of(&feed.a, &feed.shard);
    drop(first);
    feed.is_silent();
    drop(gets(page(6..=6, 1 << 16)));
    feed.says("has 1114112 bytes ahead of its code, 1048576 are allowed");
    let said = feed.observer.violations().len();
    feed.observer.called(&feed.a, "read", Some(&feed.shard));
    assert_eq!(feed.observer.violations().len(), said, "it has dropped that page");
    drop((second, third));
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_lease_before_its_holder_had_the_time_to_come_back_is_caught() {
    let at = |millis| async move {
        let feed = Feed::under(Balance::Count, 3 * SECOND);
        let row = feed.claims(&feed.a, &feed.row).row().clone();
        tokio::time::advance(Duration::from_millis(millis)).await;
        feed.claims(&feed.b, &row);
        feed
    };
    // Two seconds until it expires, and three more.
    at(4999).await.says("took shardId-000000000001 1ms before a had the time to come back");
    at(5000).await.is_silent();
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_lease_on_its_way_to_another_is_caught() {
    let at = |millis| async move {
        let feed = Feed::new();
        let mut tenure = feed.claims(&feed.a, &feed.row);
        feed.observer.taken(&feed.a, &feed.shard, &ClaimReason::Free);
        let request = tenure.row().ask(&"b".into()).expect("willing");
        feed.observer.asked(&feed.b, Instant::now(), &request);
        assert!(tenure.notice(&tenure.row().after_request(&request)));
        let transfer = tenure.release(None).expect("no checkpoint");
        feed.wrote(&feed.a, &transfer, tenure.row());
        tokio::time::advance(Duration::from_millis(millis)).await;
        feed.claims(&feed.a, &tenure.row().after(&transfer));
        feed
    };
    at(1999).await.says("took shardId-000000000001 on its way to b, 1.999s after it was handed over");
    at(2000).await.is_silent();
}

#[tokio::test(start_paused = true)]
async fn a_lease_handed_over_to_somebody_who_has_not_asked_is_caught() {
    let handed_over = |asks: bool| {
        let feed = Feed::new();
        let mut tenure = feed.claims(&feed.a, &feed.row);
        feed.observer.taken(&feed.a, &feed.shard, &ClaimReason::Free);
        let request = tenure.row().ask(&"b".into()).expect("willing");
        if asks {
            feed.observer.asked(&feed.b, Instant::now(), &request);
        }
        assert!(tenure.notice(&tenure.row().after_request(&request)));
        feed.wrote(&feed.a, &tenure.release(None).expect("no checkpoint"), tenure.row());
        feed
    };
    handed_over(true).is_silent();
    handed_over(false).says("hands over shardId-000000000001, for which nobody has asked");
}

#[tokio::test(start_paused = true)]
async fn counters_that_stand_still_and_writes_of_others_are_caught() {
    fed(
        |feed| {
            let tenure = feed.claims(&feed.a, &feed.row);
            (0..2).for_each(|_| feed.wrote(&feed.a, &tenure.renewal(), tenure.row()));
        },
        "set the counter of shardId-000000000001 from 2 to 2",
    );
    fed(
        |feed| {
            let tenure = feed.claims(&feed.a, &feed.row);
            feed.wrote(&feed.b, &tenure.renewal(), tenure.row());
        },
        "was allowed to renew",
    );
    fed(
        |feed| {
            let tenure = feed.claims(&feed.a, &feed.row);
            feed.observer.written_elsewhere(&Lease { owner: Some("java".into()), ..tenure.row().clone() });
            feed.wrote(&feed.a, &tenure.renewal(), tenure.row());
        },
        "was allowed to renew shardId-000000000001, which is java's",
    );
}

#[tokio::test(start_paused = true)]
async fn heartbeats_in_anothers_name_are_caught() {
    let beats = |name: &str| WorkerRow { incarnation: Incarnation::new(&name.into(), 1, 1), counter: 0 };
    let feed = Feed::new();
    feed.observer.beat(&feed.a, Instant::now(), &beats("a"));
    feed.is_silent();
    feed.observer.beat(&feed.a, Instant::now(), &beats("b"));
    feed.says("beats for ");
}

#[tokio::test(start_paused = true)]
async fn checkpoints_that_go_back_or_nowhere_or_too_far_are_caught() {
    fed(
        |feed| {
            let tenure = feed.processed();
            let further = Lease { checkpoint: at(5), ..tenure.row().clone() };
            feed.wrote(&feed.a, &tenure.checkpoint(at(3)).expect("forward"), &further);
        },
        "took the checkpoint of shardId-000000000001 back",
    );
    fed(
        |feed| {
            let tenure = feed.processed();
            feed.wrote(&feed.a, &tenure.checkpoint(Checkpoint::TrimHorizon).expect("not back"), tenure.row());
        },
        "checkpointed shardId-000000000001 at TRIM_HORIZON",
    );
    fed(
        |feed| {
            let tenure = feed.claims(&feed.a, &feed.row);
            feed.observer.delivered(&feed.a, &feed.shard, 1, 4);
            feed.observer.acked(&feed.a, &feed.shard, 1, 1);
            feed.observer.acked(&feed.a, &feed.shard, 3, 4);
            feed.wrote(&feed.a, &tenure.checkpoint(at(4)).expect("forward"), tenure.row());
        },
        "at 4 with 2 not acknowledged",
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_up_without_what_was_acknowledged_is_caught() {
    let gives_up = |act: fn(&Tenure) -> LeaseWrite| {
        let feed = Feed::new();
        let mut tenure = feed.claims(&feed.a, &feed.row);
        feed.observer.asked_to_stop(feed.a.no);
        feed.observer.delivered(&feed.a, &feed.shard, 1, RECORDS.into());
        feed.observer.acked(&feed.a, &feed.shard, 1, 4);
        let write = tenure.checkpoint(at(2)).expect("forward");
        feed.wrote(&feed.a, &write, tenure.row());
        tenure.accept(&write, Instant::now().into_std());
        let write = act(&tenure);
        feed.observer.sends(&feed.a, &write);
        // It comes after the write was sent.
        feed.observer.acked(&feed.a, &feed.shard, 5, 5);
        feed.wrote(&feed.a, &write, tenure.row());
        feed
    };
    let forgets = gives_up(|tenure| tenure.release(None).expect("no checkpoint"));
    forgets.says("lets shardId-000000000001 go at 2, and all through 4 was acknowledged");
    gives_up(|tenure| tenure.leave(Some(at(3))).expect("forward")).says("go at 3, and all through 4");
    gives_up(|tenure| tenure.release(Some(at(4))).expect("forward")).is_silent();
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_takes_longer_than_it_may_is_caught() {
    let feed = Feed::new();
    let after = |millis| {
        let observer = feed.observer.clone();
        let seat = feed.a.clone();
        async move {
            tokio::time::advance(Duration::from_millis(millis)).await;
            observer.lock().stops_in_time(&seat);
        }
    };
    after(60_000).await;
    feed.observer.asked_to_stop(feed.a.no);
    // Five seconds, and six time-outs of half a second.
    after(7000).await;
    feed.a.freezer.freeze();
    after(60_000).await;
    feed.a.freezer.thaw();
    feed.observer.thawed(feed.a.no);
    after(8000).await;
    feed.is_silent();
    after(1).await;
    feed.says("still runs 8.001s after it was asked to stop");
}

#[tokio::test(start_paused = true)]
async fn shards_that_end_too_soon_are_caught() {
    let ends = |feed: &Feed| {
        let tenure = feed.processed();
        feed.wrote(&feed.a, &tenure.finish([id(2)].into()), tenure.row());
    };
    fed(ends, "which is open");
    fed(
        |feed| {
            feed.observer.shard_made(&id(2), &[feed.shard.clone()].into());
            ends(feed);
        },
        "before there is a lease for shardId-000000000002",
    );
    let feed = Feed::new();
    feed.observer.shard_made(&id(2), &[feed.shard.clone()].into());
    feed.observer.created(&feed.a, &Lease::new(&id(2), Checkpoint::TrimHorizon));
    ends(&feed);
    feed.is_silent();
    fed(|feed| feed.observer.deleted(&feed.a, &feed.row), "deleted the row of ");
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_has_ended_and_is_begun_again_is_caught() {
    let begins_again = |feed: &Feed| {
        feed.observer.shard_made(&id(2), &[feed.shard.clone()].into());
        feed.observer.created(&feed.a, &Lease::new(&id(2), Checkpoint::TrimHorizon));
        let mut tenure = feed.processed();
        let end = tenure.finish([id(2)].into());
        feed.wrote(&feed.a, &end, tenure.row());
        tenure.accept(&end, Instant::now().into_std());
        feed.observer.deleted(&feed.a, tenure.row());
    };
    fed(
        |feed| {
            begins_again(feed);
            feed.is_silent();
            feed.observer.created(&feed.b, &feed.row);
        },
        "makes a lease again for shardId-000000000001",
    );
    let feed = Feed::new();
    feed.observer.row_removed(&id(2));
    begins_again(&feed);
    feed.observer.created(&feed.b, &feed.row);
    feed.is_silent();
}

#[tokio::test(start_paused = true)]
async fn losses_that_are_not_told_of_or_that_there_are_not_are_caught() {
    // Record 2 is the last that was processed, and record 7 the first that is left.
    let found = || {
        let feed = Feed::new();
        let row = Lease { checkpoint: at(2), ..feed.row.clone() };
        feed.observer.oldest(&feed.shard, Some(7));
        feed.claims(&feed.a, &row);
        let position = Position::at("7".parse().expect("digits"));
        let records = vec![Record::new(feed.shard.clone(), position, "key", UNIX_EPOCH, "")];
        let page = Page { records, next: None, children: Vec::new(), behind: Duration::ZERO };
        feed.observer.opened(&feed.a, &feed.shard, &page);
        feed.observer.delivered(&feed.a, &feed.shard, 7, 10);
        feed
    };
    let feed = found();
    feed.observer.tells_of_gap(&feed.a, &feed.shard);
    feed.observer.judge_losses();
    feed.observer.ended_well(feed.a.no, std::slice::from_ref(&feed.shard));
    feed.is_silent();
    let feed = found();
    feed.observer.ended_well(feed.a.no, &[]);
    feed.says("never told of the records of shardId-000000000001");
    fed(
        |feed| {
            feed.observer.tells_of_gap(&feed.a, &feed.shard);
            feed.observer.judge_losses();
        },
        "tells of records of shardId-000000000001 that have left, and none has",
    );
}

#[tokio::test(start_paused = true)]
async fn records_out_of_order_are_caught() {
    let given = |feed: &Feed, first, last| feed.observer.delivered(&feed.a, &feed.shard, first, last);
    let begins = |feed: &Feed| drop(feed.claims(&feed.a, &feed.row));
    let one_too_many = |feed: &Feed| {
        begins(feed);
        given(feed, 1, u64::from(RECORDS) + 1);
    };
    fed(one_too_many, "record 11 was never put");
    fed(one_too_many, "is given shardId-000000000001 1..=11, but");
    fed(
        |feed| {
            begins(feed);
            given(feed, 1, 2);
            given(feed, 4, 4);
        },
        "record 4 came before 3 ever did",
    );
    fed(
        |feed| {
            begins(feed);
            given(feed, 1, 2);
            given(feed, 2, 3);
        },
        "3 is what comes next for this holder",
    );
    // Of an application that begins at a time, the last record but one is older.
    let since = |first| {
        let feed = Feed::new();
        feed.observer.put(&feed.shard, 0, RECORDS + 1, 10);
        let row = Lease { start_millis: Some(10), ..Lease::new(&feed.shard, Checkpoint::AtTimestamp) };
        feed.claims(&feed.a, &row);
        given(&feed, first, u64::from(RECORDS) + 1);
        feed
    };
    since(11).is_silent();
    since(10).says("is given shardId-000000000001 10..=11, but 11 is what comes next for this holder");
    fed(
        |feed| {
            begins(feed);
            given(feed, 1, 2);
            // Of the same key, in another shard, with nine that were never given.
            feed.observer.put(&id(2), 0, RECORDS + 1, 0);
            feed.observer.delivered(&feed.a, &id(2), 1, 1);
        },
        "record 11 of key 0 came before 3 ever did",
    );
    fed(
        |feed| {
            feed.observer.shard_made(&id(2), &[feed.shard.clone()].into());
            feed.observer.put(&id(2), 1, 1, 0);
            feed.observer.delivered(&feed.a, &id(2), 1, 1);
        },
        "its parent shardId-000000000001 has not ended",
    );
    fed(
        |feed| feed.observer.read_elsewhere("java", &feed.shard, 11, 11),
        "read shardId-000000000001 11..=11, but",
    );
}
