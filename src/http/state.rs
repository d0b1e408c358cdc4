//! What every handler is given: the server's parts, built by the composition root.

use std::sync::Arc;
use std::time::Instant;

use governor::clock::DefaultClock;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::num::NonZeroU32;
use tokio::sync::{Notify, Semaphore};

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
    streams: Arc<Mutex<HashMap<TenantId, usize>>>,
    /// Uploads that are being received.
    pub uploads: Arc<Semaphore>,
}

impl Meters {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(limits: &HttpSettings) -> Self {
        let rate = NonZeroU32::new(limits.requests_per_second).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(limits.request_burst).unwrap_or(NonZeroU32::MIN);
        Self {
            rates: RateLimiter::dashmap(Quota::per_second(rate).allow_burst(burst)),
            streams: Arc::default(),
            uploads: Arc::new(Semaphore::new(limits.uploads_at_once)),
        }
    }

    /// Counts a request; the time after which to try again when the tenant is over its limit.
    pub(super) fn request(&self, tenant: TenantId) -> Result<(), std::time::Duration> {
        use governor::clock::Clock as _;
        self.rates.check_key(&tenant).map_err(|until| until.wait_time_from(self.rates.clock().now()))
    }

    /// Forgets tenants that are far below their limit, so that the table does not grow with every tenant seen.
    pub fn sweep(&self) {
        self.rates.retain_recent();
    }

    /// A place for an event stream; `None` when the tenant has as many as it may.
    pub(super) fn stream(&self, tenant: TenantId, most: usize) -> Option<StreamPlace> {
        let mut streams = self.streams.lock();
        let open = streams.entry(tenant).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        Some(StreamPlace { tenant, streams: Arc::clone(&self.streams) })
    }
}

/// A stream's place, free again when it is dropped.
pub(super) struct StreamPlace {
    tenant: TenantId,
    streams: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        if let Some(open) = streams.get_mut(&self.tenant) {
            *open -= 1;
            if *open == 0 {
                streams.remove(&self.tenant);
            }
        }
    }
}
