//! What a graph is built from, and the names of its entities: merged when read, from live chunks only.

use futures::TryStreamExt;
use pgvector::Vector;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::error::failed;
use super::examine::patient;
use crate::domain::Seq;
use crate::domain::ids::ChunkId;
use crate::store::error::StoreError;
use crate::store::handles::Corpus;

/// A chunk as a graph is built from it.
#[derive(Debug, Clone)]
pub struct GraphRow {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its document.
    pub document_id: String,
    /// The document's title.
    pub title: Option<String>,
    /// The nearest heading.
    pub heading: Option<String>,
    /// The text, for the links that it names.
    pub text: String,
    /// Hashes of the entities' normalised names.
    pub keys: Vec<i64>,
    /// What each entity is.
    pub kinds: Vec<String>,
    /// `[f32; dimension]`, unit length.
    pub embedding: Vec<f32>,
}

/// By what labels are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelOrder {
    /// By name.
    Name,
    /// Those first that most chunks mention.
    Mentions,
}

/// Each row by its whole key: docs/decisions/rows-by-their-whole-key.md. The same text for a page and for all, so that
/// both mean the same rows.
macro_rules! graph_rows {
    () => {
        "select c.chunk_id, c.document_id, v.title, c.heading, c.text, coalesce(m.keys, '{}') as keys,
         coalesce(m.kinds, '{}') as kinds, e.embedding
     from (
         select * from chunk c
         where c.tenant_id = $1 and c.namespace_id = $2 and c.seq > $4 and c.chunk_id > $5
         order by c.chunk_id limit $6) c
     cross join lateral (
         select title from document_version v
         where v.tenant_id = $1 and v.namespace_id = $2
             and v.document_id = c.document_id and v.version = c.version offset 0) v
     cross join lateral (
         select embedding from chunk_embedding e
         where e.tenant_id = $1 and e.namespace_id = $2 and e.model_id = $3
             and e.home in ('00000000-0000-0000-0000-000000000000', $2) and e.chunk_id = c.chunk_id
         offset 0) e
     left join lateral (
         select keys, kinds from chunk_mention m
         where m.tenant_id = $1 and m.namespace_id = $2 and m.chunk_id = c.chunk_id offset 0) m on true
     order by c.chunk_id"
    };
}

const GRAPH_PAGE: &str = graph_rows!();

/// One statement, hence one snapshot: the rows are those of this `seq`. A namespace without chunks is one row.
const GRAPH_WHOLE: &str = concat!(
    "select n.seq, g.* from namespace n left join lateral (",
    graph_rows!(),
    ") g on true where n.tenant_id = $1 and n.namespace_id = $2"
);

fn graph_row(row: &PgRow) -> Result<GraphRow, sqlx::Error> {
    Ok(GraphRow {
        chunk: ChunkId(row.try_get("chunk_id")?),
        document_id: row.try_get("document_id")?,
        title: row.try_get("title")?,
        heading: row.try_get("heading")?,
        text: row.try_get("text")?,
        keys: row.try_get("keys")?,
        kinds: row.try_get("kinds")?,
        embedding: row.try_get::<Vector, _>("embedding")?.to_vec(),
    })
}

