//! How soon it counts that somebody may no longer: on this server and on others over the same database, before, in
//! and after a request, in running streams, and while nobody can say.

use std::time::{Duration, Instant};

use bulkhead::http::HttpSettings;
use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::deployment::{Harness, pools};
use crate::language_model::Stub;
use crate::running::{QUESTION, Running, Tenant as Asker};
use crate::server::random;
use crate::site::{Site, Tenant, send};
use crate::valve::{Flow, Valve};

/// What is promised.
const EFFECTIVE: Duration = Duration::from_secs(2);
/// After which an answer of whose caller nothing was heard ends, and what a test allows beyond that.
const UNHEARD: Duration = Duration::from_secs(5);
const ALLOWANCE: Duration = Duration::from_secs(2);

fn settings() -> HttpSettings {
    HttpSettings { progress_poll_ms: 50, ..HttpSettings::default() }
}

/// A stream of events of a document that is never processed.
async fn stream(site: &Site, tenant: &Tenant, key: &str) -> reqwest::Response {
    let body = json!({"text": format!("Never processed: {}.", random(8))});
    let inserted = site.post("/documents/text", &tenant.writer, &body).await;
    let track = inserted.body["track_id"].as_str().unwrap_or_else(|| panic!("{}", inserted.body)).to_owned();
    let path = format!("/documents/track_status/{track}/events");
    let response = site.request(Method::GET, &path, key).send().await.expect("a stream");
    assert_eq!(response.status(), StatusCode::OK);
    response
}

/// Reads a stream to its end; its text and how long that took.
async fn ended(response: reqwest::Response, begun: Instant) -> (String, Duration) {
    let text = response.text().await.expect("read to its end");
    (text, begun.elapsed())
}

fn key_id(key: &str) -> &str {
    key.split('_').nth(1).expect("an id")
}

