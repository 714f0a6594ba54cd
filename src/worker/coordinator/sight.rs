//! Whether the worker can read the stream at all. One that cannot, beside others that can, gives its leases up
//! until it can.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::Coordinator;
use crate::{
    clock,
    core::{backoff::Backoff, cut_off::CutOff, lease::Lease, shard::ShardId},
    io::{RecordSource, SourceError, StartFrom},
};

/// How often a worker that is cut off tries to read.
const TRIALS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// What the coordinator knows of the way to the stream.
#[derive(Debug, Default)]
pub(super) struct Sight {
    cut_off: CutOff,
    /// While nothing can be read here: the task that tries to. It ends when it has read.
    blind: Option<JoinSet<()>>,
}

impl Sight {
    /// Whether the worker is to hold no lease.
    pub(super) fn is_blind(&self) -> bool {
        self.blind.is_some()
    }
}

impl Coordinator {
    /// Gives all leases up once it is proven that only this worker cannot read; they come back by the rules of
    /// every look once it can.
    pub(super) fn keep_in_sight(&mut self, now: Instant) {
        if let Some(trials) = &mut self.sight.blind {
            if trials.try_join_next().is_some() {
                info!("the stream can be read again; leases are claimed as before");
                self.sight.blind = None;
                return;
            }
        } else {
            let failing: Vec<Option<Instant>> =
                self.links.values().map(|link| link.signs().reads_failing).collect();
            if failing.is_empty() || failing.contains(&None) {
                // Peers are watched only while nothing can be read here: it takes a copy of their checkpoints.
                self.sight.cut_off = CutOff::default();
                return;
            }
            self.sight.cut_off.see(self.view.leases(), &self.parts.me, now);
            if !self.sight.cut_off.is_proven(failing, now) {
                return;
            }
            // Not ours alone: one that nobody can read is no reason to stay away from the others.
            let is_read = |lease: &&Lease| lease.holder().is_some() && !lease.is_finished();
            let mut shards: Vec<ShardId> =
                self.view.leases().filter(is_read).map(|lease| lease.key.shard()).collect();
            shards.shuffle(&mut self.parts.rng);
            warn!(
                shards = self.links.len(),
                "no shard can be read here, and other workers read theirs; giving the leases up until one can"
            );
            let (source, rng) = (self.parts.source.clone(), StdRng::seed_from_u64(self.parts.rng.random()));
            let mut trials = JoinSet::new();
            trials.spawn(self.parts.gate.pass(async move { until_read(&*source, &shards, rng).await }));
            self.sight.blind = Some(trials);
            self.sight.cut_off = CutOff::default();
        }
        // Also what was on its way to us: asked for, or claimed in this moment.
        let until = now + self.parts.config.shutdown_timeout;
        for link in self.links.values().filter(|link| !link.is_draining()) {
            link.ask_to_release(until);
        }
        self.withdraw_all();
    }
}

/// Tries to read one record of some shard, each in its turn, until the stream answers.
async fn until_read(source: &dyn RecordSource, shards: &[ShardId], mut rng: StdRng) {
    let mut backoff = Backoff::new(TRIALS.0, TRIALS.1);
    for shard in shards.iter().cycle() {
        clock::sleep(backoff.next(&mut rng)).await;
        let tried = match source.open(shard, &StartFrom::Latest).await {
            Ok(iterator) => source.read(shard, &iterator, 1).await.map(drop),
            Err(error) => Err(error),
        };
        // It answers, if only by a refusal of this shard.
        let answers =
            |error: &SourceError| matches!(error, SourceError::Throttled { .. } | SourceError::NoShard(_));
        if tried.as_ref().err().is_none_or(answers) {
            return;
        }
    }
}
