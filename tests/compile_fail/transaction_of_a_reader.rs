use bulkhead::store::TenantReader;

pub async fn take(reader: &TenantReader) {
    let _ = reader.begin().await;
}
