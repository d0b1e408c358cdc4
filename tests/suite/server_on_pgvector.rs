//! A whole server whose vectors are the rows themselves, beside the same server on its shards.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::connect;
use crate::server::{PATIENCE, Tenant, TestServer, new_folder};

const QUESTIONS: [&str; 4] =
    ["Who keeps the light at Pier Nine?", "rope", "What is written of day three?", "a boat in the harbour"];

fn settings(backend: &str) -> String {
    format!(
        "embedding.model = 'hashing'
        orphans.every_seconds = 100000
        projection.sweep_ms = 200
        vectors.backend = '{backend}'"
    )
}

/// Starts the server of this folder, after the one that ran over it has stopped.
async fn start(base: &Path, backend: &'static str, before: Option<TestServer>) -> TestServer {
    let base = base.to_owned();
    let start = move || {
        if let Some(before) = before {
            before.stop();
        }
        TestServer::start(&base, &settings(backend))
    };
    tokio::task::spawn_blocking(start).await.expect("a server")
}

/// The same tenant, asked at another server.
fn at(server: &TestServer, tenant: &Tenant) -> Tenant {
    let caller = server.caller(&tenant.admin_key.secret);
    Tenant { reader: caller.clone(), writer: caller.clone(), admin: caller, ..tenant.clone() }
}

async fn ask(tenant: &Tenant, question: &str) -> Value {
    let body = json!({"query": question, "mode": "naive", "chunk_top_k": 20});
    tenant.reader.post("/query/data", &body, 200).await
}

/// The answer of the index alone, once it is there.
async fn indexed(tenant: &Tenant, question: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = ask(tenant, question).await;
        if answer["metadata"]["fallback"] == Value::Null {
            return answer;
        }
        assert!(Instant::now() < until, "the index never answers: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Chunks with their scores, in order.
fn ranking(answer: &Value) -> Vec<(String, f64)> {
    let chunks = answer["data"]["chunks"].as_array().expect("chunks");
    assert!(!chunks.is_empty(), "{answer}");
    chunks
        .iter()
        .map(|chunk| {
            (chunk["chunk_id"].as_str().expect("an id").to_owned(), chunk["score"].as_f64().expect("a score"))
        })
        .collect()
}

fn assert_same(one: &Value, other: &Value) {
    let (one, other) = (ranking(one), ranking(other));
    assert_eq!(one.len(), other.len());
    for (one, other) in std::iter::zip(&one, &other) {
        assert!(one.0 == other.0 && (one.1 - other.1).abs() < 1e-5, "{one:?} is not {other:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_answer_with_the_chunks_and_scores_of_the_shards() {
    let base = new_folder("pgvector");
    let server = start(&base, "edge", None).await;
    let (alice, bob) = server.tenants().await;
    for (tenant, name) in [(&alice, "Ottoline"), (&bob, "Barnaby")] {
        tenant.writer.put_document("light", "Guide", &format!("{name} keeps the light at Pier Nine.")).await;
        tenant.writer.put_document("rope", "Guide", &format!("{name} mends the rope.")).await;
        for n in 0..12 {
            // The same in both.
            let text = format!("The note of day {n}: a boat in the harbour, {} ropes.", n % 5);
            tenant.writer.put_document(&format!("note-{n}"), "Notes", &text).await;
        }
    }
    let mut of_shards = Vec::new();
    for tenant in [&alice, &bob] {
        for question in QUESTIONS {
            of_shards.push(indexed(tenant, question).await);
        }
    }

    let server = start(&base, "pgvector", Some(server)).await;
    let (alice, bob) = (at(&server, &alice), at(&server, &bob));
    assert_eq!(alice.reader.get("/health", 200).await["configuration"]["vectors"], "pgvector");
    let mut of_shards = of_shards.into_iter();
    for tenant in [&alice, &bob] {
        for question in QUESTIONS {
            let answer = ask(tenant, question).await;
            assert_eq!(answer["metadata"]["fallback"], Value::Null, "it is the index: {answer}");
            assert_same(&answer, &of_shards.next().expect("an answer"));
        }
    }
    for (tenant, own, foreign) in [(&alice, "Ottoline", "Barnaby"), (&bob, "Barnaby", "Ottoline")] {
        let answer = ask(tenant, QUESTIONS[0]).await.to_string();
        assert!(answer.contains(own) && !answer.contains(foreign), "{answer}");
    }

    // What is written is found at once, and what is deleted is gone at once.
    alice.writer.put_document("boat", "Guide", "Ottoline rows the boat to Pier Nine.").await;
    alice.writer.delete("/documents/light", &Value::Null, 200).await;
    let answer = ask(&alice, QUESTIONS[0]).await;
    assert_eq!(answer["metadata"]["fallback"], Value::Null, "{answer}");
    let text = answer.to_string();
    assert!(text.contains("rows the boat") && !text.contains("keeps the light"), "{text}");
    #[cfg(feature = "laboratory")]
    assert_eq!(server.laboratory.index.open_shards(), 0);

    // Shards that come back into use are behind, and catch up.
    let of_rows = ask(&alice, QUESTIONS[0]).await;
    let server = start(&base, "edge", Some(server)).await;
    let alice = at(&server, &alice);
    assert_same(&indexed(&alice, QUESTIONS[0]).await, &of_rows);
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

#[cfg(feature = "laboratory")]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_projected_and_history_goes_all_the_same() {
    let base = new_folder("pgvector-upkeep");
    let server = start(&base, "pgvector", None).await;
    let alice = server.tenant("alice").await;
    for n in 0..5 {
        alice.writer.put_document(&format!("note-{n}"), "Notes", &format!("The note of day {n}.")).await;
    }
    let superuser = server.laboratory.superuser.clone().expect("a private database");
    let until = Instant::now() + PATIENCE;
    loop {
        let left: i64 = sqlx::query_scalar("select count(*) from outbox")
            .fetch_one(&mut connect(&superuser).await)
            .await
            .expect("a count");
        if left == 0 {
            break;
        }
        assert!(Instant::now() < until, "{left} transactions of history stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!server.data_dir.join("shards").join(&alice.id).exists(), "there is a shard");

    let operator = server.operator();
    let path = format!("/admin/tenants/{}/verify", alice.id);
    let body = json!({"repair": false, "namespace": "default", "reason": "a test"});
    let report = operator.post(&path, &body, 200).await;
    assert_eq!(report["namespace"]["points"], 5, "{report}");
    assert_eq!(report["namespace"]["findings"], json!([]), "{report}");
    let path = format!("/admin/tenants/{}/rebuild", alice.id);
    operator.post(&path, &json!({"reason": "a test"}), 200).await;

    let path = format!("/admin/tenants/{}", alice.id);
    operator.send("DELETE", &path, &json!({"reason": "a test"})).await;
    let until = Instant::now() + PATIENCE;
    while sqlx::query_scalar::<_, i64>("select count(*) from chunk_embedding")
        .fetch_one(&mut connect(&superuser).await)
        .await
        .expect("a count")
        > 0
    {
        assert!(Instant::now() < until, "the deleted tenant's vectors stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}
