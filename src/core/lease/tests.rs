use std::{
    cmp::Ordering,
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::core::{
    shard::{Position, ShardId},
    testdata::{Row, rows},
};

const CASES: &str = include_str!("../testdata/checkpoints.txt");

fn at(number: u64) -> Checkpoint {
    Checkpoint::At(Position::at(number.to_string().parse().expect("digits")))
}

fn held(by: &str) -> Tenure {
    let row = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    let claim = row.claim(&by.into());
    Tenure::begin(&row, &claim, Instant::now()).expect("a claim")
}

fn parse(text: &str) -> Result<Checkpoint, InvalidCheckpoint> {
    let (text, sub) = text.split_once('/').unwrap_or((text, "0"));
    Checkpoint::parse(text, sub.parse().expect("a number"))
}

#[test]
fn checkpoints_order_as_in_the_kcl() {
    for Row { line, cells } in rows(CASES, "ascending") {
        let all: Vec<_> = cells[1].split(' ').map(|text| parse(text).expect("a checkpoint")).collect();
        for (n, one) in all.iter().enumerate() {
            for (m, other) in all.iter().enumerate() {
                assert_eq!(one.cmp(other), n.cmp(&m), "line {line}: {one} and {other}");
                assert_eq!(one.partial_cmp(other), Some(n.cmp(&m)), "line {line}: {one} and {other}");
            }
        }
    }
    for Row { line, cells } in rows(CASES, "ascending") {
        for text in cells[1].split(' ') {
            let one = parse(text).expect("a checkpoint");
            assert_eq!(one.to_string(), text, "line {line}");
            assert_eq!(Checkpoint::parse(one.text(), one.sub()), Ok(one), "line {line}: {text}");
        }
    }
    for Row { line, cells } in rows(CASES, "equal") {
        let (one, other) = cells[1].split_once(' ').expect("two checkpoints");
        let [one, other] = [one, other].map(|text| parse(text).expect("a checkpoint"));
        assert_eq!((one.cmp(&other), one == other), (Ordering::Equal, true), "line {line}");
    }
}

#[test]
fn what_is_neither_a_sentinel_nor_a_number_is_no_checkpoint() {
    for Row { line, cells } in rows(CASES, "refused") {
        let error = Checkpoint::parse(cells[1], 0).expect_err(cells[1]);
        assert_eq!(error.to_string(), format!("not a checkpoint: {:?}", cells[1]), "line {line}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_checkpoint_that_reads_back_the_same_or_is_refused(
        text in prop_oneof!["[0-9]{1,140}", ".{0,200}", "(AT_|TRIM_|SHARD_|LATEST|HORIZON|END|TIMESTAMP){1,3}"],
        sub: u64,
    ) {
        match Checkpoint::parse(&text, sub) {
            Ok(one) => {
                prop_assert_eq!(Checkpoint::parse(one.text(), one.sub()), Ok(one.clone()));
                prop_assert_eq!(one.cmp(&one), Ordering::Equal);
                prop_assert!(one.position().is_none_or(|position| position.sub == sub));
            }
            // However long, it is not repeated in full.
            Err(error) => prop_assert!(error.to_string().chars().count() < 2000),
        }
    }
}

proptest! {
    #[test]
    fn any_text_names_a_claimant_and_is_written_back_the_same(
        text in prop_oneof![".{0,40}", "[a-z#.]{0,4}#[0-9a-f]{15,17}\\.[+0-9]{0,22}", "[0-9a-f#.]{0,40}"],
    ) {
        prop_assert_eq!(Claimant::from(text.as_str()).to_string(), text);
    }
}

#[test]
fn a_claim_counts_a_switch_only_when_another_worker_held_the_lease() {
    let free = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    let mine = free.after(&free.claim(&"a".into()));
    assert_eq!((mine.owner_switches, mine.counter), (0, 1));
    let again = mine.after(&mine.claim(&"a".into()));
    assert_eq!((again.owner_switches, again.counter), (0, 2));
    let stolen = again.after(&again.claim(&"b".into()));
    assert_eq!((stolen.owner_switches, stolen.counter), (1, 3));
}

#[test]
fn during_a_hand_off_the_lease_is_leaving_one_worker_and_coming_to_another() {
    // Owner, the owner of the checkpoint, and for "a" and "b": who holds it, is it coming, is it leaving.
    for (owner, from, holder, coming, leaving) in [
        (None, None, None, "", ""),
        (Some("a"), None, Some("a"), "", ""),
        (Some("b"), Some("a"), Some("a"), "b", "a"),
        (Some("a"), Some("b"), Some("b"), "a", "b"),
        // Rows that no worker writes: asked for by nobody, or by its own holder.
        (None, Some("a"), Some("a"), "", ""),
        (Some("a"), Some("a"), Some("a"), "", ""),
    ] {
        let (owner, checkpoint_owner) = (owner.map(WorkerId::from), from.map(WorkerId::from));
        let lease = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
        let lease = Lease { owner, checkpoint_owner, ..lease };
        assert_eq!(lease.holder().map(WorkerId::as_str), holder, "{lease:?}");
        for worker in ["a", "b"] {
            assert_eq!(lease.is_coming_to(&worker.into()), coming == worker, "{lease:?}");
            assert_eq!(lease.is_leaving(&worker.into()), leaving == worker, "{lease:?}");
        }
    }
}

#[test]
fn what_is_shown_of_a_prepared_checkpoint_is_its_place_and_never_its_state() {
    let pending = PendingCheckpoint { at: at(5), state: Some(Bytes::from_static(b"secret")) };
    let shown = format!("{pending:?}");
    assert!(shown.contains("PendingCheckpoint { at: At(") && !shown.contains("secret"), "{shown}");
    let bytes = format!("{:?}", b"secret");
    assert!(!shown.contains(&bytes), "{shown}");
}

#[test]
fn a_checkpoint_resets_switches_and_pending_and_keeps_the_owner() {
    let mut tenure = held("a");
    let prepare = tenure.prepare(at(5), Some(Bytes::from_static(b"state"))).expect("forward");
    tenure.accept(&prepare, Instant::now());
    assert_eq!(tenure.row().checkpoint, Checkpoint::TrimHorizon);
    assert!(tenure.row().pending.is_some());
    let commit = tenure.checkpoint(at(5)).expect("forward");
    tenure.accept(&commit, Instant::now());
    assert_eq!(tenure.row().checkpoint, at(5));
    assert!(tenure.row().pending.is_none());
    assert_eq!(tenure.row().owner.as_ref().map(WorkerId::as_str), Some("a"));
    assert_eq!(tenure.row().counter, 3);
}

#[test]
fn a_prepared_checkpoint_stays_until_one_as_far_is_in_force() {
    let mut tenure = held("a");
    let prepare = tenure.prepare(at(5), None).expect("forward");
    tenure.accept(&prepare, Instant::now());
    let before = tenure.checkpoint(at(4)).expect("forward");
    tenure.accept(&before, Instant::now());
    assert_eq!(tenure.row().checkpoint, at(4));
    assert!(tenure.row().pending.is_some());
    assert!(tenure.row().after(&tenure.release(Some(at(4))).expect("forward")).pending.is_some());
    assert!(tenure.row().after(&tenure.release(Some(at(6))).expect("forward")).pending.is_none());
}

#[test]
fn a_write_says_what_must_hold_and_what_it_changes() {
    let me = WorkerId::from("a");
    let free = Lease { counter: 7, ..Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon) };
    let claim = free.claim(&(&me).into());
    let said =
        |write: &LeaseWrite| (write.expected(), write.holder().cloned(), write.handing_over().cloned());
    assert_eq!((claim.key(), said(&claim)), (&free.key, (7, None, None)));
    assert_eq!(claim.owner(), &OwnerChange::Set { owner: me.clone(), switched: false });
    assert_eq!((claim.mark(), claim.children()), (None, &[].into()));

    let mut tenure = Tenure::begin(&free, &claim, Instant::now()).expect("a claim");
    let renewal = tenure.renewal();
    assert_eq!(said(&renewal), (8, Some(me.clone()), None));
    assert_eq!((renewal.owner(), renewal.mark()), (&OwnerChange::Keep, None));
    let write = tenure.checkpoint(at(5)).expect("forward");
    assert_eq!((write.owner(), write.mark()), (&OwnerChange::Keep, Some(&Mark::Done(at(5)))));
    let prepare = tenure.prepare(at(6), None).expect("forward");
    assert!(matches!(prepare.mark(), Some(Mark::Prepared(pending)) if pending.at == at(6)));

    let children: BTreeSet<ShardId> = ["shardId-1".into(), "shardId-2".into()].into();
    let finish = tenure.finish(children.clone());
    assert_eq!((finish.owner(), finish.children()), (&OwnerChange::Remove, &children));
    assert_eq!(finish.mark(), Some(&Mark::Done(Checkpoint::ShardEnd)));
    let finished = tenure.row().after(&finish);
    assert_eq!((finished.children.clone(), finished.owner.clone()), (children.clone(), None));
    assert_eq!(
        finished.after(&finished.claim(&(&me).into())).children,
        children,
        "a write without them leaves them"
    );

    let ask = tenure.row().ask(&"b".into()).expect("a hands over");
    assert!(tenure.notice(&tenure.row().after_request(&ask)));
    assert_eq!(said(&tenure.renewal()), (8, Some(me.clone()), Some(me)));
    assert_eq!(tenure.release(None).expect("no checkpoint").owner(), &OwnerChange::Transfer);
}

#[test]
fn a_holding_is_begun_by_its_own_claim_and_by_nothing_else() {
    let free = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    let other = Lease::new(&"shardId-1".into(), Checkpoint::TrimHorizon);
    let now = Instant::now();
    assert!(Tenure::begin(&free, &other.claim(&"a".into()), now).is_none());
    assert!(Tenure::begin(&free, &held("a").renewal(), now).is_none());
    let tenure = Tenure::begin(&free, &free.claim(&"a".into()), now).expect("its own");
    assert_eq!((tenure.me(), tenure.proven_at()), (&"a".into(), now));
}

#[test]
fn only_the_row_of_this_holding_is_noticed() {
    let mut tenure = held("a");
    let row = tenure.row().clone();
    let ask = row.ask(&"b".into()).expect("a hands over");
    for other in [
        Lease { counter: row.counter + 1, ..row.after_request(&ask) },
        Lease { owner: Some("b".into()), ..row.clone() },
    ] {
        assert!(!tenure.notice(&other));
        assert_eq!(tenure.row(), &row);
    }
    assert!(tenure.notice(&row.after_request(&ask)));
    assert!(tenure.row().is_leaving(&"a".into()));
    assert!(tenure.notice(&row), "withdrawn");
    assert_eq!(tenure.row(), &row);
}

#[test]
fn a_request_is_met_by_the_owner_that_it_names_and_no_pending_hand_off() {
    let row = held("a").row().clone();
    let ask = row.ask(&"b".into()).expect("a hands over");
    assert_eq!((ask.key(), ask.from(), ask.to()), (&row.key, &"a".into(), &"b".into()));
    assert!(!ask.is_withdrawal() && ask.clone().withdrawn().is_withdrawal());
    let asked = row.after_request(&ask);
    let taken = Lease { owner: Some("c".into()), ..row.clone() };
    for (request, met) in [(ask.clone(), &row), (ask.withdrawn(), &asked)] {
        for row in [&row, &asked, &taken] {
            assert_eq!(request.is_allowed_on(row), row == met, "{request:?} on {row:?}");
        }
    }
}

#[test]
fn a_checkpoint_never_goes_back() {
    let mut tenure = held("a");
    let write = tenure.checkpoint(at(10)).expect("forward");
    tenure.accept(&write, Instant::now());
    assert!(tenure.checkpoint(at(9)).is_err());
    assert!(tenure.prepare(at(9), None).is_err());
    assert!(tenure.release(Some(at(9))).is_err());
    assert!(tenure.checkpoint(at(10)).is_ok());
}

#[test]
fn a_write_is_allowed_only_on_the_counter_it_saw() {
    let tenure = held("a");
    let mut row = tenure.row().clone();
    assert!(tenure.renewal().is_allowed_on(&row));
    row.counter += 1;
    assert!(!tenure.renewal().is_allowed_on(&row));
    assert!(!tenure.finish(BTreeSet::new()).is_allowed_on(&row));
}

#[test]
fn only_a_claim_overrides_a_pending_hand_off() {
    let tenure = held("a");
    let row = Lease { checkpoint_owner: Some("a".into()), owner: Some("b".into()), ..tenure.row().clone() };
    assert!(!tenure.renewal().is_allowed_on(&row));
    assert!(row.claim(&"c".into()).is_allowed_on(&row));
}

#[test]
fn a_holder_that_is_asked_renews_and_then_transfers_in_one_write() {
    let mut tenure = held("a");
    let me = WorkerId::from("a");
    let ask = tenure.row().ask(&"b".into()).expect("a hands over");
    let asked = tenure.row().after_request(&ask);
    assert_eq!((asked.counter, asked.holder()), (tenure.row().counter, Some(&me)));
    assert!(!tenure.renewal().is_allowed_on(&asked), "the holder must find out");
    assert!(tenure.notice(&asked));
    assert!(tenure.renewal().is_allowed_on(&asked));
    let transfer = tenure.release(Some(at(9))).expect("forward");
    let after = asked.after(&transfer);
    assert_eq!((after.owner.as_ref().map(WorkerId::as_str), &after.checkpoint_owner), (Some("b"), &None));
    assert_eq!((&after.checkpoint, after.counter), (&at(9), asked.counter + 1));
    assert!(transfer.took_effect_on(&after, &me));
    assert!(tenure.row().ask(&"c".into()).is_none(), "one request at a time");
}

#[test]
fn a_former_holder_cannot_write_a_row_made_anew_that_has_its_counter() {
    let tenure = held("a");
    let of_b = Lease { owner: Some("b".into()), hands_over: None, ..tenure.row().clone() };
    let of_nobody = Lease { owner: None, ..of_b.clone() };
    assert!(tenure.renewal().is_allowed_on(tenure.row()));
    assert!(!tenure.renewal().is_allowed_on(&of_b) && !tenure.renewal().is_allowed_on(&of_nobody));
}

#[test]
fn only_a_worker_that_said_so_is_asked() {
    let tenure = held("a");
    let taken_by_java = Lease { owner: Some("java".into()), ..tenure.row().clone() };
    assert!(taken_by_java.ask(&"b".into()).is_none());
    assert!(tenure.row().ask(&"a".into()).is_none());
}

#[test]
fn a_request_can_be_withdrawn_until_the_lease_is_transferred() {
    let tenure = held("a");
    let ask = tenure.row().ask(&"b".into()).expect("a hands over");
    let asked = tenure.row().after_request(&ask);
    let withdrawal = ask.withdrawn();
    assert!(withdrawal.is_allowed_on(&asked));
    assert_eq!(&asked.after_request(&withdrawal), tenure.row());
    let mut holder = held("a");
    holder.notice(&asked);
    let transferred = asked.after(&holder.release(None).expect("forward"));
    assert!(!withdrawal.is_allowed_on(&transferred));
}

#[test]
fn a_write_whose_reply_was_lost_is_recognised_and_a_theft_is_not() {
    let tenure = held("a");
    let me = "a".into();
    let write = tenure.checkpoint(at(7)).expect("forward");
    assert!(write.took_effect_on(&tenure.row().after(&write), &me));
    let stolen = tenure.row().after(&tenure.row().claim(&"b".into()));
    assert!(!write.took_effect_on(&stolen, &me));
    let renewed = tenure.row().after(&tenure.renewal());
    assert!(!write.took_effect_on(&renewed, &me), "same counter, but not this checkpoint");
    let release = tenure.release(None).expect("forward");
    assert!(release.took_effect_on(&tenure.row().after(&release), &me));
}

#[test]
fn each_kind_of_write_is_recognised_by_what_it_does_to_the_owner() {
    let a = WorkerId::from("a");
    let asked = |tenure: &mut Tenure| {
        let ask = tenure.row().ask(&"b".into()).expect("a hands over");
        assert!(tenure.notice(&tenure.row().after_request(&ask)));
    };
    let (tenure, mut leaving) = (held("a"), held("a"));
    asked(&mut leaving);
    let free = Lease { owner: None, ..tenure.row().clone() };
    for (before, write) in [
        (tenure.row(), tenure.renewal()),
        (leaving.row(), leaving.renewal()),
        (tenure.row(), tenure.leave(None).expect("no checkpoint")),
        (tenure.row(), tenure.release(None).expect("no checkpoint")),
        (leaving.row(), leaving.release(None).expect("no checkpoint")),
        (&free, free.claim(&(&a).into())),
        (leaving.row(), leaving.row().claim(&(&a).into())),
    ] {
        let after = before.after(&write);
        assert!(write.took_effect_on(&after, &a), "{write:?}");
        assert!(!write.took_effect_on(before, &a), "{write:?}");
        let left = Lease { left_at: Some(after.counter), ..after.clone() };
        assert_eq!(
            write.took_effect_on(&left, &a),
            *write.owner() != OwnerChange::Keep,
            "{write:?} and a leave"
        );
        // Somebody else's write that met the same counter.
        for other in [Some("c"), None, Some("a")].map(|owner| owner.map(WorkerId::from)) {
            let theirs = Lease { owner: other.clone(), checkpoint_owner: None, ..after.clone() };
            let alike = match write.owner() {
                OwnerChange::Transfer => other.is_some() && other != Some(a.clone()),
                _ => theirs.holder() == after.holder(),
            };
            assert_eq!(write.took_effect_on(&theirs, &a), alike, "{write:?} on {theirs:?}");
        }
    }
}

#[test]
fn each_kind_of_write_is_recognised_by_what_it_does_to_the_checkpoint() {
    let (me, tenure) = (WorkerId::from("a"), held("a"));
    let pending = |number, state: &'static [u8]| {
        Some(PendingCheckpoint { at: at(number), state: Some(Bytes::from_static(state)) })
    };
    let prepare = tenure.prepare(at(5), Some(Bytes::from_static(b"state"))).expect("forward");
    let prepared = tenure.row().after(&prepare);
    assert_eq!(prepared.pending, pending(5, b"state"));
    assert!(prepare.took_effect_on(&prepared, &me));
    for other in [None, pending(6, b"state"), pending(5, b"another")] {
        assert!(!prepare.took_effect_on(&Lease { pending: other, ..prepared.clone() }, &me));
    }
    let reset = tenure.row().reset(Reset { to: Checkpoint::Latest, start_millis: Some(70), at_millis: 80 });
    let row = tenure.row().after(&reset);
    assert_eq!((row.start_millis, row.reset_millis), (Some(70), Some(80)));
    assert!(reset.took_effect_on(&row, &me));
    assert!(!reset.took_effect_on(&Lease { checkpoint: at(1), ..row.clone() }, &me));
    assert!(!reset.took_effect_on(&Lease { reset_millis: Some(81), ..row }, &me));
}

