//! Database errors as store errors. Their own words go to the log; a caller never sees them.

use crate::store::error::{ErrorKind, StoreError};

const NO_PRIMARY: &str = "no server that answers is the primary";

/// Why a server that answers is not used. Told as an error of the driver's, as which it passes through its pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{NO_PRIMARY}")]
pub(super) struct NoPrimary;

impl From<NoPrimary> for sqlx::Error {
    fn from(error: NoPrimary) -> Self {
        Self::Configuration(Box::new(error))
    }
}

/// Turns a database error into a store error of `operation`.
pub(super) fn failed(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| {
        let (kind, context) = classify(&error);
        StoreError::new(kind, "postgres", operation, context).with_source(error)
    }
}

fn classify(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    match error {
        sqlx::Error::PoolTimedOut => {
            (ErrorKind::Unavailable, "no connection in time: all are in use, or none can be opened")
        }
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "shutting down"),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => (ErrorKind::Unavailable, "the server cannot be reached"),
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("23505" | "40001" | "40P01") => (ErrorKind::Conflict, "a concurrent change"),
            Some("57014" | "25P03") => (ErrorKind::Timeout, "the statement took too long"),
            Some(code) if code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") => {
                (ErrorKind::Unavailable, "the server refuses work")
            }
            Some("28000" | "28P01" | "3D000") => (ErrorKind::Unavailable, "the server lets nobody in"),
            Some("25006") => (ErrorKind::Unavailable, "the server only reads; it is no primary"),
            Some("55P03") => (ErrorKind::Unavailable, "a lock is held"),
            Some("42501") => (ErrorKind::Foreign, "row-level security refused the row"),
            _ => (ErrorKind::Internal, "the statement failed"),
        },
        sqlx::Error::Configuration(error) if error.is::<NoPrimary>() => (ErrorKind::Unavailable, NO_PRIMARY),
        _ => (ErrorKind::Internal, "the call failed"),
    }
}
