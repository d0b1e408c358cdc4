//! What only a Redis can get wrong when it keeps things: outages, access rules, other people's values.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead::domain::ids::{NamespaceId, TenantId};
use bulkhead::store::ephemeral::Ephemeral as _;
use bulkhead::store::redis::RedisCache;
use bulkhead::store::{Cache as _, CacheKey, CacheKind, Caches, ErrorKind, Looked, RateKey, StoreError};
use redis::AsyncCommands as _;

use crate::Test;
use crate::caches::{KEEP, answer, caches, counted, question, usual};
use crate::limits::{count, id, tenant};
use crate::redis_server::{DEADLINE, RedisServer, cache, limiter, settings, tenants};

const SECRET: [u8; 32] = [7; 32];

/// How long a server may take to notice that Redis is back.
const PATIENCE: Duration = Duration::from_secs(30);

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        a_redis_that_hangs_or_is_killed_or_is_full_costs_a_deadline_and_is_used_again,
        a_value_of_another_tenant_or_namespace_is_an_alarm_and_is_not_served,
        a_value_that_no_server_put_there_is_not_served_and_is_replaced,
        a_lock_of_another_tenant_is_an_alarm,
        keys_are_below_their_tenant_hold_no_text_and_expire,
        a_user_of_one_tenants_keys_can_keep_for_that_tenant_alone,
        values_are_never_swapped_however_many_are_given_up,
        a_tenants_keys_are_counted_and_removed_among_many_and_no_others,
        a_redis_that_is_away_or_forbids_it_forgets_nothing_and_says_so,
    ]
}

fn over(server: &RedisServer) -> RedisCache {
    cache(&settings(&server.url()), SECRET)
}

fn used(server: &RedisServer) -> Caches {
    caches(Arc::new(over(server)), usual())
}

