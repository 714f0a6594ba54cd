//! What CloudWatch is to get: values merged by metric and dimensions, bounded, and packed into few calls.
//!
//! Only merges and packs; the sink sends, and puts back what it could not send. When it is full, values of
//! shards that have no place yet are dropped, whole and counted; the worker's own always have one. KCL:
//! `MetricAccumulatingQueue`, which drops whatever is newest and loses what could not be sent.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
};

use crate::core::{
    lease::WorkerId,
    metrics::{Kind, Metric, MetricsDimension, MetricsLevel, Sample, Scope, statistics::Statistics},
    shard::ShardId,
};

/// Metrics with their dimensions that are kept, at most, but for those that are not about a shard, which are few.
/// Enough for 1,250 shards at SUMMARY and for 714 at DETAILED. KCL: `metricsMaxQueueSize`.
pub(crate) const CAPACITY: usize = 10_000;
/// Data in one call, at most.
const MOST_DATA: usize = 1000;
/// Bytes in one call, at most: below the limit of 1 MB before compression.
const MOST_BYTES: usize = 900_000;

/// What one series of values is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) metric: Metric,
    pub(crate) shard: Option<ShardId>,
    pub(crate) worker: Option<WorkerId>,
}

impl Key {
    /// The dimensions, by name.
    pub(crate) fn dimensions(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let shard = self.shard.as_ref().map(|shard| ("ShardId", shard.as_str()));
        let worker = self.worker.as_ref().map(|worker| ("WorkerIdentifier", worker.as_str()));
        [Some(("Operation", self.metric.operation())), shard, worker].into_iter().flatten()
    }
}

/// One series of one interval.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Datum {
    pub(crate) key: Key,
    pub(crate) statistics: Statistics,
}

impl Datum {
    /// Its size on the wire in the SDK's binary form, rounded up.
    fn bytes(&self) -> usize {
        let dimensions: usize =
            self.key.dimensions().map(|(name, value)| 24 + name.len() + value.len()).sum();
        let numbers = self.statistics.values().map_or(100, |values| 32 + 18 * values.len());
        96 + self.key.metric.name().len() + dimensions + numbers
    }
}

/// The values that wait to be published.
#[derive(Debug)]
pub(crate) struct Buffer {
    level: MetricsLevel,
    dimensions: BTreeSet<MetricsDimension>,
    capacity: usize,
    series: BTreeMap<Key, Statistics>,
    dropped: u64,
}

impl Buffer {
    /// Keeps what `level` and `dimensions` ask for, of shards only while there are fewer than `capacity` series.
    pub(crate) fn new(level: MetricsLevel, dimensions: BTreeSet<MetricsDimension>, capacity: usize) -> Self {
        Self { level, dimensions, capacity, series: BTreeMap::new(), dropped: 0 }
    }

    /// Takes in one value. What is no number is left out: CloudWatch would refuse the whole call.
    pub(crate) fn add(&mut self, sample: &Sample<'_>) {
        let metric = sample.metric;
        if metric.level() > self.level || !sample.value.is_finite() {
            return;
        }
        let has = |dimension| self.dimensions.contains(&dimension);
        let shard = sample.shard.filter(|_| metric.scope() == Scope::Shard && has(MetricsDimension::Shard));
        let by_worker = metric.scope() == Scope::Worker && has(MetricsDimension::Worker);
        let key =
            Key { metric, shard: shard.cloned(), worker: by_worker.then(|| sample.origin.worker.clone()) };
        self.merge(key, Statistics::of(sample.value, metric.kind() == Kind::Spread), true);
    }

    /// Takes in what could not be sent, to be sent with the next values.
    pub(crate) fn put_back(&mut self, data: Vec<Datum>) {
        for Datum { key, statistics } in data {
            self.merge(key, statistics, false);
        }
    }

