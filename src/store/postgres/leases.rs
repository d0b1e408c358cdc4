//! How leases end without a result: put back by whoever holds them, or freed after a crash.
//!
//! **Invariant:** a lease is freed by its holder, by time, or by the next server over the same data folder, which
//! holds that folder's lock. What its former holder still writes is fenced off, as after a lease that ran out.

use std::time::Duration;

use uuid::Uuid;

use super::error::failed;
use super::jobs::LeasedJob;
use crate::store::error::StoreError;
use crate::store::handles::Stores;

/// What a worker takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerms {
    /// Jobs, at most.
    pub jobs: i64,
    /// Bytes of source after which no further job is added.
    pub bytes: i64,
    /// How long they are held unless the lease is extended.
    pub time: Duration,
    /// Whether jobs that read files may be among them.
    pub uploads: bool,
    /// The data folder whose server holds them.
    pub node: Uuid,
}

impl Stores {
    /// Puts leased jobs back, to be due after `delay`, as if they had not been begun. For work that did not
    /// begin, or met a store that was away.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then the leases run out by themselves.
    pub async fn job_release(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError> {
        self.put_back(jobs, delay, 1).await
    }

    /// Puts leased jobs back, to be due after `delay`. The attempt counts: the next may be the last.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then the leases run out by themselves.
    pub async fn job_retry(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError> {
        self.put_back(jobs, delay, 0).await
    }

    async fn put_back(&self, jobs: &[LeasedJob], delay: Duration, given_back: i32) -> Result<(), StoreError> {
        let postgres = self.postgres();
        let now = postgres.clock.now();
        sqlx::query(
            "update job set state = 'queued', lease = null, leased_until = null, due_at = $3, updated_at = $4,
                 attempts = attempts - $5
             where job_id in (
                 select j.job_id from job j join unnest($1::uuid[], $2::uuid[]) as mine(job_id, lease)
                     on j.job_id = mine.job_id and j.lease = mine.lease
                 where j.state = 'running' order by j.job_id for update of j)",
        )
        .bind(jobs.iter().map(|job| job.job.0).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.lease).collect::<Vec<_>>())
        .bind(now + chrono::Duration::from_std(delay).unwrap_or_default())
        .bind(now)
        .bind(given_back)
        .execute(&postgres.pools.dispatch)
        .await
        .map_err(failed("job.release"))?;
        Ok(())
    }

    /// Frees what an earlier server over the same data folder held when it ended, and counts it. To be called
    /// by whoever holds that folder's lock, before it leases anything. The attempts count: a document that
    /// ends its server is given up one day.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn leases_free(&self, node: Uuid) -> Result<u64, StoreError> {
        let postgres = self.postgres();
        let freed = sqlx::query(
            "update job set state = 'queued', lease = null, leased_until = null, updated_at = $2
             where job_id in (
                 select job_id from job where state = 'running' and leased_by = $1 order by job_id for update)",
        )
        .bind(node)
        .bind(postgres.clock.now())
        .execute(&postgres.pools.dispatch)
        .await
        .map_err(failed("lease.free"))?;
        Ok(freed.rows_affected())
    }
}
