//! What the errors of all AWS services have in common: which of them are about credentials, and how to
//! keep their cause without the raw exchange.

use std::error::Error;

use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};

use crate::io::BoxError;

/// The error codes that say: not with these credentials.
const DENIED: [&str; 15] = [
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "KMSAccessDeniedException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// Whether the credentials are missing, unknown, or may not do this.
pub(super) fn is_denied<E>(error: &SdkError<E>) -> bool
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(_) => error.code().is_some_and(|code| DENIED.contains(&code)),
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => is_about_credentials(error),
        _ => false,
    }
}

/// Whether a call failed before it was sent, for want of credentials.
///
/// The SDK has no kind of error for it, so its words decide. A provider that timed out may answer the next
/// time; that is as if the service had.
fn is_about_credentials(error: &(dyn Error + 'static)) -> bool {
    let (mut next, mut found) = (Some(error), false);
    while let Some(cause) = next {
        let words = cause.to_string();
        if words.contains("timed out") {
            return false;
        }
        found |= words.contains("credential") || words.contains("identity");
        next = cause.source();
    }
    found
}

/// The cause without the raw exchange, which may hold what a log must not show.
pub(super) fn cause<E>(error: SdkError<E>) -> BoxError
where
    E: Error + Send + Sync + 'static,
{
    error.into_source().unwrap_or_else(|error| Box::new(error))
}
