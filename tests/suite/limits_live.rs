//! A whole server while one tenant pours documents into it: its queue is bounded, and everybody is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Client, TestServer, new_folder};

/// How long an answer may take while others load the machine.
const PROMPT: Duration = Duration::from_secs(10);

/// How often the neighbour writes.
const NOTE_EVERY: Duration = Duration::from_millis(250);

/// Sends texts until it is told to stop. How many were taken, and how many refused.
async fn pour(caller: Client, writer: usize, stop: Arc<AtomicBool>) -> (usize, usize) {
    let (mut taken, mut refused) = (0, 0);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text =
            format!("The log of keeper {writer}, page {n}. The Osterkai lamp burned all night. ").repeat(40);
        let texts: Vec<String> = (0..5).map(|page| format!("{page} {text}")).collect();
        let answer = caller.send("POST", "/documents/texts", &json!({"texts": texts})).await;
        match answer.status {
            200 => taken += 1,
            429 => {
                assert!(answer.headers.contains_key("retry-after"), "{}", answer.text());
                refused += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    (taken, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_questions_are_answered_while_ingestion_is_saturated() {
    let further = "limits.tenant.queued_jobs = 40\ningestion.workers = 1\n";
    let start = move || TestServer::start(&new_folder("saturated"), further);
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let (alice, bob) = server.tenants().await;
    bob.writer.put_document("lamp", "Lamp", "Maren Voss keeps the Osterkai lamp.").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..4).map(|n| tokio::spawn(pour(alice.writer.clone(), n, Arc::clone(&stop)))).collect();
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let mut notes = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        for caller in [&server.anybody(), &alice.reader, &bob.reader] {
            let asked = Instant::now();
            caller.get("/health", 200).await;
            longest = longest.max(asked.elapsed());
        }
        for caller in [&alice.reader, &bob.reader] {
            let asked = Instant::now();
            caller.query("Who keeps the Osterkai lamp?").await;
            longest = longest.max(asked.elapsed());
        }
        let queue = alice.reader.get("/health", 200).await["queue"].clone();
        let waiting = queue["queued"].as_u64().zip(queue["running"].as_u64()).map(|(a, b)| a + b);
        assert!(waiting.is_some_and(|waiting| waiting <= 40), "{queue}");
        // A neighbour's document is taken, whatever waits before it; fewer than its own queue holds.
        if begun.elapsed() > NOTE_EVERY * notes {
            notes += 1;
            let note = json!({"text": format!("Note at {:?}.", begun.elapsed())});
            bob.writer.post("/documents/text", &note, 200).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut sums = (0, 0);
    for writer in writers {
        let (taken, refused) = writer.await.expect("poured");
        sums = (sums.0 + taken, sums.1 + refused);
    }
    assert!(sums.0 >= 8 && sums.1 > 0, "never saturated: {sums:?}");
    assert!(longest < PROMPT, "{longest:?}");
    let answer = bob.reader.query("Who keeps the Osterkai lamp?").await;
    assert!(answer.to_string().contains("Maren Voss"), "{answer}");
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}
