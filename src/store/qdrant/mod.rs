//! [`VectorIndex`] on a Qdrant server, by gRPC: a collection for each tenant and model, which holds the tenant's
//! namespaces beside each other; or, in the second placement, one collection for each model that tenants share.
//!
//! Layers of isolation here: a collection's name is a keyed hash; a token opens that one collection, for minutes; every
//! search and write filters by tenant and namespace; and every hit carries the tag that it was written with. In a
//! shared collection a token reaches all its tenants: there filter, tag and what comes after are all there is.
//!
//! A change may be carried out after its caller gave up on it. So each point is written with a *stamp* (generation,
//! position) and only where nothing with the same or a later stamp is; a deletion leaves a mark with its own stamp in
//! the point's place, for longer than the token of any late write is valid; and a generation's number is never given
//! twice. How far the index has come is a point as well, written last: what a server loses, it loses with it.
//!
//! **Invariant:** the API key is the provisioner's; all else is done with a token for one collection.
//! **Invariant:** payloads hold identifiers and numbers, no text.
//! **Invariant:** a position is told only as the server has it; when the server cannot say, nobody does.

mod client;
mod fault;
mod index;
#[cfg(any(test, feature = "laboratory"))]
mod laboratory;
mod lane;
mod leaving;
mod leftovers;
mod name;
mod provisioner;
mod rebuild;
mod registry;
mod relocation;
mod search;
mod settings;
mod token;
mod wire;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;

pub use self::index::{QdrantIndex, QdrantParts};
pub use self::name::{CollectionName, NameKey};
pub use self::registry::{Collection, Hold, Registered, Registry, State};
pub use self::relocation::Staged;
pub use self::settings::QdrantSettings;

use self::fault::{BACKEND, damaged, invalid, removed, vanished, went_back};
use self::index::Inner;
use self::lane::Lane;
use self::rebuild::QdrantRebuild;
use self::wire::{Head, Stamp};
use super::error::{ErrorKind, StoreError};
use super::partition::Partition;
use super::vector::{Entries, Found, Point, Position, Rebuild, VectorIndex, VectorQuery};
use super::well_formed;
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, TenantId};

/// A position that the server keeps.
fn kept(seq: Seq) -> Position {
    Position { applied: seq, durable: seq }
}

impl Inner {
    /// Writes one change behind a head. The head moves last.
    async fn write(
        &self,
        partition: &Partition,
        home: &Collection,
        (upserts, deletes): (&[Point], &[ChunkId]),
        stamp: Stamp,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let points = self.points(partition, home);
        let at = self.now();
        let upserts = upserts.iter().map(|point| wire::point(partition, point, stamp));
        let marks = deletes.iter().map(|chunk| wire::gone(partition, *chunk, stamp, at));
        let all: Vec<_> = upserts.chain(marks).collect();
        for slice in all.chunks(self.settings.request_points) {
            if points.upsert(operation, partition, slice, stamp).await?.is_none() {
                self.forget_home(partition, home);
                return Err(vanished(operation));
            }
        }
        Ok(())
    }
}

/// Refuses a partition that was removed.
fn require(lane: &Lane, operation: &'static str) -> Result<(), StoreError> {
    if lane.known().is_removed { Err(removed(operation)) } else { Ok(()) }
}

