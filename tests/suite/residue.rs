//! What is left when a document, a namespace or a tenant is deleted: nothing in any row, and after the deadline for
//! purging nothing in any file that is ours. PostgreSQL's own files are left out: dead tuples and write-ahead log
//! stay until vacuum and recycling.

mod services;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::consistency::residue;
use crate::oracle::assert_without;
use crate::place::connect;
use crate::server::{PATIENCE, Tenant, TestServer, is_on_services, new_folder, random, text};

/// What a document is found by.
struct Marks {
    word: String,
    all: Vec<String>,
}

/// Puts and uploads documents that are full of marks, in this namespace.
async fn marked(tenant: &Tenant, namespace: &str) -> Marks {
    let mark = random(20);
    let name = |what: &str| format!("{what}{mark}");
    let writer = tenant.writer.with("x-namespace", namespace);
    let body = json!({
        "text": format!("The word is {}. Nobody else says {}.", name("text"), name("text")),
        "title": name("title"), "file_name": format!("{}.txt", name("file")), "metadata": {"note": name("note")},
    });
    let path = format!("/documents/{}", name("id"));
    let request =
        writer.request("PUT", &path).header("prefer", "wait=60").header("idempotency-key", name("key"));
    let put = crate::server::received(request.json(&body)).await;
    assert_eq!(put.status, 201, "{}", put.text());
    let content = format!("# {}\n\nThe word of the upload is {}.", name("heading"), name("upload"));
    let uploaded = writer.upload(&format!("{}.md", name("upload")), content.as_bytes()).await;
    assert_eq!(uploaded.status, 200, "{}", uploaded.text());
    writer.wait_processed(&text(&uploaded.json(), "track_id")).await;
    // One that cannot be read, and one that is asked for, so that questions and errors have left what they leave.
    let damaged = writer.upload("damaged.pdf", format!("%PDF-1.7 {}", name("damaged")).as_bytes()).await;
    writer.wait_ended(&text(&damaged.json(), "track_id")).await;
    writer.post("/query", &json!({"query": format!("Who says {}?", name("text"))}), 200).await;
    let all = ["text", "title", "file", "note", "id", "heading", "upload"].map(name).to_vec();
    Marks { word: mark, all }
}

/// The files of ours in which any of these is found, in plain or in upper case.
fn in_files(folder: &Path, needles: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            // Dead tuples and the write-ahead log are PostgreSQL's.
            if name != "postgres" {
                found.extend(in_files(&path, needles));
            }
            continue;
        }
        // A file may go while it is looked for.
        let bytes = std::fs::read(&path).unwrap_or_default();
        let content = String::from_utf8_lossy(&bytes);
        for needle in needles {
            if content.contains(needle) || path.to_string_lossy().contains(needle) {
                found.push(format!("{needle} in {}", path.display()));
            }
        }
    }
    found
}

struct Ground {
    server: TestServer,
    base: std::path::PathBuf,
}

impl Ground {
    async fn new() -> Self {
        // On the services profile it is in Redis.
        let cache = if is_on_services() { "" } else { "cache.backend = 'memory'" };
        Self::with(&format!("vectors.purge_after_seconds = 1\n{cache}")).await
    }

    async fn with(further: &str) -> Self {
        let base = new_folder("residue");
        let folder = base.clone();
        let settings = format!(
            "embedding.model = 'hashing'
            projection.upkeep_ms = 200
            projection.flush_ms = 200
            projection.sweep_ms = 200
            {further}"
        );
        let start = move || TestServer::start(&folder, &settings);
        let server = tokio::task::spawn_blocking(start).await.expect("a server");
        Self { server, base }
    }

    async fn rows(&self, needle: &str) -> Vec<String> {
        let database = self.server.laboratory.superuser.as_ref().expect("a private database");
        residue(&mut connect(database).await, needle).await
    }

    fn files(&self, needles: &[String]) -> Vec<String> {
        in_files(&self.base, needles)
    }

