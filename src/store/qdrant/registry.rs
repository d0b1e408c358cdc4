//! What the system of record keeps of collections: whose they are and what they are called.

use async_trait::async_trait;

use super::name::CollectionName;
use crate::domain::ids::{ModelId, TenantId};
use crate::store::error::StoreError;
use crate::store::partition::Partition;

/// A registered collection: all that a tenant's namespaces have of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Its name in Qdrant.
    pub name: CollectionName,
    /// Numbers in its embeddings.
    pub dimension: usize,
}

/// The registry of collections.
///
/// # Errors
/// Every method: `Unavailable` or `Timeout`.
#[async_trait]
pub trait Registry: Send + Sync {
    /// The collection of a partition's tenant and model.
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError>;

    /// Registers a collection, before it is made; the one that is registered already wins.
    async fn register(&self, partition: &Partition, fresh: &Collection) -> Result<Collection, StoreError>;

    /// A generation's number: larger than any that was given for this collection before; `None` when it is not
    /// registered any more.
    async fn next_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
    ) -> Result<Option<i64>, StoreError>;

    /// Forgets a collection of this name, after it was deleted.
    async fn forget(&self, partition: &Partition, name: &CollectionName) -> Result<(), StoreError>;

    /// The collections of a tenant.
    async fn list(&self, tenant: TenantId) -> Result<Vec<(ModelId, Collection)>, StoreError>;

    /// Tenants with collections.
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;
}
