//! What ingestion reads of the database for each document, as one tenant grows among small ones.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::place::connect;
use crate::server::{PATIENCE, Tenant, TestServer, new_folder};

/// Tenants after whose size the planner takes that of every tenant.
const SMALL: usize = 30;
/// Documents of a call, and calls between two looks.
const CALL: usize = 50;
const CALLS: usize = 10;
/// Rows of documents, versions and jobs that may be read for each document, those of polling included.
const MOST: i64 = 50;

async fn ingest(tenant: &Tenant, calls: usize, documents: usize) {
    for call in 0..calls {
        let text = |n: usize| format!("Entry {n} of call {call} is about the buoy of {}.", tenant.id);
        let texts: Vec<String> = (0..documents).map(text).collect();
        tenant.writer.post("/documents/texts", &json!({ "texts": texts }), 200).await;
    }
    let until = Instant::now() + PATIENCE;
    while tenant.reader.get("/documents/pipeline_status", 200).await["busy"] != Value::Bool(false) {
        assert!(Instant::now() < until, "not done in time");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Rows that were read so far.
async fn rows_read(superuser: &mut PgConnection) -> i64 {
    // A connection tells what it has read once a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let read = "select sum(rows)::bigint from (
                    select idx_tup_fetch as rows from pg_stat_user_indexes
                    where relname in ('document', 'document_version', 'job')
                    union all
                    select seq_tup_read from pg_stat_user_tables
                    where relname in ('document', 'document_version')) counted";
    sqlx::query_scalar(read).fetch_one(superuser).await.expect("counted")
}

/// A statement that goes through a tenant's documents once for each of a list costs more with every document, and is
/// fast in every test of a few.
#[tokio::test]
async fn a_document_costs_no_more_rows_in_a_large_corpus_than_in_a_small_one() {
    let start = || TestServer::start(&new_folder("growth"), "embedding.model = 'hashing'\n");
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    for n in 0..SMALL {
        ingest(&server.tenant(&format!("small{n}")).await, 1, 2).await;
    }
    let mut superuser = connect(server.laboratory.superuser.as_ref().expect("a private database")).await;
    sqlx::query("analyze").execute(&mut superuser).await.expect("counted");
    let large = server.tenant("large").await;
    let mut before = rows_read(&mut superuser).await;
    for step in 1..=3 {
        ingest(&large, CALLS, CALL).await;
        let after = rows_read(&mut superuser).await;
        let each = (after - before) / i64::try_from(CALLS * CALL).expect("a count");
        assert!(each < MOST, "{each} rows for each document of the step {step}");
        before = after;
    }
    drop(superuser);
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}