#[test]
fn a_holding_is_valid_from_when_its_last_write_was_sent() {
    let mut tenure = held("a");
    let start = tenure.proven_at();
    let sent = start + Duration::from_secs(4);
    let renewal = tenure.renewal();
    tenure.accept(&renewal, sent);
    assert_eq!(tenure.valid_until(Duration::from_secs(10)), start + Duration::from_secs(14));
}

/// A claim of a process of the worker "a".
fn claimant(process: u64) -> Claimant {
    Claimant::new(&"a".into(), process, 1)
}

#[test]
fn a_holding_of_another_process_under_the_same_name_is_another_ones() {
    let free = Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon);
    let [mut first, second] = [1, 2].map(|process| {
        Tenure::begin(&free, &free.claim(&claimant(process)), Instant::now()).expect("a claim")
    });
    let renewal = first.renewal();
    assert_eq!((renewal.claimant(), renewal.replaced()), (Some(&claimant(1)), None));
    assert!(!renewal.is_claim());
    assert!(renewal.is_allowed_on(first.row()) && !renewal.is_allowed_on(second.row()));
    let renewed = first.row().after(&renewal);
    assert!(renewal.took_effect_on(&renewed, &"a".into()));
    assert!(!renewal.took_effect_on(&second.row().after(&second.renewal()), &"a".into()));
    assert!(!first.notice(second.row()));
    // Nor does a claim replace another than the one it saw.
    let claim = first.row().claim(&claimant(3));
    assert_eq!((claim.claimant(), claim.replaced()), (Some(&claimant(3)), Some(&claimant(1))));
    assert!(claim.is_claim() && claim.is_allowed_on(first.row()) && !claim.is_allowed_on(second.row()));
}

