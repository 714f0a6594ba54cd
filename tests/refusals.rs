//! What a worker refuses at its start: each with one clear error that says what to change, before anything
//! is written.

mod support;

use std::time::Duration;

use aws_sdk_dynamodb::types::ScalarAttributeType;
use kinesis_consumer::{
    BuildError, Config, InitialPosition, LeaseTable, Ordering, Worker, WorkerBuilder,
    local::{Fault, LocalAws},
};
use support::dynamodb::{config as dynamodb_config, make_table};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

/// How long a start may take to refuse.
const PATIENCE: Duration = Duration::from_secs(30);

async fn servers() -> LocalAws {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("cart-queue", 2);
    aws
}

fn config() -> Config {
    Config { initial_position: InitialPosition::TrimHorizon, ..Config::default() }
}

fn builder(aws: &LocalAws) -> WorkerBuilder {
    builder_of(aws, "cart-queue")
}

fn builder_of(aws: &LocalAws, stream: &str) -> WorkerBuilder {
    Worker::builder("cart-worker", stream)
        .kinesis(aws.kinesis_client())
        .dynamodb(aws.dynamodb_client())
        .config(config())
}

/// The message with which the worker refuses to run.
async fn refusal(builder: WorkerBuilder) -> String {
    let worker = builder.each(Ordering::Shard, |_| async { Ok(()) }).expect("a valid configuration");
    let ended = tokio::time::timeout(PATIENCE, worker.run()).await.expect("an answer in time");
    ended.expect_err("a refusal").to_string()
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

async fn tables(aws: &LocalAws) -> Vec<String> {
    let answer = aws.dynamodb_client().list_tables().send().await.expect("an answer");
    answer.table_names().to_vec()
}

async fn rows(aws: &LocalAws, table: &str) -> usize {
    let answer = aws.dynamodb_client().scan().table_name(table).send().await.expect("an answer");
    answer.items().len()
}

#[tokio::test]
async fn a_stream_that_does_not_exist() {
    let aws = servers().await;
    let message = refusal(builder_of(&aws, "cart-queu")).await;
    says(&message, &["cart-queu", "does not exist", "account and region"]);
    assert!(tables(&aws).await.is_empty());
}

#[tokio::test]
async fn a_table_with_another_key() {
    let aws = servers().await;
    for key in [("id", ScalarAttributeType::S), ("leaseKey", ScalarAttributeType::N)] {
        let table = format!("cart-{}", key.0);
        make_table(&aws.dynamodb_client(), &table, &[key]).await;
        let config = Config { lease_table_name: Some(table.clone()), ..config() };
        let message = refusal(builder(&aws).config(config)).await;
        says(&message, &[&table, "leaseKey", "give the lease table another name"]);
        assert_eq!(rows(&aws, &table).await, 0);
    }
}

#[tokio::test]
async fn a_table_of_another_stream() {
    let aws = servers().await;
    aws.create_stream("other", 2);
    let worker = builder(&aws).each(Ordering::Shard, |_| async { Ok(()) }).expect("valid");
    let handle = worker.handle();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run());
    assert!(handle.ready().await);
    handle.shutdown().await;
    let rows_of = async || {
        let answer = aws.dynamodb_client().scan().table_name("cart-worker").send().await.expect("an answer");
        let mut rows: Vec<String> =
            answer.items().iter().map(|row| format!("{:?}", row.get("leaseCounter"))).collect();
        rows.sort();
        rows
    };
    let before = rows_of().await;
    let message = refusal(builder_of(&aws, "other")).await;
    says(&message, &["cart-worker", "stream/cart-queue", "stream/other", "another application name"]);
    assert_eq!(rows_of().await, before);
}

#[tokio::test]
async fn no_credentials() {
    let aws = servers().await;
    let kinesis = aws_sdk_kinesis::Config::builder()
        .behavior_version(aws_sdk_kinesis::config::BehaviorVersion::latest())
        .region(aws_sdk_kinesis::config::Region::new("us-east-1"))
        .endpoint_url(aws.kinesis_url());
    let message = refusal(builder(&aws).kinesis(aws_sdk_kinesis::Client::from_conf(kinesis.build()))).await;
    says(&message, &["access denied", "describe the stream", "credentials"]);
    assert!(tables(&aws).await.is_empty());
    let dynamodb = aws_sdk_dynamodb::Client::from_conf(dynamodb_config(aws.dynamodb_url()).build());
    let message = refusal(builder(&aws).dynamodb(dynamodb)).await;
    says(&message, &["access denied", "lease table", "credentials"]);
    assert!(tables(&aws).await.is_empty());
}

