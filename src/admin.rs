//! What operators do to tenants, their keys and tokens: each action checked, done, and in the audit log with
//! its reason before it is answered. The admin routes and the command line go through here.
//!
//! **Invariant:** no action without an operator's authority and a stated reason.
//! **Invariant:** a secret is in the answer to the call that made it, and nowhere else.

mod audit;
mod forms;
mod top;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::clock::Clock;
use crate::domain::finding::{Finding, Report, Severity};
use crate::domain::ids::{IdSource, Slug, TenantId};
use crate::domain::limits::{LimitOverrides, Limits};
use crate::store::postgres::control::{KeyView, NewKey, TenantView};
use crate::store::postgres::models::ReembedView;
use crate::store::postgres::usage::Usage;
use crate::store::{Audit, ErrorKind, StoreError, Stores};
use crate::telemetry::tenants::Recent;
use crate::tenancy::{ApiKey, KeyKind, KeyPepper, LimitSettings, MintError, OperatorScope, TokenSigner};

pub use audit::AuditExport;
pub use forms::{
    CreatedKey, CreatedOperator, CreatedToken, Deletion, Fault, Faults, NewLimits, NewModel, NewOperator,
    NewTenant, NewTenantKey, NewToken, Reason, TenantDetails, TenantPage,
};
pub use upkeep::{Examination, Examined, IndexKeeper, NamespaceExamined, NewBackup, Rebuilt, Upkeep};

pub(crate) use top::compare;
pub use top::{Comparison, Resource, TenantMetrics};

/// The most tenants in one page.
pub const MAX_TENANTS: i64 = 500;
/// The most tenants that are compared: those that keep the most, and those with the longest queues.
const MAX_COMPARED: i64 = 100_000;

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was asked for cannot be.
    #[error("{}", .0.iter().map(|fault| format!("{}: {}", fault.field, fault.rule)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Fault>),
    /// Another tenant has this slug.
    #[error("the slug is taken")]
    SlugTaken,
    /// A change to another model is under way.
    #[error("another change of this tenant's model is under way")]
    ModelChanging,
    /// There is no such tenant or key, or it was deleted.
    #[error("there is no such tenant or key")]
    NotFound,
    /// The store is away, or the action could not be written into the audit log: it may be done, and is not to
    /// be answered as done.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What operators act through.
#[derive(Clone)]
pub struct Administration {
    /// Tenants and keys.
    pub stores: Stores,
    /// Where each action is written.
    pub audit: Audit,
    /// Signs the server's own tokens.
    pub signer: Arc<TokenSigner>,
    /// Under which the digests of new keys are made.
    pub pepper: Arc<KeyPepper>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// New identifiers and secrets.
    pub ids: Arc<dyn IdSource>,
    /// Limits of tenants for which no others were set.
    pub limits: LimitSettings,
    /// For comparing and rebuilding.
    pub upkeep: Upkeep,
}

