//! What every back end that keeps things does: in memory and in Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, ModelId, NamespaceId, NamespaceName, SystemIds, TenantId};
use bulkhead::store::memory::MemoryCache;
use bulkhead::store::{
    Cache, CacheBackend, CacheKey, CacheKind, CacheSettings, Caches, Epoch, Looked, StoreError,
};
use bulkhead::telemetry::Metrics;
use futures::future::join_all;

use crate::limits::{id, shared, tenant};
use crate::redis_server::{cache, settings};

/// Longer than any test.
pub const KEEP: Duration = Duration::from_mins(5);

type Kept = Arc<dyn Cache>;

/// The settings of a cache, as by default.
pub fn usual() -> CacheSettings {
    CacheSettings {
        backend: CacheBackend::Redis,
        embedding_seconds: 300,
        answer_seconds: 300,
        value_bytes: 65_536,
        memory_bytes: 10_000_000,
        tenant_bytes: 1_000_000,
        wait_seconds: 30,
    }
}

fn memory() -> Kept {
    Arc::new(MemoryCache::new(&usual(), Arc::new(SystemClock)))
}

fn redis() -> Kept {
    Arc::new(cache(&settings(&shared()), SystemIds(SystemClock).secret()))
}

/// The key of a question.
pub fn question(tenant: TenantId, text: &str) -> CacheKey {
    question_in(tenant, "default", text)
}

fn question_in(tenant: TenantId, namespace: &str, text: &str) -> CacheKey {
    let model = ModelId::parse("0123456789abcdef").expect("a model");
    CacheKey::for_laboratory(tenant, &NamespaceName::parse(namespace).expect("a name"), &model, text)
}

/// The key of an answer.
pub fn answer(tenant: TenantId, namespace: NamespaceId, seq: i64, text: &str) -> CacheKey {
    CacheKey::answer(&Epoch::for_laboratory(tenant, namespace, seq), &[text.as_bytes()])
}

/// What a server has of a back end.
pub fn caches(kept: Kept, settings: CacheSettings) -> Caches {
    Caches::new(kept, settings, Arc::new(SystemClock), Arc::new(SystemIds(SystemClock)))
}

/// How often that happened with a kind.
pub fn counted(caches: &Caches, kind: CacheKind, outcome: &str) -> usize {
    let metrics = Metrics::new(1, 1, Arc::new(SystemClock));
    let watched = caches.clone();
    metrics.watch(move |page| watched.write(page));
    let page = metrics.page().expect("a page");
    let name = format!("bulkhead_cache_total{{kind=\"{}\",outcome=\"{outcome}\"}} ", kind.name());
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|line| line.split('.').next()?.parse().ok()).unwrap_or_else(|| panic!("{name}in {page}"))
}

async fn got(kept: &dyn Cache, key: &CacheKey) -> Option<Vec<u8>> {
    kept.get(key).await.expect("an answer")
}

async fn put(kept: &dyn Cache, key: &CacheKey, value: &[u8]) {
    kept.put(key, value, KEEP).await.expect("put");
}

behaviours!(
    redis as in_redis:
    what_is_put_is_got_until_it_expires,
    any_bytes_come_back_as_they_were,
    a_later_value_takes_an_earlier_ones_place,
    what_is_kept_for_one_key_is_absent_for_every_other,
    hostile_questions_are_keys_like_any_other,
    a_lock_has_one_holder_who_alone_lets_go_of_it,
    a_lock_lapses_unless_it_is_held_again,
    of_many_who_lock_at_once_one_does,
    of_many_who_ask_at_once_one_makes_it,
    what_could_not_be_made_is_made_by_the_next,
    who_goes_away_while_making_it_leaves_it_to_the_next,
    who_waits_too_long_makes_it_too,
    a_value_too_large_is_used_and_not_kept,
    a_kind_that_is_not_kept_is_never_looked_up,
);

async fn what_is_put_is_got_until_it_expires(kept: Kept) {
    let key = question(tenant(), "who?");
    assert_eq!(got(&*kept, &key).await, None);
    kept.put(&key, b"value", Duration::from_millis(1500)).await.expect("put");
    assert_eq!(got(&*kept, &key).await.as_deref(), Some(&b"value"[..]));
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(got(&*kept, &key).await, None);
}

async fn any_bytes_come_back_as_they_were(kept: Kept) {
    let owner = tenant();
    let values = [vec![], vec![0], b"\n".to_vec(), b"\r\n$5\r\n".to_vec(), vec![0xff; 65_536]];
    for (n, value) in values.iter().enumerate() {
        let key = question(owner, &n.to_string());
        put(&*kept, &key, value).await;
        assert_eq!(got(&*kept, &key).await.as_ref(), Some(value), "{n}");
    }
}

