use bulkhead::store::postgres::transaction::TenantTransaction;

pub fn take(_: TenantTransaction) {}
