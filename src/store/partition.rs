//! The address of a tenant's namespace in a shared store.

use crate::domain::ids::{ModelId, NamespaceId, TenantId};

/// An address in a shared store: tenant, namespace and embedding model.
///
/// Only `store` makes one, from rows read under the tenant's own row-level security.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Partition {
    tenant: TenantId,
    namespace: NamespaceId,
    model: ModelId,
}

impl Partition {
    pub(in crate::store) fn new(tenant: TenantId, namespace: NamespaceId, model: ModelId) -> Self {
        Self { tenant, namespace, model }
    }

    /// A partition for a back end's own tests. Releases do not have this.
    #[cfg(any(test, feature = "laboratory"))]
    #[must_use]
    pub fn for_laboratory(tenant: TenantId, namespace: NamespaceId, model: ModelId) -> Self {
        Self::new(tenant, namespace, model)
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// The embedding model.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }
}
