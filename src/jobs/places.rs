//! Places to read files in: how many batches may have parsers running, in all and of one tenant.
//!
//! A file that hangs its parser keeps a place of its tenant's, and nothing else: no worker waits for it.
//!
//! **Invariant:** a tenant never has more than its share, so one tenant's files never take all places.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::domain::ids::TenantId;

/// The places, shared by clones.
#[derive(Debug, Clone)]
pub(super) struct Places {
    all: usize,
    share: usize,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Places {
    /// So many places, and so many of them for one tenant.
    pub(super) fn new(all: usize, share: usize) -> Self {
        Self { all, share, taken: Arc::default() }
    }

    /// A place, if the tenant may have one now.
    pub(super) fn take(&self, tenant: TenantId) -> Option<Place> {
        let mut taken = self.taken.lock();
        let all: usize = taken.values().sum();
        let own = taken.entry(tenant).or_default();
        if all >= self.all || *own >= self.share {
            if *own == 0 {
                taken.remove(&tenant);
            }
            return None;
        }
        *own += 1;
        drop(taken);
        Some(Place { places: self.clone(), tenant })
    }
}

/// A place. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    tenant: TenantId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if let Some(own) = taken.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_tenant_has_its_share_and_leaves_a_place_to_others() {
        let [alice, bob, carol] = [1, 2, 3].map(|number| TenantId(Uuid::from_u128(number)));
        let places = Places::new(3, 2);
        let first = places.take(alice).expect("free");
        let second = places.take(alice).expect("free");
        assert!(places.take(alice).is_none(), "its share is in use");
        let others = places.take(bob).expect("one is left");
        assert!(places.take(carol).is_none(), "all are in use");
        drop((first, others));
        let again = places.take(carol).expect("given back");
        drop((second, again));
        assert!(places.taken.lock().is_empty(), "nothing is remembered of tenants without a place");
    }
}
