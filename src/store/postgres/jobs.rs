//! The queue: rows leased with a fence, so that a job is done once, and by whoever still holds it.
//!
//! **Invariant:** a clock that is set forwards or back holds nothing up for longer than a lease may last, and lets nobody
//! write whose lease is another's.
//! **Invariant:** the dispatcher's role sees heads only; what a job is about is read under its tenant.
//! **Invariant:** locks are taken in one order: a tenant's lock on its namespaces, a namespace's acceptance lock, the
//! namespace, jobs by identity, documents. Another order would end in deadlocks.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::Postgres;
use super::error::failed;
use super::leases::LeaseTerms;
use crate::domain::document::Status;
use crate::domain::ids::{JobId, NamespaceId, TenantId};
use crate::store::ServerAct;
use crate::store::error::StoreError;
use crate::store::handles::{CorpusWriter, Stores, TenantReader, TenantWriter};

/// The longest that a job is put off. One that is due later was written before the clock was set back, and is due now.
const LONGEST_DELAY: TimeDelta = TimeDelta::minutes(6);
/// The longest that a lease may have left, likewise; more than settings allow a lease to last.
const LONGEST_LEASE: TimeDelta = TimeDelta::minutes(15);

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Processes a version of a document.
    Ingest,
    /// Deletes all that a deleted tenant owns.
    PurgeTenant,
    /// Embeds a tenant's namespaces by another model.
    Reembed,
}

/// The head of a leased job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedJob {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its identity.
    pub job: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The lease, to be shown with every change.
    pub lease: Uuid,
    /// How often it was begun, this time included.
    pub attempts: i32,
    /// Bytes to process.
    pub cost: i64,
    /// Whether it reads a file.
    pub upload: bool,
}

/// The tenant is the row's own; a row without one is no job.
impl<'r> FromRow<'r, PgRow> for LeasedJob {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant: TenantId(row.try_get("tenant_id")?),
            namespace: NamespaceId(row.try_get("namespace_id")?),
            job: JobId(row.try_get("job_id")?),
            kind: match row.try_get("kind")? {
                "purge_tenant" => JobKind::PurgeTenant,
                "reembed" => JobKind::Reembed,
                _ => JobKind::Ingest,
            },
            lease: row.try_get("lease")?,
            attempts: row.try_get("attempts")?,
            cost: row.try_get("cost")?,
            upload: row.try_get("upload")?,
        })
    }
}

/// A job as its tenant sees it.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// Its identity.
    pub job: JobId,
    /// Its document.
    pub document_id: Option<String>,
    /// `queued`, `running`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// The document's state.
    pub stage: String,
    /// Chunks embedded.
    pub done: i64,
    /// Chunks in all, 0 while unknown.
    pub total: i64,
    /// Chunks a second.
    pub rate: f32,
    /// Rises with every change.
    pub revision: i64,
    /// Why it failed.
    pub error: Option<String>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
}

impl<'r> FromRow<'r, PgRow> for JobRow {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            job: JobId(row.try_get("job_id")?),
            document_id: row.try_get("document_id")?,
            state: row.try_get("state")?,
            stage: row.try_get("stage")?,
            done: row.try_get("done")?,
            total: row.try_get("total")?,
            rate: row.try_get("rate")?,
            revision: row.try_get("revision")?,
            error: row.try_get("error")?,
            updated_at: row.try_get("updated_at")?,
            created_at: row.try_get("created_at")?,
        })
    }
}

/// What there is to process.
#[derive(Debug, Clone)]
pub struct IngestTask {
    /// The job.
    pub job: JobId,
    /// The lease under which it was opened.
    pub lease: Uuid,
    /// The document.
    pub document_id: String,
    /// The version.
    pub version: i64,
    /// Its title.
    pub title: Option<String>,
    /// The name by which it is cited, which tells the type of an upload.
    pub file_name: String,
    /// What the caller gave.
    pub metadata: Value,
    /// The text of a plain insert.
    pub body: Option<String>,
    /// The upload of any other.
    pub upload: Option<Uuid>,
    /// Whether an older version answers now.
    pub replaces: bool,
}

