//! A tenant's vectors of one model, written into another collection beside the one that is served, and served then.
//!
//! What is being written is an index of its own over the same server, whose registry knows the other collection alone.
//! So a move is a rebuild, followed by the changes since, by the same code that keeps the index that is served; then
//! the registry's row says which of the two is served. A server that still goes by the old row finds no head where it
//! looks, and asks the registry again.
//!
//! **Invariant:** until the registry's rows are switched, in one transaction, nothing of what is served is changed; what
//! is left of a move that was broken off is registered, and goes with the next one, or after a day.
//! **Invariant:** a move that was overtaken writes no further generation, serves nothing, and takes nothing away: where
//! tenants share a collection, what it has written is where the later one writes.

use std::sync::Arc;

use async_trait::async_trait;
use moka::sync::Cache;

use super::fault::BACKEND;
use super::index::{Inner, QdrantIndex};
use super::lane::Lanes;
use super::leaving::nobody;
use super::name::CollectionName;
use super::registry::{Collection, Hold, Registered, Registry, State};
use crate::config::crash_point;
use crate::domain::ids::{ModelId, TenantId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::partition::Partition;
use crate::store::placement::Placement;
use crate::store::vector::VectorIndex;

/// A collection that is being written to be served in place of another.
pub struct Staged {
    served: Arc<Inner>,
    index: QdrantIndex,
    nobody: Partition,
    from: Collection,
    to: Collection,
    /// The number of this move, by which it is known whether another has come after it.
    number: i64,
}

impl QdrantIndex {
    /// Registers a collection in this placement for each model of a tenant whose vectors are elsewhere. What an earlier
    /// move left behind goes.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Conflict` when another move came between.
    pub async fn stage(&self, tenant: TenantId, to: Placement) -> Result<Vec<Staged>, StoreError> {
        const OPERATION: &str = "vector.stage";
        let inner = &self.inner;
        let rows = inner.registry.list(tenant).await?;
        let mut staged = Vec::new();
        for row in &rows {
            let nobody = nobody(tenant, &row.model);
            inner.clear_listed(&nobody, row, OPERATION).await?;
        }
        for row in rows.iter().filter(|row| row.state == State::Served && row.collection.placement != to) {
            let (nobody, from) = (nobody(tenant, &row.model), row.collection.clone());
            let to = inner.fresh(&nobody, to, from.dimension);
            let number = inner.registry.stage(&nobody, &to).await?;
            inner.provisioner.create(tenant, &to).await?;
            let index = QdrantIndex { inner: Arc::new(inner.beside(&nobody, &to, number)) };
            staged.push(Staged { served: Arc::clone(inner), index, nobody, from, to, number });
        }
        Ok(staged)
    }
}

impl Inner {
    /// The same server, with one collection in the registry, which the move of this number writes.
    fn beside(&self, nobody: &Partition, to: &Collection, number: i64) -> Self {
        let (registry, nobody, to) = (Arc::clone(&self.registry), nobody.clone(), to.clone());
        let registry = One { registry, nobody, to, hold: Hold::Moving(number) };
        Self {
            registry: Arc::new(registry),
            hold: Hold::Moving(number),
            names: self.names.clone(),
            provisioner: Arc::clone(&self.provisioner),
            clients: Arc::clone(&self.clients),
            lanes: Lanes::new(self.settings.partitions),
            homes: Cache::new(1),
            settings: self.settings.clone(),
            hnsw_candidates: self.hnsw_candidates,
            clock: Arc::clone(&self.clock),
            ids: Arc::clone(&self.ids),
            #[cfg(any(test, feature = "laboratory"))]
            filter_off: std::sync::atomic::AtomicBool::new(false),
        }
    }
}

impl Staged {
    /// The index that is being written.
    #[must_use]
    pub fn index(&self) -> Arc<dyn VectorIndex> {
        Arc::new(self.index.clone())
    }

    /// The model whose vectors it holds.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        self.nobody.model()
    }

    /// Serves what was written, and removes what was served before.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`, `Conflict` when another move came between; nothing changed. What cannot be removed
    /// is no error: whoever sweeps removes it.
    pub async fn switch(self) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.switch";
        let (served, nobody) = (&self.served, &self.nobody);
        {
            let life = served.lanes.life(nobody);
            let _life = life.write().await;
            if !served.registry.switch(nobody, &self.from.name, (&self.to.name, self.number)).await? {
                let words = "another move of this tenant came between";
                return Err(StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, words));
            }
            served.forget_home(nobody, &self.from);
            served.lanes.forget_heads(nobody.tenant(), nobody.model());
        }
        crash_point("vectors-switched");
        if let Err(error) = served.clear_out(nobody, &self.from, OPERATION).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(tenant = %nobody.tenant(), error, "what a tenant was moved from stays for now");
        }
        Ok(())
    }

    /// Gives the move up, and removes what was written, unless a later move writes there or has been served by now.
    pub async fn abandon(self) {
        const OPERATION: &str = "vector.abandon";
        let (served, nobody) = (&self.served, &self.nobody);
        let gone = async {
            if served.registry.leave(nobody, &self.to.name, Hold::Moving(self.number)).await? {
                served.clear_out(nobody, &self.to, OPERATION).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = gone.await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(tenant = %nobody.tenant(), error, "what a move had written stays for now");
        }
    }
}

