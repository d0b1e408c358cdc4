//! Shards that tell what is done to them, and fail when they are told to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, TenantId};
use bulkhead::store::qdrant_edge::EdgeIndex;
use bulkhead::store::vector::{Entries, Found, Point, Position, Rebuild, VectorIndex, VectorQuery};
use bulkhead::store::{ErrorKind, Partition, StoreError};
use parking_lot::Mutex;

/// Shards, with what is done to them observed and disturbed.
pub(super) struct Observed {
    pub(super) index: EdgeIndex,
    pub(super) now: Mutex<HashMap<TenantId, usize>>,
    pub(super) most: AtomicUsize,
    pub(super) most_of_a_tenant: AtomicUsize,
    pub(super) flushes: AtomicUsize,
    pub(super) away: AtomicBool,
    pub(super) damaged: AtomicBool,
    pub(super) unwritable: AtomicBool,
    pub(super) slow: AtomicBool,
}

#[async_trait]
impl VectorIndex for Observed {
    fn name(&self) -> &'static str {
        self.index.name()
    }

    async fn search(&self, partition: &Partition, query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        self.index.search(partition, query).await
    }

    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Unavailable, "observed", "position", "away"));
        }
        self.index.position(partition).await
    }

    async fn entries(
        &self,
        partition: &Partition,
        from: Option<ChunkId>,
        limit: usize,
    ) -> Result<Option<Entries>, StoreError> {
        self.index.entries(partition, from, limit).await
    }

    async fn apply(
        &self,
        partition: &Partition,
        upserts: Vec<Point>,
        deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError> {
        if self.damaged.swap(false, Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Damaged, "observed", "apply", "damaged"));
        }
        {
            let mut now = self.now.lock();
            let own = now.entry(partition.tenant()).or_default();
            *own += 1;
            self.most_of_a_tenant.fetch_max(*own, Ordering::Relaxed);
            self.most.fetch_max(now.values().sum(), Ordering::Relaxed);
        }
        if self.slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let applied = self.index.apply(partition, upserts, deletes, through).await;
        *self.now.lock().entry(partition.tenant()).or_default() -= 1;
        applied
    }

    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.index.flush(partition).await
    }

    async fn rebuild(&self, partition: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        if self.unwritable.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Unavailable, "observed", "rebuild", "the disk is full"));
        }
        self.index.rebuild(partition).await
    }

    async fn wants_rebuild(&self, partition: &Partition) -> bool {
        self.index.wants_rebuild(partition).await
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.index.tenants().await
    }

    async fn partitions(&self, tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        self.index.partitions(tenant).await
    }

    async fn remove(&self, partition: &Partition) -> Result<(), StoreError> {
        self.index.remove(partition).await
    }
}