/// Progress of a running job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The document's state.
    pub stage: Status,
    /// Chunks embedded.
    pub done: i64,
    /// Chunks in all.
    pub total: i64,
    /// Chunks a second.
    pub rate: f32,
}

impl Stores {
    /// The tenants that have work due, those first whose work waits longest. Reads one job of each, however many wait.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_backlog(&self, limit: i64) -> Result<Vec<TenantId>, StoreError> {
        let postgres = self.postgres();
        let now = postgres.clock.now();
        let rows: Vec<Uuid> = sqlx::query_scalar(
            "with recursive waiting as (
                 select '00000000-0000-0000-0000-000000000000'::uuid as tenant_id, null::timestamptz as due_at
                 union all
                 select next.tenant_id, next.due_at from waiting cross join lateral (
                     select tenant_id, due_at from job
                     where tenant_id > waiting.tenant_id
                         and state in ('queued', 'running') and (due_at <= $1 or due_at > $3)
                         and (leased_until is null or leased_until < $1 or leased_until > $4)
                     order by tenant_id, due_at limit 1) next)
             select tenant_id from waiting where due_at is not null order by due_at, tenant_id limit $2",
        )
        .bind(now)
        .bind(limit)
        .bind(now + LONGEST_DELAY)
        .bind(now + LONGEST_LEASE)
        .fetch_all(&postgres.pools.dispatch)
        .await
        .map_err(failed("job.backlog"))?;
        Ok(rows.into_iter().map(TenantId).collect())
    }

    /// Leases jobs of a tenant and one of its namespaces, the oldest first; all of them read files, or none does.
    /// A job whose lease ran out is leased again. One that was begun twice without an end is leased alone, so
    /// that a document that ends its server takes no other down.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_lease(&self, tenant: TenantId, terms: LeaseTerms) -> Result<Vec<LeasedJob>, StoreError> {
        let postgres = self.postgres();
        let now = postgres.clock.now();
        let until = now + chrono::Duration::from_std(terms.time).unwrap_or_default();
        sqlx::query_as(
            "with due as (
                 select job_id, namespace_id, kind, upload, attempts, due_at,
                     case when attempts > 1 then $6 else cost end as cost
                 from job
                 where tenant_id = $1 and state in ('queued', 'running') and (due_at <= $2 or due_at > $9)
                     and (leased_until is null or leased_until < $2 or leased_until > $10) and ($7 or not upload)
                 order by due_at, job_id limit $3 for update skip locked),
             head as (select namespace_id, kind, upload from due order by due_at, job_id limit 1),
             running as (
                 select job_id, attempts, row_number() over oldest as place, sum(cost) over oldest - cost as before
                 from due join head using (namespace_id, kind, upload)
                 window oldest as (order by due_at, job_id))
             update job set state = 'running', lease = $4, leased_until = $5, leased_by = $8,
                 attempts = attempts + 1, updated_at = $2
             where tenant_id = $1 and job_id in (
                 select job_id from running where place = 1 or before < $6 and attempts < 2)
             returning tenant_id, job_id, namespace_id, kind, lease, attempts, cost, upload",
        )
        .bind(tenant.0)
        .bind(now)
        .bind(terms.jobs)
        .bind(postgres.ids.uuid())
        .bind(until)
        .bind(terms.bytes)
        .bind(terms.uploads)
        .bind(terms.node)
        .bind(now + LONGEST_DELAY)
        .bind(now + LONGEST_LEASE)
        .fetch_all(&postgres.pools.dispatch)
        .await
        .map_err(failed("job.lease"))
    }

    pub(in crate::store) fn postgres(&self) -> &Postgres {
        &self.inner.postgres
    }
}