#[tokio::test]
async fn a_permission_that_kinesis_refuses() {
    for (operation, what) in [
        ("DescribeStreamSummary", "describe the stream"),
        ("ListShards", "list shards"),
        ("GetShardIterator", "open a shard iterator"),
        ("GetRecords", "read records"),
    ] {
        let aws = servers().await;
        let denied = Fault::Error {
            status: 400,
            code: "AccessDeniedException".into(),
            message: format!("User: cart is not authorized to perform: kinesis:{operation}"),
        };
        aws.inject(operation, 1, &denied);
        let message = refusal(builder(&aws)).await;
        says(&message, &["access denied", what, &format!("kinesis:{operation}"), "role's policy"]);
        assert!(tables(&aws).await.is_empty(), "{operation}");
    }
}

#[tokio::test]
async fn a_permission_that_dynamodb_refuses() {
    let aws = servers().await;
    let (url, _server) = refusing_dynamodb().await;
    let client = support::dynamodb::client(&url);
    let message = refusal(builder(&aws).dynamodb(client)).await;
    says(
        &message,
        &["access denied", "lease table", "not authorized to perform: dynamodb:", "role's policy"],
    );
}

/// Answers every call as DynamoDB does when the role may not make it.
async fn refusing_dynamodb() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free loopback port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let mut server = JoinSet::new();
    server.spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let body = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"User: cart is not authorized to perform: dynamodb:DescribeTable"}"#;
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let mut request = vec![0; 64 * 1024];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    });
    (url, server)
}

#[tokio::test]
async fn a_missing_table_that_must_exist() {
    let aws = servers().await;
    let config = Config { lease_table: LeaseTable::MustExist, ..config() };
    let message = refusal(builder(&aws).config(config)).await;
    says(&message, &["cart-worker", "does not exist", "leaseKey", "create_if_missing"]);
    assert!(tables(&aws).await.is_empty());
}

#[tokio::test]
async fn a_health_file_that_cannot_be_written() {
    let aws = servers().await;
    let path = std::env::temp_dir().join("no-such-folder").join("health");
    let config = Config { health_file: Some(path.clone()), ..config() };
    let message = refusal(builder(&aws).config(config)).await;
    says(&message, &[path.to_str().expect("text"), "cannot be written", "choose a writable path"]);
    assert_eq!(aws.calls("DescribeStreamSummary"), 0);
    assert!(tables(&aws).await.is_empty());
}

#[tokio::test]
async fn limits_of_zero() {
    let aws = servers().await;
    let zero = Config {
        max_leases_for_worker: Some(0),
        max_leases_to_steal_at_one_time: Some(0),
        max_records: 0,
        memory_budget: 0,
        failover_time: Duration::ZERO,
        scan_budget: 0.0,
        ..config()
    };
    let refused = builder(&aws).config(zero).each(Ordering::Shard, |_| async { Ok(()) });
    let Err(error @ BuildError::Invalid(_)) = refused else { panic!("{refused:?}") };
    let message = error.to_string();
    says(
        &message,
        &[
            "max_leases_for_worker: 0 would never take a lease; at least 1",
            "max_leases_to_steal_at_one_time: 0",
            "max_records: 0 is not within 1 and 10000",
            "memory_budget: 0 is less than",
            "failover_time: 0ns is too short; at least 1s",
            "scan_budget: 0 must be above 0",
        ],
    );
    assert_eq!(aws.calls("DescribeStreamSummary"), 0);
}

#[tokio::test]
async fn a_worker_id_that_is_in_use() {
    let aws = servers().await;
    let config =
        Config { worker_id: Some("cart-1".into()), failover_time: Duration::from_secs(2), ..config() };
    let worker =
        builder(&aws).config(config.clone()).each(Ordering::Shard, |_| async { Ok(()) }).expect("valid");
    let handle = worker.handle();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run());
    assert!(handle.ready().await);
    let message = refusal(builder(&aws).config(config)).await;
    says(&message, &["worker id cart-1 is in use", "its own worker_id"]);
    handle.shutdown().await;
    let report = tasks.join_next().await.expect("a task").expect("no panic").expect("no error");
    assert_eq!((report.released.len(), report.lost.len()), (2, 0), "undisturbed");
}
