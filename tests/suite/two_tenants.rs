//! Two tenants with the same ids, the same names and the same questions, over every operation.
//!
//! Each tenant's world is full of canaries: random words, names and identifiers that are in no other tenant.
//! Whatever one tenant asks, no byte of the answer may hold a canary of the other, unless the request held it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::calls::{Call, Ids, calls};
use crate::operations::{Operation, operations};
use crate::oracle::assert_without;
use crate::server::{Answer, Client, PATIENCE, Tenant, random, random_name, received, server, text};

/// Operations that this test does not call. May only get shorter.
const NOT_CALLED: [&str; 0] = [];

/// Operations whose answers hold nothing of the tenant's own, so that seeing nothing of the other's says little.
const SHOWS_NOTHING: [&str; 26] = [
    "delete /documents",
    "delete /documents/delete_document",
    "delete /documents/{id}",
    "delete /jobs/{id}",
    "delete /namespaces/{name}",
    "get /.well-known/jwks.json",
    "get /api/version",
    "get /auth-status",
    "get /auth/verify",
    "get /documents/pipeline_status",
    "get /documents/status_counts",
    "get /documents/supported_file_types",
    "get /graph/entity/exists",
    "get /health",
    "get /ready",
    "get /usage",
    "get /v1/models/{model}",
    "post /api/generate",
    "post /documents/cancel_pipeline",
    "post /documents/clear_cache",
    "post /documents/reprocess_failed",
    "post /documents/scan",
    "post /documents/text",
    "post /documents/texts",
    "post /documents/upload",
    "put /documents/{id}",
];

/// A tenant with documents.
struct World {
    tenant: Tenant,
    ids: Ids,
    /// In every text beside the word and the name that can be asked for; never sent by anybody else.
    hidden: (String, String),
    chunks: Vec<String>,
}

impl World {
    async fn new(tenant: Tenant) -> Self {
        let mut ids = Ids::random_like(&Ids {
            tenant: String::new(),
            key: " ".repeat(16),
            track: "insert_20260101_000000_".to_owned(),
            ..Ids::nobody()
        });
        ids.tenant.clone_from(&tenant.id);
        ids.key.clone_from(&tenant.admin_key.id);
        let hidden = (random(32), format!("{} {}", random_name(), random_name()));
        let text_of = |what: &str| {
            format!(
                "{what} of the harbour. {} keeps the light at Pier Nine together with {}. \
                 The word of the day is {} and the word of the night is {}.",
                ids.name, hidden.1, ids.word, hidden.0
            )
        };
        let writer = &tenant.writer;
        let body = json!({
            "text": text_of("The guide"), "title": "The guide", "file_name": "guide.txt",
            "metadata": {"project": hidden.0},
        });
        let guide =
            received(writer.request("PUT", "/documents/guide").header("prefer", "wait=60").json(&body)).await;
        assert_eq!(guide.status, 201, "{}", guide.text());
        let elsewhere = writer.with("x-namespace", &ids.namespace);
        elsewhere.put_document(&ids.document, "Elsewhere", &text_of("The attic")).await;
        let body = json!({"text": text_of("The notes"), "file_source": ids.file});
        let inserted = writer.post("/documents/text", &body, 200).await;
        writer.wait_processed(&text(&inserted, "track_id")).await;
        let uploaded = writer.upload("report.md", text_of("# The report\n\nThe report").as_bytes()).await;
        assert_eq!(uploaded.status, 200, "{}", uploaded.text());
        writer.wait_processed(&text(&uploaded.json(), "track_id")).await;
        let damaged = writer.upload("damaged.pdf", text_of("%PDF-1.7 and nothing").as_bytes()).await;
        writer.wait_ended(&text(&damaged.json(), "track_id")).await;

        ids.track = text(&inserted, "track_id");
        ids.job = text(&inserted, "job_id");
        ids.inserted = inserted["document_ids"][0].as_str().expect("an id").to_owned();
        let found = tenant.reader.query("Who keeps the light at Pier Nine?").await;
        let chunks: Vec<String> = found["data"]["chunks"]
            .as_array()
            .expect("chunks")
            .iter()
            .map(|chunk| text(chunk, "chunk_id"))
            .collect();
        assert!(chunks.len() >= 3, "{found}");
        Self { tenant, ids, hidden, chunks }
    }

