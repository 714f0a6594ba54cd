//! The operator's tool as operators run it: the real binary against the embedded servers.

mod cost;
mod looks;
mod release;
mod reset;
mod rows;
mod stage;
mod tail;
// `script` has other options elsewhere.
#[cfg(target_os = "linux")]
mod watch;
#[cfg(target_os = "linux")]
#[path = "../support/way.rs"]
mod way;

use kinesis_consumer::local::LocalAws;
use tokio::process::Command;

use crate::stage::{BINARY, every_state, leasectl};

#[tokio::test]
async fn every_trouble_has_its_exit_code_and_no_table_is_ever_made() {
    let aws = LocalAws::start().await.expect("servers");
    aws.create_stream("stream", 1);
    for (arguments, code, says) in [
        ("describe", 2, "--table"),
        ("reset -t app", 2, "required"),
        ("lag -t app -s stream", 4, "lease table app does not exist"),
        ("import -t app -f /nowhere", 2, "/nowhere"),
        ("watch -t app", 2, "terminal"),
        ("cost --shards 0", 2, "above 0"),
    ] {
        let ran = leasectl(&aws, arguments).await.ended(code);
        assert!(ran.err.contains(says), "{arguments}: {ran:?}");
    }
    let tables = aws.dynamodb_client().list_tables().send().await.expect("tables");
    assert!(tables.table_names().is_empty(), "{tables:?}");
    let mut unreachable = Command::new(BINARY);
    unreachable.args(["list", "-t", "app", "--region", "x", "--endpoint-url", "http://127.0.0.1:9"]);
    unreachable.envs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")]);
    let unreachable = unreachable.output().await.expect("it runs");
    assert_eq!(unreachable.status.code(), Some(1), "{unreachable:?}");
    every_state(&aws).await;
    leasectl(&aws, "describe -t app 77").await.ended(4);
    let java = leasectl(&aws, "lag -t app").await.ended(2);
    assert!(java.err.contains("--stream"), "{java:?}");
    leasectl(&aws, "lag -t app -s nothing").await.ended(4);
    let shells = leasectl(&aws, "completions bash").await.ended(0);
    assert!(shells.out.contains("complete -F _leasectl"), "{}", shells.err);
}
