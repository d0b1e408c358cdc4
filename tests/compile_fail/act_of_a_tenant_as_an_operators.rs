use bulkhead::domain::ids::TenantId;
use bulkhead::store::{StoreError, Stores, TenantAct};

pub async fn suspend(stores: &Stores, act: TenantAct, tenant: TenantId) -> Result<(), StoreError> {
    stores.tenant_set_suspended(act, tenant, true).await.map(drop)
}
