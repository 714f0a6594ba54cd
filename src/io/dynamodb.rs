//! The lease table in DynamoDB.
//!
//! Only makes the calls and sorts their errors by what the caller does next; what a row looks like is in
//! `lease_item`, and whether to repeat a call is up to the caller: the SDK's own retries are off, because a
//! repeated write meets its own counter and looks like a lost race. KCL: `DynamoDBLeaseRefresher`.

use std::{
    collections::BTreeSet,
    error::Error,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_dynamodb::{
    Client,
    error::{BuildError, ProvideErrorMetadata, SdkError},
    types::{
        AttributeDefinition, BillingMode, ConsumedCapacity, KeySchemaElement, KeyType,
        ReturnConsumedCapacity, ReturnValue, ScalarAttributeType, TableDescription, TableStatus,
    },
};
use tracing::{info, warn};

use crate::{
    clock,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::{HandOff, Lease, LeaseKey, LeaseWrite},
    },
    io::{
        BoxError, LeaseError, LeaseStore, Rows,
        lease_item::{self, Expressions, Item},
        sdk_client::tried_once,
        sdk_error::{cause, is_denied},
        worker_item,
    },
};

/// How long a table that is being made may take. KCL: `DEFAULT_LEASE_TABLE_CREATION_TIMEOUT`, 600 s.
const OPEN_TIMEOUT: Duration = Duration::from_secs(600);
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_secs(2);
/// One warning a bad row, and no more than these: a table full of nonsense must not flood the log.
const MOST_WARNINGS: usize = 100;

/// Leases in a DynamoDB table, readable and writable by the Java KCL.
pub struct DynamoDbLeaseStore {
    client: Client,
    table: String,
    warned: Mutex<BTreeSet<String>>,
}

impl DynamoDbLeaseStore {
    /// A store in `table`, which need not exist yet. Makes no call.
    ///
    /// Takes credentials, region and endpoint from `client`, but not its retries: there are none. Every
    /// call is given up after `call_timeout`, which should be well below `failover_time`.
    #[expect(clippy::needless_pass_by_value, reason = "clients are handed over as everywhere in the SDK")]
    pub fn new(client: Client, table: impl Into<String>, call_timeout: Duration) -> Self {
        Self { client: tried_once!(client, call_timeout), table: table.into(), warned: Mutex::default() }
    }

