//! Bytes that were valid once: what the tests whose names begin with `bytes_` feed to all that parses what others
//! wrote. CONTRIBUTING lists them.

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

/// What is put in where it does not belong: the ends of numbers, quotes, line ends, halves of characters.
const PIECES: [&[u8]; 22] = [
    b"-",
    b"+",
    b"0",
    b".",
    b"e999",
    b"NaN",
    b"9223372036854775808",
    b"18446744073709551616",
    b"340282366920938463463374607431768211456",
    b"99999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{}",
    b"[[[[",
    b"null",
    b"\n",
    b"\0",
    "١".as_bytes(),
    "é".as_bytes(),
    b"\xc3",
    b"\xff\xfe",
];

#[derive(Clone, Debug)]
enum Edit {
    /// Turns one bit over.
    Flip(Index, u8),
    Write(Index, u8),
    Cut(Index, Index),
    Insert(Index, Vec<u8>),
    /// Puts a part in once more, elsewhere.
    Repeat(Index, Index, Index),
}

impl Edit {
    fn apply(self, bytes: &mut Vec<u8>) {
        let part = |a: Index, b: Index, len: usize| {
            let (a, b) = (a.index(len + 1), b.index(len + 1));
            a.min(b)..a.max(b)
        };
        match self {
            Self::Flip(..) | Self::Write(..) if bytes.is_empty() => {}
            Self::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << (bit % 8);
            }
            Self::Write(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Self::Cut(from, to) => drop(bytes.drain(part(from, to, bytes.len()))),
            Self::Insert(at, piece) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, piece);
            }
            Self::Repeat(from, to, at) => {
                let again = bytes[part(from, to, bytes.len())].to_vec();
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, again);
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Write(at, byte)),
        1 => (at(), at()).prop_map(|(from, to)| Edit::Cut(from, to)),
        2 => (at(), select(&PIECES[..])).prop_map(|(at, piece)| Edit::Insert(at, piece.to_vec())),
        1 => (at(), vec(any::<u8>(), 1..5)).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        1 => (at(), at(), at()).prop_map(|(from, to, at)| Edit::Repeat(from, to, at)),
    ]
}

/// Mostly one of `samples` with a few edits, so that most come near to what is valid; some as they are, and now and
/// then any bytes at all.
pub(crate) fn spoiled<S: Into<Vec<u8>>>(
    samples: impl IntoIterator<Item = S>,
) -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<Vec<u8>> = samples.into_iter().map(Into::into).collect();
    let edited = (select(samples), vec(edit(), 0..5)).prop_map(|(mut bytes, edits)| {
        edits.into_iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    });
    prop_oneof![9 => edited, 1 => vec(any::<u8>(), 0..200)]
}

/// The same for what is text by the time it is parsed.
pub(crate) fn spoiled_text<S: Into<Vec<u8>>>(
    samples: impl IntoIterator<Item = S>,
) -> impl Strategy<Value = String> {
    spoiled(samples).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Fails unless a refusal says something, on one line, that does not grow with what was refused.
pub(crate) fn is_a_short_line(refusal: &str) -> Result<(), TestCaseError> {
    prop_assert!(!refusal.is_empty(), "nothing is said");
    prop_assert!(!refusal.contains(char::is_control), "more than a line, or none: {refusal:?}");
    prop_assert!(refusal.chars().count() < 3000, "it is as long as what was refused: {refusal}");
    Ok(())
}
