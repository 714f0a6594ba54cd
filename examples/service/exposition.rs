//! Metrics for Prometheus: `/metrics` on an address of its own, if the settings name one.

use std::{future::pending, io, net::SocketAddr};

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use kinesis_consumer::metrics::PrometheusSink;
use tokio::{net::TcpListener, task::JoinSet};

/// The page while it is served; dropping it ends that.
#[derive(Default)]
pub(crate) struct Exposition(JoinSet<io::Result<()>>);

impl Exposition {
    /// Serves what `sink` holds.
    pub(crate) async fn serve(address: SocketAddr, sink: PrometheusSink) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let answer = move || async move { ([(CONTENT_TYPE, PrometheusSink::CONTENT_TYPE)], sink.text()) };
        let router = Router::new().route("/metrics", get(answer));
        Ok(Self::of(async move { axum::serve(listener, router).await }))
    }

    /// What `server` does.
    pub(crate) fn of(server: impl Future<Output = io::Result<()>> + Send + 'static) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(server);
        Self(tasks)
    }

    /// Resolves when nothing serves any more, which nobody asked for, with the reason. Never, if there is no
    /// page to serve.
    pub(crate) async fn ended(&mut self) -> io::Error {
        let why = match self.0.join_next().await {
            None => pending().await,
            Some(Ok(Ok(()))) => "it returned".into(),
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(panic)) => panic.to_string(),
        };
        io::Error::other(format!("/metrics is not served any more: {why}"))
    }
}
