//! The queue as its tenant turns it: what failed is tried again, what waits is cancelled.

use uuid::Uuid;

use super::documents::namespace_lock;
use super::error::failed;
use super::transaction::TenantTransaction;
use crate::store::error::StoreError;
use crate::store::handles::CorpusWriter;

/// Documents that one call puts back.
const MAX_REQUEUED: i64 = 1000;

impl CorpusWriter {
    /// Puts documents back that failed or were cancelled and whose content is kept, at most 1000, and counts
    /// them. Duplicates of others have no content and stay as they are.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was changed.
    pub async fn documents_requeue(&self) -> Result<u64, StoreError> {
        const OPERATION: &str = "document.requeue";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        namespace_lock(&mut tx, self.partition.namespace()).await?;
        let failures: Vec<(String, i64)> = sqlx::query_as(
            "select d.document_id, d.version from document d
             join document_version v using (tenant_id, namespace_id, document_id, version)
             where d.tenant_id = $1 and d.namespace_id = $2 and d.status = 'failed'
             order by d.updated_at, d.document_id limit $3",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(MAX_REQUEUED)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let again = self.process_again(&mut tx, failures, "failed").await?;
        tx.commit().await?;
        Ok(again)
    }

    /// Puts these versions of documents back, of those that are in this state and whose content is kept.
    pub(super) async fn process_again(
        &self,
        tx: &mut TenantTransaction,
        versions: Vec<(String, i64)>,
        state: &str,
    ) -> Result<u64, StoreError> {
        const OPERATION: &str = "document.again";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let postgres = self.reader.postgres();
        if versions.is_empty() {
            return Ok(0);
        }
        let jobs: Vec<Uuid> = versions.iter().map(|_| postgres.ids.uuid()).collect();
        let (documents, versions): (Vec<String>, Vec<i64>) = versions.into_iter().unzip();
        // Jobs before documents, as everybody locks them.
        sqlx::query(
            "delete from job where tenant_id = $1 and job_id in (
                 select job_id from job where tenant_id = $1 and namespace_id = $2 and document_id = any($3)
                     and state in ('failed', 'cancelled') order by job_id for update)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(&documents)
        .execute(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let again = sqlx::query(
            "with again as (
                 update document d set status = 'pending', error = null, updated_at = $6
                 from unnest($3::text[], $4::bigint[], $5::uuid[]) as n(document_id, version, job_id)
                 where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = n.document_id
                     and d.version = n.version and d.status = $7
                 returning n.job_id, d.document_id, d.version, d.track_id, d.content_length)
             insert into job (tenant_id, job_id, namespace_id, kind, document_id, version, track_id, state, cost,
                 upload, due_at, created_at, updated_at)
             select $1, again.job_id, $2, 'ingest', document_id, version, again.track_id, 'queued',
                 again.content_length, v.upload_id is not null, $6, $6, $6
             from again join document_version v using (document_id, version)
             where v.tenant_id = $1 and v.namespace_id = $2",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(&documents)
        .bind(&versions)
        .bind(&jobs)
        .bind(postgres.clock.now())
        .bind(state)
        .execute(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        Ok(again.rows_affected())
    }

    /// Cancels every job of the namespace that has not ended, and counts them. Their versions fail with the
    /// reason `cancelled`; those that answered before go on answering.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was changed.
    pub async fn jobs_cancel(&self) -> Result<i64, StoreError> {
        const OPERATION: &str = "job.cancel_all";
        let mut tx = self.reader.begin().await?;
        let cancelled: i64 = sqlx::query_scalar(
            "with ended as (
                 update job set state = 'cancelled', stage = 'failed', error = 'cancelled', lease = null,
                     leased_until = null, updated_at = $3, finished_at = $3, revision = revision + 1
                 where tenant_id = $1 and job_id in (
                     select job_id from job where tenant_id = $1 and namespace_id = $2 and kind = 'ingest'
                         and state in ('queued', 'running') order by job_id for update)
                 returning document_id, version),
             told as (
                 update document d set status = 'failed', error = 'cancelled', updated_at = $3 from ended
                 where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = ended.document_id
                     and d.version = ended.version)
             select count(*) from ended",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(self.reader.postgres().clock.now())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(cancelled)
    }
}
