//! A share of something for each tenant, so that one cannot hold all of it.
//!
//! **Invariant:** there is one share for all who hold a place of a tenant's or wait for one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::ids::TenantId;

/// Tenants that are remembered; beyond that, those are forgotten of whom nobody holds or awaits a place.
const REMEMBERED: usize = 1024;

/// The shares, given in order of arrival. Clones are the same shares.
#[derive(Debug, Clone)]
pub struct TenantShares {
    share: usize,
    of: Arc<Mutex<HashMap<TenantId, Arc<Semaphore>>>>,
}

/// A place of a tenant's share, given back when this is dropped.
#[derive(Debug)]
pub struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl TenantShares {
    /// So many places for each tenant, one at least.
    #[must_use]
    pub fn new(share: usize) -> Self {
        Self { share: share.clamp(1, Semaphore::MAX_PERMITS), of: Arc::default() }
    }

    /// A place of the tenant's, as soon as one is free.
    pub async fn take(&self, tenant: TenantId) -> Share {
        let share = self.of(tenant);
        // Never closed, so that this is always a place.
        Share { _permit: share.acquire_owned().await.ok() }
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut of = self.of.lock();
        if of.len() >= REMEMBERED && !of.contains_key(&tenant) {
            // A permit holds its semaphore too.
            of.retain(|_, share| Arc::strong_count(share) > 1);
        }
        Arc::clone(of.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.share))))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn tenant(number: usize) -> TenantId {
        TenantId(Uuid::from_u128(number as u128))
    }

    #[test]
    fn a_tenant_that_holds_its_share_waits_and_nobody_else_does() {
        let shares = TenantShares::new(2);
        let [alice, bob] = [1, 2].map(tenant);
        let held: Vec<Share> =
            (0..2).map(|_| shares.take(alice).now_or_never().expect("its share is free")).collect();
        let mut third = Box::pin(shares.take(alice).map(drop));
        assert!((&mut third).now_or_never().is_none(), "its share is in use");
        assert!(shares.take(bob).now_or_never().is_some());
        drop(held);
        assert!(third.now_or_never().is_some(), "given back");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_whoever_holds_a_place_is_not_forgotten() {
        let shares = TenantShares::new(1);
        let _held = shares.take(tenant(0)).now_or_never().expect("free");
        for number in 1..10 * REMEMBERED {
            drop(shares.take(tenant(number)).now_or_never().expect("free"));
            assert!(shares.of.lock().len() <= REMEMBERED);
        }
        assert!(shares.take(tenant(0)).now_or_never().is_none(), "its one place is held");
    }
}
