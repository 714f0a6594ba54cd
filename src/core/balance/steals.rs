//! Which leases to take from living workers, so that the spread becomes smaller with each.
//!
//! By number a steal needs a difference of two; by throughput, one that is larger than the lease by a tenth of
//! the mean load. So repeated plans come to an end, and no two workers trade a lease.

use std::{cmp::Reverse, collections::BTreeMap};

use rand::{Rng, seq::SliceRandom};

use super::{Claim, Reason, rows::Load, scale::Even};
use crate::core::lease::{Lease, WorkerId};

/// What a worker that steals has, and how much it may take.
pub(super) struct Thief<'a> {
    pub(super) me: &'a WorkerId,
    pub(super) count: usize,
    /// Of use by throughput only.
    pub(super) weight: f64,
    pub(super) most: usize,
    /// How many of those that it takes it may take at once.
    pub(super) at_once: usize,
}

impl Thief<'_> {
    fn take(&self, lease: &Lease, from: &WorkerId) -> Claim {
        let (from, ask) = (from.clone(), lease.ask(self.me).is_some());
        let reason = if ask { Reason::HandedOver { from } } else { Reason::Stolen { from } };
        Claim { key: lease.key.clone(), reason, ask }
    }
}

/// Takes what others have beyond their share until the own share or a limit is reached.
///
/// Who is seen by its peers agrees with them on what is to move, and takes its part of it: nobody gives more than
/// it should, and no two take the same. Others take from the busiest, at random.
pub(super) fn by_count(
    loads: &BTreeMap<&WorkerId, Load<'_>>,
    thief: &Thief<'_>,
    (floor, share): (usize, usize),
    rng: &mut impl Rng,
) -> Vec<Claim> {
    // Not all can have what does not divide evenly: who is further below takes first.
    let target = if thief.count == 0 { floor.max(1).min(share) } else { share };
    let wanted = thief.most.min(target.saturating_sub(thief.count));
    if wanted == 0 {
        return Vec::new();
    }
    let agreed = (1..floor).contains(&thief.count) && wanted <= thief.at_once;
    // Each with the load of its holder before it goes.
    let mut movable: Vec<(usize, &WorkerId, &Lease)> = Vec::new();
    for (from, load) in loads {
        let mut leases = load.movable.clone();
        if !agreed {
            leases.shuffle(rng);
        }
        let beyond = load.count.saturating_sub(floor);
        let beyond = leases.into_iter().rev().take(beyond).zip(0..);
        movable.extend(beyond.map(|(lease, n)| (load.count - n, *from, lease)));
    }
    if agreed {
        movable.sort_by_key(|(load, ..)| *load <= share);
        movable = part_of(&movable, loads, thief, (floor, share));
    } else {
        movable.shuffle(rng);
        movable.sort_by_key(|(load, ..)| Reverse(*load));
    }
    let mut claims = Vec::new();
    for (load, from, lease) in movable {
        if claims.len() < wanted && load >= thief.count + claims.len() + 2 {
            claims.push(thief.take(lease, from));
        }
    }
    claims
}

/// The part of one thief of what can be moved, by what it lacks. All that is beyond the shares has to go; what a
/// peer has taken meanwhile shifts neither the parts of others nor ours.
fn part_of<'a>(
    movable: &[(usize, &'a WorkerId, &'a Lease)],
    loads: &BTreeMap<&WorkerId, Load<'_>>,
    thief: &Thief<'_>,
    (floor, share): (usize, usize),
) -> Vec<(usize, &'a WorkerId, &'a Lease)> {
    let lacking = |load: &Load<'_>| floor.saturating_sub(load.count);
    let mine = floor - thief.count;
    let before = loads.iter().filter(|(peer, _)| **peer < thief.me);
    let before: usize = before.map(|(_, load)| lacking(load)).sum();
    let all = mine + loads.values().map(lacking).sum::<usize>();
    let to_go = movable.iter().filter(|(load, ..)| *load > share).count();
    let moved = to_go.max(all.min(movable.len()));
    let (from, to) = (before * moved / all, (before + mine) * moved / all);
    movable[from..to].to_vec()
}

/// Takes from the busiest worker what brings its load and ours nearer to the mean.
pub(super) fn by_throughput(
    loads: BTreeMap<&WorkerId, Load<'_>>,
    thief: &Thief<'_>,
    even: &Even<'_>,
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
