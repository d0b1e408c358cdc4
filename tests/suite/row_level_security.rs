//! What row-level security does by itself, below every handle: plain connections, one for each role.

use bulkhead::store::postgres::roles::Role;
use bulkhead::tenancy::{Permit, Write};
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use crate::deployment::{Harness, chunk};
use crate::place::code;

/// Tables of tenants' data that the app role works on.
const TABLES: [&str; 14] = [
    "namespace",
    "document",
    "document_version",
    "chunk",
    "chunk_embedding",
    "chunk_mention",
    "term_frequency",
    "outbox",
    "consumer",
    "job",
    "idempotency",
    "audit_event",
    "audit_head",
    "audit_anchor",
];

async fn run(connection: &mut PgConnection, statement: &str) -> Result<u64, sqlx::Error> {
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await?;
    Ok(done.rows_affected())
}

async fn begin(connection: &mut PgConnection, tenant: Uuid) {
    run(connection, "rollback").await.expect("outside");
    run(connection, &format!("begin; select set_config('bulkhead.tenant', '{tenant}', true)"))
        .await
        .expect("begun");
}

/// A tenant with a row in every table.
async fn furnished(harness: &Harness) -> Permit<Write> {
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    harness.put(&corpus, "doc", vec![chunk(0, "harbour"), chunk(1, "lighthouse")]).await;
    let tenant = permit.scope().tenant();
    let namespace = corpus.partition().namespace();
    let mut app = harness.deployment.role(Role::App).await;
    begin(&mut app, tenant.0).await;
    let own = format!("'{tenant}', '{namespace}'");
    for statement in [
        format!("insert into consumer values ({own}, 'reader', 0, now())"),
        format!("insert into idempotency values ({own}, 'p', 'o', 'k', 'x', '{{doc}}', 200, '{{}}', now())"),
        format!(
            "insert into audit_head values ('{tenant}', 'node', 1, sha256('x'));
             insert into audit_event values ('{tenant}', 'node', 1, now(), 'query', '{{}}', sha256(''), sha256('x'));
             insert into audit_anchor values ('{tenant}', 'node', 1, sha256('x'), null, 0)"
        ),
        "commit".to_owned(),
    ] {
        run(&mut app, &statement).await.expect("furnished");
    }
    permit
}

#[tokio::test]
async fn without_a_tenant_every_statement_fails_and_does_not_just_find_nothing() {
    let harness = Harness::new().await;
    furnished(&harness).await;
    let mut app = harness.deployment.role(Role::App).await;
    for table in TABLES {
        let statement = format!("select count(*) from {table}");
        let refused = run(&mut app, &statement).await.expect_err("never set");
        assert_eq!(code(&refused), "42704", "{table}: an unknown setting");
    }
    for table in TABLES {
        begin(&mut app, Uuid::nil()).await;
        run(&mut app, "commit").await.expect("the setting ends with its transaction");
        let statement = format!("select count(*) from {table}");
        let refused = run(&mut app, &statement).await.expect_err("empty");
        assert_eq!(code(&refused), "22P02", "{table}: an empty setting is no uuid");
    }
    harness.close().await;
}

#[tokio::test]
async fn a_tenant_sees_and_changes_its_own_rows_only() {
    let harness = Harness::new().await;
    let (a, b) = (furnished(&harness).await, furnished(&harness).await);
    let (a, b) = (a.scope().tenant(), b.scope().tenant());
    let mut app = harness.deployment.role(Role::App).await;
    let mut superuser = harness.deployment.superuser().await;
    for table in TABLES {
        begin(&mut app, a.0).await;
        let seen = sqlx::query(AssertSqlSafe(format!(
            "select count(*), count(*) filter (where tenant_id <> '{a}') from {table}"
        )))
        .fetch_one(&mut app)
        .await
        .expect("read");
        assert!(seen.get::<i64, _>(0) > 0, "{table} has rows of its own: the test is worth something");
        assert_eq!(seen.get::<i64, _>(1), 0, "{table} shows rows of others");

        // What would move every row to itself: rows of others are not there to be changed.
        if table != "audit_event" {
            let touched = run(&mut app, &format!("update {table} set tenant_id = tenant_id")).await;
            assert_eq!(touched.expect("update").cast_signed(), seen.get::<i64, _>(0), "{table}");
        }
        if !table.starts_with("audit") {
            let gone = run(&mut app, &format!("delete from {table} where tenant_id = '{b}'")).await;
            assert_eq!(gone.expect("delete"), 0, "{table}");
        }
        let kept: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "select count(*) from {table} where tenant_id = '{b}'"
        )))
        .fetch_one(&mut superuser)
        .await
        .expect("count");
        assert!(kept > 0, "{table}");
    }
    harness.close().await;
}

#[tokio::test]
async fn a_row_of_another_tenant_is_neither_inserted_nor_made_by_an_update() {
    let harness = Harness::new().await;
    let (a, b) = (furnished(&harness).await, furnished(&harness).await);
    let (a, b) = (a.scope().tenant(), b.scope().tenant());
    let mut app = harness.deployment.role(Role::App).await;
    for table in TABLES {
        begin(&mut app, a.0).await;
        // The tenant is the first column of each of these tables.
        let copied = format!(
            "insert into {table} select (jsonb_populate_record(t, jsonb_build_object('tenant_id', '{b}'))).*
             from {table} t"
        );
        let refused = run(&mut app, &copied).await.expect_err("a row of B");
        assert_eq!(code(&refused), "42501", "{table}: {refused}");
        assert!(refused.to_string().contains("row-level security"), "{table}: {refused}");
        if table != "audit_event" {
            begin(&mut app, a.0).await;
            let refused = run(&mut app, &format!("update {table} set tenant_id = '{b}'")).await;
            let refused = refused.expect_err("moved to B");
            assert_eq!(code(&refused), "42501", "{table}: {refused}");
        }
    }
    begin(&mut app, Uuid::nil()).await;
    let refused =
        run(&mut app, "insert into audit_head values (gen_random_uuid(), 'n', 1, sha256(''))").await;
    assert_eq!(code(&refused.expect_err("nobody's")), "42501");
    harness.close().await;
}

