//! Settings and names exactly as users give them, fed with bytes: valid ones that were spoiled, and any. What other
//! parsers are fed with bytes stands beside them, and CONTRIBUTING lists all.

#[path = "../examples/service/kcl_names.rs"]
mod kcl_names;
#[path = "../examples/service/settings.rs"]
mod settings;
#[path = "../src/spoiled.rs"]
mod spoiled;

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use kinesis_consumer::{
    BuildError, Config, Ordering, Worker,
    health::Status,
    io::memory::{MemoryLeaseStore, MemoryStream},
};
use proptest::prelude::*;
use serde_json::Value;
use settings::Settings;
use spoiled::{is_a_short_line, spoiled, spoiled_text};

const SERVICE_FILE: &str = include_str!("../examples/service/consumer.toml");

const FILES: [&str; 3] = [
    SERVICE_FILE,
    "application = \"a\"\nstream = \"s\"\nscan_budget = 2.5\nmetrics_dimensions = [\"shard\"]\nmax_leases_for_worker = 7\n\
     initial_position = { at_timestamp = \"2026-11-22T08:30:00Z\" }\nhealth_max_age = \"1m 30s\"\nprint_records = true\n",
    "applicationName = \"a\"\nstreamName = 's'\nfailoverTimeMillis = 10000\ntimestampAtInitialPositionInStream = 1700000000\n\
     metricsEnabledDimensions = \"ShardId,Operation\"\ntaskBackoffTimeMillis = \"500\"\n",
];

const JSON: [&str; 4] = [
    r#"{"initial_position": {"at_timestamp": "2026-11-22T08:30:00Z"}, "failover_time": "4s", "scan_budget": 1e3}"#,
    r#"{"worker_id": "pod-7", "max_leases_for_worker": 3, "memory_budget": 18446744073709551615, "health_file": null}"#,
    r#"{"stall_timeout": "584554530years", "retry_delay_min": "1ns", "health_max_age": "5m 3s", "max_records": 1}"#,
    r#"{"heartbeat": "worker", "on_shutdown": "keep", "lease_table": "must_exist", "shard_order": "none",
        "balance": "count", "metrics_dimensions": ["shard", "worker"], "metrics_level": "detailed"}"#,
];

/// Variables as `NAME=value` lines, each value of a kind that some setting takes.
const VARIABLES: [&str; 3] = [
    "CONSUMER_APPLICATION=a\nCONSUMER_STREAM=s\nCONSUMER_FAILOVER_TIME=10s\nCONSUMER_MAX_RECORDS=100",
    "CONSUMER_APPLICATION=a\nCONSUMER_STREAM=arn:aws:kinesis:eu-west-1:123456789012:stream/s\n\
     CONSUMER_INITIAL_POSITION={\"at_timestamp\":\"2026-11-22T08:30:00Z\"}\nCONSUMER_METRICS_DIMENSIONS=[\"shard\"]",
    "CONSUMER_APPLICATION_NAME=a\nCONSUMER_STREAMNAME=s\nCONSUMER_FAILOVER_TIME_MILLIS=10000\nHOME=/root\n\
     CONSUMER_INITIALPOSITIONINSTREAM=TRIM_HORIZON\nCONSUMER_METRICS_ADDRESS=0.0.0.0:9090",
];

const STREAMS: [&str; 4] =
    ["cart-queue", "A_b.9", "arn:aws:kinesis:eu-central-1:123456789012:stream/s", "arn:"];

const STATUS: [&str; 1] = [
    r#"{"state":"stale","reason":"processor_stuck","shard":"shardId-000000000003","age_millis":31002,"ready":true,"leases":12,"worker":"pod-7","pid":1,"max_age":"30s"}"#,
];

/// A worker with these settings: what is said of them if there is none.
fn build(application: &str, stream: &str, config: Config) -> Result<(), String> {
    let builder = Worker::builder(application, stream)
        .source(Arc::new(MemoryStream::new("stream", 1)))
        .lease_store(Arc::new(MemoryLeaseStore::new()))
        .config(config);
    match builder.each(Ordering::Shard, |_| async { Ok(()) }) {
        Ok(_) => Ok(()),
        Err(error @ BuildError::Invalid(_)) => Err(error.to_string()),
        Err(other) => panic!("{other}"),
    }
}

/// A file of its own for each test.
fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kinesis-consumer-{name}-{}", std::process::id()))
}

fn load(variables: Vec<(OsString, OsString)>) -> Result<Settings, Vec<String>> {
    settings::load(variables.into_iter())
}

fn of_file(path: &Path) -> Vec<(OsString, OsString)> {
    vec![("CONSUMER_CONFIG_FILE".into(), path.into())]
}

