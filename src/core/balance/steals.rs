//! Which leases to take from living workers, so that the spread becomes smaller with each.
//!
//! By number a steal needs a difference of two; by throughput, one that is larger than the lease by a tenth of
//! the mean load. So repeated plans come to an end, and no two workers trade a lease.

use std::collections::BTreeMap;

use rand::{Rng, seq::SliceRandom};

use super::{Claim, Load, Reason, scale::Even};
use crate::core::lease::{Lease, WorkerId};

/// What a worker that steals has, and how much it may take.
pub(super) struct Thief<'a> {
    pub(super) me: &'a WorkerId,
    pub(super) count: usize,
    /// Of use by throughput only.
    pub(super) weight: f64,
    pub(super) most: usize,
}

impl Thief<'_> {
    fn take(&self, lease: &Lease, from: &WorkerId) -> Claim {
        let (from, ask) = (from.clone(), lease.ask(self.me).is_some());
        let reason = if ask { Reason::HandedOver { from } } else { Reason::Stolen { from } };
        Claim { key: lease.key.clone(), reason, ask }
    }
}

/// Takes from the busiest worker until the fair share or a limit is reached.
pub(super) fn by_count(
    loads: BTreeMap<&WorkerId, Load<'_>>,
    mut thief: Thief<'_>,
    floor: usize,
    share: usize,
    rng: &mut impl Rng,
) -> Vec<Claim> {
    let mut claims = Vec::new();
    let wanted = thief.most.min(share.saturating_sub(thief.count));
    if wanted == 0 {
        return claims;
    }
    // By load, so that the busiest is found without a walk over all workers for each lease.
    let mut victims: BTreeMap<usize, Vec<(&WorkerId, Vec<&Lease>)>> = BTreeMap::new();
    for (from, mut load) in loads {
        load.movable.shuffle(rng);
        victims.entry(load.count).or_default().push((from, load.movable));
    }
    victims.values_mut().for_each(|victims| victims.shuffle(rng));
    while claims.len() < wanted {
        let Some(mut busiest) = victims.last_entry() else { break };
        let load = *busiest.key();
        if load < thief.count + 2 || load <= floor {
            break;
        }
        let victim = busiest.get_mut().pop();
        if busiest.get().is_empty() {
            busiest.remove();
        }
        // Who has nothing to give is passed over.
        let Some((from, mut leases)) = victim else { continue };
        let Some(lease) = leases.pop() else { continue };
        claims.push(thief.take(lease, from));
        thief.count += 1;
        // Behind the others of its load, so that each gives in turn.
        victims.entry(load - 1).or_default().insert(0, (from, leases));
    }
    claims
}

/// Takes from the busiest worker what brings its load and ours nearer to the mean.
pub(super) fn by_throughput(
    loads: BTreeMap<&WorkerId, Load<'_>>,
    thief: &Thief<'_>,
    even: &Even,
    rng: &mut impl Rng,
) -> Vec<Claim> {
    let mut claims = Vec::new();
    let (mean, margin, mut mine) = (even.mean, even.margin(), thief.weight);
    let of = |lease: &Lease| even.of(lease);
    let mut victims: Vec<(&WorkerId, f64, Vec<&Lease>)> = loads
        .into_iter()
        .map(|(from, mut load)| {
            let weight = even.weight(&load);
            // Who has nothing cannot trade.
            if thief.count == 0 {
                load.movable.append(&mut load.restless);
            }
            (from, weight, load.movable)
        })
        .filter(|(_, load, _)| *load > mean + margin)
        .collect();
    victims.shuffle(rng);
    victims.sort_by(|(_, a, _), (_, b, _)| b.total_cmp(a));
    // In an order of our own: peers that look at the same time choose others.
    victims.iter_mut().for_each(|(_, _, leases)| leases.shuffle(rng));
    for (from, load, leases) in &victims {
        let mut load = *load;
        for lease in leases {
            if claims.len() >= thief.most || mine >= mean || load <= mean + margin {
                break;
            }
            let weight = of(lease);
            if mine + weight <= (mean + margin).min(load - margin) {
                claims.push(thief.take(lease, from));
                (mine, load) = (mine + weight, load - weight);
            }
        }
    }
    // Where leases are few and heavy none may fit below the mean: then the one that helps most.
    if claims.is_empty()
        && thief.most > 0
        && mine < mean
        && let Some((from, load, leases)) = victims.first()
    {
        let worse = |lease: &&&Lease| (mine + of(lease)).max(load - of(lease));
        let best = leases.iter().min_by(|a, b| worse(a).total_cmp(&worse(b)));
        claims
            .extend(best.filter(|best| mine + of(best) <= load - margin).map(|best| thief.take(best, from)));
    }
    claims
}