async fn a_later_value_takes_an_earlier_ones_place(kept: Kept) {
    let key = question(tenant(), "who?");
    for value in [&b"earlier"[..], b"later"] {
        put(&*kept, &key, value).await;
        assert_eq!(got(&*kept, &key).await.as_deref(), Some(value));
    }
}

async fn what_is_kept_for_one_key_is_absent_for_every_other(kept: Kept) {
    let (alice, bob) = (tenant(), tenant());
    let [one, two] = [NamespaceId(id()), NamespaceId(id())];
    put(&*kept, &question(alice, "who?"), b"vector").await;
    put(&*kept, &answer(alice, one, 7, "who?"), b"words").await;
    let others = [
        question(bob, "who?"),
        question_in(alice, "other", "who?"),
        question(alice, "who"),
        answer(bob, one, 7, "who?"),
        answer(alice, two, 7, "who?"),
        answer(alice, one, 8, "who?"),
        answer(alice, one, 6, "who?"),
        answer(alice, one, 7, "who"),
    ];
    for (n, other) in others.iter().enumerate() {
        assert_eq!(got(&*kept, other).await, None, "{n}");
    }
    assert_eq!(got(&*kept, &answer(alice, one, 7, "who?")).await.as_deref(), Some(&b"words"[..]));
}

async fn hostile_questions_are_keys_like_any_other(kept: Kept) {
    let (owner, other) = (tenant(), tenant());
    let texts = [
        String::new(),
        ":".to_owned(),
        "*".to_owned(),
        format!("}}:{{{other}}}:embedding"),
        "\r\nFLUSHALL\r\n".to_owned(),
        "\0".to_owned(),
        "é".repeat(60_000),
    ];
    for text in &texts {
        assert_eq!(got(&*kept, &question(owner, text)).await, None, "{text:.20}");
        put(&*kept, &question(owner, text), text.as_bytes()).await;
    }
    for text in &texts {
        let found = got(&*kept, &question(owner, text)).await;
        // What is too much for the tenant's share of the memory may be gone.
        assert!(found.as_deref().is_none_or(|found| found == text.as_bytes()), "{text:.20}");
        assert!(found.is_some() || text.len() > 60_000, "{text:.20}");
        assert_eq!(got(&*kept, &question(other, text)).await, None, "{text:.20}");
    }
}

async fn a_lock_has_one_holder_who_alone_lets_go_of_it(kept: Kept) {
    let (key, first, second) = (question(tenant(), "who?"), id(), id());
    let lock = async |holder| kept.lock(&key, holder, KEEP).await.expect("an answer");
    assert!(lock(first).await && !lock(second).await);
    assert!(lock(first).await, "it is held again");
    kept.unlock(&key, second).await.expect("nothing of its own");
    assert!(!lock(second).await, "another one's lock stays");
    kept.unlock(&key, first).await.expect("let go");
    assert!(lock(second).await);
    kept.unlock(&key, first).await.expect("nothing of its own any more");
    assert!(!lock(first).await);
    // A lock is no value, and another key's is another one.
    assert_eq!(got(&*kept, &key).await, None);
    assert!(kept.lock(&question(tenant(), "who?"), first, KEEP).await.expect("an answer"));
}

async fn a_lock_lapses_unless_it_is_held_again(kept: Kept) {
    let (key, first, second) = (question(tenant(), "who?"), id(), id());
    let short = Duration::from_millis(1500);
    let lock = async |holder| kept.lock(&key, holder, short).await.expect("an answer");
    assert!(lock(first).await);
    tokio::time::sleep(short / 2).await;
    assert!(lock(first).await);
    tokio::time::sleep(short * 2 / 3).await;
    assert!(!lock(second).await, "it was held again");
    tokio::time::sleep(short).await;
    assert!(lock(second).await && !lock(first).await);
}

async fn of_many_who_lock_at_once_one_does(kept: Kept) {
    let key = question(tenant(), "who?");
    let callers = (0..50).map(|_| {
        let kept = Arc::clone(&kept);
        tokio::spawn(async move { kept.lock(&key, id(), KEEP).await.expect("an answer") })
    });
    let locked = join_all(callers).await.into_iter().filter(|locked| *locked.as_ref().expect("an answer"));
    assert_eq!(locked.count(), 1);
}

