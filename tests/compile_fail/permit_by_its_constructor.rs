use bulkhead::tenancy::{Permit, TenantScope, Write};

pub fn forge(reader: TenantScope) -> Permit<Write> {
    Permit::new(reader)
}
