//! Who is asking, and what they may do.
//!
//! Tenancy is a value: [`TenantScope`] has private fields and is made here alone, from a verified
//! credential or from a job whose tenant was looked up again. [`Permit`] proves that an action was checked.
//!
//! **Invariant:** the tenant never comes from the request; a request can only agree with its credential or fail.
//! **Invariant:** nothing in here reads tenant data; credentials are looked up through [`Directory`].

mod address;
pub mod api_key;
pub mod authenticator;
pub mod directory;
#[cfg(feature = "laboratory")]
pub mod fuzz;
pub mod hints;
pub mod jwks;
mod jwt;
pub mod limits;
mod lookup;
pub mod operator;
pub mod permit;
pub mod refusal;
pub mod scope;
pub mod secret_file;
pub mod settings;
pub mod token_signer;

#[cfg(test)]
mod tests;

pub use api_key::{ApiKey, KeyKind, KeyPepper};
pub use authenticator::{AuthSetupError, Authenticated, Authenticator, CredentialKind, PresentedCredentials};
pub use directory::{Directory, DirectoryError, KeyRecord, OperatorRecord, TenantRecord, TenantState};
pub use hints::{RequestHints, TenantHint};
pub use limits::{LimitBackend, LimitSettings};
pub use operator::OperatorScope;
pub use permit::{Action, Administer, Denied, Permit, Read, Reads, Write, Writes};
pub use refusal::{Refusal, RefusalFacts, RefusalKind};
pub use scope::{Principal, Role, TenantScope, authorise_purge, authorise_upkeep, reauthorise};
pub use settings::{AuthSettings, IssuerProfile};
pub use token_signer::{MintError, MintedToken, TokenSigner};
