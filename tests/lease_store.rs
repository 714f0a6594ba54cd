//! The contract of every lease table, held against the one in memory and against DynamoDB by several
//! independent servers. Servers that are not installed are skipped, and say so.
//!
//! What a server cannot do is listed in [`LACKS`] and printed; nothing is run and then ignored.

mod support;

use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_sdk_dynamodb::Client;
use bytes::Bytes;
use kinesis_consumer::{
    Checkpoint, Claimant, HashKeyRange, Incarnation, Lease, LeaseWrite, PendingCheckpoint, Position, Reset,
    Tenure, WorkerId, WorkerRow,
    io::{DynamoDbLeaseStore, LeaseError, LeaseStore, memory::MemoryLeaseStore},
};
use support::{dynamodb, servers};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};

/// Server, check, reason: what is not run where, and why.
const LACKS: &[(&str, &str, &str)] = &[
    ("moto", "of_a_hundred_workers_exactly_one_claims_a_lease", "its conditions are not atomic under races"),
    ("moto", "the_counter_counts_every_write_that_succeeded", "its conditions are not atomic under races"),
];

type Store = Arc<dyn LeaseStore>;
type Check = fn(Store) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! checks {
    ($($check:ident)*) => { &[$((stringify!($check), |store| Box::pin($check(store)))),*] };
}

