//! What only the table in DynamoDB can meet: rows that are not ours, tables that cannot hold leases,
//! refusals, silence.

mod support;

use std::{
    collections::{BTreeSet, HashMap},
    error::Error,
    io,
    slice::from_ref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_sdk_dynamodb::{
    Client,
    types::{AttributeValue, ScalarAttributeType},
};
use kinesis_consumer::{
    Checkpoint, Lease,
    io::{DynamoDbLeaseStore, LeaseError, LeaseStore},
};
use support::{dynamodb, servers};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const KEY: (&str, ScalarAttributeType) = ("leaseKey", ScalarAttributeType::S);

fn store(client: &Client, table: &str) -> DynamoDbLeaseStore {
    DynamoDbLeaseStore::new(client.clone(), table, Duration::from_secs(60))
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

async fn put(client: &Client, table: &str, attributes: &[(&str, AttributeValue)]) {
    let item = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    client.put_item().table_name(table).set_item(Some(item)).send().await.expect("put");
}

/// The embedded server, and those of the others that are installed.
async fn each_server(check: impl AsyncFn(Client)) {
    let embedded = dynamodb::Embedded::start().await;
    check(embedded.client()).await;
    for server in [servers::dynalite().await, servers::moto().await].into_iter().flatten() {
        check(dynamodb::client(&server.url())).await;
    }
}

#[tokio::test]
async fn rows_that_are_no_leases_or_make_no_sense_are_left_out_and_the_rest_is_read() {
    each_server(async |client| {
        let store = store(&client, "leases");
        store.open(true).await.expect("a table");
        for kind in
            ["LEADER", "CLIENT_VERSION_MIGRATION", "WORKER_METRIC_STATS", "STREAM", "SOME_FUTURE_TYPE"]
        {
            put(&client, "leases", &[("leaseKey", text(kind)), ("entityType", text(kind))]).await;
        }
        put(&client, "leases", &[("leaseKey", text("no counter")), ("checkpoint", text("LATEST"))]).await;
        let sound = Lease::new(&"shardId-000000000000".into(), Checkpoint::TrimHorizon);
        store.create(&sound).await.expect("put");
        for _ in 0..2 {
            assert_eq!(store.list().await.expect("rows").as_slice(), from_ref(&sound));
        }
        assert_eq!(store.get(&"LEADER".into()).await.expect("read"), None);
    })
    .await;
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_an_error_when_it_is_asked_for() {
    let server = dynamodb::Embedded::start().await;
    let store = store(&server.client(), "leases");
    store.open(true).await.expect("a table");
    put(&server.client(), "leases", &[("leaseKey", text("a")), ("checkpoint", text("LATEST"))]).await;
    let error = store.get(&"a".into()).await.expect_err("no counter");
    let cause = error.source().expect("a cause").to_string();
    assert_eq!(cause, r#"lease row "a": leaseCounter is missing"#);
    let unread = Lease::new(&"a".into(), Checkpoint::Latest);
    assert!(!store.create(&unread).await.expect("there is a row"));
}

#[tokio::test]
async fn attributes_that_we_do_not_know_outlive_every_write() {
    each_server(async |client| {
        let store = store(&client, "leases");
        store.open(true).await.expect("a table");
        let alien = [
            ("leaseKey", text("a")),
            ("leaseCounter", number(3)),
            ("ownerSwitchesSinceCheckpoint", number(1)),
            ("checkpoint", text("TRIM_HORIZON")),
            ("checkpointSubSequenceNumber", number(0)),
            ("streamName", text("123456789012:s:1")),
            ("note", text("by hand")),
        ];
        put(&client, "leases", &alien).await;
        let seen = store.get(&"a".into()).await.expect("read").expect("a lease");
        store.write(&seen.claim(&"me".into())).await.expect("free");
        let key = HashMap::from([("leaseKey".to_owned(), text("a"))]);
        let row = client.get_item().table_name("leases").set_key(Some(key)).consistent_read(true);
        let row = row.send().await.expect("read").item.expect("a row");
        assert_eq!(row["streamName"], text("123456789012:s:1"));
        assert_eq!(row["note"], text("by hand"));
        assert_eq!(row["leaseCounter"], number(4));
        assert!(!row.contains_key("entityType"), "the KCL adds it to new rows only");
    })
    .await;
}

#[tokio::test]
async fn a_table_with_another_key_is_refused_with_what_to_do() {
    use ScalarAttributeType::{N, S};
    each_server(async |client| {
        for (table, keys) in [
            ("other-name", &[("id", S)][..]),
            ("other-type", &[("leaseKey", N)][..]),
            ("range-key", &[KEY, ("shard", S)][..]),
        ] {
            dynamodb::make_table(&client, table, keys).await;
            for create in [false, true] {
                let error = store(&client, table).open(create).await.expect_err("refused");
                assert!(matches!(error, LeaseError::WrongTable { .. }), "{error:?}");
                assert!(error.to_string().contains("another name"), "{error}");
            }
        }
        dynamodb::make_table(&client, "by-hand", &[KEY]).await;
        store(&client, "by-hand").open(false).await.expect("a lease table");
    })
    .await;
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_warned_of_once() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = dynamodb::Embedded::start().await;
    let store = store(&server.client(), "leases");
    store.open(true).await.expect("a table");
    for key in ["a", "b"] {
        put(&server.client(), "leases", &[("leaseKey", text(key)), ("checkpoint", text("LATEST"))]).await;
    }
    for _ in 0..3 {
        store.list().await.expect("rows");
    }
    let lines = log.lines_with("lease row left out");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("WARN") && line.contains("leaseCounter is missing")));
}

/// What was logged by this test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines_with(&self, words: &str) -> Vec<String> {
        let bytes = self.0.lock().expect("no panic while it is held").clone();
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| line.contains(words))
            .map(str::to_owned)
            .collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while it is held").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A server that gives these answers in turn, the last one for ever, and counts the requests; with none
/// it stays silent.
struct Canned {
    url: String,
    asked: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

type Answer = (u16, String);

impl Canned {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free loopback port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(AtomicUsize::new(0));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, answers, asked.clone()));
        Self { url, asked, _server: server }
    }

    fn client(&self) -> Client {
        dynamodb::client(&self.url)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn refusal(code: &str) -> Answer {
    (400, format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"told you"}}"#))
}

