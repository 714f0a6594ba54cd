//! Rows that others wrote into the lease table, and lines of a file of rows, fed with bytes: valid ones that were
//! spoiled, and any.

use std::collections::HashMap;

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use proptest::prelude::*;

use crate::{
    core::heartbeat::Incarnation,
    io::{
        lease_item::{self, ENTITY_TYPE, Item, KEY},
        lease_rows::Row,
        worker_item,
    },
    spoiled::{is_a_short_line, spoiled, spoiled_text},
};

// An item as bytes, in a form that an edit spoils in one place: attributes, in them the name, the type and the
// content, and in that the members of a set or a list, each ended by a byte of its own.
const ATTRIBUTE: u8 = 0x1e;
const CELL: u8 = 0x1f;
const MEMBER: u8 = 0x1d;

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn value(kind: &[u8], content: &[u8]) -> Option<AttributeValue> {
    let members = || content.split(|byte| *byte == MEMBER);
    Some(match kind {
        b"S" => AttributeValue::S(lossy(content)),
        b"N" => AttributeValue::N(lossy(content)),
        b"B" => AttributeValue::B(Blob::new(content)),
        b"SS" => AttributeValue::Ss(members().map(lossy).collect()),
        b"NS" => AttributeValue::Ns(members().map(lossy).collect()),
        b"BS" => AttributeValue::Bs(members().map(Blob::new).collect()),
        b"L" => AttributeValue::L(members().map(|member| AttributeValue::S(lossy(member))).collect()),
        b"M" => AttributeValue::M(HashMap::from([(lossy(content), AttributeValue::Null(true))])),
        b"NULL" => AttributeValue::Null(true),
        b"BOOL" => AttributeValue::Bool(content == b"true"),
        _ => return None,
    })
}

/// One whose type is none is left out.
fn item(bytes: &[u8]) -> Item {
    let attributes = bytes.split(|byte| *byte == ATTRIBUTE);
    let attribute = |attribute: &[u8]| {
        let mut cells = attribute.splitn(3, |byte| *byte == CELL);
        Some((lossy(cells.next()?), value(cells.next()?, cells.next().unwrap_or_default())?))
    };
    attributes.filter_map(attribute).collect()
}

fn bytes(row: &[(&str, &str, &str)]) -> Vec<u8> {
    let cells = |(name, kind, content): &(&str, &str, &str)| {
        [name.as_bytes(), &[CELL], kind.as_bytes(), &[CELL], content.as_bytes()].concat()
    };
    row.iter().map(cells).collect::<Vec<_>>().join(&ATTRIBUTE)
}

/// The same row with another state of the application's, of the same type.
fn with_another_state(mut item: Item) -> Item {
    match item.get_mut("pendingCheckpointState") {
        Some(AttributeValue::B(state)) => *state = Blob::new("other"),
        Some(AttributeValue::S(state) | AttributeValue::N(state)) => *state = "other".to_owned(),
        _ => {}
    }
    item
}

fn lease_rows() -> Vec<Vec<u8>> {
    let least = [
        ("leaseKey", "S", "shardId-000000000007"),
        ("leaseCounter", "N", "17"),
        ("ownerSwitchesSinceCheckpoint", "N", "2"),
        ("checkpoint", "S", "49549295168948777979169149491056351269437634281436348418"),
    ];
    let more = [
        ("checkpointSubSequenceNumber", "N", "3"),
        ("pendingCheckpoint", "S", "SHARD_END"),
        ("pendingCheckpointSubSequenceNumber", "N", "0"),
        ("pendingCheckpointState", "B", "card 4711"),
    ];
    let owners = [
        ("leaseOwner", "S", "pod-7"),
        ("checkpointOwner", "S", "pod-8"),
        ("handsOverWorker", "S", "pod-8#000000000000beef.12"),
        ("leftAtCounter", "N", "16"),
        ("heartbeatKey", "S", "worker/000000000000beef.1/pod-8"),
        ("entityType", "S", "LEASE"),
    ];
    let shape = [
        ("startingHashKey", "S", "0"),
        ("endingHashKey", "S", "340282366920938463463374607431768211455"),
        ("parentShardId", "SS", "shardId-000000000001\u{1d}shardId-000000000002"),
        ("childShardIds", "SS", "shardId-000000000009"),
        ("throughputKBps", "N", "1.23456789E7"),
        ("startTimestampMillis", "N", "1795327335238"),
        ("resetTimestampMillis", "N", "9223372036854775807"),
        ("streamIdentity", "S", "arn:aws:kinesis:eu-west-1:123456789012:stream/orders:1700000000"),
        ("note", "M", "by hand"),
    ];
    vec![
        bytes(&least),
        bytes(&[&least[..], &more].concat()),
        bytes(&[&least[..], &owners].concat()),
        bytes(&[&least[..], &shape].concat()),
        bytes(&[&least[..], &more, &owners, &shape].concat()),
        bytes(&[("leaseKey", "S", "Leader"), ("entityType", "S", "LEADER"), ("ownerName", "S", "w1")]),
    ]
}