/// A registry that knows one collection of one tenant and model, as long as the move writes it. What is noted there is
/// noted in the real one; the collection itself comes and goes with the move.
struct One {
    registry: Arc<dyn Registry>,
    nobody: Partition,
    to: Collection,
    hold: Hold,
}

impl One {
    fn is_meant(&self, partition: &Partition) -> bool {
        (partition.tenant(), partition.model()) == (self.nobody.tenant(), self.nobody.model())
    }

    fn refused(&self, operation: &'static str) -> StoreError {
        let words = format!("{} is written by a move that is under way, or was overtaken", self.to.name);
        StoreError::new(ErrorKind::Conflict, BACKEND, operation, words)
    }
}

#[async_trait]
impl Registry for One {
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError> {
        if !self.is_meant(partition) {
            return Ok(None);
        }
        let rows = self.registry.list(partition.tenant()).await?;
        let own = rows.iter().find(|row| (&row.model, &row.collection) == (partition.model(), &self.to));
        Ok(own.filter(|row| row.hold() == Some(self.hold)).map(|row| row.collection.clone()))
    }

    async fn register(&self, partition: &Partition, _fresh: &Collection) -> Result<Collection, StoreError> {
        self.get(partition).await?.ok_or_else(|| self.refused("collection.register"))
    }

    async fn next_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
        hold: Hold,
    ) -> Result<Option<i64>, StoreError> {
        self.registry.next_generation(partition, name, hold).await
    }

    async fn leave(
        &self,
        _partition: &Partition,
        _name: &CollectionName,
        _hold: Hold,
    ) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn last_generation(
        &self,
        _partition: &Partition,
        _name: &CollectionName,
    ) -> Result<Option<i64>, StoreError> {
        Ok(None)
    }

    async fn forget(&self, _partition: &Partition, _name: &CollectionName) -> Result<(), StoreError> {
        Err(self.refused("collection.forget"))
    }

    async fn stage(&self, _partition: &Partition, _fresh: &Collection) -> Result<i64, StoreError> {
        Err(self.refused("collection.stage"))
    }

    async fn switch(
        &self,
        _partition: &Partition,
        _from: &CollectionName,
        _to: (&CollectionName, i64),
    ) -> Result<bool, StoreError> {
        Err(self.refused("collection.switch"))
    }

    async fn list(&self, _tenant: TenantId) -> Result<Vec<Registered>, StoreError> {
        Ok(Vec::new())
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }

    async fn owned(&self) -> Result<u64, StoreError> {
        self.registry.owned().await
    }

    async fn chosen(&self, tenant: TenantId) -> Result<Option<Placement>, StoreError> {
        self.registry.chosen(tenant).await
    }
}
