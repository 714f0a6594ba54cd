//! `export` and `import`: rows out and in again.

use std::{collections::HashMap, fs};

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use kinesis_consumer::{io::LeaseStore, local::LocalAws};
use serde_json::Value;

use crate::stage::{every_state, leasectl, scratch, store};

#[tokio::test]
async fn rows_come_back_as_they_were_whatever_they_hold() {
    let aws = LocalAws::start().await.expect("servers");
    every_state(&aws).await;
    let client = aws.dynamodb_client();
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let foreign: HashMap<String, AttributeValue> = [
        ("leaseKey", text("shardId-000000000005")),
        ("leaseCounter", AttributeValue::N("12".into())),
        ("ownerSwitchesSinceCheckpoint", AttributeValue::N("0".into())),
        ("checkpoint", text("TRIM_HORIZON")),
        ("leaseOwner", text("w")),
        ("someBlob", AttributeValue::B(Blob::new([0, 255]))),
        ("someMap", AttributeValue::M([("inner".to_owned(), AttributeValue::Ss(vec!["x".into()]))].into())),
        ("someFlag", AttributeValue::Bool(true)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let leader = [("leaseKey", text("Leader")), ("entityType", text("LEADER")), ("ownerName", text("w"))];
    let leader = leader.map(|(name, value)| (name.to_owned(), value)).into();
    for item in [foreign.clone(), leader] {
        client.put_item().table_name("app").set_item(Some(item)).send().await.expect("put");
    }
    let file = scratch("rows.jsonl");
    let file = file.to_str().expect("UTF-8");
    leasectl(&aws, &format!("export -t app -f {file}")).await.ended(0);
    let exported = fs::read_to_string(file).expect("a file");
    assert_eq!(exported.lines().count(), 7);
    for line in exported.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let key = text(row["leaseKey"]["S"].as_str().expect("a key"));
        client.delete_item().table_name("app").key("leaseKey", key).send().await.expect("deleted");
    }
    let made = leasectl(&aws, &format!("import -t app -f {file}")).await.ended(0);
    assert!(made.out.contains("7 rows made, 0 replaced"), "{made:?}");
    assert_eq!(leasectl(&aws, "export -t app").await.ended(0).out, exported);
    leasectl(&aws, &format!("import -t app -f {file}")).await.ended(0);

    // Over rows that moved on: only if told to, only by force where held, and fenced.
    let moved = store(&aws).await;
    let held = moved.get(&"shardId-000000000005".into()).await.expect("read").expect("a row");
    moved.write(&held.claim(&"v".into())).await.expect("claimed");
    leasectl(&aws, &format!("import -t app -f {file}")).await.ended(5);
    leasectl(&aws, &format!("import -t app -f {file} --overwrite")).await.ended(5);
    leasectl(&aws, &format!("import -t app -f {file} --overwrite --force")).await.ended(0);
    let now = client.get_item().table_name("app").key("leaseKey", text("shardId-000000000005")).send().await;
    let mut expected = foreign;
    expected.remove("leaseOwner");
    expected.insert("leaseCounter".into(), AttributeValue::N("14".into()));
    assert_eq!(now.expect("read").item, Some(expected));
}
