//! What operators' commands ask for, in the two forms in which it can be done: a request to the running server,
//! and a call of [`crate::admin`].

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::admin::{
    AdminError, Administration, AuditExport, Examination, MAX_TENANTS, NewBackup, NewLimits, NewModel,
    NewOperator, NewPlacement, NewTenant, NewTenantKey, NewToken, Reason, Resource,
};
use crate::domain::audit::written;
use crate::domain::ids::TenantId;
use crate::store::audit::export::Times;
use crate::tenancy::OperatorScope;

/// One thing that an operator wants done.
#[derive(Debug)]
pub(super) enum Action {
    TenantCreate(NewTenant),
    TenantList { after: Option<TenantId> },
    TenantGet(TenantId),
    TenantLimits(TenantId, NewLimits),
    TenantUsage(TenantId),
    TenantTop { by: Resource, limit: usize },
    TenantSuspend(TenantId, Reason),
    TenantResume(TenantId, Reason),
    TenantDelete(TenantId, Reason),
    KeyCreate(TenantId, NewTenantKey),
    KeyList(TenantId),
    KeyRevoke(TenantId, String, Reason),
    TokenCreate(TenantId, NewToken),
    OperatorCreate(NewOperator),
    Reembed(TenantId, NewModel),
    ReembedGet(TenantId, Uuid),
    Diagnose,
    Verify(TenantId, Examination),
    Rebuild(TenantId, Examination),
    Place(TenantId, NewPlacement),
    AuditChains(Option<TenantId>),
    AuditExport(Option<TenantId>, AuditExport),
    AuditDays(TenantId, Times),
    Backup(NewBackup),
}

impl Action {
    /// How long the server may take to answer.
    pub(super) fn patience(&self) -> Duration {
        match self {
            // As long as the largest namespace or tenant takes.
            Self::Verify(..) | Self::Rebuild(..) | Self::Place(..) | Self::AuditChains(..) => {
                Duration::from_hours(6)
            }
            _ => Duration::from_mins(1),
        }
    }

    /// Method, path and body of the request.
    pub(super) fn request(&self) -> (Method, String, Option<Value>) {
        let tenants = "/admin/tenants";
        match self {
            Self::TenantCreate(new) => (Method::POST, tenants.to_owned(), Some(json!(new))),
            Self::TenantList { after } => {
                let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
                (Method::GET, format!("{tenants}?limit={MAX_TENANTS}{after}"), None)
            }
            Self::TenantGet(tenant) => (Method::GET, format!("{tenants}/{tenant}"), None),
            Self::TenantLimits(tenant, new) => {
                (Method::PATCH, format!("{tenants}/{tenant}/limits"), Some(json!(new)))
            }
            Self::TenantUsage(tenant) => (Method::GET, format!("{tenants}/{tenant}/usage"), None),
            Self::TenantTop { by, limit } => {
                (Method::GET, format!("/admin/top?by={}&limit={limit}", by.name()), None)
            }
            Self::TenantSuspend(tenant, reason) => {
                (Method::POST, format!("{tenants}/{tenant}/suspend"), Some(json!(reason)))
            }
            Self::TenantResume(tenant, reason) => {
                (Method::POST, format!("{tenants}/{tenant}/resume"), Some(json!(reason)))
            }
            Self::TenantDelete(tenant, reason) => {
                (Method::DELETE, format!("{tenants}/{tenant}"), Some(json!(reason)))
            }
            Self::KeyCreate(tenant, new) => {
                (Method::POST, format!("{tenants}/{tenant}/keys"), Some(json!(new)))
            }
            Self::KeyList(tenant) => (Method::GET, format!("{tenants}/{tenant}/keys"), None),
            Self::KeyRevoke(tenant, key, reason) => {
                (Method::DELETE, format!("{tenants}/{tenant}/keys/{key}"), Some(json!(reason)))
            }
            Self::TokenCreate(tenant, new) => {
                (Method::POST, format!("{tenants}/{tenant}/tokens"), Some(json!(new)))
            }
            Self::OperatorCreate(new) => (Method::POST, "/admin/operators".to_owned(), Some(json!(new))),
            Self::Reembed(tenant, new) => {
                (Method::POST, format!("{tenants}/{tenant}/reembed"), Some(json!(new)))
            }
            Self::Diagnose => (Method::GET, "/admin/doctor".to_owned(), None),
            Self::ReembedGet(tenant, job) => (Method::GET, format!("{tenants}/{tenant}/reembed/{job}"), None),
            Self::Verify(tenant, asked) => {
                (Method::POST, format!("{tenants}/{tenant}/verify"), Some(json!(asked)))
            }
            Self::Rebuild(tenant, asked) => {
                (Method::POST, format!("{tenants}/{tenant}/rebuild"), Some(json!(asked)))
            }
            Self::Place(tenant, new) => {
                (Method::POST, format!("{tenants}/{tenant}/placement"), Some(json!(new)))
            }
            Self::AuditChains(None) => (Method::GET, "/admin/audit/chains".to_owned(), None),
            Self::AuditChains(Some(tenant)) => {
                (Method::GET, format!("{tenants}/{tenant}/audit/chains"), None)
            }
            Self::AuditDays(tenant, times) => {
                let of = |name: &str, time: Option<DateTime<Utc>>| {
                    // With `Z`, so that nothing in it needs an escape.
                    time.map(|time| format!("{name}={}&", written(time))).unwrap_or_default()
                };
                let (since, until) = (of("since", times.since), of("until", times.until));
                (Method::GET, format!("{tenants}/{tenant}/audit/days?{since}{until}"), None)
            }
            Self::AuditExport(tenant, asked) => {
                let of = tenant.map_or("/admin".to_owned(), |tenant| format!("{tenants}/{tenant}"));
                (Method::POST, format!("{of}/audit/export"), Some(json!(asked)))
            }
            Self::Backup(new) => (Method::POST, "/admin/backups".to_owned(), Some(json!(new))),
        }
    }

