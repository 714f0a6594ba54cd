use super::*;
use crate::{
    core::testdata::{Row, Section, sections},
    error::{CheckpointError, LeaseLost},
    io::{
        faulty::{Fault, Faults, FaultyLeaseStore, Op},
        memory::MemoryLeaseStore,
    },
    worker::{held_lease::Taker, processor::EndOfShard, shard::End},
};

const CASES: &str = include_str!("../../core/testdata/checkpoints.txt");
const FAILOVER: Duration = Duration::from_secs(10);

/// A shard that this worker holds, the table that its row is in, and the faults on the way there.
struct Held {
    table: MemoryLeaseStore,
    faults: Faults,
    link: Arc<ShardLink>,
}

/// The link of a shard whose row says `checkpoint` when its lease is claimed.
async fn held(checkpoint: &str) -> Held {
    let table = MemoryLeaseStore::new();
    let row = Lease::new(&"shardId-0".into(), parse(checkpoint));
    table.put_row(row.clone());
    let faults = Faults::new(1);
    let store: Arc<dyn LeaseStore> = Arc::new(FaultyLeaseStore::new(table.clone(), faults.clone()));
    let me = Taker { me: "me".into(), store: store.clone(), failover_time: FAILOVER, heart: None };
    let claimed = HeldLease::claim(&row, &me).await;
    let (row, held) = claimed.expect("no error").expect("won");
    let interval = Duration::from_secs(5);
    let terms = Terms { keep_on_drain: false, checkpoint_interval: interval, first_interval: interval };
    let link = ShardLink::new(held, &row, store, ShardMeter::off(), terms);
    Held { table, faults, link: Arc::new(link) }
}

fn parse(checkpoint: &str) -> Checkpoint {
    let (text, sub) = checkpoint.split_once('/').unwrap_or((checkpoint, "0"));
    Checkpoint::parse(text, sub.parse().expect("a number")).expect("a checkpoint")
}

fn position(text: &str) -> Position {
    parse(text).position().cloned().expect("a position")
}

impl Held {
    /// What the row says: the checkpoint in force and the one that is prepared.
    fn row(&self) -> (String, String) {
        let row = self.table.rows().remove(0);
        (row.checkpoint.to_string(), row.pending.map_or_else(String::new, |pending| pending.at.to_string()))
    }

    /// How long `write` is tried while the table is away, and how often.
    async fn tries(&self, write: impl Future<Output = Result<(), CheckpointError>>) -> (Duration, u64) {
        self.faults.chance(Op::WriteLease, 1.0, Fault::Unavailable);
        let (began, before) = (clock::now(), self.faults.calls(Op::WriteLease));
        let result = write.await;
        assert!(matches!(result, Err(CheckpointError::Unavailable(_))), "{result:?}");
        (clock::now() - began, self.faults.calls(Op::WriteLease) - before)
    }

    fn deliver(&self, through: &str) {
        self.link.state().watermark.delivered([position(through)]);
    }

    /// Makes one call of a table; false if it was refused.
    async fn call(&self, call: &str) -> bool {
        let (call, at) = call.split_once(' ').unwrap_or((call, ""));
        let result = match call {
            "deliver" => {
                self.deliver(at);
                return true;
            }
            "checkpoint" => self.link.checkpoint(&position(at)).await,
            "prepare" => self.link.prepare(&position(at), "state".into()).await,
            "commit" => self.link.commit(&position(at)).await,
            "end" => {
                // The end waits for acknowledgements.
                let last = self.link.state().watermark.last_delivered().cloned();
                last.iter().for_each(|last| self.link.ack_through(last));
                EndOfShard::new(self.link.clone(), End::default()).complete().await.map(drop)
            }
            other => panic!("no such call: {other}"),
        };
        match result {
            Ok(()) => true,
            Err(CheckpointError::OutOfRange { .. } | CheckpointError::LeaseLost(_)) => false,
            Err(other) => panic!("{call} {at}: {other}"),
        }
    }
}

fn of_kind(kind: &str) -> Vec<Section<'static>> {
    let all: Vec<_> = sections(CASES).into_iter().filter(|section| section.kind == kind).collect();
    assert!(!all.is_empty(), "no sections of {kind}");
    all
}

