//! What happens to a worker, for those who want to know: lossy, bounded, and never in the way.

use std::time::Duration;

use tokio::sync::broadcast;

use crate::{
    core::{balance::Reason, health::Health, shard::ShardId},
    error::LeaseLost,
};

/// Events kept for a slow listener.
const KEPT: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A lease was taken, and its shard is about to be read.
    LeaseTaken {
        /// The shard.
        shard: ShardId,
        /// Why it was claimed.
        reason: Reason,
    },
    /// The oldest record of a shard that is not processed will soon be older than the stream keeps records: more
    /// than four fifths of that time. Comes again only after the shard has caught up by half.
    RetentionNear {
        /// The shard.
        shard: ShardId,
        /// How far its processing is behind.
        behind: Duration,
        /// How long the stream keeps records.
        retention: Duration,
    },
    /// Records of a shard have left the stream before they were processed, as far as can be told: its
    /// processing is further behind than the stream keeps records, or the record that the checkpoint stands at
    /// was not there any more.
    RetentionPassed {
        /// The shard.
        shard: ShardId,
    },
    /// A lease is gone.
    LeaseLost {
        /// The shard.
        shard: ShardId,
        /// Why.
        why: LeaseLost,
    },
    /// A lease was not given up at stop: others may take it once it has expired.
    LeaseKept {
        /// The shard.
        shard: ShardId,
    },
    /// A lease was given up or handed over, and others may take it.
    LeaseReleased {
        /// The shard.
        shard: ShardId,
    },
    /// A shard was processed to its end.
    ShardEnded {
        /// The shard.
        shard: ShardId,
    },
    /// The processor cannot go on with a shard, or panicked: the lease was given up.
    ShardGivenUp {
        /// The shard.
        shard: ShardId,
        /// Whether it panicked.
        panicked: bool,
    },
    /// These shards are read by nobody: this worker has no room for them, and no other took them.
    LeftOver {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// The worker has come to a point where a restart would help, or is over it: a part of it makes no
    /// progress, or makes it again.
    Health(Health),
    /// This listener was too slow and missed that many events.
    Missed(u64),
}

/// Where events go.
#[derive(Clone, Debug)]
pub(super) struct Sender(broadcast::Sender<Event>);

impl Sender {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }

    pub(super) fn send(&self, event: Event) {
        // An error means that nobody listens.
        let _ = self.0.send(event);
    }

    /// What handles keep: it does not keep the listeners waiting when the worker has ended.
    pub(super) fn downgrade(&self) -> Source {
        Source(self.0.downgrade())
    }
}

/// Where listeners subscribe, as long as there is a worker.
#[derive(Clone, Debug)]
pub(super) struct Source(broadcast::WeakSender<Event>);

impl Source {
    pub(super) fn subscribe(&self) -> Events {
        let ended = || broadcast::Sender::new(1).subscribe();
        Events(self.0.upgrade().map_or_else(ended, |sender| sender.subscribe()))
    }
}

/// The events of a worker from the moment of subscription on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; none once the worker has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
