//! Back ends in this process, for one server alone.

pub mod rate_limit;

pub use rate_limit::MemoryRateLimiter;
