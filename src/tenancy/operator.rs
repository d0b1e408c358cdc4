//! The authority of an operator: tenants, keys and attestation, and nothing inside a tenant.
//!
//! **Invariant:** no [`TenantScope`](super::TenantScope) and no permit can be made from it.

use chrono::{DateTime, Utc};

use super::scope::Principal;

/// Proof that an operator's credential was verified. Made by the authenticator alone.
#[derive(Debug, Clone)]
pub struct OperatorScope {
    principal: Principal,
    expires_at: Option<DateTime<Utc>>,
}

impl OperatorScope {
    pub(super) fn verified(key_id: &str, expires_at: Option<DateTime<Utc>>) -> Self {
        Self { principal: Principal::new("operator", key_id), expires_at }
    }

    /// Who acts, as `operator:<key id>`.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// When the credential ends, if ever.
    #[must_use]
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.expires_at
    }
}
