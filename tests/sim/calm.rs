//! I6, calm, and I7, bounded calls, at every moment, also while faults last.
//!
//! No worker gives a lease up without a reason that the observer knows, and none takes one too soon; which moves
//! help is for `moves.rs` to judge. The calls of a worker in any span of time are bounded by the leases and shards
//! that they were about, whatever fails.

use std::{collections::BTreeSet, time::Duration};

use kinesis_consumer::{OwnerChange, ShardId, WorkerId};
use tokio::time::Instant;

use super::{processor::Seat, rules::State};

/// In which calls are counted.
const SPAN: Duration = Duration::from_secs(10);
/// Whoever could not read for so long, beside others who could, gives its leases up.
const BLIND: Duration = Duration::from_secs(60);

/// The calls of one worker in one span.
#[derive(Debug)]
pub(super) struct Span {
    began: Instant,
    calls: u64,
    /// Writes that the user's code asked for and waits for: each is made at once.
    demanded: u64,
    /// What they were about.
    shards: BTreeSet<ShardId>,
}

impl Default for Span {
    fn default() -> Self {
        Self { began: Instant::now(), calls: 0, demanded: 0, shards: BTreeSet::new() }
    }
}

impl State {
    /// A worker takes a lease that another held, left or died with: not before that one had the time to come back.
    pub(super) fn takes_in_time(&mut self, seat: &Seat, shard: &ShardId, from: usize) {
        let name = &self.instances[from].name;
        let Some(tenure) = self.tenures.get(&(from, shard.clone())).filter(|_| *name != seat.name) else {
            return;
        };
        let free_at = self.valid_until(tenure) + self.rules.rejoin_grace;
        if Instant::now() < free_at {
            let early = free_at - Instant::now();
            let why = format!("took {shard} {early:?} before {name} had the time to come back");
            self.violate(&seat.name, why);
        }
    }

    /// A worker takes a lease that was handed over to another: not before that one had the time to claim it.
    pub(super) fn takes_on_its_way(&mut self, seat: &Seat, shard: &ShardId, to: &WorkerId, at: Instant) {
        if at.elapsed() < self.rules.failover_time {
            let why = format!("took {shard} on its way to {to}, {:?} after it was handed over", at.elapsed());
            self.violate(&seat.name, why);
        }
    }

    /// A worker gives a lease up: because it was asked to stop or for the lease, because its user's code cannot
    /// go on, or because it ends by itself, which `stops.rs` waits for.
    pub(super) fn gave_up(&mut self, seat: &Seat, change: &OwnerChange, shard: &ShardId) {
        let tenure = self.tenures.get(&(seat.no, shard.clone()));
        let (begun, asked) = tenure.map_or((false, false), |tenure| (tenure.begun, tenure.asked));
        let instance = &self.instances[seat.no];
        if matches!(change, OwnerChange::Transfer) && !asked {
            self.violate(&seat.name, format!("hands over {shard}, for which nobody has asked"));
            return;
        }
        // A claim of which the worker never heard, or that came too late to be begun, is no work given up.
        let reason = !begun
            || asked
            || instance.stopping
            || instance.gives_up.contains(shard)
            || self.alone_reads_nothing(seat.no);
        if !reason {
            self.instances[seat.no].leaves.get_or_insert_with(|| (shard.clone(), Instant::now()));
        }
    }

    /// No page has come to this worker for a minute, and to others it has.
    fn alone_reads_nothing(&self, no: usize) -> bool {
        let lately = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < BLIND);
        let me = &self.instances[no];
        let others = || self.instances.iter().any(|one| !one.over && lately(one.read_at));
        !lately(me.joined_at) && !lately(me.read_at) && others()
    }

    /// Takes note of user's code that was silent for so long that its lease is to be given up.
    pub(super) fn note_stall(&mut self, no: usize, shard: &ShardId) {
        if self.standstill(no, shard).is_some_and(|age| age >= self.rules.stall_timeout) {
            self.instances[no].gives_up.insert(shard.clone());
        }
    }

    /// The user's code asks for a write, and waits for it.
    pub(super) fn demands(&mut self, seat: &Seat) {
        self.instances[seat.no].span.demanded += 1;
    }

    /// Counts a call, and holds those of one span to their bound.
    pub(super) fn counts_call(&mut self, seat: &Seat, about: Option<&ShardId>) {
        let failovers = SPAN.as_secs_f64() / self.rules.failover_time.as_secs_f64();
        let span = &mut self.instances[seat.no].span;
        if span.began.elapsed() >= SPAN {
            *span = Span::default();
        }
        span.calls += 1;
        if let Some(shard) = about
            && !span.shards.contains(shard)
        {
            span.shards.insert(shard.clone());
        }
        let (calls, shards, demanded) = (span.calls as f64, span.shards.len() as f64, span.demanded as f64);
        // Looks come most often while leases move; renewals are tried most often shortly before a lease
        // expires; a shard is read five times a second.
        let most = (25.0 + 30.0 * shards) * failovers + 5.0 * SPAN.as_secs_f64() * shards + demanded;
        if calls > most {
            self.violate(
                &seat.name,
                format!("made {calls} calls about {shards} shards in {SPAN:?}, at most {most}"),
            );
        }
    }
}
