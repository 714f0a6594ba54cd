//! `tail`: whom it ends for, and what it follows.

use std::{
    collections::BTreeSet,
    process::{Output, Stdio},
    time::Duration,
};

use kinesis_consumer::{
    ShardId,
    local::{Fault, LocalAws},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::stage::{BINARY, PATIENCE, until};

/// A tail under way, and its lines.
struct Tail {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(aws: &LocalAws, arguments: &str) -> Self {
        let mut process = Command::new(BINARY)
            .args(["tail", "-s", "stream"])
            .args(arguments.split(' '))
            .envs(aws.env())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the tool runs");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, lines }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time");
        line.expect("UTF-8").expect("it goes on")
    }

    async fn shard(&mut self) -> ShardId {
        self.line().await.split(' ').nth(1).expect("a shard").into()
    }

    async fn ended(self) -> Output {
        timeout(PATIENCE, self.process.wait_with_output()).await.expect("it ends").expect("waited for")
    }
}

#[tokio::test]
async fn it_ends_when_nobody_reads_what_it_prints() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    aws.put("stream", "key", "1");
    let mut tail = Tail::start(&aws, "--from trim-horizon --follow");
    tail.line().await;
    let Tail { mut process, lines } = tail;
    drop(lines);
    aws.put("stream", "key", "2");
    let ended = timeout(PATIENCE, process.wait()).await.expect("it ends").expect("waited for");
    assert_eq!(ended.code(), Some(0), "as `| head` wants it");
}

#[tokio::test]
async fn it_follows_a_shard_into_what_continues_it() {
    let aws = LocalAws::start().await.expect("servers");
    let stream = aws.create_stream("stream", 2);
    let [left, right]: [ShardId; 2] =
        stream.open_shards().into_iter().map(|shard| shard.id).collect::<Vec<_>>().try_into().expect("two");
    aws.put("stream", "key", "1");
    let mut tail = Tail::start(&aws, "--from trim-horizon --follow");
    tail.line().await;
    let first: BTreeSet<ShardId> = stream.split(&left).into();
    let merged_from = stream.split(&right);
    let merged = stream.merge(&merged_from[0], &merged_from[1]);
    for shard in stream.open_shards() {
        stream.put_to(shard.hash_range.start, "key", "2");
    }
    let expected: BTreeSet<ShardId> = first.into_iter().chain([merged]).collect();
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        assert!(seen.insert(tail.shard().await), "each once");
    }
    assert_eq!(seen, expected);
}

#[cfg(unix)]
#[tokio::test]
async fn an_interrupt_during_a_read_ends_it() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    let tail = Tail::start(&aws, "--from trim-horizon --follow");
    until("it reads", async || aws.calls("GetRecords") > 0).await;
    // From now on it is never between two rounds.
    aws.inject("GetRecords", 1000, &Fault::Delay(Duration::from_secs(3600)));
    let asked = aws.calls("GetRecords");
    until("a read under way", async || aws.calls("GetRecords") > asked).await;
    let id = tail.process.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().await.expect("kill").success());
    let ended = tail.ended().await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}
