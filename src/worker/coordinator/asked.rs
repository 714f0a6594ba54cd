//! Requests for leases: asks for those that `balance` chose, and begins what was handed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{select, task::JoinSet};
use tracing::{debug, warn};

use super::{Coordinator, claims};
use crate::{
    clock,
    core::{
        balance::{Claim, Reason},
        lease::{HandOff, Lease, LeaseKey, WorkerId},
        race::Race,
    },
    io::LeaseError,
    worker::{
        coordinator::CALLS_AT_ONCE,
        held_lease::{HeldLease, Taker},
        renewer::cause,
    },
};

/// How many leases that were asked for are looked at in one turn.
const ASKED_AT_ONCE: usize = 8;
/// How often.
pub(super) const ASKED_INTERVAL: Duration = Duration::from_millis(150);
/// How many more of a holder that has handed over one of them.
const MORE_AT_ONCE: usize = 16;

impl Coordinator {
    /// Asks holders for their leases. A request that fails or comes too late is made again at the next look.
    pub(super) async fn ask(&mut self, requests: Vec<Claim>) {
        let mut race = Race::new(CALLS_AT_ONCE);
        let mut waiting = requests.into_iter();
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < race.at_once() && !race.is_lost() && !self.stop.is_cancelled() {
                let Some(request) = waiting.next() else { break };
                let call = race.begin();
                let seen = self.view.get(&request.key).cloned();
                let Some((seen, ask)) = seen.and_then(|seen| Some((seen.clone(), seen.ask(&self.parts.me)?)))
                else {
                    continue;
                };
                let store = self.parts.store.clone();
                under_way.spawn(self.parts.gate.pass(async move {
                    let result = store.hand_off(&ask).await;
                    (seen, ask, call, result)
                }));
            }
            let done = select! {
                biased;
                () = self.stop.cancelled() => return self.withdraw_sent(under_way),
                done = under_way.join_next() => done,
            };
            let Some(done) = done else { return };
            let (seen, ask, call, result) = done.expect("requests do not panic and are not aborted");
            self.parts.vitals.turn();
            match result {
                Ok(()) => {
                    debug!(lease = %ask.key(), from = %ask.from(), "lease asked for");
                    race.over(call, true);
                    self.parts.meter.asked(ask.key());
                    self.view.note(seen.after_request(&ask), clock::now());
                    self.asked.insert(ask.key().clone(), ask);
                    self.expect_hand_overs();
                }
                Err(LeaseError::Conflict(_)) => {
                    debug!(lease = %ask.key(), "the lease changed before it was asked for");
                    race.over(call, false);
                }
                Err(error) => {
                    if let Some(faults) = self.write_faults.failed() {
                        warn!(lease = %ask.key(), faults, %error, cause = cause(&error), "lease not asked for; trying again");
                    }
                    race.over(call, true);
                    // It may have been asked for all the same: the next look tells.
                    if matches!(error, LeaseError::Unavailable { .. }) {
                        self.asked.insert(ask.key().clone(), ask);
                    }
                }
            }
        }
    }

    /// Takes back all requests, each by a task of its own.
    pub(super) fn withdraw_all(&mut self) {
        for (_, ask) in std::mem::take(&mut self.asked) {
            let taker = self.taker_of_one();
            self.given_back.spawn(self.parts.gate.pass(withdraw(ask, taker)));
        }
    }

    /// Takes back the requests that were under way when the worker was to stop.
    fn withdraw_sent(&mut self, mut under_way: JoinSet<(Lease, HandOff, usize, Result<(), LeaseError>)>) {
        let (taker, gate) = (self.taker_of_one(), self.parts.gate.clone());
        self.given_back.spawn(self.parts.gate.pass(async move {
            let mut withdrawals = JoinSet::new();
            while let Some(Ok((_, ask, _, result))) = under_way.join_next().await {
                if !matches!(result, Err(LeaseError::Conflict(_))) {
                    withdrawals.spawn(gate.pass(withdraw(ask, taker.clone())));
                }
            }
            while withdrawals.join_next().await.is_some() {}
        }));
    }

    /// When to look at those that were asked for again.
    ///
    /// However little may be read: nobody works on what was handed over before that is noticed. A holder learns of a
    /// request at its next renewal at the latest, and what it has in hand is seldom long. Afterwards by the budget.
    pub(super) fn asked_pause(&self) -> Duration {
        if clock::now() < self.asked_until {
            return ASKED_INTERVAL;
        }
        let reads = self.asked.len().min(ASKED_AT_ONCE) as f64;
        let longest = self.parts.config.look_interval().max(ASKED_INTERVAL);
        self.looks.pause(ASKED_INTERVAL, reads).min(longest)
    }

    /// Hand-overs are likely for a while.
    fn expect_hand_overs(&mut self) {
        self.asked_until = clock::now() + self.parts.config.failover_time / 2;
    }

    /// Looks at some of the leases that were asked for, and starts those that have been handed over. Says whether
    /// any request is over, so that there may be more to ask for.
    pub(super) async fn look_at_asked(&mut self) -> bool {
        let me = self.parts.me.clone();
        let before = self.asked.len();
        let mut arrived = Vec::new();
        let mut unread = in_turns(&self.asked, self.asked_turn);
        self.asked_turn = self.asked_turn.wrapping_add(ASKED_AT_ONCE);
        let mut turn: Vec<LeaseKey> =
            unread.drain(..unread.len().min(ASKED_AT_ONCE)).map(|ask| ask.key().clone()).collect();
        while !turn.is_empty() {
            let mut givers = BTreeSet::new();
            for (key, row) in self.read_rows(turn).await {
                let Some(from) = self.asked.get(&key).map(|ask| ask.from().clone()) else { continue };
                let reason = match &row {
                    Some(row) if row.is_coming_to(&me) && !row.is_left() => continue,
                    // Its holder stopped before it saw the request.
                    Some(row) if row.is_coming_to(&me) => Reason::Stolen { from },
                    Some(row)
                        if row.holder() == Some(&me)
                            && !row.is_finished()
                            && !row.is_namesakes(&me, self.parts.process) =>
                    {
                        givers.insert(from.clone());
                        Reason::HandedOver { from }
                    }
                    // Ended, taken by another worker, or deleted: the rules of every look apply again.
                    _ => {
                        self.asked.remove(&key);
                        continue;
                    }
                };
                row.into_iter().for_each(|row| self.view.note(row, clock::now()));
                arrived.push(Claim { key, reason, ask: false });
            }
            // Who has handed over one has often handed over more in the same moment.
            let (more, rest): (Vec<HandOff>, _) =
                unread.into_iter().partition(|ask| givers.contains(ask.from()));
            turn = more.iter().take(MORE_AT_ONCE).map(|ask| ask.key().clone()).collect();
            unread = rest;
        }
        let given: Vec<LeaseKey> = arrived.iter().map(|claim| claim.key.clone()).collect();
        self.take(arrived).await;
        // One that cannot be claimed now is no sign that more will come.
        if given.iter().any(|key| !self.asked.contains_key(key)) {
            self.expect_hand_overs();
        }
        self.parts.meter.still_asked(self.asked.keys());
        self.asked.len() < before
    }
}

