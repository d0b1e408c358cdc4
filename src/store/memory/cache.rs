//! What was computed, kept in memory.
//!
//! **Invariant:** all values together, and those of each tenant, are within the bounds of the configuration: a tenant
//! that fills its share keeps nothing more until something of its own is gone, and displaces no neighbour for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Kept;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::store::StoreError;
use crate::store::cache::{Cache, CacheKey, CacheSettings, unwrap, wrap};
use crate::store::ephemeral::Ephemeral;

/// The name in errors.
const BACKEND: &str = "memory";
/// What an entry takes beside its value, bytes: its key twice, and the tables.
const OVERHEAD: usize = 300;

/// A value, and how long it is kept.
#[derive(Clone)]
struct Entry {
    value: Arc<[u8]>,
    keep: Duration,
}

impl Entry {
    fn size(&self) -> u32 {
        u32::try_from(self.value.len() + OVERHEAD).unwrap_or(u32::MAX)
    }
}

struct ByEntry;

impl Expiry<CacheKey, Entry> for ByEntry {
    fn expire_after_create(&self, _key: &CacheKey, entry: &Entry, _now: Instant) -> Option<Duration> {
        Some(entry.keep)
    }

    fn expire_after_update(
        &self,
        _key: &CacheKey,
        entry: &Entry,
        _now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.keep)
    }
}

/// Bytes of each tenant's entries; of one that has none, nothing.
type Shares = Arc<Mutex<HashMap<TenantId, u64>>>;

/// Keeps values in this process.
pub struct MemoryCache {
    kept: Kept<CacheKey, Entry>,
    shares: Shares,
    tenant_bytes: u64,
    locks: Mutex<HashMap<CacheKey, (Uuid, Instant)>>,
    longest: Duration,
    clock: Arc<dyn Clock>,
}

impl MemoryCache {
    /// Nothing kept yet.
    #[must_use]
    pub fn new(settings: &CacheSettings, clock: Arc<dyn Clock>) -> Self {
        let shares = Shares::default();
        let gone = Arc::clone(&shares);
        let kept = Kept::builder()
            .max_capacity(settings.memory_bytes)
            .weigher(|_: &CacheKey, entry: &Entry| entry.size())
            .expire_after(ByEntry)
            // Another policy would not keep a new value at all while many others come.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |key: Arc<CacheKey>, entry: Entry, _cause| {
                give_back(&gone, key.tenant(), u64::from(entry.size()));
            })
            .build();
        let (locks, tenant_bytes) = (Mutex::default(), settings.tenant_bytes);
        Self { kept, shares, tenant_bytes, locks, longest: settings.longest(), clock }
    }

    /// Keys of a tenant's values, those that expired left out.
    fn keys_of(&self, tenant: TenantId) -> Vec<CacheKey> {
        self.kept.iter().map(|(key, _)| *key).filter(|key| key.tenant() == tenant).collect()
    }

    /// Takes so much of a tenant's share; whether there is so much.
    fn take(&self, tenant: TenantId, bytes: u64) -> bool {
        let mut shares = self.shares.lock();
        let taken = shares.get(&tenant).copied().unwrap_or_default() + bytes;
        let fits = taken <= self.tenant_bytes;
        if fits {
            shares.insert(tenant, taken);
        }
        fits
    }
}

fn give_back(shares: &Shares, tenant: TenantId, bytes: u64) {
    let mut shares = shares.lock();
    if let Some(taken) = shares.get_mut(&tenant) {
        *taken = taken.saturating_sub(bytes);
        if *taken == 0 {
            shares.remove(&tenant);
        }
    }
}

#[async_trait]
impl Cache for MemoryCache {
    fn name(&self) -> &'static str {
        "in process"
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(entry) = self.kept.get(key) else { return Ok(None) };
        let value = unwrap(key, &entry.value);
        let value = value.map_err(|(kind, words)| StoreError::new(kind, BACKEND, "cache.get", words))?;
        Ok(Some(value.to_vec()))
    }

    async fn put(&self, key: &CacheKey, value: &[u8], keep: Duration) -> Result<(), StoreError> {
        let entry = Entry { value: wrap(key, value).into(), keep };
        let bytes = u64::from(entry.size());
        if !self.take(key.tenant(), bytes) {
            // What expired may not have been given back yet.
            self.kept.run_pending_tasks();
            if !self.take(key.tenant(), bytes) {
                return Ok(());
            }
        }
        self.kept.insert(*key, entry);
        Ok(())
    }

    async fn lock(&self, key: &CacheKey, holder: Uuid, keep: Duration) -> Result<bool, StoreError> {
        let now = self.clock.instant();
        let mut locks = self.locks.lock();
        locks.retain(|_, (_, until)| *until > now);
        let (held_by, until) = locks.entry(*key).or_insert((holder, now));
        let own = *held_by == holder;
        if own {
            *until = now + keep;
        }
        Ok(own)
    }

    async fn unlock(&self, key: &CacheKey, holder: Uuid) -> Result<(), StoreError> {
        let mut locks = self.locks.lock();
        if locks.get(key).is_some_and(|(held_by, _)| *held_by == holder) {
            locks.remove(key);
        }
        Ok(())
    }
}