    /// The table as it stands; none if there is none.
    async fn describe(&self) -> Result<Option<TableDescription>, LeaseError> {
        let operation = "look at the lease table";
        match self.client.describe_table().table_name(&self.table).send().await {
            Ok(answer) => Ok(answer.table),
            Err(error) => match self.failed(operation, error) {
                LeaseError::NoTable { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Asks for the table; another worker may have done so just before.
    async fn make(&self) -> Result<(), LeaseError> {
        let operation = "create the lease table";
        let (key, kind) = table_key().map_err(|error| unavailable(operation, error))?;
        let request = self.client.create_table().table_name(&self.table).key_schema(key);
        let request = request.attribute_definitions(kind).billing_mode(BillingMode::PayPerRequest);
        match request.send().await {
            Ok(_) => {
                info!(table = %self.table, "lease table created");
                Ok(())
            }
            Err(error) if error.code() == Some("ResourceInUseException") => Ok(()),
            Err(error) => Err(self.failed(operation, error)),
        }
    }

    fn wrong_table(&self, why: impl Into<String>) -> LeaseError {
        LeaseError::WrongTable { table: self.table.clone(), why: why.into() }
    }

    /// Whether the table can be used now; false while it is being made.
    fn check(&self, table: &TableDescription) -> Result<bool, LeaseError> {
        let kind = |name: &str| {
            let mut kinds = table.attribute_definitions().iter();
            kinds.find(|kind| kind.attribute_name() == name).map(AttributeDefinition::attribute_type)
        };
        match table.key_schema() {
            [key]
                if key.attribute_name() == lease_item::KEY
                    && kind(lease_item::KEY) == Some(&ScalarAttributeType::S) => {}
            keys => {
                let keys: Vec<_> = keys.iter().map(KeySchemaElement::attribute_name).collect();
                return Err(self.wrong_table(format!(
                    "its key is {}, not the string {} alone; give the lease table another name, or delete \
                     this table if nothing needs it",
                    keys.join(" and "),
                    lease_item::KEY,
                )));
            }
        }
        match table.table_status() {
            Some(TableStatus::Active | TableStatus::Updating) => Ok(true),
            Some(TableStatus::Creating | TableStatus::Deleting) => Ok(false),
            status => {
                let status = status.map_or("unknown", TableStatus::as_str);
                Err(self.wrong_table(format!("its status is {status}; restore it or name another table")))
            }
        }
    }

    /// Sorts a row. One that cannot be understood is left out, with one warning.
    fn read(&self, item: &Item, rows: &mut Rows) {
        if let Some(worker) = worker_item::decode(item) {
            return rows.workers.push(worker);
        }
        match lease_item::decode(item) {
            Ok(lease) => rows.leases.extend(lease),
            Err(error) => {
                let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
                if warned.len() < MOST_WARNINGS && warned.insert(error.key.clone()) {
                    warn!(table = %self.table, row = error.key, %error, "lease row left out");
                }
            }
        }
    }

    /// Sorts an error by what the caller does next. A failed condition is not for here.
    fn failed<E>(&self, operation: &'static str, error: SdkError<E>) -> LeaseError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
        match code {
            Some("ResourceNotFoundException") => LeaseError::NoTable { table: self.table.clone() },
            _ if is_denied(&error) => LeaseError::Denied { operation, source: cause(error) },
            _ => unavailable(operation, cause(error)),
        }
    }
}

/// The table's name; a client has nothing to show.
impl fmt::Debug for DynamoDbLeaseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDbLeaseStore").field("table", &self.table).finish_non_exhaustive()
    }
}

impl DynamoDbLeaseStore {
    async fn update(
        &self,
        key: &LeaseKey,
        change: Expressions,
        answer: ReturnValue,
        operation: &'static str,
    ) -> Result<Option<Item>, LeaseError> {
        let request = self.client.update_item().table_name(&self.table);
        let request = request
            .set_key(Some(lease_item::key(key)))
            .update_expression(change.update)
            .condition_expression(change.condition)
            .set_expression_attribute_values(Some(change.values))
            .return_values(answer);
        match request.send().await {
            Ok(answer) => Ok(answer.attributes),
            Err(error) if is_failed_condition(&error) => Err(LeaseError::Conflict(key.clone())),
            Err(error) => Err(self.failed(operation, error)),
        }
    }

    /// Deletes a row if `condition` holds; says whether it did.
    async fn remove(
        &self,
        key: Item,
        condition: String,
        values: Item,
        operation: &'static str,
    ) -> Result<bool, LeaseError> {
        let request = self.client.delete_item().table_name(&self.table);
        let request = request
            .set_key(Some(key))
            .condition_expression(condition)
            .set_expression_attribute_values(Some(values));
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) if is_failed_condition(&error) => Ok(false),
            Err(error) => Err(self.failed(operation, error)),
        }
    }
}