/// Settings given anew as variables are the same ones, and a refusal says what is wrong.
fn reads_back(read: Result<Settings, Vec<String>>) -> Result<(), TestCaseError> {
    let settings = match read {
        Ok(settings) => settings,
        Err(problems) => {
            prop_assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.is_empty()));
            return Ok(());
        }
    };
    prop_assert!(settings.hints.iter().all(|hint| hint.contains("the Java KCL's")));
    let Value::Object(all) = settings.to_json() else { panic!("settings have names") };
    let given = all.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (format!("CONSUMER_{}", name.to_uppercase()).into(), text.into())
    });
    let again = load(given.collect()).map_err(|problems| TestCaseError::fail(problems.join("; ")))?;
    prop_assert_eq!(again.to_json(), settings.to_json());
    let _ = build(&settings.service.application, &settings.service.stream, settings.worker);
    Ok(())
}

proptest! {
    #[test]
    fn bytes_of_a_configuration_in_json_read_back_the_same_or_are_refused(text in spoiled(JSON)) {
        match serde_json::from_slice::<Config>(&text) {
            Ok(config) => {
                let written = serde_json::to_string(&config).map_err(|error| TestCaseError::fail(error.to_string()))?;
                let again = serde_json::from_str::<Config>(&written).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(&again, &config, "{}", written);
                if let Err(why) = build("application", "stream", config) {
                    prop_assert!(!why.is_empty());
                }
            }
            Err(why) => prop_assert!(!why.to_string().is_empty()),
        }
    }

    #[test]
    fn bytes_of_a_file_of_settings_read_back_the_same_or_are_refused(text in spoiled(FILES)) {
        let path = file("settings");
        fs::write(&path, text).expect("a writable temporary folder");
        let read = load(of_file(&path));
        fs::remove_file(&path).expect("removable");
        reads_back(read)?;
    }

    #[test]
    fn bytes_of_the_environment_read_back_the_same_or_are_refused(lines in spoiled(VARIABLES)) {
        let pair = |line: &[u8]| {
            let at = line.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (line[..at].to_vec(), line[at + 1..].to_vec());
            // A file that happens to have this name is none of this test's.
            (name != b"CONSUMER_CONFIG_FILE").then(|| (OsString::from_vec(name), OsString::from_vec(value)))
        };
        let variables = lines.split(|byte| *byte == b'\n').filter_map(pair).collect();
        reads_back(load(variables))?;
    }

    #[test]
    fn bytes_that_name_a_stream_and_an_application_are_taken_or_refused(
        stream in spoiled_text(STREAMS),
        application in spoiled_text(STREAMS),
    ) {
        let is_name = |name: &str, least: usize, most: usize| {
            (least..=most).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        let taken = is_name(&application, 3, 255) && (stream.starts_with("arn:") || is_name(&stream, 1, 128));
        let built = build(&application, &stream, Config::default());
        prop_assert_eq!(built.is_ok(), taken, "{:?} on {:?}", application, stream);
        if let Err(why) = built {
            is_a_short_line(&why)?;
        }
    }

    #[test]
    fn bytes_of_a_health_files_status_are_written_back_or_refused(text in spoiled(STATUS)) {
        let path = file("status");
        let beside = path.with_extension("json");
        fs::write(&beside, text).expect("a writable temporary folder");
        let read = Status::read(&path);
        fs::remove_file(&beside).expect("removable");
        match read {
            Ok(status) => {
                let status = status.expect("the file is there");
                let written = serde_json::to_string(&status).expect("plain data");
                prop_assert_eq!(serde_json::from_str::<Status>(&written).expect("valid"), status);
            }
            Err(why) => prop_assert!(!why.to_string().is_empty()),
        }
    }
}

#[test]
fn a_variable_that_is_no_text_is_refused_and_one_of_others_is_let_be() {
    let given = |name: &str, value: &[u8]| (OsString::from(name), OsString::from_vec(value.to_vec()));
    let least = [given("CONSUMER_APPLICATION", b"a"), given("CONSUMER_STREAM", b"s")];
    let others = [&least[..], &[given("LS_COLORS", b"\xff")]].concat();
    assert!(load(others).is_ok());
    let ours = [&least[..], &[given("CONSUMER_WORKER_ID", b"pod-\xff")]].concat();
    let problems = load(ours).expect_err("no text");
    assert!(problems.len() == 1 && problems[0].starts_with("CONSUMER_WORKER_ID: "), "{problems:?}");
}

/// The names of the properties below a folder.
fn targets(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of the crate") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            targets(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("readable");
            let names = text.lines().filter_map(|line| line.trim().strip_prefix("fn bytes_"));
            let file =
                path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("in the crate").display().to_string();
            let named = names
                .map(|name| (file.clone(), format!("bytes_{}", name.split('(').next().unwrap_or_default())));
            found.extend(named);
        }
    }
}

#[test]
fn whatever_is_fed_with_bytes_is_listed() {
    let listed = include_str!("../CONTRIBUTING.md");
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        targets(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    }
    for (file, name) in &found {
        let is_listed =
            |line: &str| line.contains(&format!("`{name}`")) && line.contains(&format!("`{file}`"));
        assert!(listed.lines().any(is_listed), "CONTRIBUTING.md does not list {name} of {file}");
    }
    assert_eq!(listed.matches("| `bytes_").count(), found.len(), "CONTRIBUTING.md lists what is not there");
}
