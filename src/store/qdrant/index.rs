//! The index over a Qdrant server: where a partition's points are, and how what is served of them is found.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use qdrant_client::Qdrant;
use secrecy::SecretString;

use super::client::{Clients, Points};
use super::fault::{BACKEND, damaged, vanished};
use super::lane::{Lane, Lanes};
use super::name::NameKey;
use super::provisioner::{Making, Provisioner};
use super::registry::{Collection, Hold, Registry};
use super::settings::QdrantSettings;
use super::wire::{self, Head, Stamp};
use crate::domain::Seq;
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, ModelId, TenantId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::{Calls, Layers};
use crate::store::partition::Partition;
use crate::store::placement::Placement;
use crate::store::qdrant_edge::EdgeSettings;

/// How often at most a generation's number is drawn.
const DRAWS: usize = 3;

/// What the index is built on.
pub struct QdrantParts {
    /// Which collections there are.
    pub registry: Arc<dyn Registry>,
    /// The key of the deployment under which collections are named.
    pub names: NameKey,
    /// Numbers of calls to services.
    pub calls: Arc<Calls>,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where identifiers come from.
    pub ids: Arc<dyn IdSource>,
}

/// Vectors in a Qdrant server, one collection for each tenant and model.
///
/// Clones share what they know.
#[derive(Clone)]
pub struct QdrantIndex {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) registry: Arc<dyn Registry>,
    /// As what it writes the collections that are registered there.
    pub(super) hold: Hold,
    pub(super) names: NameKey,
    pub(super) provisioner: Arc<Provisioner>,
    pub(super) clients: Arc<Clients>,
    pub(super) lanes: Lanes,
    pub(super) homes: Cache<(TenantId, ModelId), Collection>,
    pub(super) settings: QdrantSettings,
    pub(super) hnsw_candidates: usize,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<dyn IdSource>,
    #[cfg(any(test, feature = "laboratory"))]
    pub(super) filter_off: std::sync::atomic::AtomicBool,
}

