//! From the system of record to the indexes: what changed since a position, in order.

use std::time::Duration;

use async_trait::async_trait;
use pgvector::{SparseVector, Vector};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::error::failed;
use super::transaction::TenantTransaction;
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};
use crate::store::error::StoreError;
use crate::store::handles::{Corpus, Stores};
use crate::store::upkeep;
use crate::store::vector::{Point, Position, Terms};

/// Writing transactions of which history is read at once.
const HISTORY_PAGE: i64 = 512;
/// History older than this goes, though a consumer has not passed it: one that was absent for longer rebuilds.
const HISTORY_KEPT: Duration = Duration::from_hours(24);

/// What changed since a position.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Chunks that came, and are still there.
    pub added: Vec<Point>,
    /// Chunks that went.
    pub removed: Vec<ChunkId>,
    /// Everything up to here is in these changes.
    pub through: Seq,
}

/// How the history reaches an index that stands at a position.
#[derive(Debug, Clone, PartialEq)]
pub enum History {
    /// These changes lead on from there; `through` is the position itself when there are none.
    Changes(Changes),
    /// It does not: the position is ahead of the record, or what followed it was forgotten.
    Broken,
    /// The namespace is there no more, and its index is to go.
    Gone,
}

impl Stores {
    /// Namespaces after `after`, by identity, whose index on this server lags behind them; a caller goes round.
    /// With `every`, all namespaces.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn projection_backlog(
        &self,
        consumer: &str,
        every: bool,
        after: Option<(TenantId, NamespaceId)>,
        limit: i64,
    ) -> Result<Vec<(TenantId, NamespaceId)>, StoreError> {
        let (tenant, namespace) = after.map_or((Uuid::nil(), Uuid::nil()), |(t, n)| (t.0, n.0));
        let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
            "select n.tenant_id, n.namespace_id from namespace n
             left join consumer c on c.tenant_id = n.tenant_id and c.namespace_id = n.namespace_id
                 and c.consumer = $1
             where (n.tenant_id, n.namespace_id) > ($2, $3) and ($4 or n.seq > coalesce(c.seq, 0))
             order by n.tenant_id, n.namespace_id limit $5",
        )
        .bind(consumer)
        .bind(tenant)
        .bind(namespace)
        .bind(every)
        .bind(limit)
        .fetch_all(&self.postgres().pools.dispatch)
        .await
        .map_err(failed("projection.backlog"))?;
        Ok(rows.into_iter().map(|(t, n)| (TenantId(t), NamespaceId(n))).collect())
    }
}

impl Corpus {
    /// What changed after `since`, in the order of its transactions: about `limit` chunks, but always whole
    /// transactions, each of which fitted into memory when it was written.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn history(&self, since: Seq, limit: i64) -> Result<History, StoreError> {
        const OPERATION: &str = "corpus.history";
        let limit = limit.max(1);
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        let rows = sqlx::query(
            "select n.seq as head, o.seq, o.removed
             from namespace n left join lateral (
                 select seq, removed from outbox
                 where tenant_id = $1 and namespace_id = $2 and seq > $3 order by seq limit $4) o on true
             where n.tenant_id = $1 and n.namespace_id = $2 order by o.seq",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(since.0)
        .bind(HISTORY_PAGE)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(first) = rows.first() else { return Ok(History::Gone) };
        let head: i64 = first.try_get("head").map_err(failed(OPERATION))?;
        if head == since.0 {
            tx.commit().await?;
            return Ok(History::Changes(Changes { through: since, ..Changes::default() }));
        }
        let Some(removals) = removals(&rows, since, limit).map_err(failed(OPERATION))? else {
            return Ok(History::Broken);
        };
        let last = removals.last().map_or(since, |(seq, _)| *seq);
        let (mut added, mut through) = (self.points_between(&mut tx, since, last, limit).await?, last);
        if i64::try_from(added.len()).is_ok_and(|count| count >= limit)
            && let Some((cut, _)) = added.last()
        {
            // The last transaction of the page may go on behind it.
            through = Seq(cut.0 - 1);
            if through == since {
                through = *cut;
                added = self.points_between(&mut tx, since, through, i64::MAX).await?;
            }
        }
        tx.commit().await?;
        let removed = removals.into_iter().take_while(|(seq, _)| *seq <= through);
        let changes = Changes {
            removed: removed.flat_map(|(_, chunks)| chunks).collect(),
            added: added.into_iter().take_while(|(seq, _)| *seq <= through).map(|(_, point)| point).collect(),
            through,
        };
        Ok(History::Changes(changes))
    }

