//! Where it all runs: the embedded servers, or what the standard AWS environment variables point at.

use std::{collections::BTreeSet, env, error::Error, time::Duration};

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::{
    primitives::Blob,
    types::{ScalingType, StreamStatus},
};
use kinesis_consumer::local::LocalAws;

use crate::BoxError;

/// Between two questions whether the stream is ready. AWS answers 20 a second to the whole account.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// AWS takes half a minute to make or to split shards, seldom more than two.
const READY_WITHIN: Duration = Duration::from_secs(240);

pub(crate) struct Cloud {
    kinesis: aws_sdk_kinesis::Client,
    dynamodb: aws_sdk_dynamodb::Client,
    local: Option<LocalAws>,
    /// Unique, so that nothing of yours is ever touched.
    name: String,
}

impl Cloud {
    /// Starts the embedded servers, unless the environment names others.
    pub(crate) async fn open() -> Result<Self, BoxError> {
        let name = format!("quickstart-{:08x}", rand::random::<u32>());
        if embedded()? {
            let local = LocalAws::start().await?;
            let (kinesis, dynamodb) = (local.kinesis_client(), local.dynamodb_client());
            return Ok(Self { kinesis, dynamodb, local: Some(local), name });
        }
        let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
        if aws.region().is_none() {
            return Err("no region: set AWS_REGION".into());
        }
        let kinesis = aws_sdk_kinesis::Client::new(&aws);
        Ok(Self { kinesis, dynamodb: aws_sdk_dynamodb::Client::new(&aws), local: None, name })
    }

    pub(crate) fn kinesis(&self) -> &aws_sdk_kinesis::Client {
        &self.kinesis
    }

    pub(crate) fn stream(&self) -> &str {
        &self.name
    }

    /// Also the name of the lease table.
    pub(crate) fn application(&self) -> &str {
        &self.name
    }

    /// What a worker's environment needs besides ours.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        self.local.as_ref().map(|local| local.env().into()).unwrap_or_default()
    }

    pub(crate) fn describe(&self) -> String {
        match &self.local {
            Some(local) => {
                format!("embedded Kinesis at {}, DynamoDB at {}", local.kinesis_url(), local.dynamodb_url())
            }
            None => "Kinesis and DynamoDB as the AWS environment variables say".into(),
        }
    }

    /// Makes the stream; returns its shards.
    pub(crate) async fn create_stream(&self, shards: i32) -> Result<BTreeSet<String>, BoxError> {
        self.create(&self.name, shards).await
    }

    /// Splits and merges shards until there are `shards`; returns those that take records then.
    pub(crate) async fn set_shards(&self, shards: i32) -> Result<BTreeSet<String>, BoxError> {
        self.resize(&self.name, shards).await
    }

    /// Whether a split is what it is at AWS: the parent takes no more records. With moto it does, and is
    /// never read to an end. Tried on a stream that is made for it; AWS is believed.
    pub(crate) async fn can_split(&self) -> Result<bool, BoxError> {
        if self.local.is_some() || is_set("QUICKSTART_AWS") {
            return Ok(true);
        }
        let name = format!("{}-split", self.name);
        self.create(&name, 1).await?;
        let tried = async {
            let open = self.resize(&name, 2).await?;
            let put = self.kinesis.put_record().stream_name(&name).partition_key("a").data(Blob::new("a"));
            let put = put.send().await.map_err(failed("PutRecord"))?;
            Ok(open.contains(put.shard_id()))
        };
        let tried = tried.await;
        self.kinesis.delete_stream().stream_name(&name).send().await.map_err(failed("DeleteStream"))?;
        tried
    }

    /// Deletes what was made, and stops what was started.
    pub(crate) async fn close(self) -> Result<(), BoxError> {
        let deleted = async {
            let stream = self.kinesis.delete_stream().stream_name(&self.name);
            stream.enforce_consumer_deletion(true).send().await.map_err(failed("DeleteStream"))?;
            match self.dynamodb.delete_table().table_name(&self.name).send().await {
                // No worker got as far as making it.
                Err(error)
                    if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => {}
                answer => drop(answer.map_err(failed("DeleteTable"))?),
            }
            Ok::<_, BoxError>(())
        };
        let deleted = deleted.await;
        match self.local {
            Some(local) => local.stop().await,
            None => {
                let name = &self.name;
                deleted.map_err(|e| format!("if stream and table {name} exist, delete them: {e}"))?;
            }
        }
        Ok(())
    }

    async fn create(&self, stream: &str, shards: i32) -> Result<BTreeSet<String>, BoxError> {
        let create = self.kinesis.create_stream().stream_name(stream).shard_count(shards);
        create.send().await.map_err(failed("CreateStream"))?;
        self.open_shards(stream).await
    }

    async fn resize(&self, stream: &str, shards: i32) -> Result<BTreeSet<String>, BoxError> {
        let update = self.kinesis.update_shard_count().stream_name(stream);
        let update = update.target_shard_count(shards).scaling_type(ScalingType::UniformScaling);
        update.send().await.map_err(failed("UpdateShardCount"))?;
        self.open_shards(stream).await
    }

    /// Waits until the stream is ready; returns the shards that take records.
    async fn open_shards(&self, stream: &str) -> Result<BTreeSet<String>, BoxError> {
        let ready = async {
            loop {
                let answer = self.kinesis.describe_stream_summary().stream_name(stream).send().await;
                let answer = answer.map_err(failed("DescribeStreamSummary"))?;
                let summary = answer.stream_description_summary;
                if summary.is_some_and(|summary| summary.stream_status == StreamStatus::Active) {
                    return Ok::<_, BoxError>(());
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        tokio::time::timeout(READY_WITHIN, ready).await??;
        // One page holds a thousand.
        let listed = self.kinesis.list_shards().stream_name(stream).send().await;
        let listed = listed.map_err(failed("ListShards"))?.shards.unwrap_or_default();
        let is_open = |shard: &aws_sdk_kinesis::types::Shard| {
            shard.sequence_number_range.as_ref().is_none_or(|range| range.ending_sequence_number.is_none())
        };
        Ok(listed.into_iter().filter(is_open).map(|shard| shard.shard_id).collect())
    }
}

/// Whether to start servers of our own. What costs money must be asked for.
fn embedded() -> Result<bool, BoxError> {
    let kinesis = is_set("AWS_ENDPOINT_URL_KINESIS");
    let dynamodb = is_set("AWS_ENDPOINT_URL_DYNAMODB");
    if is_set("QUICKSTART_AWS") || is_set("AWS_ENDPOINT_URL") || (kinesis && dynamodb) {
        return Ok(false);
    }
    match (kinesis, dynamodb) {
        (true, false) => Err("AWS_ENDPOINT_URL_KINESIS is set; set AWS_ENDPOINT_URL_DYNAMODB too, or \
                              QUICKSTART_AWS=1 to use DynamoDB at AWS"
            .into()),
        (false, true) => Err("AWS_ENDPOINT_URL_DYNAMODB is set; set AWS_ENDPOINT_URL_KINESIS too, or \
                              QUICKSTART_AWS=1 to use Kinesis at AWS"
            .into()),
        _ => Ok(true),
    }
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Names the call that failed, and all causes below it.
pub(crate) fn failed<E: Error>(operation: &'static str) -> impl Fn(E) -> BoxError {
    move |error| {
        let causes = std::iter::successors(Some(&error as &dyn Error), |error| (*error).source());
        let causes: Vec<String> = causes.map(ToString::to_string).collect();
        format!("{operation}: {}", causes.join(": ")).into()
    }
}
