//! One contract for everything that records can be read from: the stream in memory, and Kinesis behind
//! the AWS adapter, served by our own local server and by independent ones.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod checks;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;

use kinesis_consumer::local::LocalAws;
use tokio::task::{JoinSet, LocalSet};

use crate::{
    checks::CHECKS,
    stage::World,
    support::servers::{self, say},
};

/// What an independent server lacks: the check that is not run against it, and what it does instead.
type Gap = (&'static str, &'static str);

const KINESIS_LOCAL: &[Gap] = &[
    ("the_shards_of_the_trim_horizon_can_be_listed_alone", "lists all shards"),
    ("a_listing_longer_than_a_page_is_whole", "makes no stream of more than 1,000 shards"),
    ("the_shards_of_a_time_can_be_listed_alone", "knows the times of shards to the second"),
    ("the_ending_number_is_not_below_any_record", "closes every shard with 9223372036854775807"),
];

const MOTO: &[Gap] = &[
    ("the_open_shards_can_be_listed_alone", "ignores filters"),
    ("the_shards_of_the_trim_horizon_can_be_listed_alone", "ignores filters"),
    ("the_shards_of_a_time_can_be_listed_alone", "ignores filters"),
    ("a_page_is_no_larger_than_ten_mebibytes", "gives any number of bytes at once"),
    ("a_split_shard_has_two_children", "puts records into the closed parent"),
    ("a_split_shard_ends_and_names_its_children", "never ends a closed shard"),
    ("latest_on_a_closed_shard_is_its_end", "never ends a closed shard"),
    ("the_ending_number_is_not_below_any_record", "never ends a closed shard"),
    ("both_parents_of_a_merge_end_and_name_the_child", "never ends a closed shard"),
];

#[tokio::test]
async fn the_stream_in_memory_keeps_the_contract() {
    check("memory", World::Memory, &[]).await;
}

#[tokio::test]
async fn kinesis_on_our_own_server_keeps_the_contract() {
    let aws = LocalAws::start().await.unwrap();
    check("local", World::Server(aws.kinesis_client()), &[]).await;
}

#[tokio::test]
async fn kinesis_on_kinesis_local_keeps_the_contract() {
    if let Some(server) = servers::kinesis_local().await {
        check("kinesis-local", World::at(&server.url()), KINESIS_LOCAL).await;
    }
}

#[tokio::test]
async fn kinesis_on_moto_keeps_the_contract() {
    if let Some(server) = servers::moto().await {
        check("moto", World::at(&server.url()), MOTO).await;
    }
}

/// Runs all checks but those that the server is listed to lack, and names each of these.
async fn check(server: &str, world: World, gaps: &[Gap]) {
    for (gap, _) in gaps {
        assert!(CHECKS.iter().any(|(name, _)| name == gap), "{gap} is listed but is no check");
    }
    LocalSet::new().run_until(run(server, Arc::new(world), gaps)).await;
}

/// One after the other: some servers become slow faster than they get more done.
async fn run(server: &str, world: Arc<World>, gaps: &[Gap]) {
    let (mut kept, mut broken) = (0, Vec::new());
    for (name, check) in CHECKS {
        if let Some((_, instead)) = gaps.iter().find(|(gap, _)| gap == name) {
            say(format_args!("NOT CHECKED on {server}: {name}; it {instead}"));
            continue;
        }
        // In a task of its own, so that a panic ends one check and not all.
        let mut task = JoinSet::new();
        task.spawn_local(check(Arc::clone(&world)));
        match task.join_next().await.expect("one task") {
            Ok(()) => kept += 1,
            Err(error) => broken.push(format!("{name}: {error}")),
        }
    }
    assert!(broken.is_empty(), "{server} keeps {kept} and breaks {}:\n{}", broken.len(), broken.join("\n"));
    say(format_args!("{server} keeps {kept} of {}", CHECKS.len()));
}
