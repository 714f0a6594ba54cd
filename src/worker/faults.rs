//! Repeated faults: which of them to log.
//!
//! The first of a row, then each time their number has doubled, so that an outage of hours is a
//! handful of lines.

/// A row of faults of one kind.
#[derive(Debug, Default)]
pub(super) struct Faults {
    count: u32,
}

impl Faults {
    /// One more. Says whether to log it.
    pub(super) fn failed(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count.is_power_of_two()
    }

    /// A success. The number of faults that it ends; none if there were none.
    pub(super) fn over(&mut self) -> Option<u32> {
        match std::mem::take(&mut self.count) {
            0 => None,
            count => Some(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_faults_are_ten_lines() {
        let mut faults = Faults::default();
        assert_eq!((0..1000).filter(|_| faults.failed()).count(), 10);
        assert_eq!(faults.over(), Some(1000));
        assert_eq!(faults.over(), None);
    }
}
