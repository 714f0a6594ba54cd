//! What the service is told: a TOML file, as `consumer.toml` is one, and environment variables, which win over it.
//!
//! A setting `failover_time` of the file is `CONSUMER_FAILOVER_TIME` of the environment. The settings are those
//! of [`Config`], and five of the service itself. A name that is none is refused, so that a typing error cannot
//! turn into a default; a name of the Java KCL is taken for ours, with a hint, where there is an equivalent.

use std::{collections::BTreeMap, ffi::OsString, fs, net::SocketAddr};

use kinesis_consumer::Config;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::kcl_names::{self, Taken};

const PREFIX: &str = "CONSUMER_";
/// Names the file; no setting itself.
const FILE: &str = "CONSUMER_CONFIG_FILE";

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) service: Service,
    pub(crate) worker: Config,
    /// What to say of settings that were given by the KCL's names.
    pub(crate) hints: Vec<String>,
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

/// Settings that were given by the KCL's names, by ours.
#[derive(Debug, Default)]
struct Theirs(BTreeMap<&'static str, (Taken, String)>);

impl Theirs {
    /// Takes what may be a name of the KCL; over the same name of the file, which was taken before.
    fn take(&mut self, given: &str, name: &str, value: &Value) -> Result<(), String> {
        let mut taken = kcl_names::take(given, name, value)?;
        let Taken { theirs, ours, .. } = taken;
        if let Some((other, before)) = self.0.get(ours)
            && other.theirs != theirs
        {
            return Err(format!("{given}: it is {ours} here, as {before} is; give one of them, as {ours}"));
        }
        let takes =
            if object(&Service::default()).contains_key(ours) { typed::<Service> } else { typed::<Config> };
        taken.value = takes(ours, &taken.value).map_err(|_| kcl_names::cannot(given, theirs, ours, value))?;
        self.0.insert(ours, (taken, given.to_owned()));
        Ok(())
    }

    /// Moves them under our names, and returns what to say of each; fails with those that were given by ours, too.
    fn settle(self, settings: &mut Map<String, Value>) -> Result<Vec<String>, Vec<String>> {
        let (mut hints, mut problems) = (Vec::new(), Vec::new());
        for (ours, (Taken { theirs, value, .. }, given)) in self.0 {
            if settings.contains_key(ours) {
                problems.push(format!(
                    "{given}: the Java KCL's {theirs} is {ours} here, which is given, too; remove one"
                ));
                continue;
            }
            hints.push(format!(
                "{given}: the Java KCL's {theirs} is {ours} here; it was taken as {ours} = {value}"
            ));
            settings.insert(ours.to_owned(), value);
        }
        if problems.is_empty() { Ok(hints) } else { Err(problems) }
    }
}

/// Reads the settings; on failure says all that is wrong with them.
pub(crate) fn load(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Settings, Vec<String>> {
    let mut problems = Vec::new();
    // Others' variables may be any bytes.
    let ours = variables.filter_map(|(name, value)| {
        let name = name.to_string_lossy().into_owned();
        name.starts_with(PREFIX).then_some((name, value))
    });
    let mut variables = BTreeMap::new();
    for (name, value) in ours {
        match value.into_string() {
            Ok(value) => _ = variables.insert(name, value),
            Err(_) => problems.push(format!("{name}: it is no text in UTF-8")),
        }
    }
    let mut given = match variables.get(FILE).map(|path| read(path)) {
        None => Map::new(),
        Some(Ok(given)) => given,
        Some(Err(problem)) => return Err(vec![problem]),
    };
    let (service, worker) = (object(&Service::default()), object(&Config::default()));
    let mut theirs = Theirs::default();
    for name in given.keys().cloned().collect::<Vec<_>>() {
        if !service.contains_key(&name) && !worker.contains_key(&name) {
            let value = given.remove(&name).unwrap_or_default();
            problems.extend(theirs.take(&name, &name, &value).err());
        }
    }
    for (variable, text) in variables.iter().filter(|(name, _)| *name != FILE) {
        let name = variable.strip_prefix(PREFIX).unwrap_or(variable).to_lowercase();
        let plain = Value::String(text.clone());
        let value = if service.contains_key(&name) {
            typed::<Service>(&name, &plain)
        } else if worker.contains_key(&name) {
            typed::<Config>(&name, &plain)
        } else {
            problems.extend(theirs.take(variable, &name, &plain).err());
            continue;
        };
        match value {
            Ok(value) => _ = given.insert(name, value),
            Err(error) => problems.push(format!("{variable}: {error}")),
        }
    }
    let hints = match theirs.settle(&mut given) {
        Ok(hints) => hints,
        Err(twice) => {
            problems.extend(twice);
            Vec::new()
        }
    };
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
    if problems.is_empty() { Ok(Settings { service, worker, hints }) } else { Err(problems) }
}

fn read(path: &str) -> Result<Map<String, Value>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{FILE}: {path}: {error}"))?;
    toml::from_str(&text).map_err(|error| format!("{path}: {error}"))
}

/// The value of a setting: as it is or, of a text, what it is as JSON, whichever the setting takes.
fn typed<T: DeserializeOwned>(name: &str, given: &Value) -> Result<Value, serde_json::Error> {
    let takes = |value: &Value| {
        let alone = Map::from_iter([(name.to_owned(), value.clone())]);
        serde_json::from_value::<T>(Value::Object(alone)).map(|_| ())
    };
    let Err(error) = takes(given) else { return Ok(given.clone()) };
    match given.as_str().map(serde_json::from_str) {
        Some(Ok(value)) => takes(&value).map(|()| value),
        _ => Err(error),
    }
}

/// The fields of plain data. Defaults included, so that the keys are all the names that there are.
fn object(data: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(data) {
        Ok(Value::Object(fields)) => fields,
        other => panic!("settings are plain data with named fields: {other:?}"),
    }
}
