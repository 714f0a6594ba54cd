//! Where a command works: the clients, the table, the stream, and reads that try again.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_config::BehaviorVersion;
use aws_types::region::Region;

use super::{
    args::{Format, Global},
    exit::Trouble,
};
use crate::{
    clock,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::{Lease, LeaseKey},
        shard::{Shard, ShardId},
    },
    io::{
        DynamoDbLeaseStore, KinesisSource, LeaseError, LeaseStore, RecordSource, Rows, ShardFilter,
        SourceError, lease_rows::LeaseRows,
    },
};

/// How long one call may take. Nobody's lease waits for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a read is tried, and the first delay, which doubles.
const TRIES: u32 = 5;
const DELAY: Duration = Duration::from_millis(200);

/// The clients and what the arguments say of where to use them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Place {
    dynamodb: aws_sdk_dynamodb::Client,
    kinesis: aws_sdk_kinesis::Client,
    table: Option<String>,
    stream: Option<String>,
    pub(super) format: Format,
    pub(super) failover_time: Duration,
}

impl Place {
    /// Credentials, region and endpoint as the AWS CLI finds them. Makes no call.
    pub(super) async fn open(global: &Global) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = &global.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &global.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(url) = &global.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let config = loader.load().await;
        Self {
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            kinesis: aws_sdk_kinesis::Client::new(&config),
            table: global.table.clone(),
            stream: global.stream.clone(),
            format: global.output,
            failover_time: global.failover_time,
        }
    }

    /// The table's name.
    pub(super) fn table(&self) -> Result<&str, Trouble> {
        let missing = || Trouble::usage("name the lease table with --table");
        self.table.as_deref().ok_or_else(missing)
    }

    /// The lease tables of the account, and rows as they are stored.
    pub(super) fn rows(&self) -> LeaseRows {
        LeaseRows::new(self.dynamodb.clone())
    }

    pub(super) fn has_table(&self) -> bool {
        self.table.is_some()
    }

    /// The table, which must be there and be a lease table.
    pub(super) async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        let store = DynamoDbLeaseStore::new(self.dynamodb.clone(), self.table()?, CALL_TIMEOUT);
        patiently(|| store.open(false)).await?;
        Ok(Arc::new(store))
    }

    /// All leases, by key.
    pub(super) async fn leases(&self, store: &dyn LeaseStore) -> Result<Vec<Lease>, Trouble> {
        Ok(self.scan(store).await?.leases)
    }

    /// One look: all leases, by key, and the workers that have heartbeats.
    pub(super) async fn scan(&self, store: &dyn LeaseStore) -> Result<Rows, Trouble> {
        let mut rows = patiently(|| store.scan()).await?;
        rows.leases.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(rows)
    }

    /// The rows of workers that seem silent, never stale: a look may be.
    pub(super) async fn read_again(
        &self,
        store: &dyn LeaseStore,
        suspects: BTreeSet<Incarnation>,
    ) -> Result<Vec<(Incarnation, Option<WorkerRow>)>, Trouble> {
        let mut rows = Vec::new();
        for incarnation in suspects {
            let row = patiently(|| store.worker(&incarnation)).await?;
            rows.push((incarnation, row));
        }
        Ok(rows)
    }

    /// The stream: as named, or as the rows name it.
    pub(super) fn source(&self, leases: &[Lease]) -> Result<Arc<dyn RecordSource>, Trouble> {
        let named = leases.iter().find_map(|lease| {
            // Behind the ARN stands the time at which the stream was made.
            lease
                .stream
                .as_deref()
                .and_then(|identity| identity.rsplit_once(':'))
                .map(|(arn, _)| arn.to_owned())
        });
        let missing = || {
            Trouble::usage(
                "name the stream with --stream: no row of the table says which it is (a Java KCL made them)",
            )
        };
        let stream = self.stream.clone().or(named).ok_or_else(missing)?;
        Ok(Arc::new(KinesisSource::new(self.kinesis.clone(), stream, CALL_TIMEOUT)))
    }
}

/// Every shard of the stream.
pub(super) async fn shards(source: &dyn RecordSource) -> Result<Vec<Shard>, Trouble> {
    Ok(patiently(|| source.list_shards(ShardFilter::All)).await?)
}

/// The leases of these shards, or all if none is named.
pub(super) fn chosen<'a>(leases: &'a [Lease], shards: &[ShardId]) -> Result<Vec<&'a Lease>, Trouble> {
    if shards.is_empty() {
        return Ok(leases.iter().collect());
    }
    let find = |shard: &ShardId| {
        let found = leases.iter().find(|lease| lease.key == LeaseKey::from(shard));
        found.ok_or_else(|| Trouble::not_found(format!("the table has no lease of shard {shard}")))
    };
    shards.iter().map(find).collect()
}

/// The lease of a shard.
pub(super) fn find<'a>(leases: &'a [Lease], shard: &ShardId) -> Option<&'a Lease> {
    leases.iter().find(|lease| lease.key.as_str() == shard.as_str())
}

/// The present.
pub(super) fn now() -> SystemTime {
    clock::wall()
}

/// Errors of which some pass by themselves.
pub(super) trait Passing {
    fn may_pass(&self) -> bool;
}

impl Passing for LeaseError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl Passing for SourceError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Throttled { .. })
    }
}

/// Tries a call that changes nothing again, a few times.
pub(super) async fn patiently<T, E, F>(call: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
    E: Passing,
{
    let mut delay = DELAY;
    for _ in 1..TRIES {
        match call().await {
            Err(error) if error.may_pass() => clock::sleep(delay).await,
            done => return done,
        }
        delay *= 2;
    }
    call().await
}