#[test]
fn a_holding_is_taken_only_with_the_row_that_its_claim_left() {
    let (free, now) = (Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon), Instant::now());
    let claim = free.claim(&claimant(1));
    let claimed = free.after(&claim);
    assert!(Tenure::taken(claimed.clone(), &claim, now).is_some());
    let renewal = held("a").renewal();
    let others = [
        (Lease { key: "shardId-1".into(), ..claimed.clone() }, &claim),
        (Lease { counter: 2, ..claimed.clone() }, &claim),
        (Lease { owner: Some("b".into()), ..claimed }, &claim),
        (held("a").row().after(&renewal), &renewal),
    ];
    for (row, write) in others {
        assert!(Tenure::taken(row.clone(), write, now).is_none(), "{row:?} after {write:?}");
    }
}

#[test]
fn a_lease_lives_by_the_heartbeat_that_its_last_claim_or_renewal_named() {
    let a = WorkerId::from("a");
    let [beat, other] = [1, 2].map(|number| Incarnation::new(&a, 7, number));
    let tenure = held("a");
    let renewal = tenure.renewal().living_by(beat.clone());
    assert_eq!(renewal.heartbeat(), Some(&beat));
    let row = tenure.row().after(&renewal);
    assert_eq!(row.lives_by(), Some(&beat));
    assert_eq!(row.after(&LeaseWrite::taking_away(&row, None)).lives_by(), None, "nobody holds it");
    let again = tenure.row().after(&tenure.renewal());
    assert_eq!(again.heartbeat, None, "a renewal that names none leaves what is there");
    let mut living = held("a");
    living.accept(&renewal, Instant::now());
    assert_eq!(living.row().after(&living.renewal()).lives_by(), Some(&beat));
    assert_eq!(row.after(&row.claim(&(&a).into())).lives_by(), None, "a claim ends it");

    let claim = row.claim(&(&a).into()).living_by(beat);
    for (write, before) in [(&renewal, tenure.row()), (&claim, &row)] {
        let after = before.after(write);
        assert!(write.took_effect_on(&after, &a), "{write:?}");
        for heartbeat in [None, Some(other.clone())] {
            assert!(!write.took_effect_on(&Lease { heartbeat, ..after.clone() }, &a), "{write:?}");
        }
    }
    // A renewal that names none says nothing of it.
    let plain = living.renewal();
    let after = Lease { heartbeat: Some(other), ..living.row().after(&plain) };
    assert!(plain.took_effect_on(&after, &a));
}

