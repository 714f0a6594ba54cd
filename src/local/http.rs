//! The HTTP side of the local servers: connections, routing by header or path, injected faults.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, header, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    cloudwatch,
    faults::{Fault, Faults},
    kinesis::{self, Kinesis},
};
use crate::clock;

const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const KINESIS_TARGET: &str = "Kinesis_20131202.";

/// What answers the requests.
#[derive(Clone)]
pub(super) struct Router {
    pub(super) kinesis: Arc<Kinesis>,
    pub(super) metrics: Arc<cloudwatch::Sink>,
    pub(super) faults: Arc<Faults>,
}

/// The answer to a call, before it is HTTP.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

/// Serves until `stop`, then cuts all connections.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, router.clone()));
                }
                // Out of file descriptors, most likely: wait for one.
                Err(error) => {
                    tracing::warn!(%error, "local server cannot accept");
                    clock::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn serve_connection(stream: TcpStream, router: Router) {
    // Answers are small; waiting for more would only delay them. Without it they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(router.clone(), request));
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "local connection ended");
    }
}

/// An error closes the connection without an answer.
async fn respond(router: Router, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let metrics = head.uri.path().strip_prefix(cloudwatch::PATH);
    let operation = metrics.or_else(|| target?.strip_prefix(KINESIS_TARGET)).unwrap_or_default();

    let fault = router.faults.meet(operation);
    match &fault {
        Some(Fault::Error { status, code, message }) => {
            return http(match metrics {
                Some(_) => cloudwatch::error(*status, code),
                None => kinesis::error(*status, code, message),
            });
        }
        Some(Fault::Delay(delay)) => clock::sleep(*delay).await,
        Some(Fault::Drop) => return Err(io::Error::other("injected: dropped before the call")),
        Some(Fault::DropAfter) | None => {}
    }
    let answer = match metrics {
        Some(operation) => {
            let packed = head.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding == "gzip");
            router.metrics.call(operation, &body, packed)
        }
        None => router.kinesis.call(operation, &body),
    };
    if fault == Some(Fault::DropAfter) {
        return Err(io::Error::other("injected: dropped after the call"));
    }
    http(answer)
}

fn http(answer: Answer) -> io::Result<Response<Full<Bytes>>> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response = response.header(header::CONTENT_LENGTH, answer.body.len());
    response.body(Full::new(answer.body)).map_err(io::Error::other)
}
