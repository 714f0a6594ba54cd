//! Independent servers that speak the AWS protocols, each a child process on loopback.
//!
//! They keep our own embedded servers honest: a contract suite that passes on both says something.
//! `.ci/servers.sh` installs them; a test that finds none says so on standard error and skips that part.

use std::{
    env, fmt,
    fs::File,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

/// The folder that holds the servers; `target/servers` if unset. Layout as `.ci/servers.sh` makes it.
const FOLDER: &str = "KINESIS_CONSUMER_SERVERS";
/// Node and Python are slow starters on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running server; killed on drop.
pub(crate) struct Server {
    name: &'static str,
    port: u16,
    child: Child,
}

impl Server {
    /// Its plain HTTP endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.url())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kinesis by kinesis-local: consumers, ChildShards when polling; streams are active at once.
pub(crate) async fn kinesis_local() -> Option<Server> {
    let home = installed("kinesis-local", "node/node_modules/kinesis-local/main.js")?;
    let home = home.parent().expect("a file in a folder").to_owned();
    Some(
        started("kinesis-local", |port| {
            let mut node = Command::new("node");
            // It reads `server.json` from the folder that it runs in, and needs a second port for TLS.
            node.arg("main.js").current_dir(&home);
            node.env("KINESIS_MOCK_PLAIN_PORT", port.to_string());
            node.env("KINESIS_MOCK_TLS_PORT", free_port().to_string());
            node.env("SHARD_LIMIT", "5000").env("LOG_LEVEL", "ERROR");
            for step in [
                "CREATE_STREAM",
                "DELETE_STREAM",
                "REGISTER_STREAM_CONSUMER",
                "DEREGISTER_STREAM_CONSUMER",
                "SPLIT_SHARD",
                "MERGE_SHARDS",
                "UPDATE_SHARD_COUNT",
                "START_STREAM_ENCRYPTION",
                "STOP_STREAM_ENCRYPTION",
            ] {
                node.env(format!("{step}_DURATION"), "1ms");
            }
            node
        })
        .await,
    )
}

/// DynamoDB by dynalite: exact under races; no transactions.
pub(crate) async fn dynalite() -> Option<Server> {
    let script = installed("dynalite", "node/node_modules/dynalite/cli.js")?;
    Some(
        started("dynalite", |port| {
            let mut node = Command::new("node");
            node.arg(&script).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            node.args(["--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0"]);
            node
        })
        .await,
    )
}

/// Kinesis and DynamoDB by moto: broad; its conditional writes are not atomic under races.
pub(crate) async fn moto() -> Option<Server> {
    let script = installed("moto", "py/bin/moto_server")?;
    Some(
        started("moto", |port| {
            let mut moto = Command::new(&script);
            moto.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            moto
        })
        .await,
    )
}

/// The file that starts a server, if it is there; else says what is skipped.
fn installed(name: &str, file: &str) -> Option<PathBuf> {
    let folder = env::var_os(FOLDER)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join("servers"), PathBuf::from);
    let path = folder.join(file);
    if path.exists() {
        return Some(path);
    }
    say(format_args!("SKIPPED, not run against {name}: no {} (.ci/servers.sh installs it)", path.display()));
    None
}

/// Says it even when the test passes: the harness captures `eprintln!`, not this.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Starts the server on a free port and waits until it answers.
///
/// Another process may take the port in between; the server then ends, and another port is tried.
async fn started(name: &'static str, command: impl Fn(u16) -> Command) -> Server {
    for _ in 0..3 {
        let port = free_port();
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{port}.log"));
        let output = File::create(&log).expect("a log file in the target folder");
        let child = command(port)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} is installed but does not start: {error}"));
        let mut server = Server { name, port, child };
        if time::timeout(START_TIMEOUT, answers(&mut server)).await.unwrap_or(false) {
            return server;
        }
        say(format_args!("{name} did not answer on port {port}, see {}", log.display()));
    }
    panic!("{name} is installed but does not answer");
}

/// Whether the server answers HTTP in the end; false if it ends before.
async fn answers(server: &mut Server) -> bool {
    while server.child.try_wait().is_ok_and(|ended| ended.is_none()) {
        if asked(server.port).await.is_ok_and(|bytes| bytes > 0) {
            return true;
        }
        time::sleep(LOOK_AGAIN).await;
    }
    false
}

async fn asked(port: u16) -> io::Result<usize> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    stream.read(&mut [0; 64]).await
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
    listener.local_addr().expect("bound").port()
}
