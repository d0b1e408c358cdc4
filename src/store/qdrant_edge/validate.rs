//! Refusals of what comes in.

use super::fault::BACKEND;
use crate::store::error::{ErrorKind, StoreError};

pub(super) use crate::store::well_formed::{points, query};

/// The request cannot be carried out as it is.
pub(super) fn invalid(operation: &'static str, words: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Invalid, BACKEND, operation, words)
}

/// The partition is gone for good.
pub(super) fn removed(operation: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Conflict, BACKEND, operation, "the partition was removed for good")
}
