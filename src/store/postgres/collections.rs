//! The registry of Qdrant's collections, one row for each tenant and model.
//!
//! **Invariant:** a row is read and written under its tenant's own row-level security; what all tenants' rows tell is
//! which tenants there are.

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::Postgres;
use super::error::failed;
use super::pools::Lane;
use super::transaction::{Plans, TenantTransaction};
use crate::domain::ids::{ModelId, TenantId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::partition::Partition;
use crate::store::qdrant::{Collection, CollectionName, Registry};

/// The registry in the database.
#[derive(Clone)]
pub struct PostgresRegistry {
    postgres: Postgres,
}

impl PostgresRegistry {
    /// Over this database.
    #[must_use]
    pub fn new(postgres: Postgres) -> Self {
        Self { postgres }
    }

    async fn begin(&self, lane: Lane, tenant: TenantId) -> Result<TenantTransaction, StoreError> {
        self.postgres.begin_with(lane, tenant, Plans::Usual).await
    }
}

fn unreadable(operation: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Internal, "postgres", operation, "a registered collection cannot be read")
}

fn read(row: &PgRow, operation: &'static str) -> Result<Collection, StoreError> {
    let name: String = row.try_get("name").map_err(failed(operation))?;
    let dimension: i32 = row.try_get("dimension").map_err(failed(operation))?;
    let name = CollectionName::parse(&name).ok_or_else(|| unreadable(operation))?;
    let dimension = usize::try_from(dimension).map_err(|_| unreadable(operation))?;
    Ok(Collection { name, dimension })
}

#[async_trait]
impl Registry for PostgresRegistry {
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError> {
        const OPERATION: &str = "collection.get";
        let mut tx = self.begin(Lane::Query, partition.tenant()).await?;
        let row = sqlx::query(
            "select name, dimension from vector_collection where tenant_id = $1 and model_id = $2",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        row.map(|row| read(&row, OPERATION)).transpose()
    }

    async fn register(&self, partition: &Partition, fresh: &Collection) -> Result<Collection, StoreError> {
        const OPERATION: &str = "collection.register";
        let dimension = i32::try_from(fresh.dimension).map_err(|_| unreadable(OPERATION))?;
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        sqlx::query(
            "insert into vector_collection (tenant_id, model_id, name, dimension, created_at)
             values ($1, $2, $3, $4, $5) on conflict (tenant_id, model_id) do nothing",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(fresh.name.as_str())
        .bind(dimension)
        .bind(self.postgres.clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let row = sqlx::query(
            "select name, dimension from vector_collection where tenant_id = $1 and model_id = $2",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        read(&row, OPERATION)
    }

    async fn next_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
    ) -> Result<Option<i64>, StoreError> {
        const OPERATION: &str = "collection.generation";
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        let given: Option<i64> = sqlx::query_scalar(
            "update vector_collection set generations = generations + 1
             where tenant_id = $1 and model_id = $2 and name = $3 returning generations",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(name.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(given)
    }

    async fn forget(&self, partition: &Partition, name: &CollectionName) -> Result<(), StoreError> {
        const OPERATION: &str = "collection.forget";
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        sqlx::query("delete from vector_collection where tenant_id = $1 and model_id = $2 and name = $3")
            .bind(partition.tenant().0)
            .bind(partition.model().as_str())
            .bind(name.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        tx.commit().await
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<(ModelId, Collection)>, StoreError> {
        const OPERATION: &str = "collection.list";
        let mut tx = self.begin(Lane::Ingest, tenant).await?;
        let rows = sqlx::query(
            "select model_id, name, dimension from vector_collection where tenant_id = $1 order by model_id",
        )
        .bind(tenant.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        let list = rows.iter().map(|row| {
            let model: String = row.try_get("model_id").map_err(failed(OPERATION))?;
            let model = ModelId::parse(&model).map_err(|_| unreadable(OPERATION))?;
            Ok((model, read(row, OPERATION)?))
        });
        list.collect()
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let tenants: Vec<Uuid> = sqlx::query_scalar("select distinct tenant_id from vector_collection")
            .fetch_all(&self.postgres.pools.dispatch)
            .await
            .map_err(failed("collection.tenants"))?;
        Ok(tenants.into_iter().map(TenantId).collect())
    }
}
