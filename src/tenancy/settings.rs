//! What is configured about credentials, and what is wrong with it.
//!
//! **Invariant:** nothing here has a default that widens authority: an issuer states its audience rule and
//! the tenants that it may assert, or the configuration is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::seconds;
use uuid::Uuid;

use super::hints::HostPattern;
use super::scope::Role;
use crate::domain::address::guarded;
use crate::domain::ids::{Slug, TenantId};

/// The longest that a directory's answer may be reused, and hence half of what a revocation may take.
const MAX_REVOCATION_POLL: Duration = Duration::from_secs(1);
/// The longest that a token may live, whatever is configured.
const MAX_SESSION_TTL: Duration = Duration::from_hours(24);
/// The largest difference between an issuer's clock and ours that is forgiven.
const MAX_LEEWAY: Duration = Duration::from_mins(1);

/// Credentials: their lives, who may issue them, and what else in a request names a tenant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// The longest life of a token, in seconds. A token that lives longer is refused, whoever signed it.
    #[serde(with = "seconds")]
    pub session_ttl: Duration,
    /// How old what is known of a key or tenant may be, in seconds, at most 1. Running streams are checked
    /// at the same interval, so a revocation takes effect within twice this.
    #[serde(with = "seconds")]
    pub revocation_poll: Duration,
    /// The issuer named in tokens that this server signs itself.
    pub own_issuer: String,
    /// The other issuers whose tokens are accepted.
    pub issuers: Vec<IssuerProfile>,
    /// Host names that name a tenant, as `{slug}.example.com` or `app.{slug}.example.com`.
    pub hosts: Vec<String>,
    /// Whether the header `X-Tenant-ID` is read. It can only agree with the credential or fail the request.
    pub tenant_header: bool,
    /// Networks whose `X-Forwarded-Host` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            session_ttl: Duration::from_hours(1),
            revocation_poll: Duration::from_millis(800),
            own_issuer: "bulkhead".to_owned(),
            issuers: Vec::new(),
            hosts: Vec::new(),
            tenant_header: true,
            trusted_proxies: Vec::new(),
        }
    }
}

/// An issuer of tokens, and how far it is believed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerProfile {
    /// The exact value of `iss` in its tokens.
    pub issuer: String,
    /// The one algorithm it signs with. A token with any other is refused.
    pub algorithm: TokenAlgorithm,
    /// Where its public keys are.
    pub keys: KeySource,
    /// Which `aud` its tokens must have: a list, or `"none"` when they carry none.
    pub audience: AudienceRule,
    /// The tenants it may assert, by id or slug: a list, or `"any"`. Ids are never reused; slugs can be.
    pub tenants: AssertableTenants,
    /// The claim that holds the tenant: its name, or a JSON pointer when it begins with `/`.
    #[serde(default = "default_tenant_claim")]
    pub tenant_claim: String,
    /// Whether that claim holds the tenant's id or its slug.
    #[serde(default)]
    pub tenant_claim_is: TenantClaimForm,
    /// The claim that holds the roles, a string or an array of them: name or JSON pointer, as above.
    #[serde(default = "default_roles_claim")]
    pub roles_claim: String,
    /// What the issuer's own role names mean here, beside `reader`, `writer` and `tenant_admin`.
    #[serde(default)]
    pub role_names: BTreeMap<String, Role>,
    /// How far its clock may differ from ours, in seconds, at most 60.
    #[serde(with = "seconds", default = "default_leeway")]
    pub leeway: Duration,
}

fn default_tenant_claim() -> String {
    "tenant_id".to_owned()
}

fn default_roles_claim() -> String {
    "roles".to_owned()
}

const fn default_leeway() -> Duration {
    Duration::from_secs(5)
}

/// The algorithms that are accepted, all of them asymmetric (RFC 7518, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenAlgorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSA PKCS #1 v1.5 with SHA-256, 2048 bits or more.
    RS256,
}

impl TokenAlgorithm {
    /// The algorithm's name in a token's header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EdDSA => "EdDSA",
            Self::ES256 => "ES256",
            Self::RS256 => "RS256",
        }
    }
}

/// Where an issuer's public keys come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// A file with one public key, PEM. The tokens' `kid` is not looked at.
    PemFile(PathBuf),
    /// A file with a JSON Web Key Set (RFC 7517), read again when a key is not in it.
    JwksFile(PathBuf),
    /// The address of a JSON Web Key Set: https, or http on loopback.
    JwksUrl(String),
}

/// What `aud` must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AudienceRule {
    /// One of these must be in the token.
    OneOf(Vec<String>),
    /// The issuer states no audience; a token that has one is meant for somebody else.
    Stated(NoAudience),
}

/// The word for an issuer that states no audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoAudience {
    /// `"none"`.
    None,
}

/// The tenants that an issuer may assert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AssertableTenants {
    /// These alone, each an id or a slug.
    These(Vec<String>),
    /// Every tenant of the deployment.
    Every(AnyTenant),
}

/// The word for an issuer that may assert every tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnyTenant {
    /// `"any"`.
    Any,
}

