//! The contract: what the worker relies on, whatever the source.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kinesis_consumer::{
    HashKeyRange, Shard, ShardId,
    io::{ShardFilter, ShardIterator, SourceError, StartFrom},
};
use tokio::task::JoinSet;

use crate::stage::{Stage, World, eventually, is_no_shard};

/// A check with its name.
pub(crate) type Check = (&'static str, fn(Arc<World>) -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        pub(crate) const CHECKS: &[Check] =
            &[$((stringify!($check), |world| Box::pin($check(world)))),*];
    };
}

checks! {
    a_stream_made_again_has_another_identity,
    a_description_says_what_time_it_is_at_the_stream,
    a_missing_stream_and_a_missing_shard_are_told_apart,
    a_deleted_stream_leaves_its_iterators_without_a_shard,
    a_new_stream_covers_every_hash_key_once,
    a_listing_longer_than_a_page_is_whole,
    the_open_shards_can_be_listed_alone,
    the_shards_of_the_trim_horizon_can_be_listed_alone,
    the_shards_of_a_time_can_be_listed_alone,
    a_shard_is_read_from_its_oldest_record,
    latest_gives_only_what_arrives_later,
    a_latest_iterator_keeps_its_place_over_empty_reads,
    at_gives_the_record_and_after_the_next,
    at_the_starting_number_gives_the_whole_shard,
    a_timestamp_gives_what_arrived_then_or_later,
    a_timestamp_after_the_last_record_gives_nothing,
    payload_and_key_come_back_as_they_were_put,
    arrival_times_are_close_to_the_clock,
    a_page_is_no_longer_than_its_limit,
    a_page_is_no_larger_than_ten_mebibytes,
    a_reader_is_behind_until_it_reaches_the_tip,
    a_bad_iterator_is_an_error_that_says_nothing_of_the_shard,
    a_split_shard_has_two_children,
    a_split_shard_ends_and_names_its_children,
    latest_on_a_closed_shard_is_its_end,
    the_ending_number_is_not_below_any_record,
    a_merged_shard_has_one_child_with_two_parents,
    both_parents_of_a_merge_end_and_name_the_child,
    a_new_shard_count_leaves_equal_shards_with_parents,
    records_of_many_writers_come_once_and_in_order,
    a_split_under_writers_loses_and_repeats_nothing,
}

async fn a_stream_made_again_has_another_identity(world: Arc<World>) {
    let stage = world.stage(1).await;
    let identity = async || Some(stage.source.describe().await.ok()?.identity());
    let before = identity().await.unwrap();
    assert_eq!(identity().await.unwrap(), before);
    // The identity has whole seconds: a server that makes it again within one has to try once more.
    eventually("another identity", async || {
        stage.delete().await;
        stage.create(1).await;
        identity().await.filter(|identity| *identity != before)
    })
    .await;
}

async fn a_description_says_what_time_it_is_at_the_stream(world: Arc<World>) {
    let stage = world.stage(1).await;
    #[expect(clippy::disallowed_methods, reason = "the date is what is compared")]
    let now = SystemTime::now();
    let described_at = stage.source.describe().await.unwrap().described_at.unwrap();
    let off = now.duration_since(described_at).unwrap_or_else(|ahead| ahead.duration());
    assert!(off < Duration::from_secs(30), "{off:?}");
}

async fn a_missing_stream_and_a_missing_shard_are_told_apart(world: Arc<World>) {
    let stage = world.stage(1).await;
    let nowhere = ShardId::from("shardId-000000000077");
    let opened = stage.source.open(&nowhere, &StartFrom::TrimHorizon).await;
    assert!(is_no_shard(&opened, &nowhere), "{opened:?}");
    stage.delete().await;
    let described = stage.source.describe().await;
    assert!(matches!(described, Err(SourceError::NoStream { .. })), "{described:?}");
    let listed = stage.source.list_shards(ShardFilter::All).await;
    assert!(matches!(listed, Err(SourceError::NoStream { .. })), "{listed:?}");
}

