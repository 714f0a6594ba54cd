//! What several test files share. Each uses its part of it.
#![allow(dead_code, reason = "every test file compiles this module for itself and uses a part")]

pub(crate) mod dynamodb;
pub(crate) mod servers;
