//! Keeps the index of graphs up to date with the database.
//!
//! A namespace's graph is made in memory as of its history, as it is for questions. What the index holds is compared
//! with it chunk by chunk, and what differs is written, in transactions of which each leads on from the one before. So
//! whatever a crash, another server or a failure left there is put right by the next run, and nothing has to be known of
//! it. Whoever changed something asks for a run; what nobody asked for, a sweep finds.
//!
//! Fairness: a run takes a place of its tenant's before one of the server's, both in order of arrival; and a namespace
//! whose run failed rests, longer each time. So neither a graph that takes long nor one that cannot be written keeps the
//! others behind. While the index itself is left alone, since it fails whoever calls it, nobody runs and nobody rests.
//!
//! **Invariant:** runs hold no authority between them; each looks its tenant up again.
//! **Invariant:** the index is told that it is complete by the last transaction of a run, and by no other.

mod rests;
mod upkeep;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::graph_keeper::{HeldGraphs, begun};
use super::projector::Place;
use crate::domain::Seq;
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, NamespaceId};
use crate::retrieval::Engine;
use crate::store::graph::{GRAPH_CONSUMER, WholeGraph};
use crate::store::shares::TenantShares;
use crate::store::{Audit, Corpus, ErrorKind, Partition, StoreError, Stores};
use crate::tenancy::{Directory, Permit, Write, reauthorise};
use rests::Rests;

/// Bounds and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphProjectorSettings {
    /// Chunks that are written in one transaction.
    pub write_chunks: usize,
    /// How often namespaces are looked for whose graph lags.
    pub sweep: Duration,
    /// How often some namespaces are looked at, whether they seem to lag or not.
    pub upkeep: Duration,
    /// Namespaces that are listed at once.
    pub page: usize,
    /// Namespaces projected at once.
    pub concurrent: usize,
    /// Of those, how many one tenant may have.
    pub tenant_concurrent: usize,
    /// Namespaces that may wait for a run, or rest; the sweep finds those for which there is no room.
    pub queue: usize,
    /// How long a namespace rests after a failed run, doubled each time, and the longest that it does.
    pub rest: (Duration, Duration),
}

/// How often a run begins anew since the index changed under it.
const ATTEMPTS: usize = 5;
/// One tenant may have this part of what waits, so that its namespaces leave room for others'.
const TENANT_PART: usize = 8;

struct Inner {
    stores: Stores,
    directory: Arc<dyn Directory>,
    engine: Engine,
    audit: Audit,
    ids: Arc<dyn IdSource>,
    clock: Arc<dyn Clock>,
    settings: GraphProjectorSettings,
    asked: GraphKicks,
    held: HeldGraphs,
    /// Those that wait for a run, or are in one.
    busy: Mutex<BTreeSet<Place>>,
    rests: Rests,
    places: Semaphore,
    shares: TenantShares,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// Namespaces for whose graph somebody asked. Clones share them.
#[derive(Clone)]
pub struct GraphKicks {
    most: usize,
    places: Arc<Mutex<BTreeSet<Place>>>,
    wake: Arc<Notify>,
}

impl GraphKicks {
    /// At most so many at once; the sweep finds the others.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, places: Arc::default(), wake: Arc::default() }
    }

    /// Has the namespace's graph brought up to date soon. Returns at once.
    pub fn kick(&self, partition: &Partition) {
        let (mut places, place) = (self.places.lock(), (partition.tenant(), partition.namespace()));
        if has_room(&places, place, self.most) {
            places.insert(place);
        }
        drop(places);
        self.wake.notify_one();
    }

    fn take(&self) -> BTreeSet<Place> {
        std::mem::take(&mut self.places.lock())
    }
}

/// Projects namespaces into the index of graphs. Clones share the work.
#[derive(Clone)]
pub struct GraphProjector(Arc<Inner>);

