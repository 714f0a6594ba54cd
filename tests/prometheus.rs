//! The Prometheus series: names by Prometheus's rules, none left behind, and dashboards that ask for what is
//! there.

use std::collections::{BTreeMap, BTreeSet};

use kinesis_consumer::{
    ShardId,
    metrics::{Kind, Metric, MetricsSink, Origin, PrometheusSink, Sample},
};

/// Those that Prometheus's own series say already: successes by outcome, and counts of looks.
const ELSEWHERE: [Metric; 7] = [
    Metric::StartSuccess,
    Metric::ProcessSuccess,
    Metric::ProcessTime,
    Metric::ExpiredLeases,
    Metric::VeryOldLeases,
    Metric::LeasesToTake,
    Metric::UntakenLeases,
];

fn origin() -> Origin {
    Origin::new("app", "cart", "me")
}

/// A sink that has seen every metric.
fn full() -> PrometheusSink {
    let (sink, origin, shard) = (PrometheusSink::new(), origin(), ShardId::from("shard-1"));
    for metric in Metric::ALL {
        sink.record(&Sample::new(*metric, 1.0, &origin).of_shard(&shard).with_outcome("ok"));
    }
    sink.record(&Sample::new(Metric::LookSuccess, 0.0, &origin));
    sink
}

/// The families of a text, by name: kind and unit.
fn families(text: &str) -> BTreeMap<String, (String, Option<String>)> {
    let mut families = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let known = families.insert(name.to_owned(), (kind.to_owned(), None));
                assert!(known.is_none(), "{name} is there twice");
            }
            (Some("#"), Some("UNIT"), Some(name), Some(unit)) => {
                families.get_mut(name).expect("after its type").1 = Some(unit.to_owned());
            }
            _ => {}
        }
    }
    families
}

