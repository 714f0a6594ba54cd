//! What leases weigh, and what an even spread of their weights is, when leases are balanced by throughput.

use std::collections::BTreeMap;

use super::{Balance, rows::Load};
use crate::core::lease::{Lease, WorkerId};

/// Loads may differ from their mean by this part of it. KCL: `reBalanceThresholdPercentage`.
const TOLERANCE: f64 = 0.1;

/// What the shards bring.
pub(super) struct Scale {
    /// Of a shard of which it is not known yet, as of one that has just come from a split.
    typical_kbps: f64,
}

impl Scale {
    pub(super) fn of<'a>(leases: impl Iterator<Item = &'a Lease>, balance: Balance) -> Self {
        if balance == Balance::Count {
            return Self { typical_kbps: 0.0 };
        }
        let known = leases.filter(|lease| !lease.is_finished()).filter_map(|lease| lease.throughput_kbps);
        let (count, kbps) = known.fold((0_u32, 0.0), |(count, sum), kbps| (count + 1, sum + kbps.max(0.0)));
        Self { typical_kbps: kbps / f64::from(count.max(1)) }
    }

    pub(super) fn kbps(&self, lease: &Lease) -> f64 {
        lease.throughput_kbps.unwrap_or(self.typical_kbps).max(0.0)
    }
}

/// The even spread of all leases that can be worked on over all workers.
pub(super) struct Even<'a> {
    scale: &'a Scale,
    /// What an idle shard weighs, or all of them would end with one worker.
    least: f64,
    /// The weight of a worker's share.
    pub(super) mean: f64,
}

impl<'s> Even<'s> {
    pub(super) fn new<'a>(
        scale: &'s Scale,
        mine: &Load<'_>,
        loads: &BTreeMap<&WorkerId, Load<'_>>,
        open: impl Iterator<Item = &'a Lease>,
    ) -> Self {
        let (mut count, mut kbps) = (mine.count, mine.kbps);
        for load in loads.values() {
            (count, kbps) = (count + load.count, kbps + load.kbps);
        }
        for lease in open {
            (count, kbps) = (count + 1, kbps + scale.kbps(lease));
        }
        let least = (kbps / count.max(1) as f64 * TOLERANCE).max(1.0);
        let mean = (kbps + least * count as f64) / (loads.len() + 1) as f64;
        Self { scale, least, mean }
    }

    /// What a load may differ from the mean.
    pub(super) fn margin(&self) -> f64 {
        self.mean * TOLERANCE
    }

    pub(super) fn of(&self, lease: &Lease) -> f64 {
        self.scale.kbps(lease) + self.least
    }

    pub(super) fn weight(&self, load: &Load<'_>) -> f64 {
        load.kbps + self.least * load.count as f64
    }

    /// Whether a load has room for one lease more than so many of which nothing is known.
    pub(super) fn has_room(&self, load: &Load<'_>, coming: usize) -> bool {
        self.weight(load) + (self.scale.typical_kbps + self.least) * (coming as f64) < self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lease::Checkpoint;

    fn load(count: usize, kbps: f64) -> Load<'static> {
        Load { count, kbps, ..Load::default() }
    }

    #[test]
    fn a_load_has_room_until_the_leases_that_are_coming_bring_it_to_the_mean() {
        let bringing =
            |kbps| Lease { throughput_kbps: Some(kbps), ..Lease::new(&"a".into(), Checkpoint::TrimHorizon) };
        let scale = Scale::of([bringing(10.0), bringing(20.0)].iter(), Balance::Throughput);
        let peer = WorkerId::from("peer");
        // Four leases that bring 60 KiB/s and weigh 1.5 more each; one of which nothing is known weighs 16.5.
        let even =
            Even::new(&scale, &load(2, 30.0), &[(&peer, load(2, 30.0))].into(), std::iter::empty::<&Lease>());
        assert_eq!((even.mean, even.least), (33.0, 1.5));
        for (count, kbps, coming, room) in [
            (1, 10.0, 0, true),
            (1, 10.0, 1, true),
            (1, 10.0, 2, false),
            (1, 16.0, 1, false),
            (2, 30.0, 0, false),
            (2, 29.9, 0, true),
        ] {
            assert_eq!(even.has_room(&load(count, kbps), coming), room, "{count}, {kbps}, {coming} coming");
        }
    }
}
