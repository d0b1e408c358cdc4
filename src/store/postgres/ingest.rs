//! The last step of ingestion: what was computed becomes what answers, in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pgvector::{SparseVector, Vector};
use sqlx::Row;
use uuid::Uuid;

use super::error::failed;
use super::transaction::TenantTransaction;
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, JobId, ModelId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::handles::CorpusWriter;
use crate::store::vector::Terms;

/// Dimensions of the sparse vectors: terms are hashed below this.
pub const TERM_SPACE: i32 = 1_000_000_000;

/// Entities found in one chunk, as parallel lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions {
    /// 64-bit hashes of the normalised names, by which the graph knows them.
    pub keys: Vec<i64>,
    /// Names as the text writes them.
    pub names: Vec<String>,
    /// What each is, as `concept`.
    pub kinds: Vec<String>,
    /// How often each occurs in the chunk.
    pub counts: Vec<i16>,
}

/// A chunk, ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewChunk {
    /// Its identity, new.
    pub chunk: ChunkId,
    /// Position in the document, from 0.
    pub ordinal: i32,
    /// The nearest heading.
    pub heading: Option<String>,
    /// The text, as it is cited.
    pub text: String,
    /// Tokens of the model, without special ones.
    pub tokens: i32,
    /// Hash of what the model saw, so that an unchanged chunk is not embedded again.
    pub text_hash: [u8; 16],
    /// `[f32; dimension]`, unit length.
    pub embedding: Vec<f32>,
    /// The BM25 term part.
    pub terms: Terms,
    /// The entities.
    pub mentions: Mentions,
}

/// A processed version of a document, with the lease under which it was processed.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedDocument {
    /// The job.
    pub job: JobId,
    /// The lease; another one in the job's row means that this result comes too late.
    pub lease: Uuid,
    /// The document.
    pub document_id: String,
    /// The version that was processed.
    pub version: i64,
    /// The title that the document gives itself, for a version that was accepted without one.
    pub title: Option<String>,
    /// Its chunks.
    pub chunks: Vec<NewChunk>,
}

/// Vectors of a second model, for chunks that a batch writes.
#[derive(Debug, Clone, PartialEq)]
pub struct SecondVectors {
    /// The model.
    pub model: ModelId,
    /// `[f32; dimension]` of each chunk, unit length.
    pub vectors: HashMap<ChunkId, Vec<f32>>,
}

/// A model's vectors of a batch; none stated: the chunks' own.
struct VectorSet<'a> {
    model: &'a ModelId,
    vectors: Option<&'a HashMap<ChunkId, Vec<f32>>>,
}

impl VectorSet<'_> {
    fn of<'c>(&'c self, chunk: &'c NewChunk) -> Option<&'c [f32]> {
        match self.vectors {
            Some(vectors) => vectors.get(&chunk.chunk).map(Vec::as_slice),
            None => Some(&chunk.embedding),
        }
    }
}

/// Rows of embeddings, as parallel lists.
#[derive(Debug, Default)]
struct EmbeddingRows {
    chunks: Vec<Uuid>,
    versions: Vec<i64>,
    embeddings: Vec<Vector>,
    terms: Vec<SparseVector>,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The corpus' history after it.
    pub seq: Seq,
    /// Jobs whose result was written. The others were overtaken by a deletion, a newer version or a cancellation.
    pub jobs: Vec<JobId>,
}

impl CorpusWriter {
    /// Makes processed documents answer, replacing what answered before.
    ///
    /// A document whose job lost its lease, or of which there is a newer version, is left out.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Conflict`; then nothing was written.
    pub async fn documents_commit(&self, documents: &[ProcessedDocument]) -> Result<Committed, StoreError> {
        self.documents_commit_with(documents, None).await
    }

