//! The registry of Qdrant's collections: of each tenant and model one that is served, and others around a move.
//!
//! **Invariant:** a row is read and written under its tenant's own row-level security; what all tenants' rows tell is
//! which tenants there are, and how many collections hold one tenant each.

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
use crate::store::placement::Placement;
use crate::store::qdrant::{Collection, CollectionName, Hold, Registered, Registry, State};

/// The registry in the database.
#[derive(Clone)]
pub struct PostgresRegistry {
    postgres: Postgres,
}

const SERVED: &str = "select name, dimension, placement from vector_collection
     where tenant_id = $1 and model_id = $2 and state = 'served'";

impl PostgresRegistry {
    /// Over this database.
    #[must_use]
    pub fn new(postgres: Postgres) -> Self {
        Self { postgres }
    }

    async fn begin(&self, lane: Lane, tenant: TenantId) -> Result<TenantTransaction, StoreError> {
        self.postgres.begin_with(lane, tenant, Plans::Usual).await
    }

    /// Puts a row there, unless there is one of that name. `false`: there is one, or of this state there can be no
    /// other.
    async fn insert(
        &self,
        tx: &mut TenantTransaction,
        partition: &Partition,
        (fresh, state): (&Collection, State),
        operation: &'static str,
    ) -> Result<bool, StoreError> {
        let dimension = i32::try_from(fresh.dimension).map_err(|_| unreadable(operation))?;
        let inserted = sqlx::query(
            "insert into vector_collection
                 (tenant_id, model_id, name, dimension, placement, state, created_at, changed_at)
             values ($1, $2, $3, $4, $5, $6, $7, $7) on conflict do nothing",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(fresh.name.as_str())
        .bind(dimension)
        .bind(fresh.placement.name())
        .bind(state.name())
        .bind(self.postgres.clock.now())
        .execute(&mut **tx)
        .await
        .map_err(failed(operation))?;
        Ok(inserted.rows_affected() > 0)
    }

    /// A statement on one row, whose first three values are the row's key and whose fourth is the time. How many rows
    /// it changed.
    async fn change_in(
        &self,
        tx: &mut TenantTransaction,
        statement: &'static str,
        partition: &Partition,
        name: &CollectionName,
        operation: &'static str,
    ) -> Result<u64, StoreError> {
        let done = sqlx::query(statement)
            .bind(partition.tenant().0)
            .bind(partition.model().as_str())
            .bind(name.as_str())
            .bind(self.postgres.clock.now())
            .execute(&mut **tx)
            .await
            .map_err(failed(operation))?;
        Ok(done.rows_affected())
    }

    /// The next number of a generation, if the row is in this state and its last move is this one, where one is named.
    async fn draw(
        &self,
        partition: &Partition,
        name: &CollectionName,
        (state, number): (State, Option<i64>),
    ) -> Result<Option<i64>, StoreError> {
        const OPERATION: &str = "collection.generation";
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        let statement = "update vector_collection set generations = generations + 1
             where tenant_id = $1 and model_id = $2 and name = $3 and state = $4
                 and ($5::bigint is null or moves = $5) returning generations";
        let given = sqlx::query_scalar(statement)
            .bind(partition.tenant().0)
            .bind(partition.model().as_str())
            .bind(name.as_str())
            .bind(state.name())
            .bind(number)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(given)
    }
}

fn unreadable(operation: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Internal, "postgres", operation, "a registered collection cannot be read")
}

fn read(row: &PgRow, operation: &'static str) -> Result<Collection, StoreError> {
    let name: String = row.try_get("name").map_err(failed(operation))?;
    let dimension: i32 = row.try_get("dimension").map_err(failed(operation))?;
    let placement: String = row.try_get("placement").map_err(failed(operation))?;
    let name = CollectionName::parse(&name).ok_or_else(|| unreadable(operation))?;
    let dimension = usize::try_from(dimension).map_err(|_| unreadable(operation))?;
    let placement = Placement::parse(&placement).ok_or_else(|| unreadable(operation))?;
    Ok(Collection { name, dimension, placement })
}

fn read_registered(row: &PgRow, operation: &'static str) -> Result<Registered, StoreError> {
    let model: String = row.try_get("model_id").map_err(failed(operation))?;
    let model = ModelId::parse(&model).map_err(|_| unreadable(operation))?;
    let state: String = row.try_get("state").map_err(failed(operation))?;
    let state = State::ALL.into_iter().find(|known| known.name() == state);
    let state = state.ok_or_else(|| unreadable(operation))?;
    let moves: i64 = row.try_get("moves").map_err(failed(operation))?;
    let since: i64 = row.try_get("since").map_err(failed(operation))?;
    Ok(Registered { model, collection: read(row, operation)?, state, moves, since })
}