    async fn points_between(
        &self,
        tx: &mut TenantTransaction,
        since: Seq,
        through: Seq,
        limit: i64,
    ) -> Result<Vec<(Seq, Point)>, StoreError> {
        const OPERATION: &str = "corpus.history";
        let rows = sqlx::query(
            "select chunk_id, version, seq, embedding, terms from chunk_embedding
             where tenant_id = $1 and namespace_id = $2 and model_id = $3
                 and home in ('00000000-0000-0000-0000-000000000000', $2) and seq > $4 and seq <= $5
             order by seq, chunk_id limit $6",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(self.partition.model().as_str())
        .bind(since.0)
        .bind(through.0)
        .bind(limit)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let read = |row: &PgRow| Ok((Seq(row.try_get("seq")?), point(row)?));
        rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(failed(OPERATION))
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
             where tenant_id = $1 and namespace_id = $2 and model_id = $3
                 and home in ('00000000-0000-0000-0000-000000000000', $2) and chunk_id > $4
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
        upkeep::flush(&Rows(self), self.vectors(), &self.partition, consumer).await
    }

    /// Registers that a consumer needs the history after `seq`, though it may have passed it before.
    async fn consumer_hold(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        let mut tx = self.reader.begin().await?;
        sqlx::query(
            "insert into consumer as c (tenant_id, namespace_id, consumer, seq, updated_at)
             select $1, $2, $3, $4, $5 from namespace n where n.tenant_id = $1 and n.namespace_id = $2 for share
             on conflict (tenant_id, namespace_id, consumer) do update
                 set seq = least(c.seq, excluded.seq), updated_at = excluded.updated_at",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(consumer)
        .bind(seq.0)
        .bind(self.reader.postgres().clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed("consumer.hold"))?;
        tx.commit().await
    }

    /// Registers how far a consumer has come, and forgets the history that all have passed.
    pub(in crate::store) async fn consumer_pass(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        let now = self.reader.postgres().clock.now();
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
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed("consumer.pass"))?;
        sqlx::query(
            "delete from outbox o where o.tenant_id = $1 and o.namespace_id = $2
                 and (o.seq <= (select min(c.seq) from consumer c where c.tenant_id = $1 and c.namespace_id = $2)
                     or o.seq <= $3 and o.at < $4)",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(seq.0)
        .bind(now - HISTORY_KEPT)
        .execute(&mut *tx)
        .await
        .map_err(failed("consumer.pass"))?;
        tx.commit().await
    }

    /// Forgets a consumer, which needs no history any more.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn consumer_release(&self, consumer: &str) -> Result<(), StoreError> {
        const OPERATION: &str = "consumer.release";
        let mut tx = self.reader.begin().await?;
        sqlx::query("delete from consumer where tenant_id = $1 and namespace_id = $2 and consumer = $3")
            .bind(self.partition.tenant().0)
            .bind(self.partition.namespace().0)
            .bind(consumer)
            .execute(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        tx.commit().await
    }

    /// Writes the index anew from the database, and returns up to where. What came or went meanwhile is to be
    /// applied from there.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Damaged`; what was served before goes on being served.
    pub async fn index_rebuild(&self, consumer: &str, page: i64) -> Result<Seq, StoreError> {
        upkeep::rebuild(&Rows(self), self.vectors(), &self.partition, (consumer, page), self.seq).await
    }

    /// Removes the index of a namespace that is there no more. `false`: it is there, and nothing was done.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn index_forget(&self) -> Result<bool, StoreError> {
        upkeep::forget(&Rows(self), self.vectors(), &self.partition).await
    }

    /// Whether the index should be written anew.
    pub async fn index_wants_rebuild(&self) -> bool {
        self.vectors().wants_rebuild(&self.partition).await
    }
}

/// The rows by which a corpus' index is kept. Of its own, so that a handle does not have these methods.
struct Rows<'a>(&'a Corpus);

#[async_trait]
impl upkeep::Record for Rows<'_> {
    async fn seq_now(&self) -> Result<Option<Seq>, StoreError> {
        let opened = self.0.reader.corpus_get_by_id(self.0.partition.namespace()).await?;
        Ok(opened.map(|corpus| corpus.seq))
    }

    async fn consumer_hold(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        self.0.consumer_hold(consumer, seq).await
    }

    async fn consumer_pass(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        self.0.consumer_pass(consumer, seq).await
    }

    async fn point_page(&self, after: Option<ChunkId>, limit: i64) -> Result<Vec<Point>, StoreError> {
        self.0.point_page(after, limit).await
    }
}

/// A transaction, and the chunks that it removed.
type Removal = (Seq, Vec<ChunkId>);

/// What each transaction removed, in order, about `limit` chunks at once; `None` when one is missing.
fn removals(rows: &[PgRow], since: Seq, limit: i64) -> Result<Option<Vec<Removal>>, sqlx::Error> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut list, mut size) = (Vec::with_capacity(rows.len()), 0);
    for (row, expected) in std::iter::zip(rows, since.0 + 1..) {
        // Absent altogether when the position is ahead of the record or everything was forgotten.
        if row.try_get::<Option<i64>, _>("seq")? != Some(expected) {
            return Ok(None);
        }
        let removed: Vec<Uuid> = row.try_get("removed")?;
        size += removed.len();
        list.push((Seq(expected), removed.into_iter().map(ChunkId).collect()));
        if size >= limit {
            break;
        }
    }
    Ok(Some(list))
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