#[async_trait]
impl VectorIndex for QdrantIndex {
    fn name(&self) -> &'static str {
        BACKEND
    }

    async fn search(&self, partition: &Partition, query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        self.inner.find(partition, query).await
    }

    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError> {
        let inner = &self.inner;
        let lane = inner.lanes.lane(partition);
        let position = match inner.served(partition, &lane, "vector.position").await? {
            _ if lane.known().is_removed => None,
            (Some(_), head) => head.map(|head| head.stamp.seq),
            (None, _) => lane.known().empty,
        };
        lane.acknowledge(position.unwrap_or(Seq(0)));
        Ok(position.map(kept))
    }

    async fn entries(
        &self,
        partition: &Partition,
        from: Option<ChunkId>,
        limit: usize,
    ) -> Result<Option<Entries>, StoreError> {
        const OPERATION: &str = "vector.entries";
        let inner = &self.inner;
        let lane = inner.lanes.lane(partition);
        let (home, head) = inner.served(partition, &lane, OPERATION).await?;
        let Some(home) = home else { return Ok(lane.known().empty.map(|_| Entries::default())) };
        let Some(head) = head else { return Ok(None) };
        let generation = head.stamp.generation;
        let filter = wire::listed(partition, home.placement, generation);
        let from = from.map(|chunk| wire::point_id(chunk, generation));
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let page = inner.points(partition, &home).scroll(OPERATION, &filter, from.as_ref(), limit).await?;
        let Some((points, next)) = page else { return Ok(None) };
        let read = |point: &qdrant_client::qdrant::RetrievedPoint| {
            let entry = wire::read_entry(point.id.as_ref(), &point.payload);
            entry.ok_or_else(|| damaged(OPERATION, "a point without a readable tag"))
        };
        let list = points.iter().map(read).collect::<Result<_, _>>()?;
        let next = next.and_then(|id| wire::chunk_of(Some(&id), generation));
        Ok(Some(Entries { list, next }))
    }

    async fn apply(
        &self,
        partition: &Partition,
        mut upserts: Vec<Point>,
        deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.apply";
        well_formed::points(&upserts, None).map_err(|words| invalid(OPERATION, words))?;
        let gone: HashSet<_> = deletes.iter().copied().collect();
        upserts.retain(|point| !gone.contains(&point.chunk));
        let inner = &self.inner;
        let lane = inner.lanes.lane(partition);
        let _writer = lane.writer.lock().await;
        require(&lane, OPERATION)?;
        let life = inner.lanes.life(partition);
        let _life = life.read().await;
        let (home, head) = inner.served(partition, &lane, OPERATION).await?;
        let dimension = home.as_ref().map(|home| home.dimension);
        well_formed::points(&upserts, dimension).map_err(|words| invalid(OPERATION, words))?;
        let known = lane.known();
        let at = head.map_or(known.empty.unwrap_or(Seq(0)), |head| head.stamp.seq);
        if at < known.reached {
            return Err(went_back(OPERATION));
        }
        let dimension = dimension.or_else(|| upserts.first().map(|point| point.embedding.len()));
        let (home, head) = match (home, head, dimension) {
            (Some(home), Some(head), _) => (home, head),
            (_, _, Some(dimension)) => inner.begin(partition, dimension, &lane, OPERATION).await?,
            (_, _, None) => {
                // A collection needs a dimension.
                let seq = at.max(through);
                lane.change(|known| (known.empty, known.reached) = (Some(seq), seq));
                return Ok(());
            }
        };
        if through <= head.stamp.seq {
            lane.change(|known| known.reached = known.reached.max(head.stamp.seq));
            return Ok(());
        }
        let stamp = Stamp { seq: through, ..head.stamp };
        inner.write(partition, &home, (&upserts, &deletes), stamp, OPERATION).await?;
        inner.write_head(partition, &home, &lane, Head { stamp, ..head }, OPERATION).await?;
        lane.change(|known| known.reached = known.reached.max(through));
        if !deletes.is_empty() {
            lane.soil(inner.purge_time());
        }
        Ok(())
    }

    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError> {
        const OPERATION: &str = "vector.flush";
        let inner = &self.inner;
        let lane = inner.lanes.lane(partition);
        let _writer = lane.writer.lock().await;
        let (home, head) = inner.served(partition, &lane, OPERATION).await?;
        let Some(home) = home else { return Ok(lane.known().empty.unwrap_or(Seq(0))) };
        let Some(head) = head else { return Ok(Seq(0)) };
        inner.purge(partition, &home, &lane, head, OPERATION).await?;
        Ok(head.stamp.seq)
    }

    async fn rebuild(&self, partition: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        const OPERATION: &str = "vector.rebuild";
        let lane = self.inner.lanes.lane(partition);
        let busy = |_| StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, "a rebuild is under way");
        let one = Arc::clone(&lane.rebuilding).try_lock_owned().map_err(busy)?;
        require(&lane, OPERATION)?;
        Ok(Box::new(QdrantRebuild::begin(&self.inner, partition, lane, one)))
    }

    /// Only for what an earlier rebuild left. What was deleted is purged here instead, since whoever keeps indexes up
    /// comes by.
    async fn wants_rebuild(&self, partition: &Partition) -> bool {
        const OPERATION: &str = "vector.purge";
        let inner = &self.inner;
        let lane = inner.lanes.lane(partition);
        let Ok(_writer) = lane.writer.try_lock() else { return false };
        if lane.known().purge.is_none_or(|(first, _)| first > inner.now()) {
            return inner.has_old_draft(&lane);
        }
        let purged = async {
            match inner.served(partition, &lane, OPERATION).await? {
                (Some(home), Some(head)) => inner.purge(partition, &home, &lane, head, OPERATION).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = purged.await {
            let error: &StoreError = &error;
            tracing::debug!(tenant = %partition.tenant(), %error, "what was deleted stays for now");
        }
        inner.has_old_draft(&lane)
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.inner.registry.tenants().await
    }

    async fn partitions(&self, tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        self.inner.partitions(tenant, "vector.partitions").await
    }

    async fn remove(&self, partition: &Partition) -> Result<(), StoreError> {
        self.inner.take_away(partition, true, "vector.remove").await
    }

    async fn retire(&self, partition: &Partition) -> Result<(), StoreError> {
        self.inner.take_away(partition, false, "vector.retire").await
    }
}
