//! Switches and plants for the test suite: layer 6 off, rows where they do not belong, and the tokens as they are sent.
//! Releases do not have this.

use std::sync::atomic::Ordering;

use secrecy::{ExposeSecret as _, SecretString};

use super::QdrantIndex;
use super::fault::vanished;
use super::token::Access;
use super::wire::{self, Stamp};
use crate::domain::Seq;
use crate::domain::ids::ChunkId;
use crate::store::error::StoreError;
use crate::store::partition::Partition;
use crate::store::vector::Point;

const OPERATION: &str = "laboratory";

impl QdrantIndex {
    /// Searches without the tag filter, or with it again.
    pub fn laboratory_filter_off(&self, is_off: bool) {
        self.inner.filter_off.store(is_off, Ordering::Relaxed);
    }

    /// The name of a partition's collection.
    ///
    /// # Errors
    /// `Unavailable` when there is none.
    pub async fn laboratory_collection(&self, partition: &Partition) -> Result<String, StoreError> {
        let home = self.inner.home(partition).await?.ok_or_else(|| vanished(OPERATION))?;
        Ok(home.name.as_str().to_owned())
    }

    /// The name of the collection that tenants share, of a partition's model.
    #[must_use]
    pub fn laboratory_shared(&self, partition: &Partition) -> String {
        self.inner.names.shared(partition.model()).as_str().to_owned()
    }

    /// A token for a partition's collection.
    ///
    /// # Errors
    /// `Unavailable` when there is no collection.
    pub async fn laboratory_token(
        &self,
        partition: &Partition,
        is_write: bool,
    ) -> Result<SecretString, StoreError> {
        let home = self.inner.home(partition).await?.ok_or_else(|| vanished(OPERATION))?;
        let access = if is_write { Access::Write } else { Access::Read };
        let now = self.inner.clock.now();
        let token = self.inner.provisioner.token(&home.name, access, now)?;
        Ok(SecretString::from(token.secret().expose_secret()))
    }

    /// Writes a point tagged with one partition into the collection of another, as if it were served there.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn laboratory_plant(
        &self,
        collection_of: &Partition,
        tag: &Partition,
        point: Point,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        let home = inner.home(collection_of).await?.ok_or_else(|| vanished(OPERATION))?;
        let lane = inner.lanes.lane(collection_of);
        let head = inner.read_head(collection_of, &home, &lane, OPERATION).await?;
        let head = head.ok_or_else(|| vanished(OPERATION))?;
        let points = [wire::point(tag, &point, head.stamp)];
        let later = Stamp { seq: Seq(head.stamp.seq.0 + 1), ..head.stamp };
        let written = inner.points(collection_of, &home).upsert(OPERATION, tag, &points, later).await?;
        written.ok_or_else(|| vanished(OPERATION))
    }

    /// Has an upsert arrive that was sent for this position and is late, after whatever came since.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn laboratory_late(
        &self,
        partition: &Partition,
        point: Point,
        through: Seq,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        let home = inner.home(partition).await?.ok_or_else(|| vanished(OPERATION))?;
        let lane = inner.lanes.lane(partition);
        let head = inner.read_head(partition, &home, &lane, OPERATION).await?;
        let head = head.ok_or_else(|| vanished(OPERATION))?;
        let stamp = Stamp { seq: through, ..head.stamp };
        inner.write(partition, &home, (&[point], &[]), stamp, OPERATION).await
    }

    /// Loses a point.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn laboratory_lose(&self, partition: &Partition, chunk: ChunkId) -> Result<(), StoreError> {
        let inner = &self.inner;
        let home = inner.home(partition).await?.ok_or_else(|| vanished(OPERATION))?;
        let lane = inner.lanes.lane(partition);
        let head = inner.read_head(partition, &home, &lane, OPERATION).await?;
        let head = head.ok_or_else(|| vanished(OPERATION))?;
        let id = wire::point_id(chunk, head.stamp.generation);
        let filter = qdrant_client::qdrant::Filter::must([qdrant_client::qdrant::Condition::has_id([id])]);
        let deleted = inner.points(partition, &home).delete(OPERATION, &filter).await?;
        deleted.ok_or_else(|| vanished(OPERATION))
    }
}
