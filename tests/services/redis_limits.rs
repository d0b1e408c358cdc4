//! What only a Redis can get wrong: several servers, outages, access rules, other people's values.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::TenantId;
use bulkhead::store::error::ErrorKind;
use bulkhead::store::redis::RedisRateLimiter;
use bulkhead::store::{RateKey, RateLimiter as _};
use bulkhead::telemetry::Metrics;
use redis::AsyncCommands as _;

use crate::Test;
use crate::limits::{count, principal, tenant};
use crate::redis_server::{DEADLINE, RedisServer, limiter, settings};

const SECRET: [u8; 32] = [7; 32];

/// How long a server may take to notice that Redis is back, under the load of all other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        two_servers_have_one_limit_together,
        a_redis_that_hangs_holds_up_no_request_and_is_used_again_when_it_goes_on,
        a_redis_that_is_killed_holds_up_no_request_and_is_used_again_when_it_is_back,
        a_server_that_starts_without_redis_finds_it_later,
        a_count_of_another_tenant_is_an_alarm_and_is_not_gone_around,
        a_value_that_cannot_be_read_lifts_no_limit,
        a_user_of_one_tenants_keys_can_count_for_that_tenant_alone,
        a_user_with_no_more_than_the_documented_rights_can_count,
        answers_are_never_swapped_however_many_are_given_up,
        a_full_redis_lifts_no_limit,
        keys_are_below_their_tenant_and_expire,
        a_new_password_is_found_without_a_restart,
        over_tls_only_a_certificate_that_is_verified_is_spoken_to,
    ]
}

fn alone(limiter: &Arc<RedisRateLimiter>) -> u64 {
    let metrics = Metrics::new(1, 1, Arc::new(SystemClock));
    let watched = Arc::clone(limiter);
    metrics.watch(move |page| watched.write(page));
    let page = metrics.page().expect("a page");
    let line = page.lines().find_map(|line| line.strip_prefix("bulkhead_limits_counted_alone_total "));
    line.and_then(|line| line.split('.').next()?.parse().ok()).expect("the number")
}

fn over(server: &RedisServer) -> Arc<RedisRateLimiter> {
    Arc::new(limiter(&settings(&server.url()), SECRET))
}

