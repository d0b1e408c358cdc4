//! Chunks: their text, read under row-level security, and exact search over their vectors.

use std::collections::{BTreeMap, HashMap};

use pgvector::{SparseVector, Vector};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row, SqlSafeStr};
use uuid::Uuid;

use super::error::failed;
use super::ingest::TERM_SPACE;
use super::pools::Lane;
use super::prepared::{CHUNKS, Call, MENTIONS, Value};
use super::transaction::{Plans, TenantTransaction};
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};
use crate::store::error::StoreError;
use crate::store::handles::Corpus;
use crate::store::partition::Partition;
use crate::store::vector::{Found, Hit, Terms, VectorQuery};

/// A chunk with all that an answer says of it.
#[derive(Debug, Clone)]
pub struct ChunkRow {
    /// The tenant, as the row says.
    pub tenant: TenantId,
    /// The namespace's name, as the row says.
    pub namespace: String,
    /// The chunk.
    pub chunk: ChunkId,
    /// Its document.
    pub document_id: String,
    /// The document's version.
    pub version: i64,
    /// Position in the document.
    pub ordinal: i32,
    /// The nearest heading.
    pub heading: Option<String>,
    /// The text.
    pub text: String,
    /// The document's title.
    pub title: Option<String>,
    /// The name by which the document is cited.
    pub file_name: String,
    /// Tokens of the text.
    pub tokens: i32,
}

impl<'r> FromRow<'r, PgRow> for ChunkRow {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant: TenantId(row.try_get("tenant_id")?),
            namespace: row.try_get("namespace")?,
            chunk: ChunkId(row.try_get("chunk_id")?),
            document_id: row.try_get("document_id")?,
            version: row.try_get("version")?,
            ordinal: row.try_get("ordinal")?,
            heading: row.try_get("heading")?,
            text: row.try_get("text")?,
            title: row.try_get("title")?,
            file_name: row.try_get("file_name")?,
            tokens: row.try_get("tokens")?,
        })
    }
}

/// The entities of one chunk, as its row says.
#[derive(Debug, Clone)]
pub struct MentionRow {
    /// The tenant, as the row says.
    pub tenant: TenantId,
    /// The namespace's name, as the row says.
    pub namespace: String,
    /// The chunk.
    pub chunk: ChunkId,
    /// Its text, where it was asked for.
    pub text: Option<String>,
    /// Its document.
    pub document_id: String,
    /// The name by which the document is cited.
    pub file_name: String,
    /// When the document was accepted, seconds since 1970.
    pub created_at: i64,
    /// Hashes of the normalised names.
    pub keys: Vec<i64>,
    /// Names as the text writes them.
    pub names: Vec<String>,
    /// What each is.
    pub kinds: Vec<String>,
    /// How often each occurs.
    pub counts: Vec<i16>,
}

impl<'r> FromRow<'r, PgRow> for MentionRow {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant: TenantId(row.try_get("tenant_id")?),
            namespace: row.try_get("namespace")?,
            chunk: ChunkId(row.try_get("chunk_id")?),
            text: row.try_get("text")?,
            document_id: row.try_get("document_id")?,
            file_name: row.try_get("file_name")?,
            created_at: row.try_get("created_at")?,
            keys: row.try_get("keys")?,
            names: row.try_get("names")?,
            kinds: row.try_get("kinds")?,
            counts: row.try_get("counts")?,
        })
    }
}

fn ids(chunks: &[ChunkId]) -> Vec<Uuid> {
    chunks.iter().map(|chunk| chunk.0).collect()
}

impl Corpus {
    /// Searches the index of this corpus; `None` when there is no usable one.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Damaged`.
    pub async fn vector_search(&self, query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        self.vectors().search(&self.partition, query).await
    }

