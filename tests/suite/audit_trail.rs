//! Who asked for what, as the audit log of a whole server tells it: questions, changes, refusals, operators' actions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead::domain::audit::{AuditKind, AuditRecord, Decision};
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{SystemIds, TenantId};
use bulkhead::store::AuditLog as _;
use bulkhead::store::postgres::Postgres;
use bulkhead::store::postgres::audit::PostgresAudit;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::deployment::pools;
use crate::oracle::assert_without;
use crate::server::{Client, PATIENCE, Tenant, TestServer, random, received, server, text};

/// Events of a page.
const PAGE: i64 = 200;

/// A server's audit log.
pub struct Trail {
    postgres: Postgres,
    log: PostgresAudit,
}

impl Trail {
    pub fn of(server: &TestServer) -> Self {
        let laboratory = &server.laboratory;
        let postgres = Postgres::new(
            &laboratory.addresses,
            &pools(1),
            laboratory.model.clone(),
            Arc::new(SystemClock),
            Arc::new(SystemIds(SystemClock)),
        );
        Self { log: PostgresAudit::new(postgres.clone(), "node-1"), postgres }
    }

    /// Everything in a chain that was written since; `None`: the deployment's.
    pub async fn since(&self, tenant: Option<&str>, begun: &str) -> Vec<AuditRecord> {
        let chain = tenant.map(|tenant| TenantId(tenant.parse().expect("an id")));
        let page = self.log.page(chain, None, PAGE).await.expect("read");
        page.into_iter().filter(|record| record.at.as_str() >= begun).collect()
    }

