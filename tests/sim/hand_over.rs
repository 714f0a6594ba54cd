//! F9: a hand-over is cut short at each of its steps.
//!
//! A step is a call to the table of either worker, counted from the one that asks; so none can be forgotten. At
//! each, before it takes effect or after it has and before the reply comes, one of the two is asked to stop, dies,
//! or stands still and wakes up as a zombie, or the reply is lost.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use kinesis_consumer::{Lease, io::memory::MemoryLeaseStore};
use tokio::sync::Notify;

use super::{
    fleet::{Setup, World},
    instances::Life,
    processor::{Seat, Temper},
    scenarios::{SECOND, is_clean, owned, reads_everything},
};

const HOLDER: usize = 0;
const TAKER: usize = 1;
/// Whoever goes on has looked, claimed and read within this time, and that of who was silent within the failover
/// time more.
const MORE: Duration = Duration::from_millis(1500);

in_both_modes!(
    a_hand_over_during_which_a_worker_is_asked_to_stop_repeats_nothing_at_any_step,
    a_hand_over_during_which_a_worker_dies_loses_nothing_at_any_step,
    a_hand_over_during_which_a_worker_stands_still_loses_nothing_at_any_step,
    a_hand_over_of_which_a_reply_is_lost_comes_to_its_end_at_any_step,
);

/// How far a hand-over is, by the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Begins,
    Asked,
    Transferred,
    Taken,
}

impl Stage {
    fn of(table: &MemoryLeaseStore) -> Self {
        let of_row = |row: &Lease| {
            let [owner, holder] =
                [&row.owner, &row.checkpoint_owner].map(|who| who.as_ref().map(|who| who.as_str()));
            let claimant = row.hands_over.as_ref().map(|claimant| claimant.worker().as_str());
            match (owner, holder, claimant) {
                (Some("b"), Some("a"), _) => Self::Asked,
                (Some("b"), None, Some("a")) => Self::Transferred,
                (Some("b"), None, Some("b")) => Self::Taken,
                _ => Self::Begins,
            }
        };
        table.rows().iter().map(of_row).max().unwrap_or(Self::Begins)
    }
}

/// When something happens to a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    Before,
    After,
}

/// What happens, and to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blow {
    Stop(usize),
    Kill(usize),
    Freeze(usize, Duration),
    LoseReply,
}

/// Counts the calls to a table from the first request for a lease on, and holds one of them up.
#[derive(Clone, Debug)]
pub(crate) struct Steps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: MemoryLeaseStore,
    chosen: Option<(usize, Moment, Blow)>,
    /// Each with who made it, its name, and how far the hand-over was before and after it.
    made: Mutex<Vec<(String, &'static str, Stage, Stage)>>,
    reached: Notify,
    go_on: Notify,
}

impl Steps {
    fn of(table: &MemoryLeaseStore, chosen: Option<(usize, Moment, Blow)>) -> Self {
        let (made, reached, go_on) = (Mutex::default(), Notify::new(), Notify::new());
        Self(Arc::new(Inner { table: table.clone(), chosen, made, reached, go_on }))
    }

    /// Makes a call, which is one of the steps if a request for a lease went before; none if its reply is lost.
    pub(crate) async fn pass<T>(
        &self,
        seat: &Seat,
        name: &'static str,
        call: impl Future<Output = T>,
    ) -> Option<T> {
        let before = Stage::of(&self.0.table);
        let step = {
            let mut made = self.0.made.lock().expect("no panic");
            if made.is_empty() && name != "hand_off" {
                None
            } else {
                made.push((seat.name.clone(), name, before, before));
                Some(made.len() - 1)
            }
        };
        let Some(step) = step else { return Some(call.await) };
        let chosen = self.0.chosen.filter(|(chosen, ..)| *chosen == step);
        if chosen.is_some_and(|(_, moment, _)| moment == Moment::Before) {
            self.wait().await;
        }
        let reply = call.await;
        self.0.made.lock().expect("no panic")[step].3 = Stage::of(&self.0.table);
        if chosen.is_some_and(|(_, moment, _)| moment == Moment::After) {
            self.wait().await;
        }
        let is_lost = chosen.is_some_and(|(_, _, blow)| blow == Blow::LoseReply);
        (!is_lost).then_some(reply)
    }

    async fn wait(&self) {
        self.0.reached.notify_one();
        self.0.go_on.notified().await;
    }

    fn made(&self) -> Vec<(String, &'static str, Stage, Stage)> {
        self.0.made.lock().expect("no panic").clone()
    }
}

/// One worker with two shards and a backlog, and another that has just joined. With `latency` requests outlive
/// those who sent them.
async fn begun(latency: u64, chosen: Option<(usize, Moment, Blow)>) -> (World, Steps) {
    let setup = Setup::new(900, 2);
    let temper = Temper { slow: 300, ..Temper::default() };
    let mut world = World::new(Setup { latency, temper, ..setup });
    let steps = Steps::of(&world.table, chosen);
    world.steps = Some(steps.clone());
    world.start("a");
    world.put(20);
    world.advance(SECOND).await;
    world.put(10);
    world.start("b");
    (world, steps)
}

