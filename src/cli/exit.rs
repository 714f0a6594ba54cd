//! How a command ends: the exit codes, and what is said on standard error.

use std::{error::Error, process::ExitCode};

use crate::io::{LeaseError, SourceError};

/// The exit codes of the tool. Scripts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Refused = 3,
    NotFound = 4,
    Partial = 5,
    Behind = 6,
}

impl Exit {
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Why a command did not do all that it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct Trouble {
    exit: Exit,
    what: String,
}

impl Trouble {
    pub(super) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into() }
    }

    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    pub(super) fn refused(what: impl Into<String>) -> Self {
        Self::new(Exit::Refused, what)
    }

    pub(super) fn not_found(what: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, what)
    }

    /// An error with all its causes: what AWS or the network said stands last.
    pub(super) fn failed(what: &str, error: &(dyn Error + 'static)) -> Self {
        Self::new(Exit::Failed, format!("cannot {what}: {}", chain(error)))
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

impl From<LeaseError> for Trouble {
    fn from(error: LeaseError) -> Self {
        let exit = match error {
            LeaseError::NoTable { .. } => Exit::NotFound,
            LeaseError::WrongTable { .. } => Exit::Refused,
            LeaseError::Conflict(_) => Exit::Partial,
            _ => Exit::Failed,
        };
        Self::new(exit, chain(&error))
    }
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Self {
        let exit = match error {
            SourceError::NoStream { .. } | SourceError::NoShard(_) => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new(exit, chain(&error))
    }
}