impl GraphProjector {
    /// A projector that makes graphs as `engine` does, is asked through `asked`, and leaves those alone that are `held`.
    #[must_use]
    pub fn new(
        (stores, directory, audit): (Stores, Arc<dyn Directory>, Audit),
        engine: Engine,
        (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>),
        settings: GraphProjectorSettings,
        (asked, held): (GraphKicks, HeldGraphs),
    ) -> Self {
        Self(Arc::new(Inner {
            stores,
            directory,
            engine,
            audit,
            ids,
            clock,
            settings,
            asked,
            held,
            busy: Mutex::default(),
            rests: Rests::new(settings.queue, settings.rest),
            places: Semaphore::new(settings.concurrent.max(1)),
            shares: TenantShares::new(settings.tenant_concurrent),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// Projects what it is asked for and what it finds, until it is told to stop. Runs that are under way are left;
    /// the next ones put right what they began.
    pub async fn run(self, stop: CancellationToken) {
        let inner = &self.0;
        tokio::select! {
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(inner.keep(), inner.look_after()) } => {}
        }
        inner.stopping.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
    }

    /// Brings the index to everything committed before the call, and returns how far it has come.
    ///
    /// # Errors
    /// The stores' own.
    pub async fn project(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        self.0.project(corpus).await
    }
}

/// Whether one more may wait among `most`, of which a tenant has a part at most.
fn has_room(places: &BTreeSet<Place>, (tenant, _): Place, most: usize) -> bool {
    let own = (tenant, NamespaceId(Uuid::nil()))..=(tenant, NamespaceId(Uuid::max()));
    places.len() < most && places.range(own).count() < most.div_ceil(TENANT_PART)
}

/// The first tick is at once.
fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Where the listing of namespaces goes on.
#[derive(Default)]
struct Listing {
    after: Option<Place>,
    /// Told once; the listing is tried again at the next tick.
    is_away: bool,
}

/// A namespace's turn: there is no other one until this is dropped.
struct Turn {
    inner: Arc<Inner>,
    place: Place,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.busy.lock().remove(&self.place);
    }
}

impl Inner {
    /// Orders runs of namespaces that are asked for, and of those that lag.
    async fn keep(self: &Arc<Self>) {
        let (mut sweep, mut listing) = (every(self.settings.sweep), Listing::default());
        loop {
            let places: Vec<Place> = tokio::select! {
                () = self.asked.wake.notified() => self.asked.take().into_iter().collect(),
                _ = sweep.tick() => self.list(&mut listing, false).await,
            };
            for place in places {
                self.order(place, true);
            }
        }
    }

    /// A page of namespaces: those that lag, or with `all` every one.
    async fn list(&self, listing: &mut Listing, all: bool) -> Vec<Place> {
        if self.stores.graph_is_left_alone() {
            return Vec::new();
        }
        let limit = i64::try_from(self.settings.page).unwrap_or(i64::MAX);
        match self.stores.projection_backlog(GRAPH_CONSUMER, all, listing.after, limit).await {
            Ok(places) => {
                listing.is_away = false;
                listing.after = places.last().copied().filter(|_| places.len() >= self.settings.page);
                places
            }
            Err(error) => {
                if !std::mem::replace(&mut listing.is_away, true) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "namespaces whose graph lags cannot be listed, and will be later");
                }
                Vec::new()
            }
        }
    }

    /// Has the namespace projected soon, unless it has a turn already, rests, or there is no room: the sweep finds it
    /// again as long as it lags. `pass`: it is registered then how far it has come.
    fn order(self: &Arc<Self>, place: Place, pass: bool) {
        if self.rests.has(place, self.clock.instant()) {
            return;
        }
        let mut busy = self.busy.lock();
        if !has_room(&busy, place, self.settings.queue) || !busy.insert(place) {
            return;
        }
        drop(busy);
        let turn = Turn { inner: Arc::clone(self), place };
        self.tasks.spawn(self.stopping.clone().run_until_cancelled_owned(turn.take(pass)));
    }

    /// Looks the tenant up again, and opens the namespace. `None`: it is gone, and its graph with it, or its tenant is
    /// suspended.
    async fn open(
        &self,
        place: Place,
        why: &'static str,
    ) -> Result<Option<(Permit<Write>, Corpus)>, StoreError> {
        let unknown = |error| {
            let words = "the tenant cannot be looked up";
            StoreError::new(ErrorKind::Unavailable, "graph", "graph.project", words).with_source(error)
        };
        let permit = reauthorise(self.directory.as_ref(), place.0, why).await.map_err(unknown)?;
        let Some(permit) = permit else { return Ok(None) };
        let corpus = self.stores.background(&permit).corpus_get_by_id(place.1).await?;
        Ok(corpus.map(|corpus| (permit, corpus)))
    }

