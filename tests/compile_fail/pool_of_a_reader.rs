use bulkhead::store::TenantReader;
use bulkhead::store::postgres::Postgres;

pub fn take(reader: &TenantReader) -> Postgres {
    reader.postgres().clone()
}
