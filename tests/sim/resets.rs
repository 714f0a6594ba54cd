//! An operator's resets, as `leasectl reset` makes them: rows one by one, parents first, each in one conditional
//! write that fences the holder; closed shards too, whose rows are made anew if they are gone.
//!
//! The one way in which a checkpoint may go back. What is set back is to be read again: the observer forgets that
//! it was done.

use std::time::SystemTime;

use kinesis_consumer::{Checkpoint, Lease, Reset, Shard, ShardId, io::memory::MemoryStream};
use tokio::time::Instant;

use super::{
    fleet::World,
    observer::Observer,
    rules::{RowLog, State},
    trace::short,
};

/// Where an operator wants to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// With the oldest record.
    Oldest,
    /// With what arrived so many milliseconds ago.
    Ago(u64),
    /// With what comes.
    Next,
}

/// The date, in milliseconds, as streams in memory stamp their records.
fn now() -> u64 {
    let clock = MemoryStream::new("clock", 1);
    let (shard, _) = clock.put("tick", "");
    let arrived = clock.records(&shard)[0].arrived_at();
    arrived.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl To {
    fn reset(self) -> Reset {
        let now = now();
        let (to, start_millis) = match self {
            Self::Oldest => (Checkpoint::TrimHorizon, None),
            Self::Ago(millis) => (Checkpoint::AtTimestamp, Some(now - millis)),
            Self::Next => (Checkpoint::Latest, Some(now)),
        };
        Reset { to, start_millis, at_millis: now }
    }
}

impl World {
    /// Resets one shard, or all.
    pub(crate) fn reset(&mut self, nth: Option<usize>, to: To) {
        let listed = self.stream.shards();
        let rows = self.table.rows();
        if rows.is_empty() {
            return;
        }
        let line = Line { listed: &listed, rows: &rows };
        let chosen = nth.map(|nth| &listed[nth % listed.len()]);
        // The tool refuses to read a shard again of whose children some were cleaned up.
        if let Some(chosen) = chosen
            && line.row(&chosen.id).is_none()
            && !line.comes(chosen)
            && listed.iter().any(|shard| shard.parents.contains(&chosen.id) && line.row(&shard.id).is_none())
        {
            return;
        }
        for shard in &listed {
            // What a chosen shard must wait for gets a row too, where it is to come.
            let awaited = chosen.is_some_and(|chosen| {
                chosen.id != shard.id
                    && line.comes(chosen)
                    && line.comes(shard)
                    && line.is_above(shard, &chosen.id)
            });
            if chosen.is_some_and(|chosen| chosen.id != shard.id) && !awaited {
                continue;
            }
            let row = line.row(&shard.id);
            let over = !shard.is_open() && row.map_or_else(|| !line.comes(shard), Lease::is_finished);
            if to == To::Next && over {
                continue;
            }
            let reset = if awaited { To::Oldest } else { to }.reset();
            let after = match row {
                Some(row) => row.after(&row.reset(reset)),
                None => Lease {
                    parents: shard.parents.clone(),
                    hash_range: Some(shard.hash_range),
                    start_millis: reset.start_millis,
                    reset_millis: Some(reset.at_millis),
                    stream: rows[0].stream.clone(),
                    ..Lease::new(&shard.id, reset.to)
                },
            };
            self.observer.reset(&shard.id, &after);
            self.table.put_row(after);
        }
    }
}

/// Listed shards and their rows.
struct Line<'a> {
    listed: &'a [Shard],
    rows: &'a [Lease],
}

