//! Whatever the rules parse of what others wrote, fed with bytes: valid ones that were spoiled, and any.

use bytes::Bytes;
use md5::{Digest, Md5};
use proptest::prelude::*;
use prost::Message;

use crate::{
    core::{
        aggregation::{expand, hash_key},
        audit::{belongs_elsewhere, is_foreign},
        heartbeat::Incarnation,
        lease::{Checkpoint, Claimant, Lease, WorkerId},
        record::Record,
        shard::{HashKeyRange, Position, SequenceNumber},
        trace_context::TraceContext,
    },
    spoiled::{is_a_short_line, spoiled, spoiled_text},
};

const NUMBERS: [&str; 9] = [
    "0",
    "7",
    "007",
    "49587497311274533994574834252742144236107130636007899138",
    "74107425965128755728308386687147091174006956590945533954",
    "495874973112745339945748342527421442361071306360078991381",
    "340282366920938463463374607431768211456",
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001",
    "999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
];

const CHECKPOINTS: [&str; 6] = [
    "AT_TIMESTAMP",
    "TRIM_HORIZON",
    "LATEST",
    "SHARD_END",
    "49587497311274533994574834252742144236107130636007899138",
    "0",
];

const CLAIMANTS: [&str; 6] = [
    "pod-7#000000000000beef.12",
    "a#b#ffffffffffffffff.18446744073709551615",
    "#0000000000000000.0",
    "ip-10-0-0-1:5c7e",
    "a#000000000000beef.+1",
    "",
];

const WORKER_ROWS: [&str; 5] = [
    "worker/000000000000beef.1/pod-7",
    "worker/ffffffffffffffff.18446744073709551615/a/b",
    "worker/0000000000000000.0/worker/0000000000000001.2/c",
    "worker/beef.1/x",
    "shardId-000000000000",
];

const STREAMS: [&str; 5] = [
    "arn:aws:kinesis:eu-west-1:123456789012:stream/orders:1700000000",
    "arn:aws-us-gov:kinesis:us-gov-west-1:123456789012:stream/a_b.c-d:0",
    "123456789012:orders:1700000000",
    "orders",
    "::",
];

const LEASE_KEYS: [&str; 4] =
    ["shardId-000000000007", "123456789012:orders:1:shardId-000000000000", "worker/000000000000beef.1/a", ""];

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn payloads() -> Vec<String> {
    vec![
        format!(r#"{{"cart":7,"traceparent":"{PARENT}","tracestate":"vendor=1,other=2"}}"#),
        format!(r#" {{"traceparent":"{PARENT}","a":[{{"b":[1,2.5e3,null,"\u00e9\ud83d\ude00"]}}]}}"#),
        format!(r#"{{"_datadog":{{"traceparent":"{PARENT}","x-datadog-trace-id":"7"}}}}"#),
        r#"{"_datadog":{"x-datadog-trace-id":"11803532876627986230","x-datadog-parent-id":"67667974448284343",
            "x-datadog-sampling-priority":"-1","x-datadog-tags":"_dd.p.dm=-1,_dd.p.tid=4bf92f3577b34da6"}}"#
            .into(),
        r#"{"_datadog":{"x-datadog-trace-id":18446744073709551615,"x-datadog-parent-id":1}}"#.into(),
        "[".repeat(300),
        r#"{"a":"#.repeat(300),
    ]
}

// What the producer library writes, in messages of our own: `aggregation` shows only what it reads.

#[derive(Clone, PartialEq, Message)]
struct Written {
    #[prost(string, repeated, tag = "1")]
    keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    parts: Vec<WrittenPart>,
}

#[derive(Clone, PartialEq, Message)]
struct WrittenPart {
    #[prost(uint64, optional, tag = "1")]
    key: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    data: Option<Bytes>,
}

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];

fn sealed(message: &[u8]) -> Vec<u8> {
    [&MAGIC[..], message, &Md5::digest(message)[..]].concat()
}

/// The records of `aggregates.txt`.
fn aggregates() -> Vec<Vec<u8>> {
    let (mut records, hex) = (Vec::new(), |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("hex")
    });
    let lines = include_str!("testdata/aggregates.txt").lines().take_while(|line| *line != "expand");
    for line in lines.filter(|line| !line.starts_with('#')) {
        if line.starts_with("record ") {
            records.push(Vec::new());
        } else if let Some(record) = records.last_mut() {
            record.extend(line.trim().as_bytes().chunks(2).map(hex));
        }
    }
    records
}