impl CorpusWriter {
    /// Reads what leased jobs are about. A job that was cancelled or leased by somebody else is absent.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_open(&self, jobs: &[LeasedJob]) -> Result<Vec<IngestTask>, StoreError> {
        const OPERATION: &str = "job.open";
        let mut tx = self.reader.begin().await?;
        // Each row by its whole key, here and in all that ingestion does for a list of documents:
        // docs/decisions/rows-by-their-whole-key.md. The state is looked at afterwards: asked for inside, it makes
        // the index of what is queued look as good as the key.
        let rows = sqlx::query(
            "select j.job_id, j.lease, v.document_id, v.version, v.title, v.file_name, v.metadata, v.body,
                 v.upload_id, d.live_version is not null as replaces
             from unnest($3::uuid[], $4::uuid[]) as mine(job_id, lease)
             cross join lateral (
                 select * from job j
                 where j.tenant_id = $1 and j.job_id = mine.job_id and j.lease = mine.lease offset 0) j
             cross join lateral (
                 select live_version from document d
                 where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = j.document_id
                     and d.version = j.version offset 0) d
             cross join lateral (
                 select * from document_version v
                 where v.tenant_id = $1 and v.namespace_id = $2 and v.document_id = j.document_id
                     and v.version = j.version offset 0) v
             where j.state = 'running'",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(jobs.iter().map(|job| job.job.0).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.lease).collect::<Vec<_>>())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        let task = |row: &PgRow| {
            Ok(IngestTask {
                job: JobId(row.try_get("job_id")?),
                lease: row.try_get("lease")?,
                document_id: row.try_get("document_id")?,
                version: row.try_get("version")?,
                title: row.try_get("title")?,
                file_name: row.try_get("file_name")?,
                metadata: row.try_get("metadata")?,
                body: row.try_get("body")?,
                upload: row.try_get("upload_id")?,
                replaces: row.try_get("replaces")?,
            })
        };
        rows.iter().map(task).collect::<Result<_, sqlx::Error>>().map_err(failed(OPERATION))
    }

    /// Records progress and extends the leases. Returns the jobs that are still held; work on the others stops.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_progress(
        &self,
        jobs: &[(JobId, Uuid)],
        progress: Progress,
        lease_time: Duration,
    ) -> Result<Vec<JobId>, StoreError> {
        const OPERATION: &str = "job.progress";
        let now = self.reader.postgres().clock.now();
        let mut tx = self.reader.begin().await?;
        let held: Vec<Uuid> = sqlx::query_scalar(
            "with held as (
                 update job set stage = $5, done = $6, total = $7, rate = $8, revision = revision + 1,
                     updated_at = $9, leased_until = $10
                 from (select * from unnest($3::uuid[], $4::uuid[]) as n(job_id, lease) order by job_id offset 0) mine
                 cross join lateral (
                     select j.ctid, j.state from job j
                     where j.tenant_id = $1 and j.job_id = mine.job_id and j.lease = mine.lease
                         and j.namespace_id = $2 for update) j
                 where job.ctid = j.ctid and j.state = 'running'
                 returning job.job_id, job.document_id, job.version),
             seen as (
                 update document set status = $5, updated_at = $9 from held
                 cross join lateral (
                     select d.ctid from document d
                     where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = held.document_id
                         and d.version = held.version for update) d
                 where document.ctid = d.ctid)
             select job_id from held",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(jobs.iter().map(|(job, _)| job.0).collect::<Vec<_>>())
        .bind(jobs.iter().map(|(_, lease)| *lease).collect::<Vec<_>>())
        .bind(progress.stage.name())
        .bind(progress.done)
        .bind(progress.total)
        .bind(progress.rate)
        .bind(now)
        .bind(now + chrono::Duration::from_std(lease_time).unwrap_or_default())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(held.into_iter().map(JobId).collect())
    }

    /// Ends a job that cannot succeed. A version that answered before goes on answering.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_fail(&self, job: JobId, lease: Uuid, reason: &str) -> Result<(), StoreError> {
        let now = self.reader.postgres().clock.now();
        let mut tx = self.reader.begin().await?;
        sqlx::query(
            "with ended as (
                 update job set state = 'failed', stage = 'failed', error = $5, lease = null, leased_until = null,
                     updated_at = $6, finished_at = $6, revision = revision + 1
                 where tenant_id = $1 and job_id = $3 and lease = $4 and state = 'running'
                 returning document_id, version)
             update document d set status = 'failed', error = $5, updated_at = $6 from ended
             where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = ended.document_id
                 and d.version = ended.version",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(job.0)
        .bind(lease)
        .bind(reason)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed("job.fail"))?;
        tx.commit().await
    }
}

