//! What only the local servers have: faults, limits, page tokens, the metrics sink; and what the AWS
//! adapter makes of answers that no healthy server gives.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "support/mod.rs"]
mod support;

use std::{error::Error as _, time::Duration};

use aws_sdk_kinesis::{
    config::{BehaviorVersion, Region},
    error::ProvideErrorMetadata,
    primitives::Blob,
    types::{PutRecordsRequestEntry, ShardFilter as Filter, ShardFilterType, ShardIteratorType},
};
use kinesis_consumer::{
    io::{KinesisSource, RecordSource, ShardFilter, SourceError, StartFrom, memory::Limits},
    local::{Fault, LocalAws, LocalOptions},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_record_put_into_a_local_stream_is_read_with_the_sdk() {
    let aws = LocalAws::start().await.unwrap();
    aws.create_stream("s", 1);
    let (shard, number) = aws.put("s", "key", "payload");
    let client = aws.kinesis_client();
    let iterator = client.get_shard_iterator().stream_name("s").shard_id(shard.as_str());
    let iterator = iterator.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
    let page = client.get_records().set_shard_iterator(iterator.shard_iterator).send().await.unwrap();
    let [record] = page.records() else { panic!("one record") };
    assert_eq!(record.data().as_ref(), b"payload");
    assert_eq!(record.sequence_number(), number.as_str());
}

#[tokio::test]
async fn every_call_takes_the_arn_alone() {
    let aws = LocalAws::start().await.unwrap();
    let stream = aws.create_stream("s", 1);
    let arn = stream.describe().await.unwrap().arn;
    let source = source(&aws, &arn);
    assert_eq!(source.describe().await.unwrap().arn, arn);
    let shard = source.list_shards(ShardFilter::All).await.unwrap().remove(0).id;
    let put = aws.kinesis_client().put_record().stream_arn(&arn).partition_key("k").data(Blob::new("x"));
    put.send().await.unwrap();
    let at = source.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
    assert_eq!(source.read(&shard, &at, 10).await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn all_six_shard_filters_select_after_a_split() {
    let aws = LocalAws::start().await.unwrap();
    let stream = aws.create_stream("s", 1);
    let root = stream.open_shards().remove(0).id;
    let created = stream.describe().await.unwrap().created_at;
    stream.split(&root);
    let selected = async |kind, shard: Option<&str>, time: Option<std::time::SystemTime>| {
        let filter = Filter::builder().r#type(kind).set_shard_id(shard.map(str::to_owned));
        let filter = filter.set_timestamp(time.map(Into::into)).build().unwrap();
        let call = aws.kinesis_client().list_shards().stream_name("s").shard_filter(filter);
        let listed = call.send().await.unwrap();
        listed.shards().iter().map(|shard| shard.shard_id()[19..].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(selected(ShardFilterType::AtLatest, None, None).await, ["1", "2"]);
    assert_eq!(selected(ShardFilterType::AtTrimHorizon, None, None).await, ["0"]);
    assert_eq!(selected(ShardFilterType::FromTrimHorizon, None, None).await, ["0", "1", "2"]);
    assert_eq!(selected(ShardFilterType::AtTimestamp, None, Some(created)).await, ["0"]);
    assert_eq!(selected(ShardFilterType::FromTimestamp, None, Some(created)).await, ["0", "1", "2"]);
    let after = selected(ShardFilterType::AfterShardId, Some(root.as_str()), None).await;
    assert_eq!(after, ["1", "2"]);
}

#[tokio::test]
async fn a_listing_comes_in_pages() {
    let aws = LocalAws::start().await.unwrap();
    aws.create_stream("s", 5);
    let (mut call, mut pages) = (aws.kinesis_client().list_shards().stream_name("s"), Vec::new());
    loop {
        let page = call.max_results(2).send().await.unwrap();
        pages.push(page.shards().len());
        let Some(token) = page.next_token else { break };
        call = aws.kinesis_client().list_shards().next_token(token);
    }
    assert_eq!(pages, [2, 2, 1]);
}

#[tokio::test]
async fn a_listing_begins_again_when_its_token_has_expired_but_not_for_ever() {
    let options = LocalOptions { token_lifetime: Duration::ZERO, ..LocalOptions::default() };
    let aws = LocalAws::start_with(options).await.unwrap();
    aws.create_stream("s", 1001);
    let listed = source(&aws, "s").list_shards(ShardFilter::All).await;
    assert!(matches!(listed, Err(SourceError::ExpiredIterator)), "{listed:?}");
    assert_eq!(aws.calls("ListShards"), 6);

    let aws = LocalAws::start().await.unwrap();
    aws.create_stream("s", 1001);
    aws.inject("ListShards", 1, &Fault::error("ExpiredNextTokenException"));
    assert_eq!(source(&aws, "s").list_shards(ShardFilter::All).await.unwrap().len(), 1001);
    assert_eq!(aws.calls("ListShards"), 3);
}

#[tokio::test]
async fn an_expired_iterator_says_so() {
    let options = LocalOptions { iterator_lifetime: Duration::ZERO, ..LocalOptions::default() };
    let aws = LocalAws::start_with(options).await.unwrap();
    let shard = aws.create_stream("s", 1).open_shards().remove(0).id;
    let source = source(&aws, "s");
    let at = source.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
    let read = source.read(&shard, &at, 1).await;
    assert!(matches!(read, Err(SourceError::ExpiredIterator)), "{read:?}");
}

#[tokio::test]
async fn reads_above_the_limit_are_throttled() {
    let aws = LocalAws::start_with(LocalOptions { limits: Limits::aws(), ..LocalOptions::default() });
    let aws = aws.await.unwrap();
    let shard = aws.create_stream("s", 1).open_shards().remove(0).id;
    let source = source(&aws, "s");
    let at = source.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
    // On a slow machine a second may end in between and allow five more.
    let mut read = source.read(&shard, &at, 1).await;
    for _ in 0..200 {
        if read.is_err() {
            break;
        }
        read = source.read(&shard, &at, 1).await;
    }
    assert!(matches!(read, Err(SourceError::Throttled { .. })), "{read:?}");
}

#[tokio::test]
async fn writes_above_the_limit_fail_one_by_one() {
    let aws = LocalAws::start_with(LocalOptions { limits: Limits::aws(), ..LocalOptions::default() });
    let aws = aws.await.unwrap();
    aws.create_stream("s", 1);
    let entry = PutRecordsRequestEntry::builder().partition_key("k").data(Blob::new(vec![1; 100_000]));
    let entries = vec![entry.build().unwrap(); 30];
    let put = aws.kinesis_client().put_records().stream_name("s").set_records(Some(entries));
    let put = put.send().await.unwrap();
    assert_eq!(put.failed_record_count(), Some(20));
    let errors = put.records().iter().filter_map(|record| record.error_code());
    assert!(errors.into_iter().all(|code| code == "ProvisionedThroughputExceededException"));
}

#[tokio::test]
async fn what_aws_refuses_is_refused() {
    let aws = LocalAws::start().await.unwrap();
    let stream = aws.create_stream("s", 2);
    let shards: Vec<_> = stream.open_shards().into_iter().map(|shard| shard.id.to_string()).collect();
    let client = aws.kinesis_client();
    macro_rules! code {
        ($call:expr) => {
            $call.send().await.unwrap_err().code().unwrap().to_owned()
        };
    }
    let put = || client.put_record().stream_name("s").partition_key("k");
    assert_eq!(code!(client.create_stream().stream_name("s").shard_count(1)), "ResourceInUseException");
    assert_eq!(code!(client.create_stream().stream_name("t")), "ValidationException");
    assert_eq!(code!(put().data(Blob::new(vec![0; 10 << 20]))), "ValidationException");
    put().data(Blob::new(vec![0; (10 << 20) - 1])).send().await.unwrap();
    let entry = PutRecordsRequestEntry::builder().partition_key("k").data(Blob::new("x")).build().unwrap();
    let many = client.put_records().stream_name("s").set_records(Some(vec![entry; 501]));
    assert_eq!(code!(many), "ValidationException");
    let iterator = || client.get_shard_iterator().stream_name("s").shard_id(&shards[0]);
    let future = aws_sdk_kinesis::primitives::DateTime::from_secs(99_999_999_999);
    let at = iterator().shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(future);
    assert_eq!(code!(at), "InvalidArgumentException");
    let at =
        iterator().shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number("7");
    assert_eq!(code!(at), "InvalidArgumentException");
    assert_eq!(code!(client.get_records().shard_iterator("garbage")), "InvalidArgumentException");
    let count = client.update_shard_count().stream_name("s").target_shard_count(5);
    let count = count.scaling_type(aws_sdk_kinesis::types::ScalingType::UniformScaling);
    assert_eq!(code!(count), "LimitExceededException");
    let split = client.split_shard().stream_name("s").shard_to_split(&shards[0]).new_starting_hash_key("0");
    assert_eq!(code!(split), "InvalidArgumentException");
    let merge = client.merge_shards().stream_name("s").shard_to_merge(&shards[0]);
    assert_eq!(code!(merge.adjacent_shard_to_merge(&shards[0])), "InvalidArgumentException");
    assert_eq!(code!(client.describe_limits()), "UnknownOperationException");
}

#[tokio::test]
async fn streams_are_listed_described_and_kept_longer() {
    let aws = LocalAws::start().await.unwrap();
    let client = aws.kinesis_client();
    for name in ["a", "b", "c"] {
        aws.create_stream(name, 1);
    }
    client.delete_stream().stream_name("b").send().await.unwrap();
    assert_eq!(client.list_streams().send().await.unwrap().stream_names(), ["a", "c"]);
    let longer = client.increase_stream_retention_period().stream_name("a").retention_period_hours(48);
    longer.send().await.unwrap();
    let described = client.describe_stream().stream_name("a").send().await.unwrap();
    let described = described.stream_description.unwrap();
    assert_eq!((described.shards().len(), described.retention_period_hours()), (1, 48));
}

#[tokio::test]
async fn errors_are_told_apart_by_what_the_caller_does_next() {
    let aws = LocalAws::start().await.unwrap();
    let shard = aws.create_stream("s", 1).open_shards().remove(0).id;
    let source = source(&aws, "s");
    let at = source.open(&shard, &StartFrom::TrimHorizon).await.unwrap();
    let kind = async |code: &str| {
        aws.inject("GetRecords", 1, &Fault::error(code));
        let error = source.read(&shard, &at, 1).await.unwrap_err();
        format!("{error:?}").split([' ', '(']).next().unwrap().to_owned()
    };
    for (code, expected) in [
        ("ProvisionedThroughputExceededException", "Throttled"),
        ("LimitExceededException", "Throttled"),
        ("KMSThrottlingException", "Throttled"),
        ("ExpiredIteratorException", "ExpiredIterator"),
        ("ResourceNotFoundException", "NoShard"),
        ("AccessDeniedException", "Denied"),
        ("UnrecognizedClientException", "Denied"),
        ("InternalFailure", "Unavailable"),
        ("KMSDisabledException", "Unavailable"),
        ("ResourceInUseException", "Unavailable"),
    ] {
        assert_eq!(kind(code).await, expected, "{code}");
    }
    assert_eq!(aws.calls("GetRecords"), 10, "no call is repeated");
    aws.inject("DescribeStreamSummary", 1, &Fault::error("ResourceNotFoundException"));
    assert!(matches!(source.describe().await, Err(SourceError::NoStream { .. })));
}

#[tokio::test]
async fn a_call_without_credentials_is_denied() {
    let aws = LocalAws::start().await.unwrap();
    let config = aws_sdk_kinesis::Config::builder().behavior_version(BehaviorVersion::latest());
    let config = config.region(Region::from_static("us-east-1")).endpoint_url(aws.kinesis_url()).build();
    let client = aws_sdk_kinesis::Client::from_conf(config);
    let described = KinesisSource::new(client, "s", CALL_TIMEOUT).describe().await;
    assert!(matches!(described, Err(SourceError::Denied { .. })), "{described:?}");
}

#[tokio::test]
async fn a_lost_connection_and_a_late_answer_are_unavailable() {
    let aws = LocalAws::start().await.unwrap();
    aws.create_stream("s", 1);
    let source = source(&aws, "s");
    for fault in [Fault::Drop, Fault::DropAfter] {
        aws.inject("ListShards", 1, &fault);
        let listed = source.list_shards(ShardFilter::All).await;
        assert!(matches!(listed, Err(SourceError::Unavailable { .. })), "{fault:?}: {listed:?}");
    }
    assert_eq!(source.list_shards(ShardFilter::All).await.unwrap().len(), 1);
    let hasty = KinesisSource::new(aws.kinesis_client(), "s", Duration::from_millis(50));
    aws.inject("*", 1, &Fault::Delay(CALL_TIMEOUT * 100));
    let described = hasty.describe().await;
    assert!(matches!(described, Err(SourceError::Unavailable { .. })), "{described:?}");
    aws.inject("*", 9, &Fault::Drop);
    aws.clear_faults();
    assert!(hasty.describe().await.is_ok());
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_took_effect() {
    let aws = LocalAws::start().await.unwrap();
    let stream = aws.create_stream("s", 1);
    aws.inject("PutRecord", 1, &Fault::DropAfter);
    let put = aws.kinesis_client().put_record().stream_name("s").partition_key("k").data(Blob::new("x"));
    put.send().await.expect("the SDK repeats it");
    assert_eq!(stream.records(&stream.open_shards()[0].id).len(), 2);
}

#[tokio::test]
async fn an_error_shows_no_payload() {
    let aws = LocalAws::start().await.unwrap();
    aws.create_stream("s", 1);
    let fault = Fault::Error { status: 500, code: "InternalFailure".into(), message: "why".into() };
    aws.inject("*", 1, &fault);
    let error = source(&aws, "s").describe().await.unwrap_err();
    assert!(error.source().unwrap().to_string().contains("InternalFailure"), "{error:?}");
    assert!(!format!("{error:?}").contains("Response"), "{error:?}");
}

#[tokio::test]
async fn the_metrics_sink_keeps_what_it_is_sent() {
    let aws = LocalAws::start().await.unwrap();
    let set = json!({ "SampleCount": 2.0, "Sum": 7.0, "Minimum": 3.0, "Maximum": 4.0 });
    let datum = json!({ "MetricName": "RecordsProcessed", "StatisticValues": set });
    let body = json!({ "Namespace": "app", "MetricData": [datum] });
    let mut bytes = Vec::new();
    ciborium::into_writer(&body, &mut bytes).unwrap();
    let answer = post(aws.cloudwatch_url(), "PutMetricData", &bytes).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("smithy-protocol: rpc-v2-cbor"), "{answer}");
    let [metrics] = &aws.metrics()[..] else { panic!("one call") };
    assert_eq!(*metrics, body);
    aws.inject("PutMetricData", 1, &Fault::throttle());
    let answer = post(aws.cloudwatch_url(), "PutMetricData", &bytes).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(aws.calls("PutMetricData"), 2);
}

#[tokio::test]
async fn dynamodb_takes_tables() {
    let aws = LocalAws::start().await.unwrap();
    let client = aws.dynamodb_client();
    let key = [("leaseKey", aws_sdk_dynamodb::types::ScalarAttributeType::S)];
    support::dynamodb::make_table(&client, "leases", &key).await;
    assert_eq!(client.list_tables().send().await.unwrap().table_names(), ["leases"]);
}

#[tokio::test]
async fn a_fixed_port_can_be_asked_for_and_is_free_again_after_the_end() {
    let aws = LocalAws::start().await.unwrap();
    let port = |url: &str| url.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let options = LocalOptions {
        kinesis_port: port(aws.kinesis_url()),
        dynamodb_port: port(aws.dynamodb_url()),
        ..LocalOptions::default()
    };
    assert!(LocalAws::start_with(options.clone()).await.is_err(), "both ports are taken");
    aws.kinesis_client().list_streams().send().await.unwrap();
    aws.dynamodb_client().list_tables().send().await.unwrap();
    aws.stop().await;
    let again = LocalAws::start_with(options.clone()).await.unwrap();
    assert_eq!(port(again.kinesis_url()), options.kinesis_port);
}

#[tokio::test]
async fn open_connections_end_when_the_servers_are_dropped() {
    let aws = LocalAws::start().await.unwrap();
    let mut streams = Vec::new();
    for url in [aws.kinesis_url(), aws.dynamodb_url()] {
        streams.push(TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap());
    }
    aws.dynamodb_client().list_tables().send().await.unwrap();
    drop(aws);
    for stream in &mut streams {
        // The end of the stream, or a reset: either way the server has let go.
        assert!(matches!(stream.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    }
}

fn source(aws: &LocalAws, stream: &str) -> KinesisSource {
    KinesisSource::new(aws.kinesis_client(), stream, CALL_TIMEOUT)
}

/// Sends one call of CloudWatch as the SDK does; returns the answer's head and body as text.
async fn post(url: &str, operation: &str, body: &[u8]) -> String {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let path = "/service/GraniteServiceVersion20100801/operation";
    let head = format!(
        "POST {path}/{operation} HTTP/1.1\r\nhost: {host}\r\nsmithy-protocol: rpc-v2-cbor\r\n\
         content-type: application/cbor\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
