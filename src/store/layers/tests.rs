//! What the layers do to calls that fail, hang, are given up or come back.

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::lazy;
use parking_lot::Mutex;
use uuid::Uuid;

use super::*;
use crate::domain::clock::SystemClock;
use crate::telemetry::Metrics;

const OPERATION: &str = "thing.get";

/// A clock that stands still until it is moved.
#[derive(Debug)]
struct Still(Mutex<std::time::Instant>);

impl Clock for Still {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn instant(&self) -> std::time::Instant {
        *self.0.lock()
    }
}

struct World {
    clock: Arc<Still>,
    calls: Arc<Calls>,
    layers: Layers,
    made: AtomicU32,
}

impl World {
    fn new(settings: CallSettings) -> Self {
        let clock = Arc::new(Still(Mutex::new(std::time::Instant::now())));
        let calls = Arc::<Calls>::default();
        let layers = Layers::new("thing", &settings, Arc::clone(&calls), Arc::<Still>::clone(&clock));
        Self { clock, calls, layers, made: AtomicU32::new(0) }
    }

    fn advance(&self, millis: u64) {
        *self.clock.0.lock() += Duration::from_millis(millis);
    }

    /// A call that answers as soon as it is made.
    fn call(&self, kind: Option<ErrorKind>) -> impl Future<Output = Result<(), StoreError>> {
        lazy(move |_| {
            self.made.fetch_add(1, Ordering::Relaxed);
            kind.map_or(Ok(()), |kind| Err(StoreError::new(kind, "thing", OPERATION, "as told")))
        })
    }

    async fn once(&self, kind: Option<ErrorKind>) -> Option<ErrorKind> {
        self.layers.once(OPERATION, None, self.call(kind)).await.err().map(|error| error.kind)
    }

    fn made(&self) -> u32 {
        self.made.swap(0, Ordering::Relaxed)
    }

    fn page(&self) -> String {
        let metrics = Metrics::new(1, 1, Arc::new(SystemClock));
        let calls = Arc::clone(&self.calls);
        metrics.watch(move |page| calls.write(page));
        metrics.page().expect("a page")
    }
}

