//! A worker that behaves as one of the Java KCL 2.x does, on the same table and stream: it renews three times in
//! the failover time, takes what it has seen stand still, steals one lease at a time, hands nothing over, and
//! leaves attributes alone that it does not know. Written from the KCL's documentation; KCL: `DynamoDBLeaseTaker`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kinesis_consumer::{
    Checkpoint, Lease, LeaseKey, ShardId, WorkerId,
    io::memory::{MemoryLeaseStore, MemoryStream},
};
use tokio::time::Instant;

use super::{fleet::World, observer::Observer, shards::number};

/// Records of one turn.
const MOST: usize = 5;

struct Java {
    me: WorkerId,
    table: MemoryLeaseStore,
    stream: MemoryStream,
    observer: Arc<Observer>,
    failover_time: Duration,
    /// Each counter, and since when it stands.
    seen: BTreeMap<LeaseKey, (u64, Instant)>,
}

/// Lets a Java worker run beside the fleet. To be dropped or aborted as a crash.
pub(super) fn worker(world: &World, name: &str) -> impl Future<Output = ()> + Send + use<> {
    let mut java = Java {
        me: name.into(),
        table: world.table.clone(),
        stream: world.stream.clone(),
        observer: world.observer.clone(),
        failover_time: world.failover(),
        seen: BTreeMap::new(),
    };
    async move {
        loop {
            java.turn();
            tokio::time::sleep(java.failover_time / 3).await;
        }
    }
}

impl Java {
    fn is_mine(&self, row: &Lease) -> bool {
        row.owner.as_ref() == Some(&self.me) && row.checkpoint_owner.is_none() && !row.is_finished()
    }

    /// Writes a row in one conditional update: nobody else runs between its reading and its writing.
    fn write(&self, row: Lease) {
        let row = Lease { counter: row.counter + 1, ..row };
        self.observer.written_elsewhere(&row);
        self.table.put_row(row);
    }

    fn turn(&mut self) {
        for row in self.table.rows().into_iter().filter(|row| self.is_mine(row)) {
            self.work(row);
        }
        let rows = self.table.rows();
        let now = Instant::now();
        for row in &rows {
            let (counter, since) = self.seen.get(&row.key).copied().unwrap_or((row.counter, now));
            let since = if counter == row.counter { since } else { now };
            self.seen.insert(row.key.clone(), (row.counter, since));
        }
        let ended = |shard: &ShardId| {
            rows.iter().find(|row| row.key.shard() == *shard).is_none_or(Lease::is_finished)
        };
        let open: Vec<&Lease> =
            rows.iter().filter(|row| !row.is_finished() && row.parents.iter().all(ended)).collect();
        let mut loads = BTreeMap::from([(self.me.clone(), 0)]);
        let expired = |row: &Lease| now >= self.seen[&row.key].1 + self.failover_time;
        for owner in open.iter().filter(|row| !expired(row)).filter_map(|row| row.owner.clone()) {
            *loads.entry(owner).or_insert(0_usize) += 1;
        }
        let wanted = open.len().div_ceil(loads.len()).saturating_sub(loads[&self.me]);
        let mut free: Vec<&Lease> =
            open.iter().copied().filter(|row| row.owner.is_none() || expired(row)).collect();
        free.truncate(wanted);
        if free.is_empty() && wanted > 0 {
            let busiest = loads.iter().max_by_key(|(_, load)| **load).map(|(owner, _)| owner.clone());
            let spare = |row: &&&Lease| row.owner == busiest && row.checkpoint_owner.is_none();
            let stolen = open.iter().find(spare).filter(|row| row.owner.as_ref() != Some(&self.me));
            free.extend(
                stolen.filter(|_| busiest.is_some_and(|busiest| loads[&busiest] > loads[&self.me] + 1)),
            );
        }
        for row in free {
            let taken = Lease {
                owner: Some(self.me.clone()),
                checkpoint_owner: None,
                owner_switches: row.owner_switches + 1,
                ..row.clone()
            };
            self.write(taken);
        }
    }

    /// Renews, processes a few records, and checkpoints; ends a shard that has ended.
    fn work(&self, row: Lease) {
        let shard = row.key.shard();
        let done = row.checkpoint.position().map_or(0, number);
        let records = self.stream.records(&shard);
        let left: Vec<_> =
            records.iter().map(|record| record.position()).filter(|at| number(at) > done).collect();
        let listed = self.stream.shards();
        let closed = listed.iter().any(|listed| listed.id == shard && !listed.is_open());
        if left.is_empty() && closed {
            let children: Vec<_> = listed.iter().filter(|listed| listed.parents.contains(&shard)).collect();
            for child in &children {
                if !self.table.rows().iter().any(|row| row.key.shard() == child.id) {
                    let lease = Lease {
                        parents: child.parents.clone(),
                        hash_range: Some(child.hash_range),
                        ..Lease::new(&child.id, Checkpoint::TrimHorizon)
                    };
                    self.observer.row_edited(&child.id, 0, false);
                    self.table.put_row(lease);
                }
            }
            self.observer.ended_elsewhere(&shard);
            let children = children.iter().map(|child| child.id.clone()).collect();
            self.write(Lease { checkpoint: Checkpoint::ShardEnd, owner: None, children, ..row });
            return;
        }
        let checkpoint = left.iter().take(MOST).next_back().map(|at| Checkpoint::At((*at).clone()));
        if let Some(Checkpoint::At(last)) = &checkpoint {
            self.observer.read_elsewhere(self.me.as_str(), &shard, done + 1, number(last));
        }
        let owner_switches = if checkpoint.is_some() { 0 } else { row.owner_switches };
        self.write(Lease { checkpoint: checkpoint.unwrap_or(row.checkpoint), owner_switches, ..row });
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::{
        super::{
            fleet::Setup,
            scenarios::{SECOND, is_clean, owned, reads_everything, settled},
        },
        *,
    };

    /// F30: a worker of the Java KCL 2.x joins the fleet and takes what one of ours held that stands still; both are
    /// deployed anew, and it dies.
    #[tokio::test(start_paused = true)]
    async fn java_and_rust_workers_share_a_table_through_deploys_and_resharding() {
        for seed in 600..610 {
            let mut world = settled(Setup::new(seed, 6), 2).await;
            let mut java = JoinSet::new();
            java.spawn(worker(&world, "java"));
            world.put(60);
            world.advance(20 * SECOND).await;
            assert_eq!(owned(&world, "java"), 2, "its share, stolen one by one");
            let held = owned(&world, "b");
            world.freeze(1);
            world.put(30);
            world.advance(2 * world.failover() + Duration::from_millis(137 * (seed - 600))).await;
            assert!(owned(&world, "b") < held, "what it held is taken");
            world.thaw(1);
            world.advance(20 * SECOND).await;
            world.split(0);
            world.put(30);
            world.advance(3 * SECOND).await;
            world.stop(0);
            world.start("c");
            world.put(30);
            world.merge(2);
            world.put(30);
            world.advance(20 * SECOND).await;
            java.abort_all();
            world.put(30);
            reads_everything(&mut world, 20 * SECOND).await;
            world.advance(5 * SECOND).await;
            assert_eq!(owned(&world, "java"), 0);
            is_clean(&world);
        }
    }
}
