//! What Qdrant's errors mean for whoever called.
//!
//! **Invariant:** the client's own words go nowhere: some of them repeat the credential that was sent.

use qdrant_client::QdrantError;

use crate::store::error::{ErrorKind, StoreError};

/// The name of this back end.
pub(super) const BACKEND: &str = "qdrant";

/// Status codes of gRPC, as <https://grpc.github.io/grpc/core/md_doc_statuscodes.html> numbers them.
const CANCELLED: i32 = 1;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// A failed call.
#[derive(Debug)]
pub(super) enum Fault {
    /// The collection is not there.
    Absent,
    /// The collection is there already.
    Present,
    /// Anything else.
    Store(StoreError),
}

impl Fault {
    /// Sorts what the client says.
    pub(super) fn of(error: &QdrantError, operation: &'static str) -> Self {
        let (kind, words) = match error {
            QdrantError::ResponseError { status } => match i32::from(status.code()) {
                NOT_FOUND => return Self::Absent,
                ALREADY_EXISTS => return Self::Present,
                // The client's own deadline shows as a cancellation.
                CANCELLED | DEADLINE_EXCEEDED => (ErrorKind::Timeout, "no answer in time".to_owned()),
                // As if it were away, for whoever called: it is for the operator to mend.
                PERMISSION_DENIED | UNAUTHENTICATED => (
                    ErrorKind::Unavailable,
                    "the server refuses the credential: check its API key".to_owned(),
                ),
                INVALID_ARGUMENT => {
                    (ErrorKind::Internal, "the server calls the request malformed".to_owned())
                }
                code => (
                    ErrorKind::Unavailable,
                    format!("the server cannot be reached or refuses work (gRPC {code})"),
                ),
            },
            QdrantError::ResourceExhaustedError { .. } => {
                (ErrorKind::Unavailable, "the server has too much to do".to_owned())
            }
            QdrantError::Io(_) => (ErrorKind::Unavailable, "the server cannot be reached".to_owned()),
            _ => (ErrorKind::Internal, "the client cannot make the call".to_owned()),
        };
        Self::Store(StoreError::new(kind, BACKEND, operation, words))
    }
}

/// The request cannot be carried out as it is.
pub(super) fn invalid(operation: &'static str, words: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Invalid, BACKEND, operation, words)
}

/// The partition is gone for good.
pub(super) fn removed(operation: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Conflict, BACKEND, operation, "the partition was removed for good")
}

/// The index is not where the caller believes it to be.
pub(super) fn went_back(operation: &'static str) -> StoreError {
    let words = "the index went back after a failure: ask for its position and go on from there";
    StoreError::new(ErrorKind::Conflict, BACKEND, operation, words)
}

/// What is stored is not what was written.
pub(super) fn damaged(operation: &'static str, words: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Damaged, BACKEND, operation, words)
}

/// The collection went away in the middle of something.
pub(super) fn vanished(operation: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, BACKEND, operation, "the collection went away meanwhile")
}