impl TenantWriter {
    /// Notes that a purge is done, with its receipt; once, whoever else did it too. Its row stays: it tells every late
    /// writer that the tenant is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then the job is as before.
    pub async fn purge_finish(&self, receipt: ServerAct, job: JobId) -> Result<(), StoreError> {
        let mut tx = self.postgres().control(Some(self.scope.tenant())).await?;
        let done = sqlx::query(
            "update job set state = 'done', stage = 'processed', lease = null, leased_until = null,
                 updated_at = $3, finished_at = $3 where tenant_id = $1 and job_id = $2 and state <> 'done'",
        )
        .bind(self.scope.tenant().0)
        .bind(job.0)
        .bind(self.postgres().clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed("purge.finish"))?;
        if done.rows_affected() == 0 {
            return Ok(());
        }
        tx.commit(receipt.0.making(job.0)).await
    }

    /// Cancels a job that has not ended. `None`: there is none of this identity; `false`: it had ended.
    ///
    /// Its version fails with the reason `cancelled`; one that answered before goes on answering.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_cancel(&self, job: JobId) -> Result<Option<bool>, StoreError> {
        const OPERATION: &str = "job.cancel";
        let now = self.postgres().clock.now();
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "select j.state, n.name from job j join namespace n using (tenant_id, namespace_id)
             where j.tenant_id = $1 and j.job_id = $2 for update of j",
        )
        .bind(self.scope.tenant().0)
        .bind(job.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(row) = row else { return Ok(None) };
        if !self.reaches_name(row.try_get("name").map_err(failed(OPERATION))?) {
            return Ok(None);
        }
        let state: String = row.try_get("state").map_err(failed(OPERATION))?;
        if state != "queued" && state != "running" {
            return Ok(Some(false));
        }
        sqlx::query(
            "with ended as (
                 update job set state = 'cancelled', stage = 'failed', error = 'cancelled', lease = null,
                     leased_until = null, updated_at = $3, finished_at = $3, revision = revision + 1
                 where tenant_id = $1 and job_id = $2 returning namespace_id, document_id, version)
             update document d set status = 'failed', error = 'cancelled', updated_at = $3 from ended
             where d.tenant_id = $1 and d.namespace_id = ended.namespace_id
                 and d.document_id = ended.document_id and d.version = ended.version",
        )
        .bind(self.scope.tenant().0)
        .bind(job.0)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(Some(true))
    }
}

impl TenantReader {
    /// The jobs that one call brought, oldest first.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_track(&self, track_id: &str) -> Result<Vec<JobRow>, StoreError> {
        let mut tx = self.begin().await?;
        let rows: Vec<(String, JobRow)> = sqlx::query(
            "select j.*, n.name from job j join namespace n using (tenant_id, namespace_id)
             where j.tenant_id = $1 and j.track_id = $2 order by j.created_at, j.job_id limit 1000",
        )
        .bind(self.scope.tenant().0)
        .bind(track_id)
        .try_map(|row: PgRow| Ok((row.try_get("name")?, JobRow::from_row(&row)?)))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("job.track"))?;
        tx.commit().await?;
        Ok(rows.into_iter().filter(|(name, _)| self.reaches_name(name)).map(|(_, job)| job).collect())
    }

    /// How many of the tenant's jobs wait and how many run, and when the oldest of them came.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn job_counts(&self) -> Result<JobCounts, StoreError> {
        let mut tx = self.begin().await?;
        let (queued, running, since) = sqlx::query_as(
            "select count(*) filter (where state = 'queued'), count(*) filter (where state = 'running'),
                 min(created_at)
             from job where tenant_id = $1 and state in ('queued', 'running') and kind = 'ingest'",
        )
        .bind(self.scope.tenant().0)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("job.count"))?;
        tx.commit().await?;
        Ok(JobCounts { queued, running, since })
    }
}

/// A tenant's queue in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs that wait.
    pub queued: i64,
    /// Jobs that run.
    pub running: i64,
    /// When the oldest of them was accepted.
    pub since: Option<DateTime<Utc>>,
}