#[test]
fn a_heartbeat_counts_only_for_its_own_worker_while_that_one_holds_the_lease() {
    let beat = Incarnation::new(&"a".into(), 7, 1);
    let row = Lease { heartbeat: Some(beat.clone()), ..held("a").row().clone() };
    let of = |owner: Option<&str>, from: Option<&str>, left_at| {
        let (owner, checkpoint_owner) = (owner.map(WorkerId::from), from.map(WorkerId::from));
        Lease { owner, checkpoint_owner, left_at, ..row.clone() }.lives_by() == Some(&beat)
    };
    assert!(of(Some("a"), None, None) && of(Some("b"), Some("a"), None) && of(Some("a"), None, Some(0)));
    assert!(!of(Some("b"), None, None) && !of(Some("a"), Some("b"), None) && !of(None, None, None));
    assert!(!of(Some("a"), None, Some(row.counter)), "left");
}

#[test]
fn a_lease_is_left_while_its_holder_has_not_written_since() {
    let tenure = held("a");
    let left = tenure.row().after(&tenure.leave(None).expect("no checkpoint"));
    assert!(left.is_left() && !tenure.row().is_left());
    assert!(!Lease { counter: left.counter + 1, ..left.clone() }.is_left());
    assert!(!Lease { owner: None, ..left }.is_left());
}