#[tokio::test]
async fn keys_tell_a_tenant_nothing_of_anothers_ids_names_and_hashes() {
    let harness = Harness::new().await;
    let (a, b) = (furnished(&harness).await, furnished(&harness).await);
    let (a, b) = (a.scope().tenant(), b.scope().tenant());
    let mut superuser = harness.deployment.superuser().await;
    let mut app = harness.deployment.role(Role::App).await;
    for table in TABLES {
        // B's rows, every id, name and hash of them, under A: all go in, as they would if B did not exist.
        let rows: Vec<serde_json::Value> = sqlx::query_scalar(AssertSqlSafe(format!(
            "select to_jsonb(t) from {table} t where tenant_id = '{b}'"
        )))
        .fetch_all(&mut superuser)
        .await
        .expect("rows of B");
        assert!(!rows.is_empty(), "{table}");
        begin(&mut app, a.0).await;
        if table == "namespace" {
            // A has a namespace of the same name, which it may know.
            run(&mut app, "update namespace set name = 'other'").await.expect("renamed");
        }
        if table.starts_with("audit") || table == "term_frequency" {
            continue; // Keyed by the tenant and numbers that every tenant has.
        }
        for mut row in rows {
            row["tenant_id"] = serde_json::json!(a);
            let done = sqlx::query(AssertSqlSafe(format!(
                "insert into {table} select * from jsonb_populate_record(null::{table}, $1)"
            )))
            .bind(&row)
            .execute(&mut app)
            .await;
            assert_eq!(done.expect(table).rows_affected(), 1, "{table}");
        }
    }
    harness.close().await;
}

#[tokio::test]
async fn one_connection_serves_two_tenants_and_then_nobody() {
    let harness = Harness::new().await;
    let (a, b) = (furnished(&harness).await, furnished(&harness).await);
    let options = harness.deployment.addresses.app.clone();
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("pool");
    for tenant in [a.scope().tenant(), b.scope().tenant()] {
        let mut transaction = pool.begin().await.expect("begun");
        sqlx::query("select set_config('bulkhead.tenant', $1, true)")
            .bind(tenant.to_string())
            .execute(&mut *transaction)
            .await
            .expect("set");
        let owners: Vec<Uuid> = sqlx::query_scalar("select distinct tenant_id from chunk")
            .fetch_all(&mut *transaction)
            .await
            .expect("read");
        assert_eq!(owners, [tenant.0]);
        transaction.commit().await.expect("committed");
    }
    let nobody = sqlx::query("select tenant_id from chunk").fetch_all(&pool).await;
    assert_eq!(code(&nobody.expect_err("no tenant")), "22P02");
    pool.close().await;
    harness.close().await;
}

#[tokio::test]
async fn the_roles_that_see_every_tenant_see_no_content() {
    let harness = Harness::new().await;
    furnished(&harness).await;
    for (role, forbidden) in [
        (
            Role::Auth,
            &["select name from tenant", "select name from api_key", "select count(*) from chunk"][..],
        ),
        (
            Role::Dispatch,
            &[
                "select document_id from job",
                "select error from job",
                "select track_id from job",
                "select name from namespace",
                "select removed from outbox",
                "select text from chunk",
                "select * from document",
                "update job set document_id = 'x'",
                "delete from job",
                "insert into job (tenant_id) values (gen_random_uuid())",
                "update namespace set seq = 0",
            ],
        ),
        (
            Role::Control,
            &[
                "select text from chunk",
                "select * from document",
                "delete from tenant",
                "delete from audit_event",
            ],
        ),
        (
            Role::App,
            &[
                "select * from tenant",
                "select * from api_key",
                "select * from operator_key",
                "update audit_event set kind = 'query'",
                "delete from audit_event",
                "delete from audit_head",
                "truncate chunk",
                "select * from chunk_embedding_0123456789abcdef",
                "create table t (references_chunk uuid)",
                "set role bulkhead_dispatch",
                "set session authorization bulkhead_owner",
                "alter table chunk disable row level security",
                "drop policy own_select on chunk",
            ],
        ),
    ] {
        let mut connection = harness.deployment.role(role).await;
        run(&mut connection, "select set_config('bulkhead.tenant', gen_random_uuid()::text, false)")
            .await
            .expect("set");
        for statement in forbidden {
            let refused = run(&mut connection, statement).await.expect_err(statement);
            assert_eq!(code(&refused), "42501", "{role}: {statement}: {refused}");
        }
    }
    // Turning row security off makes a statement fail, not see more; the owner is bound as well.
    for role in [Role::App, Role::Owner] {
        let mut connection = harness.deployment.role(role).await;
        run(&mut connection, "set row_security = off").await.expect("anybody may ask");
        let refused = run(&mut connection, "select * from chunk").await.expect_err("would be affected");
        assert_eq!(code(&refused), "42501", "{role}");
    }
    harness.close().await;
}
