use bulkhead::tenancy::{Principal, Role, TenantRecord, TenantScope};

pub fn forge(tenant: &TenantRecord, principal: Principal) -> TenantScope {
    TenantScope::verified(tenant, principal, &[Role::TenantAdmin], None)
}
