//! The writes that may change a lease row, and the proof of holding it.
//!
//! Every write is conditional on what its writer saw. A [`LeaseWrite`] is made only by [`Lease::claim`], by a
//! [`Tenure`], and by an operator's [`Lease::reset`] and [`Lease::evict`], which fence the holder: nothing can
//! move a checkpoint under somebody who believes to hold the lease. KCL: `DynamoDBLeaseRefresher`;
//! rules I2, I4, I5 and I6 of its interoperability.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::core::{
    heartbeat::Incarnation,
    lease::{Checkpoint, Claimant, Lease, LeaseKey, PendingCheckpoint, Reset, WorkerId},
    shard::ShardId,
};

impl Lease {
    /// The write by which `me` takes the lease from whoever had it when this row was read.
    pub fn claim(&self, me: &Claimant) -> LeaseWrite {
        let switched = self.holder().is_some_and(|holder| holder != me.worker());
        LeaseWrite {
            key: self.key.clone(),
            expected: self.counter,
            holder: self.holder().cloned(),
            handing_over: self.checkpoint_owner.clone(),
            replaced: self.hands_over.clone(),
            claimant: Some(me.clone()),
            owner: OwnerChange::Set { owner: me.worker().clone(), switched },
            mark: None,
            children: BTreeSet::new(),
            throughput_kbps: None,
            heartbeat: None,
        }
    }

    /// The row after `write` succeeded on it.
    pub fn after(&self, write: &LeaseWrite) -> Self {
        let mut row = self.clone();
        row.counter = write.expected + 1;
        match &write.owner {
            OwnerChange::Keep => {
                if write.heartbeat.is_some() {
                    row.heartbeat.clone_from(&write.heartbeat);
                }
            }
            OwnerChange::Set { owner, switched } => {
                row.owner = Some(owner.clone());
                row.checkpoint_owner = None;
                row.hands_over.clone_from(&write.claimant);
                row.heartbeat.clone_from(&write.heartbeat);
                row.owner_switches += u64::from(*switched);
            }
            OwnerChange::Leave => row.left_at = Some(row.counter),
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
            Some(Mark::Reset(reset)) => {
                row.checkpoint = reset.to.clone();
                row.owner_switches = 0;
                row.pending = None;
                row.start_millis = reset.start_millis;
                row.reset_millis = Some(reset.at_millis);
            }
        }
        row.throughput_kbps = write.throughput_kbps.or(row.throughput_kbps);
        if !write.children.is_empty() {
            row.children.clone_from(&write.children);
        }
        row
    }
}

/// One conditional write to a lease row: it takes effect only if the row still names the holding that its
/// writer knows: by the counter, the holder, the state of a hand-off, and the claim that the holding began with.
#[derive(Clone, PartialEq, Debug)]
pub struct LeaseWrite {
    key: LeaseKey,
    expected: u64,
    /// Who must hold the lease: the writer, or whom it is taken from; none if nobody may.
    holder: Option<WorkerId>,
    /// The writer, if it is handing the lease over; none if no hand-off may be pending.
    handing_over: Option<WorkerId>,
    /// Of a claim, the last claim before it, which the row must still name; none if it must name none.
    replaced: Option<Claimant>,
    /// Whose claim began the holding; of a claim, who makes it. None for an operator.
    claimant: Option<Claimant>,
    owner: OwnerChange,
    mark: Option<Mark>,
    children: BTreeSet<ShardId>,
    throughput_kbps: Option<f64>,
    /// The worker row that the lease lives by from now on.
    heartbeat: Option<Incarnation>,
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
    /// Leaves it, and marks the lease as left: the next worker of this name may claim it at once.
    Leave,
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
    /// Moves it wherever an operator wants, back too.
    Reset(Reset),
}

impl LeaseWrite {
    /// The write that takes `row` from whoever holds it and gives it to nobody.
    pub(super) fn taking_away(row: &Lease, mark: Option<Mark>) -> Self {
        Self {
            key: row.key.clone(),
            expected: row.counter,
            holder: row.holder().cloned(),
            handing_over: row.checkpoint_owner.clone(),
            replaced: None,
            claimant: None,
            owner: OwnerChange::Remove,
            mark,
            children: BTreeSet::new(),
            throughput_kbps: None,
            heartbeat: None,
        }
    }

    /// The row to write.
    pub fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// The counter that the row must have. The write raises it by one.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// The worker that must hold the lease: the writer, or whom it is taken from; none if nobody may. The
    /// counter does not tell: that of a row that was deleted and made anew may meet one seen before.
    pub fn holder(&self) -> Option<&WorkerId> {
        self.holder.as_ref()
    }

    /// The worker that must be handing the lease over; none if no hand-off may be pending.
    pub fn handing_over(&self) -> Option<&WorkerId> {
        self.handing_over.as_ref()
    }

    /// Whose claim began the holding that this write belongs to: what the row must say, unless the write is
    /// this very claim; none for an operator's write. The owner alone does not tell: two processes may have
    /// one worker's id.
    pub fn claimant(&self) -> Option<&Claimant> {
        self.claimant.as_ref()
    }

    /// Whether this write begins a holding.
    pub fn is_claim(&self) -> bool {
        matches!(self.owner, OwnerChange::Set { .. })
    }

    /// Of a claim, the claim that the row named when it was seen and must still name; none if it named none,
    /// as a row does that only a Java KCL has held. A row made anew with counter, owner and claim as before
    /// comes only out of a backup of the table.
    pub fn replaced(&self) -> Option<&Claimant> {
        self.replaced.as_ref()
    }