async fn a_deleted_stream_leaves_its_iterators_without_a_shard(world: Arc<World>) {
    let stage = world.stage(1).await;
    let shard = stage.only_shard().await.id;
    let at = stage.open(&shard, &StartFrom::TrimHorizon).await;
    stage.delete().await;
    let read = stage.source.read(&shard, &at, 1).await;
    assert!(is_no_shard(&read, &shard), "{read:?}");
}

async fn a_new_stream_covers_every_hash_key_once(world: Arc<World>) {
    let shards = world.stage(3).await.shards(ShardFilter::All).await;
    assert_eq!(shards.len(), 3);
    assert!(shards.iter().all(|shard| shard.is_open() && shard.parents.is_empty()));
    assert_covers_all(&shards);
}

async fn a_listing_longer_than_a_page_is_whole(world: Arc<World>) {
    let shards = world.stage(1050).await.shards(ShardFilter::All).await;
    assert_eq!(shards.len(), 1050);
    assert_covers_all(&shards);
}

async fn the_open_shards_can_be_listed_alone(world: Arc<World>) {
    let stage = world.stage(1).await;
    let children = stage.split(&stage.only_shard().await).await;
    assert_eq!(stage.shards(ShardFilter::AtLatest).await, children);
    assert_eq!(stage.shards(ShardFilter::All).await.len(), 3);
}

async fn the_shards_of_the_trim_horizon_can_be_listed_alone(world: Arc<World>) {
    let stage = world.stage(1).await;
    let root = stage.only_shard().await;
    stage.split(&root).await;
    let oldest = stage.shards(ShardFilter::AtTrimHorizon).await;
    assert_eq!(ids(&oldest), [root.id]);
}

async fn the_shards_of_a_time_can_be_listed_alone(world: Arc<World>) {
    let stage = world.stage(1).await;
    let root = stage.only_shard().await;
    let (before, _) = stage.let_time_pass("key").await;
    let children = stage.split(&root).await;
    let (shard, number) = stage.put("key", "after the split").await;
    let reading = stage.read(&shard, &StartFrom::At(number)).await;
    let after = reading.records[0].arrived_at();
    assert_eq!(ids(&stage.shards(ShardFilter::AtTimestamp(before)).await), [root.id]);
    assert_eq!(ids(&stage.shards(ShardFilter::AtTimestamp(after)).await), ids(&children));
}

async fn a_shard_is_read_from_its_oldest_record(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let reading = stage.read(&shard, &StartFrom::TrimHorizon).await;
    assert_eq!(reading.data(), [b"0", b"1", b"2", b"3", b"4"]);
    assert_increasing(&reading.records);
    assert!(reading.records.iter().all(|record| *record.shard() == shard && record.position().sub == 0));
}

async fn latest_gives_only_what_arrives_later(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let at = stage.open(&shard, &StartFrom::Latest).await;
    stage.put("key", "new").await;
    assert_eq!(stage.read_on(&shard, at).await.data(), [b"new"]);
}

async fn a_latest_iterator_keeps_its_place_over_empty_reads(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let mut at = stage.open(&shard, &StartFrom::Latest).await;
    for _ in 0..20 {
        let page = stage.source.read(&shard, &at, 100).await.unwrap();
        assert!(page.records.is_empty());
        at = page.next.expect("the shard is open");
    }
    stage.put("key", "new").await;
    assert_eq!(stage.read_on(&shard, at).await.data(), [b"new"]);
}

async fn at_gives_the_record_and_after_the_next(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let all = stage.read(&shard, &StartFrom::TrimHorizon).await;
    let third = &all.records[2].position().sequence;
    assert_eq!(stage.read(&shard, &StartFrom::At(third.clone())).await.data(), [b"2", b"3", b"4"]);
    assert_eq!(stage.read(&shard, &StartFrom::After(third.clone())).await.data(), [b"3", b"4"]);
    let last = &all.records[4].position().sequence;
    assert!(stage.read(&shard, &StartFrom::After(last.clone())).await.records.is_empty());
}

async fn at_the_starting_number_gives_the_whole_shard(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let start = stage.only_shard().await.starting_sequence;
    assert_eq!(stage.read(&shard, &StartFrom::At(start)).await.records.len(), 5);
}

