use bulkhead::store::Stores;
use bulkhead::store::postgres::Postgres;

pub fn take(stores: &Stores) -> Postgres {
    stores.inner.postgres.clone()
}
