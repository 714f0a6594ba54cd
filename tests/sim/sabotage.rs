//! Proof that the simulation can fail: worlds that break one rule each, and the observer must say so.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use kinesis_consumer::{
    Checkpoint, ClaimReason, Claimant, HandOff, Incarnation, Lease, LeaseKey, LeaseWrite, OwnerChange, Shard,
    ShardId, Tenure, WorkerError, WorkerRow,
    io::{
        LeaseError, LeaseStore, Page, RecordSource, Rows, ShardFilter, ShardIterator, SourceError, StartFrom,
        StreamDescription,
        faulty::Fault,
        memory::{MemoryLeaseStore, MemoryStream},
    },
};

use tokio::time::Instant;

use super::{
    fleet::{Begins, Setup, World},
    processor::{PANIC, Seat, Temper},
    resets::To,
    run::play,
    script::{Beats, Door, Script, Step},
    tap::Tap,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// What a lying table does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lie {
    /// Writes whatever the counter is.
    Unconditional,
    /// Says that it renewed, and does not.
    NoRenewals,
    /// Says that it released, and does not.
    NoReleases,
    /// Shows every counter as it was at first.
    OldCounters,
    /// Says that it wrote a heartbeat, and does not.
    NoBeats,
    /// Shows every heartbeat as it was at first, but not to a consistent read.
    OldBeats,
    /// Answers no look but the first.
    EndlessLooks,
    /// Is not to be used by anybody.
    Forbidden,
    /// Cannot be reached.
    Away,
    /// Shows a row that somebody with the id of the fleet's first worker renews.
    Namesake,
    /// Answers no call at all.
    Hangs,
    /// Writes all of a write but its checkpoint.
    NoCheckpoints,
    /// Panics at a look, once leases are held.
    Panics,
}

#[derive(Debug)]
pub(super) struct Liar {
    table: MemoryLeaseStore,
    lie: Lie,
    first: Mutex<BTreeMap<LeaseKey, Lease>>,
}

impl Liar {
    /// Between a world and its table.
    pub(super) fn of(world: &World, lie: Lie) -> Arc<dyn LeaseStore> {
        Arc::new(Self { table: world.table.clone(), lie, first: Mutex::default() })
    }
}

#[async_trait]
impl LeaseStore for Liar {
    async fn open(&self, create: bool) -> Result<(), LeaseError> {
        let operation = "open the table";
        match self.lie {
            Lie::Forbidden => Err(LeaseError::Denied { operation, source: "sabotage".into() }),
            Lie::Away => Err(LeaseError::Unavailable { operation, source: "sabotage".into() }),
            Lie::Hangs => std::future::pending().await,
            _ => self.table.open(create).await,
        }
    }

    async fn scan(&self) -> Result<Rows, LeaseError> {
        let Rows { mut leases, mut workers, read_units } = self.table.scan().await?;
        if self.lie == Lie::Namesake && !leases.is_empty() {
            let mut first = self.first.lock().expect("no panic");
            let new = || {
                let row = Lease::new(&"shardId-000000000999".into(), Checkpoint::TrimHorizon);
                Lease { owner: Some("w1".into()), ..row }
            };
            let row = first.entry(leases[0].key.clone()).or_insert_with(new);
            row.counter += 1;
            leases.push(row.clone());
        }
        if self.lie == Lie::OldBeats {
            workers.iter_mut().for_each(|row| row.counter = 0);
        }
        if leases.iter().any(|row| row.holder().is_some()) {
            match self.lie {
                Lie::EndlessLooks => std::future::pending::<()>().await,
                Lie::Panics => panic!("{PANIC}"),
                _ => {}
            }
        }
        if self.lie != Lie::OldCounters {
            return Ok(Rows { leases, workers, read_units });
        }
        let mut first = self.first.lock().expect("no panic");
        let old = |row: Lease| {
            let known = first.entry(row.key.clone()).or_insert_with(|| row.clone());
            // Truthful as soon as the reader does not hold it against us: its claims must succeed.
            if known.owner != row.owner {
                *known = row.clone();
            }
            Lease { counter: known.counter, ..row }
        };
        Ok(Rows { leases: leases.into_iter().map(old).collect(), workers, read_units })
    }

