//! F16: rows of other streams in the table. Two applications of one name begin on two streams in one moment, or a
//! worker is pointed at a table of the KCL's multi-stream mode.

use std::time::Duration;

use kinesis_consumer::{Checkpoint, Lease, WorkerError};

use super::{
    fleet::{Setup, World},
    instances::Life,
    scenarios::{SECOND, is_clean, owned, reads_everything, settled},
};

const ANOTHER: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/another:1700000000";

fn of_another(shard: &str, checkpoint: Checkpoint) -> Lease {
    Lease { stream: Some(ANOTHER.into()), ..Lease::new(&shard.into(), checkpoint) }
}

/// A row as the KCL writes it for one of several streams.
fn of_several() -> Lease {
    Lease::new(&"123456789012:another:1700000000:shardId-000000000001".into(), Checkpoint::TrimHorizon)
}

fn stored(world: &World, rows: &[Lease]) -> Vec<Option<Lease>> {
    let all = world.table.rows();
    rows.iter().map(|row| all.iter().find(|stored| stored.key == row.key).cloned()).collect()
}

#[tokio::test(start_paused = true)]
async fn rows_of_other_streams_are_never_written_and_keep_nobody_from_its_work() {
    for at in 0..4 {
        let mut world = settled(Setup::new(700 + at, 4), 2).await;
        reads_everything(&mut world, SECOND).await;
        let rows = [
            of_another("shardId-000000000777", Checkpoint::TrimHorizon),
            of_another("shardId-000000000778", Checkpoint::ShardEnd),
            Lease { owner: Some("x".into()), ..of_another("shardId-000000000779", Checkpoint::TrimHorizon) },
            of_several(),
        ];
        rows.iter().for_each(|row| world.table.put_row(row.clone()));
        world.put(40);
        world.split(0);
        world.advance(Duration::from_millis(900 * at)).await;
        world.crash(0).await;
        world.put(40);
        world.merge(2);
        reads_everything(&mut world, 10 * SECOND).await;
        world.advance(30 * SECOND).await;
        assert_eq!(stored(&world, &rows), rows.clone().map(Some), "as they were");
        assert_eq!(owned(&world, "b"), world.stream.open_shards().len(), "its own, and no other");
        is_clean(&world);
    }
}

/// Another application was faster at making the row of one shard: no shard is read from a place in another.
#[tokio::test(start_paused = true)]
async fn a_shard_whose_row_is_another_streams_is_left_alone_and_the_others_are_read() {
    let mut world = World::new(Setup::new(710, 3));
    let row = of_another("shardId-000000000001", Checkpoint::TrimHorizon);
    let no = world.start("a");
    world.table_line(no, super::line::Quality { latency: 400, ..Default::default() });
    // Past the checks at the start, which list the shards once, while its own row is on its way.
    let makes = |world: &World| world.observer.calls(0).of("list_shards") > 1;
    assert!(world.until(10 * SECOND, makes).await);
    assert_eq!(stored(&world, std::slice::from_ref(&row)), [None]);
    world.table.put_row(row.clone());
    world.put(60);
    world.advance(20 * SECOND).await;
    assert_eq!(stored(&world, std::slice::from_ref(&row)), [Some(row)], "as it was");
    let unread: Vec<String> = world.observer.unread().iter().map(|(shard, ..)| shard.to_string()).collect();
    assert_eq!(unread, ["shardId-000000000001"]);
    assert_eq!(owned(&world, "a"), 2);
    is_clean(&world);
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_refused_by_a_table_of_other_streams() {
    for row in [of_several(), of_another("shardId-000000000001", Checkpoint::TrimHorizon)] {
        let mut world = World::new(Setup::new(720, 2));
        world.table.put_row(row.clone());
        let no = world.start("a");
        assert!(world.until(10 * SECOND, |world| world.instances[no].state == Life::Over).await);
        let (_, ending) = world.endings.pop().expect("it was not asked to stop");
        assert!(matches!(ending, Err(WorkerError::WrongTable { .. })), "{ending:?}");
        assert_eq!(world.table.rows(), [row], "nothing was written");
    }
}
