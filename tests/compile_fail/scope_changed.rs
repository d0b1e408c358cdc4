use bulkhead::domain::ids::TenantId;
use bulkhead::tenancy::TenantScope;

pub fn forge(mut mine: TenantScope, theirs: TenantId) -> TenantScope {
    mine.tenant = theirs;
    mine
}