    async fn get(&self, key: &LeaseKey) -> Result<Option<Lease>, LeaseError> {
        self.table.get(key).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.table.create(lease).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<(), LeaseError> {
        let row = self.table.get(write.key()).await?;
        match (self.lie, write.owner(), row) {
            (Lie::Unconditional | Lie::OldCounters, _, Some(row)) => {
                self.table.put_row(row.after(write));
                Ok(())
            }
            (Lie::NoCheckpoints, _, Some(row)) if write.is_allowed_on(&row) => {
                let checkpoint = row.checkpoint.clone();
                self.table.put_row(Lease { checkpoint, ..row.after(write) });
                Ok(())
            }
            (Lie::NoRenewals, OwnerChange::Keep, _) | (Lie::NoReleases, OwnerChange::Remove, _) => Ok(()),
            _ => self.table.write(write).await,
        }
    }

    async fn hand_off(&self, request: &HandOff) -> Result<(), LeaseError> {
        self.table.hand_off(request).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, LeaseError> {
        self.table.delete(seen).await
    }

    async fn worker(&self, incarnation: &Incarnation) -> Result<Option<WorkerRow>, LeaseError> {
        self.table.worker(incarnation).await
    }

    async fn beat(&self, row: &WorkerRow) -> Result<bool, LeaseError> {
        if self.lie == Lie::NoBeats && row.counter > 0 {
            return Ok(true);
        }
        self.table.beat(row).await
    }

    async fn forget(&self, seen: &WorkerRow) -> Result<bool, LeaseError> {
        self.table.forget(seen).await
    }
}

/// What a lying stream does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trick {
    /// Begins after the checkpoint's record's successor.
    SkipsOne,
    /// Says of children of two parents that they have only one.
    HidesAParent,
    /// Leaves the last record of every page out.
    DropsLast,
    /// Shows nothing new from then on.
    SilentSince(Instant),
    /// Begins that long after the time that was asked for.
    BeginsAfter(Duration),
    /// Says of each stream that it was made at one and the same time.
    HidesItsAge,
}

#[derive(Debug)]
pub(super) struct Trickster {
    pub(super) stream: MemoryStream,
    pub(super) trick: Trick,
}

#[async_trait]
impl RecordSource for Trickster {
    async fn describe(&self) -> Result<StreamDescription, SourceError> {
        let mut description = self.stream.describe().await?;
        if self.trick == Trick::HidesItsAge {
            description.created_at = SystemTime::UNIX_EPOCH;
        }
        Ok(description)
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, SourceError> {
        let mut shards = self.stream.list_shards(filter).await?;
        if self.trick == Trick::HidesAParent {
            let merged = shards.iter_mut().filter(|shard| shard.parents.len() > 1);
            merged.for_each(|shard| drop(shard.parents.pop_last()));
        }
        Ok(shards)
    }

    async fn open(&self, shard: &ShardId, from: &StartFrom) -> Result<ShardIterator, SourceError> {
        match from {
            StartFrom::At(number) if self.trick == Trick::SkipsOne => {
                let records = self.stream.records(shard);
                let at = records.iter().position(|record| record.position().sequence == *number);
                let next =
                    at.and_then(|at| records.get(at + 1)).map(|record| record.position().sequence.clone());
                self.stream.open(shard, &StartFrom::After(next.unwrap_or_else(|| number.clone()))).await
            }
            StartFrom::Timestamp(at) => {
                let late = if let Trick::BeginsAfter(late) = self.trick { late } else { Duration::ZERO };
                let at = *at + late;
                self.stream.open(shard, &StartFrom::Timestamp(at)).await
            }
            from => self.stream.open(shard, from).await,
        }
    }

    async fn read(&self, shard: &ShardId, from: &ShardIterator, limit: usize) -> Result<Page, SourceError> {
        if let Trick::SilentSince(then) = self.trick
            && Instant::now() >= then
        {
            let next = Some(from.clone());
            return Ok(Page { records: Vec::new(), next, children: Vec::new(), behind: Duration::ZERO });
        }
        let mut page = self.stream.read(shard, from, limit).await?;
        match self.trick {
            Trick::HidesAParent => {
                page.children.iter_mut().for_each(|child| child.parents = [shard.clone()].into());
            }
            Trick::DropsLast => drop(page.records.pop()),
            _ => {}
        }
        Ok(page)
    }
}

/// Two workers, records, a freeze, a crash and a stop: what the observer has to say of it.
async fn violations(sabotage: impl FnOnce(&mut World)) -> String {
    let mut world = World::new(Setup::new(5, 4));
    sabotage(&mut world);
    world.start("a");
    world.start("b");
    world.put(60);
    world.advance(3 * SECOND).await;
    world.freeze(0);
    world.advance(4 * SECOND).await;
    world.put(60);
    world.split(0);
    world.merge(2);
    world.thaw(0);
    world.put(60);
    world.advance(2 * SECOND).await;
    world.crash(1).await;
    world.put(60);
    let read = world.until(30 * SECOND, |world| world.observer.unread().is_empty()).await;
    world.stop(0);
    world.advance(8 * SECOND).await;
    let held = world.table.rows().iter().any(|row| row.holder().is_some());
    let mut all = world.observer.violations();
    all.extend((!read).then(|| "records were left unread".to_owned()));
    all.extend(held.then(|| "leases were left held".to_owned()));
    world.close().await;
    all.join("\n")
}

async fn with_liar(lie: Lie) -> String {
    violations(|world| {
        world.store = Liar::of(world, lie);
    })
    .await
}

async fn with_trickster(trick: Trick) -> String {
    violations(|world| world.source = Arc::new(Trickster { stream: world.stream.clone(), trick })).await
}

/// A calm script of ten seconds.
pub(super) fn calm() -> Script {
    Script { setup: Setup::new(5, 4), workers: 2, rate: (3, 200), length: 10_000, steps: Vec::new() }
}

/// What the observer has to say of a script.
pub(super) async fn said_of(script: &Script, sabotage: impl FnOnce(&mut World)) -> String {
    play(script, true, sabotage).await.violations.join("\n")
}

#[track_caller]
pub(super) fn says(violations: &str, what: &str) {
    assert!(violations.contains(what), "expected {what:?} in:\n{violations}");
}

#[tokio::test(start_paused = true)]
async fn without_sabotage_there_is_nothing_to_say() {
    assert_eq!(violations(|_| ()).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_table_without_conditions_is_caught() {
    // A write that was on its way when its worker stood still arrives after the lease was taken.
    let mut said = String::new();
    for latency in [100, 200, 300, 400] {
        said += &violations(|world| {
            world.setup.latency = latency;
            world.store = Liar::of(world, Lie::Unconditional);
        })
        .await;
    }
    says(&said, "was allowed to");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_renew_is_caught() {
    says(&with_liar(Lie::NoRenewals).await, "after its lease could have been taken");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_release_is_caught() {
    says(&with_liar(Lie::NoReleases).await, "leases were left held");
}

#[tokio::test(start_paused = true)]
async fn a_table_whose_counters_stand_still_is_caught() {
    says(&with_liar(Lie::OldCounters).await, "as Expired from a living holder");
}

async fn with_liar_of_beats(lie: Lie) -> String {
    violations(|world| {
        world.setup.beats = Beats::Worker;
        world.store = Liar::of(world, lie);
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn with_heartbeats_and_without_sabotage_there_is_nothing_to_say() {
    assert_eq!(violations(|world| world.setup.beats = Beats::Worker).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_write_heartbeats_is_caught() {
    says(&with_liar_of_beats(Lie::NoBeats).await, "after its lease could have been taken");
}

#[tokio::test(start_paused = true)]
async fn stale_looks_at_heartbeats_take_no_lease_from_a_living_holder() {
    assert_eq!(with_liar_of_beats(Lie::OldBeats).await, "");
}

#[tokio::test(start_paused = true)]
async fn code_that_acknowledges_before_it_is_done_is_caught() {
    let hasty = Temper { hasty: true, slow: 3000, ..Temper::default() };
    says(&violations(|world| world.setup.temper = hasty).await, "not acknowledged");
}

#[tokio::test(start_paused = true)]
async fn a_start_after_the_checkpoint_instead_of_at_it_is_caught() {
    says(&with_trickster(Trick::SkipsOne).await, "comes next for this holder");
}

#[tokio::test(start_paused = true)]
async fn children_that_know_only_one_of_their_parents_are_caught() {
    let trick = Trick::HidesAParent;
    let mut said = String::new();
    // In one of these, one parent ends long before the other.
    for slow in [1000, 3000, 5000, 7000] {
        let run = violations(|world| {
            world.source = Arc::new(Trickster { stream: world.stream.clone(), trick });
            world.setup.temper = Temper { slow, ..Temper::default() };
        });
        said += &run.await;
    }
    says(&said, "has not ended");
}

#[tokio::test(start_paused = true)]
async fn records_that_are_left_out_are_caught() {
    says(&with_trickster(Trick::DropsLast).await, "ever did");
}

async fn with_silence_after(time: Duration) -> String {
    let trick = Trick::SilentSince(Instant::now() + time);
    said_of(&calm(), |world| {
        world.source = Arc::new(Trickster { stream: world.stream.clone(), trick });
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn what_comes_when_the_faults_have_ended_and_is_not_read_is_caught() {
    says(&with_silence_after(10 * SECOND).await, "without faults");
    // Every record of the script has been read by then, and those that ask for liveness.
    says(&with_silence_after(13 * SECOND).await, "left unread after 1.2s at rest");
    assert_eq!(with_silence_after(1000 * SECOND).await, "");
}

/// An application that begins with what has come in the two seconds before its start.
async fn that_begins(late: Duration) -> String {
    let begins = Some(Begins { at: 2000, head: 4000 });
    let script = Script { setup: Setup { begins, ..Setup::new(5, 4) }, ..calm() };
    said_of(&script, |world| {
        let trick = Trick::BeginsAfter(late);
        world.source = Arc::new(Trickster { stream: world.stream.clone(), trick });
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_start_after_the_time_that_was_asked_for_is_caught() {
    assert_eq!(that_begins(Duration::ZERO).await, "");
    says(&that_begins(SECOND).await, "is what comes next for this holder");
}

#[tokio::test(start_paused = true)]
async fn code_that_says_it_goes_on_and_does_not_is_caught() {
    let pretends = Temper { pretends: true, ..Temper::default() };
    says(&violations(|world| world.setup.temper = pretends).await, "is fresh, with shardId-");
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_the_promised_patience_is_caught() {
    let said = violations(|world| {
        world.setup.config.health_max_age = Some(SECOND);
        world.setup.temper = Temper { slow: 3000, ..Temper::default() };
    });
    says(&said.await, "is stale without a cause");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_never_answers_a_look_is_caught() {
    let mut world = World::new(Setup::new(5, 4));
    world.store = Liar::of(&world, Lie::EndlessLooks);
    world.start("a");
    world.put(60);
    world.until(200 * SECOND, |world| !world.observer.violations().is_empty()).await;
    says(&world.observer.violations().join("\n"), "CoordinatorStuck");
}

/// Of workers that nothing was done to.
#[tokio::test(start_paused = true)]
async fn an_ending_without_a_cause_is_caught() {
    let minute = Script { length: 70_000, ..calm() };
    for (lie, ending) in
        [(Lie::Forbidden, "Denied"), (Lie::Namesake, "WorkerIdInUse"), (Lie::Away, "Unavailable")]
    {
        let sabotage = |world: &mut World| {
            world.store = Liar::of(world, lie);
        };
        says(&said_of(&minute, sabotage).await, &format!("ended by itself: Err({ending}"));
    }
}

/// An outage may end a worker that starts, and none that has run.
#[tokio::test(start_paused = true)]
async fn an_outage_that_ends_a_running_worker_is_caught() {
    let outage = |fault, at| {
        let faults = vec![(1.0, fault)];
        (at, Step::Faults { nth: Some(0), door: Door::Both, faults, millis: 3000 })
    };
    for (fault, ending) in [(Fault::Unavailable, "Unavailable"), (Fault::Denied, "Denied")] {
        let ends = |world: &mut World| {
            world.runs.spawn(async move {
                tokio::time::sleep(5 * SECOND).await;
                let (what, source) = ("a look".into(), "sabotage".into());
                let error = match fault {
                    Fault::Denied => WorkerError::Denied { what, source },
                    _ => WorkerError::Unavailable { what, source },
                };
                (0, Err(error))
            });
        };
        let script = Script { steps: vec![outage(fault, 3000)], ..calm() };
        says(&said_of(&script, ends).await, &format!("ended by itself: Err({ending}"));
        let from_start = Script { steps: vec![outage(fault, 0)], ..calm() };
        assert_eq!(said_of(&from_start, |_| ()).await, "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_looks_and_renews_more_often_than_it_needs_to_is_caught() {
    let mut setup = Setup::new(5, 4);
    setup.config.failover_time = 20 * SECOND;
    let mut world = World::new(setup);
    world.setup.config.failover_time = SECOND;
    world.start("a");
    world.put(60);
    world.advance(20 * SECOND).await;
    says(&world.observer.violations().join("\n"), "calls about 4 shards in 10s");
}

/// Somebody who takes leases as a worker does, and follows no other rule.
struct Thief(Tap<dyn LeaseStore>);

impl Thief {
    fn named(world: &World, name: &str) -> Self {
        let seat = Seat::new(name, &world.observer, Temper::default(), 1);
        Self(Tap { inner: world.store.clone(), seat })
    }

    /// Takes one lease from whoever holds it.
    async fn takes(&self, world: &World) -> Tenure {
        let row = world.table.rows().into_iter().next().expect("a row");
        let claim = row.claim(&Claimant::new(&self.0.seat.name.as_str().into(), 1, row.counter));
        self.0.claim(&claim).await.expect("nobody is faster");
        let from = row.holder().expect("a holder").clone();
        self.0.seat.observer.taken(&self.0.seat, &row.key.shard(), &ClaimReason::Stolen { from });
        Tenure::begin(&row, &claim, Instant::now().into_std()).expect("a claim")
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_up_for_no_reason_is_caught() {
    let mut world = World::new(Setup::new(5, 4));
    world.start("a");
    world.advance(3 * SECOND).await;
    let thief = Thief::named(&world, "thief");
    let tenure = thief.takes(&world).await;
    thief.0.write(&tenure.release(None).expect("no checkpoint")).await.expect("nobody is faster");
    world.advance(3 * SECOND).await;
    let said = |seat: &Seat| {
        world.observer.lock().ends_after_leaving(seat);
        world.observer.violations().join("\n")
    };
    // It may be about to end.
    assert_eq!(said(&thief.0.seat), "");
    tokio::time::sleep(6 * SECOND).await;
    says(&said(&thief.0.seat), "for no reason");
}

#[tokio::test(start_paused = true)]
async fn two_workers_that_trade_a_lease_for_ever_are_caught() {
    let mut world = World::new(Setup::new(5, 4));
    world.start("a");
    world.advance(3 * SECOND).await;
    let thieves = ["one", "another"].map(|name| Thief::named(&world, name));
    for thief in thieves.iter().cycle().take(24) {
        thief.takes(&world).await;
        tokio::time::sleep(SECOND / 10).await;
    }
    says(&world.observer.violations().join("\n"), "moves between living workers");
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_does_not_fence_the_holder_is_caught() {
    let mut world = World::new(Setup::new(5, 4));
    world.start("a");
    world.put(60);
    world.advance(3 * SECOND).await;
    let rows = world.table.rows();
    world.reset(None, To::Oldest);
    rows.into_iter().for_each(|row| world.table.put_row(row));
    world.advance(3 * SECOND).await;
    says(&world.observer.violations().join("\n"), "which is nobody's");
    assert!(!world.observer.unread().is_empty(), "what was set back is to be read again");
}
