//! A database that does not keep tenants apart is refused, whatever is wrong with it.

use bulkhead::domain::ids::ModelId;
use bulkhead::store::ErrorKind;
use bulkhead::store::postgres::migrate;

use crate::database::MODEL;
use crate::place::{Place, connect};

/// What is done to the database, how it is undone, and what is said of it.
const DAMAGES: [(&str, &str, &str); 13] = [
    (
        "alter role bulkhead_app superuser",
        "alter role bulkhead_app nosuperuser",
        "role bulkhead_app: passes by row-level security",
    ),
    (
        "alter role bulkhead_dispatch bypassrls",
        "alter role bulkhead_dispatch nobypassrls",
        "role bulkhead_dispatch: passes by row-level security",
    ),
    (
        "alter table chunk no force row level security",
        "alter table chunk force row level security",
        "table chunk: row-level security is not forced",
    ),
    (
        "alter table document disable row level security",
        "alter table document enable row level security",
        "table document: row-level security is not forced",
    ),
    (
        "create table notes (tenant_id uuid)",
        "drop table notes",
        "table notes: row-level security is not forced",
    ),
    (
        "drop policy own_delete on document",
        "create policy own_delete on document for delete to bulkhead_app
             using (tenant_id = current_setting('bulkhead.tenant')::uuid)",
        "table document: no policy for delete",
    ),
    (
        "create policy loose on job for insert to bulkhead_app with check (true)",
        "drop policy loose on job",
        "policy loose of job: not bound to the tenant",
    ),
    (
        "create policy loose on chunk for update to bulkhead_app
             using (tenant_id = current_setting('bulkhead.tenant')::uuid)",
        "drop policy loose on chunk",
        "policy loose of chunk: what is written is not checked",
    ),
    (
        "create policy loose on chunk for select to bulkhead_app using (true)",
        "drop policy loose on chunk",
        "policy loose of chunk: not bound to the tenant",
    ),
    (
        "create policy loose on chunk for select using (tenant_id is not null)",
        "drop policy loose on chunk",
        "policy loose of chunk: not bound to the tenant",
    ),
    (
        "alter table chunk owner to bulkhead_app",
        "alter table chunk owner to bulkhead_owner",
        "table chunk: owned by bulkhead_app",
    ),
    (
        "create materialized view every_chunk as select * from chunk",
        "drop materialized view every_chunk",
        "view every_chunk: reads with the rights of its owner",
    ),
    (
        "create function every_chunk() returns bigint language sql security definer as 'select count(*) from chunk'",
        "drop function every_chunk",
        "function every_chunk: runs with the rights of its owner",
    ),
];

#[tokio::test]
async fn a_database_in_which_a_tenant_could_see_another_is_refused_by_the_name_of_its_fault() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    let owner = server.addresses("bulkhead").owner;
    migrate::migrate(&owner, &ModelId::parse(MODEL).expect("model")).await.expect("migrated");
    let mut superuser = connect(&server.superuser().database("bulkhead")).await;
    migrate::require_isolation(&owner).await.expect("as it was made");
    for (damage, repair, words) in DAMAGES {
        sqlx::raw_sql(damage).execute(&mut superuser).await.expect(damage);
        let refused = migrate::require_isolation(&owner).await.expect_err(damage);
        assert_eq!(refused.kind, ErrorKind::Foreign, "{damage}");
        assert!(refused.to_string().contains(words), "{damage}: {refused}");
        sqlx::raw_sql(repair).execute(&mut superuser).await.expect(repair);
        migrate::require_isolation(&owner).await.unwrap_or_else(|error| panic!("after {repair}: {error}"));
    }
    drop(superuser);
    server.stop().await.expect("stopped");
}
