//! Lease tables as they are stored: which there are, and their rows with every attribute, known or not.
//!
//! For the operator's tool alone. A row travels as DynamoDB JSON, the form of `aws dynamodb scan`, so that
//! either tool reads what the other wrote. What a row means is for `lease_item`.

use std::{collections::BTreeMap, error::Error, fmt};

use aws_sdk_dynamodb::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::Blob,
    types::AttributeValue,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    core::lease::{Lease, LeaseKey},
    io::{
        LeaseError,
        lease_item::{self, Item},
        sdk_error::{cause, is_denied},
    },
};

/// A table whose key is that of a lease table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableLine {
    pub(crate) name: String,
    /// As DynamoDB counts them, every few hours.
    pub(crate) rows: i64,
    pub(crate) status: String,
}

/// The tables of an account, and their rows.
pub(crate) struct LeaseRows {
    client: Client,
}

impl LeaseRows {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// All tables that could be lease tables, by name; and how many may not be looked at.
    pub(crate) async fn tables(&self) -> Result<(Vec<TableLine>, usize), LeaseError> {
        let operation = "list the tables";
        let (mut found, mut hidden, mut start) = (Vec::new(), 0, None);
        loop {
            let request = self.client.list_tables().set_exclusive_start_table_name(start);
            let page = request.send().await.map_err(|error| failed(operation, "", error))?;
            for name in page.table_names() {
                let table = match self.client.describe_table().table_name(name).send().await {
                    // A role that is narrowed to one application's table.
                    Err(error) if is_denied(&error) => {
                        hidden += 1;
                        continue;
                    }
                    answer => answer.map_err(|error| failed(operation, name, error))?.table,
                };
                let Some(table) = table else { continue };
                if matches!(table.key_schema(), [key] if key.attribute_name() == lease_item::KEY) {
                    let status = table.table_status().map_or("", |status| status.as_str()).to_owned();
                    found.push(TableLine {
                        name: name.clone(),
                        rows: table.item_count().unwrap_or(0),
                        status,
                    });
                }
            }
            start = page.last_evaluated_table_name;
            if start.is_none() {
                found.sort_by(|a, b| a.name.cmp(&b.name));
                return Ok((found, hidden));
            }
        }
    }

    /// Every row as it stands, by key; of a table that changes meanwhile, each row at its own moment.
    pub(crate) async fn all(&self, table: &str) -> Result<Vec<Row>, LeaseError> {
        let (mut rows, mut start) = (BTreeMap::new(), None);
        loop {
            let request = self.client.scan().table_name(table).consistent_read(true);
            let page = request.set_exclusive_start_key(start).send().await;
            let page = page.map_err(|error| failed("read the rows", table, error))?;
            let items = page.items.unwrap_or_default();
            rows.extend(items.into_iter().map(|item| (key_of(&item).to_owned(), Row(item))));
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(rows.into_values().collect());
            }
        }
    }

    /// One row.
    pub(crate) async fn get(&self, table: &str, key: &str) -> Result<Option<Row>, LeaseError> {
        let request = self.client.get_item().table_name(table).consistent_read(true);
        let answer = request.set_key(Some(lease_item::key(&LeaseKey::from(key)))).send().await;
        Ok(answer.map_err(|error| failed("read a row", table, error))?.item.map(Row))
    }

    /// Puts a row where there is none, or over one whose counter is still `over`. Says whether it did.
    pub(crate) async fn put(&self, table: &str, row: &Row, over: Option<u64>) -> Result<bool, LeaseError> {
        let request = self.client.put_item().table_name(table).set_item(Some(row.0.clone()));
        let request = match over {
            None => request.condition_expression(lease_item::absent()),
            Some(counter) => {
                let (condition, values) = lease_item::unchanged_since(counter);
                request.condition_expression(condition).set_expression_attribute_values(Some(values))
            }
        };
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(failed("put a row", table, error)),
        }
    }
}

fn failed<E>(operation: &'static str, table: &str, error: SdkError<E>) -> LeaseError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match error.code() {
        Some("ResourceNotFoundException") => LeaseError::NoTable { table: table.to_owned() },
        _ if is_denied(&error) => LeaseError::Denied { operation, source: cause(error) },
        _ => LeaseError::Unavailable { operation, source: cause(error) },
    }
}

fn key_of(item: &Item) -> &str {
    item.get(lease_item::KEY).and_then(|key| key.as_s().ok()).map_or("", String::as_str)
}

/// A row with every attribute.
#[derive(Clone)]
pub(crate) struct Row(Item);

