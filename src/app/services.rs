//! The services that are switched on beside the embedded stores.

use std::sync::Arc;

use super::{Foundation, Settings};
use crate::store::RateLimiter;
use crate::store::memory::MemoryRateLimiter;
use crate::store::redis::{RedisClient, RedisRateLimiter};
use crate::telemetry::Metrics;
use crate::tenancy::LimitBackend;

/// What counts requests, with its numbers on the page of metrics.
pub(super) fn rates(
    settings: &Settings,
    foundation: &Foundation,
    metrics: &Metrics,
) -> anyhow::Result<Arc<dyn RateLimiter>> {
    let clock = Arc::clone(&foundation.clock);
    let limits = &settings.limits;
    if limits.backend == LimitBackend::Memory {
        return Ok(Arc::new(MemoryRateLimiter::new(limits.remembered, clock)));
    }
    let redis = RedisClient::new(&settings.redis, Arc::clone(&foundation.calls), Arc::clone(&clock))?;
    // Servers that know the same API keys have the same pepper, and so count together.
    let secret = foundation.pepper.derived("keys in Redis");
    let rates = RedisRateLimiter::new(redis, &secret, limits.local_share, limits.remembered, clock);
    let rates = Arc::new(rates);
    let watched = Arc::clone(&rates);
    metrics.watch(move |page| watched.write(page));
    Ok(rates)
}
