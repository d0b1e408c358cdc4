use bulkhead::tenancy::TenantScope;

pub fn forge() -> TenantScope {
    TenantScope::default()
}