async fn a_timestamp_gives_what_arrived_then_or_later(world: Arc<World>) {
    let stage = world.stage(1).await;
    let (first, later) = stage.let_time_pass("key").await;
    let shard = stage.only_shard().await.id;
    let all = stage.read(&shard, &StartFrom::TrimHorizon).await.records;
    let expected: Vec<_> = all.iter().filter(|record| record.arrived_at() >= later).cloned().collect();
    assert_eq!(stage.read(&shard, &StartFrom::Timestamp(later)).await.records, expected);
    assert_eq!(stage.read(&shard, &StartFrom::Timestamp(first)).await.records, all);
    let hour_ago = StartFrom::Timestamp(first - Duration::from_secs(3600));
    assert_eq!(stage.read(&shard, &hour_ago).await.records, all);
}

async fn a_timestamp_after_the_last_record_gives_nothing(world: Arc<World>) {
    let stage = world.stage(2).await;
    let shards = stage.shards(ShardFilter::All).await;
    stage.put_to(&shards[0], "x").await;
    let (_, later) = stage.let_time_pass("a").await;
    // The clock is shared by the shards of a stream: one of them tells that it has moved on.
    let [quiet, busy] = match stage.put("a", "x").await.0 {
        busy if busy == shards[0].id => [&shards[1].id, &shards[0].id],
        busy => {
            assert_eq!(busy, shards[1].id);
            [&shards[0].id, &shards[1].id]
        }
    };
    assert!(!stage.read(busy, &StartFrom::Timestamp(later)).await.records.is_empty());
    assert!(stage.read(quiet, &StartFrom::Timestamp(later)).await.records.is_empty());
}

async fn payload_and_key_come_back_as_they_were_put(world: Arc<World>) {
    let stage = world.stage(1).await;
    let payloads = [(0..=255).collect::<Vec<u8>>(), vec![0], b"\"\\\n{}".to_vec()];
    for payload in &payloads {
        stage.put("cl\u{e9} \u{1f511}", payload.clone()).await;
    }
    let shard = stage.only_shard().await.id;
    let reading = stage.read(&shard, &StartFrom::TrimHorizon).await;
    assert_eq!(reading.data(), payloads);
    assert!(reading.records.iter().all(|record| record.partition_key() == "cl\u{e9} \u{1f511}"));
}

async fn arrival_times_are_close_to_the_clock(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    #[expect(clippy::disallowed_methods, reason = "the date is what is compared")]
    let now = SystemTime::now();
    let times = stage.read(&shard, &StartFrom::TrimHorizon).await.records;
    for time in times.iter().map(|record| record.arrived_at()) {
        let off = now.duration_since(time).unwrap_or_else(|ahead| ahead.duration());
        assert!(off < Duration::from_secs(30), "{off:?}");
    }
}

async fn a_page_is_no_longer_than_its_limit(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let at = stage.open(&shard, &StartFrom::TrimHorizon).await;
    let page = stage.source.read(&shard, &at, 2).await.unwrap();
    assert_eq!(page.records.len(), 2);
    let rest = stage.read_on(&shard, page.next.expect("there is more")).await;
    assert_eq!(rest.data(), [b"2", b"3", b"4"]);
}

async fn a_page_is_no_larger_than_ten_mebibytes(world: Arc<World>) {
    let stage = world.stage(1).await;
    stage.put_all("key", vec![vec![7; 900_000]; 14]).await;
    let shard = stage.only_shard().await.id;
    let at = stage.open(&shard, &StartFrom::TrimHorizon).await;
    let page = stage.source.read(&shard, &at, 10_000).await.unwrap();
    let bytes: usize = page.records.iter().map(|record| record.data().len()).sum();
    assert!((900_000..=10 << 20).contains(&bytes), "{bytes} bytes");
    let rest = stage.read_on(&shard, page.next.expect("there is more")).await;
    assert_eq!(page.records.len() + rest.records.len(), 14);
}

