//! Trace contexts: which span of a producer a record came from.
//!
//! Kinesis records have no headers, so producers put the context into the payload. Only reads; a payload that
//! carries none, or is no JSON, is an ordinary one. Formats: W3C Trace Context, and the carrier of Datadog's
//! tracers.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The span of a producer that a record came from, as W3C Trace Context writes it.
///
/// ```
/// use kinesis_consumer::TraceContext;
///
/// let payload = br#"{"cart":7,"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
/// let context = TraceContext::from_json(payload).unwrap();
/// assert_eq!(context.trace_id(), 0x4bf92f3577b34da6a3ce929d0e0e4736);
/// assert!(context.is_sampled());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: Option<Box<str>>,
}

impl TraceContext {
    /// Reads the two headers of W3C Trace Context; none if `traceparent` is not valid.
    pub fn from_w3c(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let fields: Vec<&str> = traceparent.splitn(5, '-').collect();
        let [version, trace_id, span_id, flags, ref rest @ ..] = fields[..] else { return None };
        // Later versions may append fields; version 0 has none.
        let known = version == "00" && rest.is_empty();
        let later = version != "00" && version != "ff";
        if !(known || later) {
            return None;
        }
        hex(version, 2)?;
        Self {
            trace_id: hex(trace_id, 32)?,
            span_id: u64::try_from(hex(span_id, 16)?).ok()?,
            flags: u8::try_from(hex(flags, 2)?).ok()?,
            state: tracestate.filter(|state| !state.is_empty()).map(Into::into),
        }
        .valid()
    }

    /// Reads the context at the top level of a JSON object: `traceparent` and `tracestate`, else the carrier
    /// `_datadog`. None if the payload is anything else, or the context is not valid.
    pub fn from_json(payload: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Payload {
            traceparent: Option<Value>,
            tracestate: Option<Value>,
            _datadog: Option<Value>,
        }
        // Anything but an object is turned down by its first byte.
        if payload.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return None;
        }
        let payload: Payload = serde_json::from_slice(payload).ok()?;
        let w3c = |parent: Option<&Value>, state: Option<&Value>| {
            Self::from_w3c(parent?.as_str()?, state.and_then(Value::as_str))
        };
        w3c(payload.traceparent.as_ref(), payload.tracestate.as_ref()).or_else(|| {
            let carrier = payload._datadog.as_ref()?.as_object()?;
            w3c(carrier.get("traceparent"), carrier.get("tracestate")).or_else(|| Self::from_datadog(carrier))
        })
    }

    /// Decimal ids of 64 bits; the upper half of the trace id, if there is one, among the tags.
    fn from_datadog(carrier: &Map<String, Value>) -> Option<Self> {
        let text = |key: &str| match carrier.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let upper = text("x-datadog-tags")
            .and_then(|tags| {
                let id = tags.split(',').find_map(|tag| tag.trim().strip_prefix("_dd.p.tid="))?.to_owned();
                hex(&id, 16)
            })
            .unwrap_or(0);
        let lower: u64 = text("x-datadog-trace-id")?.parse().ok()?;
        let priority: i64 =
            text("x-datadog-sampling-priority").and_then(|text| text.parse().ok()).unwrap_or(1);
        Self {
            trace_id: (upper << 64) + u128::from(lower),
            span_id: text("x-datadog-parent-id")?.parse().ok()?,
            flags: u8::from(priority > 0),
            state: None,
        }
        .valid()
    }

    fn valid(self) -> Option<Self> {
        (self.trace_id != 0 && self.span_id != 0).then_some(self)
    }

    /// The trace.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The producer's span in it.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// The flags of W3C Trace Context.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the producer recorded its span.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// What vendors added: the header `tracestate`.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The header `traceparent`.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.traceparent())
    }
}

/// Exactly that many digits, lower case, as the standard asks for.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let whole = text.len() == digits && text.bytes().all(is_digit);
    whole.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn told(payload: &str) -> Option<String> {
        TraceContext::from_json(payload.as_bytes()).map(|context| context.traceparent())
    }

    #[test]
    fn a_traceparent_is_read_and_written_back() {
        let context = TraceContext::from_w3c(PARENT, Some("vendor=1")).expect("valid");
        assert_eq!(context.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span_id(), context.is_sampled()), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!((context.traceparent(), format!("{context:?}")), (PARENT.to_owned(), PARENT.to_owned()));
        assert_eq!(context.tracestate(), Some("vendor=1"));
        assert_eq!(TraceContext::from_w3c(PARENT, Some("")).expect("valid").tracestate(), None);
        let random = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03";
        let context = TraceContext::from_w3c(random, None).expect("valid");
        assert_eq!((context.flags(), context.is_sampled()), (3, true));
    }

    #[test]
    fn what_the_standard_forbids_is_no_context() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::from_w3c(wrong, None), None, "{wrong}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        assert!(!TraceContext::from_w3c(later, None).expect("later versions may append").is_sampled());
    }

    #[test]
    fn a_json_object_carries_it_at_its_top_level_only() {
        assert_eq!(told(&format!(r#" {{"a":[1,{{}}],"traceparent":"{PARENT}"}}"#)).as_deref(), Some(PARENT));
        for none in [
            format!(r#"{{"inner":{{"traceparent":"{PARENT}"}}}}"#),
            format!(r#"[{{"traceparent":"{PARENT}"}}]"#),
            format!(r#"{{"traceparent":"{PARENT}""#),
            r#"{"traceparent":7}"#.to_owned(),
            r#"{"_datadog":7}"#.to_owned(),
            "plain".to_owned(),
            String::new(),
        ] {
            assert_eq!(told(&none), None, "{none}");
        }
    }

    #[test]
    fn datadogs_carrier_is_read_in_either_form() {
        let ids = r#"{"_datadog":{"x-datadog-trace-id":"11803532876627986230","x-datadog-parent-id":"67667974448284343",
            "x-datadog-sampling-priority":"1","x-datadog-tags":"_dd.p.dm=-1,_dd.p.tid=4bf92f3577b34da6"}}"#;
        assert_eq!(told(ids).as_deref(), Some(PARENT));
        let dropped = r#"{"_datadog":{"x-datadog-trace-id":7,"x-datadog-parent-id":9,"x-datadog-sampling-priority":-1}}"#;
        let expected = "00-00000000000000000000000000000007-0000000000000009-00";
        assert_eq!(told(dropped).as_deref(), Some(expected));
        let unsampled = dropped.replace("-1", "0");
        assert_eq!(told(&unsampled).as_deref(), Some(expected), "0 is the tracer's wish to drop it");
        let inside = format!(r#"{{"_datadog":{{"traceparent":"{PARENT}","x-datadog-trace-id":"7"}}}}"#);
        assert_eq!(told(&inside).as_deref(), Some(PARENT));
        let both = format!(
            r#"{{"traceparent":"{PARENT}","_datadog":{{"x-datadog-trace-id":"7","x-datadog-parent-id":"9"}}}}"#
        );
        assert_eq!(told(&both).as_deref(), Some(PARENT));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_back(id: u128, span: u64, flags: u8, noise in ".*") {
            let text = format!("00-{id:032x}-{span:016x}-{flags:02x}");
            let read = TraceContext::from_w3c(&text, None).map(|context| context.traceparent());
            prop_assert_eq!(read, (id != 0 && span != 0).then_some(text));
            let _ = TraceContext::from_w3c(&noise, Some(&noise));
            let _ = TraceContext::from_json(noise.as_bytes());
        }
    }
}