    /// The same without a server. The answer has the shape of the request's.
    pub(super) async fn perform(
        &self,
        admin: &Administration,
        by: &OperatorScope,
    ) -> Result<Value, AdminError> {
        Ok(match self {
            Self::TenantCreate(new) => value(&admin.tenant_create(by, new).await?),
            Self::TenantList { after } => value(&admin.tenant_list(by, *after, MAX_TENANTS).await?),
            Self::TenantGet(tenant) => value(&admin.tenant_get(by, *tenant).await?),
            Self::TenantLimits(tenant, new) => value(&admin.tenant_set_limits(by, *tenant, new).await?),
            Self::TenantUsage(tenant) => {
                let (usage, limits) = admin.tenant_usage(by, *tenant).await?;
                let mut answer = value(&usage);
                answer["limits"] = value(&limits);
                answer
            }
            Self::TenantTop { by: resource, limit } => {
                // Nobody asks anything where no server runs.
                value(&admin.tenant_compare(by, &HashMap::new()).await?.top(*resource, *limit))
            }
            Self::TenantSuspend(tenant, reason) => value(&admin.tenant_suspend(by, *tenant, reason).await?),
            Self::TenantResume(tenant, reason) => value(&admin.tenant_resume(by, *tenant, reason).await?),
            Self::TenantDelete(tenant, reason) => value(&admin.tenant_delete(by, *tenant, reason).await?),
            Self::KeyCreate(tenant, new) => value(&admin.key_create(by, *tenant, new).await?),
            Self::KeyList(tenant) => json!({ "keys": admin.key_list(by, *tenant).await? }),
            Self::KeyRevoke(tenant, key, reason) => {
                admin.key_revoke(by, *tenant, key, reason).await?;
                Value::Null
            }
            Self::TokenCreate(tenant, new) => value(&admin.token_create(by, *tenant, new).await?),
            Self::OperatorCreate(new) => value(&admin.operator_create(by, new).await?),
            Self::Reembed(tenant, new) => value(&admin.reembed(by, *tenant, new).await?),
            Self::Diagnose => value(&admin.diagnose(by).await?),
            Self::ReembedGet(tenant, job) => value(&admin.reembed_get(by, *tenant, *job).await?),
            Self::Verify(tenant, asked) => value(&admin.verify(by, *tenant, asked).await?),
            Self::Rebuild(tenant, asked) => value(&admin.rebuild(by, *tenant, asked).await?),
            Self::Place(tenant, new) => value(&admin.place(by, *tenant, new).await?),
            Self::AuditChains(None) => value(&admin.chains(by).await?),
            Self::AuditChains(Some(tenant)) => value(&admin.tenant_chains(by, *tenant).await?),
            Self::AuditDays(tenant, times) => value(&admin.tenant_days(by, *tenant, *times).await?),
            Self::AuditExport(tenant, asked) => value(&admin.audit_export(by, *tenant, asked).await?),
            Self::Backup(new) => {
                admin.backup(by, new).await?;
                Value::Null
            }
        })
    }
}

fn value(answer: &impl Serialize) -> Value {
    // These types hold texts, times and numbers alone, which JSON can always say.
    serde_json::to_value(answer).unwrap_or_default()
}