async fn a_reader_is_behind_until_it_reaches_the_tip(world: Arc<World>) {
    let stage = world.stage(1).await;
    stage.let_time_pass("key").await;
    let shard = stage.only_shard().await.id;
    let at = stage.open(&shard, &StartFrom::TrimHorizon).await;
    let page = stage.source.read(&shard, &at, 1).await.unwrap();
    assert!(page.behind > Duration::ZERO);
    let rest = stage.read_on(&shard, page.next.expect("there is more")).await;
    assert_eq!(rest.last.behind, Duration::ZERO);
}

async fn a_bad_iterator_is_an_error_that_says_nothing_of_the_shard(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let read = stage.source.read(&shard, &ShardIterator("AAAAAAAAAAGarbage".into()), 1).await;
    assert!(matches!(read, Err(SourceError::Unavailable { .. })), "{read:?}");
}

async fn a_split_shard_has_two_children(world: Arc<World>) {
    let stage = world.stage(1).await;
    stage.put("key", "to the parent").await;
    let parent = stage.only_shard().await;
    let children = stage.split(&parent).await;
    assert!(!stage.shard(&parent.id).await.is_open());
    assert_covers_all(&children);
    for (child, data) in children.iter().zip(["lower", "upper"]) {
        assert_eq!(child.parents, BTreeSet::from([parent.id.clone()]));
        assert!(child.is_open());
        assert_eq!(stage.put_to(child, data).await.0, child.id);
        assert_eq!(stage.read(&child.id, &StartFrom::TrimHorizon).await.data(), [data.as_bytes()]);
    }
}

async fn a_split_shard_ends_and_names_its_children(world: Arc<World>) {
    let stage = world.stage(1).await;
    stage.put("key", "last").await;
    let parent = stage.only_shard().await;
    let children = stage.split(&parent).await;
    let reading = stage.read_to_end(&parent.id, &StartFrom::TrimHorizon).await;
    assert_eq!(reading.data(), [b"last"]);
    assert_eq!(reading.last.behind, Duration::ZERO);
    let mut named = reading.last.children;
    named.sort_by_key(|child| child.hash_range);
    assert_eq!(named, children.each_ref().map(Into::into));
}

async fn latest_on_a_closed_shard_is_its_end(world: Arc<World>) {
    let stage = world.stage(1).await;
    stage.put("key", "last").await;
    let parent = stage.only_shard().await;
    stage.split(&parent).await;
    let reading = stage.read_to_end(&parent.id, &StartFrom::Latest).await;
    assert!(reading.records.is_empty());
    assert_eq!(reading.last.children.len(), 2);
}

async fn the_ending_number_is_not_below_any_record(world: Arc<World>) {
    let (stage, shard) = five_records(&world).await;
    let children = stage.split(&stage.only_shard().await).await;
    let end = stage.shard(&shard).await.ending_sequence.expect("the shard is closed");
    let reading = stage.read_to_end(&shard, &StartFrom::TrimHorizon).await;
    assert!(reading.records.iter().all(|record| record.position().sequence <= end), "{end}");
    assert!(children.iter().all(|child| child.starting_sequence > end), "{end}");
}

async fn a_merged_shard_has_one_child_with_two_parents(world: Arc<World>) {
    let stage = world.stage(2).await;
    let [a, b] = two_shards(&stage).await;
    let child = stage.merge(&a, &b).await;
    assert_eq!(child.parents, BTreeSet::from([a.id, b.id]));
    assert_covers_all(&[child]);
}

async fn both_parents_of_a_merge_end_and_name_the_child(world: Arc<World>) {
    let stage = world.stage(2).await;
    let parents = two_shards(&stage).await;
    let child = stage.merge(&parents[0], &parents[1]).await;
    for parent in &parents {
        let reading = stage.read_to_end(&parent.id, &StartFrom::TrimHorizon).await;
        assert_eq!(reading.last.children, [(&child).into()]);
    }
}

