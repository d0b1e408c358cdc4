//! What several servers over one Redis share: requests counted together, and what was computed once.
//!
//! Nothing that is kept here is needed: without Redis a server counts by itself, against less, and computes again.
//!
//! **Invariant:** a key is of fixed width behind its tenant, so that nothing a caller sends can reach another's key,
//! and `bulkhead:{<tenant>}:*` names all keys of a tenant and no other's, in an access rule too.
//! **Invariant:** a value repeats its tenant, and one of another tenant is an alarm, never used.

mod cache;
mod client;
mod keys;
mod rate_limit;
mod settings;
mod tenants;

pub use self::cache::RedisCache;
pub use self::client::RedisClient;
pub use self::rate_limit::RedisRateLimiter;
pub use self::settings::RedisSettings;
pub use self::tenants::RedisTenants;

/// The name in errors, logs and metrics.
const BACKEND: &str = "redis";
