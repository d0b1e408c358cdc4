//! Keeps each namespace's vector index up to date with the database.
//!
//! A namespace is projected by one run at a time. Whoever asks while a run is under way shares the next one,
//! since the run under way may have read the history before the asker's own commit. What nobody asks for, a
//! sweep finds. An index whose history is broken, or that was damaged, is written anew.
//!
//! Fairness: a run takes a place of its tenant's before one of the server's, and both are given in order of
//! arrival; so tenants take turns however many namespaces each of them has.
//!
//! **Invariant:** changes of one namespace are applied in the order of its history, never two at a time.
//! **Invariant:** background runs hold no authority between them; each looks its tenant up again.

mod lane;
mod run;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::runtime::{Runtime, Ticks, TokioRuntime};
use crate::admin::IndexKeeper;
use crate::domain::Seq;
use crate::domain::clock::Clock;
use crate::domain::ids::{NamespaceId, TenantId};
use crate::store::postgres::examine::IndexExamined;
use crate::store::{Corpus, ErrorKind, Partition, StoreError, Stores};
use crate::tenancy::Directory;
use lane::Lane;
pub use source::{Projected, Source};

/// Bounds and times of projection.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectorSettings {
    /// Namespaces projected at once.
    pub concurrent: usize,
    /// Of those, how many one tenant may have.
    pub tenant_concurrent: usize,
    /// Namespaces that may wait for a background run; the sweep finds those for which there is no room.
    pub queue: usize,
    /// Points read and applied at once.
    pub page: usize,
    /// An index is made durable after this many points.
    pub flush_points: u64,
    /// An index is made durable when it has not been for this long, milliseconds.
    pub flush_ms: u64,
    /// How often the sweep looks for indexes that lag, milliseconds.
    pub sweep_ms: u64,
    /// How often the sweep looks for indexes to write anew, milliseconds; a few at a time.
    pub upkeep_ms: u64,
    /// How many it looks at each time.
    pub upkeep_page: usize,
    /// How long a namespace rests after a failed run, milliseconds; doubled each time.
    pub rest_ms: u64,
    /// The longest rest, milliseconds.
    pub longest_rest_ms: u64,
}

impl Default for ProjectorSettings {
    fn default() -> Self {
        Self {
            concurrent: 2,
            tenant_concurrent: 1,
            queue: 1024,
            page: 512,
            flush_points: 5000,
            flush_ms: 2000,
            sweep_ms: 3000,
            upkeep_ms: 10_000,
            upkeep_page: 32,
            rest_ms: 500,
            longest_rest_ms: 60_000,
        }
    }
}

/// What projection has done since the start, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProjectorCounts {
    /// Points added and removed.
    pub points: u64,
    /// Times an index was made durable.
    pub flushes: u64,
    /// Indexes written anew.
    pub rebuilds: u64,
    /// Runs that failed.
    pub failures: u64,
    /// Namespaces that wait for a background run.
    pub waiting: u64,
}

#[derive(Debug, Default)]
struct Counters {
    points: AtomicU64,
    flushes: AtomicU64,
    rebuilds: AtomicU64,
    failures: AtomicU64,
}

/// A namespace, as the dispatcher knows it.
pub type Place = (TenantId, NamespaceId);

/// What a background run is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Order {
    /// Follow the history to its end.
    catch_up: bool,
    /// Make durable, however little there is.
    flush: bool,
    /// Write anew if the index wants it.
    upkeep: bool,
}

impl Order {
    const CATCH_UP: Self = Self { catch_up: true, flush: false, upkeep: false };
    const FLUSH: Self = Self { catch_up: false, flush: true, upkeep: false };
    const UPKEEP: Self = Self { catch_up: false, flush: false, upkeep: true };

    fn and(self, other: Self) -> Self {
        Self {
            catch_up: self.catch_up || other.catch_up,
            flush: self.flush || other.flush,
            upkeep: self.upkeep || other.upkeep,
        }
    }
}

struct Inner {
    source: Arc<dyn Source>,
    directory: Arc<dyn Directory>,
    settings: ProjectorSettings,
    consumer: String,
    clock: Arc<dyn Clock>,
    runtime: Arc<dyn Runtime>,
    lanes: Mutex<BTreeMap<Place, Arc<Lane>>>,
    orders: Mutex<BTreeMap<Place, Order>>,
    places: Semaphore,
    shares: Mutex<BTreeMap<TenantId, Arc<Semaphore>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    counters: Counters,
}

