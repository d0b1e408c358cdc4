//! Switches and plants for the test suite: layer 6 off, and rows where they do not belong. Releases do not
//! have this.

use std::sync::atomic::Ordering;

use super::fault::Fault;
use super::index::EdgeIndex;
use super::slot::State;
use crate::domain::ids::ChunkId;
use crate::store::error::StoreError;
use crate::store::partition::Partition;
use crate::store::vector::Point;

impl EdgeIndex {
    /// Searches without the tag filter, or with it again.
    pub fn laboratory_filter_off(&self, is_off: bool) {
        self.inner.filter_off.store(is_off, Ordering::Relaxed);
    }

    /// Writes a point tagged with one partition into the shard of another, which must be open.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn laboratory_plant(
        &self,
        shard_of: &Partition,
        tag: &Partition,
        point: Point,
    ) -> Result<(), StoreError> {
        let operation = "laboratory.plant";
        let slot = self.inner.slot(shard_of);
        let _writer = slot.writer.lock().await;
        let state = self.inner.reading(&slot).await.map_err(|fault| fault.into_store(operation))?;
        if let State::Served(served) = &*state
            && let Some(shard) = &served.shard
        {
            shard.upsert(tag, &[point]).map_err(|fault| fault.into_store(operation))?;
        }
        Ok(())
    }

    /// Loses a point of a shard, which must be open.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn laboratory_lose(&self, shard_of: &Partition, chunk: ChunkId) -> Result<(), StoreError> {
        let operation = "laboratory.lose";
        let slot = self.inner.slot(shard_of);
        let _writer = slot.writer.lock().await;
        let state = self.inner.reading(&slot).await.map_err(|fault| fault.into_store(operation))?;
        if let State::Served(served) = &*state
            && let Some(shard) = &served.shard
        {
            shard.delete(&[chunk]).map_err(|fault| fault.into_store(operation))?;
        }
        Ok(())
    }

    /// Has an open shard closed as a panic in it does: the next call opens what was flushed.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn laboratory_interrupt(&self, shard_of: &Partition) -> Result<(), StoreError> {
        let operation = "laboratory.interrupt";
        let slot = self.inner.slot(shard_of);
        let state = self.inner.reading(&slot).await.map_err(|fault| fault.into_store(operation))?;
        if let State::Served(served) = &*state {
            served.note(&Fault::Interrupted("as the test wishes".into()));
        }
        Ok(())
    }
}
