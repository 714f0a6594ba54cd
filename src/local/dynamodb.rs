//! DynamoDB: the crate `dynoxide-rs` in this process, with its tables in memory.

use std::io;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The task that serves an empty DynamoDB until `stop`, and then until its open requests are answered.
pub(super) fn serve(
    listener: TcpListener,
    stop: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let database = dynoxide::Database::memory().map_err(io::Error::other)?;
    Ok(async move {
        let stopped = dynoxide::server::serve_with_shutdown(listener, database, stop.cancelled_owned());
        if let Err(error) = stopped.await {
            tracing::error!(error, "local DynamoDB ended");
        }
    })
}
