//! Metrics for Prometheus: `/metrics` on an address of its own, if the settings name one.

use std::{io, net::SocketAddr};

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use kinesis_consumer::metrics::PrometheusSink;
use tokio::{net::TcpListener, task::JoinSet};

/// Serves what `sink` holds; ends when the answer is dropped.
pub(crate) async fn serve(address: SocketAddr, sink: PrometheusSink) -> io::Result<JoinSet<io::Result<()>>> {
    let listener = TcpListener::bind(address).await?;
    let answer = move || async move { ([(CONTENT_TYPE, PrometheusSink::CONTENT_TYPE)], sink.text()) };
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, Router::new().route("/metrics", get(answer))).await });
    Ok(server)
}