    /// Waits until none of these is in any row or file. The audit log keeps identifiers, and says that it does.
    async fn gone(&self, needles: &[String], about: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut left = self.files(needles);
            // What waits for the audit log is the audit log's.
            left.retain(|place| !place.contains("/audit-spool/"));
            for needle in needles {
                let tables = self.rows(needle).await;
                left.extend(
                    tables
                        .into_iter()
                        .filter(|table| table != "audit_event")
                        .map(|table| format!("{needle} in {table}")),
                );
            }
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{about}: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The receipt of a tenant's deletion, in the record.
    async fn receipt(&self, tenant: &Tenant) -> String {
        let database = self.server.laboratory.superuser.as_ref().expect("a private database");
        let id: uuid::Uuid = tenant.id.parse().expect("an id");
        let query = "select body from audit_event where tenant_id = $1 and body like '%tenant.purge%'";
        let until = Instant::now() + PATIENCE;
        loop {
            let found = sqlx::query_scalar(query).bind(id).fetch_optional(&mut connect(database).await).await;
            if let Some(receipt) = found.expect("asked") {
                return receipt;
            }
            assert!(Instant::now() < until, "there is no receipt");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn chunks(&self, tenant: &Tenant) -> Vec<String> {
        let database = self.server.laboratory.superuser.as_ref().expect("a private database");
        let id: uuid::Uuid = tenant.id.parse().expect("an id");
        sqlx::query_scalar("select chunk_id::text from chunk where tenant_id = $1")
            .bind(id)
            .fetch_all(&mut connect(database).await)
            .await
            .expect("chunks")
    }
}

#[tokio::test]
async fn nothing_of_what_was_deleted_is_left_in_any_row_or_file_of_ours() {
    let ground = Ground::new().await;
    let (alice, bob) = ground.server.tenants().await;
    let bobs = marked(&bob, "default").await;
    for end in ["document", "namespace", "tenant"] {
        let marks = marked(&alice, if end == "namespace" { "side" } else { "default" }).await;
        for needle in &marks.all {
            let place = (ground.rows(needle).await, ground.files(std::slice::from_ref(needle)));
            assert!(!place.0.is_empty() || !place.1.is_empty(), "{needle} is found while it is there");
        }
        let upload = format!("upload{}", marks.word);
        assert!(!ground.files(&[upload]).is_empty(), "an upload is kept as it came");
        let mut needles = marks.all.clone();
        needles.extend([format!("damaged{}", marks.word), marks.word.clone()]);
        needles.extend(ground.chunks(&alice).await);
        match end {
            "document" => {
                let listed =
                    alice.admin.post("/documents/paginated", &json!({"sort_field": "id"}), 200).await;
                for document in listed["documents"].as_array().expect("documents") {
                    let path = format!("/documents/{}", text(document, "id"));
                    alice.admin.delete(&path, &Value::Null, 200).await;
                }
            }
            "namespace" => drop(alice.admin.delete("/namespaces/side", &Value::Null, 204).await),
            _ => {
                let path = format!("/admin/tenants/{}", alice.id);
                ground.server.operator().delete(&path, &json!({"reason": "a test"}), 202).await;
            }
        }
        // At once, nobody finds it.
        if end != "tenant" {
            let reader =
                alice.reader.with("x-namespace", if end == "namespace" { "side" } else { "default" });
            for path in ["/query/data", "/query"] {
                let answer =
                    reader.send("POST", path, &json!({"query": "What is the word, and who says it?"})).await;
                let wanted = if end == "namespace" { 404 } else { 200 };
                assert_eq!(answer.status, wanted, "{}", answer.text());
                assert_without(answer.all(), [marks.word.as_str()], "an answer after the deletion");
            }
        }
        ground.gone(&needles, end).await;
        if end == "tenant" {
            let receipt = ground.receipt(&alice).await;
            let cache = if is_on_services() { "Redis" } else { "this process" };
            let (_, counted) = receipt.split_once(&format!("; {cache} ")).expect(&receipt);
            let (before, rest) = counted.split_once(", left 0; kept: ").expect(&receipt);
            assert!(before.parse::<u64>().is_ok_and(|before| before > 0), "{receipt}");
            assert!(rest.contains(" audit events in "), "{receipt}");
            let folders = ["shards", "uploads"].map(|part| ground.server.data_dir.join(part).join(&alice.id));
            let until = Instant::now() + PATIENCE;
            while folders.iter().any(|folder| !in_files(folder, std::slice::from_ref(&alice.id)).is_empty()) {
                assert!(Instant::now() < until, "{folders:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // The neighbour's is all there.
    for needle in &bobs.all {
        let there =
            !ground.rows(needle).await.is_empty() || !ground.files(std::slice::from_ref(needle)).is_empty();
        assert!(there, "{needle} of the neighbour");
    }
    tokio::task::spawn_blocking(move || ground.server.stop()).await.expect("stopped");
}

#[tokio::test]
async fn a_tenant_and_a_namespace_made_again_by_the_same_name_meet_nothing_old() {
    let ground = Ground::new().await;
    let operator = ground.server.operator();
    let mut seen: Vec<String> = Vec::new();
    for round in 0..3 {
        let made = json!({"name": "Harbour Works", "slug": "harbour", "reason": "a test"});
        let made = operator.post("/admin/tenants", &made, 201).await;
        let id = text(&made, "tenant_id");
        assert!(!seen.contains(&id), "an id is never given again");
        let key = operator.make_key(&id, &["tenant_admin"]).await;
        let admin = ground.server.caller(&key.secret);
        for namespace in ["default", "side"] {
            let admin = admin.with("x-namespace", namespace);
            for again in 0..2 {
                let word = random(20);
                let before = admin.send("POST", "/documents/paginated", &json!({})).await;
                let empty = before.status == 404 || before.json()["pagination"]["total_count"] == 0;
                assert!(empty, "{round} {namespace}: {}", before.text());
                let put = admin.put_document("guide", "The guide", &format!("The word is {word}.")).await;
                assert_eq!(put["version"], 1, "{round} {namespace} {again}");
                let answer = admin.send("POST", "/query/data", &json!({"query": "What is the word?"})).await;
                let all = answer.text();
                assert!(all.contains(&word), "{all}");
                assert!(!seen.iter().any(|old| all.contains(old)), "{all}");
                let labels = admin.get("/graph/label/list", 200).await.to_string();
                assert!(!seen.iter().any(|old| labels.contains(old)), "{labels}");
                seen.push(word);
                if namespace == "side" {
                    admin.delete("/namespaces/side", &Value::Null, 204).await;
                } else if again == 0 {
                    admin.delete("/documents", &Value::Null, 200).await;
                }
            }
        }
        seen.push(id.clone());
        operator.delete(&format!("/admin/tenants/{id}"), &json!({"reason": "a test"}), 202).await;
        assert_eq!(admin.send("GET", "/auth/verify", &Value::Null).await.status, 401);
    }
    tokio::task::spawn_blocking(move || ground.server.stop()).await.expect("stopped");
}
