//! The driver's errors in the words of the stores.

use mongodb::error::{Error, ErrorKind as Driver};

use crate::store::error::{ErrorKind, StoreError};

/// An error of an operation. What is not known to be a fault of ours may pass: then nothing is given up.
pub(super) fn failed(operation: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| {
        let (kind, context) = match *error.kind {
            Driver::Bson(_) | Driver::InvalidArgument { .. } => {
                (ErrorKind::Internal, "the driver cannot write or read it")
            }
            Driver::Authentication { .. } => (ErrorKind::Unavailable, "the account is refused"),
            Driver::Command(ref refused) if refused.code == NOT_ALLOWED => {
                (ErrorKind::Unavailable, "the account may not do this")
            }
            _ => (ErrorKind::Unavailable, "the call failed"),
        };
        StoreError::new(kind, super::BACKEND, operation, context).with_source(error)
    }
}

/// The server's code for what an account may not do.
pub(super) const NOT_ALLOWED: i32 = 13;
/// The server's code for a key that is there already.
const DUPLICATE: i32 = 11_000;

/// Whether an insert failed for nothing else than keys that are there already.
pub(super) fn is_duplicate(error: &Error) -> bool {
    match &*error.kind {
        Driver::InsertMany(many) => {
            let errors = many.write_errors.as_deref().unwrap_or_default();
            many.write_concern_error.is_none()
                && !errors.is_empty()
                && errors.iter().all(|error| error.code == DUPLICATE)
        }
        _ => false,
    }
}

/// Whether the account may not do it.
pub(super) fn is_not_allowed(error: &Error) -> bool {
    matches!(&*error.kind, Driver::Command(refused) if refused.code == NOT_ALLOWED)
}