async fn serve(listener: TcpListener, answers: Vec<Answer>, asked: Arc<AtomicUsize>) {
    let mut open = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_request(&mut stream).await;
        let turn = asked.fetch_add(1, Ordering::Relaxed);
        if let Some((status, body)) = answers.get(turn).or_else(|| answers.last()) {
            let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}", body.len());
            stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.expect("sent");
        }
        open.push(stream);
    }
}

async fn read_request(stream: &mut TcpStream) {
    let (mut seen, mut bytes) = (String::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut bytes).await.expect("a request");
        seen += &String::from_utf8_lossy(&bytes[..count]);
        let Some((head, body)) = seen.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if count == 0 || body.len() >= length.unwrap_or(0) {
            return;
        }
    }
}

/// The errors of all calls against that server, each with what it was.
async fn errors(client: Client, timeout: Duration) -> Vec<LeaseError> {
    let store = DynamoDbLeaseStore::new(client, "leases", timeout);
    let row = Lease { counter: 1, ..Lease::new(&"a".into(), Checkpoint::Latest) };
    vec![
        store.open(true).await.expect_err("an error"),
        store.list().await.expect_err("an error"),
        store.get(&row.key).await.expect_err("an error"),
        store.create(&row).await.expect_err("an error"),
        store.write(&row.claim(&"me".into())).await.expect_err("an error"),
        store.delete(&row).await.expect_err("an error"),
    ]
}

fn chain(error: &LeaseError) -> String {
    let mut next: Option<&dyn Error> = Some(error);
    let mut words = String::new();
    while let Some(cause) = next {
        words += &format!("{cause}; ");
        next = cause.source();
    }
    words
}

