//! Back ends in this process, for one server alone.

pub mod cache;
pub mod rate_limit;

pub use cache::MemoryCache;
pub use rate_limit::MemoryRateLimiter;