    /// Everything that nobody else may see.
    fn canaries(&self) -> Vec<&str> {
        let mut canaries: Vec<&str> = self.ids.all().into_iter().map(String::as_str).collect();
        canaries.extend([self.hidden.0.as_str(), self.hidden.1.as_str(), self.tenant.slug.as_str()]);
        canaries.extend(self.chunks.iter().map(String::as_str));
        canaries
    }

    /// What the tenant sees of itself.
    async fn seen(&self) -> Vec<Value> {
        let mut seen = vec![self.tenant.reader.get("/namespaces", 200).await];
        for namespace in ["default", &self.ids.namespace] {
            let reader = self.tenant.reader.with("x-namespace", namespace);
            seen.push(reader.post("/documents/paginated", &json!({"sort_field": "id"}), 200).await);
            seen.push(reader.get("/graph/label/list", 200).await);
            // Without the graph, which may be brought up to date meanwhile.
            let asked = json!({"query": "Who keeps the light at Pier Nine?", "mode": "naive"});
            seen.push(reader.post("/query/data", &asked, 200).await);
        }
        seen.push(self.tenant.reader.get(&format!("/documents/track_status/{}", self.ids.track), 200).await);
        seen
    }

    /// The same, once its indexes have followed: until then its questions are answered in another way.
    async fn settled(&self) -> Vec<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen().await;
            let fallen_back = |answer: &&Value| !answer["metadata"]["fallback"].is_null();
            let Some(behind) = seen.iter().find(fallen_back) else { return seen };
            assert!(Instant::now() < until, "the index does not follow: {behind}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn worlds() -> (World, World) {
    let (alice, bob) = server().tenants().await;
    (World::new(alice).await, World::new(bob).await)
}

/// Every operation with a way to call it, those that delete at the end.
async fn all_operations() -> Vec<Operation> {
    let mut all = operations(server()).await;
    let unknown: Vec<String> = all
        .iter()
        .filter(|operation| calls(operation, &Ids::nobody()).is_none())
        .map(Operation::name)
        .collect();
    assert_eq!(unknown, NOT_CALLED, "operations that no test calls: say here how");
    all.retain(|operation| calls(operation, &Ids::nobody()).is_some());
    all.sort_by_key(|operation| operation.method == "delete");
    all
}

fn caller(operation: &Operation, world: &World) -> Client {
    if operation.is_operators() {
        server().operator().with("authorization", &format!("Bearer {}", world.tenant.admin_key.secret))
    } else {
        world.tenant.admin.clone()
    }
}

/// Every `tenant_id` in an answer, at any depth.
fn tenants_named(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(
                fields.get("tenant_id").map(|tenant| tenant.as_str().unwrap_or("no text").to_owned()),
            );
            fields.values().for_each(|value| tenants_named(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| tenants_named(item, found)),
        _ => {}
    }
}

/// Checks an answer to `asker` against everything that is `owner`'s, and tells whether it shows anything of the
/// asker's own. What the request held may be repeated.
fn check(operation: &Operation, call: &Call, answer: &Answer, asker: &World, owner: &World) -> bool {
    let (sent, all) = (format!("{call:?}"), answer.all());
    let unsent = owner.canaries().into_iter().filter(|canary| !sent.contains(canary));
    assert_without(&all, unsent, &format!("{} {call:?}", operation.name()));
    for line in answer.text().lines() {
        let line = line.strip_prefix("data: ").unwrap_or(line);
        let mut tenants = BTreeSet::new();
        tenants_named(&serde_json::from_str(line).unwrap_or_default(), &mut tenants);
        tenants.remove(&asker.tenant.id);
        assert!(tenants.is_empty(), "{tenants:?} in {} {call:?}: {all}", operation.name());
    }
    assert_ne!(answer.status, 500, "{} {call:?}: {all}", operation.name());
    asker.canaries().iter().any(|canary| !sent.contains(canary) && all.contains(canary))
}

#[tokio::test]
async fn every_operation_answers_only_from_the_callers_own_tenant() {
    let (alice, bob) = worlds().await;
    let before = bob.settled().await;
    let mut silent = Vec::new();
    for operation in all_operations().await {
        let caller = caller(&operation, &alice);
        let mut shows = false;
        for ids in [&bob.ids, &alice.ids] {
            for call in calls(&operation, ids).expect("known") {
                let answer = call.make(&operation.method, &caller).await;
                shows |= check(&operation, &call, &answer, &alice, &bob);
                assert!(!operation.is_operators() || answer.status == 401, "{}", operation.name());
            }
        }
        if !shows && !operation.is_operators() {
            silent.push(operation.name());
        }
    }
    silent.sort();
    assert_eq!(silent, SHOWS_NOTHING, "operations that show the tenant nothing of its own");
    assert_eq!(bob.seen().await, before, "what Alice did can be seen by Bob");
}

#[tokio::test]
async fn what_is_anothers_is_answered_as_what_never_was() {
    let (alice, bob) = worlds().await;
    let mut compared = 0;
    for operation in all_operations().await {
        let caller = caller(&operation, &alice);
        let nobodys = Ids::random_like(&bob.ids);
        let pairs = std::iter::zip(
            calls(&operation, &bob.ids).expect("known"),
            calls(&operation, &nobodys).expect("known"),
        );
        for (of_bob, of_nobody) in pairs.filter(|(call, _)| call.comparable) {
            let [exists, random] = [
                of_bob.make(&operation.method, &caller).await,
                of_nobody.make(&operation.method, &caller).await,
            ];
            assert_eq!(exists.body.len(), random.body.len(), "{} {of_bob:?}", operation.name());
            let (mut exists, mut random) = (exists.all(), random.all());
            for (mine, other) in std::iter::zip(bob.ids.all(), nobodys.all()) {
                exists = exists.replace(mine, "ID");
                random = random.replace(other, "ID");
            }
            assert_eq!(exists, random, "{} {of_bob:?}", operation.name());
            compared += 1;
        }
    }
    assert!(compared > 30, "only {compared} answers were compared");
}

#[tokio::test]
async fn the_same_names_ids_and_contents_are_new_to_each_tenant() {
    let (alice, bob) = server().tenants().await;
    let body = json!({"text": "The ferry leaves at seven from Pier Nine.", "file_source": "ferry.txt"});
    let mut answers = Vec::new();
    for tenant in [&alice, &bob] {
        let writer = tenant.writer.with("idempotency-key", "the-same-key");
        let inserted = writer.post("/documents/text", &body, 200).await;
        writer.wait_processed(&text(&inserted, "track_id")).await;
        assert_eq!(
            writer.post("/documents/text", &body, 200).await,
            inserted,
            "the key is answered as before"
        );
        tenant.writer.post("/documents/text", &body, 409).await;
        let put = tenant.writer.put_document("ferry", "The ferry", "The ferry leaves at eight.").await;
        assert_eq!(put["version"], 1);
        answers.push(inserted);
    }
    assert_ne!(answers[0]["track_id"], answers[1]["track_id"]);
    alice.writer.delete("/documents", &Value::Null, 200).await;
    alice.reader.get("/documents/ferry", 404).await;
    bob.reader.get("/documents/ferry", 200).await;
    let found = bob.reader.query("When does the ferry leave?").await;
    assert_eq!(found["data"]["chunks"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn answers_are_never_swapped_when_both_ask_at_once() {
    let (alice, bob) = worlds().await;
    let question = "Who keeps the light at Pier Nine?";
    let chat =
        json!({"model": "default", "messages": [{"role": "user", "content": question}], "stream": true});
    let asked = json!({"query": question, "include_chunk_content": true});
    let requests: Vec<(&str, String, &Value)> = vec![
        ("POST", "/query".to_owned(), &asked),
        ("POST", "/query/stream".to_owned(), &asked),
        ("POST", "/v1/chat/completions".to_owned(), &chat),
        ("POST", "/api/chat".to_owned(), &chat),
        ("POST", "/query/data".to_owned(), &asked),
        ("GET", "/graphs?label=*".to_owned(), &Value::Null),
    ];
    let asking = (0..60).map(|turn| {
        let (own, neighbour) = if turn % 2 == 0 { (&alice, &bob) } else { (&bob, &alice) };
        let (method, path, body) = &requests[turn / 2 % requests.len()];
        async move {
            let mut answer = own.tenant.reader.send(method, path, body).await;
            // They are more than one tenant may have answered at once: where stores are slow, some are to come again.
            for _ in 0..100 {
                if answer.status != 429 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                answer = own.tenant.reader.send(method, path, body).await;
            }
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let all = answer.all();
            assert!(own.canaries().iter().any(|canary| all.contains(canary)), "{path}: {all}");
            assert_without(&all, neighbour.canaries(), path);
        }
    });
    futures::future::join_all(asking).await;
}
