use bulkhead::domain::ids::TenantId;
use bulkhead::store::vector::{VectorIndex, VectorQuery};

pub async fn search(index: &dyn VectorIndex, tenant: TenantId, query: &VectorQuery) {
    let _ = index.search(&tenant, query).await;
}
