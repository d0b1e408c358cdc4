//! What every back end that counts requests does: in memory and in Redis.
//!
//! Limits are so low that no request comes back while a test counts, or the test reckons with those that do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds, TenantId};
use bulkhead::store::memory::MemoryRateLimiter;
use bulkhead::store::{RateKey, RateLimiter, Standing};
use bulkhead::tenancy::Principal;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::redis_server::{RedisServer, limiter, named, settings};

/// A new identifier.
pub fn id() -> Uuid {
    SystemIds(SystemClock).uuid()
}

/// A new tenant.
pub fn tenant() -> TenantId {
    TenantId(id())
}

/// A principal of a tenant.
pub fn principal(tenant: TenantId, name: &str) -> RateKey {
    RateKey::Principal(tenant, Principal::of_a_test(name))
}

/// Counts a request that must be counted somehow.
pub async fn count(limiter: &dyn RateLimiter, key: &RateKey, per_minute: u32) -> Standing {
    limiter.count(key, per_minute).await.expect("counted")
}

type Limiter = Arc<dyn RateLimiter>;

fn memory() -> Limiter {
    Arc::new(MemoryRateLimiter::new(1000, Arc::new(SystemClock)))
}

/// The Redis that these tests share; their tenants are their own.
static SHARED: Mutex<Option<RedisServer>> = Mutex::new(None);

/// Ends it: a static is never dropped.
pub fn end_shared() {
    drop(SHARED.lock().take());
}

/// The address of the one that these tests share, or of the one that is named.
pub fn shared() -> String {
    named().unwrap_or_else(|| SHARED.lock().get_or_insert_with(RedisServer::start).url())
}

fn redis() -> Limiter {
    Arc::new(limiter(&settings(&shared()), SystemIds(SystemClock).secret()))
}

behaviours!(
    redis as in_redis:
    exactly_the_request_after_the_limit_is_refused_and_anothers_is_not,
    requests_come_back_one_by_one,
    a_limit_that_is_changed_counts_from_the_next_request_on,
    many_at_once_get_as_many_as_the_limit,
    what_one_limit_refuses_takes_nothing_of_those_after_it,
    kinds_of_keys_are_counted_apart,
    hostile_names_are_keys_like_any_other,
    the_largest_limit_is_counted,
);

async fn exactly_the_request_after_the_limit_is_refused_and_anothers_is_not(limiter: Limiter) {
    let (alice, bob) = (RateKey::Tenant(tenant()), RateKey::Tenant(tenant()));
    for sent in 1..=20 {
        let standing = count(&*limiter, &alice, 20).await;
        assert_eq!((standing.limit, standing.wait, standing.remaining), (20, None, 20 - sent));
        let reset = Duration::from_secs(u64::from(3 * sent));
        assert_eq!(standing.reset, reset);
    }
    let refused = count(&*limiter, &alice, 20).await;
    assert_eq!((refused.remaining, refused.reset), (0, Duration::from_mins(1)));
    let wait = refused.wait.expect("it is over its limit");
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(3), "{wait:?}");
    assert_eq!(count(&*limiter, &bob, 20).await.remaining, 19);
}

async fn requests_come_back_one_by_one(limiter: Limiter) {
    let key = RateKey::Tenant(tenant());
    let wait = loop {
        if let Some(wait) = count(&*limiter, &key, 30).await.wait {
            break wait;
        }
    };
    tokio::time::sleep(wait.saturating_sub(Duration::from_millis(300))).await;
    assert!(count(&*limiter, &key, 30).await.wait.is_some(), "before its time");
    tokio::time::sleep(Duration::from_millis(310)).await;
    assert_eq!(count(&*limiter, &key, 30).await.wait, None);
    let wait = count(&*limiter, &key, 30).await.wait.expect("only one came back");
    assert!(wait <= Duration::from_secs(2), "{wait:?}");
}

async fn a_limit_that_is_changed_counts_from_the_next_request_on(limiter: Limiter) {
    let key = RateKey::Tenant(tenant());
    assert_eq!(count(&*limiter, &key, 1).await.wait, None);
    assert!(count(&*limiter, &key, 1).await.wait.is_some());
    assert_eq!(count(&*limiter, &key, 2).await.remaining, 1);
    assert!(count(&*limiter, &key, 1).await.wait.is_none());
    assert!(count(&*limiter, &key, 1).await.wait.is_some());
}

