//! The last job of a tenant: everything that it owned goes.

use std::time::Duration;

use super::{Workers, away};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::pipeline::process::ProcessError;
use crate::store::postgres::jobs::LeasedJob;
use crate::store::{Audit, Stores};
use crate::tenancy;

/// What jobs about a whole tenant need: its purge, and its change of model.
#[derive(Clone)]
pub(super) struct TenantJobs {
    pub(super) stores: Stores,
    pub(super) audit: Audit,
}

impl Workers {
    pub(super) async fn purge(&self, whole: &TenantJobs, job: &LeasedJob) -> Result<(), ProcessError> {
        let permit = tenancy::authorise_purge(self.directory.as_ref(), job.tenant).await.map_err(away)?;
        let Some(permit) = permit else {
            self.queue.release(std::slice::from_ref(job), Duration::from_mins(5)).await?;
            return Ok(());
        };
        let writer = whole.stores.background(&permit);
        let purged = writer.tenant_purge().await?;
        tracing::info!(tenant = %job.tenant, %purged, "a deleted tenant's data is gone");
        let receipt = AuditEntry::new(AuditKind::Admin, "tenant.purge", Decision::Allowed)
            .because(&purged.to_string())
            .with_ids([job.job.to_string()]);
        whole.audit.record_upkeep(job.tenant, receipt).await?;
        writer.job_finish(job.job).await?;
        Ok(())
    }
}