#[async_trait]
impl Registry for PostgresRegistry {
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError> {
        const OPERATION: &str = "collection.get";
        let mut tx = self.begin(Lane::Query, partition.tenant()).await?;
        let row = sqlx::query(SERVED)
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
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        if !self.insert(&mut tx, partition, (fresh, State::Served), OPERATION).await? {
            // A shared collection that the tenant comes back to.
            let back = "update vector_collection set state = 'served', changed_at = $4
                 where tenant_id = $1 and model_id = $2 and name = $3 and state <> 'served' and not exists (
                     select from vector_collection where tenant_id = $1 and model_id = $2 and state = 'served')";
            self.change_in(&mut tx, back, partition, &fresh.name, OPERATION).await?;
        }
        let row = sqlx::query(SERVED)
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
        hold: Hold,
    ) -> Result<Option<i64>, StoreError> {
        self.draw(partition, name, hold.condition()).await
    }

    async fn leave(
        &self,
        partition: &Partition,
        name: &CollectionName,
        hold: Hold,
    ) -> Result<bool, StoreError> {
        const OPERATION: &str = "collection.leave";
        let (state, number) = hold.condition();
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        let left = sqlx::query(
            "update vector_collection set state = 'left', changed_at = $4
             where tenant_id = $1 and model_id = $2 and name = $3 and state = $5
                 and ($6::bigint is null or moves = $6)",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(name.as_str())
        .bind(self.postgres.clock.now())
        .bind(state.name())
        .bind(number)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(left.rows_affected() > 0)
    }

    async fn last_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
    ) -> Result<Option<i64>, StoreError> {
        self.draw(partition, name, (State::Left, None)).await
    }

    async fn forget(&self, partition: &Partition, name: &CollectionName) -> Result<(), StoreError> {
        const OPERATION: &str = "collection.forget";
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        sqlx::query(
            "delete from vector_collection
             where tenant_id = $1 and model_id = $2 and name = $3 and state = 'left'",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(name.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await
    }

    async fn stage(&self, partition: &Partition, fresh: &Collection) -> Result<i64, StoreError> {
        const OPERATION: &str = "collection.stage";
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        self.insert(&mut tx, partition, (fresh, State::Written), OPERATION).await?;
        let number: Option<i64> = sqlx::query_scalar(
            "update vector_collection set state = 'written', moves = moves + 1, changed_at = $4
             where tenant_id = $1 and model_id = $2 and name = $3 and state <> 'served' returning moves",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(fresh.name.as_str())
        .bind(self.postgres.clock.now())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let number = number.ok_or_else(|| {
            let words = "the collection is served: another move came between";
            StoreError::new(ErrorKind::Conflict, "postgres", OPERATION, words)
        })?;
        tx.commit().await?;
        Ok(number)
    }

    async fn switch(
        &self,
        partition: &Partition,
        from: &CollectionName,
        (to, number): (&CollectionName, i64),
    ) -> Result<bool, StoreError> {
        const OPERATION: &str = "collection.switch";
        let mut tx = self.begin(Lane::Ingest, partition.tenant()).await?;
        let leave = "update vector_collection set state = 'left', changed_at = $4
             where tenant_id = $1 and model_id = $2 and name = $3 and state = 'served'";
        let left = self.change_in(&mut tx, leave, partition, from, OPERATION).await?;
        let served = sqlx::query(
            "update vector_collection set state = 'served', changed_at = $4
             where tenant_id = $1 and model_id = $2 and name = $3 and state = 'written' and moves = $5",
        )
        .bind(partition.tenant().0)
        .bind(partition.model().as_str())
        .bind(to.as_str())
        .bind(self.postgres.clock.now())
        .bind(number)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if (left, served.rows_affected()) != (1, 1) {
            // Dropped, it is rolled back.
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<Registered>, StoreError> {
        const OPERATION: &str = "collection.list";
        let mut tx = self.begin(Lane::Ingest, tenant).await?;
        let rows = sqlx::query(
            "select model_id, name, dimension, placement, state, moves,
                 extract(epoch from coalesce(changed_at, created_at))::bigint as since
             from vector_collection where tenant_id = $1 order by model_id, name",
        )
        .bind(tenant.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        rows.iter().map(|row| read_registered(row, OPERATION)).collect()
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let tenants: Vec<Uuid> = sqlx::query_scalar("select distinct tenant_id from vector_collection")
            .fetch_all(&self.postgres.pools.dispatch)
            .await
            .map_err(failed("collection.tenants"))?;
        Ok(tenants.into_iter().map(TenantId).collect())
    }

    async fn owned(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("select count(*) from vector_collection where placement = 'own'")
            .fetch_one(&self.postgres.pools.dispatch)
            .await
            .map_err(failed("collection.owned"))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn chosen(&self, tenant: TenantId) -> Result<Option<Placement>, StoreError> {
        const OPERATION: &str = "placement.get";
        let mut tx = self.begin(Lane::Ingest, tenant).await?;
        let chosen: Option<String> =
            sqlx::query_scalar("select placement from vector_placement where tenant_id = $1")
                .bind(tenant.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed(OPERATION))?;
        tx.commit().await?;
        chosen.map(|raw| Placement::parse(&raw).ok_or_else(|| unreadable(OPERATION))).transpose()
    }
}
