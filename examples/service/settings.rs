//! What the service is told: a TOML file, as `consumer.toml` is one, and environment variables, which win over it.
//!
//! A setting `failover_time` of the file is `CONSUMER_FAILOVER_TIME` of the environment. The settings are those
//! of [`Config`], and five of the service itself. A name that is none is refused, so that a typing error cannot
//! turn into a default; a name of the Java KCL is refused with the one to use.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use kinesis_consumer::Config;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::kcl_names;

const PREFIX: &str = "CONSUMER_";
/// Names the file; no setting itself.
const FILE: &str = "CONSUMER_CONFIG_FILE";

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) service: Service,
    pub(crate) worker: Config,
}

/// The settings that are not the worker's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Service {
    /// The consumer group, and the name of the lease table if `lease_table_name` says no other. Required.
    pub(crate) application: String,
    /// The stream's name, or its ARN. Required.
    pub(crate) stream: String,
    /// How log lines look. Default: text.
    pub(crate) log_format: LogFormat,
    /// Where Prometheus finds `/metrics`, as in `0.0.0.0:9090`. Default: nowhere.
    pub(crate) metrics_address: Option<SocketAddr>,
    /// Whether to print each record to standard output, one JSON object a line. Default: no.
    pub(crate) print_records: bool,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Settings {
    /// The settings as one object, under the names that they are given by.
    pub(crate) fn to_json(&self) -> Value {
        let mut all = object(&self.service);
        all.append(&mut object(&self.worker));
        Value::Object(all)
    }
}

/// Reads the settings; on failure says all that is wrong with them.
pub(crate) fn load(variables: impl Iterator<Item = (String, String)>) -> Result<Settings, Vec<String>> {
    let variables: BTreeMap<_, _> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let mut problems = Vec::new();
    let mut given = match variables.get(FILE).map(|path| read(path)) {
        None => Map::new(),
        Some(Ok(given)) => given,
        Some(Err(problem)) => return Err(vec![problem]),
    };
    let (service, worker) = (object(&Service::default()), object(&Config::default()));
    for name in given.keys().filter(|name| !service.contains_key(*name) && !worker.contains_key(*name)) {
        problems.push(kcl_names::unknown(name, name));
    }
    for (variable, text) in variables.iter().filter(|(name, _)| *name != FILE) {
        let name = variable.strip_prefix(PREFIX).unwrap_or(variable).to_lowercase();
        let value = if service.contains_key(&name) {
            typed::<Service>(&name, text)
        } else if worker.contains_key(&name) {
            typed::<Config>(&name, text)
        } else {
            problems.push(kcl_names::unknown(variable, &name));
            continue;
        };
        match value {
            Ok(value) => _ = given.insert(name, value),
            Err(error) => problems.push(format!("{variable}: {error}")),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (service, worker) = given.into_iter().partition(|(name, _)| service.contains_key(name));
    let problem = |error: serde_json::Error| vec![error.to_string()];
    let service: Service = serde_json::from_value(Value::Object(service)).map_err(problem)?;
    let worker = serde_json::from_value(Value::Object(worker)).map_err(problem)?;
    for (name, value) in [("application", &service.application), ("stream", &service.stream)] {
        if value.is_empty() {
            let variable = format!("{PREFIX}{}", name.to_uppercase());
            problems.push(format!("{name} is missing; set {variable}, or {name} in the file of {FILE}"));
        }
    }
    if problems.is_empty() { Ok(Settings { service, worker }) } else { Err(problems) }
}

fn read(path: &str) -> Result<Map<String, Value>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{FILE}: {path}: {error}"))?;
    toml::from_str(&text).map_err(|error| format!("{path}: {error}"))
}

/// The value of a variable: its text, or what the text is as JSON, whichever the setting takes.
fn typed<T: DeserializeOwned>(name: &str, text: &str) -> Result<Value, serde_json::Error> {
    let takes = |value: &Value| {
        let alone = Map::from_iter([(name.to_owned(), value.clone())]);
        serde_json::from_value::<T>(Value::Object(alone)).map(|_| ())
    };
    let plain = Value::String(text.to_owned());
    let Err(error) = takes(&plain) else { return Ok(plain) };
    match serde_json::from_str(text) {
        Ok(value) => takes(&value).map(|()| value),
        Err(_) => Err(error),
    }
}

/// The fields of plain data. Defaults included, so that the keys are all the names that there are.
fn object(data: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(data) {
        Ok(Value::Object(fields)) => fields,
        other => panic!("settings are plain data with named fields: {other:?}"),
    }
}
