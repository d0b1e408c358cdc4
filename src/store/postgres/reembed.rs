//! A second model for a namespace: filled beside the active one, compared, switched to, and the first one's rows
//! removed.
//!
//! **Invariant:** a namespace is searched by one model at a time. The switch is one update under the namespace's row
//! lock, made only when every chunk has a row of the new model and no row is without a chunk.
//! **Invariant:** everything here can be done again: what is there stays, what is missing comes.

use std::time::Duration;

use pgvector::Vector;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::error::failed;
use super::jobs::LeasedJob;
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, ModelId, NamespaceId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::handles::{CorpusWriter, TenantWriter};
use crate::store::partition::Partition;

/// The stage of a job that fills embeddings, and of one whose namespaces have switched.
pub const EMBEDDING: &str = "embedding";
/// The stage of a job that waits for the last questions to the old model, and then removes its rows.
pub const SWEEPING: &str = "sweeping";

/// What a change of model is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReembedTask {
    /// The one namespace; absent: all of the tenant's.
    pub namespace: Option<String>,
    /// The new model.
    pub model: ModelId,
    /// Whether every namespace has switched.
    pub is_sweeping: bool,
}

/// A chunk without an embedding of the model that is being filled.
#[derive(Debug, Clone)]
pub struct MissingChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its document's title.
    pub title: Option<String>,
    /// The nearest heading.
    pub heading: Option<String>,
    /// The text.
    pub text: String,
}

/// What came of an attempt to switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// The new model answers from here on.
    Done(Seq),
    /// Chunks came meanwhile that have no embedding yet.
    Behind,
    /// The namespace is gone, or another model is being filled.
    Gone,
}

impl TenantWriter {
    /// What a leased job is about; `None` when the lease was lost.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_open(&self, job: &LeasedJob) -> Result<Option<ReembedTask>, StoreError> {
        const OPERATION: &str = "reembed.open";
        let mut tx = self.begin().await?;
        let row: Option<(Option<String>, String, String)> = sqlx::query_as(
            "select namespace, model_id, stage from job
             where tenant_id = $1 and job_id = $2 and lease = $3 and state = 'running'",
        )
        .bind(self.scope.tenant().0)
        .bind(job.job.0)
        .bind(job.lease)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        row.map(|(namespace, model, stage)| {
            Ok(ReembedTask { namespace, model: parse(&model, OPERATION)?, is_sweeping: stage == SWEEPING })
        })
        .transpose()
    }

    /// The next namespace that is to switch, in which the new model is being filled from now on; `None` when all
    /// have switched.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_next(&self, task: &ReembedTask) -> Result<Option<NamespaceId>, StoreError> {
        let mut tx = self.begin().await?;
        // A model that was given up half filled leaves rows to be removed.
        let next: Option<Uuid> = sqlx::query_scalar(
            "update namespace n set building = $2,
                 retired = array_remove(array_remove(n.retired, $2) || case
                     when n.building <> $2 then array[n.building] else '{}' end, null)
             where n.tenant_id = $1 and n.namespace_id = (
                 select namespace_id from namespace
                 where tenant_id = $1 and model_id <> $2 and ($3::text is null or name = $3)
                 order by namespace_id limit 1)
             returning n.namespace_id",
        )
        .bind(self.scope.tenant().0)
        .bind(task.model.as_str())
        .bind(&task.namespace)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("reembed.next"))?;
        tx.commit().await?;
        Ok(next.map(NamespaceId))
    }

    /// Counts what is filled, records it and extends the lease. `None`: the lease was lost.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_progress(
        &self,
        job: &LeasedJob,
        task: &ReembedTask,
        stage: &str,
        lease_time: Duration,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        let now = self.postgres().clock.now();
        let mut tx = self.begin().await?;
        let row = sqlx::query_as(
            "with counted as (
                 select coalesce(sum(n.chunks), 0)::bigint as total, coalesce(sum(case
                     when n.model_id = $4 then n.chunks
                     when n.building = $4 then (
                         select count(*) from chunk_embedding e
                         where e.tenant_id = $1 and e.namespace_id = n.namespace_id and e.model_id = $4)
                     else 0 end), 0)::bigint as done
                 from namespace n where n.tenant_id = $1 and ($5::text is null or n.name = $5))
             update job set stage = $6, done = counted.done, total = counted.total, revision = revision + 1,
                 attempts = 0, updated_at = $7, leased_until = $8
             from counted
             where tenant_id = $1 and job_id = $2 and lease = $3 and state = 'running'
             returning job.done, job.total",
        )
        .bind(self.scope.tenant().0)
        .bind(job.job.0)
        .bind(job.lease)
        .bind(task.model.as_str())
        .bind(&task.namespace)
        .bind(stage)
        .bind(now)
        .bind(now + lease_time)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("reembed.progress"))?;
        tx.commit().await?;
        Ok(row)
    }

    /// Namespaces that still hold rows of a model that they have left.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_retired(&self) -> Result<Vec<NamespaceId>, StoreError> {
        let mut tx = self.begin().await?;
        let rows: Vec<Uuid> = sqlx::query_scalar(
            "select namespace_id from namespace where tenant_id = $1 and retired <> '{}' order by namespace_id",
        )
        .bind(self.scope.tenant().0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("reembed.retired"))?;
        tx.commit().await?;
        Ok(rows.into_iter().map(NamespaceId).collect())
    }

    /// Ends a change of model, well or with a reason why not.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_end(&self, job: &LeasedJob, error: Option<&str>) -> Result<(), StoreError> {
        let now = self.postgres().clock.now();
        let mut tx = self.begin().await?;
        sqlx::query(
            "update job set state = case when $4::text is null then 'done' else 'failed' end, error = $4, lease = null,
                 leased_until = null, updated_at = $5, finished_at = $5, revision = revision + 1
             where tenant_id = $1 and job_id = $2 and lease = $3 and state = 'running'",
        )
        .bind(self.scope.tenant().0)
        .bind(job.job.0)
        .bind(job.lease)
        .bind(error)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed("reembed.end"))?;
        tx.commit().await
    }
}

