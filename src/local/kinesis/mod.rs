//! The wire face of Kinesis: awsJson1.1 over the streams in memory.
//!
//! Every operation that a consumer, a producer or an operator of a stream needs but SubscribeToShard and
//! the rest of enhanced fan-out. Error codes and messages are those of AWS where a client reads them.

mod listing;
mod ops;
mod shapes;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use self::shapes::Request;
use super::{LocalOptions, http::Answer};
use crate::io::memory::{
    MemoryStream,
    model::{Refusal, Settings},
};

/// All streams of the local account.
#[derive(Debug)]
pub(super) struct Kinesis {
    options: LocalOptions,
    /// Streams that were deleted stay, so that a handle on one sees it made again.
    streams: Mutex<BTreeMap<String, MemoryStream>>,
}

/// A refused call: the error code and the message. The status is always 400.
#[derive(Debug)]
struct Refused {
    code: &'static str,
    message: String,
}

impl Kinesis {
    pub(super) fn new(options: LocalOptions) -> Self {
        Self { options, streams: Mutex::default() }
    }

    /// Makes a stream; nothing if there is one with this name.
    pub(super) fn create(&self, name: &str, shards: usize) -> Option<MemoryStream> {
        let mut streams = self.streams();
        match streams.get(name) {
            Some(stream) if is_there(stream) => return None,
            Some(deleted) => deleted.recreate(shards),
            None => {
                let LocalOptions { limits, iterator_lifetime, end_with_last_page, .. } = self.options;
                let settings = Settings { limits, iterator_lifetime, end_with_last_page };
                streams.insert(name.to_owned(), MemoryStream::new(name, shards).with_settings(settings));
            }
        }
        streams.get(name).cloned()
    }

    pub(super) fn stream(&self, name: &str) -> Option<MemoryStream> {
        self.streams().get(name).filter(|stream| is_there(stream)).cloned()
    }

    pub(super) fn call(&self, operation: &str, body: &[u8]) -> Answer {
        let called = match serde_json::from_slice::<Request>(body) {
            Ok(request) => self.answer(operation, &request),
            Err(error) => Err(Refused { code: "SerializationException", message: error.to_string() }),
        };
        match called {
            Ok(body) => Answer { status: 200, headers: vec![content_type()], body: body.into() },
            Err(Refused { code, message }) => error(400, code, &message),
        }
    }

    fn names(&self) -> Vec<String> {
        let streams = self.streams();
        streams.iter().filter(|(_, stream)| is_there(stream)).map(|(name, _)| name.clone()).collect()
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<String, MemoryStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_there(stream: &MemoryStream) -> bool {
    stream.step(|model, _| model.is_there().is_ok())
}

fn content_type() -> (&'static str, String) {
    ("content-type", "application/x-amz-json-1.1".to_owned())
}

/// The refusal of a call.
pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = serde_json::json!({ "__type": code, "message": message });
    let headers = vec![content_type(), ("x-amzn-errortype", code.to_owned())];
    Answer { status, headers, body: body.to_string().into() }
}

fn json(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("answers have text keys")
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NoStream(_) | Refusal::NoShard { .. } => "ResourceNotFoundException",
            Refusal::Throttled { .. } => "ProvisionedThroughputExceededException",
            Refusal::Expired { .. } => "ExpiredIteratorException",
            Refusal::Invalid(_) => "InvalidArgumentException",
            Refusal::TooMuch(_) => "LimitExceededException",
        };
        Self { code, message: refusal.to_string() }
    }
}

fn invalid(message: impl Into<String>) -> Refused {
    Refusal::Invalid(message.into()).into()
}

/// What AWS says of a value that is missing, too long or out of range.
fn violates(member: &str, constraint: &str) -> Refused {
    let message = format!(
        "1 validation error detected: Value at '{member}' failed to satisfy constraint: {constraint}"
    );
    Refused { code: "ValidationException", message }
}
