//! The watermark: from acknowledgements in any order, the highest position with nothing unfinished
//! before it. That position is what may be checkpointed.
//!
//! Knows one shard and one holding of it. Writes no checkpoint, and bounds nothing: how many records
//! are in flight is for the reader to decide. A position that comes again, because a batch is retried or
//! a range is read twice, is the same position: what was acknowledged stays so.

use std::collections::VecDeque;

use crate::core::shard::Position;

/// Which delivered records of a shard are finished.
#[derive(Debug)]
pub(crate) struct Watermark {
    /// Delivered positions after `done`, ascending; the first one is never finished.
    ring: VecDeque<Slot>,
    unfinished: usize,
    done: Option<Position>,
    last: Option<Position>,
}

#[derive(Debug)]
struct Slot {
    position: Position,
    acked: bool,
}

impl Watermark {
    /// Nothing delivered yet; everything up to `done`, usually the stored checkpoint, is finished.
    pub(crate) fn new(done: Option<Position>) -> Self {
        Self { ring: VecDeque::new(), unfinished: 0, last: done.clone(), done }
    }

    /// Takes note that these records, ascending, go to the processor.
    ///
    /// Those not after [`last_delivered`](Self::last_delivered) are known already and change nothing.
    pub(crate) fn delivered(&mut self, positions: impl IntoIterator<Item = Position>) {
        for position in positions {
            if self.last.as_ref() < Some(&position) {
                self.last = Some(position.clone());
                self.ring.push_back(Slot { position, acked: false });
                self.unfinished += 1;
            }
        }
    }

    /// Finishes one record. False if it was finished before or never delivered; then nothing changes.
    pub(crate) fn ack(&mut self, position: &Position) -> bool {
        let Ok(at) = self.ring.binary_search_by(|slot| slot.position.cmp(position)) else {
            return false;
        };
        self.finish(at, at + 1) == 1
    }

    /// Finishes every delivered record from `first` to `last`, both included. Says how many were unfinished.
    pub(crate) fn ack_range(&mut self, first: &Position, last: &Position) -> usize {
        let from = self.ring.partition_point(|slot| slot.position < *first);
        let to = self.ring.partition_point(|slot| slot.position <= *last);
        self.finish(from, to)
    }

    /// Finishes every delivered record up to `position`. Says how many were unfinished.
    pub(crate) fn ack_through(&mut self, position: &Position) -> usize {
        let to = self.ring.partition_point(|slot| slot.position <= *position);
        self.finish(0, to)
    }

    /// The watermark: every record up to here is finished. Never goes back.
    pub(crate) fn done(&self) -> Option<&Position> {
        self.done.as_ref()
    }

