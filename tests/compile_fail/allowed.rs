//! The way that is open: a verified scope, a permit, a handle. This one compiles.

use bulkhead::store::vector::{Found, VectorIndex, VectorQuery};
use bulkhead::store::{Partition, StoreError, Stores, TenantReader, TenantWriter};
use bulkhead::tenancy::{Denied, Read, TenantScope, Write};

pub fn read(stores: &Stores, scope: &TenantScope) -> Result<TenantReader, Denied> {
    Ok(stores.reader(&scope.permit::<Read>()?))
}

pub fn write(stores: &Stores, scope: &TenantScope) -> Result<TenantWriter, Denied> {
    Ok(stores.writer(&scope.permit::<Write>()?))
}

pub async fn search(
    index: &dyn VectorIndex,
    partition: &Partition,
    query: &VectorQuery,
) -> Result<Option<Found>, StoreError> {
    index.search(partition, query).await
}
