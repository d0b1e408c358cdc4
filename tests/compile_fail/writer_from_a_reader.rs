use bulkhead::store::{TenantReader, TenantWriter};

pub fn forge(reader: TenantReader) -> TenantWriter {
    TenantWriter { reader }
}