impl<'a> Line<'a> {
    fn row(&self, shard: &ShardId) -> Option<&'a Lease> {
        self.rows.iter().find(|row| row.key.shard() == *shard)
    }

    fn parents(&self, shard: &ShardId) -> impl Iterator<Item = &'a Shard> {
        let parents = self.listed.iter().find(|listed| listed.id == *shard).map(|shard| &shard.parents);
        self.listed.iter().filter(move |listed| parents.is_some_and(|parents| parents.contains(&listed.id)))
    }

    fn is_above(&self, shard: &Shard, of: &ShardId) -> bool {
        self.parents(of).any(|parent| parent.id == shard.id || self.is_above(shard, &parent.id))
    }

    /// Whether its row is made at the end of a parent, or further up.
    fn comes(&self, shard: &Shard) -> bool {
        let awaited = self.is_awaited(&shard.id) && self.row(&shard.id).is_none();
        awaited && !self.rows.iter().any(|row| self.is_above(shard, &row.key.shard()))
    }

    fn is_awaited(&self, shard: &ShardId) -> bool {
        self.parents(shard).any(|parent| match self.row(&parent.id) {
            Some(row) => !row.is_finished(),
            None => self.is_awaited(&parent.id),
        })
    }
}

impl Observer {
    fn reset(&self, shard: &ShardId, row: &Lease) {
        self.note("operator", || format!("resets {} to {}", short(shard.as_str()), row.checkpoint));
        let mut state = self.lock();
        state.touched = true;
        state.reset(shard, row);
    }
}

impl State {
    fn reset(&mut self, shard: &ShardId, row: &Lease) {
        // Nobody holds it from now on: whatever its former holder writes is to be refused.
        self.rows.insert(shard.clone(), RowLog { highest: row.counter, rewound: true, ..RowLog::default() });
        self.comes_to(None, shard);
        let log = self.shards.entry(shard.clone()).or_default();
        let before = match row.start_millis {
            Some(at) => log.before(at),
            None => 0,
        };
        (log.ended, log.reset_at) = (false, Some(Instant::now()));
        // What the application is told to leave out need not be read.
        let left_out = log.begin_again_after(before);
        left_out.into_iter().for_each(|(key, in_key)| self.keys.miss(key, in_key));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            fleet::Setup,
            scenarios::{SECOND, reads_everything, settled},
        },
        *,
    };

    /// F17: the whole application is set back, or forward, while it reads, reshards, and one worker stands still.
    #[tokio::test(start_paused = true)]
    async fn a_reset_under_load_is_followed_by_every_worker_in_the_order_of_the_shards() {
        for at in 0..15 {
            let to = [To::Oldest, To::Ago(3000), To::Next][at % 3];
            let mut world = settled(Setup::new(800 + at as u64, 3), 2).await;
            world.split(0);
            world.put(40);
            world.advance(Duration::from_millis(230 * at as u64)).await;
            world.freeze(0);
            world.reset(None, to);
            world.put(40);
            world.merge(1);
            world.advance(Duration::from_millis(400 * at as u64)).await;
            world.thaw(0);
            world.put(40);
            reads_everything(&mut world, 30 * SECOND).await;
            let counts = world.observer.counts();
            assert!(to != To::Oldest || counts.deliveries >= counts.records + 90, "{counts:?}");
        }
    }

    /// The rows of a parent and of its own were cleaned up long ago.
    #[tokio::test(start_paused = true)]
    async fn a_shard_that_is_read_again_waits_for_no_parent_that_was_cleaned_up() {
        let mut world = settled(Setup::new(830, 1), 1).await;
        world.split(0);
        world.put(40);
        reads_everything(&mut world, 10 * SECOND).await;
        let cleaned = |world: &World| world.table.rows().len() == 2;
        assert!(world.until(150 * SECOND, cleaned).await, "the parent's row is deleted");
        world.split(0);
        world.put(40);
        reads_everything(&mut world, 10 * SECOND).await;
        // Its own row is still there, or gone: in both cases its parent's is gone.
        world.reset(Some(1), To::Oldest);
        reads_everything(&mut world, 10 * SECOND).await;
        world.advance(90 * SECOND).await;
        world.reset(Some(1), To::Oldest);
        reads_everything(&mut world, 10 * SECOND).await;
    }
}
