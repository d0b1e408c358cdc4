//! Two worlds: one holds Alice alone, the other Alice and a busy Bob with the same names, questions, errors and
//! deletions. What Alice is answered is the same, scores, counts and positions included.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::{Value, json};

use crate::server::{Answer, PATIENCE, Tenant, TestServer, new_folder, text};

/// What is drawn at random or tells the time.
static DRAWN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        r"|doc-[0-9a-f]{32}|chatcmpl-[0-9a-f]{32}|(?:insert|upload)_\d{8}_\d{6}_[0-9a-f]{8}",
        r"|alice-[0-9a-f]{8}|key:[0-9a-f]{16}",
    ))
    .expect("a pattern")
});
static TIME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r#"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)"#,
        r#"|"(?:created|created_at|response_time|total_duration|load_duration|prompt_eval_duration|eval_duration|rate)":[0-9.e-]+"#,
    ))
    .expect("a pattern")
});

/// What Alice was answered, with what is drawn at random named by the order in which it was first seen.
#[derive(Default)]
struct Transcript {
    names: HashMap<String, String>,
    lines: Vec<String>,
}

impl Transcript {
    fn note(&mut self, about: &str, answer: &Answer) {
        let mut all = format!("{about}\n");
        for line in answer.all().lines().filter(|line| !line.starts_with("content-length")) {
            all.push_str(&sorted(line));
            all.push('\n');
        }
        let all = TIME.replace_all(&all, "TIME");
        let names = &mut self.names;
        let all = DRAWN.replace_all(&all, |found: &regex::Captures<'_>| {
            let next = format!("ID-{}", names.len());
            names.entry(found[0].to_owned()).or_insert(next).clone()
        });
        self.lines.push(all.into_owned());
    }
}