    /// The rows of these chunks, in no order. A chunk that is gone, or whose version is another, is absent.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn chunk_list(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkRow>, StoreError> {
        const OPERATION: &str = "chunk.list";
        let wanted = ids(chunks);
        let values = self.values(&wanted);
        let [rows] = self.read([Call { statement: &CHUNKS, values: &values }], OPERATION).await?;
        rows.iter().map(ChunkRow::from_row).collect::<Result<_, _>>().map_err(failed(OPERATION))
    }

    /// The entities of these chunks, in no order; with the text of those that are among `texts` too.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn mention_list(
        &self,
        chunks: &[ChunkId],
        texts: &[ChunkId],
    ) -> Result<Vec<MentionRow>, StoreError> {
        const OPERATION: &str = "mention.list";
        let (wanted, texts) = (ids(chunks), ids(texts));
        let [tenant, namespace, wanted] = self.values(&wanted);
        let values = [tenant, namespace, wanted, Value::Ids(&texts)];
        let [rows] = self.read([Call { statement: &MENTIONS, values: &values }], OPERATION).await?;
        rows.iter().map(MentionRow::from_row).collect::<Result<_, _>>().map_err(failed(OPERATION))
    }

    /// Both at once: the rows of chunks, and the entities of others.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn chunk_and_mention_list(
        &self,
        chunks: &[ChunkId],
        mentioning: &[ChunkId],
        texts: &[ChunkId],
    ) -> Result<(Vec<ChunkRow>, Vec<MentionRow>), StoreError> {
        const OPERATION: &str = "chunk.and_mention.list";
        let (chunks, mentioning, texts) = (ids(chunks), ids(mentioning), ids(texts));
        let (rows, [tenant, namespace, wanted]) = (self.values(&chunks), self.values(&mentioning));
        let mentions = [tenant, namespace, wanted, Value::Ids(&texts)];
        let calls =
            [Call { statement: &CHUNKS, values: &rows }, Call { statement: &MENTIONS, values: &mentions }];
        let [rows, mentions] = self.read(calls, OPERATION).await?;
        let rows: Result<_, _> = rows.iter().map(ChunkRow::from_row).collect();
        let mentions: Result<_, _> = mentions.iter().map(MentionRow::from_row).collect();
        Ok((rows.map_err(failed(OPERATION))?, mentions.map_err(failed(OPERATION))?))
    }

    /// Reads what a question wants from the replica, if that is on the same timeline and has
    /// come as far as this corpus; else from the primary.
    async fn read<const N: usize>(
        &self,
        calls: [Call<'_>; N],
        operation: &'static str,
    ) -> Result<[Vec<PgRow>; N], StoreError> {
        if self.reader.lane == Lane::Query
            && let Some(replica) = &self.reader.postgres().replica
            && let Some(timeline) = self.timeline
            && let Some(rows) = replica.read(&self.partition, (timeline, self.seq), &calls, operation).await
        {
            return Ok(rows);
        }
        self.reader.read(calls, operation).await
    }

    /// This corpus and these chunks, as the lists' statements want them.
    fn values<'a>(&self, ids: &'a [Uuid]) -> [Value<'a>; 3] {
        [Value::Id(self.partition.tenant().0), Value::Id(self.partition.namespace().0), Value::Ids(ids)]
    }

    /// The embeddings of documents that answer now, by the hash of what the model saw: an unchanged chunk of
    /// a new version is not embedded again.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn embedding_list(
        &self,
        documents: &[String],
    ) -> Result<HashMap<[u8; 16], Vec<f32>>, StoreError> {
        const OPERATION: &str = "embedding.list";
        if documents.is_empty() {
            return Ok(HashMap::new());
        }
        let mut tx = self.reader.begin().await?;
        let rows: Vec<(Vec<u8>, Vector)> = sqlx::query_as(
            "select c.text_hash, e.embedding from unnest($4::text[]) as n(document_id)
             cross join lateral (
                 select chunk_id, text_hash from chunk c
                 where c.tenant_id = $1 and c.namespace_id = $2 and c.document_id = n.document_id offset 0) c
             cross join lateral (
                 select embedding from chunk_embedding e
                 where e.tenant_id = $1 and e.namespace_id = $2 and e.model_id = $3
                     and e.home in ('00000000-0000-0000-0000-000000000000', $2)
                     and e.chunk_id = c.chunk_id offset 0) e",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(self.partition.model().as_str())
        .bind(documents)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(rows
            .into_iter()
            .filter_map(|(hash, vector)| Some((hash.try_into().ok()?, vector.to_vec())))
            .collect())
    }

    /// Search in the database over the whole corpus. A large one is searched by the HNSW graph of its own
    /// partition, where there is one, and exactly in what is not in that partition; a small one exactly.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn chunk_search(&self, query: &VectorQuery) -> Result<Found, StoreError> {
        let postgres = self.reader.postgres();
        let plans = postgres.search_plans(self.chunks);
        let mut tx = self.reader.begin_with(plans).await?;
        let found = search(&mut tx, &self.partition, query, plans, self.seq).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// Exact search in the database over what came after `since`: the whole corpus with [`Seq`] -1, or just
    /// what an index has not applied yet.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn chunk_search_exact(&self, query: &VectorQuery, since: Seq) -> Result<Found, StoreError> {
        let mut tx = self.reader.begin().await?;
        let found = search_in(&mut tx, &self.partition, query, (since, self.seq), EXACTLY).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// The plan by which [`Corpus::chunk_search`] finds the nearest, line by line. Releases do not have this.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    #[cfg(feature = "laboratory")]
    pub async fn chunk_search_plan(&self, query: &VectorQuery) -> Result<Vec<String>, StoreError> {
        let embedding = query.embedding.clone().unwrap_or_default();
        let plans = self.reader.postgres().search_plans(self.chunks);
        let dense = match plans {
            Plans::Graph { .. } => by_graph(embedding.len()),
            Plans::Usual => EXACTLY.to_owned(),
        };
        let mut tx = self.reader.begin_with(plans).await?;
        let plan = sqlx::query_scalar(AssertSqlSafe(format!("explain {dense}")))
            .bind(self.partition.tenant().0)
            .bind(self.partition.namespace().0)
            .bind(self.partition.model().as_str())
            .bind(EVERYTHING.0)
            .bind(Vector::from(embedding))
            .bind(i64::try_from(query.limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("chunk.search"))?;
        tx.commit().await?;
        Ok(plan)
    }
}

/// Searches all rows of a partition by these plans; `applied` is what the namespace's history was before.
pub(super) async fn search(
    tx: &mut TenantTransaction,
    partition: &Partition,
    query: &VectorQuery,
    plans: Plans,
    applied: Seq,
) -> Result<Found, StoreError> {
    let seqs = (EVERYTHING, applied);
    match plans {
        Plans::Usual => search_in(tx, partition, query, seqs, EXACTLY).await,
        Plans::Graph { .. } => {
            let dense = by_graph(query.embedding.as_deref().map_or(0, <[f32]>::len));
            search_in(tx, partition, query, seqs, AssertSqlSafe(dense)).await
        }
    }
}

async fn search_in(
    tx: &mut TenantTransaction,
    partition: &Partition,
    query: &VectorQuery,
    (since, applied): (Seq, Seq),
    dense: impl SqlSafeStr,
) -> Result<Found, StoreError> {
    const OPERATION: &str = "chunk.search";
    let mut found = Found { applied, ..Found::default() };
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let (tenant, namespace) = (partition.tenant().0, partition.namespace().0);
    if let Some(embedding) = &query.embedding {
        let rows = sqlx::query(dense)
            .bind(tenant)
            .bind(namespace)
            .bind(partition.model().as_str())
            .bind(since.0)
            .bind(Vector::from(embedding.clone()))
            .bind(limit)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(OPERATION))?;
        found.dense = hits(&rows).map_err(failed(OPERATION))?;
    }
    if let Some(terms) = query.terms.as_ref().filter(|terms| !terms.indices.is_empty()) {
        let rows = sqlx::query(
            "select * from (
                 select tenant_id, namespace_id, chunk_id, version, -(terms <#> $5) as score
                 from chunk_embedding
                 where tenant_id = $1 and namespace_id = $2 and model_id = $3
                     and home in ('00000000-0000-0000-0000-000000000000', $2) and seq > $4) scored
             where score > 0 order by score desc, chunk_id limit $6",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(partition.model().as_str())
        .bind(since.0)
        .bind(sparse(terms))
        .bind(limit)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        found.lexical = hits(&rows).map_err(failed(OPERATION))?;
    }
    Ok(found)
}

/// Each row by its whole key: docs/decisions/rows-by-their-whole-key.md.
pub(super) const CHUNK_LIST: &str =
    "select c.tenant_id, n.name as namespace, c.chunk_id, c.document_id, c.version, c.ordinal, c.heading,
         c.text, c.tokens, v.title, v.file_name
     from unnest($3::uuid[]) as wanted(chunk_id)
     cross join lateral (
         select * from chunk c
         where c.tenant_id = $1 and c.namespace_id = $2 and c.chunk_id = wanted.chunk_id offset 0) c
     cross join lateral (
         select title, file_name from document_version v
         where v.tenant_id = $1 and v.namespace_id = $2
             and v.document_id = c.document_id and v.version = c.version offset 0) v
     join namespace n on n.tenant_id = $1 and n.namespace_id = c.namespace_id";

/// Likewise.
pub(super) const MENTION_LIST: &str =
    "select m.tenant_id, n.name as namespace, m.chunk_id, c.document_id, v.file_name,
         extract(epoch from v.created_at)::bigint as created_at, m.keys, m.names, m.kinds, m.counts,
         case when m.chunk_id = any($4) then c.text end as text
     from unnest($3::uuid[]) as wanted(chunk_id)
     cross join lateral (
         select * from chunk_mention m
         where m.tenant_id = $1 and m.namespace_id = $2 and m.chunk_id = wanted.chunk_id offset 0) m
     cross join lateral (
         select document_id, version, text from chunk c
         where c.tenant_id = $1 and c.namespace_id = $2 and c.chunk_id = m.chunk_id offset 0) c
     cross join lateral (
         select file_name, created_at from document_version v
         where v.tenant_id = $1 and v.namespace_id = $2
             and v.document_id = c.document_id and v.version = c.version offset 0) v
     join namespace n on n.tenant_id = $1 and n.namespace_id = m.namespace_id";

/// Before the first change of any corpus.
const EVERYTHING: Seq = Seq(-1);

/// Every vector is compared.
const EXACTLY: &str = "select tenant_id, namespace_id, chunk_id, version, -(embedding <#> $5) as score
     from chunk_embedding
     where tenant_id = $1 and namespace_id = $2 and model_id = $3
         and home in ('00000000-0000-0000-0000-000000000000', $2) and seq > $4
     order by embedding <#> $5, chunk_id limit $6";

/// The namespace's own partition by its graph, and exactly what is not in there yet. A graph is over vectors of one
/// dimension, which is written here as the index writes it.
fn by_graph(dimension: usize) -> String {
    format!(
        "select * from (
             (select tenant_id, namespace_id, chunk_id, version, -(embedding::vector({dimension}) <#> $5) as score
              from chunk_embedding
              where tenant_id = $1 and namespace_id = $2 and model_id = $3 and home = $2 and seq > $4
              order by embedding::vector({dimension}) <#> $5, chunk_id limit $6)
             union all
             (select tenant_id, namespace_id, chunk_id, version, -(embedding <#> $5) as score
              from chunk_embedding
              where tenant_id = $1 and namespace_id = $2 and model_id = $3
                  and home = '00000000-0000-0000-0000-000000000000' and seq > $4
              order by embedding <#> $5, chunk_id limit $6)) found
         order by score desc, chunk_id limit $6"
    )
}

pub(super) fn sparse(terms: &Terms) -> SparseVector {
    let map: BTreeMap<i32, f32> = std::iter::zip(&terms.indices, &terms.values)
        .filter_map(|(term, value)| Some((i32::try_from(*term).ok()?, *value)))
        .collect();
    SparseVector::from_map(&map, TERM_SPACE)
}

#[expect(clippy::cast_possible_truncation, reason = "scores are compared with those of 32-bit indexes")]
fn hits(rows: &[PgRow]) -> Result<Vec<Hit>, sqlx::Error> {
    let hit = |row: &PgRow| {
        Ok(Hit {
            tenant: TenantId(row.try_get("tenant_id")?),
            namespace: NamespaceId(row.try_get("namespace_id")?),
            chunk: ChunkId(row.try_get("chunk_id")?),
            version: row.try_get("version")?,
            score: row.try_get::<f64, _>("score")? as f32,
        })
    };
    rows.iter().map(hit).collect()
}
