use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// One line of the list of the KCL's metrics.
struct Listed {
    operation: &'static str,
    dimension: &'static str,
    name: &'static str,
    unit: &'static str,
    level: &'static str,
    here: &'static str,
}

fn list() -> Vec<Listed> {
    let lines = include_str!("../testdata/kcl_metrics.txt").lines();
    let rows = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [operation, dimension, name, unit, level, here] = fields[..] else { panic!("{line}") };
        Listed { operation, dimension, name, unit, level, here }
    });
    rows.collect()
}

#[test]
fn every_metric_of_the_kcl_is_published_as_it_is_there_or_listed_with_why_not() {
    let ours: BTreeMap<_, _> =
        Metric::ALL.iter().map(|metric| ((metric.operation(), metric.name()), *metric)).collect();
    let mut listed = BTreeSet::new();
    for row in list() {
        let Listed { operation, name, here, .. } = row;
        let metric = ours.get(&(operation, name));
        if let Some(why) = here.strip_prefix("no, ") {
            assert!(!why.is_empty() && metric.is_none(), "{operation} {name} is {metric:?}");
            continue;
        }
        let metric = metric.unwrap_or_else(|| panic!("{operation} {name} is not published"));
        assert!(listed.insert(*metric), "{metric:?} is listed twice");
        let deviation = match here {
            "yes" | "ours" => "",
            other => other.strip_prefix("yes, ").unwrap_or_else(|| panic!("{operation} {name}: {other}")),
        };
        let level = match row.level {
            _ if deviation == "summary" => MetricsLevel::Summary,
            "S" => MetricsLevel::Summary,
            _ => MetricsLevel::Detailed,
        };
        let scope = match row.dimension {
            "worker" => Scope::Worker,
            "shard" => Scope::Shard,
            _ => Scope::Fleet,
        };
        let is = (metric.unit().as_str(), metric.level(), metric.scope());
        assert_eq!(is, (row.unit, level, scope), "{operation} {name}");
    }
    let unlisted: Vec<_> = Metric::ALL.iter().filter(|metric| !listed.contains(metric)).collect();
    assert!(unlisted.is_empty(), "not in the list: {unlisted:?}");
}

#[test]
fn the_list_names_each_metric_once() {
    let mut seen = BTreeSet::new();
    for Listed { operation, name, .. } in list() {
        assert!(seen.insert((operation, name)), "{operation} {name}");
    }
    assert!(seen.len() > 100, "{}", seen.len());
}

#[test]
fn times_are_spreads_in_milliseconds_and_successes_are_counts() {
    for metric in Metric::ALL {
        let (name, kind, unit) = (metric.name(), metric.kind(), metric.unit());
        if name.ends_with("Time") {
            assert_eq!((kind, unit), (Kind::Spread, Unit::Milliseconds), "{metric:?}");
        }
        if name.ends_with("Success") {
            assert_eq!((kind, unit), (Kind::Sum, Unit::Count), "{metric:?}");
        }
        assert!(metric.help().ends_with('.') && !metric.help().starts_with(' '), "{}", metric.help());
    }
}

#[test]
fn a_stream_is_named_the_same_whether_it_was_given_by_name_or_arn() {
    for stream in ["cart", "arn:aws:kinesis:eu-central-1:123456789012:stream/cart"] {
        assert_eq!(&*Origin::new("app", stream, "me").stream, "cart");
    }
}

#[test]
fn a_sample_says_of_which_shard_it_is_and_how_its_call_ended() {
    let (origin, shard) = (Origin::new("app", "stream", "me"), ShardId::from("shardId-0"));
    let sample = Sample::new(Metric::GetRecordsTime, 5.0, &origin);
    assert_eq!((sample.shard, sample.outcome), (None, None));
    let sample = sample.of_shard(&shard).with_outcome("ok");
    assert_eq!((sample.shard, sample.outcome), (Some(&shard), Some("ok")));
    assert_eq!((sample.metric, sample.value), (Metric::GetRecordsTime, 5.0));
}