    /// Opens the namespace and projects it.
    #[tracing::instrument(name = "jobs.project_graph", level = "error", skip_all, fields(tenant = %place.0))]
    async fn background(&self, place: Place, pass: bool) -> Result<(), StoreError> {
        let Some((_, corpus)) = self.open(place, "graph projection").await? else { return Ok(()) };
        let seq = self.project(&corpus).await?;
        if pass {
            corpus.graph_pass(seq).await?;
        }
        if corpus.tenant().corpus_get_by_id(place.1).await?.is_none() {
            // Deleted meanwhile: what was written after its graph was removed would stay.
            corpus.graph_remove().await?;
        }
        Ok(())
    }

    async fn project(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.bring(corpus).await {
                // Another server was at it.
                Err(error) if error.kind == ErrorKind::Conflict && attempts < ATTEMPTS => {}
                done => return done,
            }
        }
    }

    /// Writes what differs between the index and the graph as it is now.
    async fn bring(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        let at = corpus.graph_head().await?.and_then(|head| head.seq);
        if at == Some(corpus.seq()) || (at.is_none() && corpus.seq() == Seq(0)) {
            return Ok(corpus.seq());
        }
        if let Some(at) = at.filter(|at| *at > corpus.seq()) {
            // Another server knew more; else the record is older than the index, as after a restore.
            let now = corpus.tenant().corpus_get_by_id(corpus.partition().namespace()).await?;
            if now.is_none_or(|now| now.seq() >= at) {
                return Ok(at);
            }
        }
        let Some(head) = begun(corpus, self.ids.as_ref()).await? else { return Ok(corpus.seq()) };
        let graph = self.engine.graph(corpus).await?;
        let seq = graph.seq();
        let list = move || graph.linked().collect();
        let chunks = tokio::task::spawn_blocking(list).await.map_err(|error| {
            let words = "listing it failed";
            StoreError::new(ErrorKind::Internal, "graph", "graph.project", words).with_source(error)
        })?;
        let most = self.settings.write_chunks;
        corpus.graph_bring(head, &WholeGraph { seq, chunks }, (most, self.ids.as_ref())).await?;
        Ok(seq)
    }
}

impl Turn {
    /// Waits for its places, and runs.
    async fn take(self, pass: bool) {
        let Self { inner, place } = &self;
        let (tenant, namespace) = *place;
        let _own = inner.shares.take(tenant).await;
        let Ok(_place) = inner.places.acquire().await else { return };
        // One that is being compared lags until then, and the sweep finds it.
        if inner.stores.graph_is_left_alone() || inner.held.has(*place) {
            return;
        }
        match inner.background(*place, pass).await {
            Ok(()) => {
                if inner.rests.end(*place) {
                    tracing::info!(%tenant, %namespace, "a graph is kept up again");
                }
            }
            // The index failed whoever called it: no fault of this namespace's.
            Err(_) if inner.stores.graph_is_left_alone() => {}
            Err(error) => {
                let rest = inner.rests.begin(*place, inner.clock.instant());
                let error: &dyn std::error::Error = &error;
                tracing::warn!(%tenant, %namespace, error, ?rest, "a graph falls behind and will be tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{ModelId, TenantId};

    #[test]
    fn those_that_are_asked_for_are_bounded() {
        let (kicks, model) = (GraphKicks::new(8), ModelId::parse("00112233445566ff").expect("a model"));
        for number in 0..100 {
            let (tenant, namespace) = (TenantId(Uuid::from_u128(number)), NamespaceId(Uuid::nil()));
            kicks.kick(&Partition::for_laboratory(tenant, namespace, model.clone()));
        }
        assert_eq!(kicks.take().len(), 8);
        assert!(kicks.take().is_empty());
    }

    #[test]
    fn a_tenant_with_many_namespaces_leaves_room_for_others() {
        let mut places = BTreeSet::new();
        let place =
            |tenant, namespace| (TenantId(Uuid::from_u128(tenant)), NamespaceId(Uuid::from_u128(namespace)));
        for namespace in 0..100 {
            if has_room(&places, place(1, namespace), 64) {
                places.insert(place(1, namespace));
            }
        }
        assert_eq!(places.len(), 8);
        assert!(has_room(&places, place(2, 0), 64) && !has_room(&places, place(1, 200), 64));
    }
}