fn worker_rows() -> Vec<Vec<u8>> {
    let row = |key, counter| {
        bytes(&[
            ("leaseKey", "S", key),
            ("entityType", "S", "WORKER_HEARTBEAT"),
            ("heartbeatCounter", "N", counter),
        ])
    };
    vec![
        row("worker/000000000000beef.1/pod-7", "7"),
        row("worker/ffffffffffffffff.0/a/b", "18446744073709551615"),
    ]
}

/// Rows as `aws dynamodb scan` and our own export write them.
fn lines() -> Vec<&'static str> {
    vec![
        r#"{"checkpoint":{"S":"LATEST"},"leaseCounter":{"N":"17"},"leaseKey":{"S":"shardId-000000000000"},"leaseOwner":{"S":"w1"},"ownerSwitchesSinceCheckpoint":{"N":"2"},"parentShardId":{"SS":["shardId-2","shardId-1"]}}"#,
        r#"{"cv":{"S":"CLIENT_VERSION_3X"},"entityType":{"S":"CLIENT_VERSION_MIGRATION"},"h":{"L":[{"M":{"cv":{"S":"x"},"mts":{"N":"1795327335238"}}}]},"leaseKey":{"S":"Migration3.0"}}"#,
        r#"{"leaseKey":{"S":"\u00e9\ud83d\ude00"},"a":{"B":"AP8="},"b":{"BS":["AQ==","AA=="]},"c":{"NS":["2","1"]},"d":{"NULL":true},"e":{"BOOL":false},"f":{"M":{}},"g":{"L":[]}}"#,
    ]
}

proptest! {
    #[test]
    fn bytes_of_a_lease_row_are_a_lease_or_skipped_or_refused(bytes in spoiled(lease_rows())) {
        let item = item(&bytes);
        match lease_item::decode(&item) {
            Ok(Some(lease)) => {
                prop_assert_eq!(item.get(KEY).and_then(|key| key.as_s().ok()).map(String::as_str), Some(lease.key.as_str()));
                // Everything that may be written to it next can be told.
                let claim = lease.claim(&"me".into());
                let _ = (lease_item::update(&claim), lease_item::update(&lease.evict()), lease_item::deletable(&lease));
                prop_assert!(lease.after(&claim).counter > lease.counter);
                prop_assert_eq!(lease_item::decode(&lease_item::encode(&lease)), Ok(Some(lease)));
            }
            Ok(None) => {
                let lease = AttributeValue::S("LEASE".to_owned());
                prop_assert!(item.get(ENTITY_TYPE).is_some_and(|kind| *kind != lease));
            }
            Err(bad) => {
                is_a_short_line(&bad.to_string())?;
                prop_assert!(item.contains_key(bad.attribute) || bad.problem == "is missing", "{}", bad);
                // The application's state is of no weight in what is said.
                prop_assert_eq!(lease_item::decode(&with_another_state(item)), Err(bad));
            }
        }
    }

    #[test]
    fn bytes_of_a_workers_row_are_a_beat_or_none(bytes in spoiled(worker_rows())) {
        let item = item(&bytes);
        if let Some(row) = worker_item::decode(&item) {
            prop_assert_eq!(item.get(KEY), Some(&AttributeValue::S(row.incarnation.to_string())));
            prop_assert_eq!(lease_item::decode(&item), Ok(None), "it would be a lease, too");
            let mut written = worker_item::key(&row.incarnation);
            written.insert(ENTITY_TYPE.to_owned(), item[ENTITY_TYPE].clone());
            written.insert("heartbeatCounter".to_owned(), AttributeValue::N(row.counter.to_string()));
            prop_assert!(Incarnation::parse(row.incarnation.as_str()).is_some());
            prop_assert_eq!(worker_item::decode(&written), Some(row));
        }
    }

    #[test]
    fn bytes_of_a_line_to_import_are_a_row_that_is_written_back_or_refused(line in spoiled_text(lines())) {
        match Row::from_line(&line) {
            Ok(row) => {
                prop_assert!(!row.key().is_empty());
                let written = row.to_line();
                prop_assert!(!written.contains('\n'));
                let again = Row::from_line(&written);
                prop_assert_eq!(again.as_ref().map(Row::to_line), Ok(written));
                prop_assert_eq!(again, Ok(row.clone()));
                if let Some(lease) = row.lease() {
                    let fenced = row.fenced(lease.counter + 1).lease();
                    prop_assert_eq!(fenced.map(|lease| (lease.counter, lease.owner)), Some((lease.counter + 1, None)));
                }
            }
            Err(why) => is_a_short_line(&why.to_string())?,
        }
    }
}