/// The requests in the order in which they are looked at, from the one of that number on: of each holder one, then
/// of each another. A slow holder keeps none of the others waiting.
fn in_turns(asked: &BTreeMap<LeaseKey, HandOff>, first: usize) -> Vec<HandOff> {
    let mut of_holder: BTreeMap<&WorkerId, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, &HandOff)> = Vec::with_capacity(asked.len());
    for ask in asked.values() {
        let before = of_holder.entry(ask.from()).or_default();
        turns.push((*before, ask));
        *before += 1;
    }
    turns.sort_by_key(|(before, ask)| (*before, ask.from()));
    let mut turns: Vec<HandOff> = turns.into_iter().map(|(_, ask)| ask.clone()).collect();
    let first = first.checked_rem(turns.len()).unwrap_or(0);
    turns.rotate_left(first);
    turns
}

/// Takes back a request that has not been met; a lease that was handed over in this moment is given up.
/// What fails here expires.
async fn withdraw(ask: HandOff, taker: Taker) {
    let (key, from, store) = (ask.key().clone(), ask.from().clone(), taker.store.clone());
    if store.hand_off(&ask.withdrawn()).await.is_ok() {
        debug!(lease = %key, "request withdrawn");
        return;
    }
    let Ok(Some(row)) = store.get(&key).await else { return };
    // Not one that has been begun meanwhile, here or by a namesake.
    if row.awaits(taker.me.worker()) == Some(&from) {
        claims::give_back(HeldLease::claim(&row, &taker).await, &key, "handed over too late").await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        core::lease::{Checkpoint, Claimant, Tenure},
        io::{
            LeaseStore,
            faulty::{Fault, Faults, FaultyLeaseStore, Op},
            memory::MemoryLeaseStore,
        },
    };

    /// A request of `me` that its holder has met, the table with the row, and the faults on the way to it.
    async fn handed_over() -> (HandOff, MemoryLeaseStore, Faults, Taker) {
        let table = MemoryLeaseStore::new();
        let row = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
        table.put_row(row.clone());
        let claim = row.claim(&Claimant::new(&"holder".into(), 1, 1));
        let mut tenure = Tenure::taken(table.claim(&claim).await.expect("no error"), &claim, clock::now())
            .expect("the row of the claim");
        let ask = tenure.row().ask(&"me".into()).expect("a holder to ask");
        table.hand_off(&ask).await.expect("no error");
        assert!(tenure.notice(&table.rows()[0]));
        table.write(&tenure.release(None).expect("no checkpoint")).await.expect("no error");
        let faults = Faults::new(1);
        let store: Arc<dyn LeaseStore> = Arc::new(FaultyLeaseStore::new(table.clone(), faults.clone()));
        let me = Claimant::new(&"me".into(), 2, 1);
        (ask, table, faults, Taker { me, store, failover_time: Duration::from_secs(10), heart: None })
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_handed_over_too_late_is_given_up_however_often_it_takes() {
        let (ask, table, faults, taker) = handed_over().await;
        // The claim, and then its release.
        faults.next(Op::WriteLease, 1, Fault::Delay(Duration::ZERO));
        faults.next(Op::WriteLease, 2, Fault::Unavailable);
        withdraw(ask, taker).await;
        assert_eq!(table.rows()[0].owner, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_begun_meanwhile_is_not_taken_back_with_its_request() {
        let (ask, table, _, taker) = handed_over().await;
        for process in [2, 3] {
            let begun = Claimant::new(&"me".into(), process, 7);
            let row = table.claim(&table.rows()[0].claim(&begun)).await.expect("no error");
            withdraw(ask.clone(), taker.clone()).await;
            assert_eq!(table.rows(), [row]);
        }
    }

    #[test]
    fn each_holder_has_its_turn_before_any_has_another() {
        let mut asked = BTreeMap::new();
        for (shard, holder) in [("1", "a"), ("2", "a"), ("3", "a"), ("4", "b"), ("5", "c"), ("6", "c")] {
            let row = Lease {
                owner: Some(holder.into()),
                hands_over: Some(holder.into()),
                ..Lease::new(&shard.into(), Checkpoint::TrimHorizon)
            };
            asked.insert(row.key.clone(), row.ask(&"me".into()).expect("a holder to ask"));
        }
        let order = |first| {
            let turns = in_turns(&asked, first);
            turns.iter().map(|ask| ask.key().as_str().to_owned()).collect::<String>()
        };
        assert_eq!((order(0), order(2), order(14)), ("145263".into(), "526314".into(), "526314".into()));
        assert_eq!(in_turns(&BTreeMap::new(), 8), []);
    }
}
