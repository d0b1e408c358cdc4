use bulkhead::tenancy::{Role, TenantScope};

/// Moves a caller's authority to another tenant.
pub fn forge(mine: &TenantScope, theirs: &TenantScope) -> TenantScope {
    TenantScope { tenant: theirs.tenant(), role: Some(Role::Writer), ..mine.clone() }
}