impl AssertableTenants {
    /// Whether the tenant of this id and slug is among them.
    #[must_use]
    pub fn includes(&self, tenant: TenantId, slug: &str) -> bool {
        match self {
            Self::Every(AnyTenant::Any) => true,
            Self::These(names) => {
                let id = tenant.to_string();
                names.iter().any(|name| name.eq_ignore_ascii_case(&id) || name == slug)
            }
        }
    }
}

/// What the tenant claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantClaimForm {
    /// The tenant's id.
    #[default]
    Id,
    /// The tenant's slug.
    Slug,
}

impl AuthSettings {
    /// All faults, as sentences for the person who wrote the configuration. Empty: none.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.session_ttl.is_zero() || self.session_ttl > MAX_SESSION_TTL {
            faults.push("auth.session_ttl: more than 0 and at most 86400 seconds".to_owned());
        }
        if self.revocation_poll.is_zero() || self.revocation_poll > MAX_REVOCATION_POLL {
            faults.push("auth.revocation_poll: more than 0 and at most 1 second".to_owned());
        }
        if self.own_issuer.is_empty() {
            faults.push("auth.own_issuer: not empty".to_owned());
        }
        for pattern in &self.hosts {
            if let Err(rule) = HostPattern::parse(pattern) {
                faults.push(format!("auth.hosts: `{pattern}`: {rule}"));
            }
        }
        for (position, profile) in self.issuers.iter().enumerate() {
            let place = format!("auth.issuers[{position}]");
            faults.extend(profile.faults().into_iter().map(|fault| format!("{place}.{fault}")));
            // An audit line `token:<issuer>:<subject>` must be readable in one way only.
            let others = self.issuers.iter().enumerate().filter(|(other, _)| *other != position);
            let mut names = others.map(|(_, other)| &other.issuer).chain([&self.own_issuer]);
            let ours = format!("{}:", profile.issuer);
            if names.any(|name| *name == profile.issuer || name.starts_with(&ours)) {
                faults
                    .push(format!("{place}.issuer: `{}` is ambiguous beside another issuer", profile.issuer));
            }
        }
        faults
    }
}

impl IssuerProfile {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.issuer.is_empty() {
            faults.push("issuer: not empty".to_owned());
        }
        if self.tenant_claim.is_empty() || self.roles_claim.is_empty() {
            faults.push("tenant_claim, roles_claim: not empty".to_owned());
        }
        if self.leeway > MAX_LEEWAY {
            faults.push("leeway: at most 60 seconds".to_owned());
        }
        if let AudienceRule::OneOf(audiences) = &self.audience
            && (audiences.is_empty() || audiences.iter().any(String::is_empty))
        {
            faults.push("audience: at least one, none of them empty; or \"none\"".to_owned());
        }
        if let AssertableTenants::These(names) = &self.tenants {
            if names.is_empty() {
                faults.push("tenants: at least one; or \"any\"".to_owned());
            }
            for name in names {
                if Uuid::try_parse(name).is_err() && Slug::parse(name).is_err() {
                    faults.push(format!("tenants: `{name}` is neither an id nor a slug"));
                }
            }
        }
        if let KeySource::JwksUrl(url) = &self.keys
            && let Err(rule) = guarded(url)
        {
            faults.push(format!("keys.jwks_url: {rule}"));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: serde_json::Value) -> Result<IssuerProfile, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn an_issuer_must_state_its_audience_rule_and_its_tenants() {
        let whole = serde_json::json!({
            "issuer": "https://id.example", "algorithm": "EdDSA", "keys": {"pem_file": "key.pem"},
            "audience": "none", "tenants": "any",
        });
        assert!(profile(whole.clone()).is_ok());
        for required in ["issuer", "algorithm", "keys", "audience", "tenants"] {
            let mut less = whole.clone();
            less.as_object_mut().expect("an object").remove(required);
            assert!(profile(less).is_err(), "without {required}");
        }
        for (field, value) in [
            ("audience", "any"),
            ("tenants", "none"),
            ("algorithm", "HS256"),
            ("algorithm", "none"),
            ("x", "y"),
        ] {
            let mut wrong = whole.clone();
            wrong[field] = value.into();
            assert!(profile(wrong).is_err(), "{field} = {value}");
        }
    }

    #[test]
    fn every_fault_of_a_configuration_is_named_at_once() {
        let settings: AuthSettings = serde_json::from_value(serde_json::json!({
            "session_ttl": 0, "revocation_poll": 1.5, "hosts": ["example.com", "{slug}.example.com"],
            "issuers": [{
                "issuer": "bulkhead", "algorithm": "RS256", "keys": {"jwks_url": "http://id.example/keys"},
                "audience": [], "tenants": ["a b"], "leeway": 61,
            }],
        }))
        .expect("readable");
        let faults = settings.validate();
        for part in [
            "session_ttl",
            "revocation_poll",
            "auth.hosts: `example.com`",
            "issuers[0].audience",
            "issuers[0].tenants",
            "issuers[0].leeway",
            "issuers[0].keys.jwks_url",
            "issuers[0].issuer",
        ] {
            assert!(faults.iter().any(|fault| fault.contains(part)), "{part} in {faults:?}");
        }
        assert_eq!(faults.len(), 8, "{faults:?}");
        assert_eq!(AuthSettings::default().validate(), Vec::<String>::new());
    }
}
