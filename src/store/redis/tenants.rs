//! All keys of a tenant: counted, and removed when the tenant is deleted.
//!
//! They are looked for among all keys (`SCAN`), a bounded number in a call, so that Redis answers others in between. A
//! list of each tenant's keys would save that, and be written with every count and every value, kept in step with what
//! expires, and could lack a key; a deletion is rare and in the background.
//!
//! **Invariant:** a key that is not below the tenant is never removed.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;

use super::BACKEND;
use super::client::RedisClient;
use super::keys::prefix;
use crate::domain::ids::TenantId;
use crate::store::ephemeral::Ephemeral;
use crate::store::error::{ErrorKind, StoreError};

/// Keys that Redis looks at in one call.
const LOOKED_AT: usize = 1000;

/// The keys of tenants in a Redis.
pub struct RedisTenants {
    redis: RedisClient,
    longest: Duration,
}

impl RedisTenants {
    /// In this Redis, where nothing is kept for longer than `longest`.
    #[must_use]
    pub fn new(redis: RedisClient, longest: Duration) -> Self {
        Self { redis, longest }
    }

    /// Some keys of a tenant, and where the next ones are looked for: from 0, until it is 0 again. One may come twice;
    /// one that is there all the while comes.
    async fn page(
        &self,
        operation: &'static str,
        tenant: TenantId,
        from: u64,
    ) -> Result<(u64, Vec<Vec<u8>>), StoreError> {
        let prefix = prefix(tenant);
        let mut command = redis::cmd("SCAN");
        // Braces mean nothing in a pattern, and an identity has no letter that does.
        command.arg(from).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(LOOKED_AT);
        let (next, keys): (u64, Vec<Vec<u8>>) = self.redis.send(operation, tenant, &command).await?;
        if keys.iter().any(|key| !key.starts_with(prefix.as_bytes())) {
            let words = "a key of another tenant";
            return Err(StoreError::new(ErrorKind::Foreign, BACKEND, operation, words));
        }
        Ok((next, keys))
    }
}

#[async_trait]
impl Ephemeral for RedisTenants {
    fn name(&self) -> &'static str {
        "Redis"
    }

    fn longest(&self) -> Duration {
        self.longest
    }

    async fn forget(&self, tenant: TenantId) -> Result<u64, StoreError> {
        const OPERATION: &str = "tenant.forget";
        let (mut gone, mut from) = (0, 0);
        loop {
            let (next, keys) = self.page(OPERATION, tenant, from).await?;
            if !keys.is_empty() {
                let mut command = redis::cmd("UNLINK");
                command.arg(keys);
                gone += self.redis.send::<u64>(OPERATION, tenant, &command).await?;
            }
            if next == 0 {
                return Ok(gone);
            }
            from = next;
        }
    }

    async fn held(&self, tenant: TenantId) -> Result<u64, StoreError> {
        const OPERATION: &str = "tenant.held";
        let (mut held, mut from) = (HashSet::new(), 0);
        loop {
            let (next, keys) = self.page(OPERATION, tenant, from).await?;
            held.extend(keys);
            if next == 0 {
                return Ok(held.len() as u64);
            }
            from = next;
        }
    }
}
