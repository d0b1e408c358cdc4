//! From the system of record to the indexes: what changed since a position, in order.

use pgvector::{SparseVector, Vector};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::error::failed;
use crate::domain::Seq;
use crate::domain::ids::ChunkId;
use crate::store::error::StoreError;
use crate::store::handles::Corpus;
use crate::store::vector::{Point, Position, Terms};

/// What changed between two positions.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Chunks that came, and are still there.
    pub added: Vec<Point>,
    /// Chunks that went.
    pub removed: Vec<ChunkId>,
    /// Everything up to here is in these changes.
    pub through: Seq,
}

/// How the history reaches an index that stands at a position.
#[derive(Debug, Clone)]
pub enum History {
    /// These changes lead on from there.
    Changes(Changes),
    /// It does not: the position is ahead of the record, or what followed it was forgotten.
    Broken,
}

impl Corpus {
    /// The changes after `since`, about `limit` chunks at once; `through` equal to `since` when there are none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn history(&self, since: Seq, limit: i64) -> Result<History, StoreError> {
        const OPERATION: &str = "corpus.history";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        let (seq, oldest): (i64, Option<i64>) = sqlx::query_as(
            "select n.seq, (select min(o.seq) from outbox o where o.tenant_id = $1 and o.namespace_id = $2 and o.seq > $3)
             from namespace n where n.tenant_id = $1 and n.namespace_id = $2",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(since.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?
        .unwrap_or((since.0, None));
        if seq < since.0 || (seq > since.0 && oldest != Some(since.0 + 1)) {
            return Ok(History::Broken);
        }
        let rows = sqlx::query(
            "select o.seq, o.removed, coalesce(e.added, 0) as added
             from (select seq, removed from outbox where tenant_id = $1 and namespace_id = $2 and seq > $3
                   order by seq limit 512) o
             left join lateral (select count(*) as added from chunk c
                 where c.tenant_id = $1 and c.namespace_id = $2 and c.seq = o.seq) e on true
             order by o.seq",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(since.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        // Read after the position, so it may have been forgotten in between.
        let first: Option<i64> = match rows.first() {
            Some(row) => Some(row.try_get("seq").map_err(failed(OPERATION))?),
            None => None,
        };
        if seq > since.0 && first != Some(since.0 + 1) {
            return Ok(History::Broken);
        }
        let mut changes = Changes { through: since, ..Changes::default() };
        let mut size = 0;
        for row in &rows {
            let removed: Vec<Uuid> = row.try_get("removed").map_err(failed(OPERATION))?;
            let added: i64 = row.try_get("added").map_err(failed(OPERATION))?;
            changes.through = Seq(row.try_get("seq").map_err(failed(OPERATION))?);
            size += added + i64::try_from(removed.len()).unwrap_or(i64::MAX);
            changes.removed.extend(removed.into_iter().map(ChunkId));
            if size >= limit {
                break;
            }
        }
        let rows = sqlx::query(
            "select chunk_id, version, embedding, terms from chunk_embedding
             where tenant_id = $1 and namespace_id = $2 and model_id = $3 and seq > $4 and seq <= $5
             order by seq, chunk_id",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(self.partition.model().as_str())
        .bind(since.0)
        .bind(changes.through.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        changes.added = rows.iter().map(point).collect::<Result<_, _>>().map_err(failed(OPERATION))?;
        Ok(History::Changes(changes))
    }

    /// A page of all points, ordered by chunk, for an index that is built anew. To be followed from the
    /// corpus' [`Corpus::seq`] at the time when the first page was read.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn point_page(&self, after: Option<ChunkId>, limit: i64) -> Result<Vec<Point>, StoreError> {
        const OPERATION: &str = "point.page";
        let mut tx = self.reader.begin().await?;
        let rows = sqlx::query(
            "select chunk_id, version, embedding, terms from chunk_embedding
             where tenant_id = $1 and namespace_id = $2 and model_id = $3 and chunk_id > $4
             order by chunk_id limit $5",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(self.partition.model().as_str())
        .bind(after.map_or(Uuid::nil(), |chunk| chunk.0))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        rows.iter().map(point).collect::<Result<_, _>>().map_err(failed(OPERATION))
    }

    /// How far this corpus' index has come; `None` when there is none.
    ///
    /// # Errors
    /// As the index's own.
    pub async fn index_position(&self) -> Result<Option<Position>, StoreError> {
        self.vectors().position(&self.partition).await
    }

    /// Applies changes to this corpus' index.
    ///
    /// # Errors
    /// `Damaged` when the index is to be rebuilt.
    pub async fn index_apply(&self, changes: Changes) -> Result<(), StoreError> {
        self.vectors().apply(&self.partition, changes.added, changes.removed, changes.through).await
    }

    /// Makes durable what was applied, and registers up to where, so that older history can go.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable` or `Timeout`.
    pub async fn index_flush(&self, consumer: &str) -> Result<Seq, StoreError> {
        let durable = self.vectors().flush(&self.partition).await?;
        self.consumer_pass(consumer, durable).await?;
        Ok(durable)
    }

    /// Registers how far a consumer has come, and forgets the history that all have passed.
    async fn consumer_pass(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        let mut tx = self.reader.begin().await?;
        // The share lock waits for a deletion of the namespace, which would not see this row.
        sqlx::query(
            "insert into consumer as c (tenant_id, namespace_id, consumer, seq, updated_at)
             select $1, $2, $3, $4, $5 from namespace n where n.tenant_id = $1 and n.namespace_id = $2 for share
             on conflict (tenant_id, namespace_id, consumer) do update
                 set seq = excluded.seq, updated_at = excluded.updated_at",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(consumer)
        .bind(seq.0)
        .bind(self.reader.postgres().clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed("consumer.pass"))?;
        sqlx::query(
            "delete from outbox o where o.tenant_id = $1 and o.namespace_id = $2
                 and o.seq <= (select min(c.seq) from consumer c where c.tenant_id = $1 and c.namespace_id = $2)",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .execute(&mut *tx)
        .await
        .map_err(failed("consumer.pass"))?;
        tx.commit().await
    }

    /// Writes the index anew from the database, and returns up to where.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Damaged`; what was served before goes on being served.
    pub async fn index_rebuild(&self, consumer: &str, page: i64) -> Result<Seq, StoreError> {
        // Registered first, so that the history from here on is kept until it was applied.
        self.consumer_pass(consumer, self.seq).await?;
        // Points that come while pages are read may be in them or not; the history from here on adds them again.
        let from = self.seq;
        let mut rebuild = self.vectors().rebuild(&self.partition).await?;
        let mut after = None;
        loop {
            let points = self.point_page(after, page).await?;
            let Some(last) = points.last() else { break };
            after = Some(last.chunk);
            rebuild.add(points).await?;
        }
        rebuild.finish(from).await?;
        Ok(from)
    }

    /// Whether the index should be written anew.
    pub async fn index_wants_rebuild(&self) -> bool {
        self.vectors().wants_rebuild(&self.partition).await
    }
}

fn point(row: &PgRow) -> Result<Point, sqlx::Error> {
    let terms: SparseVector = row.try_get("terms")?;
    Ok(Point {
        chunk: ChunkId(row.try_get("chunk_id")?),
        version: row.try_get("version")?,
        embedding: row.try_get::<Vector, _>("embedding")?.to_vec(),
        terms: Terms {
            indices: terms.indices().iter().filter_map(|term| u32::try_from(*term).ok()).collect(),
            values: terms.values().to_vec(),
        },
    })
}
