//! Many values of one metric in a bounded space: count, sum, least, greatest, and, as long as they are
//! few, the distinct values themselves, which keep percentiles possible.

use std::collections::BTreeMap;

/// Distinct values that one datum may carry. CloudWatch: `Values`.
const MOST_VALUES: usize = 150;

/// The values of one metric in one interval.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) count: u64,
    pub(crate) sum: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// How often each value came, by its bits: for numbers that are not negative their order is the numbers'.
    /// None where only the statistics are wanted, or the values were too many.
    values: Option<BTreeMap<u64, u64>>,
}

impl Statistics {
    /// Of one value; with `spread`, distinct values are kept.
    pub(crate) fn of(value: f64, spread: bool) -> Self {
        let values = (spread && value >= 0.0).then(|| BTreeMap::from([(rounded(value).to_bits(), 1)]));
        Self { count: 1, sum: value, min: value, max: value, values }
    }

    /// Takes in other values of the same metric.
    pub(crate) fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.values = match (self.values.take(), other.values) {
            (Some(mut mine), Some(theirs)) => {
                for (value, count) in theirs {
                    *mine.entry(value).or_default() += count;
                }
                (mine.len() <= MOST_VALUES).then_some(mine)
            }
            _ => None,
        };
    }

    /// The distinct values, least first, and how often each came; none if only the statistics are known.
    pub(crate) fn values(&self) -> Option<impl ExactSizeIterator<Item = (f64, u64)> + '_> {
        Some(self.values.as_ref()?.iter().map(|(bits, count)| (f64::from_bits(*bits), *count)))
    }
}

/// The value to two digits: what was measured a thousand times stays within the distinct values that may be
/// kept, and percentiles are right to a twentieth.
fn rounded(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let digits = 10_f64.powf(value.log10().floor() - 1.0);
    (value / digits).round() * digits
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn of(values: &[f64], spread: bool) -> Statistics {
        let mut all = values.iter().map(|value| Statistics::of(*value, spread));
        let first = all.next().expect("a value");
        all.fold(first, |mut sum, next| {
            sum.merge(next);
            sum
        })
    }

    #[test]
    fn a_few_times_keep_their_values() {
        let times = of(&[1.0, 250.0, 1.0, 0.0, 252.0], true);
        let values: Vec<_> = times.values().expect("few").collect();
        assert_eq!(values, [(0.0, 1), (1.0, 2), (250.0, 2)]);
        assert_eq!((times.count, times.sum, times.min, times.max), (5, 504.0, 0.0, 252.0));
    }

    #[test]
    fn as_many_distinct_values_are_kept_as_a_datum_may_carry() {
        let distinct: Vec<f64> =
            (10..100).chain((10..100).map(|tens| tens * 10)).take(151).map(f64::from).collect();
        assert_eq!(of(&distinct[..150], true).values().expect("few").len(), 150);
        assert!(of(&distinct, true).values().is_none());
    }

    #[test]
    fn counts_and_values_below_zero_keep_only_statistics() {
        assert!(of(&[1.0, 2.0], false).values().is_none());
        let mut mixed = Statistics::of(-1.0, true);
        mixed.merge(Statistics::of(1.0, true));
        assert!(mixed.values().is_none());
        assert_eq!((mixed.count, mixed.min, mixed.max), (2, -1.0, 1.0));
    }

    proptest! {
        #[test]
        fn whatever_is_measured_the_space_is_bounded_and_the_statistics_are_exact(
            values in proptest::collection::vec(0.0..1e9_f64, 1..2000)
        ) {
            let all = of(&values, true);
            prop_assert_eq!(all.count, values.len() as u64);
            prop_assert_eq!(all.max, values.iter().copied().fold(f64::MIN, f64::max));
            prop_assert_eq!(all.min, values.iter().copied().fold(f64::MAX, f64::min));
            if let Some(kept) = all.values() {
                prop_assert!(kept.len() <= MOST_VALUES);
                prop_assert_eq!(kept.map(|(_, count)| count).sum::<u64>(), all.count);
            }
        }

        #[test]
        fn a_value_is_kept_to_a_twentieth(value in 1e-6..1e12_f64) {
            let kept = rounded(value);
            prop_assert!((kept - value).abs() <= value * 0.0501, "{} for {}", kept, value);
            prop_assert_eq!(rounded(kept).to_bits(), kept.to_bits());
        }
    }
}
