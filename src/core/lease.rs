//! Leases: the row of one shard in the lease table, and what its attributes mean.
//!
//! What may be written to it, and by whom, is in `tenure`. KCL: `Lease`, `ExtendedSequenceNumber`.

mod claimant;
mod hand_off;
mod operator;
mod tenure;

use std::{cmp::Ordering, collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::claimant::Claimant;
pub use self::hand_off::HandOff;
pub use self::operator::Reset;
pub use self::tenure::{CheckpointGoesBack, LeaseWrite, Mark, OwnerChange, Tenure};
use crate::core::{
    heartbeat::Incarnation,
    shard::{HashKeyRange, Position, ShardId},
};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as it stands in the lease table.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $type {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl From<String> for $type {
            fn from(name: String) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The key of a lease: the shard's id. KCL: `leaseKey`.
    LeaseKey
}

name! {
    /// The name of a worker, unique among those alive. KCL: `workerIdentifier`.
    WorkerId
}

impl LeaseKey {
    /// The shard that the lease is for.
    pub fn shard(&self) -> ShardId {
        self.as_str().into()
    }
}

impl From<&ShardId> for LeaseKey {
    fn from(shard: &ShardId) -> Self {
        shard.as_str().into()
    }
}

/// How far a shard has been processed, in the words of the lease table.
///
/// Ordered as the KCL orders it: the three starting points before every number, the end after them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Checkpoint {
    /// Not begun; begin at a time that is configured or pinned in the row.
    AtTimestamp,
    /// Not begun; begin at the oldest record.
    TrimHorizon,
    /// Not begun; begin with the records that arrive from now on.
    Latest,
    /// Everything up to and including this position is done.
    At(Position),
    /// Everything is done, and the shard takes no more records.
    ShardEnd,
}

impl Checkpoint {
    /// The position, if the shard has been begun and not ended.
    pub fn position(&self) -> Option<&Position> {
        match self {
            Self::At(position) => Some(position),
            _ => None,
        }
    }

    /// The text of the `checkpoint` attribute: a sentinel or a decimal number.
    pub fn text(&self) -> &str {
        match self {
            Self::AtTimestamp => "AT_TIMESTAMP",
            Self::TrimHorizon => "TRIM_HORIZON",
            Self::Latest => "LATEST",
            Self::At(position) => position.sequence.as_str(),
            Self::ShardEnd => "SHARD_END",
        }
    }

    /// The number of the `checkpointSubSequenceNumber` attribute; 0 with a sentinel.
    pub fn sub(&self) -> u64 {
        self.position().map_or(0, |position| position.sub)
    }

    /// Reads both attributes.
    ///
    /// # Errors
    /// If the text is neither a sentinel nor a sequence number.
    pub fn parse(text: &str, sub: u64) -> Result<Self, InvalidCheckpoint> {
        Ok(match text {
            "AT_TIMESTAMP" => Self::AtTimestamp,
            "TRIM_HORIZON" => Self::TrimHorizon,
            "LATEST" => Self::Latest,
            "SHARD_END" => Self::ShardEnd,
            number => match FromStr::from_str(number) {
                Ok(sequence) => Self::At(Position { sequence, sub }),
                Err(_) => return Err(InvalidCheckpoint(number.chars().take(140).collect())),
            },
        })
    }
}

/// A checkpoint that is neither a sentinel nor a sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint: {0:?}")]
pub struct InvalidCheckpoint(String);

impl Ord for Checkpoint {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |checkpoint: &Self| match checkpoint {
            Self::AtTimestamp => 0,
            Self::TrimHorizon => 1,
            Self::Latest => 2,
            Self::At(_) => 3,
            Self::ShardEnd => 4,
        };
        rank(self).cmp(&rank(other)).then_with(|| self.position().cmp(&other.position()))
    }
}

impl PartialOrd for Checkpoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(position) => position.fmt(f),
            sentinel => f.write_str(sentinel.text()),
        }
    }
}

/// The first half of a two-phase checkpoint: announced, not yet in force.
#[derive(Clone, PartialEq, Eq)]
pub struct PendingCheckpoint {
    /// The checkpoint that will hold once it is committed.
    pub at: Checkpoint,
    /// What the application wanted to remember with it, at most a few hundred KB (a DynamoDB item is
    /// at most 400 KB). KCL: `pendingCheckpointState`.
    pub state: Option<Bytes>,
}

/// Everything but the application's state, which may be secret.
impl fmt::Debug for PendingCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingCheckpoint").field("at", &self.at).finish_non_exhaustive()
    }
}