async fn many_at_once_get_as_many_as_the_limit(limiter: Limiter) {
    let key = RateKey::Tenant(tenant());
    let started = Instant::now();
    let requests = (0..200).map(|_| {
        let (limiter, key) = (Arc::clone(&limiter), key.clone());
        tokio::spawn(async move { count(&*limiter, &key, 50).await.wait.is_none() })
    });
    let allowed = futures::future::join_all(requests).await.into_iter();
    let allowed = allowed.filter(|allowed| *allowed.as_ref().expect("counted")).count();
    let came_back = usize::try_from(started.elapsed().as_millis() / 1200).expect("few");
    assert!((50..=50 + came_back).contains(&allowed), "{allowed}, of which {came_back} came back");
}

async fn what_one_limit_refuses_takes_nothing_of_those_after_it(limiter: Limiter) {
    let owner = tenant();
    let both = |name: &str| [(principal(owner, name), 2), (RateKey::Tenant(owner), 3)];
    let told = |standings: &[Standing]| -> Vec<(u32, bool)> {
        standings.iter().map(|standing| (standing.remaining, standing.wait.is_none())).collect()
    };
    let count = |name| {
        let (limiter, both) = (Arc::clone(&limiter), both(name));
        async move { told(&limiter.count_all(&both).await.expect("counted")) }
    };
    assert_eq!(count("one").await, [(1, true), (2, true)]);
    assert_eq!(count("one").await, [(0, true), (1, true)]);
    for _ in 0..5 {
        assert_eq!(count("one").await, [(0, false)]);
    }
    assert_eq!(count("two").await, [(1, true), (0, true)]);
    assert_eq!(count("two").await, [(0, true), (0, false)]);
    assert!(limiter.count_all(&[]).await.expect("nothing to count").is_empty());
}

async fn kinds_of_keys_are_counted_apart(limiter: Limiter) {
    let owner = tenant();
    let bytes = *id().as_bytes();
    let keys = [
        RateKey::Tenant(owner),
        RateKey::Excess(owner),
        principal(owner, "one"),
        principal(tenant(), "one"),
        RateKey::Address(bytes.into()),
        RateKey::Refused(bytes.into()),
    ];
    for key in &keys {
        assert_eq!(count(&*limiter, key, 1).await.wait, None, "{key:?}");
    }
    for key in &keys {
        assert!(count(&*limiter, key, 1).await.wait.is_some(), "{key:?}");
    }
}

async fn hostile_names_are_keys_like_any_other(limiter: Limiter) {
    let owner = tenant();
    let other = tenant();
    let names = [
        ":".to_owned(),
        "*".to_owned(),
        "?".to_owned(),
        "[a-z]".to_owned(),
        "{".to_owned(),
        format!("}}:{{{other}}}:rate"),
        "\r\nFLUSHALL\r\n".to_owned(),
        "\0".to_owned(),
        String::new(),
        "é".repeat(10_000),
    ];
    for name in &names {
        assert_eq!(count(&*limiter, &principal(owner, name), 1).await.wait, None, "{name:?}");
    }
    for name in &names {
        assert!(count(&*limiter, &principal(owner, name), 1).await.wait.is_some(), "{name:?}");
        assert_eq!(count(&*limiter, &principal(other, name), 1).await.wait, None, "{name:?}");
    }
    assert_eq!(count(&*limiter, &RateKey::Tenant(other), 1).await.wait, None);
}

async fn the_largest_limit_is_counted(limiter: Limiter) {
    let key = RateKey::Tenant(tenant());
    for _ in 0..3 {
        let standing = count(&*limiter, &key, u32::MAX).await;
        assert_eq!((standing.limit, standing.wait), (u32::MAX, None));
        assert!(standing.remaining >= u32::MAX - 3, "{standing:?}");
    }
    // A limit of none is one of one.
    let none = RateKey::Tenant(tenant());
    assert_eq!(count(&*limiter, &none, 0).await.wait, None);
    assert!(count(&*limiter, &none, 0).await.wait.is_some());
}