/// The steps of a hand-over that nothing befalls, until its taker has read.
async fn undisturbed(latency: u64) -> Vec<(String, &'static str, Stage, Stage)> {
    let (mut world, steps) = begun(latency, None).await;
    let taken = |world: &World| world.observer.works_on(TAKER) == 1;
    assert!(world.until(3 * SECOND, taken).await, "{}", world.observer.trace());
    reads_everything(&mut world, 3 * SECOND).await;
    assert_eq!(world.observer.counts().handed_over, 1);
    assert_eq!(world.observer.counts().deliveries, world.observer.counts().records);
    let steps = steps.made();
    assert_eq!(world.close().await, 0, "tasks are left");
    steps
}

/// A hand-over with one blow to one of its steps, and what must hold after it.
async fn struck(latency: u64, step: usize, moment: Moment, blow: Blow) {
    let (mut world, steps) = begun(latency, Some((step, moment, blow))).await;
    let limit = tokio::time::timeout(5 * SECOND, steps.0.reached.notified());
    assert!(limit.await.is_ok(), "step {step} is reached, as without the blow");
    world.observer.note("world", || format!("{blow:?} {moment:?} step {step}: {:?}", steps.made()[step]));
    let mut thaws = None;
    match blow {
        Blow::Stop(no) => world.stop(no),
        Blow::Kill(no) => world.crash(no).await,
        Blow::Freeze(no, time) => {
            world.freeze(no);
            thaws = Some((no, time));
        }
        Blow::LoseReply => {}
    }
    steps.0.go_on.notify_one();
    world.put_into_each();
    let bound = match blow {
        Blow::Kill(_) | Blow::Freeze(..) => world.failover() + MORE,
        Blow::Stop(_) | Blow::LoseReply => MORE,
    };
    if let Some((no, time)) = thaws.filter(|(_, time)| *time < bound) {
        world.advance(time).await;
        world.thaw(no);
        reads_everything(&mut world, bound).await;
    } else {
        reads_everything(&mut world, bound).await;
        if let Some((no, time)) = thaws {
            world.advance(time - bound).await;
            world.thaw(no);
        }
    }
    world.put_into_each();
    world.advance(world.failover() + MORE).await;
    world.put_into_each();
    reads_everything(&mut world, SECOND).await;
    let counts = world.observer.counts();
    if matches!(blow, Blow::Stop(_)) {
        assert_eq!(counts.deliveries, counts.records, "{}", world.observer.trace());
    }
    let living = |no: &usize| world.instances[*no].state != Life::Over;
    let names = ["a", "b"];
    let living: Vec<usize> = [HOLDER, TAKER].into_iter().filter(living).collect();
    for no in &living {
        assert_eq!(owned(&world, names[*no]), 2 / living.len(), "{}", world.observer.trace());
    }
    let gone = matches!(blow, Blow::Stop(_) | Blow::Kill(_));
    assert_eq!(living.len(), if gone { 1 } else { 2 }, "{}", world.observer.trace());
    is_clean(&world);
    assert_eq!(world.close().await, 0, "tasks are left");
}

/// Strikes each step of a hand-over at both moments, with requests that die with their senders and with some that
/// outlive them.
async fn at_each_step(blows: &[Blow]) {
    for latency in [0, 20] {
        let steps = undisturbed(latency).await;
        let met: BTreeSet<(Stage, Stage)> =
            steps.iter().map(|(.., before, after)| (*before, *after)).collect();
        let named = [
            (Stage::Begins, Stage::Asked),
            (Stage::Asked, Stage::Asked),
            (Stage::Asked, Stage::Transferred),
            (Stage::Transferred, Stage::Taken),
            (Stage::Taken, Stage::Taken),
        ];
        assert!(named.iter().all(|step| met.contains(step)), "{steps:?}");
        for step in 0..steps.len() {
            for moment in [Moment::Before, Moment::After] {
                for blow in blows {
                    struck(latency, step, moment, *blow).await;
                }
            }
        }
    }
}

async fn a_hand_over_during_which_a_worker_is_asked_to_stop_repeats_nothing_at_any_step() {
    at_each_step(&[Blow::Stop(HOLDER), Blow::Stop(TAKER)]).await;
}

async fn a_hand_over_during_which_a_worker_dies_loses_nothing_at_any_step() {
    at_each_step(&[Blow::Kill(HOLDER), Blow::Kill(TAKER)]).await;
}

/// For less than its leases live, and for longer.
async fn a_hand_over_during_which_a_worker_stands_still_loses_nothing_at_any_step() {
    for time in [SECOND, 5 * SECOND] {
        at_each_step(&[Blow::Freeze(HOLDER, time), Blow::Freeze(TAKER, time)]).await;
    }
}

async fn a_hand_over_of_which_a_reply_is_lost_comes_to_its_end_at_any_step() {
    at_each_step(&[Blow::LoseReply]).await;
}