/// Waits until requests are counted in Redis again.
async fn recovered(limiter: &Arc<RedisRateLimiter>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let before = alone(limiter);
        count(&**limiter, &RateKey::Tenant(tenant()), 10).await;
        if alone(limiter) == before {
            return;
        }
        assert!(Instant::now() < end, "it is not used again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Counts with Redis away: each answer in time, and no more than the server's share allowed.
async fn counts_alone(limiter: &Arc<RedisRateLimiter>) {
    let (key, before) = (RateKey::Tenant(tenant()), alone(limiter));
    let mut allowed = 0;
    for _ in 0..15 {
        let started = Instant::now();
        let standing = count(&**limiter, &key, 20).await;
        // A second for a busy machine.
        assert!(started.elapsed() < DEADLINE + Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(standing.limit, 10);
        allowed += u32::from(standing.wait.is_none());
    }
    // A request comes back in 6 s; the calls that hang take less.
    assert!((10..=11).contains(&allowed), "{allowed}");
    assert_eq!(alone(limiter), before + 15);
    assert_eq!(
        count(&**limiter, &RateKey::Tenant(tenant()), 1).await.wait,
        None,
        "a neighbour's limit is its own"
    );
}

async fn two_servers_have_one_limit_together() {
    let server = RedisServer::start();
    let limiters = [over(&server), over(&server)];
    let key = RateKey::Tenant(tenant());
    let started = Instant::now();
    let requests = (0..200).map(|n| {
        let (limiter, key) = (Arc::clone(&limiters[n % 2]), key.clone());
        tokio::spawn(async move { count(&*limiter, &key, 50).await.wait.is_none() })
    });
    let allowed = futures::future::join_all(requests).await.into_iter();
    let allowed = allowed.filter(|allowed| *allowed.as_ref().expect("counted")).count();
    let came_back = usize::try_from(started.elapsed().as_millis() / 1200).expect("few");
    assert!((50..=50 + came_back).contains(&allowed), "{allowed}, of which {came_back} came back");
    assert_eq!((alone(&limiters[0]), alone(&limiters[1])), (0, 0));
    // With another secret it is another deployment.
    let other = limiter(&settings(&server.url()), [8; 32]);
    assert_eq!(count(&other, &key, 50).await.remaining, 49);
}

async fn a_redis_that_hangs_holds_up_no_request_and_is_used_again_when_it_goes_on() {
    let server = RedisServer::start();
    let limiter = over(&server);
    recovered(&limiter).await;
    server.process.pause();
    counts_alone(&limiter).await;
    // Left alone, it holds up nobody.
    let started = Instant::now();
    for _ in 0..5 {
        count(&*limiter, &RateKey::Tenant(tenant()), 10).await;
    }
    assert!(started.elapsed() < 2 * DEADLINE + Duration::from_secs(1), "{:?}", started.elapsed());
    server.process.resume();
    recovered(&limiter).await;
}

async fn a_redis_that_is_killed_holds_up_no_request_and_is_used_again_when_it_is_back() {
    let mut server = RedisServer::start();
    let limiter = over(&server);
    recovered(&limiter).await;
    // In the middle of many requests.
    let requests = (0..50).map(|_| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move { count(&*limiter, &RateKey::Tenant(tenant()), 10).await })
    });
    let requests: Vec<_> = requests.collect();
    server.process.kill();
    for request in futures::future::join_all(requests).await {
        assert_eq!(request.expect("answered").wait, None);
    }
    counts_alone(&limiter).await;
    server.restart();
    recovered(&limiter).await;
}

async fn a_server_that_starts_without_redis_finds_it_later() {
    let mut server = RedisServer::start();
    server.process.kill();
    let limiter = over(&server);
    counts_alone(&limiter).await;
    server.restart();
    recovered(&limiter).await;
}

/// The one key that Redis holds of a tenant.
async fn only_key(server: &RedisServer, tenant: TenantId) -> String {
    let mut connection = server.connection().await;
    let keys: Vec<String> = connection.keys(format!("bulkhead:{{{tenant}}}:*")).await.expect("keys");
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.into_iter().next().expect("a key")
}

async fn a_count_of_another_tenant_is_an_alarm_and_is_not_gone_around() {
    let server = RedisServer::start();
    let limiter = over(&server);
    let (alice, bob) = (tenant(), tenant());
    for owner in [alice, bob] {
        count(&*limiter, &RateKey::Tenant(owner), 10).await;
    }
    let (hers, his) = (only_key(&server, alice).await, only_key(&server, bob).await);
    let mut connection = server.connection().await;
    let value: String = connection.get(his).await.expect("a value");
    assert!(value.starts_with(&bob.to_string()), "{value}");
    let _: () = connection.set(&hers, &value).await.expect("set");
    let before = alone(&limiter);
    let error = limiter.count(&RateKey::Tenant(alice), 10).await.expect_err("it is not hers");
    assert_eq!((error.kind, alone(&limiter)), (ErrorKind::Foreign, before));
    let kept: String = connection.get(&hers).await.expect("a value");
    assert_eq!(kept, value, "it is left for whoever looks into it");
    // Bob goes on.
    assert_eq!(count(&*limiter, &RateKey::Tenant(bob), 10).await.remaining, 8);
}

async fn a_value_that_cannot_be_read_lifts_no_limit() {
    let server = RedisServer::start();
    let limiter = over(&server);
    let owner = tenant();
    let key = RateKey::Tenant(owner);
    count(&*limiter, &key, 20).await;
    let name = only_key(&server, owner).await;
    let mut connection = server.connection().await;
    for words in ["", "nonsense", "a b c d", "1 2 3"] {
        let _: () = connection.set(&name, words).await.expect("set");
        assert_eq!(count(&*limiter, &key, 20).await.limit, 10, "{words:?}");
    }
    let _: () = connection.del(&name).await.expect("removed");
    let _: () = connection.lpush(&name, "of another type").await.expect("pushed");
    let last = count(&*limiter, &key, 20).await;
    assert_eq!((last.limit, last.remaining, alone(&limiter)), (10, 5, 5));
}

async fn acl(server: &RedisServer, rules: &[&str]) {
    let mut connection = server.connection().await;
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("server").arg("on").arg(">word").arg(rules);
    let _: () = command.query_async(&mut connection).await.expect("a user");
}

/// The rights that docs/services.md says a server needs.
const RIGHTS: [&str; 6] = ["-@all", "+evalsha", "+script|load", "+get", "+set", "+time"];

fn as_user(server: &RedisServer) -> Arc<RedisRateLimiter> {
    let mut settings = settings(&server.url());
    (settings.user, settings.password) = ("server".to_owned(), Some("word".into()));
    Arc::new(limiter(&settings, SECRET))
}

async fn a_user_of_one_tenants_keys_can_count_for_that_tenant_alone() {
    let server = RedisServer::start();
    let (alice, bob) = (tenant(), tenant());
    let keys = format!("~bulkhead:{{{alice}}}:*");
    acl(&server, &[&[keys.as_str()][..], &RIGHTS[..]].concat()).await;
    let limiter = as_user(&server);
    let both = [(principal(alice, "one"), 10), (RateKey::Tenant(alice), 20)];
    let standings = limiter.count_all(&both).await.expect("counted");
    assert_eq!((standings[0].remaining, standings[1].remaining, alone(&limiter)), (9, 19, 0));
    // Refused by Redis, and so counted by the server alone.
    assert_eq!(count(&*limiter, &RateKey::Tenant(bob), 20).await.limit, 10);
    assert_eq!(alone(&limiter), 1);
    let mut connection = server.connection().await;
    let keys: Vec<String> = connection.keys("*").await.expect("keys");
    assert!(keys.iter().all(|key| key.contains(&alice.to_string())), "{keys:?}");
}

async fn a_user_with_no_more_than_the_documented_rights_can_count() {
    let server = RedisServer::start();
    acl(&server, &[&["~bulkhead:*"][..], &RIGHTS[..]].concat()).await;
    let limiter = as_user(&server);
    count(&*limiter, &RateKey::Tenant(tenant()), 10).await;
    count(&*limiter, &RateKey::Address([192, 0, 2, 7].into()), 10).await;
    assert_eq!(alone(&limiter), 0);
    let mut settings = settings(&server.url());
    (settings.user, settings.password) = ("server".to_owned(), Some("another".into()));
    let refused = Arc::new(limiter_of(&settings));
    count(&*refused, &RateKey::Tenant(tenant()), 10).await;
    assert_eq!(alone(&refused), 1);
}

fn limiter_of(settings: &bulkhead::store::redis::RedisSettings) -> RedisRateLimiter {
    limiter(settings, SECRET)
}

async fn answers_are_never_swapped_however_many_are_given_up() {
    let server = RedisServer::start();
    let limiter = over(&server);
    // Each has a limit of its own, which its answer repeats: a swapped answer shows another's.
    let callers = (0..64_u32).map(|n| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move {
            let (key, limit) = (RateKey::Tenant(tenant()), 1_000_000 + n * 1000);
            let mut answered = 0;
            for round in 0..200_u32 {
                let call = limiter.count(&key, limit);
                if (round + n) % 3 == 0 {
                    let patience = Duration::from_micros(u64::from(round % 20) * 10);
                    let _given_up = tokio::time::timeout(patience, call).await;
                    continue;
                }
                let standing = call.await.expect("counted");
                answered += 1;
                // Of its own requests, with those that were given up, at most so many are gone.
                assert_eq!(standing.wait, None);
                assert!(standing.remaining >= limit - round - 1, "{standing:?} of {limit} at {round}");
                assert!(standing.remaining < limit, "{standing:?} of {limit} at {round}");
            }
            answered
        })
    });
    let answered: u32 =
        futures::future::join_all(callers).await.into_iter().map(|n| n.expect("its own")).sum();
    assert!(answered > 8000, "{answered}");
    assert_eq!(alone(&limiter), 0);
}