/// Projects namespaces into the vector index. Clones share the work.
#[derive(Clone)]
pub struct Projector {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Projector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Projector").field("consumer", &self.inner.consumer).finish_non_exhaustive()
    }
}

impl Projector {
    /// A projector for this server's indexes. `node` names the server and stays the same over restarts.
    #[must_use]
    pub fn new(
        stores: Stores,
        directory: Arc<dyn Directory>,
        settings: ProjectorSettings,
        node: &str,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self::over(Arc::new(stores), directory, settings, node, (clock, Arc::new(TokioRuntime)))
    }

    /// Under which name a projector of this node is registered as following the history.
    #[must_use]
    pub fn consumer(node: &str) -> String {
        format!("vectors:{node}")
    }

    /// The same over any source and runtime, whose time is the clock's.
    #[must_use]
    pub fn over(
        source: Arc<dyn Source>,
        directory: Arc<dyn Directory>,
        settings: ProjectorSettings,
        node: &str,
        (clock, runtime): (Arc<dyn Clock>, Arc<dyn Runtime>),
    ) -> Self {
        let inner = Inner {
            consumer: Self::consumer(node),
            places: Semaphore::new(settings.concurrent.max(1)),
            source,
            directory,
            settings,
            clock,
            runtime,
            lanes: Mutex::default(),
            orders: Mutex::default(),
            shares: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            counters: Counters::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Brings the namespace's index up to date with everything committed before the call, and returns how far
    /// it has come. Searches find it then; it is made durable later.
    ///
    /// The work goes on when the caller goes away.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`, while stopping too; `Damaged` when the index cannot even be written anew.
    /// The index is behind then, and will be tried again.
    pub async fn project(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        self.project_from(Arc::new(corpus.clone())).await
    }

    /// The same for a namespace of any source.
    ///
    /// # Errors
    /// As [`Projector::project`].
    pub async fn project_from(&self, corpus: Arc<dyn Projected>) -> Result<Seq, StoreError> {
        let inner = Arc::clone(&self.inner);
        let (tell, told) = oneshot::channel();
        let run = async move {
            let (result, wants_upkeep) = inner.project(corpus.as_ref()).await;
            if wants_upkeep {
                inner.order(place_of(corpus.partition()), Order::UPKEEP);
            }
            // Whoever waited may have gone away.
            let _ = tell.send(result);
        };
        self.inner.runtime.spawn(&self.inner.tasks, Box::pin(run));
        told.await.unwrap_or_else(given_up)
    }

    /// Compares the namespace's index with its rows, once it is up to date with everything committed before the
    /// call; with `repair`, writes it anew when they differ, and compares again. Questions go on meanwhile.
    ///
    /// # Errors
    /// As [`Projector::project`].
    pub async fn examine(&self, corpus: &Corpus, repair: bool) -> Result<IndexExamined, StoreError> {
        let (inner, corpus) = (Arc::clone(&self.inner), corpus.clone());
        self.inner
            .tasks
            .spawn(async move { inner.examine(&corpus, repair).await })
            .await
            .unwrap_or_else(given_up)
    }

    /// Writes the namespace's index anew, and returns how far it has come. Questions go on meanwhile.
    ///
    /// # Errors
    /// As [`Projector::project`].
    pub async fn rebuild(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        let (inner, corpus) = (Arc::clone(&self.inner), corpus.clone());
        self.inner.tasks.spawn(async move { inner.renew(&corpus).await }).await.unwrap_or_else(given_up)
    }

    /// Has the namespace's index brought up to date soon. Returns at once; kicks that wait are one.
    pub fn kick(&self, partition: &Partition) {
        self.inner.order(place_of(partition), Order::CATCH_UP);
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> ProjectorCounts {
        let counters = &self.inner.counters;
        ProjectorCounts {
            points: counters.points.load(Ordering::Relaxed),
            flushes: counters.flushes.load(Ordering::Relaxed),
            rebuilds: counters.rebuilds.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
            waiting: self.inner.orders.lock().len() as u64,
        }
    }

    /// Makes every index durable to which something was applied since it last was.
    pub async fn flush(&self) {
        let concurrent = self.inner.settings.concurrent.max(1);
        futures::stream::iter(self.inner.unflushed(Duration::ZERO))
            .for_each_concurrent(concurrent, |place| self.inner.background(place, Order::FLUSH))
            .await;
    }

    /// Sweeps until it is told to stop; then ends what runs at its next page, and makes durable what was applied.
    pub async fn run(self, shutdown: CancellationToken) {
        let inner = &self.inner;
        let settings = &inner.settings;
        let every =
            |milliseconds: u64| Ticks::every(&inner.runtime, Duration::from_millis(milliseconds.max(1)));
        let mut sweep = every(settings.sweep_ms);
        let mut upkeep = every(settings.upkeep_ms);
        let mut flush = every(settings.flush_ms.div_ceil(2));
        let (mut behind, mut kept) = (None, None);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = sweep.tick() => behind = inner.sweep(behind, false).await,
                () = upkeep.tick() => kept = inner.sweep(kept, true).await,
                () = flush.tick() => {
                    for place in inner.unflushed(Duration::from_millis(settings.flush_ms)) {
                        inner.order(place, Order::FLUSH);
                    }
                }
            }
        }
        self.end().await;
        self.flush().await;
    }

    /// Ends what runs at its next page, and waits for it. Whoever asks afterwards is refused.
    pub(super) async fn end(&self) {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
    }
}

/// The error of a task that ended before its work did.
fn given_up<T>(error: impl std::error::Error + Send + Sync + 'static) -> Result<T, StoreError> {
    let words = "a projection was given up";
    Err(StoreError::new(ErrorKind::Internal, "projector", "partition.project", words).with_source(error))
}

#[async_trait::async_trait]
impl IndexKeeper for Projector {
    async fn examine(&self, corpus: &Corpus, repair: bool) -> Result<IndexExamined, StoreError> {
        Self::examine(self, corpus, repair).await
    }

