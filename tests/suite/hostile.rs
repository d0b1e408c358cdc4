//! Files that hang or crash their parser: they cost their own tenant, a bounded number of times, and nobody else.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{TestServer, new_folder, text};

/// Far less than a hanging parser's deadline, which is 20 s in tests.
const PROMPT: Duration = Duration::from_secs(12);

#[tokio::test]
async fn one_tenants_hanging_files_hold_up_neither_anothers_texts_nor_its_files() {
    let start = || TestServer::start(&new_folder("hostile"), "ingestion.workers = 1");
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let (alice, bob) = server.tenants().await;
    for n in 0..4 {
        // Each in a namespace of its own, so that none is a duplicate of another.
        let writer = bob.writer.with("x-namespace", &format!("n{n}"));
        let taken = writer.upload("trap.txt", b"bulkhead laboratory: sleep").await;
        assert_eq!(taken.status, 200, "{}", taken.text());
    }
    let begun = Instant::now();
    while bob.reader.get("/documents/pipeline_status", 200).await["cur_batch"] == 0 {
        assert!(begun.elapsed() < PROMPT, "never begun");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let begun = Instant::now();
    let inserted =
        alice.writer.post("/documents/text", &json!({"text": "The lamp is lit at dusk."}), 200).await;
    alice.writer.wait_processed(&text(&inserted, "track_id")).await;
    assert!(begun.elapsed() < PROMPT, "a text waited for {:?}", begun.elapsed());
    let begun = Instant::now();
    let taken = alice.writer.upload("lamp.md", b"# The lamp\n\nIt burns until dawn.").await;
    alice.writer.wait_processed(&text(&taken.json(), "track_id")).await;
    assert!(begun.elapsed() < PROMPT, "a file waited for {:?}", begun.elapsed());
    // Not even the same tenant's texts wait.
    let begun = Instant::now();
    let inserted =
        bob.writer.post("/documents/text", &json!({"text": "The gate is shut at noon."}), 200).await;
    bob.writer.wait_processed(&text(&inserted, "track_id")).await;
    assert!(begun.elapsed() < PROMPT, "a text waited for {:?}", begun.elapsed());

    let running = bob.reader.get("/documents/pipeline_status", 200).await["cur_batch"].as_i64();
    assert!(running.is_some_and(|running| running <= 1), "a tenant has one place: {running:?}");
    let begun = Instant::now();
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
    assert!(begun.elapsed() < PROMPT, "a stop waited for a parser, {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_file_that_crashes_its_parser_is_tried_twice_and_fails_with_a_reason() {
    let server = crate::server::server();
    let tenant = server.tenant("crashing").await;
    let taken = tenant.writer.upload("crash.txt", b"bulkhead laboratory: abort").await;
    let begun = Instant::now();
    let ended = tenant.writer.wait_ended(&text(&taken.json(), "track_id")).await;
    let document = &ended["documents"][0];
    assert_eq!(document["status"], "failed");
    assert_eq!(document["error_msg"], "the reader of this format crashed on the document");
    assert!(begun.elapsed() >= Duration::from_secs(2), "the second attempt comes after a pause");
}
