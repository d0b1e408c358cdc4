use bulkhead::domain::ids::TenantId;
use bulkhead::store::{OperatorAct, StoreError, Stores};

pub async fn suspend(stores: &Stores, act: OperatorAct, tenants: [TenantId; 2]) -> Result<(), StoreError> {
    stores.tenant_set_suspended(act, tenants[0], true).await?;
    stores.tenant_set_suspended(act, tenants[1], true).await.map(drop)
}
