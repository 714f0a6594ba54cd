//! Progress of the user's code on one shard: since when it owes a sign of it.
//!
//! There are two debts. The batch in the user's hands, where any acknowledgement, a return or a retry is progress.
//! And records of earlier batches that are to be acknowledged later: there only the watermark counts, because
//! acknowledgements of younger records go on for ever although that of an older one was lost. How long is too
//! long, others say.

use std::time::Instant;

use crate::core::{health::Doing, shard::Position};

/// What the user's code of one shard owes.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Since when it has been at work on what is in its hands; none while it has no work there.
    in_hand: Option<Instant>,
    /// Whether a call is under way: it is at work even with everything acknowledged.
    in_call: bool,
    /// Until when it waits after a failure, with our knowledge.
    paused_until: Option<Instant>,
    left: Option<Left>,
}

/// Records that are to be acknowledged later.
#[derive(Debug)]
struct Left {
    /// Since when the watermark has stood still.
    since: Instant,
    /// The last of them.
    through: Position,
}

impl Progress {
    /// Work begins that has nothing to do with what was before, or there is no work any more.
    pub(crate) fn begins(&mut self, work: bool, now: Instant) {
        *self = Self { in_hand: work.then_some(now), in_call: self.in_call, ..Self::default() };
    }

    /// A batch is in the user's hands, for the first time or again.
    pub(crate) fn on_batch(&mut self, now: Instant) {
        self.in_hand = Some(now);
        self.paused_until = None;
    }

    /// The next batch is asked for, with the records up to `unfinished` not all acknowledged.
    pub(crate) fn on_next(&mut self, unfinished: Option<Position>, now: Instant) {
        self.in_hand = None;
        self.paused_until = None;
        let since = self.left.as_ref().map_or(now, |left| left.since);
        self.left = unfinished.map(|through| Left { since, through });
    }

    /// The user's code failed, and waits until then.
    pub(crate) fn on_pause(&mut self, until: Instant) {
        self.in_hand = None;
        self.paused_until = Some(until);
    }

    /// A call begins or ends.
    pub(crate) fn set_in_call(&mut self, in_call: bool) {
        self.in_call = in_call;
    }

    /// Records were acknowledged: `news` says whether any was not before, `watermark` where it stands if it moved.
    pub(crate) fn on_ack(&mut self, news: bool, watermark: Option<&Position>, idle: bool, now: Instant) {
        if self.in_hand.is_some() && (news || idle) {
            self.in_hand = (!idle || self.in_call).then_some(now);
        }
        if idle {
            self.left = None;
        } else if let (Some(at), Some(left)) = (watermark, &mut self.left) {
            left.since = now;
            if *at >= left.through {
                self.left = None;
            }
        }
    }

    /// The user's code says that it goes on. Means nothing while it has no work.
    pub(crate) fn on_sign(&mut self, now: Instant) {
        self.in_hand = self.in_hand.map(|_| now);
        if let Some(left) = &mut self.left {
            left.since = now;
        }
    }

    /// Since when there has been no progress that is owed.
    pub(crate) fn owed_since(&self) -> Option<Instant> {
        self.in_hand.into_iter().chain(self.left.as_ref().map(|left| left.since)).min()
    }

    /// Whether the user's code waits for another try.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// What the user's code does, to be judged. A wait after a failure hides no record that was left.
    pub(crate) fn doing(&self) -> Doing {
        match (self.owed_since(), self.paused_until) {
            (Some(since), _) => Doing::Working { since },
            (None, Some(until)) => Doing::Waiting { until },
            (None, None) => Doing::Idle,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any moment will do for a start")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(number: u64) -> Option<Position> {
        Some(Position::at(number.to_string().parse().expect("digits")))
    }

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |secs| start + Duration::from_secs(secs)
    }

    #[test]
    fn any_acknowledgement_of_the_batch_in_hand_is_progress_until_all_are_made() {
        let (t, mut progress) = (clock(), Progress::default());
        progress.on_batch(t(1));
        assert_eq!(progress.owed_since(), Some(t(1)));
        progress.on_ack(true, None, false, t(2));
        assert_eq!(progress.owed_since(), Some(t(2)));
        progress.on_ack(false, None, false, t(3));
        assert_eq!(progress.owed_since(), Some(t(2)), "it was known");
        progress.on_ack(true, at(9).as_ref(), true, t(4));
        assert_eq!((progress.owed_since(), progress.doing()), (None, Doing::Idle));
    }

    #[test]
    fn a_call_is_work_even_with_everything_acknowledged() {
        let (t, mut progress) = (clock(), Progress::default());
        progress.on_batch(t(1));
        progress.set_in_call(true);
        progress.on_ack(true, at(9).as_ref(), true, t(2));
        assert_eq!(progress.owed_since(), Some(t(2)));
        progress.begins(true, t(3));
        progress.on_ack(true, None, true, t(4));
        assert_eq!(progress.owed_since(), Some(t(4)), "the call goes on");
        progress.set_in_call(false);
        progress.on_ack(false, None, true, t(5));
        assert_eq!(progress.owed_since(), None);
    }

    #[test]
    fn of_records_left_for_later_only_the_watermark_tells() {
        let (t, mut progress) = (clock(), Progress::default());
        for (batch, n) in [(1, 3), (2, 6), (3, 9)] {
            progress.on_batch(t(batch));
            progress.on_ack(true, None, false, t(batch));
            progress.on_next(at(n), t(batch));
        }
        progress.on_ack(true, None, false, t(4));
        assert_eq!(progress.owed_since(), Some(t(1)), "neither deliveries nor other acknowledgements");
        progress.on_ack(true, at(7).as_ref(), false, t(5));
        assert_eq!(progress.owed_since(), Some(t(5)));
        progress.on_batch(t(6));
        progress.on_ack(true, at(9).as_ref(), false, t(7));
        assert_eq!(progress.owed_since(), Some(t(7)), "the batch in hand is what is left");
        progress.on_ack(true, at(12).as_ref(), true, t(8));
        assert_eq!(progress.owed_since(), None);
    }

    #[test]
    fn a_wait_after_a_failure_owes_nothing_but_hides_no_record_that_was_left() {
        let (t, mut progress) = (clock(), Progress::default());
        progress.on_batch(t(1));
        progress.on_pause(t(60));
        assert_eq!((progress.doing(), progress.is_paused()), (Doing::Waiting { until: t(60) }, true));
        assert_eq!(progress.owed_since(), None);
        progress.on_batch(t(60));
        assert_eq!((progress.owed_since(), progress.is_paused()), (Some(t(60)), false));
        progress.on_next(at(3), t(61));
        progress.on_batch(t(62));
        progress.on_pause(t(90));
        assert_eq!(progress.doing(), Doing::Working { since: t(61) });
    }

    #[test]
    fn a_sign_of_progress_counts_for_both_and_new_work_begins_at_its_beginning() {
        let (t, mut progress) = (clock(), Progress::default());
        progress.on_sign(t(0));
        assert_eq!(progress.owed_since(), None, "there is no work");
        progress.on_next(at(3), t(1));
        progress.on_batch(t(2));
        progress.on_sign(t(3));
        assert_eq!(progress.owed_since(), Some(t(3)));
        progress.begins(true, t(4));
        assert_eq!(progress.owed_since(), Some(t(4)));
        progress.begins(false, t(5));
        assert_eq!(progress.doing(), Doing::Idle);
    }
}
