//! Why a request is refused by identity: what is said outside, and what is written to the audit log.
//!
//! **Invariant:** what is said outside is the [`RefusalKind`] alone, the same for every tenant there is or is not.

use std::fmt;

use super::hints::TenantHint;
use super::permit::Denied;
use super::scope::{Principal, TenantScope};
use crate::domain::ids::TenantId;

/// What is said outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// No credential, or none that is accepted.
    Unauthorized,
    /// The credential was right and has ended.
    TokenExpired,
    /// The host name or header that names a tenant cannot be read, or names two.
    TenantHintMalformed,
    /// The credential was verified and names no tenant.
    NoTenant,
    /// The request names another tenant than the credential.
    TenantMismatch,
    /// The caller's own tenant is suspended.
    TenantSuspended,
    /// The credential's roles do not include the action.
    MissingRole,
    /// The credential could not be checked now. Says nothing of it; to be tried again.
    Unavailable,
}

impl RefusalKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Unauthorized,
        Self::TokenExpired,
        Self::TenantHintMalformed,
        Self::NoTenant,
        Self::TenantMismatch,
        Self::TenantSuspended,
        Self::MissingRole,
        Self::Unavailable,
    ];

    /// The problem's slug.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token-expired",
            Self::TenantHintMalformed => "tenant-hint-malformed",
            Self::NoTenant => "no-tenant",
            Self::TenantMismatch => "tenant-mismatch",
            Self::TenantSuspended => "tenant-suspended",
            Self::MissingRole => "missing-role",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status (RFC 9110).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Unauthorized | Self::TokenExpired => 401,
            Self::TenantHintMalformed => 400,
            Self::NoTenant | Self::TenantMismatch | Self::TenantSuspended | Self::MissingRole => 403,
            Self::Unavailable => 503,
        }
    }
}

/// What the audit log is told of a refusal. Holds no secret; nothing of it is shown to the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusalFacts {
    /// Who asked, when the credential was verified.
    pub principal: Option<Principal>,
    /// The tenant of the verified credential.
    pub tenant: Option<TenantId>,
    /// The public identifier of the key that was presented, verified or not.
    pub presented: Option<String>,
    /// The tenants that the request named.
    pub asked_for: Vec<TenantHint>,
    /// Why, in fixed words.
    pub reason: &'static str,
}

/// A request that is refused by identity.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal {
    kind: RefusalKind,
    facts: Box<RefusalFacts>,
}

impl Refusal {
    pub(super) fn new(kind: RefusalKind, reason: &'static str) -> Self {
        Self { kind, facts: Box::new(RefusalFacts { reason, ..RefusalFacts::default() }) }
    }

    pub(super) fn presented(mut self, key_id: &str) -> Self {
        self.facts.presented = Some(key_id.to_owned());
        self
    }

    pub(super) fn by(mut self, principal: &Principal, tenant: Option<TenantId>) -> Self {
        self.facts.principal = Some(principal.clone());
        self.facts.tenant = tenant;
        self
    }

    pub(super) fn asking_for(mut self, hints: Vec<TenantHint>) -> Self {
        self.facts.asked_for = hints;
        self
    }

    /// The refusal of an action that the scope does not include.
    #[must_use]
    pub fn missing_role(scope: &TenantScope, denied: &Denied) -> Self {
        Self::new(RefusalKind::MissingRole, denied.action).by(scope.principal(), Some(scope.tenant()))
    }

    /// What is said outside.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// What is written to the audit log.
    #[must_use]
    pub fn facts(&self) -> &RefusalFacts {
        &self.facts
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("kind", &self.kind).field("reason", &self.facts.reason).finish()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.slug())
    }
}

impl std::error::Error for Refusal {}