impl Administration {
    /// Makes a tenant. A slug that was stated may be taken; one that is made from the name gets a random ending
    /// then.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_create(&self, by: &OperatorScope, new: &NewTenant) -> Result<TenantView, AdminError> {
        new.require()?;
        let name = new.name.trim();
        // Parsed before: what was stated can be a slug.
        let stated = new.slug.as_deref().and_then(|slug| Slug::parse(slug).ok());
        let slug = stated.clone().or_else(|| slug_of(name));
        let mut made = match &slug {
            Some(slug) => self.stores.tenant_create(by, name, slug).await?,
            None => None,
        };
        if made.is_none() && stated.is_none() {
            let base = slug.as_ref().map_or("tenant", Slug::as_str);
            let ending = hex::encode(&self.ids.secret()[..4]);
            if let Ok(slug) = Slug::parse(&format!("{base}-{ending}")) {
                made = self.stores.tenant_create(by, name, &slug).await?;
            }
        }
        let tenant = made.ok_or(AdminError::SlugTaken)?;
        let slug = tenant.slug.clone();
        self.record(by, Some(tenant.tenant_id), "tenant.create", &new.reason, [slug]).await?;
        Ok(tenant)
    }

    /// A page of the tenants that are not deleted, at most [`MAX_TENANTS`].
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_list(
        &self,
        by: &OperatorScope,
        after: Option<TenantId>,
        limit: i64,
    ) -> Result<TenantPage, AdminError> {
        let limit = limit.clamp(1, MAX_TENANTS);
        let mut tenants = self.stores.tenant_list(by, after, limit + 1).await?;
        let page = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = tenants.len() > page;
        tenants.truncate(page);
        let next = tenants.last().filter(|_| more).map(|tenant| TenantId(tenant.tenant_id));
        self.record(by, None, "tenant.list", "", []).await?;
        Ok(TenantPage { tenants, next })
    }

    /// One tenant with its limits, deleted ones included.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_get(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
    ) -> Result<TenantDetails, AdminError> {
        let found = self.stores.tenant_get(by, tenant).await?.ok_or(AdminError::NotFound)?;
        Ok(self.details(found))
    }

    /// Sets limits of a tenant. Those that are not named stay as they are.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_set_limits(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        new: &NewLimits,
    ) -> Result<TenantDetails, AdminError> {
        new.require()?;
        let set = self.stores.tenant_set_limits(by, tenant, &new.limits).await?;
        let details = self.details(set.ok_or(AdminError::NotFound)?);
        let changes = new.limits.iter().map(|(name, value)| format!("{name}={value}"));
        self.record(by, Some(tenant.0), "tenant.limits", &new.reason, changes).await?;
        Ok(details)
    }

    /// What a tenant that is not deleted keeps, and what it may.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_usage(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
    ) -> Result<(Usage, Limits), AdminError> {
        let limits = self.require_tenant(by, tenant).await?;
        Ok((self.stores.tenant_usage(by, tenant).await?, limits))
    }

    /// All tenants that use anything, compared with one another; `recent` is what each asked of this server lately.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_compare(
        &self,
        _by: &OperatorScope,
        recent: &HashMap<TenantId, Recent>,
    ) -> Result<Comparison, AdminError> {
        Ok(compare(&self.stores.usage_list(MAX_COMPARED).await?, recent))
    }

    /// How one tenant that is not deleted fares beside the others.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_metrics(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        recent: &HashMap<TenantId, Recent>,
    ) -> Result<TenantMetrics, AdminError> {
        self.require_tenant(by, tenant).await?;
        let compared = self.tenant_compare(by, recent).await?;
        let own = compared.tenants.into_iter().find(|own| own.tenant_id == tenant.0);
        Ok(own.unwrap_or_else(|| TenantMetrics::idle(tenant)))
    }

    fn details(&self, (tenant, limits_set): (TenantView, LimitOverrides)) -> TenantDetails {
        TenantDetails { tenant, limits: self.limits.tenant.with(&limits_set), limits_set }
    }

    /// Suspends a tenant: its callers are refused and its jobs wait, until it is resumed.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_suspend(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        why: &Reason,
    ) -> Result<TenantView, AdminError> {
        self.set_suspended(by, tenant, why, true).await
    }

    /// Resumes a suspended tenant.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_resume(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        why: &Reason,
    ) -> Result<TenantView, AdminError> {
        self.set_suspended(by, tenant, why, false).await
    }

    async fn set_suspended(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        why: &Reason,
        suspended: bool,
    ) -> Result<TenantView, AdminError> {
        why.require()?;
        let view = self.stores.tenant_set_suspended(by, tenant, suspended).await?;
        let view = view.ok_or(AdminError::NotFound)?;
        let action = if suspended { "tenant.suspend" } else { "tenant.resume" };
        self.record(by, Some(tenant.0), action, &why.reason, []).await?;
        Ok(view)
    }

    /// Deletes a tenant: refused and without keys from now on, its data removed by a job.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_delete(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        why: &Reason,
    ) -> Result<Deletion, AdminError> {
        why.require()?;
        let (view, job_id) = self.stores.tenant_delete(by, tenant).await?.ok_or(AdminError::NotFound)?;
        self.record(by, Some(tenant.0), "tenant.delete", &why.reason, [job_id.to_string()]).await?;
        Ok(Deletion { tenant: view, job_id })
    }

    /// Makes a key for a tenant.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn key_create(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        new: &NewTenantKey,
    ) -> Result<CreatedKey, AdminError> {
        new.require()?;
        let expires_at = new.expires_in.map(|seconds| self.clock.now() + Duration::from_secs(seconds));
        let key = ApiKey::generate(KeyKind::Tenant, self.ids.as_ref());
        let stored = NewKey {
            key_id: key.id().to_owned(),
            digest: key.digest(&self.pepper),
            name: new.name.trim().to_owned(),
            roles: new.roles.iter().map(|role| role.name().to_owned()).collect(),
            namespaces: new.namespaces.clone(),
            expires_at,
        };
        if !self.stores.key_create(by, tenant, &stored).await? {
            return Err(AdminError::NotFound);
        }
        self.record(by, Some(tenant.0), "key.create", &new.reason, [stored.key_id.clone()]).await?;
        let api_key = key.expose().expose_secret().to_owned();
        Ok(CreatedKey {
            key_id: stored.key_id,
            api_key,
            roles: new.roles.clone(),
            namespaces: stored.namespaces,
            expires_at,
        })
    }

    /// A tenant's keys, newest first, without secrets.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn key_list(&self, by: &OperatorScope, tenant: TenantId) -> Result<Vec<KeyView>, AdminError> {
        self.require_tenant(by, tenant).await?;
        let keys = self.stores.key_list(by, tenant).await?;
        self.record(by, Some(tenant.0), "key.list", "", []).await?;
        Ok(keys)
    }

    /// Revokes a tenant's key. Revoking again changes nothing.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn key_revoke(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        key_id: &str,
        why: &Reason,
    ) -> Result<(), AdminError> {
        why.require()?;
        if !self.stores.key_revoke(by, tenant, key_id).await? {
            return Err(AdminError::NotFound);
        }
        self.record(by, Some(tenant.0), "key.revoke", &why.reason, [key_id.to_owned()]).await
    }

    /// Signs a token for a tenant that is active.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn token_create(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        new: &NewToken,
    ) -> Result<CreatedToken, AdminError> {
        new.require()?;
        self.require_tenant(by, tenant).await?;
        let subject = new.subject.trim();
        let lifetime = Duration::from_secs(new.expires_in);
        let minted = self.signer.mint(by, tenant, subject, &new.roles, lifetime).map_err(|error| {
            let field = match error {
                MintError::Subject => "subject",
                MintError::Lifetime { .. } => "expires_in",
            };
            AdminError::Invalid(vec![Fault { field, rule: error.to_string() }])
        })?;
        let reason = new.reason.as_deref().unwrap_or_default();
        self.record(by, Some(tenant.0), "token.create", reason, [subject.to_owned()]).await?;
        let token = minted.token.expose_secret().to_owned();
        Ok(CreatedToken { token, expires_at: minted.expires_at })
    }

    /// Makes another operator's credential.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn operator_create(
        &self,
        by: &OperatorScope,
        new: &NewOperator,
    ) -> Result<CreatedOperator, AdminError> {
        new.require()?;
        let name = new.name.trim();
        let key = ApiKey::generate(KeyKind::Operator, self.ids.as_ref());
        self.stores.operator_require(key.id(), key.digest(&self.pepper), name).await?;
        self.record(by, None, "operator.create", &new.reason, [key.id().to_owned()]).await?;
        let operator_key = key.expose().expose_secret().to_owned();
        Ok(CreatedOperator { key_id: key.id().to_owned(), operator_key })
    }

    /// Has a tenant's namespaces embedded by another model, in the background. Asked again, it tells of the change
    /// that is under way.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn reembed(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        new: &NewModel,
    ) -> Result<ReembedView, AdminError> {
        new.require()?;
        let Some(model) = self.stores.model_named(&new.model) else {
            let names = self.stores.model_names().join(", ");
            let rule = format!("one of {names}; embedding.further names further ones");
            return Err(AdminError::Invalid(vec![Fault { field: "model", rule }]));
        };
        let begun = self.stores.reembed_create(by, tenant, new.namespace.as_deref(), model).await;
        let view = match begun {
            Err(error) if error.kind == ErrorKind::Conflict => return Err(AdminError::ModelChanging),
            begun => begun?.ok_or(AdminError::NotFound)?,
        };
        let ids = [view.job_id.to_string(), new.model.clone()];
        self.record(by, Some(tenant.0), "model.change", &new.reason, ids).await?;
        Ok(view)
    }

    /// How far a change of model has come.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn reembed_get(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        job: Uuid,
    ) -> Result<ReembedView, AdminError> {
        self.stores.reembed_get(by, tenant, job).await?.ok_or(AdminError::NotFound)
    }

    /// What is wrong with the database and with what this server did, and how to mend it. Changes nothing.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn diagnose(&self, by: &OperatorScope) -> Result<Report, AdminError> {
        let mut report = Box::pin(self.stores.diagnose(by)).await;
        report.findings.extend(lost_events(self.audit.counts().lost));
        self.record(by, None, "doctor.examine", "", []).await?;
        Ok(report)
    }

    /// The limits of a tenant that is not deleted.
    async fn require_tenant(&self, by: &OperatorScope, tenant: TenantId) -> Result<Limits, AdminError> {
        let found = self.stores.tenant_get(by, tenant).await?.filter(|(view, _)| view.state != "deleted");
        let (_, set) = found.ok_or(AdminError::NotFound)?;
        Ok(self.limits.tenant.with(&set))
    }

    async fn record(
        &self,
        by: &OperatorScope,
        tenant: Option<Uuid>,
        action: &'static str,
        reason: &str,
        ids: impl IntoIterator<Item = String>,
    ) -> Result<(), AdminError> {
        let entry =
            AuditEntry::new(AuditKind::Admin, action, Decision::Allowed).because(reason.trim()).with_ids(ids);
        Ok(self.audit.record_operator(by, tenant.map(TenantId), entry).await?)
    }
}

fn lost_events(lost: u64) -> Option<Finding> {
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

/// A short name made from a name: what of it can be in a host name, with room for an ending.
fn slug_of(name: &str) -> Option<Slug> {
    let words = name.to_ascii_lowercase();
    let words: Vec<&str> =
        words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut slug = words.join("-");
    slug.truncate(40);
    Slug::parse(slug.trim_end_matches('-')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_audit_events_are_told_by_their_number() {
        assert_eq!(lost_events(0), None);
        assert!(lost_events(3).is_some_and(|finding| finding.what.starts_with("3 audit events were lost")));
    }

    #[test]
    fn a_slug_is_made_of_what_of_a_name_can_be_in_a_host_name() {
        let made = |name: &str| slug_of(name).map(|slug| slug.as_str().to_owned());
        assert_eq!(made("Norvik Energy A/S").as_deref(), Some("norvik-energy-a-s"));
        assert_eq!(made("  Über 9 ").as_deref(), Some("ber-9"));
        assert_eq!(made("日本"), None);
        assert_eq!(made(&"a b".repeat(40)).map(|slug| slug.len()), Some(40));
    }
}
