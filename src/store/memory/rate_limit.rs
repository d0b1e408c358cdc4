//! Requests counted in memory.
//!
//! **Invariant:** at most so many keys of each kind are remembered as the configuration says; those of one kind
//! never make room for another's.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use governor::clock::Clock as GovernorClock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter as Governor};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::domain::clock::Clock;
use crate::store::StoreError;
use crate::store::rate_limit::{RateKey, RateLimiter, Standing};

/// After how long without a request a key is forgotten; by then all of its requests came back.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(2);

/// The server's clock as governor reads it.
#[derive(Debug, Clone)]
struct Timed(Arc<dyn Clock>);

impl GovernorClock for Timed {
    type Instant = Instant;

    fn now(&self) -> Instant {
        self.0.instant()
    }
}

type Counter = Governor<NotKeyed, InMemoryState, Timed, StateInformationMiddleware>;

/// One key's requests, counted against one limit.
struct Bucket {
    per_minute: u32,
    counter: Counter,
}

type Buckets = Cache<RateKey, Arc<Bucket>>;

/// Counts requests in this process.
pub struct MemoryRateLimiter {
    clock: Timed,
    tenants: Buckets,
    principals: Buckets,
    addresses: Buckets,
    refused: Buckets,
    excess: Buckets,
}

impl MemoryRateLimiter {
    /// Nothing counted yet; `keys` of each kind are remembered, those asked for last.
    #[must_use]
    pub fn new(keys: u64, clock: Arc<dyn Clock>) -> Self {
        let buckets = || {
            let cache = Cache::builder().max_capacity(keys).time_to_idle(FORGOTTEN_AFTER);
            // Another policy would not remember a new key at all while many others come.
            cache.eviction_policy(EvictionPolicy::lru()).build()
        };
        Self {
            clock: Timed(clock),
            tenants: buckets(),
            principals: buckets(),
            addresses: buckets(),
            refused: buckets(),
            excess: buckets(),
        }
    }

    fn bucket(&self, key: &RateKey, per_minute: u32) -> Arc<Bucket> {
        let buckets = match key {
            RateKey::Tenant(_) => &self.tenants,
            RateKey::Principal(..) => &self.principals,
            RateKey::Address(_) => &self.addresses,
            RateKey::Refused(_) => &self.refused,
            RateKey::Excess(_) => &self.excess,
        };
        if let Some(bucket) = buckets.get(key).filter(|bucket| bucket.per_minute == per_minute) {
            return bucket;
        }
        let fresh = || {
            let quota = Quota::per_minute(NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN));
            let counter = Governor::direct_with_clock(quota, self.clock.clone());
            Arc::new(Bucket { per_minute, counter: counter.with_middleware() })
        };
        // One of those who come at once makes it, and all of them count in it.
        let entry = buckets.entry_by_ref(key).or_insert_with_if(fresh, |old| old.per_minute != per_minute);
        entry.into_value()
    }
}

#[async_trait]
impl RateLimiter for MemoryRateLimiter {
    async fn count(&self, key: &RateKey, per_minute: u32) -> Result<Standing, StoreError> {
        let bucket = self.bucket(key, per_minute);
        let (remaining, wait) = match bucket.counter.check() {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(until) => (0, Some(until.wait_time_from(self.clock.now()))),
        };
        let limit = per_minute.max(1);
        let missing = limit.saturating_sub(remaining);
        let reset = Duration::from_mins(1).mul_f64(f64::from(missing) / f64::from(limit));
        Ok(Standing { limit, remaining, reset, wait })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use chrono::{DateTime, Utc};
    use futures::FutureExt;
    use parking_lot::Mutex;
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::TenantId;

    /// A clock that stands still until it is moved.
    #[derive(Debug)]
    struct Still(Mutex<Instant>);

    impl Clock for Still {
        fn now(&self) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH
        }

        fn instant(&self) -> Instant {
            *self.0.lock()
        }
    }

    struct World {
        clock: Arc<Still>,
        limiter: MemoryRateLimiter,
    }

    impl World {
        fn new(keys: u64) -> Self {
            let clock = Arc::new(Still(Mutex::new(Instant::now())));
            let limiter = MemoryRateLimiter::new(keys, Arc::<Still>::clone(&clock));
            Self { clock, limiter }
        }

        fn count(&self, key: &RateKey, per_minute: u32) -> Standing {
            self.limiter.count(key, per_minute).now_or_never().expect("at once").expect("in memory")
        }

        fn advance(&self, by: Duration) {
            *self.clock.0.lock() += by;
        }
    }

    fn tenant(n: u128) -> RateKey {
        RateKey::Tenant(TenantId(Uuid::from_u128(n)))
    }

    #[test]
    fn exactly_the_request_after_the_limit_is_refused_and_anothers_is_not() {
        let world = World::new(100);
        for sent in 1..=1000 {
            let standing = world.count(&tenant(1), 1000);
            assert_eq!((standing.wait, standing.remaining), (None, 1000 - sent));
        }
        let refused = world.count(&tenant(1), 1000);
        assert_eq!(refused.wait, Some(Duration::from_millis(60)));
        assert_eq!((refused.remaining, refused.reset), (0, Duration::from_mins(1)));
        assert_eq!(world.count(&tenant(2), 1000).remaining, 999);
    }

    #[test]
    fn requests_come_back_with_time_one_by_one_and_never_more_than_the_limit() {
        let world = World::new(100);
        while world.count(&tenant(1), 60).wait.is_none() {}
        world.advance(Duration::from_millis(999));
        assert_eq!(world.count(&tenant(1), 60).wait, Some(Duration::from_millis(1)));
        world.advance(Duration::from_millis(1));
        assert_eq!(world.count(&tenant(1), 60).wait, None);
        assert!(world.count(&tenant(1), 60).wait.is_some());
        world.advance(Duration::from_hours(1));
        let allowed = (0..100).take_while(|_| world.count(&tenant(1), 60).wait.is_none()).count();
        assert_eq!(allowed, 60);
    }

    #[test]
    fn a_limit_that_is_changed_counts_from_the_next_request_on() {
        let world = World::new(100);
        assert_eq!(world.count(&tenant(1), 1).wait, None);
        assert!(world.count(&tenant(1), 1).wait.is_some());
        assert_eq!(world.count(&tenant(1), 2).remaining, 1);
        assert!(world.count(&tenant(1), 1).wait.is_none());
        assert!(world.count(&tenant(1), 1).wait.is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_addresses_do_not_push_out_tenants() {
        let world = World::new(10);
        assert_eq!(world.count(&tenant(1), 1).wait, None);
        for n in 0..1000_u32 {
            let address = RateKey::Address(IpAddr::from(n.to_be_bytes()));
            assert_eq!(world.count(&address, 1).wait, None);
            // The one that came last is remembered, whoever came before.
            assert!(world.count(&address, 1).wait.is_some(), "{n}");
        }
        world.limiter.addresses.run_pending_tasks();
        assert!(world.limiter.addresses.entry_count() <= 10);
        assert!(world.count(&tenant(1), 1).wait.is_some());
    }

    #[test]
    fn many_at_once_get_as_many_as_the_limit() {
        let world = World::new(100);
        let allowed: usize = std::thread::scope(|scope| {
            let count = || (0..200).filter(|_| world.count(&tenant(1), 500).wait.is_none()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().expect("counted")).sum()
        });
        assert_eq!(allowed, 500);
    }
}