    /// The same, with the vectors of a second model for the same chunks: of the one that is being filled.
    ///
    /// # Errors
    /// As [`CorpusWriter::documents_commit`]; `Conflict` too when the namespace's model has become one of which
    /// there are no vectors here.
    pub async fn documents_commit_with(
        &self,
        documents: &[ProcessedDocument],
        also: Option<&SecondVectors>,
    ) -> Result<Committed, StoreError> {
        const OPERATION: &str = "document.commit";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let now = self.reader.postgres().clock.now();
        let mut tx = self.reader.begin().await?;

        let row: Option<(i64, String, Option<String>, Vec<String>)> = sqlx::query_as(
            "update namespace set seq = seq + 1 where tenant_id = $1 and namespace_id = $2
             returning seq, model_id, building, homes",
        )
        .bind(tenant)
        .bind(namespace)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some((seq, active, building, homes)) = row else {
            return Ok(Committed { seq: self.seq, jobs: Vec::new() });
        };
        let own = VectorSet { model: self.partition.model(), vectors: None };
        let second = also.map(|also| VectorSet { model: &also.model, vectors: Some(&also.vectors) });
        let mut sets: Vec<VectorSet<'_>> = std::iter::once(own).chain(second).collect();
        sets.retain(|set| set.model.as_str() == active || Some(set.model.as_str()) == building.as_deref());
        if !sets.iter().any(|set| set.model.as_str() == active) {
            let words = "the namespace has another model now";
            return Err(StoreError::new(ErrorKind::Conflict, "postgres", OPERATION, words));
        }

        let holds = self.jobs_hold(&mut tx, documents).await?;
        let live: Vec<&ProcessedDocument> =
            documents.iter().filter(|document| holds.contains_key(&document.job.0)).collect();
        if live.is_empty() {
            // Rolled back by being dropped: a history without a change has no entry.
            return Ok(Committed { seq: Seq(seq - 1), jobs: Vec::new() });
        }

        let replaced: Vec<String> = live
            .iter()
            .filter(|document| holds.get(&document.job.0) == Some(&true))
            .map(|document| document.document_id.clone())
            .collect();
        let mut terms = BTreeMap::new();
        let removed = self.chunks_remove(&mut tx, &replaced, &mut terms).await?;
        let written = self.chunks_insert(&mut tx, &live, seq, (&sets, &homes), &mut terms).await?;
        self.terms_add(&mut tx, &terms).await?;

        let live_jobs: Vec<Uuid> = live.iter().map(|document| document.job.0).collect();
        let ids: Vec<&str> = live.iter().map(|document| document.document_id.as_str()).collect();
        let versions: Vec<i64> = live.iter().map(|document| document.version).collect();
        let counts: Vec<i32> =
            live.iter().map(|d| i32::try_from(d.chunks.len()).unwrap_or(i32::MAX)).collect();
        let replaced_uploads: Vec<Uuid> = sqlx::query_scalar(DOCUMENTS_FINISH)
            .bind(tenant)
            .bind(namespace)
            .bind(&ids)
            .bind(&versions)
            .bind(&counts)
            .bind(now)
            .bind(&live_jobs)
            .bind(seq)
            .bind(&removed)
            .bind(written - i64::try_from(removed.len()).unwrap_or(i64::MAX))
            .bind(live.iter().map(|document| document.title.as_deref()).collect::<Vec<_>>())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        tx.commit().await?;
        self.uploads_forget(&replaced_uploads).await;
        Ok(Committed { seq: Seq(seq), jobs: live_jobs.into_iter().map(JobId).collect() })
    }

    /// Locks the jobs and documents whose lease and version still hold: job, and whether a version answers.
    async fn jobs_hold(
        &self,
        tx: &mut TenantTransaction,
        documents: &[ProcessedDocument],
    ) -> Result<HashMap<Uuid, bool>, StoreError> {
        const OPERATION: &str = "job.hold";
        let jobs: Vec<Uuid> = documents.iter().map(|document| document.job.0).collect();
        let leases: Vec<Uuid> = documents.iter().map(|document| document.lease).collect();
        let fence = sqlx::query(
            "with held as materialized (select j.job_id, j.document_id, j.version
                 from (select * from unnest($3::uuid[], $4::uuid[]) as n(job_id, lease) order by job_id offset 0) mine
                 cross join lateral (
                     select * from job j
                     where j.tenant_id = $1 and j.job_id = mine.job_id and j.lease = mine.lease
                         and j.namespace_id = $2 for update) j
                 where j.state = 'running')
             select held.job_id, d.live_version is not null as replaces
             from (select * from held order by document_id offset 0) held
             cross join lateral (
                 select live_version from document d
                 where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = held.document_id
                     and d.version = held.version for update) d",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(&jobs)
        .bind(&leases)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let mut holds: HashMap<Uuid, bool> = HashMap::new();
        for row in &fence {
            let job = row.try_get("job_id").map_err(failed(OPERATION))?;
            holds.insert(job, row.try_get("replaces").map_err(failed(OPERATION))?);
        }
        Ok(holds)
    }