impl CorpusWriter {
    /// Chunks after `after` that have no embedding of a model, ordered by chunk.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_missing(
        &self,
        model: &ModelId,
        after: Option<ChunkId>,
        limit: i64,
    ) -> Result<Vec<MissingChunk>, StoreError> {
        const OPERATION: &str = "reembed.missing";
        let mut tx = self.reader.begin().await?;
        let rows = sqlx::query(
            "select c.chunk_id, v.title, c.heading, c.text
             from chunk c
             join document_version v on v.tenant_id = $1 and v.namespace_id = $2
                 and v.document_id = c.document_id and v.version = c.version
             where c.tenant_id = $1 and c.namespace_id = $2 and c.chunk_id > $4 and not exists (
                 select from chunk_embedding e where e.tenant_id = $1 and e.namespace_id = $2 and e.model_id = $3
                     and e.home in ('00000000-0000-0000-0000-000000000000', $2) and e.chunk_id = c.chunk_id)
             order by c.chunk_id limit $5",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(model.as_str())
        .bind(after.map_or(Uuid::nil(), |chunk| chunk.0))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        let missing = |row: &PgRow| {
            Ok(MissingChunk {
                chunk: ChunkId(row.try_get("chunk_id")?),
                title: row.try_get("title")?,
                heading: row.try_get("heading")?,
                text: row.try_get("text")?,
            })
        };
        rows.iter().map(missing).collect::<Result<_, sqlx::Error>>().map_err(failed(OPERATION))
    }

    /// Writes embeddings of the model that is being filled, for chunks that are still there. `false`: it is being
    /// filled no more.
    ///
    /// The share lock keeps writers off for this one statement: a chunk that is deleted meanwhile would leave its
    /// embedding behind. Terms, version and position are those of the active model's row.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was written.
    pub async fn reembed_fill(
        &self,
        model: &ModelId,
        vectors: Vec<(ChunkId, Vec<f32>)>,
    ) -> Result<bool, StoreError> {
        const OPERATION: &str = "reembed.fill";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        let held: Option<(String, bool)> = sqlx::query_as(
            "select model_id, $3 = any(homes) from namespace
             where tenant_id = $1 and namespace_id = $2 and building = $3 for share",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(model.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some((active, is_home)) = held else { return Ok(false) };
        let (chunks, embeddings): (Vec<Uuid>, Vec<Vector>) =
            vectors.into_iter().map(|(chunk, vector)| (chunk.0, Vector::from(vector))).unzip();
        sqlx::query(
            "insert into chunk_embedding
                 (tenant_id, namespace_id, model_id, home, chunk_id, version, seq, embedding, terms)
             select $1, $2, $3, $5, e.chunk_id, e.version, e.seq, n.embedding, e.terms
             from unnest($6::uuid[], $7::vector[]) as n(chunk_id, embedding)
             join chunk_embedding e on e.tenant_id = $1 and e.namespace_id = $2 and e.model_id = $4
                 and e.home in ('00000000-0000-0000-0000-000000000000', $2) and e.chunk_id = n.chunk_id
             where not exists (
                 select from chunk_embedding o where o.tenant_id = $1 and o.namespace_id = $2 and o.model_id = $3
                     and o.home in ('00000000-0000-0000-0000-000000000000', $2) and o.chunk_id = n.chunk_id)
             on conflict do nothing",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(model.as_str())
        .bind(active)
        .bind(if is_home { namespace } else { Uuid::nil() })
        .bind(&chunks)
        .bind(&embeddings)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(true)
    }

    /// Makes the filled model the active one, if each chunk has exactly one embedding of it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then the old one goes on.
    pub async fn reembed_switch(&self, model: &ModelId) -> Result<Switch, StoreError> {
        const OPERATION: &str = "reembed.switch";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        let held: Option<i64> = sqlx::query_scalar(
            "select seq from namespace where tenant_id = $1 and namespace_id = $2 and building = $3 for update",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(model.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if held.is_none() {
            return Ok(Switch::Gone);
        }
        let complete: bool = sqlx::query_scalar(
            "select not exists (
                 select from (select chunk_id, version from chunk where tenant_id = $1 and namespace_id = $2) c
                 full join (
                     select chunk_id, version from chunk_embedding
                     where tenant_id = $1 and namespace_id = $2 and model_id = $3
                         and home in ('00000000-0000-0000-0000-000000000000', $2)) e using (chunk_id, version)
                 group by chunk_id, version having count(c.*) <> 1 or count(e.*) <> 1)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(model.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if !complete {
            return Ok(Switch::Behind);
        }
        let seq: i64 = sqlx::query_scalar(
            "with switched as (
                 update namespace set seq = seq + 1, model_id = building, building = null,
                     retired = array_append(array_remove(retired, building), model_id)
                 where tenant_id = $1 and namespace_id = $2 returning seq)
             insert into outbox (tenant_id, namespace_id, seq, at, removed)
             select $1, $2, seq, $3, '{}' from switched returning seq",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(self.reader.postgres().clock.now())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(Switch::Done(Seq(seq)))
    }

    /// Removes up to `limit` rows of models that the namespace has left; when none is left, their index and, by
    /// the sweep of partitions, their own partition. `true`: nothing is left.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; to be called again.
    pub async fn reembed_sweep(&self, limit: i64) -> Result<bool, StoreError> {
        const OPERATION: &str = "reembed.sweep";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        // Held, so that no model comes back into use while its rows go.
        let retired: Option<Vec<String>> = sqlx::query_scalar(
            "select retired from namespace where tenant_id = $1 and namespace_id = $2 for update",
        )
        .bind(tenant)
        .bind(namespace)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(retired) = retired.filter(|models| !models.is_empty()) else { return Ok(true) };
        let done = sqlx::query(
            "delete from chunk_embedding where tenant_id = $1 and namespace_id = $2 and model_id = any($3)
                 and home in ('00000000-0000-0000-0000-000000000000', $2) and chunk_id in (
                     select chunk_id from chunk_embedding
                     where tenant_id = $1 and namespace_id = $2 and model_id = any($3)
                         and home in ('00000000-0000-0000-0000-000000000000', $2) limit $4)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(&retired)
        .bind(limit)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        if done.rows_affected() > 0 {
            return Ok(false);
        }
        for model in &retired {
            let left =
                Partition::new(self.partition.tenant(), self.partition.namespace(), parse(model, OPERATION)?);
            self.vectors().retire(&left).await?;
        }
        // A model that came back into use meanwhile is not among the retired any more, and keeps its partition.
        let mut tx = self.reader.begin().await?;
        sqlx::query(
            "update namespace set
                 homes = array(
                     select home from unnest(homes) as h(home) where not (home = any($3) and home = any(retired))),
                 retired = array(select model from unnest(retired) as r(model) where not model = any($3))
             where tenant_id = $1 and namespace_id = $2",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(&retired)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(true)
    }
}

fn parse(model: &str, operation: &'static str) -> Result<ModelId, StoreError> {
    ModelId::parse(model)
        .map_err(|error| StoreError::new(ErrorKind::Internal, "postgres", operation, error.to_string()))
}