/// The members of a set come from DynamoDB in any order.
impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.to_line() == other.to_line()
    }
}

/// A row may hold application state, which may be secret.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Row").field(&self.key()).finish_non_exhaustive()
    }
}

/// What is wrong with a line that should be a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a row in DynamoDB JSON: {0}")]
pub(crate) struct NotARow(String);

impl Row {
    pub(crate) fn key(&self) -> &str {
        key_of(&self.0)
    }

    /// The lease, if the row is one and can be understood.
    pub(crate) fn lease(&self) -> Option<Lease> {
        lease_item::decode(&self.0).ok().flatten()
    }

    /// The same row, free and with this counter: whoever holds the lease finds its condition broken.
    pub(crate) fn fenced(&self, counter: u64) -> Self {
        let mut item = self.0.clone();
        lease_item::fence(&mut item, counter);
        Self(item)
    }

    /// One line of DynamoDB JSON, attributes by name.
    pub(crate) fn to_line(&self) -> String {
        let attributes: BTreeMap<&String, Value> =
            self.0.iter().map(|(name, value)| (name, to_json(value))).collect();
        json!(attributes).to_string()
    }

    /// Reads such a line.
    pub(crate) fn from_line(line: &str) -> Result<Self, NotARow> {
        let parsed: Value = serde_json::from_str(line).map_err(|error| NotARow(error.to_string()))?;
        let Value::Object(attributes) = parsed else { return Err(NotARow("it is no object".into())) };
        let attribute = |(name, value): (String, Value)| match from_json(&value) {
            Some(value) => Ok((name, value)),
            None => Err(NotARow(format!("attribute {:?}", name.chars().take(140).collect::<String>()))),
        };
        let row = Self(attributes.into_iter().map(attribute).collect::<Result<_, _>>()?);
        if row.key().is_empty() {
            return Err(NotARow(format!("it has no {}", lease_item::KEY)));
        }
        Ok(row)
    }
}

fn to_json(value: &AttributeValue) -> Value {
    let blob = |blob: &Blob| STANDARD.encode(blob.as_ref());
    match value {
        AttributeValue::S(text) => json!({ "S": text }),
        AttributeValue::N(digits) => json!({ "N": digits }),
        AttributeValue::B(bytes) => json!({ "B": blob(bytes) }),
        AttributeValue::Bool(truth) => json!({ "BOOL": truth }),
        AttributeValue::Ss(texts) => json!({ "SS": sorted(texts.clone()) }),
        AttributeValue::Ns(numbers) => json!({ "NS": sorted(numbers.clone()) }),
        AttributeValue::Bs(blobs) => json!({ "BS": sorted(blobs.iter().map(blob).collect()) }),
        AttributeValue::L(values) => json!({ "L": values.iter().map(to_json).collect::<Vec<_>>() }),
        AttributeValue::M(values) => {
            let values: Map<String, Value> =
                values.iter().map(|(name, value)| (name.clone(), to_json(value))).collect();
            json!({ "M": values })
        }
        // The only one left: DynamoDB has no other types.
        _ => json!({ "NULL": true }),
    }
}

/// Sets have no order; a file should not change without a reason.
fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