/// One row of the lease table.
#[derive(Clone, PartialEq, Debug)]
pub struct Lease {
    /// The key of the row.
    pub key: LeaseKey,
    /// Raised by every write of a holder; observers judge by it whether the holder lives.
    pub counter: u64,
    /// Who holds the lease; during a hand-off who will hold it next.
    pub owner: Option<WorkerId>,
    /// Present only during a hand-off: who holds the lease until then.
    pub checkpoint_owner: Option<WorkerId>,
    /// How often the lease went from one owner to another since the last checkpoint.
    pub owner_switches: u64,
    /// How far the shard has been processed.
    pub checkpoint: Checkpoint,
    /// A prepared checkpoint.
    pub pending: Option<PendingCheckpoint>,
    /// The shards that this one continues. Not begun before they have ended.
    pub parents: BTreeSet<ShardId>,
    /// The shards that continue this one; known once it has ended.
    pub children: BTreeSet<ShardId>,
    /// The hash keys of the shard; old KCL versions did not write them.
    pub hash_range: Option<HashKeyRange>,
    /// Smoothed KiB/s of the shard's records, as the Java KCL writes it.
    pub throughput_kbps: Option<f64>,
    /// When reading of a `LATEST` or `AT_TIMESTAMP` lease begins, in milliseconds since the epoch, so that
    /// a restart before the first checkpoint skips nothing. Ours alone; the Java KCL ignores it.
    pub start_millis: Option<u64>,
    /// When an operator last [reset](Lease::reset) the lease, in milliseconds since the epoch: its start is
    /// then its own, whatever other rows pin. Ours alone; the Java KCL ignores it.
    pub reset_millis: Option<u64>,
    /// The stream that the row was made for. Ours alone; the Java KCL ignores it.
    pub stream: Option<Arc<str>>,
    /// Whose claim was the last of a worker that hands leases over on request. Believed only of the present
    /// owner: a Java KCL 2.x that takes the row leaves it as it was. Ours alone.
    pub hands_over: Option<Claimant>,
    /// The counter at which the holder stopped on purpose, and left the lease to itself when it comes back.
    /// Of no meaning once the counter has moved. Ours alone.
    pub left_at: Option<u64>,
    /// The worker row that the lease lives by, as its claimant said; none if the lease is renewed by itself.
    /// Believed only of the present holder, see [`lives_by`](Self::lives_by). Ours alone.
    pub heartbeat: Option<Incarnation>,
}

impl Lease {
    /// A row for a shard that nobody holds yet.
    pub fn new(shard: &ShardId, checkpoint: Checkpoint) -> Self {
        Self {
            key: shard.into(),
            counter: 0,
            owner: None,
            checkpoint_owner: None,
            owner_switches: 0,
            checkpoint,
            pending: None,
            parents: BTreeSet::new(),
            children: BTreeSet::new(),
            hash_range: None,
            throughput_kbps: None,
            start_millis: None,
            reset_millis: None,
            stream: None,
            hands_over: None,
            left_at: None,
            heartbeat: None,
        }
    }

    /// Who holds the lease now: during a hand-off the worker that still has to checkpoint.
    pub fn holder(&self) -> Option<&WorkerId> {
        self.checkpoint_owner.as_ref().or(self.owner.as_ref())
    }

    /// By whose heartbeat the lease lives: a worker row of its holder. None if nobody holds it, if its holder
    /// left it, or if it is judged by its own counter, as the KCL's leases are.
    pub fn lives_by(&self) -> Option<&Incarnation> {
        let holder = self.holder().filter(|_| !self.is_left())?;
        self.heartbeat.as_ref().filter(|incarnation| incarnation.is_of(holder))
    }

    /// Whether both rows name one holding, or one time without a holder: of one holder, begun by one claim.
    pub(crate) fn is_of_holding(&self, other: &Self) -> bool {
        self.holder() == other.holder() && self.hands_over == other.hands_over
    }

    /// Whether another process than `process` has claimed the lease under the id `me`. One that was handed over
    /// names the claim of its last holder.
    pub(crate) fn is_namesakes(&self, me: &WorkerId, process: u64) -> bool {
        let claimant = self.hands_over.as_ref().filter(|claimant| claimant.worker() == me);
        claimant.is_some_and(|claimant| claimant.process() != Some(process))
    }

    /// Whether the shard has been processed to its end.
    pub fn is_finished(&self) -> bool {
        self.checkpoint == Checkpoint::ShardEnd
    }

    /// Whether the holder has stopped, and left the lease to the next worker of its name.
    pub fn is_left(&self) -> bool {
        self.holder().is_some() && self.left_at == Some(self.counter)
    }

    /// Whether the lease is on its way to `me` from another worker.
    pub fn is_coming_to(&self, me: &WorkerId) -> bool {
        self.owner.as_ref() == Some(me) && self.checkpoint_owner.as_ref().is_some_and(|from| from != me)
    }

    /// Whether the lease is on its way from `me` to another worker.
    pub fn is_leaving(&self, me: &WorkerId) -> bool {
        self.checkpoint_owner.as_ref() == Some(me) && self.owner.as_ref().is_some_and(|to| to != me)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests;
