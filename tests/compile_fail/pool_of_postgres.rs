use bulkhead::store::postgres::Postgres;

pub fn take(postgres: &Postgres) {
    let _ = &postgres.pools;
}