    fn merge(&mut self, key: Key, statistics: Statistics, newer: bool) {
        let full = self.series.len() >= self.capacity;
        match self.series.entry(key) {
            Entry::Occupied(mut known) if known.key().metric.kind() == Kind::Gauge => {
                if newer {
                    *known.get_mut() = statistics;
                }
            }
            Entry::Occupied(mut known) => known.get_mut().merge(statistics),
            Entry::Vacant(place) if full && place.key().shard.is_some() => self.dropped += statistics.count,
            Entry::Vacant(place) => drop(place.insert(statistics)),
        }
    }

    /// Counts values that nobody will publish.
    pub(crate) fn drop_data(&mut self, data: &[Datum]) {
        self.dropped += data.iter().map(|datum| datum.statistics.count).sum::<u64>();
    }

    /// How many values were dropped since this was last asked.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        mem::take(&mut self.dropped)
    }

    /// All that waits, in parts that fit into one call each.
    pub(crate) fn take(&mut self) -> Vec<Vec<Datum>> {
        let series = mem::take(&mut self.series);
        pack(series.into_iter().map(|(key, statistics)| Datum { key, statistics }))
    }
}

/// The data in as few parts as hold the limits of one call.
fn pack(data: impl IntoIterator<Item = Datum>) -> Vec<Vec<Datum>> {
    let mut parts: Vec<Vec<Datum>> = Vec::new();
    let mut bytes = 0;
    for datum in data {
        let more = datum.bytes();
        match parts.last_mut() {
            Some(part) if part.len() < MOST_DATA && bytes + more <= MOST_BYTES => {
                bytes += more;
                part.push(datum);
            }
            _ => {
                bytes = more;
                parts.push(vec![datum]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::core::metrics::Origin;

    fn buffer(level: MetricsLevel, dimensions: &[MetricsDimension]) -> Buffer {
        Buffer::new(level, dimensions.iter().copied().collect(), 4)
    }

    fn origin() -> Origin {
        Origin::new("app", "stream", "me")
    }

    fn all(buffer: &mut Buffer) -> Vec<(String, u64, f64)> {
        let shown = |datum: Datum| {
            let dimensions: Vec<_> =
                datum.key.dimensions().map(|(name, value)| format!("{name}={value}")).collect();
            let what = format!("{} {}", datum.key.metric.name(), dimensions.join(" "));
            (what, datum.statistics.count, datum.statistics.sum)
        };
        buffer.take().into_iter().flatten().map(shown).collect()
    }

    #[test]
    fn counts_add_up_and_a_gauge_is_one_value_the_last() {
        let (mut buffer, origin) = (buffer(MetricsLevel::Summary, &[]), origin());
        for value in [3.0, 4.0] {
            buffer.add(&Sample::new(Metric::RecordsProcessed, value, &origin));
            buffer.add(&Sample::new(Metric::CurrentLeases, value, &origin));
        }
        let current = ("CurrentLeases Operation=RenewAllLeases".to_owned(), 1, 4.0);
        let records = ("RecordsProcessed Operation=ProcessTask".to_owned(), 2, 7.0);
        assert_eq!(all(&mut buffer), [current, records]);
        assert_eq!(all(&mut buffer), []);
    }

    #[test]
    fn dimensions_are_those_asked_for_on_the_metrics_that_have_them() {
        let (origin, shard) = (origin(), ShardId::from("shard-1"));
        let names = |dimensions: &[MetricsDimension]| -> Vec<String> {
            let mut buffer = buffer(MetricsLevel::Summary, dimensions);
            for metric in [Metric::CurrentLeases, Metric::RecordsProcessed, Metric::UnownedLeases] {
                buffer.add(&Sample::new(metric, 1.0, &origin).of_shard(&shard));
            }
            all(&mut buffer).into_iter().map(|(what, ..)| what).collect()
        };
        let of = |worker, shard| {
            [
                format!("CurrentLeases Operation=RenewAllLeases{worker}"),
                format!("RecordsProcessed Operation=ProcessTask{shard}"),
                "UnownedLeases Operation=ApplicationTracker".to_owned(),
            ]
        };
        assert_eq!(names(&[]), of("", ""));
        assert_eq!(names(&[MetricsDimension::Worker]), of(" WorkerIdentifier=me", ""));
        assert_eq!(names(&[MetricsDimension::Shard]), of("", " ShardId=shard-1"));
    }

    #[test]
    fn only_of_a_spread_the_distinct_values_are_kept() {
        let (mut buffer, origin) = (buffer(MetricsLevel::Detailed, &[]), origin());
        for metric in [Metric::RecordsProcessed, Metric::ListLeasesTime, Metric::CurrentLeases] {
            buffer.add(&Sample::new(metric, 1.0, &origin));
        }
        for Datum { key, statistics } in buffer.take().into_iter().flatten() {
            let metric = key.metric;
            assert_eq!(statistics.values().is_some(), metric.kind() == Kind::Spread, "{metric:?}");
        }
    }

    #[test]
    fn a_level_keeps_itself_and_those_above_it() {
        let origin = origin();
        let kept = |level| {
            let mut buffer = buffer(level, &[]);
            buffer.add(&Sample::new(Metric::NeededLeases, 1.0, &origin));
            buffer.add(&Sample::new(Metric::ListLeasesTime, 1.0, &origin));
            all(&mut buffer).len()
        };
        assert_eq!([MetricsLevel::None, MetricsLevel::Summary, MetricsLevel::Detailed].map(kept), [0, 1, 2]);
    }

    #[test]
    fn what_could_not_be_sent_goes_with_the_next_and_a_newer_gauge_wins() {
        let (mut buffer, origin) = (buffer(MetricsLevel::Summary, &[]), origin());
        let add = |buffer: &mut Buffer, value| {
            buffer.add(&Sample::new(Metric::RecordsProcessed, value, &origin));
            buffer.add(&Sample::new(Metric::CurrentLeases, value, &origin));
        };
        add(&mut buffer, 5.0);
        let failed: Vec<Datum> = buffer.take().into_iter().flatten().collect();
        add(&mut buffer, 6.0);
        buffer.put_back(failed);
        let left: Vec<_> = all(&mut buffer).into_iter().map(|(_, count, sum)| (count, sum)).collect();
        assert_eq!(left, [(1, 6.0), (2, 11.0)]);
    }

    #[test]
    fn a_full_buffer_drops_values_of_further_shards_and_counts_them() {
        let (mut buffer, origin) = (buffer(MetricsLevel::Summary, &[MetricsDimension::Shard]), origin());
        // Neither the first nor the last by name comes too late.
        let shards: Vec<ShardId> = [3, 0, 1, 4, 2].iter().map(|n| format!("shard-{n}").into()).collect();
        for shard in [&shards[..], &shards[..]].concat() {
            buffer.add(&Sample::new(Metric::RecordsProcessed, 1.0, &origin).of_shard(&shard));
        }
        assert_eq!((buffer.take_dropped(), buffer.take_dropped()), (2, 0), "two values of the last shard");
        let left = all(&mut buffer);
        assert!(left.len() == 4 && left.iter().all(|(what, ..)| !what.ends_with("shard-2")), "{left:?}");
        assert!(left.iter().all(|(_, count, _)| *count == 2), "the others are whole: {left:?}");
    }

    #[test]
    fn more_shards_than_there_is_room_for_lose_nothing_unseen_and_cost_the_worker_none_of_its_own_metrics() {
        let (origin, dimensions) = (origin(), [MetricsDimension::Shard].into());
        let mut buffer = Buffer::new(MetricsLevel::Detailed, dimensions, CAPACITY);
        let (of_shards, others): (Vec<Metric>, Vec<Metric>) =
            Metric::ALL.iter().partition(|metric| metric.scope() == Scope::Shard);
        let mut minute = |shards: usize| {
            for shard in (0..shards).map(|n| ShardId::from(format!("shard-{n}"))) {
                let of = |metric: &Metric| Sample::new(*metric, 1.0, &origin).of_shard(&shard);
                of_shards.iter().for_each(|metric| buffer.add(&of(metric)));
            }
            others.iter().for_each(|metric| buffer.add(&Sample::new(*metric, 1.0, &origin)));
            let data = buffer.take().concat();
            let own = data.iter().filter(|datum| datum.key.shard.is_none()).count();
            let kept: u64 = data.iter().map(|datum| datum.statistics.count).sum();
            (own == others.len(), kept + buffer.take_dropped(), data.len())
        };
        let room = CAPACITY / of_shards.len();
        assert_eq!(room, 714, "as the documentation says");
        let all = |shards: usize| (shards * of_shards.len() + others.len()) as u64;
        assert_eq!(minute(room), (true, all(room), all(room) as usize));
        assert_eq!(minute(2000), (true, all(2000), CAPACITY + others.len()));
    }

    #[test]
    fn values_that_are_given_up_are_counted_each() {
        let (mut buffer, origin) = (buffer(MetricsLevel::Summary, &[]), origin());
        for metric in [Metric::RecordsProcessed, Metric::RecordsProcessed, Metric::CurrentLeases] {
            buffer.add(&Sample::new(metric, 1.0, &origin));
        }
        let data = buffer.take().concat();
        buffer.drop_data(&data);
        buffer.drop_data(&data[..1]);
        assert_eq!(buffer.take_dropped(), 3 + data[0].statistics.count);
    }

    /// A datum without distinct values, or with that many.
    fn datum(name: &str, values: usize) -> Datum {
        let mut statistics = Statistics::of(0.0, values > 0);
        (1..values).for_each(|value| statistics.merge(Statistics::of(value as f64, true)));
        let key = Key { metric: Metric::RecordsProcessed, shard: Some(name.into()), worker: None };
        Datum { key, statistics }
    }

    #[test]
    fn a_datum_is_as_large_as_its_names_and_its_values() {
        // RecordsProcessed of ProcessTask, and of the shard.
        let names = 96 + 16 + (24 + 9 + 11) + (24 + 7 + 7);
        assert_eq!(datum("shard-1", 0).bytes(), names + 100);
        assert_eq!(datum("shard-1", 3).bytes(), names + 32 + 3 * 18);
    }

    #[test]
    fn a_part_holds_as_many_data_and_as_many_bytes_as_a_call() {
        let parts = |data: Vec<Datum>| pack(data).iter().map(Vec::len).collect::<Vec<_>>();
        let small = |count| vec![datum("", 0); count];
        assert_eq!(parts(small(MOST_DATA)), [MOST_DATA]);
        assert_eq!(parts(small(MOST_DATA + 1)), [MOST_DATA, 1]);
        let large = |bytes: usize| datum(&"x".repeat(bytes - datum("", 0).bytes()), 0);
        let count = MOST_BYTES / 3000;
        assert_eq!(parts(vec![large(3000); count]), [count]);
        assert_eq!(parts([vec![large(3000); count - 1], vec![large(3001)]].concat()), [count - 1, 1]);
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let (mut buffer, origin) = (buffer(MetricsLevel::Summary, &[]), origin());
        for value in [f64::NAN, f64::INFINITY] {
            buffer.add(&Sample::new(Metric::RecordsProcessed, value, &origin));
        }
        assert_eq!(all(&mut buffer), []);
    }

    proptest! {
        #[test]
        fn every_datum_is_in_one_part_and_every_part_within_the_limits(
            data in proptest::collection::vec((0..3000_usize, 0..60_usize), 0..2500)
        ) {
            let data: Vec<Datum> =
                data.into_iter().map(|(name, values)| datum(&"x".repeat(name), values)).collect();
            let parts = pack(data.clone());
            for part in &parts {
                prop_assert!(part.len() <= MOST_DATA);
                prop_assert!(part.iter().map(Datum::bytes).sum::<usize>() <= MOST_BYTES);
            }
            let bytes: usize = data.iter().map(Datum::bytes).sum();
            prop_assert!(parts.len() <= 2 + 2 * bytes / MOST_BYTES + data.len() / MOST_DATA, "as few as need be");
            prop_assert_eq!(parts.concat(), data);
        }
    }
}
