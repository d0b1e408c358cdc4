//! [`VectorIndex`] on the rows themselves: what is committed is in the index.
//!
//! A small partition is searched exactly, a large one by the graph of its own that `partitions` gives it:
//! docs/decisions/vectors-in-sql.md. Nothing is projected. That the index follows the history is still registered,
//! since that is what lets old history go.
//!
//! **Invariant:** nothing here writes a row: `apply`, `remove` and a rebuild leave them to whoever wrote or deletes
//! them.

use async_trait::async_trait;
use uuid::Uuid;

use super::Postgres;
use super::chunks;
use super::error::failed;
use super::pools::Lane;
use super::transaction::{Plans, TenantTransaction};
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::partition::Partition;
use crate::store::vector::{Entries, Entry, Found, Point, Position, Rebuild, VectorIndex, VectorQuery};
use crate::store::well_formed;

/// The name of this back end, and of the database where it answers in place of another.
pub const ROW_INDEX: &str = "pgvector";

/// The index over the rows.
#[derive(Clone)]
pub struct RowIndex {
    postgres: Postgres,
}

/// How far a namespace has come, and how large it is.
struct Standing {
    seq: Seq,
    chunks: u64,
}

fn invalid(operation: &'static str, words: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Invalid, ROW_INDEX, operation, words)
}

impl RowIndex {
    /// Over this database.
    #[must_use]
    pub fn new(postgres: Postgres) -> Self {
        Self { postgres }
    }

    async fn begin(&self, lane: Lane, partition: &Partition) -> Result<TenantTransaction, StoreError> {
        self.postgres.begin_with(lane, partition.tenant(), Plans::Usual).await
    }

    async fn seq(&self, partition: &Partition) -> Result<Option<Seq>, StoreError> {
        let mut tx = self.begin(Lane::Ingest, partition).await?;
        let standing = standing(&mut tx, partition, "vector.position").await?;
        tx.commit().await?;
        Ok(standing.map(|standing| standing.seq))
    }
}

/// `None`: there is no such namespace.
async fn standing(
    tx: &mut TenantTransaction,
    partition: &Partition,
    operation: &'static str,
) -> Result<Option<Standing>, StoreError> {
    let row: Option<(i64, i64)> =
        sqlx::query_as("select seq, chunks from namespace where tenant_id = $1 and namespace_id = $2")
            .bind(partition.tenant().0)
            .bind(partition.namespace().0)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed(operation))?;
    Ok(row.map(|(seq, chunks)| Standing { seq: Seq(seq), chunks: u64::try_from(chunks).unwrap_or(0) }))
}

#[async_trait]
impl VectorIndex for RowIndex {
    fn name(&self) -> &'static str {
        ROW_INDEX
    }

    async fn search(&self, partition: &Partition, query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        const OPERATION: &str = "vector.search";
        let dimension = query.embedding.as_ref().map_or(0, Vec::len);
        well_formed::query(query, dimension).map_err(|words| invalid(OPERATION, words))?;
        let mut tx = self.begin(Lane::Query, partition).await?;
        let Some(Standing { seq, chunks }) = standing(&mut tx, partition, OPERATION).await? else {
            return Ok(None);
        };
        let plans = self.postgres.search_plans(chunks);
        tx.plan(plans).await?;
        // What is committed between the two statements is found too, and is not told.
        let found = chunks::search(&mut tx, partition, query, plans, seq).await?;
        tx.commit().await?;
        Ok(Some(found))
    }

    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError> {
        let seq = self.seq(partition).await?;
        Ok(seq.map(|seq| Position { applied: seq, durable: seq }))
    }

    async fn entries(
        &self,
        partition: &Partition,
        from: Option<ChunkId>,
        limit: usize,
    ) -> Result<Option<Entries>, StoreError> {
        const OPERATION: &str = "vector.entries";
        let mut tx = self.begin(Lane::Ingest, partition).await?;
        if standing(&mut tx, partition, OPERATION).await?.is_none() {
            return Ok(None);
        }
        let rows: Vec<(Uuid, Uuid, Uuid, i64)> = sqlx::query_as(
            "select tenant_id, namespace_id, chunk_id, version from chunk_embedding
             where tenant_id = $1 and namespace_id = $2 and model_id = $3
                 and home in ('00000000-0000-0000-0000-000000000000', $2) and chunk_id >= $4
             order by chunk_id limit $5",
        )
        .bind(partition.tenant().0)
        .bind(partition.namespace().0)
        .bind(partition.model().as_str())
        .bind(from.map_or(Uuid::nil(), |chunk| chunk.0))
        .bind(i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        let next = rows.get(limit).map(|(_, _, chunk, _)| ChunkId(*chunk));
        let entry = |(tenant, namespace, chunk, version): (Uuid, Uuid, Uuid, i64)| Entry {
            tenant: TenantId(tenant),
            namespace: NamespaceId(namespace),
            chunk: ChunkId(chunk),
            version,
        };
        Ok(Some(Entries { list: rows.into_iter().take(limit).map(entry).collect(), next }))
    }

    async fn apply(
        &self,
        partition: &Partition,
        upserts: Vec<Point>,
        _deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.apply";
        well_formed::points(&upserts, None).map_err(|words| invalid(OPERATION, words))?;
        // Whatever a caller read from the history is committed, hence in the index.
        match self.seq(partition).await? {
            Some(seq) if through <= seq => Ok(()),
            _ => {
                let words = "the rows have not come so far";
                Err(StoreError::new(ErrorKind::Conflict, ROW_INDEX, OPERATION, words))
            }
        }
    }

    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError> {
        Ok(self.seq(partition).await?.unwrap_or(Seq(0)))
    }

    async fn rebuild(&self, partition: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        Ok(Box::new(GraphRebuild { postgres: self.postgres.clone(), partition: partition.clone() }))
    }

    async fn wants_rebuild(&self, _partition: &Partition) -> bool {
        false
    }

    /// None: rows go with their namespace, and a partition that was left is dropped by whoever made it.
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }

    async fn partitions(&self, _tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _partition: &Partition) -> Result<(), StoreError> {
        Ok(())
    }
}

/// What there is to write anew: the graph of a large namespace. Of a small one nothing.
struct GraphRebuild {
    postgres: Postgres,
    partition: Partition,
}

#[async_trait]
impl Rebuild for GraphRebuild {
    fn wants_points(&self) -> bool {
        false
    }

    async fn add(&mut self, _points: Vec<Point>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn finish(self: Box<Self>, _through: Seq) -> Result<(), StoreError> {
        self.postgres.graph_renew(&self.partition).await?;
        Ok(())
    }
}
