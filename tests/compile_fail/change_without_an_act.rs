use bulkhead::domain::ids::TenantId;
use bulkhead::store::{StoreError, Stores};
use bulkhead::tenancy::OperatorScope;

pub async fn suspend(stores: &Stores, operator: &OperatorScope, tenant: TenantId) -> Result<(), StoreError> {
    stores.tenant_set_suspended(operator, tenant, true).await.map(drop)
}
