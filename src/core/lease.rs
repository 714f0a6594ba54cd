//! Leases: the row of one shard in the lease table, the writes that may change it, and the proof of
//! holding it.
//!
//! Every write is conditional on the counter last seen and raises it by one. A [`LeaseWrite`] is made
//! only by [`Lease::claim`] and by a [`Tenure`], so nothing can move a checkpoint without holding the
//! lease. KCL: `Lease`, `DynamoDBLeaseRefresher`; rules I2, I4 and I6 of its interoperability.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::core::shard::{HashKeyRange, Position, ShardId};

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
    /// Smoothed KiB/s, as the Java KCL writes it. Kept, not used.
    pub throughput_kbps: Option<f64>,
    /// When reading of a `LATEST` or `AT_TIMESTAMP` lease begins, in milliseconds since the epoch, so that
    /// a restart before the first checkpoint skips nothing. Ours alone; the Java KCL ignores it.
    pub start_millis: Option<u64>,
    /// The stream that the row was made for. Ours alone; the Java KCL ignores it.
    pub stream: Option<Arc<str>>,
    /// The worker that said, when it claimed the lease, that it hands leases over on request. Believed only
    /// of the present owner: a Java KCL 2.x that takes the row leaves it as it was. Ours alone.
    pub hands_over: Option<WorkerId>,
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
            stream: None,
            hands_over: None,
        }
    }

    /// Who holds the lease now: during a hand-off the worker that still has to checkpoint.
    pub fn holder(&self) -> Option<&WorkerId> {
        self.checkpoint_owner.as_ref().or(self.owner.as_ref())
    }

    /// Whether the shard has been processed to its end.
    pub fn is_finished(&self) -> bool {
        self.checkpoint == Checkpoint::ShardEnd
    }

    /// The write by which `me` takes the lease from whoever had it when this row was read.
    pub fn claim(&self, me: &WorkerId) -> LeaseWrite {
        let switched = self.holder().is_some_and(|holder| holder != me);
        LeaseWrite {
            key: self.key.clone(),
            expected: self.counter,
            holder: None,
            handing_over: None,
            owner: OwnerChange::Set { owner: me.clone(), switched },
            mark: None,
            children: BTreeSet::new(),
        }
    }

    /// The request by which `me` asks the owner for the lease; none if the owner did not say that it hands
    /// leases over, or is handing this one over already.
    pub fn ask(&self, me: &WorkerId) -> Option<HandOff> {
        let from = self.owner.clone().filter(|owner| owner != me)?;
        let willing = self.hands_over.as_ref() == Some(&from) && self.checkpoint_owner.is_none();
        willing.then(|| HandOff { key: self.key.clone(), from, to: me.clone(), withdraw: false })
    }

    /// Whether the lease is on its way to `me` from another worker.
    pub fn is_coming_to(&self, me: &WorkerId) -> bool {
        self.owner.as_ref() == Some(me) && self.checkpoint_owner.as_ref().is_some_and(|from| from != me)
    }

    /// Whether the lease is on its way from `me` to another worker.
    pub fn is_leaving(&self, me: &WorkerId) -> bool {
        self.checkpoint_owner.as_ref() == Some(me) && self.owner.as_ref().is_some_and(|to| to != me)
    }

    /// The row after `request` succeeded on it. The counter is the holder's and stays.
    pub fn after_request(&self, request: &HandOff) -> Self {
        let (owner, checkpoint_owner) = match request.withdraw {
            false => (&request.to, Some(request.from.clone())),
            true => (&request.from, None),
        };
        Self { owner: Some(owner.clone()), checkpoint_owner, ..self.clone() }
    }

    /// The row after `write` succeeded on it.
    pub fn after(&self, write: &LeaseWrite) -> Self {
        let mut row = self.clone();
        row.counter = write.expected + 1;
        match &write.owner {
            OwnerChange::Keep => {}
            OwnerChange::Set { owner, switched } => {
                row.owner = Some(owner.clone());
                row.checkpoint_owner = None;
                row.hands_over = Some(owner.clone());
                row.owner_switches += u64::from(*switched);
            }
            OwnerChange::Remove => (row.owner, row.checkpoint_owner) = (None, None),
            OwnerChange::Transfer => row.checkpoint_owner = None,
        }
        match &write.mark {
            None => {}
            Some(Mark::Done(checkpoint)) => {
                row.checkpoint = checkpoint.clone();
                row.owner_switches = 0;
                row.pending = None;
            }
            Some(Mark::Advanced(checkpoint)) => {
                row.checkpoint = checkpoint.clone();
                row.owner_switches = 0;
            }
            Some(Mark::Prepared(pending)) => row.pending = Some(pending.clone()),
        }
        if !write.children.is_empty() {
            row.children.clone_from(&write.children);
        }
        row
    }
}

