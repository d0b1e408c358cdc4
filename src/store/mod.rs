//! Everything that keeps data, behind handles that know their tenant.
//!
//! **Invariant:** no getter for a pool or client; a call without a partition or a permit does not compile.
//! **Invariant:** indexes hold ids, never text.

pub mod error;
pub mod partition;
pub mod postgres;
pub mod vector;

pub use error::{ErrorKind, StoreError};
pub use partition::Partition;
