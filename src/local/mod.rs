//! Kinesis, DynamoDB and CloudWatch on loopback, inside this process: for examples and for your tests.
//!
//! They start in milliseconds on free ports and end with the [`LocalAws`] that started them. Kinesis is a
//! wire face on [`MemoryStream`], with AWS's limits if asked for; DynamoDB is the crate `dynoxide-rs`;
//! CloudWatch only takes metrics in. Other processes can use them too: see [`LocalAws::env`].

mod cloudwatch;
mod dynamodb;
mod faults;
mod http;
mod kinesis;

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use aws_types::region::Region;
use bytes::Bytes;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::faults::Fault;
use crate::{
    ShardId,
    core::shard::SequenceNumber,
    io::memory::{Limits, MemoryStream, model::Settings},
};

/// What the local servers do differently from their defaults.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The limits of each shard. Default: none.
    pub limits: Limits,
    /// For how long a shard iterator can be used. Default 5 min, as with AWS.
    pub iterator_lifetime: Duration,
    /// For how long a page token of ListShards can be used. Default 5 min, as with AWS.
    pub token_lifetime: Duration,
    /// Whether a closed shard's end comes with its last records, not with an empty page after them.
    /// Default: no. AWS may do either.
    pub end_with_last_page: bool,
    /// The port of Kinesis and CloudWatch. Default 0: a free one.
    pub kinesis_port: u16,
    /// The port of DynamoDB. Default 0: a free one.
    pub dynamodb_port: u16,
}

impl Default for LocalOptions {
    fn default() -> Self {
        let Settings { limits, iterator_lifetime, end_with_last_page } = Settings::default();
        Self {
            limits,
            iterator_lifetime,
            token_lifetime: Duration::from_secs(300),
            end_with_last_page,
            kinesis_port: 0,
            dynamodb_port: 0,
        }
    }
}

/// Running local servers. They stop when this is dropped.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use kinesis_consumer::local::LocalAws;
///
/// let aws = LocalAws::start().await?;
/// aws.create_stream("cart-queue", 2);
/// aws.put("cart-queue", "cart-7", "two apples");
///
/// let shards = aws.kinesis_client().list_shards().stream_name("cart-queue").send().await.unwrap();
/// assert_eq!(shards.shards().len(), 2);
/// assert_eq!(aws.calls("ListShards"), 1);
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct LocalAws {
    kinesis: Arc<kinesis::Kinesis>,
    metrics: Arc<cloudwatch::Sink>,
    faults: Arc<faults::Faults>,
    kinesis_url: String,
    dynamodb_url: String,
    http_client: aws_sdk_kinesis::config::SharedHttpClient,
    tasks: JoinSet<()>,
    stop: DropGuard,
}