#[async_trait]
impl Ephemeral for MemoryCache {
    fn name(&self) -> &'static str {
        "this process"
    }

    fn longest(&self) -> Duration {
        self.longest
    }

    async fn forget(&self, tenant: TenantId) -> Result<u64, StoreError> {
        let keys = self.keys_of(tenant);
        for key in &keys {
            self.kept.invalidate(key);
        }
        self.kept.run_pending_tasks();
        let mut locks = self.locks.lock();
        let all = locks.len();
        locks.retain(|key, _| key.tenant() != tenant);
        Ok((keys.len() + all - locks.len()) as u64)
    }

    async fn held(&self, tenant: TenantId) -> Result<u64, StoreError> {
        let locks = self.locks.lock().keys().filter(|key| key.tenant() == tenant).count();
        Ok((self.keys_of(tenant).len() + locks) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::SystemClock;
    use crate::domain::ids::NamespaceId;
    use crate::store::cache::{CacheBackend, Epoch};

    const KEEP: Duration = Duration::from_mins(5);

    fn cache(memory_bytes: u64, tenant_bytes: u64) -> MemoryCache {
        let settings = CacheSettings {
            backend: CacheBackend::Memory,
            embedding_seconds: 1,
            answer_seconds: 1,
            value_bytes: 1,
            memory_bytes,
            tenant_bytes,
            wait_seconds: 0,
        };
        MemoryCache::new(&settings, Arc::new(SystemClock))
    }

    fn key(tenant: u128, n: u32) -> CacheKey {
        let (tenant, namespace) = (TenantId(Uuid::from_u128(tenant)), NamespaceId(Uuid::from_u128(9)));
        CacheKey::answer(&Epoch::for_laboratory(tenant, namespace, 1), &[&n.to_be_bytes()])
    }

    #[tokio::test]
    async fn what_is_forgotten_is_one_tenants_and_gives_its_share_back() {
        let cache = cache(100_000, 10_000);
        for n in 0..5 {
            cache.put(&key(1, n), &[0; 100], KEEP).await.expect("put");
            cache.put(&key(2, n), &[0; 100], KEEP).await.expect("put");
        }
        assert!(cache.lock(&key(1, 9), Uuid::from_u128(1), KEEP).await.expect("free"));
        let tenant = key(1, 0).tenant();
        assert_eq!(cache.held(tenant).await.expect("counted"), 6);
        assert_eq!(cache.forget(tenant).await.expect("forgotten"), 6);
        assert_eq!(cache.held(tenant).await.expect("counted"), 0);
        assert_eq!((kept(&cache, 1, 5).await, kept(&cache, 2, 5).await), (0, 5));
        assert!(!cache.shares.lock().contains_key(&tenant));
    }

    async fn kept(cache: &MemoryCache, tenant: u128, of: u32) -> usize {
        let mut kept = 0;
        for n in 0..of {
            kept += usize::from(cache.get(&key(tenant, n)).await.expect("its own").is_some());
        }
        kept
    }

    #[tokio::test]
    async fn a_tenant_that_fills_its_share_displaces_nobody() {
        let cache = cache(100_000, 10_000);
        cache.put(&key(2, 0), &[0; 100], KEEP).await.expect("put");
        for n in 0..1000 {
            cache.put(&key(1, n), &[0; 100], KEEP).await.expect("put");
        }
        let hers = kept(&cache, 1, 1000).await;
        assert!((10..=20).contains(&hers), "{hers}");
        assert_eq!(kept(&cache, 2, 1).await, 1);
        assert!(cache.shares.lock()[&key(1, 0).tenant()] <= 10_000);
    }

    #[tokio::test]
    async fn all_values_are_within_their_bound_and_every_byte_is_given_back() {
        let cache = cache(50_000, 10_000);
        for tenant in 1..=20 {
            for n in 0..10 {
                cache.put(&key(tenant, n), &[0; 100], KEEP).await.expect("put");
                // In place of itself.
                cache.put(&key(tenant, n), &[0; 100], KEEP).await.expect("put");
            }
        }
        cache.kept.run_pending_tasks();
        assert!(cache.kept.weighted_size() <= 50_000, "{}", cache.kept.weighted_size());
        assert_eq!(cache.shares.lock().values().sum::<u64>(), cache.kept.weighted_size());
        cache.kept.invalidate_all();
        cache.kept.run_pending_tasks();
        assert!(cache.shares.lock().is_empty(), "{:?}", cache.shares.lock());
    }

    #[tokio::test]
    async fn what_expired_makes_room_in_its_tenants_share() {
        let cache = cache(10_000, 1500);
        for n in 0..10 {
            cache.put(&key(1, n), &[0; 100], Duration::from_millis(20)).await.expect("put");
        }
        assert!((1..10).contains(&kept(&cache, 1, 10).await));
        // The timer that takes what expired out ticks about once a second.
        let end = Instant::now() + Duration::from_secs(5);
        while cache.get(&key(1, 100)).await.expect("its own").is_none() {
            assert!(Instant::now() < end, "there is no room");
            tokio::time::sleep(Duration::from_millis(100)).await;
            cache.put(&key(1, 100), &[0; 100], KEEP).await.expect("put");
        }
    }
}