    fn is_claimed_on(&self, row: &Lease) -> bool {
        self.claimant.is_none() || row.hands_over == self.claimant
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

    /// The throughput to note in the row; none to leave it.
    pub fn throughput_kbps(&self) -> Option<f64> {
        self.throughput_kbps
    }

    /// The worker row by which the lease lives from now on. None with a claim: it is renewed by itself; none
    /// with another write: that stays as it is.
    pub fn heartbeat(&self) -> Option<&Incarnation> {
        self.heartbeat.as_ref()
    }

    /// The same claim or renewal, of a lease that lives by the heartbeat of its holder from now on.
    pub fn living_by(self, heartbeat: Incarnation) -> Self {
        Self { heartbeat: Some(heartbeat), ..self }
    }

    /// Whether `row` meets the condition of this write.
    pub fn is_allowed_on(&self, row: &Lease) -> bool {
        let held = row.holder() == self.holder.as_ref() && row.checkpoint_owner == self.handing_over;
        let claimed = if self.is_claim() { row.hands_over == self.replaced } else { self.is_claimed_on(row) };
        row.counter == self.expected && held && claimed
    }

    /// Whether `row`, read after this write failed or went unanswered, shows that it took effect for `me`.
    ///
    /// A reply may be lost after the write was applied; the SDK or we then repeat it and meet our own
    /// counter.
    pub fn took_effect_on(&self, row: &Lease, me: &WorkerId) -> bool {
        // A request for the lease may have come after the write: it leaves the holder and the counter.
        let owned = match &self.owner {
            // The last write of a lease that is left is the one by which it was.
            OwnerChange::Keep => {
                row.holder() == Some(me)
                    && !row.is_left()
                    && (self.heartbeat.is_none() || row.heartbeat == self.heartbeat)
            }
            OwnerChange::Leave => row.holder() == Some(me) && row.is_left(),
            OwnerChange::Set { owner, .. } => row.holder() == Some(owner) && row.heartbeat == self.heartbeat,
            OwnerChange::Remove => row.holder().is_none(),
            OwnerChange::Transfer => row.holder().is_some_and(|holder| holder != me),
        };
        let marked = match &self.mark {
            None => true,
            Some(Mark::Done(checkpoint) | Mark::Advanced(checkpoint)) => row.checkpoint == *checkpoint,
            Some(Mark::Prepared(pending)) => row.pending.as_ref() == Some(pending),
            Some(Mark::Reset(reset)) => {
                row.checkpoint == reset.to && row.reset_millis == Some(reset.at_millis)
            }
        };
        row.counter == self.expected + 1 && self.is_claimed_on(row) && owned && marked
    }
}

/// Proof of one holding of one lease. Made only by a successful claim; not `Clone`.
///
/// It carries the row as this worker last wrote it and the moment up to which the holding is certain.
/// All writes of a holder are made here.
#[derive(Debug)]
pub struct Tenure {
    row: Lease,
    me: Claimant,
    proven_at: Instant,
    throughput_kbps: Option<f64>,
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
        (claim.key == seen.key).then(|| Self::taken(seen.after(claim), claim, sent_at))?
    }

    /// The holding that began with `claim`, sent at `sent_at`, which left the row as `row`: not what a look
    /// had shown before, since the row may have been deleted and made anew with the same counter. Nothing if
    /// `claim` is another kind of write, or did not lead to `row`.
    pub fn taken(row: Lease, claim: &LeaseWrite, sent_at: Instant) -> Option<Self> {
        let claims = claim.is_claim() && claim.key == row.key;
        let me = claim.claimant.clone().filter(|_| claims)?;
        claim.took_effect_on(&row, me.worker()).then_some(Self {
            row,
            me,
            proven_at: sent_at,
            throughput_kbps: None,
        })
    }

    /// The row as this worker last wrote it.
    pub fn row(&self) -> &Lease {
        &self.row
    }

    /// The holder.
    pub fn me(&self) -> &WorkerId {
        self.me.worker()
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
            holder: Some(self.me().clone()),
            handing_over: self.row.checkpoint_owner.clone(),
            replaced: None,
            claimant: Some(self.me.clone()),
            owner: OwnerChange::Keep,
            mark: None,
            children: BTreeSet::new(),
            throughput_kbps: self.throughput_kbps,
            heartbeat: None,
        }
    }

    /// Lets every write from now on note this throughput. It makes no write of its own.
    pub fn measured(&mut self, throughput_kbps: f64) {
        self.throughput_kbps = Some(throughput_kbps).filter(|kbps| kbps.is_finite());
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
    /// To nobody in particular: a chosen worker would learn of it at its next look, as all do of a free lease,
    /// and the lease would wait for its expiry if that worker were just stopping too.
    ///
    /// # Errors
    /// If the last checkpoint is behind the stored one.
    pub fn release(&self, last: Option<Checkpoint>) -> Result<LeaseWrite, CheckpointGoesBack> {
        self.last(last, OwnerChange::Remove)
    }

    /// The write of a holder that stops and will come back under its name: it keeps the lease, with a last
    /// checkpoint if there is one to move. Handed over all the same if another worker asked for it.
    ///
    /// # Errors
    /// If the last checkpoint is behind the stored one.
    pub fn leave(&self, last: Option<Checkpoint>) -> Result<LeaseWrite, CheckpointGoesBack> {
        self.last(last, OwnerChange::Leave)
    }

    fn last(&self, to: Option<Checkpoint>, owner: OwnerChange) -> Result<LeaseWrite, CheckpointGoesBack> {
        if let Some(to) = &to {
            self.forward(to)?;
        }
        let owner = if self.row.is_leaving(self.me()) { OwnerChange::Transfer } else { owner };
        Ok(LeaseWrite { mark: to.map(|to| self.mark(to)), owner, ..self.write() })
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
        let ours = row.counter == self.row.counter
            && row.holder() == Some(self.me())
            && row.hands_over.as_ref() == Some(&self.me);
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