#[test]
fn rows_are_of_one_holding_if_one_worker_holds_them_by_one_claim() {
    let row = held("a").row().clone();
    let renewed = Lease { counter: 9, checkpoint: at(5), ..row.clone() };
    let other_holder = Lease { owner: Some("b".into()), ..row.clone() };
    let other_claim = Lease { hands_over: Some(claimant(2)), ..row.clone() };
    let same = [&renewed, &other_holder, &other_claim].map(|other| row.is_of_holding(other));
    assert_eq!(same, [true, false, false]);
}

#[test]
fn every_write_notes_the_throughput_once_it_is_measured() {
    let mut tenure = held("a");
    assert_eq!(tenure.renewal().throughput_kbps(), None);
    tenure.measured(12.5);
    let write = tenure.checkpoint(at(5)).expect("forward");
    assert_eq!(write.throughput_kbps(), Some(12.5));
    tenure.accept(&write, Instant::now());
    tenure.measured(f64::NAN);
    assert_eq!(tenure.renewal().throughput_kbps(), None);
    assert_eq!(tenure.row().after(&tenure.renewal()).throughput_kbps, Some(12.5), "what is known stays");
}

#[test]
fn proof_of_a_holding_never_goes_back() {
    let mut tenure = held("a");
    let start = tenure.proven_at();
    for (sent, proven) in
        [(5, 5), (3, 5), (6, 6)].map(|(a, b)| (Duration::from_secs(a), Duration::from_secs(b)))
    {
        let renewal = tenure.renewal();
        tenure.accept(&renewal, start + sent);
        assert_eq!(tenure.proven_at(), start + proven);
    }
}

#[test]
fn only_a_shard_processed_to_its_end_is_finished() {
    for (checkpoint, finished) in [(Checkpoint::Latest, false), (at(5), false), (Checkpoint::ShardEnd, true)]
    {
        assert_eq!(Lease::new(&"shardId-0".into(), checkpoint).is_finished(), finished);
    }
}
