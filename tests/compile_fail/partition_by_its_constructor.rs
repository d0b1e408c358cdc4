use bulkhead::domain::ids::{ModelId, NamespaceId, TenantId};
use bulkhead::store::Partition;

pub fn forge(tenant: TenantId, namespace: NamespaceId, model: ModelId) -> Partition {
    Partition::new(tenant, namespace, model)
}
