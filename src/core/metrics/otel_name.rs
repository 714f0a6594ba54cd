//! The names of metrics in OpenTelemetry: those of the KCL 3.5 (`OtelMetricNameTransformer`), so that one
//! dashboard serves both.

/// Names that do not follow the rule.
const SPECIAL: [(&str, &str); 3] = [
    ("MillisBehindLatest", "consumer.lag.duration"),
    ("DataBytesProcessed", "records.size"),
    ("NumWorkers", "workers"),
];

/// The OpenTelemetry name of a metric that CloudWatch knows as `name`.
///
/// `.Time` becomes `.duration`, and every word of each part is set off with `_`, in lower case.
pub(crate) fn otel_name(name: &str) -> String {
    let special = SPECIAL.iter().find(|(cloudwatch, _)| *cloudwatch == name);
    let own = special.map_or_else(|| by_rule(name), |(_, otel)| (*otel).to_owned());
    format!("aws.kinesis.client.{own}")
}

fn by_rule(name: &str) -> String {
    let name = match name.strip_suffix(".Time") {
        Some(rest) => format!("{rest}.duration"),
        None => name.replace(':', "."),
    };
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (at, &char) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| chars[at]);
        let after = chars.get(at + 1);
        let begins_word = char.is_uppercase()
            && before.is_some_and(|before| {
                before.is_lowercase()
                    || (before.is_uppercase() && after.is_some_and(|after| after.is_lowercase()))
            });
        if begins_word {
            out.push('_');
        }
        out.extend(char.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_kcl() {
        for (cloudwatch, otel) in [
            ("NeededLeases", "needed_leases"),
            ("MillisBehindLatest", "consumer.lag.duration"),
            ("DataBytesProcessed", "records.size"),
            ("NumWorkers", "workers"),
            ("RecordProcessor.processRecords.Time", "record_processor.process_records.duration"),
            ("KinesisDataFetcher.getRecords.Success", "kinesis_data_fetcher.get_records.success"),
            ("GetLease:Error", "get_lease.error"),
            ("ABCWorker", "abc_worker"),
            ("Time", "time"),
        ] {
            assert_eq!(otel_name(cloudwatch), format!("aws.kinesis.client.{otel}"));
        }
    }
}