impl LocalAws {
    /// Starts the servers with default options.
    ///
    /// # Errors
    /// If no loopback port can be bound.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(LocalOptions::default()).await
    }

    /// Starts the servers.
    ///
    /// # Errors
    /// If a port is taken.
    pub async fn start_with(options: LocalOptions) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (dynamodb, dynamodb_url) = bind(options.dynamodb_port).await?;
        tasks.spawn(dynamodb::serve(dynamodb, stop.child_token())?);
        let (listener, kinesis_url) = bind(options.kinesis_port).await?;
        let kinesis = Arc::new(kinesis::Kinesis::new(options));
        let metrics = Arc::new(cloudwatch::Sink::default());
        let faults = Arc::new(faults::Faults::default());
        let router = http::Router {
            kinesis: Arc::clone(&kinesis),
            metrics: Arc::clone(&metrics),
            faults: Arc::clone(&faults),
        };
        tasks.spawn(http::serve(listener, router, stop.child_token()));
        let http_client = aws_smithy_http_client::Builder::new().build_http();
        let stop = stop.drop_guard();
        Ok(Self { kinesis, metrics, faults, kinesis_url, dynamodb_url, http_client, tasks, stop })
    }

    /// Stops the servers and waits until they have. Dropping stops them too, but does not wait.
    pub async fn stop(self) {
        let Self { mut tasks, stop, .. } = self;
        drop(stop);
        while tasks.join_next().await.is_some() {}
    }

    /// The endpoint of Kinesis.
    pub fn kinesis_url(&self) -> &str {
        &self.kinesis_url
    }

    /// The endpoint of DynamoDB.
    pub fn dynamodb_url(&self) -> &str {
        &self.dynamodb_url
    }

    /// The endpoint of CloudWatch.
    pub fn cloudwatch_url(&self) -> &str {
        &self.kinesis_url
    }

    /// The environment variables that point the AWS SDK of another process here, for example
    /// `Command::new("…").envs(aws.env())`.
    pub fn env(&self) -> [(&'static str, String); 6] {
        [
            ("AWS_ENDPOINT_URL_KINESIS", self.kinesis_url.clone()),
            ("AWS_ENDPOINT_URL_DYNAMODB", self.dynamodb_url.clone()),
            ("AWS_ENDPOINT_URL_CLOUDWATCH", self.kinesis_url.clone()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", "local".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "local".to_owned()),
        ]
    }

    /// A client of the local Kinesis.
    pub fn kinesis_client(&self) -> aws_sdk_kinesis::Client {
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(aws_sdk_kinesis::config::BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(credentials())
            .http_client(self.http_client.clone())
            .endpoint_url(&self.kinesis_url);
        aws_sdk_kinesis::Client::from_conf(config.build())
    }

    /// A client of the local DynamoDB.
    pub fn dynamodb_client(&self) -> aws_sdk_dynamodb::Client {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(credentials())
            .http_client(self.http_client.clone())
            .endpoint_url(&self.dynamodb_url);
        aws_sdk_dynamodb::Client::from_conf(config.build())
    }

    /// A client of the local CloudWatch.
    #[cfg(feature = "cloudwatch")]
    pub fn cloudwatch_client(&self) -> aws_sdk_cloudwatch::Client {
        let config = aws_sdk_cloudwatch::Config::builder()
            .behavior_version(aws_sdk_cloudwatch::config::BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(credentials())
            .http_client(self.http_client.clone())
            .endpoint_url(&self.kinesis_url);
        aws_sdk_cloudwatch::Client::from_conf(config.build())
    }

    /// Makes a stream.
    ///
    /// # Panics
    /// If there is one with this name already.
    pub fn create_stream(&self, name: &str, shards: usize) -> MemoryStream {
        self.kinesis.create(name, shards).unwrap_or_else(|| panic!("stream {name} exists already"))
    }

    /// The stream with this name, to split, trim and look into.
    ///
    /// # Panics
    /// If there is none.
    pub fn stream(&self, name: &str) -> MemoryStream {
        self.kinesis.stream(name).unwrap_or_else(|| panic!("stream {name} does not exist"))
    }

    /// Puts a record, whatever the limits.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn put(
        &self,
        stream: &str,
        partition_key: &str,
        data: impl Into<Bytes>,
    ) -> (ShardId, SequenceNumber) {
        self.stream(stream).put(partition_key, data)
    }

    /// Lets the next `times` calls of `operation` of Kinesis or CloudWatch, for example `GetRecords`, or `*`
    /// for any, meet `fault`. Faults wait in line.
    pub fn inject(&self, operation: &str, times: usize, fault: &Fault) {
        self.faults.inject(operation, times, fault);
    }

    /// Forgets the faults that no call has met yet.
    pub fn clear_faults(&self) {
        self.faults.clear();
    }

    /// How often `operation` of Kinesis or CloudWatch was called, failed calls included.
    pub fn calls(&self, operation: &str) -> u64 {
        self.faults.calls(operation)
    }

    /// The bodies of all PutMetricData calls, oldest first.
    pub fn metrics(&self) -> Vec<serde_json::Value> {
        self.metrics.bodies()
    }
}

const REGION: &str = "us-east-1";

fn credentials() -> aws_sdk_kinesis::config::Credentials {
    aws_sdk_kinesis::config::Credentials::new("local", "local", None, None, "local")
}

async fn bind(port: u16) -> io::Result<(TcpListener, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    Ok((listener, url))
}
