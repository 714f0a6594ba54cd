//! What is checked before a worker does anything: the health file, the stream, the permissions, the
//! lease table, the worker's id. Nothing is written before the reading side has passed.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};
use tracing::{info, warn};

use crate::{
    clock,
    config::{Config, LeaseTable},
    core::{
        audit,
        backoff::Backoff,
        lease::{Checkpoint, Lease},
        shard::Shard,
    },
    error::WorkerError,
    io::{BoxError, LeaseError, LeaseStore, RecordSource, Rows, ShardFilter, SourceError, StartFrom},
    worker::{faults::Faults, reader, renewer::cause},
};

/// How long AWS may be out of reach at start before the worker gives up and says so.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A clock that is ahead by less may be right.
const LEAST_SKEW: Duration = Duration::from_secs(2);

/// What the checks found.
pub(super) struct Found {
    /// The stream's identity, for new lease rows.
    pub(super) identity: Arc<str>,
    /// The table as it is.
    pub(super) rows: Rows,
    /// When they were asked for.
    pub(super) seen_at: Instant,
    /// How long the stream keeps records, if that is known.
    pub(super) retention: Option<Duration>,
    /// All shards of the stream.
    pub(super) listed: Vec<Shard>,
    /// How much this host's clock is ahead of the stream's, at most.
    pub(super) ahead: Duration,
}

/// Checks the stream, then the table.
pub(super) async fn check(
    config: &Config,
    table: &str,
    source: &dyn RecordSource,
    store: &dyn LeaseStore,
    rng: &mut impl Rng,
) -> Result<Found, WorkerError> {
    let until = clock::now() + PATIENCE;
    let (stream, asked_at) = patiently(until, rng, "describe the stream", || async {
        let asked_at = clock::now();
        source.describe().await.map(|stream| (stream, asked_at))
    })
    .await?;
    let ahead = reader::host_ahead_of(&stream);
    if ahead > LEAST_SKEW + (clock::now() - asked_at) {
        warn!(?ahead, "this host's clock is ahead of the stream's; is it kept by NTP?");
    }
    let listed = patiently(until, rng, "list the shards", || source.list_shards(ShardFilter::All)).await?;
    let open: Vec<&Shard> = listed.iter().filter(|shard| shard.is_open()).collect();
    let first = if open.is_empty() { 0 } else { rng.random_range(0..open.len()) };
    let mut turns = open.iter().cycle().skip(first);
    // Read permission is refused here, not when leases are held already. One shard that fails is no reason to
    // stay away from the others.
    patiently(until, rng, "read records", || {
        let shard = turns.next();
        async move {
            let Some(shard) = shard else { return Ok(()) };
            let iterator = source.open(&shard.id, &StartFrom::Latest).await?;
            match source.read(&shard.id, &iterator, 1).await {
                // Others read the shard too, or it took long. That they may is all that matters.
                Err(SourceError::Throttled { .. } | SourceError::ExpiredIterator) => Ok(()),
                other => other.map(drop),
            }
        }
    })
    .await?;
    let create = config.lease_table == LeaseTable::CreateIfMissing;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let (rows, seen_at) = loop {
        patiently(until, rng, "open the lease table", || store.open(create)).await?;
        match rows_of(store, until, rng).await {
            // Dropped since it was opened, or made by another worker and not known everywhere yet.
            Err(WorkerError::NoTable(_)) if create && clock::now() < until => {
                clock::sleep(backoff.next(rng)).await;
            }
            rows => break rows?,
        }
    };
    let identity = stream.identity();
    if let Some(why) = audit::belongs_elsewhere(&rows.leases, &listed, &identity) {
        return Err(WorkerError::WrongTable { table: table.into(), why });
    }
    Ok(Found { identity, rows, seen_at, retention: stream.retention, listed, ahead })
}

/// The rows of the table, which may be read and written, and when they were asked for. They come last, and are young.
async fn rows_of(
    store: &dyn LeaseStore,
    until: Instant,
    rng: &mut impl Rng,
) -> Result<(Rows, Instant), WorkerError> {
    patiently(until, rng, "write the lease table", || probe(store)).await?;
    patiently(until, rng, "read the lease table", || async {
        let asked_at = clock::now();
        store.scan().await.map(|rows| (rows, asked_at))
    })
    .await
}

/// Tries every call that the work needs, in a way that changes nothing, so that a refused permission is
/// found now: not when the first lease moves, nor when some of those claimed at one time are ours already.
async fn probe(store: &dyn LeaseStore) -> Result<(), LeaseError> {
    // There is no such row.
    let doomed = Lease::new(&"kinesis-consumer-permission-check".into(), Checkpoint::TrimHorizon);
    store.get(&doomed.key).await?;
    store.delete(&doomed).await?;
    store.may_create(&doomed.key).await?;
    match store.write(&doomed.claim(&"nobody".into())).await {
        Ok(()) | Err(LeaseError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Errors that a start can meet.
trait StartError: std::error::Error + Send + Sync + Sized + 'static {
    /// The error to give up with, or this one back if it is worth trying again.
    fn fatal(self) -> Result<WorkerError, Self>;
}

impl StartError for LeaseError {
    fn fatal(self) -> Result<WorkerError, Self> {
        Ok(match self {
            Self::Denied { operation, source } => {
                WorkerError::Denied { what: format!("{operation}: {}", cause(source.as_ref())), source }
            }
            Self::NoTable { table } => WorkerError::NoTable(table),
            Self::WrongTable { table, why } => WorkerError::WrongTable { table, why },
            other => return Err(other),
        })
    }
}

impl StartError for SourceError {
    fn fatal(self) -> Result<WorkerError, Self> {
        Ok(match self {
            Self::Denied { operation, source } => {
                WorkerError::Denied { what: format!("{operation}: {}", cause(source.as_ref())), source }
            }
            Self::NoStream { stream } => WorkerError::NoStream(stream),
            other => return Err(other),
        })
    }
}

/// Tries until it works, a fatal error comes, or patience is over.
async fn patiently<T, E: StartError, F: Future<Output = Result<T, E>>>(
    until: Instant,
    rng: &mut impl Rng,
    what: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<T, WorkerError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut faults = Faults::default();
    loop {
        let error = match call().await {
            Ok(value) => {
                if let Some(count) = faults.over() {
                    info!(what, count, "succeeds now");
                }
                return Ok(value);
            }
            Err(error) => match error.fatal() {
                Ok(fatal) => return Err(fatal),
                Err(error) => error,
            },
        };
        if let Some(faults) = faults.failed() {
            warn!(what, faults, %error, cause = cause(&error), "failed at start; trying again");
        }
        let delay = backoff.next(rng);
        if clock::now() + delay >= until {
            let what = format!("{what}: {}", cause(&error));
            return Err(WorkerError::Unavailable { what, source: BoxError::from(error) });
        }
        clock::sleep(delay).await;
    }
}
