//! The authority of a caller inside one tenant.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, DirectoryError, TenantRecord, TenantState};
use super::permit::{Action, Denied, Permit};
use crate::domain::ids::{NamespaceName, TenantId};
use crate::domain::limits::LimitOverrides;

/// What a credential allows. Each role includes the one before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Query, list, graph.
    Reader,
    /// Reader, and ingest, delete, edit.
    Writer,
    /// Writer, and namespaces, keys, audit and usage of its own tenant.
    TenantAdmin,
}

impl Role {
    /// The role's name on the wire and in tokens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::TenantAdmin => "tenant_admin",
        }
    }

    /// The role of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Reader, Self::Writer, Self::TenantAdmin].into_iter().find(|role| role.name() == name)
    }
}

/// Who acts: the public part of a credential, for audit and idempotency. Never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal(Arc<str>);

impl Principal {
    pub(in crate::tenancy) fn new(kind: &str, name: &str) -> Self {
        Self(format!("{kind}:{name}").into())
    }

    /// One of a test's choice. Releases do not have this.
    #[cfg(any(test, feature = "laboratory"))]
    #[must_use]
    pub fn of_a_test(name: &str) -> Self {
        Self::new("test", name)
    }

    /// As `key:<id>`, `token:<issuer>:<subject>` or `job:<reason>`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A caller's authority inside one tenant.
///
/// Made only from a verified credential or by [`reauthorise`]. It has no default and cannot be read from
/// a request.
#[derive(Clone)]
pub struct TenantScope {
    tenant: TenantId,
    slug: Arc<str>,
    principal: Principal,
    role: Option<Role>,
    namespaces: Option<Arc<[NamespaceName]>>,
    limits: LimitOverrides,
}

impl fmt::Debug for TenantScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantScope").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl TenantScope {
    /// The scope of a verified credential.
    pub(in crate::tenancy) fn verified(
        tenant: &TenantRecord,
        principal: Principal,
        roles: &[Role],
        namespaces: Option<Arc<[NamespaceName]>>,
    ) -> Self {
        Self {
            tenant: tenant.tenant,
            slug: Arc::clone(&tenant.slug),
            principal,
            role: roles.iter().copied().max(),
            namespaces,
            limits: tenant.limits,
        }
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The tenant's short name.
    #[must_use]
    pub fn slug(&self) -> &str {
        &self.slug
    }

    /// Who acts.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The highest role, if the credential has any.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.role
    }

    /// The namespaces that the credential is confined to; `None`: all.
    #[must_use]
    pub fn namespaces(&self) -> Option<&[NamespaceName]> {
        self.namespaces.as_deref()
    }

    /// The limits that were set for the tenant.
    #[must_use]
    pub fn limits(&self) -> &LimitOverrides {
        &self.limits
    }

    /// Whether the credential reaches this namespace.
    #[must_use]
    pub fn reaches(&self, namespace: &NamespaceName) -> bool {
        self.namespaces.as_ref().is_none_or(|allowed| allowed.contains(namespace))
    }

    /// A proof that `A` may be done.
    ///
    /// # Errors
    /// [`Denied`] when the role does not include the action.
    pub fn permit<A: Action>(&self) -> Result<Permit<A>, Denied> {
        if self.role.is_some_and(|role| role >= A::ROLE) {
            Ok(Permit::new(self.clone()))
        } else {
            Err(Denied { action: A::NAME })
        }
    }
}

/// The authority under which a job goes on: its tenant is looked up again, and must be active.
///
/// A suspended tenant's jobs wait and a deleted tenant's end; both are `None` here.
///
/// # Errors
/// [`DirectoryError`] when the directory cannot be asked.
pub async fn reauthorise(
    directory: &dyn Directory,
    tenant: TenantId,
    reason: &'static str,
) -> Result<Option<Permit<super::permit::Write>>, DirectoryError> {
    let record = directory.tenant(tenant).await?.filter(|record| record.state == TenantState::Active);
    Ok(record.map(|record| {
        let principal = Principal::new("job", reason);
        Permit::new(TenantScope::verified(&record, principal, &[Role::Writer], None))
    }))
}

/// The authority to compare what is kept of a tenant, and to put it right. Suspended ones are kept, too; `None` for
/// one that is deleted or was never there.
///
/// # Errors
/// [`DirectoryError`] when the directory cannot be asked.
pub async fn authorise_upkeep(
    directory: &dyn Directory,
    tenant: TenantId,
) -> Result<Option<Permit<super::permit::Write>>, DirectoryError> {
    let record = directory.tenant(tenant).await?.filter(|record| record.state != TenantState::Deleted);
    Ok(record.map(|record| {
        let principal = Principal::new("job", "upkeep");
        Permit::new(TenantScope::verified(&record, principal, &[Role::Writer], None))
    }))
}

/// The authority to delete what a deleted tenant left. `None` while the tenant is not deleted.
///
/// # Errors
/// [`DirectoryError`] when the directory cannot be asked.
pub async fn authorise_purge(
    directory: &dyn Directory,
    tenant: TenantId,
) -> Result<Option<Permit<super::permit::Write>>, DirectoryError> {
    let record = directory.tenant(tenant).await?.filter(|record| record.state == TenantState::Deleted);
    Ok(record.map(|record| {
        let principal = Principal::new("job", "purge");
        Permit::new(TenantScope::verified(&record, principal, &[Role::Writer], None))
    }))
}
