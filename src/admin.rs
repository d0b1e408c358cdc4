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
/// The longest name, characters.
const MAX_WORDS: usize = 256;
/// The shortest reason that a person will understand later, characters.
const MIN_REASON: usize = 3;
/// The most namespaces that a key is confined to.
const MAX_NAMESPACES: usize = 100;
/// The longest life of a key that ends, seconds: 10 years.
const MAX_KEY_SECONDS: u64 = 10 * 365 * 86_400;

/// A tenant to be made.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    /// Its name, 1 to 256 characters.
    pub name: String,
    /// Its short name in host names; absent: made from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// Why, for the audit log.
    pub reason: String,
}

/// Why something is done, for the audit log: 3 to 256 characters.
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
    /// Its name, 1 to 256 characters.
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
    /// Its name, 1 to 256 characters.
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
    #[schema(inline)]
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

/// A field of a body that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field.
    pub field: &'static str,
    /// What it should be.
    pub rule: String,
}

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was asked for cannot be.
    #[error("{}", .0.iter().map(|fault| format!("{}: {}", fault.field, fault.rule)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Fault>),
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

/// A body whose fields can be wrong.
pub trait Faults {
    /// Everything that is wrong with it.
    fn faults(&self) -> Vec<Fault>;

    /// # Errors
    /// [`AdminError::Invalid`] with everything that is wrong.
    fn require(&self) -> Result<(), AdminError> {
        let faults = self.faults();
        if faults.is_empty() { Ok(()) } else { Err(AdminError::Invalid(faults)) }
    }
}

impl Faults for NewTenant {
    fn faults(&self) -> Vec<Fault> {
        let slug = self.slug.as_deref().map(Slug::parse);
        let slug = slug.and_then(Result::err).map(|error| fault("slug", error.0));
        words("name", &self.name).chain(reason(&self.reason)).chain(slug).collect()
    }
}

impl Faults for Reason {
    fn faults(&self) -> Vec<Fault> {
        reason(&self.reason).collect()
    }
}

impl Faults for NewTenantKey {
    fn faults(&self) -> Vec<Fault> {
        let namespaces = self.namespaces.as_deref();
        let wrong = namespaces.into_iter().flatten().find_map(|name| NamespaceName::parse(name).err());
        let count = namespaces.filter(|names| !(1..=MAX_NAMESPACES).contains(&names.len()));
        let life = self.expires_in.filter(|seconds| !(1..=MAX_KEY_SECONDS).contains(seconds));
        words("name", &self.name)
            .chain(reason(&self.reason))
            .chain(roles(&self.roles))
            .chain(count.map(|_| fault("namespaces", format!("1 to {MAX_NAMESPACES} names, or absent"))))
            .chain(wrong.map(|error| fault("namespaces", error.0)))
            .chain(life.map(|_| fault("expires_in", format!("1 to {MAX_KEY_SECONDS} seconds"))))
            .collect()
    }
}

impl Faults for NewToken {
    fn faults(&self) -> Vec<Fault> {
        let stated = self.reason.as_deref().into_iter().flat_map(reason);
        words("subject", &self.subject).chain(roles(&self.roles)).chain(stated).collect()
    }
}

impl Faults for NewOperator {
    fn faults(&self) -> Vec<Fault> {
        words("name", &self.name).chain(reason(&self.reason)).collect()
    }
}

fn fault(field: &'static str, rule: impl Into<String>) -> Fault {
    Fault { field, rule: rule.into() }
}

fn words(field: &'static str, words: &str) -> impl Iterator<Item = Fault> + use<> {
    let fits = (1..=MAX_WORDS).contains(&words.trim().chars().count());
    let wrong = !fits || words.chars().any(char::is_control);
    wrong.then(|| fault(field, format!("1 to {MAX_WORDS} characters without control characters"))).into_iter()
}

fn reason(reason: &str) -> impl Iterator<Item = Fault> + use<> {
    let wrong = !(MIN_REASON..=MAX_CHARACTERS).contains(&reason.trim().chars().count());
    wrong.then(|| fault("reason", format!("{MIN_REASON} to {MAX_CHARACTERS} characters"))).into_iter()
}

fn roles(roles: &[Role]) -> impl Iterator<Item = Fault> + use<> {
    roles.is_empty().then(|| fault("roles", "at least one")).into_iter()
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
            AdminError::Invalid(vec![fault(field, error.to_string())])
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

    async fn require_tenant(&self, by: &OperatorScope, tenant: TenantId) -> Result<(), AdminError> {
        let view = self.stores.tenant_get(by, tenant).await?;
        view.filter(|view| view.state != "deleted").map(drop).ok_or(AdminError::NotFound)
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
            AuditEntry::new(AuditKind::Admin, action, Decision::Allowed).because(reason.trim()).with_ids(ids);
        Ok(self.audit.record_operator(by, tenant.map(TenantId), entry).await?)
    }
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

    #[test]
    fn everything_that_is_wrong_is_told_together() {
        let new = NewTenantKey {
            name: "two\nlines".to_owned(),
            roles: Vec::new(),
            namespaces: Some(vec!["A".to_owned()]),
            expires_in: Some(0),
            reason: "  x ".to_owned(),
        };
        let fields: Vec<&str> = new.faults().iter().map(|fault| fault.field).collect();
        assert_eq!(fields, ["name", "reason", "roles", "namespaces", "expires_in"]);
        let refused = new.require().expect_err("refused").to_string();
        assert!(refused.contains("reason: 3 to 256 characters; roles: at least one"), "{refused}");
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let body = r#"{"name": "a", "roles": ["reader"], "reason": "asked", "tenant_id": "x"}"#;
        assert!(serde_json::from_str::<NewTenantKey>(body).is_err());
        let body = r#"{"name": "a", "roles": ["reader"], "reason": "asked"}"#;
        let new = serde_json::from_str::<NewTenantKey>(body).expect("a key");
        assert_eq!(new.faults(), []);
    }
}
