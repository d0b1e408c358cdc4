//! The last job of a tenant: everything that it owned goes.

use std::time::Duration;

use super::{Workers, away};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::pipeline::process::ProcessError;
use crate::store::ephemeral::Forgotten;
use crate::store::postgres::jobs::LeasedJob;
use crate::store::{Audit, Stores, TenantWriter};
use crate::tenancy::{self, Permit, Write};

/// How long questions may still run that began before the tenant was deleted: they are stopped within less, and keep
/// nothing behind it (`auth.revocation_poll`).
const LAST_QUESTIONS: Duration = Duration::from_secs(2);

/// What jobs about a whole tenant need: its purge, and its change of model.
#[derive(Clone)]
pub(super) struct TenantJobs {
    pub(super) stores: Stores,
    pub(super) audit: Audit,
}

impl TenantJobs {
    /// How many events are kept of the tenant, in the words of a receipt: an audit log is not deleted.
    async fn kept(&self, permit: &Permit<Write>) -> String {
        match self.audit.count(permit).await {
            Ok(events) => format!("kept: {events} audit events in {}", self.audit.name()),
            Err(error) => {
                let (tenant, error) = (permit.scope().tenant(), &error as &dyn std::error::Error);
                tracing::warn!(%tenant, error, "the audit events of a deleted tenant cannot be counted");
                format!("kept: audit events in {}, not reached", self.audit.name())
            }
        }
    }
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
        // Last, so that nothing is lost of its counts when what comes before fails and is done again.
        let forgotten = self.forget(&writer).await;
        let mut told = purged.to_string();
        for part in forgotten.iter().map(ToString::to_string).chain([whole.kept(&permit).await]) {
            told.push_str("; ");
            told.push_str(&part);
        }
        tracing::info!(tenant = %job.tenant, told, "a deleted tenant's data is gone");
        let receipt =
            AuditEntry::new(AuditKind::Admin, "tenant.purge", Decision::Allowed).with_receipt(&told);
        Ok(writer.purge_finish(whole.audit.server_act(receipt), job.job).await?)
    }

    /// What goes by itself is removed twice: at once, and when nothing can come any more.
    async fn forget(&self, writer: &TenantWriter) -> Vec<Forgotten> {
        if !writer.has_ephemeral() {
            return Vec::new();
        }
        let first = writer.tenant_forget().await;
        self.runtime.sleep(LAST_QUESTIONS).await;
        let last = writer.tenant_forget().await;
        std::iter::zip(first, last).map(|(first, last)| first.then(last)).collect()
    }
}