#[tokio::test]
async fn a_change_on_one_server_counts_on_another_within_two_seconds_in_requests_and_streams() {
    let (here, there) = tokio::join!(Site::with(settings()), Site::with(settings()));
    for change in ["revoke", "suspend", "demote", "delete"] {
        let alice = here.tenant("Alice").await;
        let bob = here.tenant("Bob").await;
        let key = alice.admin.clone();
        let open = stream(&there, &alice, &key).await;
        let mut his = stream(&there, &bob, &bob.reader).await.bytes_stream();
        let begun = Instant::now();
        let tenant = format!("/admin/tenants/{}", alice.id);
        let reason = json!({"reason": "a test"});
        match change {
            "revoke" => {
                let path = format!("{tenant}/keys/{}", key_id(&key));
                here.operate(Method::DELETE, &path, &reason).await;
            }
            "suspend" => drop(here.operate(Method::POST, &format!("{tenant}/suspend"), &reason).await),
            "delete" => drop(here.operate(Method::DELETE, &tenant, &reason).await),
            _ => {
                let demoted = sqlx::query("update api_key set roles = '{reader}' where key_id = $1")
                    .bind(key_id(&key))
                    .execute(&mut here.harness.deployment.superuser().await)
                    .await
                    .expect("demoted");
                assert_eq!(demoted.rows_affected(), 1);
            }
        }
        let (wanted, slug) = match change {
            "revoke" | "delete" => (StatusCode::UNAUTHORIZED, "unauthorized"),
            "suspend" => (StatusCode::FORBIDDEN, "tenant-suspended"),
            _ => (StatusCode::FORBIDDEN, "missing-role"),
        };
        let ((told, took), ()) = tokio::join!(ended(open, begun), async {
            loop {
                let answer = there.delete("/documents/none", &key).await;
                if answer.status == wanted {
                    assert_eq!(answer.slug(), slug);
                    break;
                }
                assert!(begun.elapsed() < EFFECTIVE, "{change}: still {}", answer.status);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(took < EFFECTIVE, "{change}: the stream went on for {took:?}");
        assert!(told.trim_end().contains("event: auth_expired"), "{change}: {told}");
        // The neighbour's goes on.
        let piece = his.next().await.expect("a piece").expect("read");
        assert!(!String::from_utf8_lossy(&piece).contains("auth_expired"));
        assert_eq!(there.get("/auth/verify", &bob.reader).await.status, StatusCode::OK);
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn what_a_caller_sends_slowly_is_refused_when_it_was_revoked_meanwhile() {
    let site = Site::with(settings()).await;
    let alice = site.tenant("Alice").await;
    let form = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"slow.txt\"\r\n\r\nSlow.";
    let text = json!({"text": "Slow.", "file_source": "slow.txt"}).to_string();
    let cases = [
        ("/documents/text", "application/json", text),
        ("/documents/upload", "multipart/form-data; boundary=x", format!("{form}\r\n--x--\r\n")),
    ];
    for (path, media_type, body) in cases {
        let body_keys = json!({"name": "slow", "roles": ["writer"], "reason": "a test"});
        let keys = format!("/admin/tenants/{}/keys", alice.id);
        let key = site.operate(Method::POST, &keys, &body_keys).await.body["api_key"].clone();
        let key = key.as_str().expect("a key").to_owned();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(4);
        let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let request = site.request(Method::POST, path, &key).header("Content-Type", media_type);
        let request = request.body(reqwest::Body::wrap_stream(pieces));
        let (head, tail) = body.split_at(body.len() / 2);
        let (answer, ()) = tokio::join!(send(request), async {
            sender.send(Ok(head.to_owned())).await.expect("read");
            tokio::time::sleep(Duration::from_millis(300)).await;
            let revoked = format!("{keys}/{}", key_id(&key));
            site.operate(Method::DELETE, &revoked, &json!({"reason": "a test"})).await;
            sender.send(Ok(tail.to_owned())).await.expect("read");
            drop(sender);
        });
        assert_eq!((answer.status, answer.slug()), (StatusCode::UNAUTHORIZED, "unauthorized"), "{path}");
        let counts = site.get("/documents/status_counts", &alice.reader).await;
        assert_eq!(counts.body["status_counts"]["all"], 0, "{path}: nothing was taken in");
    }
    site.stop().await;
}

#[tokio::test]
async fn who_waits_for_its_document_stops_waiting_when_it_is_revoked() {
    let site = Site::with(settings()).await;
    let alice = site.tenant("Alice").await;
    let request = site.request(Method::PUT, "/documents/slow", &alice.writer).header("Prefer", "wait=30");
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(send(request.json(&json!({"text": "Never processed."}))), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let path = format!("/admin/tenants/{}/keys/{}", alice.id, key_id(&alice.writer));
        site.operate(Method::DELETE, &path, &json!({"reason": "a test"})).await;
    });
    assert_eq!((answer.status, answer.slug()), (StatusCode::UNAUTHORIZED, "unauthorized"));
    assert!(begun.elapsed() < EFFECTIVE + Duration::from_millis(300), "{:?}", begun.elapsed());
    site.stop().await;
}

#[tokio::test]
async fn without_the_database_every_caller_is_told_503_and_a_stream_ends_after_five_seconds() {
    let mut valve = None;
    let harness = Harness::with(&pools(4), |addresses| valve = Some(Valve::before(addresses))).await;
    let valve = valve.expect("placed");
    let site = Site::over(harness, settings()).await;
    let alice = site.tenant("Alice").await;
    site.put("/documents/known", &alice.writer, &json!({"text": "The harbour."})).await;
    let suspended = site.tenant("Carol").await;
    let path = format!("/admin/tenants/{}/suspend", suspended.id);
    site.operate(Method::POST, &path, &json!({"reason": "a test"})).await;
    let revoked = site.tenant("Dave").await;
    let path = format!("/admin/tenants/{}/keys/{}", revoked.id, key_id(&revoked.reader));
    site.operate(Method::DELETE, &path, &json!({"reason": "a test"})).await;
    for flow in [Flow::Closed, Flow::Held] {
        let running = stream(&site, &alice, &alice.reader).await;
        valve.set(flow);
        let begun = Instant::now();
        let asking = async {
            // What was known is forgotten first.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let asked = [
                ("/documents/known", &alice.reader),
                ("/documents/unknown", &alice.reader),
                ("/namespaces", &alice.reader),
                ("/auth/verify", &alice.reader),
                ("/auth/verify", &suspended.reader),
                ("/auth/verify", &revoked.reader),
                ("/documents/known", &revoked.reader),
            ];
            let unknown = Value::Null;
            for (path, key) in asked {
                let answer = site.get(path, key).await;
                assert_eq!(
                    (answer.status, answer.slug()),
                    (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
                    "{flow:?} {path}: {}",
                    answer.body
                );
                assert!(answer.headers.contains_key("retry-after"), "{path}");
                assert_eq!(answer.body["errors"], unknown);
            }
            let strange = site.get("/auth/verify", "bk_not_a_key").await;
            assert_eq!(strange.status, StatusCode::SERVICE_UNAVAILABLE, "a refusal that cannot be recorded");
        };
        let ((told, took), ()) = tokio::join!(ended(running, begun), asking);
        assert!(told.contains("event: auth_expired"), "{flow:?}: {told}");
        assert!(took < UNHEARD + ALLOWANCE, "{flow:?}: the stream went on for {took:?}");
        assert!(took > Duration::from_secs(3), "{flow:?}: a short silence is borne, not {took:?}");
        valve.set(Flow::Open);
        let until = Instant::now() + Duration::from_secs(20);
        while site.get("/auth/verify", &alice.reader).await.status != StatusCode::OK {
            assert!(Instant::now() < until, "{flow:?}: it does not recover");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(site.get("/documents/known", &alice.reader).await.status, StatusCode::OK);
        assert_eq!(site.get("/documents/unknown", &alice.reader).await.status, StatusCode::NOT_FOUND);
        assert_eq!(site.get("/auth/verify", &revoked.reader).await.status, StatusCode::UNAUTHORIZED);
        let refused = site.get("/auth/verify", &suspended.reader).await;
        assert_eq!(refused.slug(), "tenant-suspended");
    }
    site.stop().await;
}

/// Opens a long answer of a language model on each surface, and waits for its first piece.
async fn answers(server: &Running, asker: &Asker) -> Vec<(&'static str, reqwest::Response)> {
    let messages = json!([{"role": "user", "content": format!("/bypass {}", "so long ".repeat(200))}]);
    let chat = json!({"model": "default", "messages": messages, "stream": true});
    let query = json!({"query": "so long ".repeat(200), "mode": "bypass"});
    let mut running = Vec::new();
    for (path, body) in [("/query/stream", &query), ("/v1/chat/completions", &chat), ("/api/chat", &chat)] {
        let request = server.request(Method::POST, path, &asker.key).json(body);
        let mut response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.chunk().await.expect("read").expect("a piece");
        running.push((path, response));
    }
    running
}

#[tokio::test]
async fn every_kind_of_running_answer_ends_within_two_seconds_of_a_suspension() {
    let stub = Stub::start(Duration::from_millis(200)).await;
    let server = stub.server().await;
    let (alice, bob) = (server.tenant().await, server.tenant().await);
    let (open, his) = (answers(&server, &alice).await, answers(&server, &bob).await);
    server.suspend(&alice).await;
    let begun = Instant::now();
    let all = open.into_iter().map(|(path, response)| async move { (path, ended(response, begun).await) });
    for (path, (told, took)) in futures::future::join_all(all).await {
        assert!(took < EFFECTIVE, "{path} went on for {took:?}");
        assert!(told.contains("tenant-suspended") || told.contains("error"), "{path}: {told}");
    }
    for (path, mut response) in his {
        let piece = response.chunk().await.expect("read").expect("a piece");
        assert!(!String::from_utf8_lossy(&piece).contains("error"), "{path}: the neighbour's goes on");
    }
    let whole = server.post("/query", &alice.key, &json!({"query": QUESTION})).await;
    assert_eq!(whole.status, StatusCode::FORBIDDEN);
}
