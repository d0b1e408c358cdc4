//! The audit log as operators examine and export it.
//!
//! **Invariant:** nobody reads an event of a tenant here without being in that tenant's log first, with a reason.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::forms::{fault, reason};
use super::{AdminError, Administration, Fault, Faults};
use crate::domain::audit::{AuditDay, ChainReport};
use crate::domain::finding::{Finding, Severity};
use crate::domain::ids::TenantId;
use crate::store::audit::export::{ExportPage, ExportPlace, Times};
use crate::tenancy::OperatorScope;

/// What is to be exported.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditExport {
    /// Events of this time and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Events before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Where the page before ended (`next`); absent: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ExportPlace>,
    /// Why, for the audit log.
    pub reason: String,
}

impl Faults for AuditExport {
    fn faults(&self) -> Vec<Fault> {
        let backwards = self.since.zip(self.until).is_some_and(|(since, until)| since >= until);
        let times = backwards.then(|| fault("until", "later than since"));
        let place = self.after.as_ref().filter(|place| place.number < 0);
        reason(&self.reason).chain(times).chain(place.map(|_| fault("after", "as it was answered"))).collect()
    }
}

impl Administration {
    /// Examines the deployment's own audit log.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn chains(&self, by: &OperatorScope) -> Result<Vec<ChainReport>, AdminError> {
        self.record(by, None, "audit.verify", "", []).await?;
        Ok(self.audit.attest(by, None).await?)
    }

    /// Examines a tenant's audit log, also that of a deleted one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_chains(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
    ) -> Result<Vec<ChainReport>, AdminError> {
        self.stores.tenant_get(by, tenant).await?.ok_or(AdminError::NotFound)?;
        self.record(by, Some(tenant.0), "audit.verify", "", []).await?;
        Ok(self.audit.attest(by, Some(tenant)).await?)
    }

    /// How many events of each kind a tenant had on each day.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_days(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        times: Times,
    ) -> Result<Vec<AuditDay>, AdminError> {
        self.stores.tenant_get(by, tenant).await?.ok_or(AdminError::NotFound)?;
        Ok(self.audit.days(by, tenant, times).await?)
    }

    /// A page of an export of a tenant's audit log, or of the deployment's own. Each page is recorded.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn audit_export(
        &self,
        by: &OperatorScope,
        tenant: Option<TenantId>,
        asked: &AuditExport,
    ) -> Result<ExportPage, AdminError> {
        asked.require()?;
        if let Some(tenant) = tenant {
            self.stores.tenant_get(by, tenant).await?.ok_or(AdminError::NotFound)?;
        }
        let place = asked.after.as_ref().map(|place| format!("{}:{}", place.node, place.number));
        self.record(by, tenant.map(|tenant| tenant.0), "audit.export", &asked.reason, place).await?;
        let times = Times { since: asked.since, until: asked.until };
        Ok(self.audit.export(by, tenant, times, asked.after.as_ref()).await?)
    }
}

/// What `doctor` says of events that were lost.
pub(super) fn lost_events(lost: u64) -> Option<Finding> {
    let finding = || {
        Finding::new(
            Severity::Error,
            "audit.lost",
            format!("{lost} audit events were lost since this server began to serve"),
            "Nobody can tell later what was asked or changed then.",
            "The server's log says when. The database was away or too slow for audit.attempts, or audit.queue or the \
             spool (audit.mongodb.spool_bytes) was full: mend what is away, or raise the setting.",
        )
    };
    (lost > 0).then(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_audit_events_are_told_by_their_number() {
        assert_eq!(lost_events(0), None);
        assert!(lost_events(3).is_some_and(|finding| finding.what.starts_with("3 audit events were lost")));
    }
}
