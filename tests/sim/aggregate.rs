//! Records as the Kinesis Producer Library packs them: several of one key in one.

use bytes::Bytes;
use md5::{Digest, Md5};

fn field(into: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    into.push(tag);
    let mut length = bytes.len();
    while length >= 0x80 {
        into.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    into.push(length as u8);
    into.extend(bytes);
}

/// One record that holds `payloads`, all with the key `key`.
pub(crate) fn aggregate(key: &str, payloads: &[Bytes]) -> Bytes {
    let mut message = Vec::new();
    field(&mut message, 0x0A, key.as_bytes());
    for payload in payloads {
        // The first key of the table, and the data.
        let mut record = vec![0x08, 0];
        field(&mut record, 0x1A, payload);
        field(&mut message, 0x1A, &record);
    }
    [&[0xF3, 0x89, 0x9A, 0xC2][..], &message, &Md5::digest(&message)].concat().into()
}
