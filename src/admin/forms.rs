//! What operators ask for and are answered, and what a field must be.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::AdminError;
use crate::domain::audit::MAX_CHARACTERS;
use crate::domain::ids::{NamespaceName, Slug, TenantId};
use crate::domain::limits::{self, LimitOverrides, Limits};
use crate::store::postgres::control::TenantView;
use crate::tenancy::Role;

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

/// A change of the embedding model.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewModel {
    /// The model, one of those that the server is configured with.
    pub model: String,
    /// The one namespace; absent: all of the tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Why, for the audit log.
    pub reason: String,
}

/// Limits to be set for a tenant.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewLimits {
    /// Why, for the audit log.
    pub reason: String,
    /// Number by name; null gives a limit back to the configuration.
    #[serde(flatten)]
    #[schema(value_type = LimitOverrides)]
    pub limits: Map<String, Value>,
}

/// A tenant and what it may use.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TenantDetails {
    /// The tenant.
    #[serde(flatten)]
    #[schema(inline)]
    pub tenant: TenantView,
    /// What it may use.
    pub limits: Limits,
    /// Which of these were set for it; the others are the configuration's.
    pub limits_set: LimitOverrides,
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

impl Faults for NewModel {
    fn faults(&self) -> Vec<Fault> {
        let name = self.namespace.as_deref().map(NamespaceName::parse);
        let name = name.and_then(Result::err).map(|error| fault("namespace", error.0));
        words("model", &self.model).chain(reason(&self.reason)).chain(name).collect()
    }
}

impl Faults for NewOperator {
    fn faults(&self) -> Vec<Fault> {
        words("name", &self.name).chain(reason(&self.reason)).collect()
    }
}

impl Faults for NewLimits {
    fn faults(&self) -> Vec<Fault> {
        let wrong = self.limits.iter().filter_map(|(name, value)| {
            let rule = limits::check(name, value).err()?;
            Some(fault(limits::known(name).unwrap_or("limits"), rule))
        });
        let none = self.limits.is_empty().then(|| fault("limits", "at least one"));
        reason(&self.reason).chain(wrong).chain(none).collect()
    }
}

pub(super) fn fault(field: &'static str, rule: impl Into<String>) -> Fault {
    Fault { field, rule: rule.into() }
}

fn words(field: &'static str, words: &str) -> impl Iterator<Item = Fault> + use<> {
    let fits = (1..=MAX_WORDS).contains(&words.trim().chars().count());
    let wrong = !fits || words.chars().any(char::is_control);
    wrong.then(|| fault(field, format!("1 to {MAX_WORDS} characters without control characters"))).into_iter()
}

pub(super) fn reason(reason: &str) -> impl Iterator<Item = Fault> + use<> {
    let wrong = !(MIN_REASON..=MAX_CHARACTERS).contains(&reason.trim().chars().count());
    wrong.then(|| fault("reason", format!("{MIN_REASON} to {MAX_CHARACTERS} characters"))).into_iter()
}

fn roles(roles: &[Role]) -> impl Iterator<Item = Fault> + use<> {
    roles.is_empty().then(|| fault("roles", "at least one")).into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

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