fn messages() -> Vec<Vec<u8>> {
    let inside = |record: Vec<u8>| Some(record.get(4..record.len().checked_sub(16)?)?.to_vec());
    aggregates().into_iter().filter_map(inside).collect()
}

fn record(data: Vec<u8>) -> Record {
    let at = Position::at("7".parse().expect("digits"));
    Record::new("shardId-0".into(), at, "outer", std::time::SystemTime::UNIX_EPOCH, data)
}

/// What is read of a record of these bytes is theirs; whatever is read is read again when it is written anew.
fn reads(data: &[u8], range: Option<HashKeyRange>) -> Result<(), TestCaseError> {
    let page = record(data.to_vec());
    let expanded = expand(vec![page.clone()], range);
    let is_sealed = data.len() > 20
        && data.starts_with(&MAGIC)
        && Md5::digest(&data[4..data.len() - 16])[..] == data[data.len() - 16..];
    let count = expanded.records.len() + expanded.dropped + expanded.broken;
    if !is_sealed {
        prop_assert_eq!(count, 1);
        prop_assert_eq!(expanded.records[0].data(), page.data());
        return Ok(());
    }
    // Each user record has its tag, its length, and at least the tag and the length of each of two fields.
    prop_assert!(count <= (data.len() / 6).max(1), "{} of {} bytes", count, data.len());
    let held = page.data().as_ptr_range();
    for part in &expanded.records {
        let part = part.data().as_ptr_range();
        prop_assert!(part.is_empty() || (held.start <= part.start && part.end <= held.end), "copied");
    }
    if expanded.records.iter().any(|part| part.partition_key() == "outer") {
        return Ok(());
    }
    if let Some(range) = range.filter(|_| expanded.dropped > 0) {
        prop_assert!(range != HashKeyRange::ALL && expanded.records.is_empty());
    }
    let keys = expanded.records.iter().map(|part| part.partition_key().to_owned()).collect();
    let parts = (0..).zip(&expanded.records);
    let parts = parts.map(|(n, part)| WrittenPart { key: Some(n), data: Some(part.data().clone()) });
    let anew = sealed(&Written { keys, parts: parts.collect() }.encode_to_vec());
    if !expanded.records.is_empty() {
        let again = expand(vec![record(anew)], None);
        let shown = |records: &[Record]| -> Vec<(String, Bytes)> {
            records.iter().map(|part| (part.partition_key().to_owned(), part.data().clone())).collect()
        };
        prop_assert_eq!(shown(&again.records), shown(&expanded.records));
    }
    Ok(())
}

