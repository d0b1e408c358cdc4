//! Who is asking, and what they may do.
//!
//! Tenancy is a value: [`TenantScope`] has private fields and is made here alone, from a verified
//! credential or from a job whose tenant was looked up again. [`Permit`] proves that an action was checked.
//!
//! **Invariant:** the tenant never comes from the request; a request can only agree with its credential or fail.
//! **Invariant:** nothing in here reads tenant data; credentials are looked up through [`Directory`].

pub mod directory;
pub mod operator;
pub mod permit;
pub mod scope;

pub use directory::{Directory, DirectoryError, KeyRecord, TenantRecord, TenantState};
pub use operator::OperatorScope;
pub use permit::{Action, Administer, Denied, Permit, Read, Reads, Write, Writes};
pub use scope::{Principal, Role, TenantScope, reauthorise};
