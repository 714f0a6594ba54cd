//! Races: how many calls to have under way of which peers may be making the same.
//!
//! Workers that start together see the same rows to make or to claim, and each other not at all. So each begins
//! at a place of its own and goes on round the table: few calls at first, more as long as it wins, none once its
//! last one is lost, for there a peer began and has gone on. Whoever is ahead wins, so no row is left out, unless
//! a worker dies on its way; the next look shows that. A fleet makes at most two calls a row and a few a worker,
//! where each worker would try all rows.

/// Calls under way at first: what each worker may lose beyond what it wins.
const AT_FIRST: usize = 4;

/// The calls of one worker for one look, each for the row after that of the one before.
#[derive(Debug)]
pub(crate) struct Race {
    most: usize,
    calls: usize,
    won: usize,
    /// Of those that are over the one that is furthest on, and whether it was won.
    furthest: (usize, bool),
}

impl Race {
    /// Never more than `most` calls at once.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, calls: 0, won: 0, furthest: (0, true) }
    }

    /// How many calls may be under way now.
    pub(crate) fn at_once(&self) -> usize {
        (AT_FIRST + self.won / 2).min(self.most)
    }

    /// The number of the next call.
    pub(crate) fn begin(&mut self) -> usize {
        self.calls += 1;
        self.calls
    }

    /// Takes note of whether a call was faster than those of peers.
    pub(crate) fn over(&mut self, call: usize, won: bool) {
        self.won += usize::from(won);
        if call >= self.furthest.0 {
            self.furthest = (call, won);
        }
    }

    /// Whether to begin no more calls, as far as is known.
    pub(crate) fn is_lost(&self) -> bool {
        !self.furthest.1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

    use super::*;

    /// Workers that go round so many rows from those places on, all at the same pace; how many calls they make,
    /// how many rows are made, and how often they wait for answers.
    fn run(rows: usize, starts: &[usize], rng: &mut StdRng) -> (usize, usize, usize) {
        let mut made = vec![false; rows];
        let mut races: Vec<Race> = starts.iter().map(|_| Race::new(64)).collect();
        let (mut calls, mut turns) = (0, 0);
        loop {
            let mut sent = Vec::new();
            for (n, race) in races.iter_mut().enumerate().filter(|(_, race)| !race.is_lost()) {
                for _ in 0..race.at_once().min(rows - race.calls) {
                    sent.push((n, race.begin()));
                }
            }
            if sent.is_empty() {
                return (calls, made.iter().filter(|made| **made).count(), turns);
            }
            (calls, turns) = (calls + sent.len(), turns + 1);
            sent.shuffle(rng);
            for (n, call) in sent {
                let won = !std::mem::replace(&mut made[(starts[n] + call) % rows], true);
                races[n].over(call, won);
            }
        }
    }

    #[test]
    fn who_races_with_nobody_soon_has_as_many_calls_under_way_as_it_may() {
        assert_eq!(run(1000, &[7], &mut StdRng::seed_from_u64(1)), (1000, 1000, 21));
        assert_eq!((Race::new(64).at_once(), Race::new(2).at_once()), (AT_FIRST, 2));
    }

    #[test]
    fn a_race_is_lost_where_the_furthest_call_is_lost_and_not_by_one_that_began_before() {
        let mut race = Race::new(64);
        let [first, second, third] = [(); 3].map(|()| race.begin());
        race.over(second, false);
        assert!(race.is_lost());
        race.over(third, true);
        race.over(first, false);
        assert!(!race.is_lost());
    }

    proptest! {
        #[test]
        fn all_rows_are_made_by_two_calls_a_row_and_a_few_a_worker(
            rows in 1usize..2000,
            places in prop::collection::vec(0.0..1.0, 1..100),
            seed: u64,
        ) {
            let starts: Vec<usize> = places.iter().map(|place| (place * rows as f64) as usize).collect();
            let (calls, made, _) = run(rows, &starts, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(made, rows);
            prop_assert!(calls <= 2 * (rows + AT_FIRST * starts.len()), "{} calls, {} workers", calls, starts.len());
        }
    }
}
