//! Whether this worker alone cannot read the stream.
//!
//! A worker keeps its leases as long as it reaches the table. One that reaches the table but not the stream would
//! keep them for ever and read nothing, beside peers that could. It gives them up when no shard of its own could
//! be read for a minute, and checkpoints of peers moved all through the second half of it. In an outage for all
//! no checkpoint moves any more, and then no lease does; when it is over, whoever reads last has time to find
//! out. Where looks, or the checkpoints of peers, come less often than every half minute, nothing is proven, and
//! leases stay. The KCL has no such rule.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::core::lease::{Checkpoint, Lease, LeaseKey, WorkerId};

/// What moves so soon after our first failure may have been read before it, and so long must peers go on while we
/// fail. A peer that writes no checkpoint for so long has stopped.
const HALF: Duration = Duration::from_secs(30);

/// Watches the checkpoints of peers.
#[derive(Debug, Default)]
pub(crate) struct CutOff {
    /// The furthest that was seen of each: a look may be stale, and show an older one again.
    peers: BTreeMap<LeaseKey, Checkpoint>,
    /// Since when they have moved without a long pause, and when one of them was last seen to.
    moving: Option<(Instant, Instant)>,
}

impl CutOff {
    /// Takes in the rows of one look, from the first on that is made while nothing can be read here.
    pub(crate) fn see<'a>(&mut self, leases: impl Iterator<Item = &'a Lease>, me: &WorkerId, now: Instant) {
        let before = std::mem::take(&mut self.peers);
        for lease in leases.filter(|lease| lease.holder().is_some_and(|holder| holder != me)) {
            let known = before.get(&lease.key).unwrap_or(&lease.checkpoint);
            if *known < lease.checkpoint {
                let pauses = |(_, last): &(Instant, Instant)| now > *last + HALF;
                let since = self.moving.filter(|moving| !pauses(moving)).map_or(now, |(since, _)| since);
                self.moving = Some((since, now));
            }
            self.peers.insert(lease.key.clone(), known.max(&lease.checkpoint).clone());
        }
    }

    /// Whether nothing can be read here that others can read. `failing` says of each shard that is held since
    /// when every read has failed, if the last one did.
    pub(crate) fn is_proven(&self, failing: impl IntoIterator<Item = Option<Instant>>, now: Instant) -> bool {
        // Of all, or there is none; the one that failed last counts.
        let since: Option<Vec<Instant>> = failing.into_iter().collect();
        let Some(blind_since) = since.and_then(|all| all.into_iter().max()) else { return false };
        let Some((moving_since, moved_at)) = self.moving else { return false };
        now >= moving_since.max(blind_since + HALF) + HALF && now <= moved_at + HALF
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn row(owner: Option<&str>, at: &str) -> Lease {
        let checkpoint = Checkpoint::parse(at, 0).expect("a checkpoint");
        Lease { owner: owner.map(WorkerId::from), ..Lease::new(&"shardId-0".into(), checkpoint) }
    }

    /// Looks at one row each, a second apart; the last one is the time of the verdict.
    fn watch(looks: &[(u64, Lease)]) -> (CutOff, Instant) {
        let (mut cut_off, start) = (CutOff::default(), Instant::now());
        for (at, lease) in looks {
            cut_off.see([lease].into_iter(), &"me".into(), start + SECOND * *at as u32);
        }
        (cut_off, start)
    }

    fn peer(at: u32) -> Lease {
        row(Some("peer"), &at.to_string())
    }

    #[test]
    fn a_worker_is_cut_off_that_reads_nothing_for_a_minute_while_a_peer_goes_on() {
        let (cut_off, start) = watch(&[(0, peer(1)), (10, peer(2)), (35, peer(3)), (58, peer(4))]);
        let at = |secs: u32| start + SECOND * secs;
        assert!(cut_off.is_proven([Some(start), Some(start)], at(60)));
        assert!(!cut_off.is_proven([Some(start)], at(59)), "not for long enough");
        assert!(!cut_off.is_proven([Some(start), Some(at(1))], at(60)), "the last to fail counts");
        assert!(!cut_off.is_proven([Some(start), None], at(60)), "one shard can be read");
        assert!(!cut_off.is_proven([], at(60)), "there is none to give up");
        assert!(cut_off.is_proven([Some(start)], at(88)));
        assert!(!cut_off.is_proven([Some(start)], at(89)), "the peer has stopped, too");
    }

    #[test]
    fn whoever_reads_last_after_an_outage_for_all_is_not_cut_off() {
        // The peer goes on at 1,000 s; it had paused before.
        let looks = [(0, peer(1)), (1, peer(2)), (1000, peer(3)), (1030, peer(4))];
        let (cut_off, start) = watch(&looks[..3]);
        assert!(!cut_off.is_proven([Some(start)], start + SECOND * 1029));
        let (cut_off, start) = watch(&looks);
        assert!(cut_off.is_proven([Some(start)], start + SECOND * 1030));
    }

    #[test]
    fn a_stale_look_is_no_evidence() {
        let (cut_off, start) = watch(&[(1, peer(2)), (40, peer(1)), (41, peer(2))]);
        assert!(!cut_off.is_proven([Some(start)], start + SECOND * 71));
    }

    #[test]
    fn only_a_checkpoint_of_a_peer_that_moves_on_is_evidence() {
        let cases = [
            ("moves on", peer(1), peer(2), true),
            ("ends", peer(1), row(Some("peer"), "SHARD_END"), true),
            ("stands still", peer(1), peer(1), false),
            ("set back", peer(2), row(Some("peer"), "TRIM_HORIZON"), false),
            ("our own", row(Some("me"), "1"), row(Some("me"), "2"), false),
            ("nobody's", row(None, "1"), row(None, "2"), false),
            ("ours before", row(Some("me"), "1"), peer(2), false),
        ];
        for (name, before, after, proven) in cases {
            let (cut_off, start) = watch(&[(40, before), (41, after)]);
            assert_eq!(cut_off.is_proven([Some(start)], start + SECOND * 71), proven, "{name}");
        }
    }
}
