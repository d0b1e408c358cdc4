//! What every handler is given: the server's parts, built by the composition root.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::DefaultClock;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::settings::HttpSettings;
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, TenantId};
use crate::inference::{Embedder, LanguageModel};
use crate::retrieval::Engine;
use crate::store::audit::Audit;
use crate::store::{Corpus, Stores};
use crate::tenancy::{Authenticator, KeyPepper, TokenSigner};

/// The parts of a running server.
pub struct App {
    /// Everything that keeps data.
    pub stores: Stores,
    /// From credentials to scopes.
    pub authenticator: Arc<Authenticator>,
    /// Signs the server's own tokens.
    pub signer: Arc<TokenSigner>,
    /// Under which the digests of new keys are made.
    pub pepper: Arc<KeyPepper>,
    /// The longest life of a token, seconds.
    pub session_ttl: u64,
    /// Finds and quotes.
    pub engine: Engine,
    /// The embedding model.
    pub embedder: Embedder,
    /// The language model, where one is configured.
    pub language_model: Option<LanguageModel>,
    /// The audit log.
    pub audit: Audit,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// New identifiers and secrets.
    pub ids: Arc<dyn IdSource>,
    /// Limits and times.
    pub limits: HttpSettings,
    /// This server's name among several.
    pub node: String,
    /// When it began to serve.
    pub started: Instant,
    /// What `/health` tells of models and back ends to callers with a credential, under `configuration`.
    pub configuration: Value,
    /// Told when there is new work, so that workers begin at once.
    pub wake: Arc<Notify>,
    /// Told when a corpus changed, so that its projections follow at once.
    pub on_change: Arc<dyn Fn(&Corpus) + Send + Sync>,
    /// What is counted here, over all requests.
    pub meters: Meters,
}

impl App {
    /// Tells the projections that a corpus changed.
    pub fn changed(&self, corpus: &Corpus) {
        (self.on_change)(corpus);
    }
}

/// What is counted over all requests of this server, each within a bound of the settings.
pub struct Meters {
    rates: RateLimiter<TenantId, DashMapStateStore<TenantId>, DefaultClock>,
    streams: Places,
    uploads: Places,
}

impl Meters {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(limits: &HttpSettings) -> Self {
        let rate = NonZeroU32::new(limits.requests_per_second).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(limits.request_burst).unwrap_or(NonZeroU32::MIN);
        Self {
            rates: RateLimiter::dashmap(Quota::per_second(rate).allow_burst(burst)),
            streams: Places::new(limits.streams, limits.tenant_streams),
            uploads: Places::new(limits.uploads, limits.tenant_uploads),
        }
    }

    /// Counts a request; the time after which to try again when the tenant is over its limit.
    pub(super) fn request(&self, tenant: TenantId) -> Result<(), Duration> {
        use governor::clock::Clock as _;
        self.rates.check_key(&tenant).map_err(|until| until.wait_time_from(self.rates.clock().now()))
    }

    /// A place for an event stream; `None` when all are taken, or all of the tenant's.
    pub(super) fn stream(&self, tenant: TenantId) -> Option<Place> {
        self.streams.take(tenant)
    }

    /// A place for a file that is being received.
    pub(super) fn upload(&self, tenant: TenantId) -> Option<Place> {
        self.uploads.take(tenant)
    }
}

/// Places of a server, of which one tenant may have a share, so that it cannot keep the others out.
struct Places {
    most: usize,
    share: usize,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Places {
    fn new(most: usize, share: usize) -> Self {
        Self { most, share, taken: Arc::default() }
    }

    fn take(&self, tenant: TenantId) -> Option<Place> {
        let mut taken = self.taken.lock();
        let all: usize = taken.values().sum();
        if all >= self.most || taken.get(&tenant).is_some_and(|own| *own >= self.share) {
            return None;
        }
        *taken.entry(tenant).or_default() += 1;
        Some(Place { tenant, taken: Arc::clone(&self.taken) })
    }
}

/// A place, free again when it is dropped.
pub(super) struct Place {
    tenant: TenantId,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
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
    use super::*;

    #[test]
    fn a_tenant_that_takes_all_its_places_leaves_the_others_theirs() {
        let [alice, bob] = [1, 2].map(|n| TenantId(uuid::Uuid::from_u128(n)));
        let places = Places::new(4, 2);
        let held: Vec<_> = (0..3).filter_map(|_| places.take(alice)).collect();
        assert_eq!(held.len(), 2);
        assert!(places.take(bob).is_some());
        drop(held);
        assert!(places.take(alice).is_some());
        assert!(places.taken.lock().is_empty());
    }
}
