//! `watch`: on a terminal of its own, as `script` makes one.

use std::process::Stdio;

use kinesis_consumer::{io::LeaseStore, local::LocalAws};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    stage::{BINARY, PATIENCE, every_state, rows, store, until},
    way::Way,
};

/// Back from the other screen of the terminal.
const GIVEN_BACK: &str = "\u{1b}[?1049l";

/// The view under way.
struct Watch {
    process: Child,
    keys: ChildStdin,
    output: ChildStdout,
    screen: String,
}

impl Watch {
    /// Looks at the table through `dynamodb`.
    fn start(aws: &LocalAws, dynamodb: &str) -> Self {
        let command = format!("stty rows 40 cols 120; exec {BINARY} watch -t app --interval 100ms");
        let mut process = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .envs(aws.env())
            .env("AWS_ENDPOINT_URL_DYNAMODB", dynamodb)
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("script of util-linux");
        let (keys, output) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        Self { process, keys, output, screen: String::new() }
    }

    /// Waits until a word was written in one go: spaces may be left out, by moving the cursor over them.
    async fn shows(&mut self, word: &str) {
        let wait = async {
            while !self.screen.split('\u{1b}').any(|part| part.contains(word)) {
                let mut bytes = [0; 4096];
                let count = self.output.read(&mut bytes).await.expect("read");
                assert!(count > 0, "it ended before {word}: {}", self.screen);
                self.screen += &String::from_utf8_lossy(&bytes[..count]);
            }
        };
        let came = timeout(PATIENCE, wait).await;
        assert!(came.is_ok(), "never shown: {word}; but {:?}", self.screen);
    }

    /// Types `q`, and waits for the end.
    async fn quit(mut self) {
        self.keys.write_all(b"q").await.expect("typed");
        let mut rest = String::new();
        timeout(PATIENCE, self.output.read_to_string(&mut rest)).await.expect("in time").expect("read");
        assert!(rest.contains(GIVEN_BACK), "{rest:?}");
        assert!(self.process.wait().await.expect("waited for").success());
    }
}

#[tokio::test]
async fn the_view_follows_the_table_and_q_gives_the_terminal_back() {
    let aws = LocalAws::start().await.expect("servers");
    every_state(&aws).await;
    let mut watch = Watch::start(&aws, aws.dynamodb_url());
    for word in ["shards", "shardId-000000000002", "hand-off", "nobody"] {
        watch.shows(word).await;
    }
    let free = rows(&aws).await.remove(3);
    store(&aws).await.write(&free.claim(&"newcomer".into())).await.expect("claimed");
    watch.shows("newcomer").await;
    watch.quit().await;
}

#[tokio::test]
async fn keys_are_read_while_a_look_gets_no_answer() {
    let aws = LocalAws::start().await.expect("servers");
    every_state(&aws).await;
    let way = Way::to(aws.dynamodb_url()).await;
    let mut watch = Watch::start(&aws, &way.url);
    watch.shows("nobody").await;
    way.swallow();
    until("a look under way", async || way.swallowed() > 0).await;
    watch.quit().await;
    assert_eq!(way.swallowed(), 1, "it did not wait for the look to be given up");
}