impl QdrantIndex {
    /// An index over the server of these settings. Connects at the first call. Sizes from which there are graphs, and
    /// how they are searched, are the shards'.
    ///
    /// # Errors
    /// `Invalid` when the settings name no server or no API key.
    pub fn new(
        settings: QdrantSettings,
        shards: &EdgeSettings,
        parts: QdrantParts,
    ) -> Result<Self, StoreError> {
        const OPERATION: &str = "vector.open";
        let refused = |words: String| StoreError::new(ErrorKind::Invalid, BACKEND, OPERATION, words);
        let key =
            settings.secret().map_err(|error| refused(format!("vectors.qdrant.api_key_file: {error}")))?;
        let key: SecretString = key.ok_or_else(|| refused("there is no API key".into()))?;
        let deadline = Duration::from_millis(settings.calls.deadline_ms);
        let bare = Qdrant::from_url(&settings.url)
            .timeout(deadline)
            .connect_timeout(deadline)
            .skip_compatibility_check()
            .build()
            .map_err(|_| refused("the address cannot be used".into()))?;
        let QdrantParts { registry, names, calls, clock, ids } = parts;
        let layers = Layers::new(BACKEND, &settings.calls, calls, Arc::clone(&clock));
        let making = Making {
            hnsw_from_points: shards.hnsw_from_points as u64,
            wal_capacity_mb: settings.wal_capacity_mb,
            token_seconds: settings.token_seconds,
        };
        let life = Duration::from_secs(settings.token_seconds);
        let inner = Inner {
            registry,
            hold: Hold::Served,
            names,
            // Made with a collection's files, which takes longer than other calls.
            provisioner: Arc::new(Provisioner::new(bare.clone(), key, making, layers.within(4 * deadline))),
            clients: Arc::new(Clients::new(bare, settings.clients, life, layers, Arc::clone(&clock))),
            lanes: Lanes::new(settings.partitions),
            homes: Cache::new(settings.partitions as u64),
            hnsw_candidates: shards.hnsw_candidates,
            settings,
            clock,
            ids,
            #[cfg(any(test, feature = "laboratory"))]
            filter_off: std::sync::atomic::AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    /// Seconds of Unix time.
    pub(super) fn now(&self) -> i64 {
        self.clock.now().timestamp()
    }

    /// For how long what is left behind stays, seconds.
    pub(super) fn purge_after(&self) -> i64 {
        i64::try_from(self.settings.purge_after_seconds).unwrap_or(i64::MAX)
    }

    /// When what is left behind now may be purged, seconds of Unix time.
    pub(super) fn purge_time(&self) -> i64 {
        self.now().saturating_add(self.purge_after())
    }

    /// The last moment at which what may be purged now was left behind, seconds of Unix time.
    pub(super) fn purge_before(&self) -> i64 {
        self.now().saturating_sub(self.purge_after())
    }

    /// The points of a collection, for its tenant.
    pub(super) fn points<'a>(&'a self, partition: &Partition, home: &'a Collection) -> Points<'a> {
        self.clients.points(&self.provisioner, partition.tenant(), &home.name)
    }

    /// The partition's collection, if one is registered.
    pub(super) async fn home(&self, partition: &Partition) -> Result<Option<Collection>, StoreError> {
        let key = (partition.tenant(), partition.model().clone());
        if let Some(home) = self.homes.get(&key) {
            return Ok(Some(home));
        }
        let home = self.registry.get(partition).await?;
        if let Some(home) = &home {
            self.homes.insert(key, home.clone());
        }
        Ok(home)
    }

    /// Forgets a collection that turned out to be another or none.
    pub(super) fn forget_home(&self, partition: &Partition, home: &Collection) {
        self.homes.invalidate(&(partition.tenant(), partition.model().clone()));
        self.clients.forget(partition.tenant(), &home.name);
    }

    /// The partition's collection, registered and made when there is none. What is registered is read again: a name
    /// that nobody knows any more must not be made.
    pub(super) async fn require_home(
        &self,
        partition: &Partition,
        dimension: usize,
    ) -> Result<Collection, StoreError> {
        let registered = if let Some(home) = self.registry.get(partition).await? {
            home
        } else {
            let placement = self.placement(partition.tenant()).await?;
            self.registry.register(partition, &self.fresh(partition, placement, dimension)).await?
        };
        self.provisioner.create(partition.tenant(), &registered).await?;
        self.homes.insert((partition.tenant(), partition.model().clone()), registered.clone());
        Ok(registered)
    }

    /// Where a tenant without a collection is put. Servers that decide at the same moment may go beyond the ceiling by
    /// as many as they are.
    async fn placement(&self, tenant: TenantId) -> Result<Placement, StoreError> {
        if let Some(chosen) = self.registry.chosen(tenant).await? {
            return Ok(chosen);
        }
        let is_full = self.registry.owned().await? >= self.settings.collections;
        Ok(if is_full { Placement::Shared } else { Placement::Own })
    }

    /// A collection that could be registered for the partition's tenant and model.
    pub(super) fn fresh(&self, partition: &Partition, placement: Placement, dimension: usize) -> Collection {
        let name = match placement {
            Placement::Own => self.names.name(partition.tenant(), partition.model(), self.ids.uuid()),
            Placement::Shared => self.names.shared(partition.model()),
        };
        Collection { name, dimension, placement }
    }

    /// The partition's collection and what is served of it there. One that is remembered and has nothing of the
    /// partition may be the one that its tenant was moved away from, so the registry is asked again.
    pub(super) async fn served(
        &self,
        partition: &Partition,
        lane: &Lane,
        operation: &'static str,
    ) -> Result<(Option<Collection>, Option<Head>), StoreError> {
        let key = (partition.tenant(), partition.model().clone());
        if let Some(home) = self.homes.get(&key) {
            if let Some(head) = self.read_head(partition, &home, lane, operation).await? {
                return Ok((Some(home), Some(head)));
            }
            self.forget_home(partition, &home);
        }
        let Some(home) = self.home(partition).await? else { return Ok((None, None)) };
        let head = self.read_head(partition, &home, lane, operation).await?;
        Ok((Some(home), head))
    }

    /// What is served of the partition in a collection, as the server has it; `None` when there is nothing.
    pub(super) async fn read_head(
        &self,
        partition: &Partition,
        home: &Collection,
        lane: &Lane,
        operation: &'static str,
    ) -> Result<Option<Head>, StoreError> {
        let id = wire::head_id(partition, home.placement);
        let point = self.points(partition, home).get(operation, &id).await?;
        let head = match point {
            Some(point) => {
                let unreadable = |_| damaged(operation, "the head of the partition cannot be read");
                wire::head_of(partition, &point.payload).map_err(unreadable)?
            }
            None => None,
        };
        lane.change(|known| known.head = head);
        Ok(head)
    }

    /// Has this head served, unless a later one is.
    pub(super) async fn write_head(
        &self,
        partition: &Partition,
        home: &Collection,
        lane: &Lane,
        head: Head,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let point = [wire::head(partition, home.placement, head, true)];
        let written = self.points(partition, home).upsert(operation, partition, &point, head.stamp).await?;
        if written.is_none() {
            self.forget_home(partition, home);
            return Err(vanished(operation));
        }
        lane.change(|known| {
            known.head = Some(head);
            known.empty = None;
        });
        Ok(())
    }

    /// The number of a new generation, whose ids are not those of the one that is served. `None`: the collection is
    /// not what it was any more.
    pub(super) async fn next_generation(
        &self,
        partition: &Partition,
        home: &Collection,
        served: Option<Head>,
        operation: &'static str,
    ) -> Result<Option<i64>, StoreError> {
        let served = served.map(|head| head.stamp.generation);
        for _ in 0..DRAWS {
            let Some(drawn) = self.registry.next_generation(partition, &home.name, self.hold).await? else {
                self.forget_home(partition, home);
                return Ok(None);
            };
            if served.is_none_or(|served| drawn > served && !wire::share_ids(drawn, served)) {
                return Ok(Some(drawn));
            }
        }
        let words =
            "the registry's generations are behind those of the server, as after restoring an older backup";
        Err(StoreError::new(ErrorKind::Conflict, BACKEND, operation, words))
    }

    /// Begins an index that has no point yet, in a collection that is made if need be.
    pub(super) async fn begin(
        &self,
        partition: &Partition,
        dimension: usize,
        lane: &Lane,
        operation: &'static str,
    ) -> Result<(Collection, Head), StoreError> {
        let home = self.require_home(partition, dimension).await?;
        let generation = self.next_generation(partition, &home, None, operation).await?;
        let generation = generation.ok_or_else(|| vanished(operation))?;
        let seq = lane.known().empty.unwrap_or(Seq(0));
        let head = Head { stamp: Stamp { generation, seq }, at: self.now() };
        self.write_head(partition, &home, lane, head, operation).await?;
        Ok((home, head))
    }

    /// Deletes what has been left behind for long enough: marks of deleted points, and generations before the one that
    /// is served.
    pub(super) async fn purge(
        &self,
        partition: &Partition,
        home: &Collection,
        lane: &Lane,
        head: Head,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let now = self.now();
        if lane.known().purge.is_none_or(|(first, _)| first > now) {
            return Ok(());
        }
        let before = self.purge_before();
        let points = self.points(partition, home);
        points.delete(operation, &wire::gone_before(partition, before)).await?;
        if head.at <= before {
            points.delete(operation, &wire::before(partition, head.stamp.generation)).await?;
        } else {
            // Begun by an earlier process, perhaps.
            lane.soil(head.at.saturating_add(self.purge_after()));
        }
        lane.purged(now);
        self.look_for_drafts(partition, home, lane, head, operation).await
    }
}
