use bulkhead::domain::ids::TenantId;
use bulkhead::store::{Stores, TenantReader};

pub fn forge(stores: &Stores, tenant: TenantId) -> TenantReader {
    stores.reader(&tenant)
}
