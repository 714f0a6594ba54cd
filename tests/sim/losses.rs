//! Records that leave the stream before they are processed: nothing else may be missing, and whoever finds them gone
//! says so.
//!
//! Sequence numbers have holes, so that a gap shows only where the record is missing at which the checkpoint stands:
//! to who begins there.

use kinesis_consumer::{ShardId, io::Page};

use super::{fleet::World, observer::Observer, processor::Seat, shards::number, trace::short};

impl World {
    /// Takes the oldest records of one shard out of the stream: all but so large a share.
    pub(crate) fn trim(&mut self, nth: usize, keep: f64) {
        let mut shards = self.stream.shards();
        shards.retain(|shard| !self.stream.records(&shard.id).is_empty());
        if let Some(shard) = shards.get(nth % shards.len().max(1)) {
            let keep = (self.stream.records(&shard.id).len() as f64 * keep) as usize;
            self.observer.note("stream", || format!("keeps the last {keep} of {}", short(shard.id.as_str())));
            self.stream.trim(&shard.id, keep);
            self.learn_losses();
        }
    }

    /// The closed shards that leave the stream next: their parents have left it.
    pub(crate) fn oldest_closed(&self) -> Vec<ShardId> {
        let shards = self.stream.shards();
        let is_there = |id: &ShardId| shards.iter().any(|shard| shard.id == *id);
        let closed = shards.iter().filter(|shard| !shard.is_open() && !shard.parents.iter().any(is_there));
        closed.map(|shard| shard.id.clone()).collect()
    }

    /// Compares what workers said of losses with those that there were.
    pub(super) fn judge_losses(&mut self) {
        if self.observer.lock().instances.iter().any(|one| !one.gaps_told.is_empty()) {
            self.learn_losses();
            self.observer.judge_losses();
        }
    }
}

impl Observer {
    /// A page of a shard is served.
    pub(crate) fn opened(&self, seat: &Seat, shard: &ShardId, page: &Page) {
        let mut state = self.lock();
        let Some(tenure) = state.tenures.get_mut(&(seat.no, shard.clone())) else { return };
        let first = page.records.first().map(|record| number(record.position()));
        if !std::mem::replace(&mut tenure.opened, true) {
            tenure.gap = !tenure.fresh && first.is_some_and(|first| first > tenure.base);
        }
    }

    /// A worker says that records of a shard have left the stream before they were processed.
    pub(crate) fn tells_of_gap(&self, seat: &Seat, shard: &ShardId) {
        let mut state = self.lock();
        state.instances[seat.no].gaps.remove(shard);
        state.instances[seat.no].gaps_told.insert(shard.clone());
    }

    /// Holds what workers said against what is known.
    pub(crate) fn judge_losses(&self) {
        let mut state = self.lock();
        for no in 0..state.instances.len() {
            let name = state.instances[no].name.clone();
            for shard in std::mem::take(&mut state.instances[no].gaps_told) {
                let has_lost = state.shards.get(&shard).is_some_and(|log| log.gone || log.lost() > 0);
                if !has_lost {
                    state.violate(&name, format!("tells of records of {shard} that have left, and none has"));
                }
            }
        }
    }

    /// A worker has ended as it should.
    pub(crate) fn ended_well(&self, no: usize, told: &[ShardId]) {
        let mut state = self.lock();
        let gaps = std::mem::take(&mut state.instances[no].gaps);
        if let Some(shard) = gaps.iter().find(|shard| !told.contains(shard)) {
            let name = state.instances[no].name.clone();
            state.violate(&name, format!("never told of the records of {shard} that it found gone"));
        }
    }

    /// The last record ever put into a shard, and the last that has left the stream for its age.
    pub(crate) fn ends_of(&self, shard: &ShardId) -> (u64, u64) {
        let state = self.lock();
        state
            .shards
            .get(shard)
            .map_or((0, 0), |log| (log.last(), if log.gone { log.last() } else { log.lost() }))
    }
}
