//! An embedded DynamoDB, and clients for any of them.

use aws_sdk_dynamodb::{
    Client, Config,
    config::{BehaviorVersion, Credentials, Region},
    types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType},
};
use dynoxide::{Database, server};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

/// dynoxide in this process; ends with it.
pub(crate) struct Embedded {
    url: String,
    _stop: oneshot::Sender<()>,
    _server: JoinSet<Result<(), String>>,
}

impl Embedded {
    pub(crate) async fn start() -> Self {
        let database = Database::memory().expect("a database in memory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free loopback port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel();
        let mut server = JoinSet::new();
        server.spawn(server::serve_with_shutdown(listener, database, async move {
            let _ = stopped.await;
        }));
        Self { url, _stop: stop, _server: server }
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.url)
    }
}

pub(crate) fn client(url: &str) -> Client {
    let credentials = Credentials::new("test", "test", None, None, "test");
    Client::from_conf(config(url).credentials_provider(credentials).build())
}

/// Everything but credentials.
pub(crate) fn config(url: &str) -> aws_sdk_dynamodb::config::Builder {
    Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
}

/// Makes a table with these key attributes, hash key first.
pub(crate) async fn make_table(client: &Client, table: &str, keys: &[(&str, ScalarAttributeType)]) {
    let mut request = client.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
    for ((name, kind), role) in keys.iter().zip([KeyType::Hash, KeyType::Range]) {
        let key = KeySchemaElement::builder().attribute_name(*name).key_type(role);
        let kind = AttributeDefinition::builder().attribute_name(*name).attribute_type(kind.clone());
        request = request.key_schema(key.build().expect("complete"));
        request = request.attribute_definitions(kind.build().expect("complete"));
    }
    request.send().await.expect("a new table");
}
