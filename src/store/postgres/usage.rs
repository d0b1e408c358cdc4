//! What a tenant keeps, counted in the transaction that changes it.
//!
//! **Invariant:** a tenant's row is the last that a transaction locks, but for the heads of its audit log, so that nobody
//! waits for it while others wait for him; under that lock a limit is compared with what is, and two writers cannot both take the last place.

use std::collections::HashMap;

use uuid::Uuid;

use super::error::failed;
use super::session::Session;
use super::transaction::TenantTransaction;
use crate::domain::ids::TenantId;
use crate::domain::limits::Limits;
use crate::store::error::StoreError;
use crate::store::handles::{Stores, TenantReader};
use crate::tenancy::OperatorScope;

/// A limit of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// Documents, in every state.
    Documents,
    /// Bytes of texts and files, of every version.
    Bytes,
}

/// What a tenant keeps, and its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, utoipa::ToSchema)]
pub struct Usage {
    /// Documents, in every state.
    pub documents: i64,
    /// Bytes of texts and files, of every version.
    pub bytes: i64,
    /// Jobs that wait.
    pub queued_jobs: i64,
    /// Jobs that run.
    pub running_jobs: i64,
}

impl Usage {
    /// The limit that keeps one more document of so many bytes out.
    #[must_use]
    pub fn full(&self, limits: &Limits, bytes: u64) -> Option<Quota> {
        if self.documents >= bound(limits.documents) {
            Some(Quota::Documents)
        } else if self.bytes.saturating_add(bound(bytes.max(1))) > bound(limits.bytes) {
            Some(Quota::Bytes)
        } else {
            None
        }
    }

    /// Whether no more jobs may wait.
    #[must_use]
    pub fn queue_full(&self, limits: &Limits) -> bool {
        self.queued_jobs + self.running_jobs >= bound(limits.queued_jobs)
    }
}

/// A limit as the database compares it.
fn bound(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

async fn read(session: &mut Session, tenant: TenantId) -> Result<Usage, StoreError> {
    let (documents, bytes, queued_jobs, running_jobs) = sqlx::query_as(
        "select coalesce(u.documents, 0), coalesce(u.bytes, 0), j.queued, j.running
         from (select count(*) filter (where state = 'queued') as queued,
                   count(*) filter (where state = 'running') as running
               from job where tenant_id = $1 and state in ('queued', 'running') and kind = 'ingest') j
         left join tenant_usage u on u.tenant_id = $1",
    )
    .bind(tenant.0)
    .fetch_one(session)
    .await
    .map_err(failed("usage.get"))?;
    Ok(Usage { documents, bytes, queued_jobs, running_jobs })
}

impl TenantReader {
    /// What the tenant keeps, and its queue.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn usage_get(&self) -> Result<Usage, StoreError> {
        let mut tx = self.begin().await?;
        let usage = read(&mut tx, self.scope.tenant()).await?;
        tx.commit().await?;
        Ok(usage)
    }
}

impl Stores {
    /// What a tenant keeps, and its queue, for an operator: numbers alone.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_usage(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
    ) -> Result<Usage, StoreError> {
        let mut tx = self.postgres().control(Some(tenant)).await?;
        read(&mut tx, tenant).await
    }
}