async fn a_new_shard_count_leaves_equal_shards_with_parents(world: Arc<World>) {
    let stage = world.stage(2).await;
    for count in [4, 2] {
        let before = stage.shards(ShardFilter::All).await.len();
        stage.update_shard_count(count).await;
        let shards = stage.shards(ShardFilter::All).await;
        assert!(shards[before..].iter().all(|shard| !shard.parents.is_empty()));
        let open: Vec<_> = shards.into_iter().filter(Shard::is_open).collect();
        assert_eq!(open.len(), count);
        assert_covers_all(&open);
        let widths = open.iter().map(|shard| shard.hash_range.end - shard.hash_range.start);
        assert!(widths.clone().max().unwrap() - widths.min().unwrap() <= count as u128);
    }
}

async fn records_of_many_writers_come_once_and_in_order(world: Arc<World>) {
    const WRITERS: usize = 4;
    const EACH: usize = 25;
    let stage = Arc::new(world.stage(1).await);
    let shard = stage.only_shard().await.id;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let stage = Arc::clone(&stage);
        writers.spawn_local(async move {
            for i in 0..EACH {
                stage.put(&format!("{writer}"), format!("{writer} {i:04}")).await;
            }
        });
    }
    let (mut at, mut records) = (stage.open(&shard, &StartFrom::TrimHorizon).await, Vec::new());
    eventually("all records are read", async || {
        let page = stage.source.read(&shard, &at, 1000).await.unwrap();
        records.extend(page.records);
        at = page.next.expect("the shard is open");
        (records.len() >= WRITERS * EACH).then_some(())
    })
    .await;
    writers.join_all().await;
    assert_increasing(&records);
    for writer in 0..WRITERS {
        let own = records.iter().filter(|record| record.partition_key() == format!("{writer}"));
        let own: Vec<_> = own.map(|record| record.data().clone()).collect();
        assert_eq!(own, (0..EACH).map(|i| format!("{writer} {i:04}")).collect::<Vec<_>>());
    }
}

async fn a_split_under_writers_loses_and_repeats_nothing(world: Arc<World>) {
    const RECORDS: usize = 100;
    let stage = Arc::new(world.stage(1).await);
    let root = stage.only_shard().await;
    let mut writer = JoinSet::new();
    let hand = Arc::clone(&stage);
    writer.spawn_local(async move {
        for i in 0..RECORDS {
            hand.put(&format!("key {i}"), format!("{i}")).await;
        }
    });
    eventually("writing has begun", async || {
        (!stage.read(&root.id, &StartFrom::TrimHorizon).await.records.is_empty()).then_some(())
    })
    .await;
    stage.split(&root).await;
    writer.join_all().await;
    let mut all = Vec::new();
    for shard in stage.shards(ShardFilter::All).await {
        let reading = stage.read(&shard.id, &StartFrom::TrimHorizon).await;
        all.extend(reading.records.into_iter().map(|record| record.into_data()));
    }
    let mut expected: Vec<_> = (0..RECORDS).map(|i| format!("{i}")).collect();
    all.sort();
    expected.sort();
    assert_eq!(all, expected);
}

/// A stream of one shard with the records 0 to 4.
async fn five_records(world: &World) -> (Stage, ShardId) {
    let stage = world.stage(1).await;
    for i in 0..5 {
        stage.put("key", format!("{i}")).await;
    }
    let shard = stage.only_shard().await.id;
    (stage, shard)
}

async fn two_shards(stage: &Stage) -> [Shard; 2] {
    stage.shards(ShardFilter::All).await.try_into().expect("two shards")
}

fn ids(shards: &[Shard]) -> Vec<ShardId> {
    shards.iter().map(|shard| shard.id.clone()).collect()
}

#[track_caller]
fn assert_increasing(records: &[kinesis_consumer::Record]) {
    assert!(records.is_sorted_by(|a, b| a.position() < b.position()), "{records:?}");
}

#[track_caller]
fn assert_covers_all(shards: &[Shard]) {
    let mut ranges: Vec<_> = shards.iter().map(|shard| shard.hash_range).collect();
    ranges.sort();
    assert_eq!(ranges[0].start, HashKeyRange::ALL.start);
    assert_eq!(ranges[ranges.len() - 1].end, HashKeyRange::ALL.end);
    assert!(ranges.windows(2).all(|pair| pair[0].end.checked_add(1) == Some(pair[1].start)), "{ranges:?}");
}