    async fn rebuild(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        Self::rebuild(self, corpus).await
    }
}

fn place_of(partition: &Partition) -> Place {
    (partition.tenant(), partition.namespace())
}

impl Inner {
    /// Has a background run made soon, unless one waits already, which then does this too.
    fn order(self: &Arc<Self>, place: Place, order: Order) {
        if self.stopping.is_cancelled() {
            return;
        }
        let mut orders = self.orders.lock();
        if let Some(waiting) = orders.get_mut(&place) {
            *waiting = waiting.and(order);
            return;
        }
        if orders.len() >= self.settings.queue {
            return;
        }
        orders.insert(place, order);
        drop(orders);
        let inner = Arc::clone(self);
        let run = async move { inner.background(place, Order::default()).await };
        self.runtime.spawn(&self.tasks, Box::pin(run));
    }

    /// What was ordered for this namespace until now.
    fn take_order(&self, place: Place) -> Option<Order> {
        self.orders.lock().remove(&place)
    }

    /// Orders runs of a page of namespaces, and returns where to go on; from the start when it was the last.
    async fn sweep(self: &Arc<Self>, after: Option<Place>, upkeep: bool) -> Option<Place> {
        self.forget_idle();
        let free = self.settings.queue.saturating_sub(self.orders.lock().len());
        let limit = if upkeep { self.settings.upkeep_page.min(free) } else { free };
        if limit == 0 {
            return after;
        }
        let listed = i64::try_from(limit).unwrap_or(i64::MAX);
        match self.source.backlog(&self.consumer, upkeep, after, listed).await {
            Ok(places) => {
                let order = if upkeep { Order::UPKEEP } else { Order::CATCH_UP.and(Order::FLUSH) };
                for place in &places {
                    self.order(*place, order);
                }
                places.last().copied().filter(|_| places.len() == limit)
            }
            Err(error) => {
                tracing::warn!(%error, "the sweep of vector indexes failed and will be repeated");
                after
            }
        }
    }

    fn lane(&self, place: Place) -> Arc<Lane> {
        Arc::clone(self.lanes.lock().entry(place).or_default())
    }

    fn share(&self, tenant: TenantId) -> Arc<Semaphore> {
        let share = self.settings.tenant_concurrent.max(1);
        let mut shares = self.shares.lock();
        Arc::clone(shares.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(share))))
    }

    /// Namespaces whose index has not been durable for `age`.
    fn unflushed(&self, age: Duration) -> Vec<Place> {
        let now = self.clock.instant();
        let lanes = self.lanes.lock();
        let due = |lane: &Lane| lane.dirty_since().is_some_and(|since| now >= since + age);
        lanes.iter().filter(|(_, lane)| due(lane)).map(|(place, _)| *place).collect()
    }

    /// Forgets what need not be remembered of namespaces that rest.
    fn forget_idle(&self) {
        let now = self.clock.instant();
        self.lanes.lock().retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_idle(now));
        self.shares.lock().retain(|_, share| Arc::strong_count(share) > 1);
    }
}
