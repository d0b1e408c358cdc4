//! A generation being written beside the one that is served.
//!
//! **Invariant:** until a head names it, no search shows it; its number is given to no other, so what is left of it
//! when it is given up is never seen, and goes when a later generation is served for long enough.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;

use super::fault::{BACKEND, invalid, vanished};
use super::index::Inner;
use super::lane::Lane;
use super::registry::Collection;
use super::wire::{self, Head, Stamp};
use crate::domain::Seq;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::partition::Partition;
use crate::store::placement::Placement;
use crate::store::vector::{Point, Rebuild};
use crate::store::well_formed;

/// The handle that a caller holds.
pub(super) struct QdrantRebuild {
    inner: Arc<Inner>,
    partition: Partition,
    lane: Arc<Lane>,
    /// Where it is written; nowhere before its first point.
    draft: Option<(Collection, i64)>,
    is_lost: bool,
    _one: OwnedMutexGuard<()>,
}

impl QdrantRebuild {
    pub(super) fn begin(
        inner: &Arc<Inner>,
        partition: &Partition,
        lane: Arc<Lane>,
        one: OwnedMutexGuard<()>,
    ) -> Self {
        let (inner, partition) = (Arc::clone(inner), partition.clone());
        Self { inner, partition, lane, draft: None, is_lost: false, _one: one }
    }

    fn require(&self, operation: &'static str) -> Result<(), StoreError> {
        if self.is_lost {
            let words = "this generation failed before: begin anew";
            return Err(StoreError::new(ErrorKind::Unavailable, BACKEND, operation, words));
        }
        super::require(&self.lane, operation)
    }

    /// A number in the partition's collection.
    async fn draw(&self, home: Collection, operation: &'static str) -> Result<(Collection, i64), StoreError> {
        let (inner, partition) = (&self.inner, &self.partition);
        let served = inner.read_head(partition, &home, &self.lane, operation).await?;
        let generation = inner.next_generation(partition, &home, served, operation).await?;
        Ok((home, generation.ok_or_else(|| vanished(operation))?))
    }

    async fn write(&mut self, points: &[Point], operation: &'static str) -> Result<(), StoreError> {
        let Some(first) = points.first() else { return Ok(()) };
        let life = self.inner.lanes.life(&self.partition);
        let _life = life.read().await;
        let (home, generation) = if let Some(draft) = self.draft.take() {
            draft
        } else {
            let home = self.inner.require_home(&self.partition, first.embedding.len()).await?;
            self.draw(home, operation).await?
        };
        // Before whatever is applied once it is served.
        let stamp = Stamp { generation, seq: Seq(0) };
        self.inner.write(&self.partition, &home, (points, &[]), stamp, operation).await?;
        self.draft = Some((home, generation));
        Ok(())
    }
}

#[async_trait]
impl Rebuild for QdrantRebuild {
    async fn add(&mut self, points: Vec<Point>) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.rebuild.add";
        let dimension = match &self.draft {
            Some((home, _)) => Some(home.dimension),
            None => self.inner.home(&self.partition).await?.map(|home| home.dimension),
        };
        well_formed::points(&points, dimension).map_err(|words| invalid(OPERATION, words))?;
        self.require(OPERATION)?;
        let written = self.write(&points, OPERATION).await;
        self.is_lost |= written.is_err();
        written
    }

    async fn finish(self: Box<Self>, through: Seq) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.rebuild.finish";
        let (inner, partition, lane) = (&self.inner, &self.partition, &self.lane);
        let _writer = lane.writer.lock().await;
        self.require(OPERATION)?;
        let life = inner.lanes.life(partition);
        let _life = life.read().await;
        let draft = match &self.draft {
            Some(draft) => Some(draft.clone()),
            None => match inner.home(partition).await? {
                Some(home) => {
                    let home = inner.require_home(partition, home.dimension).await?;
                    Some(self.draw(home, OPERATION).await?)
                }
                None => None,
            },
        };
        let Some((home, generation)) = draft else {
            lane.change(|known| (known.head, known.empty) = (None, Some(through)));
            lane.acknowledge(through);
            return Ok(());
        };
        let head = Head { stamp: Stamp { generation, seq: through }, at: inner.now() };
        inner.write_head(partition, &home, lane, head, OPERATION).await?;
        let served = inner.read_head(partition, &home, lane, OPERATION).await?;
        match served {
            Some(served) if served.stamp.generation == generation => {}
            Some(_) => {
                let words = "another server has finished a later generation";
                return Err(StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, words));
            }
            None => return Err(vanished(OPERATION)),
        }
        lane.acknowledge(through);
        lane.change(|known| known.draft = None);
        if home.placement == Placement::Own {
            // Nobody has a right to what is another tenant's.
            inner.points(partition, &home).delete(OPERATION, &wire::foreign(partition)).await?;
        }
        // The generation before: searches that are under way still read it.
        lane.soil(inner.purge_time());
        Ok(())
    }
}

impl Drop for QdrantRebuild {
    fn drop(&mut self) {
        if self.draft.is_some() {
            // Given up or finished, there is something to look for.
            self.lane.soil(self.inner.purge_time());
        }
    }
}