proptest! {
    #[test]
    fn bytes_of_a_sequence_number_are_that_number_or_refused(text in spoiled_text(NUMBERS)) {
        let is_number = (1..=129).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<SequenceNumber>() {
            Ok(number) => {
                prop_assert!(is_number);
                prop_assert_eq!(number.as_str().trim_start_matches('0'), text.trim_start_matches('0'));
                prop_assert_eq!(number.as_str().parse(), Ok(number.clone()));
                prop_assert_eq!(SequenceNumber::try_from(text), Ok(number));
            }
            Err(why) => {
                prop_assert!(!is_number);
                is_a_short_line(&why.to_string())?;
            }
        }
    }

    #[test]
    fn bytes_of_a_checkpoint_are_that_checkpoint_or_refused(text in spoiled_text(CHECKPOINTS), sub: u64) {
        match Checkpoint::parse(&text, sub) {
            Ok(read) => {
                prop_assert_eq!(&Checkpoint::parse(read.text(), read.sub()), &Ok(read.clone()));
                let began = Checkpoint::Latest;
                prop_assert!(read <= began || read == Checkpoint::ShardEnd || read.position().is_some());
                prop_assert!(read.position().is_none() || (began < read && read < Checkpoint::ShardEnd));
            }
            Err(why) => {
                prop_assert!(!CHECKPOINTS.contains(&&*text));
                is_a_short_line(&why.to_string())?;
            }
        }
    }

    #[test]
    fn bytes_of_a_claimant_are_kept_as_they_are(text in spoiled_text(CLAIMANTS)) {
        let claimant = Claimant::from(&*text);
        prop_assert_eq!(&claimant.to_string(), &text);
        prop_assert_eq!(&Claimant::from(&*claimant.to_string()), &claimant);
        match claimant.process() {
            Some(process) => {
                let begin = format!("{}#{process:016x}.", claimant.worker());
                prop_assert!(text.starts_with(&begin), "{} of {}", begin, text);
            }
            None => prop_assert_eq!(claimant.worker().as_str(), text),
        }
    }

    #[test]
    fn bytes_of_the_key_of_a_workers_row_name_it_or_none(text in spoiled_text(WORKER_ROWS)) {
        let Some(row) = Incarnation::parse(&text) else {
            let named = text.strip_prefix("worker/").and_then(|rest| rest.split_once('/'));
            prop_assert!(named.is_none_or(|(_, worker)| worker.is_empty()), "{}", text);
            return Ok(());
        };
        prop_assert_eq!(row.as_str(), &text);
        prop_assert_eq!(Incarnation::parse(row.as_str()), Some(row.clone()));
        prop_assert!(!row.worker().is_empty() && text.ends_with(row.worker()));
        let worker = WorkerId::from(row.worker());
        prop_assert!(row.is_of(&worker));
        if let Some(process) = row.process() {
            let number = text.split_once('.').and_then(|(_, rest)| rest.split_once('/')).map(|(number, _)| number);
            let made = number.and_then(|number| number.parse().ok()).map(|n| Incarnation::new(&worker, process, n));
            prop_assert_eq!(made, Some(row), "the process of a key that is not written so");
        }
    }

    #[test]
    fn bytes_that_name_streams_and_leases_are_ours_or_anothers(
        stream in prop::option::of(spoiled_text(STREAMS)),
        identity in spoiled_text(STREAMS),
        key in spoiled_text(LEASE_KEYS),
    ) {
        let row = Lease { stream: stream.as_deref().map(Into::into), ..Lease::new(&key.as_str().into(), Checkpoint::Latest) };
        let foreign = stream.as_ref().is_some_and(|stream| *stream != identity) || key.contains(':');
        prop_assert_eq!(is_foreign(&row, &identity), foreign);
        let why = belongs_elsewhere(&[row], &[], &identity);
        prop_assert_eq!(why.is_some(), foreign);
        prop_assert!(why.is_none_or(|why| why.contains(&key) && why.contains("Use another") || why.contains("use another")));
    }

    #[test]
    fn bytes_of_a_payload_carry_a_trace_context_that_is_written_back_or_none(payload in spoiled(payloads())) {
        if let Some(context) = TraceContext::from_json(&payload) {
            prop_assert!(context.trace_id() != 0 && context.span_id() != 0);
            let again = TraceContext::from_w3c(&context.traceparent(), context.tracestate());
            prop_assert_eq!(again.as_ref(), Some(&context));
            let json = serde_json::json!({ "traceparent": context.traceparent(), "tracestate": context.tracestate() });
            prop_assert_eq!(TraceContext::from_json(json.to_string().as_bytes()), Some(context));
        }
    }

    #[test]
    fn bytes_of_a_traceparent_are_written_back_or_no_context(parent in spoiled_text([PARENT, &format!("01{}-more", &PARENT[2..])])) {
        if let Some(context) = TraceContext::from_w3c(&parent, None) {
            let written = context.traceparent();
            prop_assert_eq!(TraceContext::from_w3c(&written, None), Some(context));
            // A later version is written as the first one, and without what it appended.
            prop_assert!(parent.len() >= written.len() && parent.is_char_boundary(written.len()));
            prop_assert_eq!(&written[2..], &parent[2..written.len()]);
        }
    }

    #[test]
    fn bytes_of_a_record_are_its_user_records_or_itself(
        data in spoiled(aggregates()),
        range in prop::option::of(any::<[u128; 2]>().prop_map(|[a, b]| HashKeyRange { start: a.min(b), end: a.max(b) })),
    ) {
        reads(&data, range)?;
    }

    #[test]
    fn bytes_under_a_right_checksum_are_user_records_or_one(
        message in spoiled(messages()),
        start in prop_oneof![Just(0), Just(hash_key(b"pk"))],
    ) {
        reads(&sealed(&message), Some(HashKeyRange { start, end: HashKeyRange::ALL.end }))?;
    }
}