/// Each gets a store whose table does not exist yet.
const CONTRACT: &[(&str, Check)] = checks![
    without_a_table_every_call_says_so
    a_missing_table_is_made_once_however_many_ask
    a_row_is_read_as_it_was_put
    a_row_is_put_only_where_there_is_none
    trying_whether_rows_may_be_made_makes_none
    every_write_meets_its_condition_or_leaves_the_row_alone
    every_request_meets_its_condition_or_leaves_the_row_alone
    a_shard_lives_from_claim_to_end
    of_two_claims_from_one_look_the_second_loses
    a_claim_is_answered_with_the_row_that_it_took
    a_claim_or_deletion_meets_only_the_holding_that_it_saw
    a_write_that_was_sent_twice_is_recognised
    of_a_hundred_workers_exactly_one_claims_a_lease
    the_counter_counts_every_write_that_succeeded
    a_read_sees_every_write_before_it
    a_row_is_deleted_only_as_it_was_seen
    a_deleted_row_is_not_brought_back
    a_table_of_many_pages_is_listed_whole
    a_worker_row_is_made_once_and_raised_only
    a_worker_row_is_deleted_only_as_it_was_seen
    worker_rows_and_leases_are_told_apart
    a_claim_says_by_what_the_lease_lives
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_in_memory_keeps_the_contract() {
    hold("memory", || Arc::new(MemoryLeaseStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_dynamodb_keeps_the_contract() {
    let server = dynamodb::Embedded::start().await;
    hold("dynoxide", tables(&server.client())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynalite_keeps_the_contract() {
    let Some(server) = servers::dynalite().await else { return };
    hold("dynalite", tables(&dynamodb::client(&server.url()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moto_keeps_the_contract_but_for_what_it_lacks() {
    let Some(server) = servers::moto().await else { return };
    hold("moto", tables(&dynamodb::client(&server.url()))).await;
}

/// A store on a new table name each time.
fn tables(client: &Client) -> impl Fn() -> Store {
    let made = AtomicUsize::new(0);
    move || {
        let table = format!("leases-{}", made.fetch_add(1, Ordering::Relaxed));
        // Long, because the servers share a machine; timeouts have tests of their own.
        Arc::new(DynamoDbLeaseStore::new(client.clone(), table, Duration::from_secs(60)))
    }
}

/// Runs every check that the server does not lack, and reports all that fail.
async fn hold(server: &str, store: impl Fn() -> Store) {
    let mut failed = Vec::new();
    for (name, check) in CONTRACT {
        if let Some((.., why)) = LACKS.iter().find(|(s, n, _)| (*s, *n) == (server, *name)) {
            servers::say(format_args!("NOT RUN on {server}: {name}: {why}"));
            continue;
        }
        let mut run = JoinSet::new();
        run.spawn(check(store()));
        if run.join_next().await.expect("one task").is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{server} breaks the contract: {failed:?}");
    let checks = CONTRACT.iter().map(|(name, _)| *name);
    let checks: BTreeSet<_> = checks.collect();
    assert!(LACKS.iter().all(|(_, name, _)| checks.contains(name)), "a lack names no check");
}

fn at(number: u128, sub: u64) -> Checkpoint {
    Checkpoint::At(Position { sequence: number.to_string().parse().expect("digits"), sub })
}

fn new_row(shard: &str) -> Lease {
    Lease::new(&shard.into(), Checkpoint::TrimHorizon)
}

/// A row with everything that a row can have.
fn full_row(shard: &str) -> Lease {
    Lease {
        counter: 41,
        owner: Some("next".into()),
        checkpoint_owner: Some("me".into()),
        owner_switches: 3,
        checkpoint: at(49590338271490256608559692538361571, 7),
        pending: Some(PendingCheckpoint {
            at: Checkpoint::ShardEnd,
            state: Some(Bytes::from_static(b"\0\xff")),
        }),
        parents: BTreeSet::from(["shardId-000000000001".into(), "shardId-000000000002".into()]),
        children: BTreeSet::from(["shardId-000000000009".into()]),
        hash_range: Some(HashKeyRange { start: 1, end: u128::MAX }),
        throughput_kbps: Some(12.345678),
        start_millis: Some(1_700_000_000_123),
        reset_millis: Some(1_700_000_000_456),
        stream: Some("arn:aws:kinesis:us-east-1:0:stream/s:1700000000".into()),
        hands_over: Some("me".into()),
        left_at: Some(41),
        ..new_row(shard)
    }
}

/// A holding by `me` whose next write expects the counter of `row`.
fn holding(row: &Lease) -> Tenure {
    let seen = Lease { counter: row.counter - 1, ..row.clone() };
    let claim = seen.claim(&"me".into());
    Tenure::begin(&seen, &claim, Instant::now().into_std()).expect("a claim")
}

fn back_to(to: Checkpoint, start_millis: Option<u64>) -> Reset {
    Reset { to, start_millis, at_millis: 1_700_000_000_999 }
}

/// Every kind of write, made by `me` as if the row were his.
fn writes(row: &Lease) -> Vec<(&'static str, LeaseWrite)> {
    let mine = holding(row);
    let end = at(u128::MAX, 5);
    let mut asked = holding(row);
    let ask =
        Lease { owner: Some("next".into()), checkpoint_owner: Some("me".into()), ..asked.row().clone() };
    assert!(asked.notice(&ask));
    let mut measured = holding(row);
    measured.measured(1.25);
    vec![
        ("leave", mine.leave(None).expect("forward")),
        ("leave with a checkpoint", mine.leave(Some(end.clone())).expect("forward")),
        ("renewal that notes the throughput", measured.renewal()),
        ("renewal by an asked holder", asked.renewal()),
        ("checkpoint by an asked holder", asked.checkpoint(end.clone()).expect("forward")),
        ("transfer", asked.release(None).expect("forward")),
        ("transfer with a checkpoint", asked.release(Some(end.clone())).expect("forward")),
        ("finish by an asked holder", asked.finish(BTreeSet::from(["b".into()]))),
        ("claim", row.claim(&"me".into())),
        ("claim by another", row.claim(&"another".into())),
        ("renewal", mine.renewal()),
        ("checkpoint", mine.checkpoint(end.clone()).expect("forward")),
        ("prepare", mine.prepare(end.clone(), Some(Bytes::from_static(b"s"))).expect("forward")),
        ("prepare without state", mine.prepare(end.clone(), None).expect("forward")),
        ("release", mine.release(None).expect("forward")),
        ("release with a checkpoint", mine.release(Some(end)).expect("forward")),
        ("finish", mine.finish(BTreeSet::new())),
        ("eviction", row.evict()),
        ("eviction of a free lease", Lease { owner: None, checkpoint_owner: None, ..row.clone() }.evict()),
        ("reset", row.reset(back_to(Checkpoint::TrimHorizon, None))),
        ("reset to a time", row.reset(back_to(Checkpoint::AtTimestamp, Some(1_600_000_000_000)))),
        ("reset to a number", row.reset(back_to(at(2, 3), None))),
        ("finish with children", mine.finish(BTreeSet::from(["b".into(), "c".into()]))),
    ]
}

fn is_conflict(result: &Result<(), LeaseError>, row: &Lease) -> bool {
    matches!(result, Err(LeaseError::Conflict(key)) if *key == row.key)
}

async fn without_a_table_every_call_says_so(store: Store) {
    let row = new_row("a");
    let willing = Lease { owner: Some("me".into()), hands_over: Some("me".into()), ..row.clone() };
    let errors = [
        store.open(false).await.err(),
        store.list().await.err(),
        store.worker(&worker_row("a", 0).incarnation).await.err(),
        store.beat(&worker_row("a", 0)).await.err(),
        store.forget(&worker_row("a", 0)).await.err(),
        store.get(&row.key).await.err(),
        store.create(&row).await.err(),
        store.may_create(&row.key).await.err(),
        store.write(&row.claim(&"me".into())).await.err(),
        store.hand_off(&willing.ask(&"next".into()).expect("willing")).await.err(),
        store.delete(&row).await.err(),
    ];
    for error in errors {
        assert!(matches!(error, Some(LeaseError::NoTable { .. })), "{error:?}");
    }
}

async fn a_missing_table_is_made_once_however_many_ask(store: Store) {
    let mut openers = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        openers.spawn(async move { store.open(true).await });
    }
    for opened in openers.join_all().await {
        opened.expect("a table");
    }
    store.open(false).await.expect("the table");
    assert!(store.list().await.expect("rows").is_empty());
}

async fn a_row_is_read_as_it_was_put(store: Store) {
    store.open(true).await.expect("a table");
    let latest = Lease::new(&"b".into(), Checkpoint::Latest);
    let ended = Lease { checkpoint: Checkpoint::ShardEnd, ..new_row("c") };
    let dated = Lease { start_millis: Some(0), ..Lease::new(&"d".into(), Checkpoint::AtTimestamp) };
    let rows = [full_row("a"), latest, ended, dated, new_row("e")];
    for row in &rows {
        assert!(store.create(row).await.expect("put"));
        assert_eq!(store.get(&row.key).await.expect("read").as_ref(), Some(row));
    }
    let mut listed = store.list().await.expect("rows");
    listed.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(listed, rows);
    assert_eq!(store.get(&"f".into()).await.expect("read"), None);
}

async fn a_row_is_put_only_where_there_is_none(store: Store) {
    store.open(true).await.expect("a table");
    assert!(store.create(&new_row("a")).await.expect("put"));
    assert!(!store.create(&full_row("a")).await.expect("refused"));
    assert_eq!(store.get(&"a".into()).await.expect("read"), Some(new_row("a")));
}

async fn trying_whether_rows_may_be_made_makes_none(store: Store) {
    store.open(true).await.expect("a table");
    store.create(&full_row("a")).await.expect("put");
    for key in ["a", "b"] {
        store.may_create(&key.into()).await.expect("allowed");
    }
    assert_eq!(store.list().await.expect("rows"), [full_row("a")]);
}

/// The whole truth table: each kind of write on a row as it was seen, with a hand-off, with another counter.
async fn every_write_meets_its_condition_or_leaves_the_row_alone(store: Store) {
    store.open(true).await.expect("a table");
    let claimed = |by: &str| Lease {
        counter: 5,
        owner: Some("me".into()),
        owner_switches: 2,
        hands_over: Some(by.into()),
        ..new_row("a")
    };
    let (mine, namesake) = (claimed("me"), claimed("me#0123456789abcdef.3"));
    // A Java worker leaves what another one wrote; a row of its own says nothing.
    let unclaimed = Lease { hands_over: None, ..mine.clone() };
    let prepared = PendingCheckpoint { at: at(3, 0), state: Some(Bytes::from_static(b"old")) };
    let theirs = Lease {
        owner: Some("another".into()),
        pending: Some(prepared),
        children: BTreeSet::from(["x".into()]),
        ..mine.clone()
    };
    let free = Lease { owner: None, owner_switches: 0, ..mine.clone() };
    let hand_off = Lease { checkpoint: at(1, 1), ..full_row("a") };
    let rows = [
        ("mine", mine),
        ("a namesake's", namesake),
        ("nobody's claim", unclaimed),
        ("theirs", theirs),
        ("free", free),
        ("in hand-off", hand_off),
    ];
    for (state, row) in rows {
        for moved_by in [0, 1, -1] {
            for (kind, write) in writes(&row) {
                let case = format!("{state}, counter moved by {moved_by}, {kind}");
                let stored = row.counter.checked_add_signed(moved_by).expect("small");
                let stored = Lease { counter: stored, ..row.clone() };
                assert!(store.create(&stored).await.expect("put"), "{case}");
                let result = store.write(&write).await;
                let found = store.get(&row.key).await.expect("read").expect("the row");
                if write.is_allowed_on(&stored) {
                    result.unwrap_or_else(|error| panic!("{case}: {error}"));
                    assert_eq!(found, stored.after(&write), "{case}");
                    assert_eq!(found.counter, stored.counter + 1, "{case}");
                } else {
                    assert!(is_conflict(&result, &row), "{case}: {result:?}");
                    assert_eq!(found, stored, "{case}");
                }
                assert!(store.delete(&found).await.expect("delete"), "{case}");
            }
        }
    }
}

/// The truth table of requests for a lease and their withdrawal: on the owners alone, whatever the counter.
async fn every_request_meets_its_condition_or_leaves_the_row_alone(store: Store) {
    store.open(true).await.expect("a table");
    let willing =
        Lease { owner: Some("me".into()), hands_over: Some("me".into()), counter: 7, ..new_row("a") };
    let ask = willing.ask(&"next".into()).expect("willing");
    let requests = [ask.clone(), ask.clone().withdrawn()];
    let workers = [None, Some("me".into()), Some("next".into()), Some("another".into())];
    for owner in &workers {
        for checkpoint_owner in &workers {
            for request in &requests {
                let (owner, checkpoint_owner) = (owner.clone(), checkpoint_owner.clone());
                let stored = Lease { owner, checkpoint_owner, ..full_row("a") };
                assert!(store.create(&stored).await.expect("put"));
                let result = store.hand_off(request).await;
                let found = store.get(&stored.key).await.expect("read").expect("the row");
                if request.is_allowed_on(&stored) {
                    result.unwrap_or_else(|error| panic!("{request:?} on {stored:?}: {error}"));
                    assert_eq!(found, stored.after_request(request));
                    assert_eq!(found.counter, stored.counter);
                } else {
                    assert!(is_conflict(&result, &stored), "{request:?} on {stored:?}: {result:?}");
                    assert_eq!(found, stored);
                }
                assert!(store.delete(&found).await.expect("delete"));
            }
        }
    }
    assert!(is_conflict(&store.hand_off(&ask).await, &willing), "the row is gone");
}

async fn a_shard_lives_from_claim_to_end(store: Store) {
    store.open(true).await.expect("a table");
    let seen = new_row("a");
    store.create(&seen).await.expect("put");
    let claim = seen.claim(&"me".into());
    store.write(&claim).await.expect("free");
    let now = Instant::now().into_std();
    let mut mine = Tenure::begin(&seen, &claim, now).expect("a claim");
    let children = BTreeSet::from(["b".into(), "c".into()]);
    let steps: [&(dyn Fn(&Tenure) -> LeaseWrite + Sync); 5] = [
        &|mine| mine.renewal(),
        &|mine| mine.checkpoint(at(5, 2)).expect("forward"),
        &|mine| mine.prepare(at(9, 0), Some(Bytes::from_static(b"state"))).expect("forward"),
        &|mine| mine.checkpoint(at(9, 0)).expect("forward"),
        &|mine| mine.finish(children.clone()),
    ];
    for step in steps {
        let write = step(&mine);
        store.write(&write).await.expect("mine");
        mine.accept(&write, now);
        assert_eq!(store.get(&seen.key).await.expect("read").as_ref(), Some(mine.row()));
    }
    let row = store.get(&seen.key).await.expect("read").expect("the row");
    assert_eq!((row.counter, row.owner, row.pending), (6, None, None));
    assert_eq!((row.checkpoint, row.children), (Checkpoint::ShardEnd, children));
}

/// Its checkpoint was moved by hand since it was seen.
async fn a_claim_is_answered_with_the_row_that_it_took(store: Store) {
    store.open(true).await.expect("a table");
    let seen = Lease { counter: 41, ..full_row("a") };
    let anew = Lease { checkpoint: at(5, 2), ..seen.clone() };
    store.create(&anew).await.expect("put");
    let claim = seen.claim(&Claimant::new(&"me".into(), 7, 1));
    assert_eq!(store.claim(&claim).await.expect("unchanged"), anew.after(&claim));
    let late = store.claim(&seen.claim(&Claimant::new(&"me".into(), 8, 1))).await;
    assert!(is_conflict(&late.map(drop), &seen));
}

/// The row was deleted and made anew since it was seen, and has come to the same counter.
async fn a_claim_or_deletion_meets_only_the_holding_that_it_saw(store: Store) {
    store.open(true).await.expect("a table");
    let row = |owner: Option<&str>, from: Option<&str>, by: Option<&str>| Lease {
        counter: 41,
        owner: owner.map(WorkerId::from),
        checkpoint_owner: from.map(WorkerId::from),
        hands_over: by.map(Claimant::from),
        ..new_row("a")
    };
    let (first, second) = (Some("a#0123456789abcdef.1"), Some("a#0123456789abcdef.2"));
    let rows = [
        row(None, None, None),
        row(None, None, first),
        row(Some("a"), None, None),
        row(Some("a"), None, first),
        row(Some("a"), None, second),
        row(Some("java"), None, None),
        row(Some("java"), None, first),
        row(Some("java"), Some("a"), first),
        row(Some("java"), Some("a"), second),
    ];
    for seen in &rows {
        for stored in &rows {
            let case = format!("{seen:?} was seen, {stored:?} is stored");
            assert!(store.create(stored).await.expect("put"), "{case}");
            let same = seen == stored;
            assert_eq!(store.delete(seen).await.expect("an answer"), same, "{case}");
            assert_eq!(store.create(stored).await.expect("an answer"), same, "{case}");
            let result = store.claim(&seen.claim(&Claimant::new(&"me".into(), 7, 1))).await;
            let found = store.get(&stored.key).await.expect("read").expect("the row");
            match result {
                Ok(row) => assert!(same && row == found, "{case}"),
                Err(error) => assert!(!same && found == *stored, "{case}: {error}"),
            }
            assert!(store.delete(&found).await.expect("deleted"), "{case}");
        }
    }
}

async fn of_two_claims_from_one_look_the_second_loses(store: Store) {
    store.open(true).await.expect("a table");
    let seen = new_row("a");
    store.create(&seen).await.expect("put");
    store.write(&seen.claim(&"first".into())).await.expect("free");
    let result = store.write(&seen.claim(&"second".into())).await;
    assert!(is_conflict(&result, &seen), "{result:?}");
    let row = store.get(&seen.key).await.expect("read").expect("the row");
    assert_eq!((row.holder(), row.counter), (Some(&"first".into()), 1));
}

async fn a_write_that_was_sent_twice_is_recognised(store: Store) {
    store.open(true).await.expect("a table");
    let owner = Some("me".into());
    let row = Lease { counter: 5, owner, hands_over: Some("me".into()), ..new_row("a") };
    store.create(&row).await.expect("put");
    let write = holding(&row).checkpoint(at(8, 0)).expect("forward");
    store.write(&write).await.expect("mine");
    let again = store.write(&write).await;
    assert!(is_conflict(&again, &row), "{again:?}");
    let found = store.get(&row.key).await.expect("read").expect("the row");
    assert!(write.took_effect_on(&found, &"me".into()));
}

async fn of_a_hundred_workers_exactly_one_claims_a_lease(store: Store) {
    store.open(true).await.expect("a table");
    let mut seen = new_row("a");
    store.create(&seen).await.expect("put");
    for round in 1..=8 {
        let start = Arc::new(Barrier::new(100));
        let mut workers = JoinSet::new();
        for worker in 0..100 {
            let (store, seen, start) = (store.clone(), seen.clone(), start.clone());
            workers.spawn(async move {
                let me = WorkerId::from(format!("worker-{worker}"));
                start.wait().await;
                store.write(&seen.claim(&(&me).into())).await.map(|()| me)
            });
        }
        let results = workers.join_all().await;
        let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        let row = store.get(&seen.key).await.expect("read").expect("the row");
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!((row.holder(), row.counter), (Some(winners[0]), round));
        for result in results {
            assert!(matches!(result, Ok(_) | Err(LeaseError::Conflict(_))), "{result:?}");
        }
        seen = row;
    }
}

async fn the_counter_counts_every_write_that_succeeded(store: Store) {
    store.open(true).await.expect("a table");
    store.create(&new_row("a")).await.expect("put");
    let mut workers = JoinSet::new();
    for worker in 0..10 {
        let store = store.clone();
        workers.spawn(async move {
            let (me, mut won) = (format!("worker-{worker}").as_str().into(), 0);
            for _ in 0..20 {
                let seen = store.get(&"a".into()).await.expect("read").expect("the row");
                won += u64::from(store.write(&seen.claim(&me)).await.is_ok());
            }
            won
        });
    }
    let won: u64 = workers.join_all().await.into_iter().sum();
    assert_eq!(store.get(&"a".into()).await.expect("read").expect("the row").counter, won);
    assert!(won >= 20);
}

async fn a_read_sees_every_write_before_it(store: Store) {
    store.open(true).await.expect("a table");
    let mut row = new_row("a");
    store.create(&row).await.expect("put");
    for _ in 0..100 {
        let write = row.claim(&"me".into());
        store.write(&write).await.expect("alone");
        row = row.after(&write);
        assert_eq!(store.get(&row.key).await.expect("read").as_ref(), Some(&row));
    }
}

async fn a_row_is_deleted_only_as_it_was_seen(store: Store) {
    store.open(true).await.expect("a table");
    let seen = full_row("a");
    store.create(&seen).await.expect("put");
    let write = seen.claim(&"another".into());
    store.write(&write).await.expect("alone");
    assert!(!store.delete(&seen).await.expect("refused"));
    let now = seen.after(&write);
    assert_eq!(store.get(&seen.key).await.expect("read").as_ref(), Some(&now));
    // Set back by hand, which leaves the counter.
    let other = Lease { checkpoint: Checkpoint::ShardEnd, ..now.clone() };
    assert!(!store.delete(&other).await.expect("refused"));
    assert!(store.delete(&now).await.expect("deleted"));
    assert_eq!(store.get(&seen.key).await.expect("read"), None);
    assert!(!store.delete(&now).await.expect("gone"));
}

async fn a_deleted_row_is_not_brought_back(store: Store) {
    store.open(true).await.expect("a table");
    let row = Lease { counter: 5, ..new_row("a") };
    for (kind, write) in writes(&row) {
        let result = store.write(&write).await;
        assert!(is_conflict(&result, &row), "{kind}: {result:?}");
    }
    assert!(store.list().await.expect("rows").is_empty());
}

fn worker_row(name: &str, counter: u64) -> WorkerRow {
    WorkerRow { incarnation: Incarnation::new(&name.into(), 1, 1), counter }
}

async fn a_worker_row_is_made_once_and_raised_only(store: Store) {
    store.open(true).await.expect("a table");
    let beat = async |counter| store.beat(&worker_row("a", counter)).await.expect("an answer");
    assert!(!beat(3).await, "there is no row to raise");
    assert!(beat(0).await);
    assert!(!beat(0).await, "there is one");
    assert!(beat(2).await);
    assert!(!beat(2).await && !beat(1).await, "a late beat does not go back");
    assert!(beat(3).await);
    let row = worker_row("a", 3);
    assert_eq!(store.worker(&row.incarnation).await.expect("an answer"), Some(row));
}

async fn a_worker_row_is_deleted_only_as_it_was_seen(store: Store) {
    store.open(true).await.expect("a table");
    let row = worker_row("a", 1);
    assert!(!store.forget(&row).await.expect("an answer"), "there is none");
    store.beat(&worker_row("a", 0)).await.expect("a beat");
    assert!(!store.forget(&row).await.expect("an answer"));
    store.beat(&row).await.expect("a beat");
    assert!(!store.forget(&worker_row("a", 0)).await.expect("an answer"));
    assert!(store.forget(&row).await.expect("an answer"));
    assert_eq!(store.worker(&row.incarnation).await.expect("an answer"), None);
    assert!(!store.beat(&worker_row("a", 2)).await.expect("an answer"), "a late beat does not bring it back");
}

async fn worker_rows_and_leases_are_told_apart(store: Store) {
    store.open(true).await.expect("a table");
    let (lease, worker) = (new_row("shardId-000000000000"), worker_row("pod/3", 0));
    store.create(&lease).await.expect("put");
    store.beat(&worker).await.expect("a beat");
    let rows = store.scan().await.expect("rows");
    assert_eq!((rows.leases, rows.workers), (vec![lease.clone()], vec![worker]));
    assert_eq!(store.list().await.expect("rows"), [lease]);
}

async fn a_claim_says_by_what_the_lease_lives(store: Store) {
    store.open(true).await.expect("a table");
    let mut row = new_row("a");
    store.create(&row).await.expect("put");
    let incarnation = worker_row("me", 0).incarnation;
    let claims = [row.claim(&"me".into()).living_by(incarnation.clone()), {
        row = row.after(&row.claim(&"me".into()));
        row.claim(&"other".into())
    }];
    for (claim, lives_by) in claims.iter().zip([Some(&incarnation), None]) {
        store.write(claim).await.expect("a claim");
        let row = store.get(&"a".into()).await.expect("an answer").expect("a row");
        assert_eq!((row.lives_by(), row.heartbeat.as_ref()), (lives_by, lives_by));
        assert_eq!(store.list().await.expect("rows"), [row]);
    }
}

/// DynamoDB answers a scan by pages of 1 MB.
async fn a_table_of_many_pages_is_listed_whole(store: Store) {
    store.open(true).await.expect("a table");
    let state = Some(Bytes::from(vec![7; 150_000]));
    let mut keys = BTreeSet::new();
    for shard in 0..24 {
        let pending = PendingCheckpoint { at: Checkpoint::Latest, state: state.clone() };
        let row = Lease { pending: Some(pending), ..new_row(&format!("shardId-{shard:012}")) };
        store.create(&row).await.expect("put");
        keys.insert(row.key);
    }
    let listed = store.list().await.expect("rows");
    assert_eq!(listed.len(), 24);
    assert!(listed.iter().all(|row| row.pending.as_ref().is_some_and(|pending| pending.state == state)));
    assert_eq!(listed.into_iter().map(|row| row.key).collect::<BTreeSet<_>>(), keys);
}