fn from_json(value: &Value) -> Option<AttributeValue> {
    let object = value.as_object()?;
    let (kind, value) = object.iter().next().filter(|_| object.len() == 1)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let texts = |value: &Value| value.as_array()?.iter().map(text).collect::<Option<Vec<_>>>();
    let blob = |text: String| STANDARD.decode(text).ok().map(Blob::new);
    Some(match kind.as_str() {
        "S" => AttributeValue::S(text(value)?),
        "N" => AttributeValue::N(text(value)?),
        "B" => AttributeValue::B(blob(text(value)?)?),
        "BOOL" => AttributeValue::Bool(value.as_bool()?),
        // DynamoDB knows no other.
        "NULL" => value.as_bool()?.then_some(AttributeValue::Null(true))?,
        "SS" => AttributeValue::Ss(texts(value)?),
        "NS" => AttributeValue::Ns(texts(value)?),
        "BS" => AttributeValue::Bs(texts(value)?.into_iter().map(blob).collect::<Option<_>>()?),
        "L" => AttributeValue::L(value.as_array()?.iter().map(from_json).collect::<Option<_>>()?),
        "M" => {
            let fields = value.as_object()?.iter();
            AttributeValue::M(
                fields.map(|(name, value)| Some((name.clone(), from_json(value)?))).collect::<Option<_>>()?,
            )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
    use aws_smithy_runtime_api::client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
    };
    use proptest::{collection, prelude::*};

    use super::*;

    /// An account with two tables, of which the role may look at one.
    #[derive(Clone, Debug)]
    struct Account;

    impl HttpConnector for Account {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default()).into_owned();
            let (status, answer) = if request
                .headers()
                .get("x-amz-target")
                .is_some_and(|target| target.ends_with(".ListTables"))
            {
                (200, r#"{"TableNames": ["app", "other"]}"#)
            } else if body.contains(r#""app""#) {
                let table = r#"{"Table": {"TableStatus": "ACTIVE", "ItemCount": 3, "KeySchema":
                    [{"AttributeName": "leaseKey", "KeyType": "HASH"}]}}"#;
                (200, table)
            } else {
                (400, r#"{"__type": "com.amazon.coral.service#AccessDeniedException", "Message": "no"}"#)
            };
            let status = status.try_into().expect("a status");
            HttpConnectorFuture::ready(Ok(HttpResponse::new(status, answer.into())))
        }
    }

    #[tokio::test]
    async fn tables_that_the_role_may_not_look_at_are_passed_over() {
        let connector = SharedHttpConnector::new(Account);
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(http_client_fn(move |_, _| connector.clone()));
        let rows = LeaseRows::new(Client::from_conf(config.build()));
        let (tables, hidden) = rows.tables().await.expect("a list");
        let only = TableLine { name: "app".into(), rows: 3, status: "ACTIVE".into() };
        assert_eq!((tables, hidden), (vec![only], 1));
    }

    fn value() -> impl Strategy<Value = AttributeValue> {
        let blob = || collection::vec(any::<u8>(), 0..8).prop_map(Blob::new);
        let set = |items: Vec<String>| {
            items.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
        };
        let leaf = prop_oneof![
            ".{0,12}".prop_map(AttributeValue::S),
            "-?[0-9]{1,38}".prop_map(AttributeValue::N),
            blob().prop_map(AttributeValue::B),
            any::<bool>().prop_map(AttributeValue::Bool),
            Just(AttributeValue::Null(true)),
            collection::vec(".{0,6}", 1..4).prop_map(move |items| AttributeValue::Ss(set(items))),
            blob().prop_map(|blob| AttributeValue::Bs(vec![blob])),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                collection::vec(inner.clone(), 0..3).prop_map(AttributeValue::L),
                collection::hash_map("[a-z]{1,4}", inner, 0..3).prop_map(AttributeValue::M),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_row_survives_its_line_whatever_it_holds(
            key in ".{1,20}",
            rest in collection::hash_map("[a-zA-Z]{1,8}", value(), 0..6),
        ) {
            let mut item: Item = rest;
            item.insert(lease_item::KEY.to_owned(), AttributeValue::S(key));
            let row = Row(item);
            let line = row.to_line();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Row::from_line(&line), Ok(row));
        }

        #[test]
        fn any_line_is_a_row_or_refused(line in ".{0,80}") {
            let _ = Row::from_line(&line);
        }
    }

    #[test]
    fn a_line_that_is_no_row_says_why() {
        for (line, why) in [
            ("[]", "no object"),
            ("{}", "no leaseKey"),
            ("{\"leaseKey\":{\"S\":\"a\"},\"x\":1}", "\"x\""),
            ("{\"leaseKey\":{\"S\":\"a\"},\"x\":{\"NULL\":false}}", "\"x\""),
            ("{\"leaseKey\":{\"S\":\"a\"},\"x\":{\"S\":\"a\",\"N\":\"1\"}}", "\"x\""),
        ] {
            let refused = Row::from_line(line).expect_err(line).to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn rows_are_the_same_in_whatever_order_their_sets_come() {
        let row = |parents: &str| {
            let line = format!(r#"{{"leaseKey":{{"S":"a"}},"parentShardId":{{"SS":[{parents}]}}}}"#);
            Row::from_line(&line).expect("a row")
        };
        assert_eq!(row(r#""b","a""#), row(r#""a","b""#));
        assert_ne!(row(r#""a""#), row(r#""a","b""#));
    }

    #[test]
    fn a_fenced_row_keeps_what_it_does_not_know() {
        let line = r#"{"leaseKey":{"S":"a"},"leaseOwner":{"S":"w"},"checkpointOwner":{"S":"v"},"leaseCounter":{"N":"3"},"other":{"BOOL":true}}"#;
        let fenced = Row::from_line(line).expect("a row").fenced(9).to_line();
        assert_eq!(fenced, r#"{"leaseCounter":{"N":"9"},"leaseKey":{"S":"a"},"other":{"BOOL":true}}"#);
    }
}
