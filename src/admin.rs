//! What operators do to tenants, their keys and tokens: each action checked, done, and in the audit log with
//! its reason before it is answered. The admin routes and the command line go through here.
//!
//! **Invariant:** no action without an operator's authority and a stated reason.
//! **Invariant:** a secret is in the answer to the call that made it, and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::audit::{AuditEntry, AuditKind, Decision, MAX_CHARACTERS};
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, NamespaceName, Slug, TenantId};
use crate::store::postgres::control::{KeyView, NewKey, TenantView};
use crate::store::{Audit, StoreError, Stores};
use crate::tenancy::{ApiKey, KeyKind, KeyPepper, MintError, OperatorScope, Role, TokenSigner};

/// The most tenants in one page.
pub const MAX_TENANTS: i64 = 500;
/// The longest name of a tenant or key, characters.
const MAX_NAME: usize = 200;
/// The longest life of a key that ends, seconds: 10 years.
const MAX_KEY_SECONDS: u64 = 10 * 365 * 86_400;

/// A tenant to be made.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    /// Its name, 1 to 200 characters.
    pub name: String,
    /// Its short name in host names; absent: made from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// Why, for the audit log.
    pub reason: String,
}

/// Why something is done, for the audit log: 1 to 256 characters.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The reason.
    pub reason: String,
}

/// A tenant's key to be made.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenantKey {
    /// Its name, 1 to 200 characters.
    pub name: String,
    /// What it allows; the highest counts.
    pub roles: Vec<Role>,
    /// The namespaces it is confined to; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
    /// Its life in seconds; absent: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// Why, for the audit log.
    pub reason: String,
}

/// A token to be signed.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Who will use it, 1 to 255 bytes.
    pub subject: String,
    /// What it allows; the highest counts.
    pub roles: Vec<Role>,
    /// Its life in seconds, at most `auth.session_ttl`.
    pub expires_in: u64,
    /// Why, for the audit log; absent: the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An operator's credential to be made.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOperator {
    /// Its name, 1 to 200 characters.
    pub name: String,
    /// Why, for the audit log.
    pub reason: String,
}

/// A page of tenants, by identity.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TenantPage {
    /// The tenants.
    pub tenants: Vec<TenantView>,
    /// Where the next page begins (`after`); absent: this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub next: Option<TenantId>,
}

/// A tenant that is being deleted.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Deletion {
    /// The tenant, refused from now on.
    #[serde(flatten)]
    pub tenant: TenantView,
    /// The job that removes its data.
    pub job_id: Uuid,
}

/// A key, with its secret for the only time.
#[derive(Serialize, utoipa::ToSchema)]
pub struct CreatedKey {
    /// Its public identifier.
    pub key_id: String,
    /// The key as it is sent.
    pub api_key: String,
    /// What it allows.
    pub roles: Vec<Role>,
    /// The namespaces it is confined to; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
    /// When it ends, if ever.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A signed token, for the only time.
#[derive(Serialize, utoipa::ToSchema)]
pub struct CreatedToken {
    /// The token as it is sent.
    pub token: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// An operator's credential, for the only time.
#[derive(Serialize, utoipa::ToSchema)]
pub struct CreatedOperator {
    /// Its public identifier.
    pub key_id: String,
    /// The credential as it is sent.
    pub operator_key: String,
}

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was asked for cannot be: which field, and what it should be.
    #[error("{field}: {rule}")]
    Invalid {
        /// The field of the body.
        field: &'static str,
        /// What it should be.
        rule: String,
    },
    /// Another tenant has this slug.
    #[error("the slug is taken")]
    SlugTaken,
    /// There is no such tenant or key, or it was deleted.
    #[error("there is no such tenant or key")]
    NotFound,
    /// The store is away, or the action could not be written into the audit log: it may be done, and is not to
    /// be answered as done.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn invalid(field: &'static str, rule: impl Into<String>) -> AdminError {
    AdminError::Invalid { field, rule: rule.into() }
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
}

impl Administration {
    /// Makes a tenant.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_create(&self, by: &OperatorScope, new: &NewTenant) -> Result<TenantView, AdminError> {
        let reason = reason(&new.reason)?;
        let name = name(&new.name)?;
        let slug = match &new.slug {
            Some(slug) => slug.clone(),
            None => slug_of(name),
        };
        let slug = Slug::parse(&slug).map_err(|error| invalid("slug", error.0))?;
        let tenant = self.stores.tenant_create(by, name, &slug).await?.ok_or(AdminError::SlugTaken)?;
        self.record(by, Some(tenant.tenant_id), "tenant.create", reason, []).await?;
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
        Ok(TenantPage { tenants, next })
    }

