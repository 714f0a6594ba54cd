//! Rows that the Java KCL wrote are read, understood and written again unchanged.
//!
//! The rows are in `testdata/kcl_items`, whose README says where they come from.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    time::Duration,
};

use aws_sdk_dynamodb::{Client, primitives::Blob, types::AttributeValue};
use base64::{Engine, engine::general_purpose::STANDARD};
use kinesis_consumer::{
    Checkpoint, Lease, LeaseKey,
    io::{DynamoDbLeaseStore, LeaseStore},
};
use serde_json::Value;
use support::dynamodb::Embedded;

type Item = HashMap<String, AttributeValue>;

/// One lease table, filled as a file says.
struct Moment {
    server: Embedded,
    items: Vec<Item>,
    store: DynamoDbLeaseStore,
}

impl Moment {
    async fn load(file: &str) -> Self {
        let server = Embedded::start().await;
        let store = DynamoDbLeaseStore::new(server.client(), "captured", Duration::from_secs(60));
        store.open(true).await.expect("a table");
        let items = items(file);
        for item in &items {
            let put = server.client().put_item().table_name("captured").set_item(Some(item.clone()));
            put.send().await.expect("put");
        }
        Self { server, items, store }
    }

    async fn leases(&self) -> BTreeMap<LeaseKey, Lease> {
        let leases = self.store.list().await.expect("rows");
        leases.into_iter().map(|lease| (lease.key.clone(), lease)).collect()
    }