impl Corpus {
    /// A page of the chunks that came after `since`, ordered by chunk.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn graph_page(
        &self,
        since: Seq,
        after: Option<ChunkId>,
        limit: i64,
    ) -> Result<Vec<GraphRow>, StoreError> {
        const OPERATION: &str = "graph.page";
        let mut tx = self.reader.begin().await?;
        let rows = sqlx::query(GRAPH_PAGE)
            .bind(self.partition.tenant().0)
            .bind(self.partition.namespace().0)
            .bind(self.partition.model().as_str())
            .bind(since.0)
            .bind(after.map_or(Uuid::nil(), |chunk| chunk.0))
            .bind(limit)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        tx.commit().await?;
        rows.iter().map(graph_row).collect::<Result<_, sqlx::Error>>().map_err(failed(OPERATION))
    }

    /// All chunks, and the place in the history of which they all are; `None`: the namespace is gone.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn graph_whole(&self) -> Result<Option<(Seq, Vec<GraphRow>)>, StoreError> {
        const OPERATION: &str = "graph.whole";
        let mut tx = self.reader.begin().await?;
        patient(&mut tx, OPERATION).await?;
        let mut rows = sqlx::query(GRAPH_WHOLE)
            .bind(self.partition.tenant().0)
            .bind(self.partition.namespace().0)
            .bind(self.partition.model().as_str())
            .bind(-1_i64)
            .bind(Uuid::nil())
            .bind(i64::MAX)
            .fetch(&mut *tx);
        let mut whole = None;
        while let Some(row) = rows.try_next().await.map_err(failed(OPERATION))? {
            let seq = Seq(row.try_get("seq").map_err(failed(OPERATION))?);
            let (_, chunks) = whole.get_or_insert_with(|| (seq, Vec::new()));
            let chunk: Option<Uuid> = row.try_get("chunk_id").map_err(failed(OPERATION))?;
            if chunk.is_some() {
                chunks.push(graph_row(&row).map_err(failed(OPERATION))?);
            }
        }
        drop(rows);
        tx.commit().await?;
        Ok(whole)
    }

    /// Embeddings of these chunks, each `[f32; dimension]`, unit length, in no order; without those that are gone.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn chunk_embeddings(&self, chunks: &[ChunkId]) -> Result<Vec<(ChunkId, Vec<f32>)>, StoreError> {
        const OPERATION: &str = "chunk.embeddings";
        let ids: Vec<Uuid> = chunks.iter().map(|chunk| chunk.0).collect();
        let mut tx = self.reader.begin().await?;
        let rows: Vec<(Uuid, Vector)> = sqlx::query_as(
            "select e.chunk_id, e.embedding from unnest($4::uuid[]) as wanted(id)
             cross join lateral (
                 select chunk_id, embedding from chunk_embedding e
                 where e.tenant_id = $1 and e.namespace_id = $2 and e.model_id = $3
                     and e.home in ('00000000-0000-0000-0000-000000000000', $2) and e.chunk_id = wanted.id
                 offset 0) e",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(self.partition.model().as_str())
        .bind(ids)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(rows.into_iter().map(|(chunk, vector)| (ChunkId(chunk), vector.to_vec())).collect())
    }

    /// Every chunk that is there now, in no order.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn chunk_ids(&self) -> Result<Vec<ChunkId>, StoreError> {
        let mut tx = self.reader.begin().await?;
        let ids: Vec<Uuid> =
            sqlx::query_scalar("select chunk_id from chunk where tenant_id = $1 and namespace_id = $2")
                .bind(self.partition.tenant().0)
                .bind(self.partition.namespace().0)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed("chunk.ids"))?;
        tx.commit().await?;
        Ok(ids.into_iter().map(ChunkId).collect())
    }

    /// Names of entities, each in the form that the texts use most. `containing` looks for a part of a name,
    /// whatever its case.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn label_list(
        &self,
        containing: Option<&str>,
        order: LabelOrder,
        limit: i64,
    ) -> Result<Vec<String>, StoreError> {
        let mut tx = self.reader.begin().await?;
        let names = sqlx::query_scalar(
            "with named as (
                 select key, name, count(*) as mentions
                 from chunk_mention m, unnest(m.keys, m.names) as u(key, name)
                 where m.tenant_id = $1 and m.namespace_id = $2
                 group by key, name),
             entity as (
                 select distinct on (key) key, name, sum(mentions) over (partition by key) as mentions
                 from named order by key, mentions desc, name)
             select name from entity where $3::text is null or position(lower($3) in lower(name)) > 0
             order by case when $4 then mentions end desc, name limit $5",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(containing)
        .bind(order == LabelOrder::Mentions)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("label.list"))?;
        tx.commit().await?;
        Ok(names)
    }

    /// Whether a live chunk mentions an entity of one of these keys.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn entity_exists(&self, keys: &[i64]) -> Result<bool, StoreError> {
        let mut tx = self.reader.begin().await?;
        let exists = sqlx::query_scalar(
            "select exists(select from chunk_mention where tenant_id = $1 and namespace_id = $2 and keys && $3)",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(keys)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("entity.exists"))?;
        tx.commit().await?;
        Ok(exists)
    }
}