/// Makes a value slowly, and counts.
async fn make(made: &AtomicUsize) -> Result<Vec<u8>, StoreError> {
    let n = made.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(format!("made {n}").into_bytes())
}

async fn of_many_who_ask_at_once_one_makes_it(kept: Kept) {
    let (key, made) = (question(tenant(), "who?"), Arc::new(AtomicUsize::new(0)));
    let servers = [caches(Arc::clone(&kept), usual()), caches(kept, usual())];
    let asked = (0..20).map(|n| {
        let (caches, made) = (servers[n % 2].clone(), Arc::clone(&made));
        tokio::spawn(async move { caches.get_or_make(&key, make(&made)).await.expect("made") })
    });
    let told: Vec<_> = join_all(asked).await.into_iter().map(|told| told.expect("told")).collect();
    assert!(told.iter().all(|(value, _)| value == b"made 0"), "{told:?}");
    assert_eq!((made.load(Ordering::SeqCst), told.iter().filter(|(_, cached)| !cached).count()), (1, 1));
    assert_eq!(servers[0].get(&key).await.expect("its own"), Looked::Hit(b"made 0".to_vec()));
}

async fn what_could_not_be_made_is_made_by_the_next(kept: Kept) {
    let (key, caches) = (question(tenant(), "who?"), caches(kept, usual()));
    let error = || StoreError::new(bulkhead::store::ErrorKind::Invalid, "test", "make", "a fault");
    let failed = caches.get_or_make(&key, async { Err::<Vec<u8>, _>(error()) }).await;
    assert_eq!(failed.expect_err("it failed").kind, error().kind);
    let begun = Instant::now();
    let (_, is_kept) = caches.get_or_make(&key, make(&AtomicUsize::new(0))).await.expect("made");
    assert!(!is_kept && begun.elapsed() < Duration::from_secs(3), "nobody holds the lock");
}

async fn who_goes_away_while_making_it_leaves_it_to_the_next(kept: Kept) {
    let (key, caches) = (question(tenant(), "who?"), caches(kept, usual()));
    let never = std::future::pending::<Result<Vec<u8>, StoreError>>();
    let gone = tokio::time::timeout(Duration::from_millis(200), caches.get_or_make(&key, never)).await;
    assert!(gone.is_err());
    // As soon as its lock lapses, long before the others would have waited enough.
    let begun = Instant::now();
    let (_, is_kept) = caches.get_or_make(&key, make(&AtomicUsize::new(0))).await.expect("made");
    assert!(!is_kept && begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

async fn who_waits_too_long_makes_it_too(kept: Kept) {
    let key = question(tenant(), "who?");
    assert!(kept.lock(&key, id(), KEEP).await.expect("an answer"));
    let caches = caches(kept, CacheSettings { wait_seconds: 1, ..usual() });
    let begun = Instant::now();
    let (value, is_kept) = caches.get_or_make(&key, make(&AtomicUsize::new(0))).await.expect("made");
    assert_eq!((value.as_slice(), is_kept), (&b"made 0"[..], false));
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&begun.elapsed()));
}

async fn a_value_too_large_is_used_and_not_kept(kept: Kept) {
    let (key, caches) = (question(tenant(), "who?"), caches(kept, usual()));
    let large = || async { Ok::<_, StoreError>(vec![7; 65_537]) };
    for n in 1..=2 {
        let (value, is_kept) = caches.get_or_make(&key, large()).await.expect("made");
        assert_eq!((value.len(), is_kept), (65_537, false));
        assert_eq!(counted(&caches, CacheKind::Embedding, "too_large"), n);
    }
}

async fn a_kind_that_is_not_kept_is_never_looked_up(kept: Kept) {
    let owner = tenant();
    let (question, answer) = (question(owner, "who?"), answer(owner, NamespaceId(id()), 1, "who?"));
    let caches = caches(kept, CacheSettings { answer_seconds: 0, ..usual() });
    assert!(caches.keeps(CacheKind::Embedding) && !caches.keeps(CacheKind::Answer));
    for (key, looked) in [(&question, Looked::Miss), (&answer, Looked::Off)] {
        assert_eq!(caches.get(key).await.expect("its own"), looked);
        caches.put(key, b"value").await;
    }
    assert_eq!(caches.get(&question).await.expect("its own"), Looked::Hit(b"value".to_vec()));
    assert_eq!(caches.get(&answer).await.expect("its own"), Looked::Off);
    let none = Caches::default();
    assert!(!none.keeps(CacheKind::Embedding));
    assert_eq!(none.get(&question).await.expect("nothing"), Looked::Off);
}