/// Makes values with Redis away: each right and in time, none from a cache.
async fn makes_alone(caches: &Caches) {
    let owner = tenant();
    for n in 0..12_u8 {
        let key = question(owner, &(n / 2).to_string());
        let begun = Instant::now();
        let made = caches.get_or_make(&key, async { Ok::<_, StoreError>(vec![n]) }).await.expect("made");
        assert_eq!(made, (vec![n], false));
        // A second for a busy machine.
        assert!(begun.elapsed() < DEADLINE + Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    assert!(counted(caches, CacheKind::Embedding, "away") >= 12);
}

async fn recovered(caches: &Caches) {
    let end = Instant::now() + PATIENCE;
    let key = question(tenant(), "who?");
    loop {
        if caches.get(&key).await.expect("its own") == Looked::Miss {
            caches.put(&key, b"value").await;
            if caches.get(&key).await.expect("its own") == Looked::Hit(b"value".to_vec()) {
                return;
            }
        }
        assert!(Instant::now() < end, "it is not used again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_redis_that_hangs_or_is_killed_or_is_full_costs_a_deadline_and_is_used_again() {
    let mut server = RedisServer::start();
    let caches = used(&server);
    recovered(&caches).await;
    server.process.pause();
    makes_alone(&caches).await;
    server.process.resume();
    recovered(&caches).await;
    server.process.kill();
    makes_alone(&caches).await;
    server.restart();
    recovered(&caches).await;

    let full = RedisServer::with(&["--maxmemory", "1"]);
    let caches = used(&full);
    let key = question(tenant(), "who?");
    for _ in 0..3 {
        let made = caches.get_or_make(&key, async { Ok::<_, StoreError>(b"made".to_vec()) }).await;
        assert_eq!(made.expect("made"), (b"made".to_vec(), false));
    }
}

/// The one key that Redis holds of a tenant's values.
async fn only_key(server: &RedisServer, tenant: TenantId) -> String {
    let mut connection = server.connection().await;
    let keys: Vec<String> = connection.keys(format!("bulkhead:{{{tenant}}}:*")).await.expect("keys");
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.into_iter().next().expect("a key")
}

async fn copied(server: &RedisServer, from: &str, to: &str) -> Vec<u8> {
    let mut connection = server.connection().await;
    let value: Vec<u8> = connection.get(from).await.expect("a value");
    let _: () = connection.set(to, &value).await.expect("set");
    value
}

async fn a_value_of_another_tenant_or_namespace_is_an_alarm_and_is_not_served() {
    let server = RedisServer::start();
    let caches = used(&server);
    let (alice, bob) = (tenant(), tenant());
    for owner in [alice, bob] {
        caches.put(&question(owner, "who?"), owner.to_string().as_bytes()).await;
    }
    let (hers, his) = (only_key(&server, alice).await, only_key(&server, bob).await);
    let planted = copied(&server, &his, &hers).await;
    let made = async || Ok::<_, StoreError>(b"made".to_vec());
    let looked = caches.get(&question(alice, "who?")).await;
    assert_eq!(looked.expect_err("it is not hers").kind, ErrorKind::Foreign);
    let looked = caches.get_or_make(&question(alice, "who?"), made()).await;
    assert_eq!(looked.expect_err("it is not hers").kind, ErrorKind::Foreign);
    assert_eq!(counted(&caches, CacheKind::Embedding, "foreign"), 2);
    let mut connection = server.connection().await;
    let kept: Vec<u8> = connection.get(&hers).await.expect("a value");
    assert_eq!(kept, planted, "it is left for whoever looks into it");
    let own = Looked::Hit(bob.to_string().into_bytes());
    assert_eq!(caches.get(&question(bob, "who?")).await.expect("his"), own);

    // And between the namespaces of one tenant.
    let owner = tenant();
    let [one, two] =
        [NamespaceId(id()), NamespaceId(id())].map(|namespace| answer(owner, namespace, 1, "who?"));
    caches.put(&one, b"one").await;
    let first = only_key(&server, owner).await;
    caches.put(&two, b"two").await;
    let all: Vec<String> = connection.keys(format!("bulkhead:{{{owner}}}:*")).await.expect("keys");
    let second = all.iter().find(|key| **key != first).expect("another key");
    copied(&server, second, &first).await;
    assert_eq!(caches.get(&one).await.expect_err("another namespace's").kind, ErrorKind::Foreign);
}

async fn a_value_that_no_server_put_there_is_not_served_and_is_replaced() {
    let server = RedisServer::start();
    let caches = used(&server);
    let (owner, namespace) = (tenant(), NamespaceId(id()));
    let key = answer(owner, namespace, 1, "who?");
    caches.put(&key, b"honest words").await;
    let name = only_key(&server, owner).await;
    let mut connection = server.connection().await;
    let honest: Vec<u8> = connection.get(&name).await.expect("a value");
    // Another server's secret; words changed; cut off; nothing like a value.
    let elsewhere = RedisServer::start();
    cache(&settings(&elsewhere.url()), [8; 32]).put(&key, b"forged words", KEEP).await.expect("put");
    let forged: Vec<u8> =
        elsewhere.connection().await.get(only_key(&elsewhere, owner).await).await.expect("a value");
    let mut changed = honest.clone();
    let at = changed.windows(6).position(|bytes| bytes == b"honest").expect("the words");
    changed[at] = b'H';
    for planted in [forged, changed, honest[..honest.len() - 1].to_vec(), b"words".to_vec(), Vec::new()] {
        let _: () = connection.set(&name, &planted).await.expect("set");
        assert_eq!(caches.get(&key).await.expect("no alarm"), Looked::Miss);
        let made = async { Ok::<_, StoreError>(b"made anew".to_vec()) };
        assert_eq!(caches.get_or_make(&key, made).await.expect("made"), (b"made anew".to_vec(), false));
        assert_eq!(caches.get(&key).await.expect("its own"), Looked::Hit(b"made anew".to_vec()));
    }
    // An earlier value of the same key is a value of it.
    let _: () = connection.set(&name, &honest).await.expect("set");
    assert_eq!(caches.get(&key).await.expect("its own"), Looked::Hit(b"honest words".to_vec()));
    let _: () = connection.del(&name).await.expect("removed");
    let _: () = connection.lpush(&name, "of another type").await.expect("pushed");
    assert_eq!(caches.get(&key).await.expect("no alarm"), Looked::Off);
}

async fn a_lock_of_another_tenant_is_an_alarm() {
    let server = RedisServer::start();
    let cache = over(&server);
    let (alice, bob) = (tenant(), tenant());
    for owner in [alice, bob] {
        assert!(cache.lock(&question(owner, "who?"), id(), KEEP).await.expect("free"));
    }
    let (hers, his) = (only_key(&server, alice).await, only_key(&server, bob).await);
    copied(&server, &his, &hers).await;
    let error = cache.lock(&question(alice, "who?"), id(), KEEP).await.expect_err("it is not hers");
    assert_eq!(error.kind, ErrorKind::Foreign);
    let error = cache.unlock(&question(alice, "who?"), id()).await.expect_err("it is not hers");
    assert_eq!(error.kind, ErrorKind::Foreign);
    // One that cannot be read keeps nobody from making what is wanted.
    let mut connection = server.connection().await;
    let _: () = connection.set(&hers, "nonsense").await.expect("set");
    let made = async { Ok::<_, StoreError>(b"made".to_vec()) };
    let made = used(&server).get_or_make(&question(alice, "who?"), made).await;
    assert_eq!(made.expect("made"), (b"made".to_vec(), false));
}

async fn keys_are_below_their_tenant_hold_no_text_and_expire() {
    let server = RedisServer::start();
    let caches = used(&server);
    let (owner, namespace) = (tenant(), NamespaceId(id()));
    let keys: [CacheKey; 2] = [question(owner, "canary"), answer(owner, namespace, 1, "canary")];
    let cache = over(&server);
    for key in &keys {
        caches.put(key, b"value").await;
        assert!(cache.lock(key, id(), KEEP).await.expect("free"));
    }
    let mut connection = server.connection().await;
    let names: Vec<String> = connection.keys("*").await.expect("keys");
    assert_eq!(names.len(), 4, "{names:?}");
    for name in names {
        let rest = name.strip_prefix(&format!("bulkhead:{{{owner}}}:")).expect("below its tenant");
        let (kind, hash) = rest.split_once(':').expect("a kind and a hash");
        assert!(["embedding", "answer", "lock"].contains(&kind), "{name}");
        assert!(hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        let left: i64 = connection.pttl(&name).await.expect("a time");
        assert!((1..=300_000).contains(&left), "{name}: {left} ms");
        let value: Vec<u8> = connection.get(&name).await.expect("a value");
        let value = String::from_utf8_lossy(&value).into_owned();
        assert!(value.starts_with(&owner.to_string()) && !value.contains("canary"), "{name}: {value}");
    }
}

async fn a_user_of_one_tenants_keys_can_keep_for_that_tenant_alone() {
    let server = RedisServer::start();
    let (alice, bob) = (tenant(), tenant());
    let mut connection = server.connection().await;
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("server").arg("on").arg(">word").arg(format!("~bulkhead:{{{alice}}}:*"));
    // The rights that docs/services.md says a server of one tenant needs.
    command.arg(&["-@all", "+evalsha", "+script|load", "+get", "+set", "+del", "+time"][..]);
    let _: () = command.query_async(&mut connection).await.expect("a user");
    let mut settings = settings(&server.url());
    (settings.user, settings.password) = ("server".to_owned(), Some("word".into()));
    let caches = caches(Arc::new(cache(&settings, SECRET)), usual());
    let made = async || Ok::<_, StoreError>(b"made".to_vec());
    for cached in [false, true] {
        let made = caches.get_or_make(&question(alice, "who?"), made()).await.expect("made");
        assert_eq!(made.1, cached);
    }
    for _ in 0..2 {
        let made = caches.get_or_make(&question(bob, "who?"), made()).await.expect("made");
        assert_eq!(made, (b"made".to_vec(), false));
    }
    let keys: Vec<String> = connection.keys("*").await.expect("keys");
    assert!(keys.iter().all(|key| key.contains(&alice.to_string())), "{keys:?}");
    assert!(keys.len() == 1, "the lock is let go of: {keys:?}");
}

async fn values_are_never_swapped_however_many_are_given_up() {
    let server = RedisServer::start();
    let cache = Arc::new(over(&server));
    let callers = (0..64_u32).map(|n| {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move {
            let owner = tenant();
            let key = question(owner, "who?");
            cache.put(&key, owner.to_string().as_bytes(), KEEP).await.expect("put");
            let mut answered = 0;
            for round in 0..100_u32 {
                let call = cache.get(&key);
                if (round + n) % 3 == 0 {
                    let patience = Duration::from_micros(u64::from(round % 20) * 10);
                    let _given_up = tokio::time::timeout(patience, call).await;
                    continue;
                }
                assert_eq!(call.await.expect("its own"), Some(owner.to_string().into_bytes()));
                answered += 1;
            }
            answered
        })
    });
    let answered: u32 =
        futures::future::join_all(callers).await.into_iter().map(|n| n.expect("its own")).sum();
    assert!(answered > 4000, "{answered}");
}

async fn a_tenants_keys_are_counted_and_removed_among_many_and_no_others() {
    let server = RedisServer::start();
    let (caches, tenants) = (over(&server), tenants(&settings(&server.url())));
    let (alice, bob) = (tenant(), tenant());
    for n in 0..700_u32 {
        for owner in [alice, bob] {
            caches.put(&question(owner, &n.to_string()), b"value", KEEP).await.expect("put");
        }
    }
    assert!(caches.lock(&question(alice, "who?"), id(), KEEP).await.expect("free"));
    // Counts too, and keys that only look like hers.
    let counts = Arc::new(limiter(&settings(&server.url()), SECRET));
    count(&*counts, &RateKey::Tenant(alice), 10).await;
    let mut connection = server.connection().await;
    let lookalikes =
        [format!("bulkhead:{{{alice}}}"), format!("x:bulkhead:{{{alice}}}:answer:1"), alice.to_string()];
    for name in &lookalikes {
        let _: () = connection.set(name, "a value").await.expect("set");
    }
    assert_eq!(tenants.held(alice).await.expect("counted"), 702);
    assert_eq!(tenants.forget(alice).await.expect("forgotten"), 702);
    assert_eq!(tenants.held(alice).await.expect("counted"), 0);
    assert_eq!(tenants.forget(alice).await.expect("nothing is no error"), 0);
    assert_eq!(tenants.held(bob).await.expect("counted"), 700);
    let left: usize = connection.exists(&lookalikes[..]).await.expect("counted");
    assert_eq!(left, lookalikes.len());
}

async fn a_redis_that_is_away_or_forbids_it_forgets_nothing_and_says_so() {
    let server = RedisServer::start();
    let owner = tenant();
    over(&server).put(&question(owner, "who?"), b"value", KEEP).await.expect("put");
    let mut connection = server.connection().await;
    for (rights, kept) in [(&["+scan"][..], 1), (&["+unlink"], 1), (&["+scan", "+unlink"], 0)] {
        let mut command = redis::cmd("ACL");
        command.arg(&["SETUSER", "server", "reset", "on", ">word", "~bulkhead:*", "-@all"]).arg(rights);
        let _: () = command.query_async(&mut connection).await.expect("a user");
        let mut settings = settings(&server.url());
        (settings.user, settings.password) = ("server".to_owned(), Some("word".into()));
        assert_eq!(tenants(&settings).forget(owner).await.is_err(), kept == 1, "{rights:?}");
        assert_eq!(over(&server).get(&question(owner, "who?")).await.expect("its own").iter().count(), kept);
    }
    let tenants = tenants(&settings(&server.url()));
    server.process.pause();
    let begun = Instant::now();
    for error in
        [tenants.forget(owner).await, tenants.held(owner).await].map(|called| called.expect_err("away"))
    {
        assert!(matches!(error.kind, ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    }
    assert!(begun.elapsed() < 2 * DEADLINE + Duration::from_secs(1), "{:?}", begun.elapsed());
    server.process.resume();
}