impl Stores {
    /// What each tenant keeps, and its queue: numbers alone, of at most `limit` tenants, those that keep the most
    /// and those that have the longest queues. Two statements, whatever the number of tenants.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn usage_list(&self, limit: i64) -> Result<HashMap<TenantId, Usage>, StoreError> {
        const OPERATION: &str = "usage.list";
        let pools = &self.postgres().pools;
        let kept: Vec<(Uuid, i64, i64)> = sqlx::query_as(
            "select u.tenant_id, u.documents, u.bytes from tenant_usage u
             join tenant t on t.tenant_id = u.tenant_id and t.state <> 'deleted'
             order by u.bytes desc limit $1",
        )
        .bind(limit)
        .fetch_all(&pools.control)
        .await
        .map_err(failed(OPERATION))?;
        let queues: Vec<(Uuid, i64, i64)> = sqlx::query_as(
            "select tenant_id, count(*) filter (where state = 'queued'), count(*) filter (where state = 'running')
             from job where state in ('queued', 'running') group by tenant_id order by count(*) desc limit $1",
        )
        .bind(limit)
        .fetch_all(&pools.dispatch)
        .await
        .map_err(failed(OPERATION))?;
        let mut usages: HashMap<TenantId, Usage> = HashMap::with_capacity(kept.len());
        for (tenant, documents, bytes) in kept {
            let usage = usages.entry(TenantId(tenant)).or_default();
            (usage.documents, usage.bytes) = (documents, bytes);
        }
        for (tenant, queued, running) in queues {
            let usage = usages.entry(TenantId(tenant)).or_default();
            (usage.queued_jobs, usage.running_jobs) = (queued, running);
        }
        Ok(usages)
    }
}

/// Counts what was written, and locks the tenant's row until the transaction ends. The limit that it would
/// pass, if any; then nothing was counted, and the transaction is to be given up.
pub(super) async fn take(
    tx: &mut TenantTransaction,
    tenant: TenantId,
    (documents, bytes): (i64, i64),
    limits: &Limits,
) -> Result<Option<Quota>, StoreError> {
    const OPERATION: &str = "usage.take";
    // A limit that was lowered below what is there does not keep a document from being replaced by one that is
    // no larger.
    let taken = sqlx::query(
        "insert into tenant_usage as u (tenant_id, documents, bytes)
         select $1, $2, $3 where ($2 <= $4 or $2 = 0) and ($3 <= $5 or $3 = 0)
         on conflict (tenant_id) do update
             set documents = u.documents + excluded.documents, bytes = u.bytes + excluded.bytes
             where (u.documents + excluded.documents <= $4 or excluded.documents = 0)
                 and (u.bytes + excluded.bytes <= $5 or excluded.bytes = 0)",
    )
    .bind(tenant.0)
    .bind(documents)
    .bind(bytes)
    .bind(bound(limits.documents))
    .bind(bound(limits.bytes))
    .execute(&mut **tx)
    .await
    .map_err(failed(OPERATION))?;
    if taken.rows_affected() == 1 {
        return Ok(None);
    }
    let kept = read(tx, tenant).await?;
    let by_documents = documents > 0 && kept.documents + documents > bound(limits.documents);
    Ok(Some(if by_documents { Quota::Documents } else { Quota::Bytes }))
}

/// Whether more jobs wait or run than the tenant may have. Asked under the lock of [`take`], it counts those of
/// everybody who was there before.
pub(super) async fn too_many_jobs(
    tx: &mut TenantTransaction,
    tenant: TenantId,
    limits: &Limits,
) -> Result<bool, StoreError> {
    sqlx::query_scalar(
        "select count(*) > $2 from (
             select from job where tenant_id = $1 and state in ('queued', 'running') limit $2 + 1) waiting",
    )
    .bind(tenant.0)
    .bind(bound(limits.queued_jobs))
    .fetch_one(&mut **tx)
    .await
    .map_err(failed("usage.jobs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_the_limits_leave() {
        let limits = Limits { documents: 2, bytes: 10, queued_jobs: 1, ..Limits::default() };
        let usage = |documents, bytes| Usage { documents, bytes, queued_jobs: 0, running_jobs: 1 };
        assert_eq!(usage(1, 9).full(&limits, 0), None);
        assert_eq!(usage(1, 9).full(&limits, 1), None);
        assert_eq!(usage(1, 9).full(&limits, 2), Some(Quota::Bytes));
        assert_eq!(usage(1, 10).full(&limits, 0), Some(Quota::Bytes));
        assert_eq!(usage(2, 0).full(&limits, 0), Some(Quota::Documents));
        assert!(usage(0, 0).queue_full(&limits));
        assert!(!usage(0, 0).queue_full(&Limits { queued_jobs: 2, ..limits }));
    }
}