    /// One tenant, deleted ones included.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn tenant_get(&self, by: &OperatorScope, tenant: TenantId) -> Result<TenantView, AdminError> {
        self.stores.tenant_get(by, tenant).await?.ok_or(AdminError::NotFound)
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
        let reason = reason(&why.reason)?;
        let view = self.stores.tenant_set_suspended(by, tenant, suspended).await?;
        let view = view.ok_or(AdminError::NotFound)?;
        let action = if suspended { "tenant.suspend" } else { "tenant.resume" };
        self.record(by, Some(tenant.0), action, reason, []).await?;
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
        let reason = reason(&why.reason)?;
        let (view, job_id) = self.stores.tenant_delete(by, tenant).await?.ok_or(AdminError::NotFound)?;
        self.record(by, Some(tenant.0), "tenant.delete", reason, [job_id.to_string()]).await?;
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
        let reason = reason(&new.reason)?;
        let name = name(&new.name)?;
        require_roles(&new.roles)?;
        let namespaces = new.namespaces.clone().filter(|names| !names.is_empty());
        for namespace in namespaces.iter().flatten() {
            NamespaceName::parse(namespace).map_err(|error| invalid("namespaces", error.0))?;
        }
        let expires_at = match new.expires_in {
            None => None,
            Some(seconds @ 1..=MAX_KEY_SECONDS) => Some(self.clock.now() + Duration::from_secs(seconds)),
            Some(_) => return Err(invalid("expires_in", format!("1 to {MAX_KEY_SECONDS} seconds"))),
        };
        let key = ApiKey::generate(KeyKind::Tenant, self.ids.as_ref());
        let stored = NewKey {
            key_id: key.id().to_owned(),
            digest: key.digest(&self.pepper),
            name: name.to_owned(),
            roles: new.roles.iter().map(|role| role.name().to_owned()).collect(),
            namespaces: namespaces.clone(),
            expires_at,
        };
        if !self.stores.key_create(by, tenant, &stored).await? {
            return Err(AdminError::NotFound);
        }
        self.record(by, Some(tenant.0), "key.create", reason, [stored.key_id.clone()]).await?;
        let api_key = key.expose().expose_secret().to_owned();
        Ok(CreatedKey { key_id: stored.key_id, api_key, roles: new.roles.clone(), namespaces, expires_at })
    }

    /// A tenant's keys, newest first, without secrets.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn key_list(&self, by: &OperatorScope, tenant: TenantId) -> Result<Vec<KeyView>, AdminError> {
        self.tenant_get(by, tenant).await?;
        Ok(self.stores.key_list(by, tenant).await?)
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
        let reason = reason(&why.reason)?;
        if !self.stores.key_revoke(by, tenant, key_id).await? {
            return Err(AdminError::NotFound);
        }
        self.record(by, Some(tenant.0), "key.revoke", reason, [key_id.to_owned()]).await
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
        let reason = reason(new.reason.as_ref().unwrap_or(&new.subject))?;
        require_roles(&new.roles)?;
        if self.tenant_get(by, tenant).await?.state == "deleted" {
            return Err(AdminError::NotFound);
        }
        let lifetime = Duration::from_secs(new.expires_in);
        let minted = self.signer.mint(by, tenant, &new.subject, &new.roles, lifetime).map_err(|error| {
            let field = match error {
                MintError::Subject => "subject",
                MintError::Lifetime { .. } => "expires_in",
            };
            invalid(field, error.to_string())
        })?;
        self.record(by, Some(tenant.0), "token.create", reason, [new.subject.clone()]).await?;
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
        let reason = reason(&new.reason)?;
        let name = name(&new.name)?;
        let key = ApiKey::generate(KeyKind::Operator, self.ids.as_ref());
        self.stores.operator_require(key.id(), key.digest(&self.pepper), name).await?;
        self.record(by, None, "operator.create", reason, [key.id().to_owned()]).await?;
        let operator_key = key.expose().expose_secret().to_owned();
        Ok(CreatedOperator { key_id: key.id().to_owned(), operator_key })
    }

    async fn record<const N: usize>(
        &self,
        by: &OperatorScope,
        tenant: Option<Uuid>,
        action: &'static str,
        reason: &str,
        ids: [String; N],
    ) -> Result<(), AdminError> {
        let entry =
            AuditEntry::new(AuditKind::Admin, action, Decision::Allowed).because(reason).with_ids(ids);
        Ok(self.audit.record_operator(by, tenant.map(TenantId), entry).await?)
    }
}

fn reason(raw: &str) -> Result<&str, AdminError> {
    let reason = raw.trim();
    if reason.is_empty() || reason.chars().count() > MAX_CHARACTERS {
        return Err(invalid("reason", format!("1 to {MAX_CHARACTERS} characters")));
    }
    Ok(reason)
}

fn name(raw: &str) -> Result<&str, AdminError> {
    let name = raw.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(invalid("name", format!("1 to {MAX_NAME} characters without control characters")));
    }
    Ok(name)
}

fn require_roles(roles: &[Role]) -> Result<(), AdminError> {
    if roles.is_empty() { Err(invalid("roles", "at least one")) } else { Ok(()) }
}

/// `Ketterby & Sons` becomes `ketterby-sons`. Of a name without letters or digits of ASCII nothing is left.
fn slug_of(name: &str) -> String {
    let mut slug = String::new();
    for word in name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.push_str(&word.to_ascii_lowercase());
    }
    slug.truncate(63);
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_made_from_any_name_that_has_letters() {
        for (name, slug) in [
            ("Ketterby & Sons", "ketterby-sons"),
            ("  42nd Street  ", "42nd-street"),
            ("Åäö", ""),
            (&"x".repeat(80), &"x".repeat(63)),
        ] {
            assert_eq!(slug_of(name), slug);
            assert_eq!(Slug::parse(&slug_of(name)).is_ok(), !slug.is_empty());
        }
    }

    #[test]
    fn an_action_without_a_reason_is_refused() {
        assert!(reason("  ").is_err());
        assert!(reason(&"x".repeat(257)).is_err());
        assert_eq!(reason(" asked by mail ").ok(), Some("asked by mail"));
        assert!(name("two\nlines").is_err());
        assert!(require_roles(&[]).is_err());
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let body = r#"{"name": "a", "roles": ["reader"], "reason": "r", "tenant_id": "x"}"#;
        assert!(serde_json::from_str::<NewTenantKey>(body).is_err());
        let body = r#"{"name": "a", "roles": ["reader"], "reason": "r"}"#;
        assert!(serde_json::from_str::<NewTenantKey>(body).is_ok());
    }
}