    /// The highest position delivered; before the first delivery that of [`Watermark::new`].
    pub(crate) fn last_delivered(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    /// How many delivered records are not finished.
    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Whether everything delivered is finished.
    pub(crate) fn is_idle(&self) -> bool {
        self.unfinished == 0
    }

    /// Whether the record is finished. Everything up to the watermark is.
    #[cfg(test)]
    fn is_acked(&self, position: &Position) -> bool {
        Some(position) <= self.done.as_ref()
            || self
                .ring
                .binary_search_by(|slot| slot.position.cmp(position))
                .is_ok_and(|at| self.ring[at].acked)
    }

    fn finish(&mut self, from: usize, to: usize) -> usize {
        let mut newly = 0;
        // An empty range may be the wrong way round, when `first` is after `last`.
        for slot in self.ring.range_mut(from..to.max(from)) {
            newly += usize::from(!slot.acked);
            slot.acked = true;
        }
        self.unfinished -= newly;
        // Each slot leaves once, so this costs O(1) a record over time.
        while self.ring.front().is_some_and(|slot| slot.acked) {
            self.done = self.ring.pop_front().map(|slot| slot.position);
        }
        newly
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn at(number: u64) -> Position {
        Position::at(number.to_string().parse().expect("digits"))
    }

    fn delivered(numbers: impl IntoIterator<Item = u64>) -> Watermark {
        let mut watermark = Watermark::new(None);
        watermark.delivered(numbers.into_iter().map(at));
        watermark
    }

    #[test]
    fn the_watermark_waits_for_the_oldest_unfinished_record() {
        let mut watermark = delivered([1, 2, 3, 4]);
        assert!(watermark.ack(&at(3)) && watermark.ack(&at(2)));
        assert_eq!(watermark.done(), None);
        assert!(watermark.ack(&at(1)));
        assert_eq!(watermark.done(), Some(&at(3)));
        assert_eq!((watermark.unfinished(), watermark.is_idle()), (1, false));
        assert!(watermark.ack(&at(4)));
        assert_eq!((watermark.done(), watermark.is_idle()), (Some(&at(4)), true));
    }

    #[test]
    fn an_ack_that_is_repeated_or_unknown_changes_nothing() {
        let mut watermark = delivered([1, 3]);
        assert!(watermark.ack(&at(3)));
        for number in [3, 2, 9, 0] {
            assert!(!watermark.ack(&at(number)), "{number}");
        }
        assert_eq!((watermark.done(), watermark.unfinished()), (None, 1));
    }

    #[test]
    fn records_of_one_aggregate_are_told_apart() {
        let sub = |sub| Position { sub, ..at(7) };
        let mut watermark = Watermark::new(Some(sub(1)));
        watermark.delivered([sub(2), sub(3), at(8)]);
        watermark.ack(&at(8));
        watermark.ack(&sub(2));
        assert_eq!(watermark.done(), Some(&sub(2)));
        assert!(watermark.is_acked(&sub(0)) && !watermark.is_acked(&sub(3)) && watermark.is_acked(&at(8)));
    }

    #[test]
    fn a_batch_delivered_again_keeps_its_acks_and_is_counted_once() {
        let mut watermark = delivered([1, 2, 3]);
        watermark.ack(&at(1));
        watermark.ack(&at(3));
        watermark.delivered([1, 2, 3, 4].map(at));
        assert_eq!((watermark.done(), watermark.unfinished()), (Some(&at(1)), 2));
        assert!(watermark.ack(&at(2)));
        assert_eq!((watermark.done(), watermark.last_delivered()), (Some(&at(3)), Some(&at(4))));
    }

    #[test]
    fn what_the_checkpoint_covers_is_finished_before_it_comes() {
        let mut watermark = Watermark::new(Some(at(5)));
        watermark.delivered([4, 5].map(at));
        assert!(watermark.is_idle());
        assert_eq!((watermark.done(), watermark.last_delivered()), (Some(&at(5)), Some(&at(5))));
    }

    #[test]
    fn a_range_that_is_empty_or_reversed_finishes_nothing() {
        let mut watermark = delivered([1, 5, 9]);
        assert_eq!(watermark.ack_range(&at(2), &at(4)), 0);
        assert_eq!(watermark.ack_range(&at(9), &at(1)), 0);
        assert_eq!(watermark.ack_range(&at(5), &at(20)), 2);
        assert_eq!(watermark.ack_through(&at(1)), 1);
        assert_eq!(watermark.done(), Some(&at(9)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver(u64, u64),
        Ack(u64),
        Range(u64, u64),
        Through(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let n = || 0..60_u64;
        prop_oneof![
            (n(), 1..9_u64).prop_map(|(from, count)| Step::Deliver(from, count)),
            n().prop_map(Step::Ack),
            (n(), n()).prop_map(|(first, last)| Step::Range(first, last)),
            n().prop_map(Step::Through),
        ]
    }

    /// The same by brute force. Positions are even numbers, so that odd ones were never delivered.
    #[derive(Default)]
    struct Model(BTreeMap<u64, bool>);

    impl Model {
        fn deliver(&mut self, numbers: &[u64]) {
            for number in numbers {
                if self.0.last_key_value().is_none_or(|(last, _)| last < number) {
                    self.0.insert(*number, false);
                }
            }
        }

        fn ack(&mut self, numbers: impl Fn(u64) -> bool) -> usize {
            let hit: BTreeSet<u64> =
                self.0.iter().filter(|(n, acked)| numbers(**n) && !**acked).map(|(n, _)| *n).collect();
            hit.iter().for_each(|n| *self.0.entry(*n).or_default() = true);
            hit.len()
        }

        fn done(&self) -> Option<u64> {
            self.0.iter().take_while(|(_, acked)| **acked).last().map(|(n, _)| *n)
        }
    }

    proptest! {
        #[test]
        fn any_history_ends_like_the_naive_one(steps in prop::collection::vec(step(), 0..80)) {
            let (mut watermark, mut model) = (Watermark::new(None), Model::default());
            for step in steps {
                match step {
                    Step::Deliver(from, count) => {
                        let numbers: Vec<u64> = (from..from + count).map(|n| 2 * n).collect();
                        model.deliver(&numbers);
                        watermark.delivered(numbers.into_iter().map(at));
                    }
                    Step::Ack(n) => {
                        prop_assert_eq!(watermark.ack(&at(n)), model.ack(|m| m == n) == 1);
                    }
                    Step::Range(a, b) => {
                        prop_assert_eq!(watermark.ack_range(&at(a), &at(b)), model.ack(|m| a <= m && m <= b));
                    }
                    Step::Through(n) => {
                        prop_assert_eq!(watermark.ack_through(&at(n)), model.ack(|m| m <= n));
                    }
                }
                prop_assert_eq!(watermark.done().cloned(), model.done().map(at));
                prop_assert_eq!(watermark.unfinished(), model.0.values().filter(|acked| !**acked).count());
                for n in 0..140 {
                    // Nothing before the watermark is asked for again, delivered or not.
                    let acked = model.0.get(&n).is_some_and(|acked| *acked)
                        || model.done().is_some_and(|done| n <= done);
                    prop_assert_eq!(watermark.is_acked(&at(n)), acked);
                }
            }
        }
    }
}
