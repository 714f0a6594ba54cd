use std::{
    cmp::Ordering,
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::*;
use crate::core::{
    shard::Position,
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
fn a_holding_is_valid_from_when_its_last_write_was_sent() {
    let mut tenure = held("a");
    let start = tenure.proven_at();
    let sent = start + Duration::from_secs(4);
    let renewal = tenure.renewal();
    tenure.accept(&renewal, sent);
    assert_eq!(tenure.valid_until(Duration::from_secs(10)), start + Duration::from_secs(14));
}