fn last_word(name: &str) -> &str {
    name.rsplit(' ').next().expect("a word")
}

#[tokio::test(start_paused = true)]
async fn the_table_of_checkpoints_holds() {
    for section in of_kind("run") {
        let held = held(last_word(section.name)).await;
        for Row { line, cells } in &section.rows {
            let answer = if held.call(cells[1]).await { "ok" } else { "refused" };
            let (checkpoint, prepared) = held.row();
            let prepared_now = cells.get(4).copied().unwrap_or_default();
            assert_eq!((answer, &*checkpoint, &*prepared), (cells[2], cells[3], prepared_now), "line {line}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_plan_of_checkpoints_ends_with_the_shard_whether_they_are_prepared_or_not() {
    for section in of_kind("plan") {
        for (Row { line, cells }, way) in section.rows.iter().flat_map(|row| (0..3).map(move |n| (row, n))) {
            let held = held(last_word(section.name)).await;
            let mut expected = last_word(section.name).to_owned();
            for step in cells[1].split(' ') {
                if step == "end" {
                    assert!(held.call("end").await, "line {line}");
                    expected = "SHARD_END".into();
                } else if step.trim_end_matches('!') == last_word(section.name) {
                    assert_eq!(held.link.state().watermark.last_delivered(), None, "line {line}");
                    for call in ["checkpoint 0", "prepare 0"].iter().filter(|_| step.ends_with('!')) {
                        assert!(!held.call(call).await, "line {line}: {call}");
                    }
                } else if let Some(at) = step.strip_suffix('!') {
                    held.deliver(at);
                    let call = |call: &str| format!("{call} {at}");
                    let calls = match way {
                        0 => vec![call("checkpoint")],
                        1 => vec![call("prepare"), call("commit")],
                        _ => vec![call("prepare"), call("checkpoint")],
                    };
                    for call in calls {
                        assert!(held.call(&call).await, "line {line}: {call}");
                    }
                    expected = at.to_owned();
                } else {
                    held.deliver(step);
                }
                assert_eq!(held.row(), (expected.clone(), String::new()), "line {line}, way {way}: {step}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_the_user_waits_for_is_tried_for_three_seconds() {
    let held = held("TRIM_HORIZON").await;
    held.deliver("1");
    held.deliver("2");
    held.faults.next(Op::WriteLease, 3, Fault::Unavailable);
    held.link.checkpoint(&position("1")).await.expect("the fourth try");
    // After 0, 50, 150, 350, 750, 1550 and 2550 ms: the next would come too late.
    assert_eq!(held.tries(held.link.checkpoint(&position("2"))).await, (Duration::from_millis(2550), 7));
    assert_eq!(held.link.held.why_lost(), None);
}

#[tokio::test(start_paused = true)]
async fn to_give_a_lease_up_is_tried_until_the_drain_ends_and_for_a_moment_in_any_case() {
    for (drain, millis, times) in [(None, 2550, 7), (Some(0), 750, 5), (Some(5), 4550, 9)] {
        let held = held("TRIM_HORIZON").await;
        if let Some(seconds) = drain {
            held.link.ask_to_drain(clock::now() + Duration::from_secs(seconds));
        }
        let tries = held.tries(held.link.give_up()).await;
        assert_eq!(tries, (Duration::from_millis(millis), times), "{drain:?}");
        assert_eq!(held.link.held.why_lost(), Some(LeaseLost::Released), "over in any case");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_while_giving_up_is_tried_again_goes_along() {
    let held = held("TRIM_HORIZON").await;
    ["1", "2"].iter().for_each(|at| held.deliver(at));
    held.link.ack_through(&position("1"));
    held.faults.next(Op::WriteLease, 1, Fault::Unavailable);
    let acknowledged = async {
        clock::sleep(Duration::from_millis(10)).await;
        held.link.ack_through(&position("2"));
    };
    let (given_up, ()) = tokio::join!(held.link.give_up(), acknowledged);
    given_up.expect("the second time");
    assert_eq!(held.row().0, "2");
}
