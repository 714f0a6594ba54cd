//! F16: the stream is deleted and made again, whatever is under way. Its workers finish nothing that they have not
//! read, and whoever starts is refused, until a person has decided.

use std::{sync::Arc, time::Duration};

use kinesis_consumer::{Checkpoint, LeaseKey};

use super::{
    fleet::{Edit, Setup, World},
    instances::Life,
    run::Player,
    sabotage::{Trick, Trickster, calm, said_of, says},
    scenarios::{SECOND, is_clean},
    script::Script,
};

/// Time-outs and back-offs of a start, and its patience.
const START: Duration = Duration::from_secs(75);

impl Player {
    /// The end of a script whose stream is made again, with so many shards. False if there are no rows yet: then it
    /// is the stream that the application begins with.
    pub(super) async fn with_another_stream(&mut self, script: &Script, shards: usize) -> bool {
        if self.world.table.rows().is_empty() {
            return false;
        }
        self.world.make_stream_again(shards);
        let config = &script.setup.config;
        self.world.advance(config.failover_time).await;
        self.world.heal();
        self.due.clear();
        // What had been read is processed, and its shards may come to their ends.
        let settles = 4 * config.failover_time + config.rejoin_grace + Duration::from_secs(10);
        self.world.advance(settles + self.backlog(script)).await;
        let before = self.world.progress();
        let late = self.world.start("late");
        let refused = |world: &World| world.instances[late].state == Life::Over;
        if !self.world.until(START, refused).await {
            self.world.observer.violate("late", "was not refused though the stream was made again");
        }
        self.replace_ended();
        self.world.leaves_rows(&before);
        self.all_stop(script).await;
        true
    }
}

impl World {
    fn make_stream_again(&mut self, shards: usize) {
        self.observer.note("stream", || format!("is deleted, and made again with {shards} shards"));
        self.stream.recreate(shards);
        self.made_again = true;
    }

    /// How far each shard has been read.
    fn progress(&self) -> Vec<(LeaseKey, Checkpoint)> {
        self.table.rows().into_iter().map(|row| (row.key, row.checkpoint)).collect()
    }

    /// Nobody goes on by rows of a stream that is gone. Those of shards that had ended may be deleted.
    fn leaves_rows(&self, before: &[(LeaseKey, Checkpoint)]) {
        let now = self.progress();
        let is_kept = |row: &&(LeaseKey, Checkpoint)| row.1 != Checkpoint::ShardEnd || now.contains(row);
        if !now.iter().eq(before.iter().filter(is_kept)) {
            let moved = format!("left the rows of a stream that is gone as {now:?}, not as {before:?}");
            self.observer.violate("fleet", moved);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_takes_another_stream_for_its_own_is_caught() {
    // Nothing in the rows tells the one from the other.
    let setup = Setup { made_again: Some(4), ..Setup::new(35, 4) };
    let script = Script { setup, rate: (0, 200), ..calm() };
    assert_eq!(said_of(&script, |_| ()).await, "");
    let said = said_of(&script, |world| {
        world.source = Arc::new(Trickster { stream: world.stream.clone(), trick: Trick::HidesItsAge });
    });
    says(&said.await, "was not refused though the stream");
}

#[tokio::test(start_paused = true)]
async fn rows_of_a_stream_that_is_gone_that_move_are_caught() {
    let mut world = World::new(Setup::new(36, 2));
    world.start("a");
    world.put(60);
    world.advance(10 * SECOND).await;
    let before = world.progress();
    world.leaves_rows(&before);
    is_clean(&world);
    world.edit_row(0, Edit::Rewind);
    world.leaves_rows(&before);
    says(&world.observer.violations().join("\n"), "left the rows of a stream");
}
