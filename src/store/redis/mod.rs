//! What several servers over one Redis share: requests counted together.
//!
//! Nothing that is kept here is needed: without Redis a server counts by itself, against less.
//!
//! **Invariant:** a key is of fixed width behind its tenant, so that nothing a caller sends can reach another's key,
//! and `bulkhead:{<tenant>}:*` names all keys of a tenant and no other's, in an access rule too.
//! **Invariant:** a value repeats its tenant, and one of another tenant is an alarm, never used.

mod client;
mod keys;
mod rate_limit;
mod settings;

pub use self::client::RedisClient;
pub use self::rate_limit::RedisRateLimiter;
pub use self::settings::RedisSettings;

/// The name in errors, logs and metrics.
const BACKEND: &str = "redis";