/// A request for a graceful hand-off, or its withdrawal. It names the next owner in the row and leaves the
/// counter alone: the holder goes on renewing, finishes what is in hand, and transfers the lease. KCL:
/// `initiateGracefulLeaseHandoff`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandOff {
    key: LeaseKey,
    from: WorkerId,
    to: WorkerId,
    withdraw: bool,
}

impl HandOff {
    /// The row to write.
    pub fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// The holder that is asked.
    pub fn from(&self) -> &WorkerId {
        &self.from
    }

    /// The worker that wants the lease.
    pub fn to(&self) -> &WorkerId {
        &self.to
    }

    /// Whether an earlier request is taken back.
    pub fn is_withdrawal(&self) -> bool {
        self.withdraw
    }

    /// The same request, taken back.
    pub fn withdrawn(self) -> Self {
        Self { withdraw: true, ..self }
    }

    /// Whether `row` meets the condition of this request: the owner is the one that is asked and no
    /// hand-off is pending; to take it back, this very hand-off is.
    pub fn is_allowed_on(&self, row: &Lease) -> bool {
        let state = (row.owner.as_ref(), row.checkpoint_owner.as_ref());
        match self.withdraw {
            false => state == (Some(&self.from), None),
            true => state == (Some(&self.to), Some(&self.from)),
        }
    }
}

/// One conditional write to a lease row: it takes effect only if the counter still is
/// [`expected`](LeaseWrite::expected) and, unless it claims the lease, the writer holds it and the state of
/// a hand-off is as the writer knows it.
#[derive(Clone, PartialEq, Debug)]
pub struct LeaseWrite {
    key: LeaseKey,
    expected: u64,
    /// The writer, which must hold the lease; none if it claims it.
    holder: Option<WorkerId>,
    /// The writer, if it is handing the lease over; none if no hand-off may be pending.
    handing_over: Option<WorkerId>,
    owner: OwnerChange,
    mark: Option<Mark>,
    children: BTreeSet<ShardId>,
}

/// What a write does to the owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OwnerChange {
    /// Leaves it.
    Keep,
    /// Writes a new owner and removes a pending hand-off.
    Set {
        /// The new owner.
        owner: WorkerId,
        /// Whether another worker held the lease before, which is counted in the row.
        switched: bool,
    },
    /// Removes it: anyone may claim the lease at once.
    Remove,
    /// Completes a hand-off: the next owner, already named in the row, holds the lease from now on.
    Transfer,
}

/// What a write does to the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Moves it, resets the count of owner switches and removes a prepared checkpoint.
    Done(Checkpoint),
    /// Moves it likewise, but leaves a prepared checkpoint, which is ahead of it.
    Advanced(Checkpoint),
    /// Leaves it and stores a prepared one beside it.
    Prepared(PendingCheckpoint),
}

impl LeaseWrite {
    /// The row to write.
    pub fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// The counter that the row must have. The write raises it by one.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// The worker that must hold the lease; none for a claim. The counter alone does not tell: that of a row
    /// that was deleted and made anew may meet a former holder's.
    pub fn holder(&self) -> Option<&WorkerId> {
        self.holder.as_ref()
    }

    /// The worker that must be handing the lease over; none if no hand-off may be pending. Of no meaning
    /// for a claim.
    pub fn handing_over(&self) -> Option<&WorkerId> {
        self.handing_over.as_ref()
    }

    /// What becomes of the owner.
    pub fn owner(&self) -> &OwnerChange {
        &self.owner
    }

    /// What becomes of the checkpoint.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// The children to note in the row; empty for none.
    pub fn children(&self) -> &BTreeSet<ShardId> {
        &self.children
    }

    /// Whether `row` meets the condition of this write.
    pub fn is_allowed_on(&self, row: &Lease) -> bool {
        let claims = matches!(self.owner, OwnerChange::Set { .. });
        let held = row.holder() == self.holder.as_ref() && row.checkpoint_owner == self.handing_over;
        row.counter == self.expected && (claims || held)
    }