#[async_trait]
impl LeaseStore for DynamoDbLeaseStore {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        let give_up = clock::now() + OPEN_TIMEOUT;
        let mut wait = FIRST_LOOK;
        loop {
            match self.describe().await? {
                None if !create => return Err(LeaseError::NoTable { table: self.table.clone() }),
                None => self.make().await?,
                Some(table) if self.check(&table)? => return Ok(()),
                Some(_) => {}
            }
            if clock::now() + wait > give_up {
                let source = format!("{} is not active after {} s", self.table, OPEN_TIMEOUT.as_secs());
                return Err(unavailable("wait for the lease table", source));
            }
            clock::sleep(wait).await;
            wait = LONGEST_LOOK.min(wait * 2);
        }
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        let mut rows = Rows::default();
        let mut start = None;
        loop {
            let request = self.client.scan().table_name(&self.table).set_exclusive_start_key(start);
            let request = request.return_consumed_capacity(ReturnConsumedCapacity::Total);
            let page = request.send().await.map_err(|error| self.failed("list the leases", error))?;
            page.items().iter().for_each(|item| self.read(item, &mut rows));
            if let Some(units) = page.consumed_capacity().and_then(ConsumedCapacity::capacity_units) {
                rows.read_units = Some(rows.read_units.unwrap_or(0.0) + units);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(rows);
            }
        }
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        let request = self.client.get_item().table_name(&self.table).set_key(Some(lease_item::key(key)));
        let answer = request.consistent_read(true).send().await;
        match answer.map_err(|error| self.failed("read a lease", error))?.item {
            None => Ok(None),
            // Not "no such row": that would tell the caller that the shard is unknown, or the lease lost.
            Some(item) => lease_item::decode(&item).map_err(|error| unavailable("understand a lease", error)),
        }
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        let request = self.client.put_item().table_name(&self.table);
        let request = request.set_item(Some(lease_item::encode(lease)));
        match request.condition_expression(lease_item::absent()).send().await {
            Ok(_) => Ok(true),
            Err(error) if is_failed_condition(&error) => Ok(false),
            Err(error) => Err(self.failed("create a lease", error)),
        }
    }

    async fn may_create(&self, key: &LeaseKey) -> Result<(), LeaseError> {
        let request = self.client.put_item().table_name(&self.table);
        let request = request.set_item(Some(lease_item::key(key)));
        match request.condition_expression(lease_item::never()).send().await {
            Ok(_) => Ok(()),
            Err(error) if is_failed_condition(&error) => Ok(()),
            Err(error) => Err(self.failed("create a lease", error)),
        }
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        self.update(write.key(), lease_item::update(write), ReturnValue::None, "write a lease")
            .await
            .map(drop)
    }

    async fn claim(&self, claim: &LeaseWrite) -> Result<Lease, LeaseError> {
        let operation = "claim a lease";
        let row = self.update(claim.key(), lease_item::update(claim), ReturnValue::AllNew, operation).await?;
        let row = row.map(|item| lease_item::decode(&item)).transpose();
        let row = row.map_err(|error| unavailable(operation, error))?.flatten();
        row.ok_or_else(|| LeaseError::Conflict(claim.key().clone()))
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        let change = lease_item::hand_off(request);
        self.update(request.key(), change, ReturnValue::None, "ask for a lease").await.map(drop)
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        let (condition, values) = lease_item::deletable(seen);
        self.remove(lease_item::key(&seen.key), condition, values, "delete a lease").await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        let request = self.client.get_item().table_name(&self.table);
        let request = request.set_key(Some(worker_item::key(incarnation))).consistent_read(true);
        let answer = request.send().await.map_err(|error| self.failed("read a worker's heartbeat", error))?;
        Ok(answer.item.as_ref().and_then(worker_item::decode))
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        let made = worker_item::beat(row);
        let request = self.client.update_item().table_name(&self.table);
        let request = request
            .set_key(Some(worker_item::key(&row.incarnation)))
            .update_expression(made.update)
            .condition_expression(made.condition)
            .set_expression_attribute_values(Some(made.values));
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) if is_failed_condition(&error) => Ok(false),
            Err(error) => Err(self.failed("write a heartbeat", error)),
        }
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        let (condition, values) = worker_item::unchanged(seen);
        self.remove(worker_item::key(&seen.incarnation), condition, values, "delete a worker's row").await
    }
}

fn table_key() -> Result<(KeySchemaElement, AttributeDefinition), BuildError> {
    let key = KeySchemaElement::builder().attribute_name(lease_item::KEY).key_type(KeyType::Hash);
    let kind = AttributeDefinition::builder().attribute_name(lease_item::KEY);
    Ok((key.build()?, kind.attribute_type(ScalarAttributeType::S).build()?))
}

fn is_failed_condition<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    error.as_service_error().and_then(ProvideErrorMetadata::code) == Some("ConditionalCheckFailedException")
}

fn unavailable(operation: &'static str, source: impl Into<BoxError>) -> LeaseError {
    LeaseError::Unavailable { operation, source: source.into() }
}
