use bulkhead::store::{Stores, TenantWriter};
use bulkhead::tenancy::{Permit, Read};

pub fn forge(stores: &Stores, permit: &Permit<Read>) -> TenantWriter {
    stores.writer(permit)
}