#[tokio::test]
async fn refusals_are_told_from_trouble_that_passes() {
    for code in [
        "AccessDeniedException",
        "UnrecognizedClientException",
        "ExpiredTokenException",
        "InvalidSignatureException",
    ] {
        let server = Canned::start(vec![refusal(code)]).await;
        for error in errors(server.client(), Duration::from_secs(5)).await {
            assert!(matches!(error, LeaseError::Denied { .. }), "{code}: {error:?}");
            assert!(chain(&error).contains(code), "{code}: {}", chain(&error));
        }
    }
    for code in [
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "RequestLimitExceeded",
        "LimitExceededException",
        "InternalServerError",
        "TransactionConflictException",
        "SomethingNew",
    ] {
        let server = Canned::start(vec![refusal(code)]).await;
        for error in errors(server.client(), Duration::from_secs(5)).await {
            assert!(matches!(error, LeaseError::Unavailable { .. }), "{code}: {error:?}");
            assert!(chain(&error).contains(code), "{code}: {}", chain(&error));
        }
    }
}

#[tokio::test]
async fn opening_makes_the_table_and_waits_until_it_is_active() {
    let state = |status| {
        let key = r#""KeySchema":[{"AttributeName":"leaseKey","KeyType":"HASH"}]"#;
        let kind = r#""AttributeDefinitions":[{"AttributeName":"leaseKey","AttributeType":"S"}]"#;
        (200, format!(r#"{{"Table":{{"TableName":"leases","TableStatus":"{status}",{key},{kind}}}}}"#))
    };
    let missing = || refusal("ResourceNotFoundException");
    // Made by another worker in between; not seen at once by the next look.
    let answers = [missing(), refusal("ResourceInUseException"), missing(), (200, "{}".to_owned())];
    let server =
        Canned::start(answers.into_iter().chain([state("CREATING"), state("UPDATING")]).collect()).await;
    store(&server.client(), "leases").open(true).await.expect("a table");
    assert_eq!(server.asked(), 6);

    let server = Canned::start(vec![state("ARCHIVED")]).await;
    let error = store(&server.client(), "leases").open(true).await.expect_err("not usable");
    assert!(matches!(error, LeaseError::WrongTable { .. }), "{error:?}");
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_failed_call_is_not_repeated_here() {
    for status in [500, 503] {
        let server = Canned::start(vec![(status, "<html>sorry</html>".to_owned())]).await;
        let errors = errors(server.client(), Duration::from_secs(5)).await;
        assert!(errors.iter().all(|error| matches!(error, LeaseError::Unavailable { .. })), "{errors:?}");
        assert_eq!(server.asked(), errors.len());
    }
}

#[tokio::test]
async fn silence_is_given_up_after_the_timeout_and_a_closed_port_at_once() {
    let server = Canned::start(Vec::new()).await;
    let silent = errors(server.client(), Duration::from_millis(50)).await;
    // None is repeated; on a busy machine one may be given up before it is sent.
    assert!(server.asked() <= silent.len(), "{} calls for {}", server.asked(), silent.len());
    let closed = errors(dynamodb::client("http://127.0.0.1:1"), Duration::from_secs(5)).await;
    for error in silent.iter().chain(&closed) {
        assert!(matches!(error, LeaseError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn missing_credentials_are_a_refusal() {
    let server = Canned::start(vec![refusal("MustNotBeAsked")]).await;
    let unknown = ProfileFileCredentialsProvider::builder().profile_name("no such profile").build();
    let clients = [
        dynamodb::config(&server.url).build(),
        dynamodb::config(&server.url).credentials_provider(unknown).build(),
    ];
    for config in clients {
        for error in errors(Client::from_conf(config), Duration::from_secs(5)).await {
            assert!(matches!(error, LeaseError::Denied { .. }), "{}", chain(&error));
        }
    }
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn what_an_error_shows_holds_no_secret() {
    let server = Canned::start(vec![refusal("AccessDeniedException")]).await;
    let client = server.client();
    let shown: BTreeSet<_> = errors(client.clone(), Duration::from_secs(5))
        .await
        .iter()
        .map(|error| format!("{} {error:?}", chain(error)))
        .chain([format!("{:?}", DynamoDbLeaseStore::new(client, "leases", Duration::from_secs(5)))])
        .collect();
    for text in shown {
        assert!(!text.contains("Signature=") && !text.contains("AWS4-HMAC"), "{text}");
    }
}