fn settings() -> CallSettings {
    CallSettings { deadline_ms: 200, attempts: 3, pause_ms: 1, breaker_failures: 5, breaker_rest_ms: 1000 }
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_its_deadline() {
    let world = &World::new(settings());
    let started = std::time::Instant::now();
    let layers = world.layers.within(Duration::from_millis(20));
    let error = layers.once(OPERATION, None, pending::<Result<(), _>>()).await.expect_err("it hangs");
    assert_eq!((error.kind, error.backend, error.operation), (ErrorKind::Timeout, "thing", OPERATION));
    assert!(matches!(error.retry, Retry::After(_)));
    let error = layers.repeatable(OPERATION, None, pending::<Result<(), _>>).await.expect_err("it hangs");
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!((40..10_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn only_what_is_safe_to_repeat_and_failed_in_passing_is_made_again() {
    let world = &World::new(CallSettings { breaker_failures: 100, ..settings() });
    assert_eq!(world.once(Some(ErrorKind::Unavailable)).await, Some(ErrorKind::Unavailable));
    assert_eq!(world.made(), 1);
    let repeated = |kind| world.layers.repeatable(OPERATION, None, move || world.call(Some(kind)));
    for kind in [ErrorKind::Invalid, ErrorKind::Conflict, ErrorKind::Foreign, ErrorKind::Damaged] {
        assert_eq!(repeated(kind).await.expect_err("as told").kind, kind);
        assert_eq!(world.made(), 1, "{kind:?}");
    }
    assert_eq!(repeated(ErrorKind::Unavailable).await.expect_err("as told").kind, ErrorKind::Unavailable);
    assert_eq!(world.made(), 3);
    let answers = Mutex::new(vec![None, Some(ErrorKind::Timeout), Some(ErrorKind::Unavailable)]);
    let call = || world.call(answers.lock().pop().flatten());
    world.layers.repeatable(OPERATION, None, call).await.expect("the third time");
    assert_eq!(world.made(), 3);
}

#[tokio::test]
async fn a_pause_beyond_the_deadline_is_not_waited_for() {
    let world = &World::new(CallSettings { pause_ms: 60_000, ..settings() });
    let call = || world.call(Some(ErrorKind::Unavailable));
    let error = world.layers.repeatable(OPERATION, None, call).await.expect_err("as told");
    // The service's own words, not that time ran out.
    assert_eq!((error.kind, error.context.as_str(), world.made()), (ErrorKind::Unavailable, "as told", 1));
}

#[tokio::test]
async fn a_service_that_fails_in_a_row_is_left_alone_until_one_call_finds_it_back() {
    let world = &World::new(settings());
    for kind in [Some(ErrorKind::Unavailable), Some(ErrorKind::Timeout)].repeat(2) {
        world.once(kind).await;
    }
    assert_eq!(world.once(None).await, None);
    for _ in 0..5 {
        world.once(Some(ErrorKind::Timeout)).await;
    }
    assert_eq!(world.made(), 10);
    assert!(world.layers.is_left_alone());

    world.advance(400);
    let error = world.layers.once(OPERATION, None, world.call(None)).await.expect_err("it rests");
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::After(Duration::from_millis(600))));
    let error = world.layers.repeatable(OPERATION, None, || world.call(None)).await.expect_err("it rests");
    assert_eq!((error.kind, world.made()), (ErrorKind::Unavailable, 0));
    assert!(world.page().contains("bulkhead_store_resting{backend=\"thing\"} 1"), "{}", world.page());
    assert_eq!(world.calls.left_alone(), ["thing"]);

    // One that fails when it tries, and the rest begins anew.
    world.advance(600);
    assert_eq!(world.once(Some(ErrorKind::Unavailable)).await, Some(ErrorKind::Unavailable));
    world.advance(999);
    assert_eq!((world.once(None).await, world.made()), (Some(ErrorKind::Unavailable), 1));

    // While one tries, the others are refused.
    world.advance(1);
    let mut trial = Box::pin(world.layers.once(OPERATION, None, async {
        tokio::task::yield_now().await;
        world.call(None).await
    }));
    assert!(trial.as_mut().now_or_never().is_none());
    assert_eq!(world.once(None).await, Some(ErrorKind::Unavailable));
    trial.await.expect("it is back");
    assert_eq!((world.once(None).await, world.made()), (None, 2));
    assert!(world.page().contains("bulkhead_store_resting{backend=\"thing\"} 0"), "{}", world.page());
    assert!(world.calls.left_alone().is_empty());
}

#[tokio::test]
async fn what_callers_do_wrong_or_give_up_counts_against_no_service() {
    let world = &World::new(settings());
    let kinds = [ErrorKind::Invalid, ErrorKind::Conflict, ErrorKind::Damaged, ErrorKind::Foreign];
    for kind in kinds.into_iter().cycle().take(100) {
        assert_eq!(world.once(Some(kind)).await, Some(kind));
    }
    for _ in 0..100 {
        let hung_up = world.layers.once(OPERATION, None, pending::<Result<(), _>>());
        assert!(hung_up.now_or_never().is_none());
    }
    assert_eq!(world.once(None).await, None);
}

#[tokio::test]
async fn a_trial_that_is_given_up_leaves_the_next_one_to_another_call() {
    let world = &World::new(settings());
    for _ in 0..5 {
        world.once(Some(ErrorKind::Unavailable)).await;
    }
    world.advance(1000);
    let trial = world.layers.once(OPERATION, None, pending::<Result<(), _>>());
    assert!(trial.now_or_never().is_none());
    assert_eq!(world.once(None).await, None);
}

#[tokio::test]
async fn a_late_answer_neither_opens_nor_closes() {
    let world = &World::new(settings());
    let gate = tokio::sync::Semaphore::new(0);
    let layers = world.layers.within(Duration::from_mins(1));
    let late = |kind| {
        let gate = &gate;
        let call = async move {
            gate.acquire().await.expect("open").forget();
            world.call(kind).await
        };
        Box::pin(layers.once(OPERATION, None, call))
    };
    let mut before: Vec<_> = [None, Some(ErrorKind::Unavailable)].into_iter().map(late).collect();
    for call in &mut before {
        assert!(call.as_mut().now_or_never().is_none());
    }
    for _ in 0..5 {
        world.once(Some(ErrorKind::Unavailable)).await;
    }
    gate.add_permits(1);
    before.remove(0).await.expect("answered at last");
    assert_eq!(world.once(None).await, Some(ErrorKind::Unavailable), "it is still left alone");
    world.advance(1000);
    assert_eq!(world.once(None).await, None);
    gate.add_permits(1);
    before.remove(0).await.expect_err("failed at last");
    for _ in 0..4 {
        world.once(Some(ErrorKind::Unavailable)).await;
    }
    assert_eq!(world.once(None).await, None, "the fifth failure was of another time");
}

#[tokio::test]
async fn calls_are_counted_by_words_of_this_program() {
    let world = &World::new(settings());
    let tenant = TenantId(Uuid::from_u128(7));
    world.layers.once(OPERATION, Some(tenant), world.call(None)).await.expect("answered");
    for _ in 0..5 {
        world.once(Some(ErrorKind::Unavailable)).await;
    }
    world.once(None).await;
    let page = world.page();
    for (outcome, count) in [("ok", 1), ("unavailable", 5), ("resting", 1)] {
        let labels = format!("backend=\"thing\",operation=\"thing.get\",outcome=\"{outcome}\"");
        let line = format!("bulkhead_store_calls_total{{{labels}}} {count}\n");
        assert!(page.contains(&line), "{line} in {page}");
    }
    let line = "bulkhead_store_call_seconds_count{backend=\"thing\",operation=\"thing.get\"} 6\n";
    assert!(page.contains(line), "{page}");
    assert!(!page.contains(&tenant.to_string()), "{page}");
}

#[test]
fn settings_that_cannot_work_are_told_with_their_section() {
    assert_eq!(CallSettings::default().validate("graph.neo4j.calls"), Vec::<String>::new());
    let many = CallSettings { attempts: 0, ..settings() };
    assert_eq!(many.validate("graph.neo4j.calls"), ["graph.neo4j.calls.attempts: at least 1"]);
    let one = OneCallSettings { breaker_failures: 0, ..OneCallSettings::default() };
    assert_eq!(one.validate("redis.calls"), ["redis.calls.breaker_failures: at least 1"]);
    assert_eq!(OneCallSettings::default().validate("redis.calls"), Vec::<String>::new());
}