    /// The one event that is like this, as soon as it is written.
    pub async fn find(&self, tenant: Option<&str>, like: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut found = self.since(tenant, "").await;
            found.retain(&like);
            match found.len() {
                1 => return found.remove(0),
                0 => assert!(Instant::now() < until, "not in the log: {:?}", self.since(tenant, "").await),
                _ => panic!("more than one: {found:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The chain is whole.
    pub async fn verify(&self, tenant: Option<&str>) {
        let chain = tenant.map(|tenant| TenantId(tenant.parse().expect("an id")));
        let reports = self.log.verify(chain).await.expect("examined");
        assert!(!reports.is_empty() && reports.iter().all(|report| report.events > 0), "{reports:?}");
        assert!(reports.iter().all(|report| report.fault.is_none()), "{reports:?}");
    }

    pub async fn close(self) {
        drop(self.log);
        self.postgres.close().await;
    }
}

fn chunk_ids(answer: &Value) -> Vec<String> {
    let chunks = answer["data"]["chunks"].as_array().expect("chunks");
    chunks.iter().map(|chunk| text(chunk, "chunk_id")).collect()
}

/// Who holds the tenant's key of an admin, as the log writes it.
fn admin(tenant: &Tenant) -> String {
    format!("key:{}", tenant.admin_key.id)
}

#[tokio::test]
async fn every_question_is_in_its_tenants_log_with_what_was_returned_and_without_its_words() {
    let (alice, bob) = server().tenants().await;
    let trail = Trail::of(server());
    for tenant in [&alice, &bob] {
        tenant
            .writer
            .put_document("boats", "Boats", "Ottoline paints the boats at the pier in spring.")
            .await;
    }
    let mut hashes = Vec::new();
    let surfaces = [
        ("/query", "query.create", false),
        ("/query/data", "query.data", false),
        ("/query/stream", "query.stream", false),
        ("/v1/chat/completions", "chat.create", true),
        ("/api/chat", "chat.create", true),
    ];
    for (path, action, chat) in surfaces {
        let word = random(12);
        let question = format!("Who paints the boats, {word}?");
        let body = if chat {
            json!({"model": "default", "messages": [{"role": "user", "content": question}]})
        } else {
            json!({"query": question})
        };
        for tenant in [&alice, &bob] {
            let before = chrono_now();
            assert_eq!(tenant.admin.send("POST", path, &body).await.status, 200, "{path}");
            let known = |record: &AuditRecord| record.kind == AuditKind::Query && record.at >= before;
            let record = trail.find(Some(&tenant.id), known).await;
            assert_eq!((record.action.as_str(), record.decision), (action, Decision::Allowed), "{path}");
            assert_eq!(record.principal, admin(tenant));
            assert_eq!(record.tenant.map(|id| id.to_string()), Some(tenant.id.clone()));
            assert_eq!((record.rows_dropped, record.ids_omitted), (0, 0));
            let returned = chunk_ids(&tenant.reader.query("Who paints the boats?").await);
            assert_eq!((record.ids, returned.len()), (returned, 1), "{path}");
            let hash = record.query_hash.expect("a hash");
            assert!(hash.len() == 64 && hash != hex::encode(Sha256::digest(&question)), "{hash}");
            hashes.push(hash);
        }
        for tenant in [&alice, &bob] {
            let written = format!("{:?}", trail.since(Some(&tenant.id), "").await);
            assert_without(&written, [word.as_str(), "Ottoline"], path);
        }
    }
    let asked = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), asked, "a question's hash says nothing across tenants");
    for tenant in [&alice, &bob] {
        trail.verify(Some(&tenant.id)).await;
    }
    trail.close().await;
}

/// Now, as the log writes times.
fn chrono_now() -> String {
    use bulkhead::domain::clock::Clock as _;
    bulkhead::domain::audit::written(SystemClock.now())
}

#[tokio::test]
async fn every_change_is_in_its_tenants_log_with_what_it_touched() {
    let (alice, bob) = server().tenants().await;
    let trail = Trail::of(server());
    let admin_client = &alice.admin;
    let changed = async |action: &str, ids: Option<Vec<String>>| {
        let record = trail.find(Some(&alice.id), |record| record.action == action).await;
        assert_eq!((record.decision, record.principal), (Decision::Allowed, admin(&alice)), "{action}");
        assert!(!record.at.is_empty() && record.kind != AuditKind::Refusal);
        if let Some(ids) = ids {
            assert_eq!(record.ids, ids, "{action}");
        }
    };
    admin_client.put_document("boats", "Boats", "Ottoline paints the boats.").await;
    changed("document.put", Some(vec!["boats".to_owned()])).await;
    let body = json!({"text": "The tide is high.", "file_source": "tide.txt"});
    let inserted = admin_client.post("/documents/text", &body, 200).await;
    let id = text(&json!({"id": inserted["document_ids"][0]}), "id");
    changed("document.insert", Some(vec![id.clone()])).await;
    assert_eq!(admin_client.upload("notes.txt", b"The tide is low.").await.status, 200);
    changed("document.upload", None).await;
    admin_client.wait_processed(&text(&inserted, "track_id")).await;
    admin_client.delete("/documents/boats", &Value::Null, 200).await;
    changed("document.delete", Some(vec!["boats".to_owned()])).await;
    admin_client.delete("/documents", &Value::Null, 200).await;
    changed("document.clear", None).await;
    admin_client.with("x-namespace", "side").put_document("a", "A", "Barnaby rows.").await;
    admin_client.delete("/namespaces/side", &Value::Null, 204).await;
    changed("namespace.delete", Some(vec!["side".to_owned()])).await;
    let broken = admin_client.upload("broken.pdf", b"%PDF-1.7 and nothing that belongs there").await.json();
    let ended = admin_client.wait_ended(&text(&broken, "track_id")).await;
    assert_eq!(ended["documents"][0]["status"], "failed", "{ended}");
    admin_client.post("/documents/reprocess_failed", &Value::Null, 200).await;
    changed("document.reprocess", Some(Vec::new())).await;
    // Read until its time is up, unless it is cancelled before.
    let endless = async |client: &Client| {
        let sent = client.upload("sleep.txt", b"bulkhead laboratory: sleep").await;
        let until = Instant::now() + PATIENCE;
        while admin_client.get("/documents/pipeline_status", 200).await["cur_batch"] != 1 {
            assert!(Instant::now() < until, "never begun");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        text(&sent.json(), "job_id")
    };
    let job = endless(admin_client).await;
    admin_client.delete(&format!("/jobs/{job}"), &Value::Null, 200).await;
    changed("job.cancel", Some(vec![job])).await;
    // Elsewhere, where the same content is none that is there already.
    let elsewhere = admin_client.with("x-namespace", "elsewhere");
    endless(&elsewhere).await;
    let all = elsewhere.post("/documents/cancel_pipeline", &Value::Null, 200).await;
    assert_eq!(all["status"], "cancellation_requested");
    changed("job.cancel_all", Some(Vec::new())).await;
    // What changes nothing is no change.
    elsewhere.post("/documents/cancel_pipeline", &Value::Null, 200).await;
    admin_client.delete("/documents/delete_document", &json!({"doc_ids": ["nowhere"]}), 200).await;
    trail.verify(Some(&alice.id)).await;
    changed("job.cancel_all", Some(Vec::new())).await;
    let his = trail.since(Some(&bob.id), "").await;
    assert!(
        his.iter().all(|record| record.kind == AuditKind::Admin && record.action.starts_with("key.")
            || record.action == "tenant.create"),
        "{his:?}"
    );
    trail.close().await;
}

/// What a tenant was refused since, oldest first: each operation and why.
async fn refused_writes(trail: &Trail, tenant: &Tenant) -> Vec<(String, String)> {
    let mut records = trail.since(Some(&tenant.id), "").await;
    records.retain(|record| record.kind == AuditKind::Write && record.decision == Decision::Denied);
    records.reverse();
    let told = |record: AuditRecord| {
        assert_eq!((record.principal, record.ids), (admin(tenant), Vec::new()));
        (record.action, record.reason)
    };
    records.into_iter().map(told).collect()
}

#[tokio::test]
async fn a_write_that_is_refused_for_what_is_there_or_for_a_limit_is_in_its_tenants_log() {
    let (alice, bob) = server().tenants().await;
    let (operator, trail) = (server().operator(), Trail::of(server()));
    let limited = async |limits: Value| {
        let path = format!("/admin/tenants/{}/limits", alice.id);
        let mut body = limits;
        body["reason"] = json!("a test");
        operator.send("PATCH", &path, &body).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let client = &alice.admin;
    let tide = json!({"text": "The tide is high.", "file_source": "tide.txt"});
    let keyed = client.with("idempotency-key", "once");
    let inserted = keyed.post("/documents/text", &tide, 200).await;
    client.wait_processed(&text(&inserted, "track_id")).await;
    client.post("/documents/text", &tide, 409).await;
    keyed.post("/documents/text", &json!({"text": "The tide is low."}), 422).await;
    client.delete(&format!("/jobs/{}", text(&inserted, "job_id")), &Value::Null, 409).await;
    // What is not understood was no write; what only reads is not a write.
    client.post("/documents/text", &json!({}), 422).await;
    client.post("/query", &json!({"query": ""}), 422).await;
    limited(json!({"documents": 1})).await;
    assert_eq!(
        client.put("/documents/boats", &json!({"text": "Boats."}), 429).await["slug"],
        "quota-reached"
    );
    // Refused before its body is read.
    assert_eq!(client.upload("boats.txt", b"Boats.").await.status, 429);
    let mut wanted = vec![
        ("POST /documents/text", "conflict"),
        ("POST /documents/text", "idempotency-key-reused"),
        ("DELETE /jobs/{id}", "conflict"),
        ("PUT /documents/{id}", "quota-reached"),
        ("POST /documents/upload", "quota-reached"),
    ];
    // Over the rate, no more is recorded than may be asked.
    limited(json!({"documents": null, "requests_per_minute": 2})).await;
    for turn in 0..12 {
        let status = client.send("DELETE", &format!("/documents/{turn}"), &Value::Null).await.status;
        assert_eq!(status, if turn < 2 { 404 } else { 429 }, "{turn}");
        if turn >= 2 {
            client.get("/documents/status_counts", 429).await;
        }
    }
    wanted.extend([("DELETE /documents/{id}", "rate-limited"); 2]);
    let until = Instant::now() + PATIENCE;
    loop {
        let found = refused_writes(&trail, &alice).await;
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        if found == wanted {
            break;
        }
        assert!(Instant::now() < until, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(refused_writes(&trail, &bob).await.is_empty());
    trail.verify(Some(&alice.id)).await;
    trail.close().await;
}

#[tokio::test]
async fn every_refusal_by_identity_is_in_the_log_before_it_is_answered() {
    let (alice, bob) = server().tenants().await;
    let trail = Trail::of(server());
    let refused = async |caller: &Client, status: u16| {
        let begun = chrono_now();
        let asked = json!({"query": "Who goes there?"});
        assert_eq!(caller.send("POST", "/query", &asked).await.status, status);
        begun
    };
    let only = |mut records: Vec<AuditRecord>, action: &str| {
        records.retain(|record| record.kind == AuditKind::Refusal && record.action == action);
        assert_eq!(records.len(), 1, "{records:?}");
        let record = records.remove(0);
        assert_eq!(record.decision, Decision::Denied);
        record
    };
    // Of a verified credential: in its tenant's log.
    for name in [&bob.id, &bob.slug] {
        let begun = refused(&alice.reader.with("x-tenant-id", name), 403).await;
        let record = only(trail.since(Some(&alice.id), &begun).await, "POST /query");
        assert_eq!(record.asked_for, std::slice::from_ref(name));
        assert!(record.reason.starts_with("tenant-mismatch"), "{}", record.reason);
        assert!(record.principal.starts_with("key:") && record.at >= begun);
        assert_eq!(record.tenant.map(|id| id.to_string()), Some(alice.id.clone()));
    }
    let begun = refused(&alice.reader.with("x-tenant-id", "a b"), 400).await;
    let record = only(trail.since(Some(&alice.id), &begun).await, "POST /query");
    assert!(record.reason.starts_with("tenant-hint-malformed"), "{}", record.reason);
    let begun = chrono_now();
    alice.reader.delete("/documents/boats", &Value::Null, 403).await;
    let record = only(trail.since(Some(&alice.id), &begun).await, "DELETE /documents/{id}");
    assert!(record.reason.starts_with("missing-role"), "{}", record.reason);
    let path = format!("/admin/tenants/{}/suspend", alice.id);
    server().operator().post(&path, &json!({"reason": "a test"}), 200).await;
    let begun = refused(&alice.reader, 403).await;
    let record = only(trail.since(Some(&alice.id), &begun).await, "POST /query");
    assert!(record.reason.starts_with("tenant-suspended"), "{}", record.reason);
    // Of none: in the deployment's. Other tests write there too, so by the number that is presented.
    let wrong = format!("{}x", alice.admin_key.secret);
    let unknown = server().caller(&wrong);
    refused(&unknown, 401).await;
    let begun = chrono_now();
    let revoked = format!("/admin/tenants/{}/keys/{}", bob.id, bob.admin_key.id);
    server().operator().delete(&revoked, &json!({"reason": "a test"}), 204).await;
    refused(&bob.admin, 401).await;
    let record = only(trail.since(Some(&bob.id), &begun).await, "POST /query");
    assert!(record.reason.contains("revoked") && record.principal == admin(&bob), "{record:?}");
    let of_nobody = |record: &AuditRecord| {
        record.kind == AuditKind::Refusal && record.principal == "anonymous" && record.tenant.is_none()
    };
    let deployment = trail.since(None, "").await;
    assert!(deployment.iter().any(of_nobody), "{deployment:?}");
    assert_without(format!("{deployment:?}"), [wrong.as_str(), alice.admin_key.secret.as_str()], "the log");
    trail.verify(Some(&alice.id)).await;
    trail.verify(None).await;
    trail.close().await;
}

#[tokio::test]
async fn every_action_of_an_operator_is_in_both_logs_with_its_reason_and_a_deletion_with_its_receipt() {
    let tenant = server().tenant("alice").await;
    let (operator, trail) = (server().operator(), Trail::of(server()));
    tenant.writer.put_document("boats", "Boats", "Ottoline paints the boats.").await;
    assert_eq!(tenant.writer.upload("notes.txt", b"The tide is low.").await.status, 200);
    let counts = async || tenant.reader.get("/documents/status_counts", 200).await;
    let until = Instant::now() + PATIENCE;
    while counts().await["status_counts"]["processed"] != 2 {
        assert!(Instant::now() < until, "not processed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let base = format!("/admin/tenants/{}", tenant.id);
    let why = |what: &str| format!("the test wants to {what}");
    let key = json!({"name": "k", "roles": ["reader"], "reason": why("key.create")});
    let key = operator.post(&format!("{base}/keys"), &key, 201).await;
    let token =
        json!({"subject": "somebody", "roles": ["reader"], "expires_in": 60, "reason": why("token.create")});
    operator.post(&format!("{base}/tokens"), &token, 201).await;
    let revoked = format!("{base}/keys/{}", text(&key, "key_id"));
    operator.delete(&revoked, &json!({"reason": why("key.revoke")}), 204).await;
    operator.post(&format!("{base}/suspend"), &json!({"reason": why("tenant.suspend")}), 200).await;
    operator.post(&format!("{base}/resume"), &json!({"reason": why("tenant.resume")}), 200).await;
    operator.delete(&base, &json!({"reason": why("tenant.delete")}), 202).await;
    let actions =
        ["key.create", "token.create", "key.revoke", "tenant.suspend", "tenant.resume", "tenant.delete"];
    for action in actions {
        for chain in [None, Some(tenant.id.as_str())] {
            let like = |record: &AuditRecord| {
                record.reason == why(action) && record.asked_for == [tenant.id.clone()]
            };
            let record = trail.find(chain, like).await;
            assert_eq!((record.action.as_str(), record.decision), (action, Decision::Allowed));
            assert!(record.principal.starts_with("operator:"), "{}", record.principal);
        }
    }
    for chain in [None, Some(tenant.id.as_str())] {
        let like = |record: &AuditRecord| {
            record.action == "tenant.purge" && (chain.is_some() || record.asked_for == [tenant.id.clone()])
        };
        let receipt = trail.find(chain, like).await;
        assert_eq!(receipt.principal, "server");
        for count in [
            "removed 1 indexes, 1 uploads",
            " document 2",
            " chunk 2",
            " namespace 1",
            "points in qdrant_edge 2; left: rows 0, indexes 0, uploads 0",
        ] {
            assert!(receipt.reason.contains(count), "{count} in {}", receipt.reason);
        }
    }
    trail.verify(Some(&tenant.id)).await;
    trail.close().await;
}

#[tokio::test]
async fn a_refusal_names_the_operation_and_not_the_path_that_was_asked_for() {
    let tenant = server().tenant("alice").await;
    let trail = Trail::of(server());
    let secret = random(16);
    let request = tenant.reader.request("DELETE", &format!("/documents/{secret}"));
    assert_eq!(received(request).await.status, 403);
    let record = trail.find(Some(&tenant.id), |record| record.kind == AuditKind::Refusal).await;
    assert_eq!(record.action, "DELETE /documents/{id}");
    assert_without(format!("{record:?}"), [secret.as_str()], "the log");
    trail.close().await;
}