    async fn lease(&self, shard: &str) -> Lease {
        self.leases().await.remove(&shard.into()).expect("a lease of that shard")
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/kcl_items"))
}

fn items(file: &str) -> Vec<Item> {
    let text = fs::read_to_string(folder().join(file).with_extension("json")).expect("a file of rows");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    file["items"].as_array().expect("items").iter().map(item).collect()
}

fn item(json: &Value) -> Item {
    let attributes = json.as_object().expect("an item");
    attributes.iter().map(|(name, value)| (name.clone(), attribute(value))).collect()
}

/// An attribute in DynamoDB's JSON: one member, named after its type.
fn attribute(json: &Value) -> AttributeValue {
    let (kind, value) = json.as_object().and_then(|object| object.iter().next()).expect("a typed value");
    let text = || value.as_str().expect("a text").to_owned();
    match kind.as_str() {
        "S" => AttributeValue::S(text()),
        "N" => AttributeValue::N(text()),
        "B" => AttributeValue::B(Blob::new(STANDARD.decode(text()).expect("base64"))),
        "SS" => {
            let texts = value.as_array().expect("a set").iter();
            AttributeValue::Ss(texts.map(|text| text.as_str().expect("a text").to_owned()).collect())
        }
        "L" => AttributeValue::L(value.as_array().expect("a list").iter().map(attribute).collect()),
        "M" => AttributeValue::M(item(value)),
        kind => panic!("no row has an attribute of type {kind}"),
    }
}

/// All rows of a table as they are, ordered by key, sets in order, without what `ignored` names.
async fn raw(
    client: &Client,
    table: &str,
    ignored: &[&str],
) -> BTreeMap<String, BTreeMap<String, AttributeValue>> {
    let page = client.scan().table_name(table).send().await.expect("rows");
    page.items.unwrap_or_default().into_iter().map(|item| comparable(item, ignored)).collect()
}

fn comparable(item: Item, ignored: &[&str]) -> (String, BTreeMap<String, AttributeValue>) {
    let key = item["leaseKey"].as_s().expect("a string").clone();
    let in_order = |value| match value {
        AttributeValue::Ss(mut texts) => {
            texts.sort_unstable();
            AttributeValue::Ss(texts)
        }
        value => value,
    };
    let attributes = item.into_iter().filter(|(name, _)| !ignored.contains(&name.as_str()));
    (key, attributes.map(|(name, value)| (name, in_order(value))).collect())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn shards<T: for<'a> From<&'a str> + Ord, const N: usize>(ids: [&str; N]) -> BTreeSet<T> {
    ids.into_iter().map(T::from).collect()
}

#[tokio::test]
async fn every_captured_row_is_read_and_written_again_unchanged() {
    let mut files = 0;
    for file in fs::read_dir(folder()).expect("the folder") {
        let path = file.expect("a file").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        if path.extension().is_none_or(|kind| kind != "json") || name == "by_hand_not_leases" {
            continue;
        }
        let moment = Moment::load(name).await;
        let client = moment.server.client();
        let copy = DynamoDbLeaseStore::new(client.clone(), "copy", Duration::from_secs(60));
        copy.open(true).await.expect("a table");
        for lease in moment.leases().await.values() {
            assert!(copy.create(lease).await.expect("put"));
        }
        // The names of several streams are in no lease; an update leaves them in the row.
        let ignored = ["entityType", "streamName", "shardId"];
        let before: BTreeMap<_, _> =
            moment.items.iter().cloned().map(|item| comparable(item, &ignored)).collect();
        assert_eq!(raw(&client, "copy", &ignored).await, before, "{name}");
        files += 1;
    }
    assert!(files >= 17, "only {files} files");
}

#[tokio::test]
async fn rows_of_other_kinds_are_no_leases() {
    let moment = Moment::load("by_hand_not_leases").await;
    assert_eq!(moment.items.len(), 6);
    assert!(moment.leases().await.is_empty());
}

#[tokio::test]
async fn a_fresh_table_of_the_kcl_has_free_leases_that_cover_all_hash_keys() {
    let leases = Moment::load("fresh").await.leases().await;
    let ranges: Vec<_> = leases.values().map(|lease| lease.hash_range.expect("a range")).collect();
    assert_eq!((ranges[0].start, ranges[3].end), (0, u128::MAX));
    assert!(ranges.windows(2).all(|pair| pair[0].end + 1 == pair[1].start));
    for lease in leases.values() {
        assert_eq!((lease.holder(), lease.counter), (None, 0));
        assert_eq!(lease.checkpoint, Checkpoint::TrimHorizon);
    }
}

#[tokio::test]
async fn a_pending_hand_off_is_held_by_the_worker_that_must_checkpoint() {
    let lease = Moment::load("hand_off").await.lease("shardId-000000000002").await;
    assert_eq!(lease.owner, Some("w2".into()), "the next one");
    assert_eq!(lease.holder(), Some(&"w1".into()));
}

#[tokio::test]
async fn a_split_and_a_merge_are_known_from_both_sides() {
    let ended = Moment::load("split_and_merged").await.leases().await;
    let children: Vec<_> = ended.values().map(|lease| lease.children.clone()).collect();
    let merged = || shards(["shardId-000000000006"]);
    assert_eq!(children, [shards(["shardId-000000000004", "shardId-000000000005"]), merged(), merged()]);
    assert!(ended.values().all(Lease::is_finished));

    let children = Moment::load("children").await.leases().await;
    let parents: Vec<_> = children.values().map(|lease| lease.parents.clone()).collect();
    let split = || shards(["shardId-000000000000"]);
    assert_eq!(parents, [split(), split(), shards(["shardId-000000000002", "shardId-000000000003"])]);
}

#[tokio::test]
async fn a_checkpoint_inside_an_aggregate_keeps_its_place_and_a_prepared_one_its_state() {
    let lease = Moment::load("inside_an_aggregate").await.lease("shardId-000000000000").await;
    assert_eq!(lease.checkpoint.sub(), 1);
    let lease = Moment::load("prepared").await.lease("shardId-000000000000").await;
    let pending = lease.pending.expect("prepared");
    assert_eq!(lease.checkpoint, Checkpoint::TrimHorizon);
    assert_eq!(pending.at.sub(), 1);
    assert_eq!(pending.state.as_deref(), Some(&b"state \x01 of the application"[..]));
}

#[tokio::test]
async fn our_own_attributes_outlive_the_kcl() {
    for lease in Moment::load("taken_over").await.leases().await.values() {
        assert_eq!(lease.owner, Some("w1".into()));
        assert_eq!(lease.start_millis, Some(1_700_000_000_123));
        assert_eq!(lease.stream.as_deref(), Some("arn:aws:kinesis:us-east-1:0:stream/s:1700000000"));
        assert!(lease.checkpoint.position().is_some());
    }
}

#[tokio::test]
async fn a_claim_adds_only_that_we_hand_over_to_what_a_claim_of_the_kcl_changes() {
    for file in ["fresh", "renewed", "hand_off", "by_hand_multi_stream", "by_hand_1x", "prepared"] {
        let moment = Moment::load(file).await;
        let client = moment.server.client();
        let mut expected = raw(&client, "captured", &[]).await;
        for lease in moment.leases().await.values() {
            moment.store.write(&lease.claim(&"rust".into())).await.expect("alone");
            let row = expected.get_mut(lease.key.as_str()).expect("the row");
            for name in ["leaseOwner", "handsOverWorker"] {
                row.insert(name.to_owned(), AttributeValue::S("rust".to_owned()));
            }
            row.insert("leaseCounter".to_owned(), number(lease.counter + 1));
            let switches = lease.owner_switches + u64::from(lease.owner.is_some());
            row.insert("ownerSwitchesSinceCheckpoint".to_owned(), number(switches));
            row.remove("checkpointOwner");
        }
        assert_eq!(raw(&client, "captured", &[]).await, expected, "{file}");
    }
}