/// A line whose lists of equals, which are ordered by what is drawn at random, are in an order of their own.
fn sorted(line: &str) -> String {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(value);
                    if let Value::Array(items) = value
                        && ["entities", "relationships", "nodes", "edges"].contains(&name.as_str())
                    {
                        items.sort_by_key(|item| DRAWN.replace_all(&item.to_string(), "").into_owned());
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    match serde_json::from_str::<Value>(line) {
        Ok(mut value @ (Value::Object(_) | Value::Array(_))) => {
            walk(&mut value);
            value.to_string()
        }
        _ => line.to_owned(),
    }
}

const TEXTS: [(&str, &str); 4] = [
    (
        "light",
        "Ottoline Marsh keeps the light at Pier Nine. The light is green in winter and white in spring.",
    ),
    ("boats", "The boats of Pier Nine are painted by Barnaby Holt, who lives beside Ottoline Marsh."),
    ("tide", "When the tide is high, no boat of Pier Nine leaves, said Barnaby Holt."),
    ("mill", "The mill behind the harbour grinds barley. Nobody of the pier has been inside."),
];

/// Waits until the index alone answers and the graph is up to date.
async fn settled(tenant: &Tenant) {
    let until = Instant::now() + PATIENCE;
    loop {
        let body = json!({"query": "Who keeps the light?", "mode": "mix"});
        let metadata = tenant.reader.post("/query/data", &body, 200).await["metadata"].clone();
        if metadata["fallback"].is_null() && metadata["graph_seq"] == metadata["corpus_seq"] {
            return;
        }
        assert!(Instant::now() < until, "never settled: {metadata}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Everything that Alice does, and what she is answered.
async fn alice_does(alice: &Tenant) -> Vec<String> {
    let mut seen = Transcript::default();
    let send = async |seen: &mut Transcript, method: &str, path: &str, body: Value| {
        let answer = alice.admin.send(method, path, &body).await;
        seen.note(&format!("{method} {path} {body}"), &answer);
        answer
    };
    send(&mut seen, "GET", "/namespaces", Value::Null).await;
    for (id, words) in TEXTS {
        let put = alice.admin.put_document(id, "The guide", words).await;
        assert_eq!(put["status"], "processed");
    }
    let body = json!({"text": "The ferry leaves at seven.", "file_source": "ferry.txt"});
    let inserted = send(&mut seen, "POST", "/documents/text", body.clone()).await.json();
    alice.admin.wait_processed(&text(&inserted, "track_id")).await;
    send(&mut seen, "POST", "/documents/text", body).await;
    let track = format!("/documents/track_status/{}", text(&inserted, "track_id"));
    send(&mut seen, "GET", &track, Value::Null).await;
    settled(alice).await;
    for path in [
        "/health",
        "/documents/pipeline_status",
        "/documents/status_counts",
        "/namespaces",
        "/auth/whoami",
        "/graph/label/list",
        "/graph/label/popular",
        "/graphs?label=*",
        "/graph/entity/exists?name=Ottoline%20Marsh",
        "/v1/models",
        "/api/tags",
        "/documents/light",
        "/documents/unknown",
    ] {
        send(&mut seen, "GET", path, Value::Null).await;
    }
    send(&mut seen, "POST", "/documents/paginated", json!({"sort_field": "file_path"})).await;
    for question in
        ["Who keeps the light at Pier Nine?", "Barnaby Holt", "What is ground behind the harbour?"]
    {
        for mode in ["naive", "local", "global", "hybrid", "mix"] {
            let body = json!({"query": question, "mode": mode, "include_chunk_content": true});
            for path in ["/query/data", "/query", "/query/stream"] {
                send(&mut seen, "POST", path, body.clone()).await;
            }
        }
    }
    send(&mut seen, "POST", "/query", json!({"query": "x"})).await;
    send(&mut seen, "DELETE", "/documents/tide", Value::Null).await;
    send(&mut seen, "DELETE", "/documents/tide", Value::Null).await;
    settled(alice).await;
    send(&mut seen, "GET", "/graph/label/list", Value::Null).await;
    send(&mut seen, "GET", "/documents/status_counts", Value::Null).await;
    let body = json!({"query": "When does no boat leave?", "mode": "naive"});
    send(&mut seen, "POST", "/query/data", body).await;
    seen.lines
}

/// Bob's history: the same names and questions, other texts, errors, deletions, replacements, and no end of it.
async fn bob_does(bob: &Tenant, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds == 0 {
        for (id, words) in TEXTS {
            let words = format!("{words} Ottoline Marsh met round {rounds} at the pier, in the light.");
            bob.admin.put_document(id, "The guide", &words).await;
        }
        let texts: Vec<String> = (0..40)
            .map(|n| format!("Pier Nine, light number {n} of round {rounds}: Ottoline Marsh keeps it."))
            .collect();
        bob.admin.post("/documents/texts", &json!({"texts": texts}), 200).await;
        bob.admin.upload(&format!("damaged-{rounds}.pdf"), b"%PDF-1.7 and nothing").await;
        for question in ["Who keeps the light at Pier Nine?", "Barnaby Holt"] {
            let body = json!({"query": question, "mode": "mix"});
            assert_eq!(bob.admin.send("POST", "/query", &body).await.status, 200);
        }
        bob.admin.send("POST", "/query", &json!({"query": "x"})).await;
        bob.admin.send("DELETE", "/documents/tide", &Value::Null).await;
        rounds += 1;
    }
    rounds
}

async fn world() -> TestServer {
    let start =
        || TestServer::start(&new_folder("world"), "embedding.model = 'hashing'\nhttp.tenant_streams = 10");
    tokio::task::spawn_blocking(start).await.expect("a server")
}

#[tokio::test]
async fn what_alice_is_answered_is_the_same_with_a_busy_neighbour_and_without_one() {
    let lonely = world().await;
    let alone = alice_does(&lonely.tenant("alice").await).await;
    tokio::task::spawn_blocking(move || lonely.stop()).await.expect("stopped");

    let shared = world().await;
    let (alice, bob) = shared.tenants().await;
    let (before, stop) = (AtomicBool::new(true), AtomicBool::new(false));
    assert_eq!(bob_does(&bob, &before).await, 1, "a history before Alice comes");
    let (beside, rounds) = tokio::join!(
        async {
            let beside = alice_does(&alice).await;
            stop.store(true, Ordering::Relaxed);
            beside
        },
        bob_does(&bob, &stop)
    );
    assert!(rounds > 0);
    assert_eq!(alone.len(), beside.len());
    for (alone, beside) in std::iter::zip(&alone, &beside) {
        assert_eq!(alone, beside);
    }
    let scores = alone.iter().filter(|line| line.contains("\"score\":")).count();
    assert!(scores >= 15, "{scores} answers tell scores");
    tokio::task::spawn_blocking(move || shared.stop()).await.expect("stopped");
}
