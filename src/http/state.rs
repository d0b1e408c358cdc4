//! What every handler is given: the server's parts, built by the composition root.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::settings::HttpSettings;
use super::turns::{Turn, Turns};
use crate::admin::Upkeep;
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, TenantId};
use crate::inference::{Embedder, LanguageModel};
use crate::retrieval::Engine;
use crate::store::audit::Audit;
use crate::store::{Corpus, RateLimiter, Stores};
use crate::telemetry::{Metrics, Readiness};
use crate::tenancy::{Authenticator, KeyPepper, LimitSettings, TenantScope, TokenSigner};

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
    /// Sizes and times.
    pub limits: HttpSettings,
    /// What tenants may use, and addresses.
    pub quotas: LimitSettings,
    /// Counts requests.
    pub rates: Arc<dyn RateLimiter>,
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
    /// What operators compare and rebuild with.
    pub upkeep: Upkeep,
    /// What is counted here, over all requests.
    pub meters: Meters,
    /// What is counted here for Prometheus.
    pub metrics: Arc<Metrics>,
    /// Where that is served; absent: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// Whether requests should be sent here.
    pub readiness: Arc<Readiness>,
}

impl App {
    /// Tells the projections that a corpus changed.
    pub fn changed(&self, corpus: &Corpus) {
        (self.on_change)(corpus);
    }

    /// A turn to have a question answered; `None` when too many of the tenant's are, or when it takes too long.
    pub(super) async fn turn(&self, scope: &TenantScope) -> Option<Turn> {
        self.meters.turns.take(scope.tenant(), &self.quotas.of(scope), self.quotas.query_wait()).await
    }
}

/// A tenant's requests since this server began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    /// All of them.
    pub(super) requests: u64,
    /// Those that were refused for their rate.
    pub(super) refused: u64,
}

/// What is counted over all requests of this server, each within a bound of the settings.
pub struct Meters {
    traffic: Mutex<HashMap<TenantId, Traffic>>,
    turns: Turns,
    streams: Places,
    uploads: Places,
    buffers: Places,
}

impl Meters {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(limits: &HttpSettings) -> Self {
        Self {
            traffic: Mutex::default(),
            turns: Turns::default(),
            streams: Places::new(limits.streams, limits.tenant_streams),
            uploads: Places::new(limits.uploads, limits.tenant_uploads),
            buffers: Places::new(limits.buffered_bytes, limits.tenant_buffered_bytes),
        }
    }

    /// Counts a request of a tenant, and whether it was refused for its rate.
    pub(super) fn count(&self, tenant: TenantId, refused: bool) {
        let mut traffic = self.traffic.lock();
        let own = traffic.entry(tenant).or_default();
        own.requests += 1;
        own.refused += u64::from(refused);
    }

    /// A tenant's requests.
    pub(super) fn traffic(&self, tenant: TenantId) -> Traffic {
        self.traffic.lock().get(&tenant).copied().unwrap_or_default()
    }

    /// A place for an event stream; `None` when all are taken, or all of the tenant's.
    pub(super) fn stream(&self, tenant: TenantId) -> Option<Place> {
        self.streams.take(tenant)
    }

    /// A place for a file that is being received.
    pub(super) fn upload(&self, tenant: TenantId) -> Option<Place> {
        self.uploads.take(tenant)
    }

    /// What a body takes of the memory for bodies: nothing yet, and more with every piece.
    pub(super) fn buffer(&self, tenant: TenantId) -> Place {
        self.buffers.none(tenant)
    }
}

/// Places of a server, of which one tenant may have a share, so that it cannot keep the others out.
#[derive(Clone)]
struct Places {
    most: usize,
    share: usize,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Places {
    fn new(most: usize, share: usize) -> Self {
        Self { most, share, taken: Arc::default() }
    }

    fn none(&self, tenant: TenantId) -> Place {
        Place { tenant, count: 0, places: self.clone() }
    }

    fn take(&self, tenant: TenantId) -> Option<Place> {
        let mut place = self.none(tenant);
        place.grow(1).then_some(place)
    }
}

/// A place or several, free again when it is dropped.
pub(super) struct Place {
    tenant: TenantId,
    count: usize,
    places: Places,
}

impl Place {
    /// Takes so many more; `false`, and none is taken, when there are not so many.
    pub(super) fn grow(&mut self, by: usize) -> bool {
        let mut taken = self.places.taken.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(&self.tenant).copied().unwrap_or_default();
        let fits = all + by <= self.places.most && own + by <= self.places.share;
        if fits {
            taken.insert(self.tenant, own + by);
            self.count += by;
        }
        fits
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if let Some(own) = taken.get_mut(&self.tenant) {
            *own -= self.count;
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
        let (mut hers, mut his) = (places.none(alice), places.none(bob));
        assert!(hers.grow(2) && !hers.grow(1) && his.grow(2) && !his.grow(1));
        drop((hers, his));
        assert!(places.taken.lock().is_empty());
    }
}