    /// Whether `row`, read after this write failed or went unanswered, shows that it took effect for `me`.
    ///
    /// A reply may be lost after the write was applied; the SDK or we then repeat it and meet our own
    /// counter.
    pub fn took_effect_on(&self, row: &Lease, me: &WorkerId) -> bool {
        // A request for the lease may have come after the write: it leaves the holder and the counter.
        let owned = match &self.owner {
            OwnerChange::Keep => row.holder() == Some(me),
            OwnerChange::Set { owner, .. } => row.holder() == Some(owner),
            OwnerChange::Remove => row.holder().is_none(),
            OwnerChange::Transfer => row.holder().is_some_and(|holder| holder != me),
        };
        let marked = match &self.mark {
            None => true,
            Some(Mark::Done(checkpoint) | Mark::Advanced(checkpoint)) => row.checkpoint == *checkpoint,
            Some(Mark::Prepared(pending)) => row.pending.as_ref() == Some(pending),
        };
        row.counter == self.expected + 1 && owned && marked
    }
}

/// Proof of one holding of one lease. Made only by a successful claim; not `Clone`.
///
/// It carries the row as this worker last wrote it and the moment up to which the holding is certain.
/// All writes of a holder are made here.
#[derive(Debug)]
pub struct Tenure {
    row: Lease,
    me: WorkerId,
    proven_at: Instant,
}

/// A checkpoint that would go back, or into the future.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint {asked} is behind the stored one, {stored}")]
pub struct CheckpointGoesBack {
    /// What was asked for.
    pub asked: Checkpoint,
    /// What the row holds.
    pub stored: Checkpoint,
}

impl Tenure {
    /// The holding that began when `claim`, made from `seen` by [`Lease::claim`] and sent at `sent_at`,
    /// succeeded. Nothing if `claim` is another kind of write.
    pub fn begin(seen: &Lease, claim: &LeaseWrite, sent_at: Instant) -> Option<Self> {
        match &claim.owner {
            OwnerChange::Set { owner, .. } if claim.key == seen.key => {
                Some(Self { row: seen.after(claim), me: owner.clone(), proven_at: sent_at })
            }
            _ => None,
        }
    }

    /// The row as this worker last wrote it.
    pub fn row(&self) -> &Lease {
        &self.row
    }

    /// The holder.
    pub fn me(&self) -> &WorkerId {
        &self.me
    }

    /// When the last write that succeeded was sent. Others saw its counter no earlier.
    pub fn proven_at(&self) -> Instant {
        self.proven_at
    }

    /// Until when nobody else may take the lease: others wait `failover_time` from when they first saw
    /// our counter, which is never before we sent it.
    pub fn valid_until(&self, failover_time: Duration) -> Instant {
        self.proven_at + failover_time
    }

    fn write(&self) -> LeaseWrite {
        LeaseWrite {
            key: self.row.key.clone(),
            expected: self.row.counter,
            holder: Some(self.me.clone()),
            handing_over: self.row.checkpoint_owner.clone(),
            owner: OwnerChange::Keep,
            mark: None,
            children: BTreeSet::new(),
        }
    }

    /// The write that only raises the counter.
    pub fn renewal(&self) -> LeaseWrite {
        self.write()
    }

    /// The write that moves the checkpoint forward to `to`, or keeps it.
    ///
    /// # Errors
    /// If `to` is behind the stored checkpoint.
    pub fn checkpoint(&self, to: Checkpoint) -> Result<LeaseWrite, CheckpointGoesBack> {
        self.forward(&to)?;
        Ok(LeaseWrite { mark: Some(self.mark(to)), ..self.write() })
    }

    /// The write that stores a prepared checkpoint and leaves the one in force.
    ///
    /// # Errors
    /// If `to` is behind the stored checkpoint.
    pub fn prepare(&self, to: Checkpoint, state: Option<Bytes>) -> Result<LeaseWrite, CheckpointGoesBack> {
        self.forward(&to)?;
        Ok(LeaseWrite { mark: Some(Mark::Prepared(PendingCheckpoint { at: to, state })), ..self.write() })
    }

    /// The write that ends the shard and gives the lease up: `SHARD_END`, its children, no owner.
    pub fn finish(&self, children: BTreeSet<ShardId>) -> LeaseWrite {
        LeaseWrite {
            mark: Some(Mark::Done(Checkpoint::ShardEnd)),
            owner: OwnerChange::Remove,
            children,
            ..self.write()
        }
    }

    /// The write that gives the lease up, with a last checkpoint if there is one to move: to the next owner
    /// if one asked for it, else to anyone.
    ///
    /// # Errors
    /// If the last checkpoint is behind the stored one.
    pub fn release(&self, last: Option<Checkpoint>) -> Result<LeaseWrite, CheckpointGoesBack> {
        if let Some(to) = &last {
            self.forward(to)?;
        }
        let owner = if self.row.is_leaving(&self.me) { OwnerChange::Transfer } else { OwnerChange::Remove };
        Ok(LeaseWrite { mark: last.map(|to| self.mark(to)), owner, ..self.write() })
    }

