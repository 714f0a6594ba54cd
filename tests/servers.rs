//! That the independent servers start, answer and end with the test. Skips those that are not installed.

mod support;

use support::servers;

#[tokio::test]
async fn a_server_answers_once_it_is_there_and_is_gone_after_its_drop() {
    for server in [servers::kinesis_local().await, servers::dynalite().await, servers::moto().await] {
        let Some(server) = server else { continue };
        let address = server.url().trim_start_matches("http://").to_owned();
        tokio::net::TcpStream::connect(&address).await.expect("it listens");
        drop(server);
        tokio::net::TcpStream::connect(&address).await.expect_err("it is gone");
    }
}