    /// Removes the chunks of whole documents, and takes their terms out of the counts.
    pub(super) async fn chunks_remove(
        &self,
        tx: &mut TenantTransaction,
        documents: &[String],
        terms: &mut BTreeMap<i32, i32>,
    ) -> Result<Vec<Uuid>, StoreError> {
        const OPERATION: &str = "chunk.remove";
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "with gone as (
                 delete from chunk using unnest($3::text[]) as n(document_id)
                 cross join lateral (
                     select ctid from chunk c
                     where c.tenant_id = $1 and c.namespace_id = $2 and c.document_id = n.document_id offset 0) c
                 where chunk.ctid = c.ctid
                 returning chunk.chunk_id),
             unmentioned as (
                 delete from chunk_mention using gone
                 cross join lateral (
                     select m.ctid from chunk_mention m
                     where m.tenant_id = $1 and m.namespace_id = $2 and m.chunk_id = gone.chunk_id offset 0) m
                 where chunk_mention.ctid = m.ctid)
             delete from chunk_embedding e using gone
             where e.tenant_id = $1 and e.namespace_id = $2
                 and e.home in ('00000000-0000-0000-0000-000000000000', $2) and e.chunk_id = gone.chunk_id
             returning e.chunk_id, e.terms",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(documents)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let mut removed = BTreeSet::new();
        for row in &rows {
            // With two models a chunk has two rows, and the same terms in both.
            if !removed.insert(row.try_get("chunk_id").map_err(failed(OPERATION))?) {
                continue;
            }
            let old: SparseVector = row.try_get("terms").map_err(failed(OPERATION))?;
            for term in old.indices() {
                *terms.entry(*term).or_default() -= 1;
            }
        }
        Ok(removed.into_iter().collect())
    }

    async fn chunks_insert(
        &self,
        tx: &mut TenantTransaction,
        documents: &[&ProcessedDocument],
        seq: i64,
        (sets, homes): (&[VectorSet<'_>], &[String]),
        terms: &mut BTreeMap<i32, i32>,
    ) -> Result<i64, StoreError> {
        const OPERATION: &str = "chunk.insert";
        let chunks: Vec<(&ProcessedDocument, &NewChunk)> = documents
            .iter()
            .flat_map(|document| document.chunks.iter().map(move |chunk| (*document, chunk)))
            .collect();
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let ids: Vec<Uuid> = chunks.iter().map(|(_, chunk)| chunk.chunk.0).collect();
        let versions: Vec<i64> = chunks.iter().map(|(document, _)| document.version).collect();
        sqlx::query(
            "insert into chunk (tenant_id, namespace_id, chunk_id, document_id, version, ordinal, seq, heading,
                 text, tokens, text_hash)
             select $1, $2, chunk_id, document_id, version, ordinal, $3, heading, text, tokens, text_hash
             from unnest($4::uuid[], $5::text[], $6::bigint[], $7::int[], $8::text[], $9::text[], $10::int[],
                 $11::bytea[])
                 as n(chunk_id, document_id, version, ordinal, heading, text, tokens, text_hash)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(seq)
        .bind(&ids)
        .bind(chunks.iter().map(|(document, _)| document.document_id.as_str()).collect::<Vec<_>>())
        .bind(&versions)
        .bind(chunks.iter().map(|(_, chunk)| chunk.ordinal).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(_, chunk)| chunk.heading.as_deref()).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(_, chunk)| chunk.text.as_str()).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(_, chunk)| chunk.tokens).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(_, chunk)| chunk.text_hash.as_slice()).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;

        let mut sparse = Vec::with_capacity(chunks.len());
        for (_, chunk) in &chunks {
            let stored = super::chunks::sparse(&chunk.terms);
            // Counted as they are stored, which is how a removal finds them: without weights of 0.
            for term in stored.indices() {
                *terms.entry(*term).or_default() += 1;
            }
            sparse.push(stored);
        }
        for set in sets {
            // A chunk of which the second model has no vector is left to whoever fills it.
            let mut rows = EmbeddingRows::default();
            for (((document, chunk), terms), id) in std::iter::zip(std::iter::zip(&chunks, &sparse), &ids) {
                if let Some(vector) = set.of(chunk) {
                    rows.chunks.push(*id);
                    rows.versions.push(document.version);
                    rows.embeddings.push(Vector::from(vector.to_vec()));
                    rows.terms.push(terms.clone());
                }
            }
            let is_home = homes.iter().any(|home| home == set.model.as_str());
            self.embeddings_insert(tx, set.model, (is_home, seq), &rows).await?;
        }
        self.mentions_insert(tx, &chunks, seq).await?;
        Ok(i64::try_from(chunks.len()).unwrap_or(i64::MAX))
    }

    /// Writes a model's embeddings into the leaf that is the namespace's home.
    async fn embeddings_insert(
        &self,
        tx: &mut TenantTransaction,
        model: &ModelId,
        (is_home, seq): (bool, i64),
        rows: &EmbeddingRows,
    ) -> Result<(), StoreError> {
        let namespace = self.partition.namespace().0;
        sqlx::query(
            "insert into chunk_embedding
                 (tenant_id, namespace_id, model_id, home, chunk_id, version, seq, embedding, terms)
             select $1, $2, $3, $4, chunk_id, version, $7, embedding, terms
             from unnest($5::uuid[], $6::bigint[], $8::vector[], $9::sparsevec[])
                 as n(chunk_id, version, embedding, terms)",
        )
        .bind(self.partition.tenant().0)
        .bind(namespace)
        .bind(model.as_str())
        .bind(if is_home { namespace } else { Uuid::nil() })
        .bind(&rows.chunks)
        .bind(&rows.versions)
        .bind(seq)
        .bind(&rows.embeddings)
        .bind(&rows.terms)
        .execute(&mut **tx)
        .await
        .map_err(failed("embedding.insert"))?;
        Ok(())
    }

    /// PostgreSQL has no arrays of arrays of different lengths: each chunk's lists go in as one JSON value.
    async fn mentions_insert(
        &self,
        tx: &mut TenantTransaction,
        chunks: &[(&ProcessedDocument, &NewChunk)],
        seq: i64,
    ) -> Result<(), StoreError> {
        let rows: Vec<_> = chunks
            .iter()
            .filter(|(_, chunk)| !chunk.mentions.keys.is_empty())
            .map(|(_, chunk)| {
                let mentions = &chunk.mentions;
                serde_json::json!({
                    "chunk_id": chunk.chunk, "keys": mentions.keys, "names": mentions.names,
                    "kinds": mentions.kinds, "counts": mentions.counts,
                })
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "insert into chunk_mention (tenant_id, namespace_id, chunk_id, seq, keys, names, kinds, counts)
             select $1, $2, chunk_id, $3, keys, names, kinds, counts
             from jsonb_to_recordset($4) as n(chunk_id uuid, keys bigint[], names text[], kinds text[], counts smallint[])",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(seq)
        .bind(serde_json::Value::Array(rows))
        .execute(&mut **tx)
        .await
        .map_err(failed("mention.insert"))?;
        Ok(())
    }

    pub(super) async fn terms_add(
        &self,
        tx: &mut TenantTransaction,
        terms: &BTreeMap<i32, i32>,
    ) -> Result<(), StoreError> {
        let (ids, counts): (Vec<i32>, Vec<i32>) =
            terms.iter().filter(|(_, change)| **change != 0).map(|(term, change)| (*term, *change)).unzip();
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "insert into term_frequency as f (tenant_id, namespace_id, term, chunks)
             select $1, $2, term, chunks from unnest($3::int[], $4::int[]) as n(term, chunks)
             on conflict (tenant_id, namespace_id, term) do update set chunks = f.chunks + excluded.chunks",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(&ids)
        .bind(&counts)
        .execute(&mut **tx)
        .await
        .map_err(failed("term.add"))?;
        if counts.iter().any(|change| *change < 0) {
            sqlx::query(
                "delete from term_frequency where tenant_id = $1 and namespace_id = $2 and term = any($3) and chunks <= 0",
            )
            .bind(self.partition.tenant().0)
            .bind(self.partition.namespace().0)
            .bind(&ids)
            .execute(&mut **tx)
            .await
            .map_err(failed("term.add"))?;
        }
        Ok(())
    }
}

/// What a commit changes beside the chunks. Returns the uploads that nothing names any more.
const DOCUMENTS_FINISH: &str = "with done as (
         update document set status = 'processed', live_version = n.version, chunks_count = n.chunks, error = null,
             updated_at = $6
         from unnest($3::text[], $4::bigint[], $5::int[]) as n(document_id, version, chunks)
         cross join lateral (
             select ctid from document d
             where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = n.document_id offset 0) d
         where document.ctid = d.ctid),
     titles as (
         update document_version set title = n.title
         from unnest($3::text[], $4::bigint[], $11::text[]) as n(document_id, version, title)
         cross join lateral (
             select v.ctid from document_version v
             where v.tenant_id = $1 and v.namespace_id = $2 and v.document_id = n.document_id
                 and v.version = n.version and v.title is null and n.title is not null offset 0) v
         where document_version.ctid = v.ctid),
     old as (
         delete from document_version using unnest($3::text[], $4::bigint[]) as n(document_id, version)
         cross join lateral (
             select v.ctid from document_version v
             where v.tenant_id = $1 and v.namespace_id = $2 and v.document_id = n.document_id
                 and v.version < n.version offset 0) v
         where document_version.ctid = v.ctid returning document_version.upload_id, document_version.bytes),
     given_back as (
         update tenant_usage set bytes = bytes - (select sum(bytes) from old)
         where tenant_id = $1 and exists (select from old)),
     finished as (
         update job set state = 'done', stage = 'processed', done = n.chunks, total = n.chunks, lease = null,
             leased_until = null, updated_at = $6, finished_at = $6, revision = revision + 1
         from unnest($7::uuid[], $5::int[]) as n(job_id, chunks)
         cross join lateral (
             select j.ctid from job j where j.tenant_id = $1 and j.job_id = n.job_id offset 0) j
         where job.ctid = j.ctid),
     history as (insert into outbox (tenant_id, namespace_id, seq, at, removed) values ($1, $2, $8, $6, $9)),
     size as (update namespace set chunks = chunks + $10 where tenant_id = $1 and namespace_id = $2)
     select upload_id from old where upload_id is not null";
