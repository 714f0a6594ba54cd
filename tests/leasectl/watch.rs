//! `watch`: on a terminal of its own, as `script` makes one.

use std::process::Stdio;

use kinesis_consumer::{io::LeaseStore, local::LocalAws};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use crate::stage::{BINARY, PATIENCE, every_state, rows, store};

/// Back from the other screen of the terminal.
const GIVEN_BACK: &str = "\u{1b}[?1049l";

/// Whether a word was written in one go: spaces may be left out, by moving the cursor over them.
fn shows(screen: &str, word: &str) -> bool {
    screen.split('\u{1b}').any(|part| part.contains(word))
}

#[tokio::test]
async fn the_view_follows_the_table_and_q_gives_the_terminal_back() {
    let aws = LocalAws::start().await.expect("servers");
    every_state(&aws).await;
    let command = format!("stty rows 40 cols 120; exec {BINARY} watch -t app --interval 100ms");
    let mut watch = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .envs(aws.env())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("script of util-linux");
    let (mut keys, mut output) = (watch.stdin.take().expect("piped"), watch.stdout.take().expect("piped"));
    let mut screen = String::new();
    let mut until = async |word: &str| {
        let wait = async {
            while !shows(&screen, word) {
                let mut bytes = [0; 4096];
                let count = output.read(&mut bytes).await.expect("read");
                assert!(count > 0, "it ended before {word}: {screen}");
                screen += &String::from_utf8_lossy(&bytes[..count]);
            }
        };
        let came = timeout(PATIENCE, wait).await;
        assert!(came.is_ok(), "never shown: {word}; but {screen:?}");
    };
    for word in ["shards", "shardId-000000000002", "hand-off", "nobody"] {
        until(word).await;
    }
    let free = rows(&aws).await.remove(3);
    store(&aws).await.write(&free.claim(&"newcomer".into())).await.expect("claimed");
    until("newcomer").await;
    keys.write_all(b"q").await.expect("typed");
    let mut rest = String::new();
    timeout(PATIENCE, output.read_to_string(&mut rest)).await.expect("in time").expect("read");
    assert!(rest.contains(GIVEN_BACK), "{rest:?}");
    assert!(watch.wait().await.expect("waited for").success());
}