async fn a_full_redis_lifts_no_limit() {
    let server = RedisServer::with(&["--maxmemory", "1"]);
    counts_alone(&over(&server)).await;
}

async fn keys_are_below_their_tenant_and_expire() {
    let server = RedisServer::start();
    let limiter = over(&server);
    let owner = tenant();
    let address = RateKey::Address([192, 0, 2, 7].into());
    for key in [RateKey::Tenant(owner), RateKey::Excess(owner), principal(owner, "canary"), address] {
        for _ in 0..12 {
            count(&*limiter, &key, 10).await;
        }
    }
    let mut connection = server.connection().await;
    let keys: Vec<String> = connection.keys("*").await.expect("keys");
    let own = format!("bulkhead:{{{owner}}}:");
    assert_eq!(keys.iter().filter(|key| key.starts_with(&own)).count(), 3, "{keys:?}");
    assert_eq!(keys.iter().filter(|key| key.starts_with("bulkhead:address:rate:")).count(), 1, "{keys:?}");
    assert_eq!(keys.len(), 4);
    for key in keys {
        let value: String = connection.get(&key).await.expect("a value");
        let left: i64 = connection.pttl(&key).await.expect("a time");
        assert!((1..=60_002).contains(&left), "{key}: {left} ms");
        assert!(!format!("{key} {value}").contains("canary"), "{key}: {value}");
        assert!(!format!("{key} {value}").contains("192.0.2.7"), "{key}: {value}");
    }
}

async fn a_new_password_is_found_without_a_restart() {
    let server = RedisServer::with(&["--requirepass", "first"]);
    let file = server.folder().join("password");
    std::fs::write(&file, "wrong\n").expect("a file");
    let mut settings = settings(&server.url());
    settings.password_file = Some(file.clone());
    let limiter = Arc::new(limiter_of(&settings));
    counts_alone(&limiter).await;
    std::fs::write(&file, "first\n").expect("a file");
    recovered(&limiter).await;
}

async fn over_tls_only_a_certificate_that_is_verified_is_spoken_to() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("cert.pem"), certified.cert.pem()).expect("a file");
    std::fs::write(path("key.pem"), certified.signing_key.serialize_pem()).expect("a file");
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port").port();
    let port = free.to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let tls =
        ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let _server = RedisServer::with(&tls);
    let mut settings = settings(&format!("rediss://localhost:{port}"));
    // Connecting takes longer than counting.
    settings.calls.deadline_ms = 5000;
    settings.ca_file = Some(cert.into());
    let known = Arc::new(limiter_of(&settings));
    count(&*known, &RateKey::Tenant(tenant()), 10).await;
    assert_eq!(alone(&known), 0);
    settings.ca_file = None;
    let unknown = Arc::new(limiter_of(&settings));
    count(&*unknown, &RateKey::Tenant(tenant()), 10).await;
    assert_eq!(alone(&unknown), 1);
}