    /// A prepared checkpoint stays until one as far as it is in force: work before it may be acknowledged.
    fn mark(&self, to: Checkpoint) -> Mark {
        let ahead = self.row.pending.as_ref().is_some_and(|pending| pending.at > to);
        if ahead { Mark::Advanced(to) } else { Mark::Done(to) }
    }

    fn forward(&self, to: &Checkpoint) -> Result<(), CheckpointGoesBack> {
        if *to < self.row.checkpoint {
            return Err(CheckpointGoesBack { asked: to.clone(), stored: self.row.checkpoint.clone() });
        }
        Ok(())
    }

    /// Takes note of a request for the lease, or of its withdrawal, as `row` shows it. Nothing changes
    /// unless `row` is still that of this holding. Says whether it is.
    pub fn notice(&mut self, row: &Lease) -> bool {
        let ours = row.counter == self.row.counter && row.holder() == Some(&self.me);
        if ours {
            self.row.owner.clone_from(&row.owner);
            self.row.checkpoint_owner.clone_from(&row.checkpoint_owner);
        }
        ours
    }

    /// Takes note that `write`, sent at `sent_at`, succeeded.
    pub fn accept(&mut self, write: &LeaseWrite, sent_at: Instant) {
        debug_assert_eq!(write.expected, self.row.counter, "writes of one holding never race");
        self.row = self.row.after(write);
        self.proven_at = self.proven_at.max(sent_at);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;

    fn at(number: u64) -> Checkpoint {
        Checkpoint::At(Position::at(number.to_string().parse().expect("digits")))
    }

    fn held(by: &str) -> Tenure {
        let row = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
        let claim = row.claim(&by.into());
        Tenure::begin(&row, &claim, Instant::now()).expect("a claim")
    }

    #[test]
    fn checkpoints_order_as_in_the_kcl() {
        let order =
            [Checkpoint::AtTimestamp, Checkpoint::TrimHorizon, Checkpoint::Latest, at(0), at(9), at(10)];
        assert!(order.is_sorted());
        assert!(at(10) < Checkpoint::ShardEnd);
        assert_eq!(Checkpoint::ShardEnd.cmp(&Checkpoint::ShardEnd), Ordering::Equal);
    }

    #[test]
    fn a_claim_counts_a_switch_only_when_another_worker_held_the_lease() {
        let free = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
        let mine = free.after(&free.claim(&"a".into()));
        assert_eq!((mine.owner_switches, mine.counter), (0, 1));
        let again = mine.after(&mine.claim(&"a".into()));
        assert_eq!((again.owner_switches, again.counter), (0, 2));
        let stolen = again.after(&again.claim(&"b".into()));
        assert_eq!((stolen.owner_switches, stolen.counter), (1, 3));
    }

    #[test]
    fn a_checkpoint_resets_switches_and_pending_and_keeps_the_owner() {
        let mut tenure = held("a");
        let prepare = tenure.prepare(at(5), Some(Bytes::from_static(b"state"))).expect("forward");
        tenure.accept(&prepare, Instant::now());
        assert_eq!(tenure.row().checkpoint, Checkpoint::TrimHorizon);
        assert!(tenure.row().pending.is_some());
        let commit = tenure.checkpoint(at(5)).expect("forward");
        tenure.accept(&commit, Instant::now());
        assert_eq!(tenure.row().checkpoint, at(5));
        assert!(tenure.row().pending.is_none());
        assert_eq!(tenure.row().owner.as_ref().map(WorkerId::as_str), Some("a"));
        assert_eq!(tenure.row().counter, 3);
    }

    #[test]
    fn a_prepared_checkpoint_stays_until_one_as_far_is_in_force() {
        let mut tenure = held("a");
        let prepare = tenure.prepare(at(5), None).expect("forward");
        tenure.accept(&prepare, Instant::now());
        let before = tenure.checkpoint(at(4)).expect("forward");
        tenure.accept(&before, Instant::now());
        assert_eq!(tenure.row().checkpoint, at(4));
        assert!(tenure.row().pending.is_some());
        assert!(tenure.row().after(&tenure.release(Some(at(4))).expect("forward")).pending.is_some());
        assert!(tenure.row().after(&tenure.release(Some(at(6))).expect("forward")).pending.is_none());
    }

    #[test]
    fn a_checkpoint_never_goes_back() {
        let mut tenure = held("a");
        let write = tenure.checkpoint(at(10)).expect("forward");
        tenure.accept(&write, Instant::now());
        assert!(tenure.checkpoint(at(9)).is_err());
        assert!(tenure.prepare(at(9), None).is_err());
        assert!(tenure.release(Some(at(9))).is_err());
        assert!(tenure.checkpoint(at(10)).is_ok());
    }

    #[test]
    fn a_write_is_allowed_only_on_the_counter_it_saw() {
        let tenure = held("a");
        let mut row = tenure.row().clone();
        assert!(tenure.renewal().is_allowed_on(&row));
        row.counter += 1;
        assert!(!tenure.renewal().is_allowed_on(&row));
        assert!(!tenure.finish(BTreeSet::new()).is_allowed_on(&row));
    }

    #[test]
    fn only_a_claim_overrides_a_pending_hand_off() {
        let tenure = held("a");
        let row =
            Lease { checkpoint_owner: Some("a".into()), owner: Some("b".into()), ..tenure.row().clone() };
        assert!(!tenure.renewal().is_allowed_on(&row));
        assert!(row.claim(&"c".into()).is_allowed_on(&row));
    }

    #[test]
    fn a_holder_that_is_asked_renews_and_then_transfers_in_one_write() {
        let mut tenure = held("a");
        let me = WorkerId::from("a");
        let ask = tenure.row().ask(&"b".into()).expect("a hands over");
        let asked = tenure.row().after_request(&ask);
        assert_eq!((asked.counter, asked.holder()), (tenure.row().counter, Some(&me)));
        assert!(!tenure.renewal().is_allowed_on(&asked), "the holder must find out");
        assert!(tenure.notice(&asked));
        assert!(tenure.renewal().is_allowed_on(&asked));
        let transfer = tenure.release(Some(at(9))).expect("forward");
        let after = asked.after(&transfer);
        assert_eq!((after.owner.as_ref().map(WorkerId::as_str), &after.checkpoint_owner), (Some("b"), &None));
        assert_eq!((&after.checkpoint, after.counter), (&at(9), asked.counter + 1));
        assert!(transfer.took_effect_on(&after, &me));
        assert!(tenure.row().ask(&"c".into()).is_none(), "one request at a time");
    }

    #[test]
    fn a_former_holder_cannot_write_a_row_made_anew_that_has_its_counter() {
        let tenure = held("a");
        let of_b = Lease { owner: Some("b".into()), hands_over: None, ..tenure.row().clone() };
        let of_nobody = Lease { owner: None, ..of_b.clone() };
        assert!(tenure.renewal().is_allowed_on(tenure.row()));
        assert!(!tenure.renewal().is_allowed_on(&of_b) && !tenure.renewal().is_allowed_on(&of_nobody));
    }

    #[test]
    fn only_a_worker_that_said_so_is_asked() {
        let tenure = held("a");
        let taken_by_java = Lease { owner: Some("java".into()), ..tenure.row().clone() };
        assert!(taken_by_java.ask(&"b".into()).is_none());
        assert!(tenure.row().ask(&"a".into()).is_none());
    }

    #[test]
    fn a_request_can_be_withdrawn_until_the_lease_is_transferred() {
        let tenure = held("a");
        let ask = tenure.row().ask(&"b".into()).expect("a hands over");
        let asked = tenure.row().after_request(&ask);
        let withdrawal = ask.withdrawn();
        assert!(withdrawal.is_allowed_on(&asked));
        assert_eq!(&asked.after_request(&withdrawal), tenure.row());
        let mut holder = held("a");
        holder.notice(&asked);
        let transferred = asked.after(&holder.release(None).expect("forward"));
        assert!(!withdrawal.is_allowed_on(&transferred));
    }

    #[test]
    fn a_write_whose_reply_was_lost_is_recognised_and_a_theft_is_not() {
        let tenure = held("a");
        let me = "a".into();
        let write = tenure.checkpoint(at(7)).expect("forward");
        assert!(write.took_effect_on(&tenure.row().after(&write), &me));
        let stolen = tenure.row().after(&tenure.row().claim(&"b".into()));
        assert!(!write.took_effect_on(&stolen, &me));
        let renewed = tenure.row().after(&tenure.renewal());
        assert!(!write.took_effect_on(&renewed, &me), "same counter, but not this checkpoint");
        let release = tenure.release(None).expect("forward");
        assert!(release.took_effect_on(&tenure.row().after(&release), &me));
    }

    #[test]
    fn a_holding_is_valid_from_when_its_last_write_was_sent() {
        let mut tenure = held("a");
        let start = tenure.proven_at();
        let sent = start + Duration::from_secs(4);
        let renewal = tenure.renewal();
        tenure.accept(&renewal, sent);
        assert_eq!(tenure.valid_until(Duration::from_secs(10)), start + Duration::from_secs(14));
    }
}
