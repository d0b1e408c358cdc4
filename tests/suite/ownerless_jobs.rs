//! Jobs without their tenant: no such row can be stored or read, and one whose tenant nobody knows is not run.

use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds};
use bulkhead::store::postgres::documents::OnExisting;
use bulkhead::store::postgres::jobs::LeasedJob;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, FromRow as _, Row as _};
use uuid::Uuid;

use crate::deployment::{Harness, accept, document};
use crate::place::code;
use crate::server::{PATIENCE, server, text};

/// A leased job's row, in which something else stands for the tenant.
async fn read(connection: &mut PgConnection, tenant: &str, job: Uuid) -> PgRow {
    sqlx::query(AssertSqlSafe(format!(
        "select {tenant} job_id, namespace_id, kind, lease, attempts, cost, upload from job where job_id = $1"
    )))
    .bind(job)
    .fetch_one(connection)
    .await
    .expect("read")
}

#[tokio::test]
async fn a_job_whose_row_lacks_its_tenant_is_neither_stored_nor_decoded() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    let leased = harness.lease(&corpus).await.remove(0);
    let mut superuser = harness.deployment.superuser().await;

    let whole = read(&mut superuser, "tenant_id,", leased.job.0).await;
    assert_eq!(LeasedJob::from_row(&whole).expect("decoded"), leased);
    for tenant in ["", "null::uuid as tenant_id,"] {
        let row = read(&mut superuser, tenant, leased.job.0).await;
        let refused = LeasedJob::from_row(&row).expect_err("no tenant");
        assert!(refused.to_string().contains("tenant_id"), "{refused}");
    }
    // Nobody can take it out, whatever they may.
    let taken = sqlx::query("update job set tenant_id = null where job_id = $1")
        .bind(leased.job.0)
        .execute(&mut superuser)
        .await;
    assert_eq!(code(&taken.expect_err("refused")), "23502", "not null");
    harness.close().await;
}

#[cfg(feature = "laboratory")]
#[tokio::test]
async fn a_job_of_a_tenant_that_nobody_knows_is_looked_at_and_not_run() {
    let (alice, bob) = server().tenants().await;
    bob.writer.put_document("doc", "Doc", "Barnaby rows to the mill.").await;
    let superuser = server().laboratory.superuser.as_ref().expect("a private database");
    let mut superuser = PgConnection::connect_with(superuser).await.expect("connection");
    let [nobody, orphan, stray] = [(); 3].map(|()| SystemIds(SystemClock).uuid());
    // As bob's job was, of a tenant that is not there; and of one that is, and has no such namespace.
    for (job, tenant) in [(orphan, nobody), (stray, alice.id.parse().expect("an id"))] {
        sqlx::query(
            "insert into job (tenant_id, job_id, namespace_id, kind, document_id, version, state, cost, due_at,
                 created_at, updated_at)
             select $1, $2, namespace_id, kind, document_id, version, 'queued', cost, now(), now(), created_at
             from job where tenant_id = $3::uuid",
        )
        .bind(tenant)
        .bind(job)
        .bind(&bob.id)
        .execute(&mut superuser)
        .await
        .expect("planted");
    }
    let until = Instant::now() + PATIENCE;
    let looked_at = loop {
        let rows = sqlx::query("select state, attempts, done, finished_at from job where job_id = any($1) and updated_at > created_at")
            .bind([orphan, stray])
            .fetch_all(&mut superuser)
            .await
            .expect("read");
        if rows.len() == 2 {
            break rows;
        }
        assert!(Instant::now() < until, "not looked at");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for row in looked_at {
        let state: String = row.get("state");
        assert!(["queued", "running"].contains(&state.as_str()), "{state}");
        let finished: Option<chrono::DateTime<chrono::Utc>> = row.get("finished_at");
        assert_eq!((row.get::<i64, _>("done"), finished), (0, None));
    }
    // Everybody else's go on, and nothing was made of bob's document for anybody else.
    alice.writer.put_document("own", "Own", "Ottoline paints the boats.").await;
    let chunks: Vec<(Uuid, i64)> = sqlx::query_as(
        "select tenant_id, count(*) from chunk where tenant_id = any($1) group by tenant_id order by 2, 1",
    )
    .bind([nobody, alice.id.parse().expect("an id"), bob.id.parse().expect("an id")])
    .fetch_all(&mut superuser)
    .await
    .expect("read");
    assert_eq!(chunks.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 1]);
    assert!(chunks.iter().all(|(tenant, _)| *tenant != nobody));
    let found = alice.reader.query("Who rows to the mill?").await;
    assert!(!found.to_string().contains("Barnaby"), "{found}");
    assert_eq!(text(&bob.reader.get("/documents/doc", 200).await, "status"), "processed");
    sqlx::query("delete from job where job_id = any($1)")
        .bind([orphan, stray])
        .execute(&mut superuser)
        .await
        .expect("removed");
}
