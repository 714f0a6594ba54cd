//! Requests for a lease: a worker asks a living holder to hand it over.
//!
//! Only the owners change; the holder answers with a write of its [`Tenure`](super::Tenure). KCL: graceful lease
//! hand-off.

use crate::core::lease::{Claimant, Lease, LeaseKey, WorkerId};

impl Lease {
    /// The request by which `me` asks the owner for the lease; none if the owner did not say that it hands
    /// leases over, or is handing this one over already.
    pub fn ask(&self, me: &WorkerId) -> Option<HandOff> {
        let from = self.owner.clone().filter(|owner| owner != me)?;
        let hands_over = self.hands_over.as_ref().map(Claimant::worker) == Some(&from);
        let willing = hands_over && self.checkpoint_owner.is_none();
        willing.then(|| HandOff { key: self.key.clone(), from, to: me.clone(), withdraw: false })
    }

    /// Who handed the lease over to `me`, if it has done so and `me` has not claimed it yet.
    pub(crate) fn awaits(&self, me: &WorkerId) -> Option<&WorkerId> {
        let handed_over = self.owner.as_ref() == Some(me) && self.checkpoint_owner.is_none();
        let from = self.hands_over.as_ref().filter(|_| handed_over).map(Claimant::worker);
        from.filter(|from| *from != me)
    }

    /// The row after `request` succeeded on it. The counter is the holder's and stays.
    pub fn after_request(&self, request: &HandOff) -> Self {
        let (owner, checkpoint_owner) = match request.withdraw {
            false => (&request.to, Some(request.from.clone())),
            true => (&request.from, None),
        };
        Self { owner: Some(owner.clone()), checkpoint_owner, ..self.clone() }
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
