//! CloudWatch: takes the metrics in and keeps them for the test to look at.
//!
//! The SDK speaks rpc-v2-cbor: `POST /service/…/operation/PutMetricData`, a CBOR body, and a header that
//! the answer must repeat.

use std::sync::{Mutex, PoisonError};

use flate2::read::GzDecoder;
use serde_json::Value;

use super::http::Answer;

/// The path of an operation, up to its name.
pub(super) const PATH: &str = "/service/GraniteServiceVersion20100801/operation/";

#[derive(Debug, Default)]
pub(super) struct Sink {
    bodies: Mutex<Vec<Value>>,
}

impl Sink {
    pub(super) fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn call(&self, operation: &str, body: &[u8], packed: bool) -> Answer {
        if operation != "PutMetricData" {
            return error(400, "UnknownOperationException");
        }
        let read = match packed {
            true => ciborium::from_reader::<ciborium::Value, _>(GzDecoder::new(body)),
            false => ciborium::from_reader(body),
        };
        let Ok(cbor) = read else {
            return error(400, "SerializationException");
        };
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).push(json(cbor));
        answer(200, &ciborium::Value::Map(Vec::new()))
    }
}

/// The refusal of a call.
pub(super) fn error(status: u16, code: &str) -> Answer {
    answer(status, &ciborium::Value::Map(vec![("__type".into(), code.into())]))
}

fn answer(status: u16, body: &ciborium::Value) -> Answer {
    let mut bytes = Vec::new();
    ciborium::into_writer(body, &mut bytes).expect("writing to memory");
    let headers =
        vec![("content-type", "application/cbor".into()), ("smithy-protocol", "rpc-v2-cbor".into())];
    Answer { status, headers, body: bytes.into() }
}

/// The same value in JSON; a timestamp becomes its number, bytes become a list.
fn json(cbor: ciborium::Value) -> Value {
    use ciborium::Value as Cbor;
    match cbor {
        Cbor::Bool(bool) => bool.into(),
        Cbor::Integer(integer) => i64::try_from(integer).map_or(Value::Null, Value::from),
        Cbor::Float(float) => float.into(),
        Cbor::Text(text) => text.into(),
        Cbor::Bytes(bytes) => bytes.into(),
        Cbor::Tag(_, value) => json(*value),
        Cbor::Array(values) => values.into_iter().map(json).collect(),
        Cbor::Map(entries) => entries
            .into_iter()
            .filter_map(|(key, value)| Some((key.into_text().ok()?, json(value))))
            .collect(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_the_form_of_the_sdk_is_kept_as_json() {
        // A map without a length, and in it a time with its tag.
        let body = [&b"\xbf\x69Timestamp\xc1\xfb"[..], &1.5_f64.to_be_bytes(), b"\x64Unit\x65Count\xff"];
        let sink = Sink::default();
        assert_eq!(sink.call("PutMetricData", &body.concat(), false).status, 200);
        assert_eq!(sink.bodies(), [serde_json::json!({ "Timestamp": 1.5, "Unit": "Count" })]);
    }

    #[test]
    fn what_is_not_cbor_is_refused() {
        assert_eq!(Sink::default().call("PutMetricData", b"\xff", false).status, 400);
        assert_eq!(Sink::default().call("PutMetricData", b"\xa0", true).status, 400);
        assert_eq!(Sink::default().call("ListMetrics", b"\xa0", false).status, 400);
    }
}
