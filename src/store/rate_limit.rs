//! The trait of back ends that count requests, and what they say.
//!
//! **Invariant:** what is said of one key depends on the requests of that key alone.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::domain::ids::TenantId;
use crate::tenancy::Principal;

/// Whose requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// All of a tenant.
    Tenant(TenantId),
    /// Those of one key or subject of a tenant.
    Principal(TenantId, Principal),
    /// Those from an address, before anybody is known.
    Address(IpAddr),
    /// Those from an address whose credential was refused.
    Refused(IpAddr),
    /// Those of a tenant that were refused for its rate.
    Excess(TenantId),
}

/// Where a key stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Requests in a minute.
    pub limit: u32,
    /// How many more may come now.
    pub remaining: u32,
    /// Until all may come again.
    pub reset: Duration,
    /// Until the next may come, when this one may not.
    pub wait: Option<Duration>,
}

/// Counts requests by the generic cell rate algorithm (ITU-T I.371): as many as the limit at once, then each
/// comes back after its share of the minute.
///
/// A key with another limit than before begins anew. A key that nobody asks for is forgotten when it would be
/// full again, or to make room for others; then it begins anew.
#[async_trait]
pub trait RateLimiter: Send + Sync {
    /// Counts a request, which may come when [`Standing::wait`] is absent. One that may not is not counted.
    ///
    /// # Errors
    /// `Unavailable` when the back end is away; `Foreign` when a count is another tenant's.
    async fn count(&self, key: &RateKey, per_minute: u32) -> Result<Standing, StoreError>;

    /// Counts a request against several limits, in this order until it may not come: what one limit refuses takes
    /// nothing of those after it. Where each key stands that was asked. Keys of one call are of one tenant or of none.
    ///
    /// # Errors
    /// As [`Self::count`].
    async fn count_all(&self, counted: &[(RateKey, u32)]) -> Result<Vec<Standing>, StoreError> {
        let mut standings = Vec::with_capacity(counted.len());
        for (key, per_minute) in counted {
            let standing = self.count(key, *per_minute).await?;
            standings.push(standing);
            if standing.wait.is_some() {
                break;
            }
        }
        Ok(standings)
    }
}
