//! What a plain record processor grows into: ordering, and later retries, dead letters, flow control.

pub(crate) mod each;
