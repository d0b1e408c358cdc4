//! What tenancy must know of tenants and keys, and the trait through which it asks.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::scope::Role;
use crate::domain::ids::{NamespaceName, TenantId};
use crate::domain::limits::LimitOverrides;

/// Where a tenant stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantState {
    /// Served.
    Active,
    /// Refused until resumed; its data stays.
    Suspended,
    /// Gone, or going: its credentials are as good as unknown.
    Deleted,
}

/// A tenant, as its credentials see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// The tenant.
    pub tenant: TenantId,
    /// Its short name in host names.
    pub slug: Arc<str>,
    /// Where it stands.
    pub state: TenantState,
    /// The limits that were set for it.
    pub limits: LimitOverrides,
}

/// A stored API key. The secret itself is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key's tenant.
    pub tenant: TenantRecord,
    /// Keyed SHA-256 of the secret.
    pub digest: [u8; 32],
    /// What its bearer may do.
    pub roles: Vec<Role>,
    /// The namespaces it is confined to; `None`: all of the tenant's.
    pub namespaces: Option<Vec<NamespaceName>>,
    /// When it ends, if ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// A stored operator credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorRecord {
    /// Keyed SHA-256 of the secret.
    pub digest: [u8; 32],
    /// When it ends, if ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// The directory could not be asked. Never a statement about a credential.
#[derive(Debug, thiserror::Error)]
#[error("the directory of tenants cannot be read")]
pub struct DirectoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The directory of tenants and keys. Read-only, uncached; the authenticator caches for at most a second.
///
/// # Errors
/// Every method: [`DirectoryError`] when the store is away, which is answered 503, never 401.
#[async_trait]
pub trait Directory: Send + Sync {
    /// The key of this public identifier.
    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>, DirectoryError>;
    /// The operator credential of this public identifier.
    async fn operator(&self, key_id: &str) -> Result<Option<OperatorRecord>, DirectoryError>;
    /// The tenant of this identity.
    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRecord>, DirectoryError>;
    /// The tenant of this slug that is not deleted.
    async fn tenant_by_slug(&self, slug: &str) -> Result<Option<TenantRecord>, DirectoryError>;
}
