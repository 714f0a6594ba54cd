//! What was put and what was processed: figures, and nothing assumed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

use tokio::time::Instant;

/// Records are numbered by key, from 0.
#[derive(Default)]
pub(crate) struct Ledger {
    put: u64,
    keys: BTreeMap<String, Key>,
    /// Oldest first; those at the front are not processed.
    waiting: VecDeque<(String, u64, Instant)>,
    figures: Figures,
}

#[derive(Default)]
struct Key {
    /// Everything below it is processed.
    next: u64,
    /// What is processed beyond.
    ahead: BTreeSet<u64>,
}

impl Key {
    fn has(&self, number: u64) -> bool {
        number < self.next || self.ahead.contains(&number)
    }
}

/// What a drill amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    processed: u64,
    lost: u64,
    repeated: u64,
    /// Processed after a later record of their key.
    out_of_order: u64,
}

impl Ledger {
    pub(crate) fn put(&mut self, key: &str, number: u64) {
        self.put += 1;
        self.waiting.push_back((key.into(), number, Instant::now()));
    }

    pub(crate) fn processed(&mut self, key: &str, number: u64) {
        let known = self.keys.entry(key.into()).or_default();
        if known.has(number) {
            self.figures.repeated += 1;
            return;
        }
        self.figures.processed += 1;
        if known.ahead.last().is_some_and(|last| *last > number) {
            self.figures.out_of_order += 1;
        }
        known.ahead.insert(number);
        while known.ahead.remove(&known.next) {
            known.next += 1;
        }
        while let Some((key, number, _)) = self.waiting.front()
            && self.keys.get(key).is_some_and(|key| key.has(*number))
        {
            self.waiting.pop_front();
        }
    }

    /// The age of the oldest record that is not processed.
    pub(crate) fn lag(&self, now: Instant) -> Duration {
        self.waiting.front().map_or(Duration::ZERO, |(.., at)| now.saturating_duration_since(*at))
    }

    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures { lost: self.put - self.figures.processed, ..self.figures }
    }
}

impl Figures {
    pub(crate) fn is_clean(self) -> bool {
        (self.lost, self.repeated, self.out_of_order) == (0, 0, 0)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processed, lost, repeated, out_of_order } = self;
        write!(f, "{processed} records: {lost} lost, {repeated} repeated, {out_of_order} out of order")
    }
}