/// The names that a query may use, suffixes included.
fn queryable(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn names_follow_prometheus_rules() {
    let text = full().text();
    let families = families(&text);
    assert!(families.len() >= 20, "{families:?}");
    for (name, (kind, unit)) in &families {
        assert!(name.starts_with("kinesis_consumer_"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        for part in ["milli", "_ms", "_count_", "_total"] {
            assert!(!name.contains(part), "{name}: base units; suffixes are the exposition's");
        }
        if let Some(unit) = unit {
            assert!(name.ends_with(&format!("_{unit}")), "{name} in {unit}");
        }
        if kind == "histogram" {
            assert_eq!(unit.as_deref(), Some("seconds"), "{name}");
        }
        if kind == "counter" {
            assert!(queryable(&text).contains(&format!("{name}_total")), "{name}");
        }
    }
    let labels: BTreeSet<&str> = text
        .split(['{', ','])
        .filter_map(|part| part.split_once("=\"").map(|(label, _)| label))
        .filter(|label| label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    let known =
        ["application", "le", "operation", "outcome", "reason", "shard", "state", "stream", "version"];
    assert_eq!(labels, BTreeSet::from(known), "few labels, none of them unbounded");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn every_metric_shows_in_some_series() {
    let origin = origin();
    let shard = ShardId::from("shard-1");
    for metric in Metric::ALL {
        let success_of_a_call = metric.kind() == Kind::Sum && metric.name().ends_with(".Success");
        let sink = PrometheusSink::new();
        let before = sink.text();
        let value = if *metric == Metric::LookSuccess { 0.0 } else { 1.0 };
        sink.record(&Sample::new(*metric, value, &origin).of_shard(&shard).with_outcome("ok"));
        let elsewhere = success_of_a_call || ELSEWHERE.contains(metric);
        assert_eq!(sink.text() == before, elsewhere, "{metric:?}");
    }
}

#[test]
fn times_are_seconds_and_counters_begin_at_zero() {
    let (sink, origin, shard) = (PrometheusSink::new(), origin(), ShardId::from("shard-1"));
    sink.record(&Sample::new(Metric::MillisBehindLatest, 2500.0, &origin).of_shard(&shard));
    sink.record(&Sample::new(Metric::CurrentLeases, 4.0, &origin));
    let text = sink.text();
    for line in [
        r#"kinesis_consumer_lag_seconds{application="app",stream="cart",shard="shard-1"} 2.5"#,
        r#"kinesis_consumer_records_total{application="app",stream="cart",shard="shard-1"} 0"#,
        r#"kinesis_consumer_leases{application="app",stream="cart",state="held"} 4"#,
        r#"kinesis_consumer_retries_total{application="app",stream="cart"} 0"#,
    ] {
        assert!(text.lines().any(|got| got == line), "{line} in\n{text}");
    }
}

#[test]
fn a_shard_that_has_left_leaves_no_series_behind() {
    let (sink, origin) = (full(), origin());
    assert!(sink.text().contains("shard-1"));
    sink.forget(&origin, &"shard-1".into());
    let left: Vec<String> =
        sink.text().lines().filter(|line| line.contains("shard-1")).map(str::to_owned).collect();
    assert_eq!(left, [""; 0]);
}

/// The words of a text that could name something: runs of letters, digits, `_`, `.` and `:`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "_.:".contains(c))).filter(|word| !word.is_empty())
}

#[test]
fn the_grafana_dashboard_asks_for_series_that_are_there() {
    let dashboard = include_str!("../dashboards/grafana.json");
    let parsed: serde_json::Value = serde_json::from_str(dashboard).expect("JSON");
    let panels = parsed["panels"].as_array().expect("panels");
    let there = queryable(&full().text());
    let mut asked = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().expect("queries");
        assert!(!targets.is_empty(), "{} asks for nothing", panel["title"]);
        for target in targets {
            let query = target["expr"].as_str().expect("a query");
            let names: Vec<&str> =
                words(query).filter(|word| word.starts_with("kinesis_consumer_")).collect();
            assert!(!names.is_empty(), "{query}");
            asked.extend(names.into_iter().map(str::to_owned));
        }
    }
    let missing: Vec<_> = asked.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?} of {there:?}");
    assert!(asked.len() >= 12, "{asked:?}");
}

#[test]
fn the_cloudformation_dashboard_and_alarms_ask_for_metrics_that_are_there() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cloudformation/observability.yaml");
    let text = std::fs::read_to_string(path).expect("the template");
    let names: BTreeMap<&str, &str> =
        Metric::ALL.iter().map(|metric| (metric.name(), metric.operation())).collect();
    let operations: BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.operation()).collect();
    let mut asked = BTreeSet::new();
    // Alarms: the name and the operation stand in lines of their own, after the namespace.
    let (mut ours, mut name) = (false, String::new());
    for line in text.lines().map(str::trim) {
        if let Some(namespace) = line.strip_prefix("Namespace: ") {
            ours = namespace == "!Ref Application";
        } else if let Some(metric) = line.strip_prefix("MetricName: ").filter(|_| ours) {
            metric.clone_into(&mut name);
        } else if let Some(dimensions) = line.strip_prefix("Dimensions: ").filter(|_| ours) {
            let operation = words(dimensions).last().expect("a value");
            asked.insert((name.clone(), operation.to_owned()));
        }
        // The dashboard: ["${Application}", "name", "Operation", "value", …].
        if let Some(rest) = line.strip_prefix(r#"["${Application}", "#) {
            let mut parts = rest.split('"').skip(1).step_by(2);
            let (metric, _, operation) = (parts.next(), parts.next(), parts.next());
            asked.insert((metric.expect("a name").to_owned(), operation.expect("a value").to_owned()));
        }
    }
    assert!(asked.len() >= 10, "{asked:?}");
    for (metric, operation) in &asked {
        assert!(names.contains_key(metric.as_str()), "{metric} is not published");
        let published = |known: &&Metric| known.name() == metric && known.operation() == operation;
        assert!(Metric::ALL.iter().any(|known| published(&known)), "{metric} under {operation}");
        assert!(operations.contains(operation.as_str()));
    }
}
