//! What operators do to tenants, their keys and tokens: each action checked, done, and in the audit log with its reason.
//! The admin routes and the command line go through here.
//!
//! What changes a row is recorded by the transaction that changes it. What only reads is recorded before it is answered,
//! and what takes longer than a transaction (repairing, rebuilding, moving) before it begins.
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
use crate::store::postgres::administer::{NewKey, NewOperatorKey};
use crate::store::postgres::control::{KeyView, TenantView};
use crate::store::postgres::models::ReembedView;
use crate::store::postgres::usage::Usage;
use crate::store::{Audit, ErrorKind, OperatorAct, StoreError, Stores};
use crate::telemetry::tenants::Recent;
use crate::tenancy::{ApiKey, KeyKind, KeyPepper, LimitSettings, MintError, OperatorScope, TokenSigner};

pub use audit::AuditExport;
pub use forms::{
    CreatedKey, CreatedOperator, CreatedToken, Deletion, Fault, Faults, NewLimits, NewModel, NewOperator,
    NewTenant, NewTenantKey, NewToken, Reason, TenantDetails, TenantPage,
};
pub use upkeep::{
    Examination, Examined, IndexKeeper, NamespaceExamined, NewBackup, NewPlacement, Placed, Rebuilt, Upkeep,
};

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
    /// The store is away, or the action could not be written into the audit log: it was not done. Unless the answer to
    /// its commit was lost: then it is done and recorded, or neither.
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
        let act = |slug: &Slug| self.act(by, "tenant.create", &new.reason, [slug.as_str().to_owned()]);
        let mut made = match &slug {
            Some(slug) => self.stores.tenant_create(act(slug), name, slug).await?,
            None => None,
        };
        if made.is_none() && stated.is_none() {
            let base = slug.as_ref().map_or("tenant", Slug::as_str);
            let ending = hex::encode(&self.ids.secret()[..4]);
            if let Ok(slug) = Slug::parse(&format!("{base}-{ending}")) {
                made = self.stores.tenant_create(act(&slug), name, &slug).await?;
            }
        }
        made.ok_or(AdminError::SlugTaken)
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
        let changes = new.limits.iter().map(|(name, value)| format!("{name}={value}"));
        let act = self.act(by, "tenant.limits", &new.reason, changes);
        let set = self.stores.tenant_set_limits(act, tenant, &new.limits).await?;
        Ok(self.details(set.ok_or(AdminError::NotFound)?))
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
        let act = self.act(by, if suspended { "tenant.suspend" } else { "tenant.resume" }, &why.reason, []);
        self.stores.tenant_set_suspended(act, tenant, suspended).await?.ok_or(AdminError::NotFound)
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
        let act = self.act(by, "tenant.delete", &why.reason, []);
        let (view, job_id) = self.stores.tenant_delete(act, tenant).await?.ok_or(AdminError::NotFound)?;
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
        let act = self.act(by, "key.create", &new.reason, [stored.key_id.clone()]);
        if !self.stores.key_create(act, tenant, &stored).await? {
            return Err(AdminError::NotFound);
        }
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
        let act = self.act(by, "key.revoke", &why.reason, [key_id.to_owned()]);
        let found = self.stores.key_revoke(act, tenant, key_id).await?;
        found.then_some(()).ok_or(AdminError::NotFound)
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
        let key = ApiKey::generate(KeyKind::Operator, self.ids.as_ref());
        let act = self.act(by, "operator.create", &new.reason, [key.id().to_owned()]);
        let (digest, name) = (key.digest(&self.pepper), new.name.trim());
        self.stores.operator_create(act, NewOperatorKey { key_id: key.id(), digest, name }).await?;
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
        let act = self.act(by, "model.change", &new.reason, [new.model.clone()]);
        match self.stores.reembed_create(act, tenant, new.namespace.as_deref(), model).await {
            Err(error) if error.kind == ErrorKind::Conflict => Err(AdminError::ModelChanging),
            begun => begun?.ok_or(AdminError::NotFound),
        }
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
        report.findings.extend(audit::lost_events(self.audit.counts().lost));
        report.findings.extend(self.upkeep.calls.left_alone().into_iter().map(left_alone));
        self.record(by, None, "doctor.examine", "", []).await?;
        Ok(report)
    }

    /// The limits of a tenant that is not deleted.
    async fn require_tenant(&self, by: &OperatorScope, tenant: TenantId) -> Result<Limits, AdminError> {
        let found = self.stores.tenant_get(by, tenant).await?.filter(|(view, _)| view.state != "deleted");
        let (_, set) = found.ok_or(AdminError::NotFound)?;
        Ok(self.limits.tenant.with(&set))
    }

    /// An action that changes rows, for the store to record with the change.
    fn act(
        &self,
        by: &OperatorScope,
        action: &'static str,
        reason: &str,
        ids: impl IntoIterator<Item = String>,
    ) -> OperatorAct {
        self.audit.operator_act(by, entry(action, reason, ids))
    }

    /// Records an action that changes no row, before it is answered or begun.
    async fn record(
        &self,
        by: &OperatorScope,
        tenant: Option<Uuid>,
        action: &'static str,
        reason: &str,
        ids: impl IntoIterator<Item = String>,
    ) -> Result<(), AdminError> {
        let entry = entry(action, reason, ids);
        Ok(self.audit.record_operator(by, tenant.map(TenantId), entry).await?)
    }
}

fn entry(action: &'static str, reason: &str, ids: impl IntoIterator<Item = String>) -> AuditEntry {
    AuditEntry::new(AuditKind::Admin, action, Decision::Allowed).because(reason.trim()).with_ids(ids)
}

fn left_alone(service: &'static str) -> Finding {
    Finding::new(
        Severity::Warning,
        "stores.resting",
        format!("{service} is left alone for a while: it failed several times in a row"),
        "The server goes on without it, and worse: docs/services.md says how.",
        "The server's log has the reason under the service's name. When that is mended, the service is used again by \
         itself.",
    )
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
    fn a_slug_is_made_of_what_of_a_name_can_be_in_a_host_name() {
        let made = |name: &str| slug_of(name).map(|slug| slug.as_str().to_owned());
        assert_eq!(made("Norvik Energy A/S").as_deref(), Some("norvik-energy-a-s"));
        assert_eq!(made("  Über 9 ").as_deref(), Some("ber-9"));
        assert_eq!(made("日本"), None);
        assert_eq!(made(&"a b".repeat(40)).map(|slug| slug.len()), Some(40));
    }
}
