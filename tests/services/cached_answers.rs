//! Answers of whole servers that keep them in Redis, over a language model that never says the same twice.

use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Test;
use crate::model::Model;
use crate::redis_server::RedisServer;
use crate::whole::{Folder, Tenant, Whole};

/// How long the servers may take to notice that Redis is back.
const PATIENCE: Duration = Duration::from_secs(30);

const QUESTION: &str = "Who inspected the Halden turbine?";
const TEXT: &str = "The Halden turbine was inspected by Mara Quill. Mara Quill found a crack in blade two.";

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        an_answer_is_given_again_to_the_same_question_until_the_corpus_changes,
        two_tenants_with_the_same_documents_and_questions_share_nothing_in_redis,
        an_answer_of_another_tenant_stops_the_request_and_is_in_the_audit_log,
        a_suspended_tenant_gets_nothing_and_a_deleted_ones_entries_are_removed_and_counted,
        a_deletion_while_redis_is_away_ends_and_says_that_entries_expire,
        answers_are_right_and_in_time_while_redis_hangs_and_while_it_is_gone,
        the_same_question_on_two_servers_at_once_is_answered_once,
    ]
}

fn settings(redis: &RedisServer, model: &Model, further: &str) -> String {
    format!(
        "cache.backend = 'redis'
        redis.url = '{}'
        redis.calls.breaker_rest_ms = 200
        language_model.url = '{}'
        language_model.model = 'stand-in'
        {further}",
        redis.url(),
        model.url()
    )
}

/// A tenant of a server.
struct Asker<'s> {
    server: &'s Whole,
    tenant: Tenant,
}

/// An answer: its words, and whether they were kept.
type Told = (String, bool);

impl<'s> Asker<'s> {
    async fn new(server: &'s Whole) -> Self {
        Self { server, tenant: server.tenant().await }
    }

    /// The same on another server.
    fn on<'o>(&self, server: &'o Whole) -> Asker<'o> {
        Asker { server, tenant: self.tenant.clone() }
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.server.request(method, path, &self.tenant)
    }

    async fn put(&self, document: &str, text: &str) {
        let request = self.request("PUT", &format!("/documents/{document}"));
        let request = request.header("Prefer", "wait=30").json(&json!({"text": text}));
        let status = request.send().await.expect("an answer").status();
        assert!([StatusCode::CREATED, StatusCode::OK].contains(&status), "{status}");
    }

    async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        self.request("POST", path).json(body).send().await.expect("an answer")
    }

    async fn asked(&self, body: &Value) -> Told {
        let answer = self.send("/query", body).await;
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, StatusCode::OK, "{text}");
        let body: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&body["llm_generated"], body["references"].is_array()), (&json!(true), true), "{body}");
        let words = body["response"].as_str().expect("words").to_owned();
        (words, body["metadata"]["cached"].as_bool().expect("whether it was kept"))
    }

    async fn ask(&self) -> Told {
        self.asked(&json!({"query": QUESTION})).await
    }

    /// The receipt of its deletion, once there is one.
    async fn receipt(&self) -> String {
        let mut database = self.server.superuser().await;
        let tenant: uuid::Uuid = self.tenant.id.parse().expect("an id");
        let end = Instant::now() + PATIENCE;
        loop {
            let receipt: Option<String> = sqlx::query_scalar(
                "select body from audit_event where tenant_id = $1 and body like '%\"tenant.purge\"%'",
            )
            .bind(tenant)
            .fetch_optional(&mut database)
            .await
            .expect("asked");
            match receipt {
                Some(receipt) => return receipt,
                None => assert!(Instant::now() < end, "there is no receipt"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What Redis has of it, but counts.
    async fn kept(&self, redis: &RedisServer) -> Vec<String> {
        let mut connection = redis.connection().await;
        connection.keys(format!("bulkhead:{{{}}}:*", self.tenant.id)).await.expect("keys")
    }
}

async fn an_answer_is_given_again_to_the_same_question_until_the_corpus_changes() {
    let (folder, redis, model) = (Folder::new(), RedisServer::start(), Model::start(Duration::ZERO).await);
    let server = Whole::start(&folder.0, &settings(&redis, &model, "")).await;
    let alice = Asker::new(&server).await;
    alice.put("turbine", TEXT).await;
    let (first, cached) = alice.ask().await;
    assert!(!cached && first.starts_with("Answer 1: ") && first.contains("Mara Quill"), "{first}");
    assert_eq!(alice.ask().await, (first.clone(), true));
    let streamed =
        alice.send("/query/stream", &json!({"query": QUESTION})).await.text().await.expect("lines");
    assert!(streamed.contains("Answer 1: ") && streamed.contains("\"cached\":true"), "{streamed}");
    assert_eq!(model.asked(), 1);

    // Whatever differs is another question, and whoever wants a new answer gets one.
    for (n, body) in [
        json!({"query": "Who inspected the Halden turbine"}),
        json!({"query": QUESTION, "mode": "naive"}),
        json!({"query": QUESTION, "user_prompt": "Be brief."}),
        json!({"query": QUESTION, "response_type": "Bullet Points"}),
        json!({"query": QUESTION, "conversation_history": [{"role": "user", "content": "Hello."}]}),
        json!({"query": QUESTION, "cache": false}),
        json!({"query": QUESTION, "cache": false}),
        // What a bound of the model cut off is no answer for the next.
        json!({"query": QUESTION, "user_prompt": "Be cut off."}),
        json!({"query": QUESTION, "user_prompt": "Be cut off."}),
    ]
    .iter()
    .enumerate()
    {
        let (words, cached) = alice.asked(body).await;
        assert!(!cached && words.starts_with(&format!("Answer {}: ", n + 2)), "{body}: {words}");
    }
    let chat = json!({"model": "default", "messages": [{"role": "user", "content": QUESTION}]});
    for n in 11..=12 {
        let answer = alice.send("/v1/chat/completions", &chat).await.text().await.expect("a body");
        assert!(answer.contains(&format!("Answer {n}: ")), "{answer}");
    }
    assert_eq!(alice.ask().await, (first, true));

    // Nothing that was said before the corpus changed is said after it.
    alice.put("harbour", "The harbour of Port Anselm opened in 1990.").await;
    let (changed, cached) = alice.ask().await;
    assert!(!cached && changed.starts_with("Answer 13: "), "{changed}");
    assert_eq!(alice.ask().await, (changed, true));
    let gone = alice.request("DELETE", "/documents/turbine").send().await.expect("gone");
    assert!(gone.status().is_success(), "{}", gone.status());
    let answer = alice.send("/query", &json!({"query": QUESTION})).await.text().await.expect("a body");
    assert!(!answer.contains("Mara Quill"), "{answer}");

    // Each question is in the audit log with what it returned, answered anew or not.
    let mut database = server.superuser().await;
    let events = "select body from audit_event where tenant_id::text = $1 and kind = 'query'";
    let end = Instant::now() + PATIENCE;
    let events = loop {
        let found: Vec<String> =
            sqlx::query_scalar(events).bind(&alice.tenant.id).fetch_all(&mut database).await.expect("rows");
        if found.len() >= 18 || Instant::now() > end {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let asked: Vec<Value> = events.iter().map(|body| serde_json::from_str(body).expect("JSON")).collect();
    assert_eq!(asked.len(), 18, "{asked:#?}");
    let with_ids = asked.iter().filter(|body| body["ids"].as_array().is_some_and(|ids| !ids.is_empty()));
    assert!(with_ids.count() >= 17, "{asked:#?}");
    server.stop().await;
}

async fn two_tenants_with_the_same_documents_and_questions_share_nothing_in_redis() {
    let (folder, redis, model) = (Folder::new(), RedisServer::start(), Model::start(Duration::ZERO).await);
    let server = Whole::start(&folder.0, &settings(&redis, &model, "")).await;
    let (alice, bob) = (Asker::new(&server).await, Asker::new(&server).await);
    for (n, asker) in [(1, &alice), (2, &bob)] {
        asker.put("turbine", TEXT).await;
        let (words, cached) = asker.ask().await;
        assert!(!cached && words.starts_with(&format!("Answer {n}: ")), "{words}");
        assert!(asker.ask().await.1);
    }
    let (hers, his) = (alice.kept(&redis).await, bob.kept(&redis).await);
    let mut connection = redis.connection().await;
    let all: Vec<String> = connection.keys("*").await.expect("keys");
    assert_eq!(all.len(), hers.len() + his.len(), "{all:?}");
    let of =
        |keys: &[String], kind: &str| keys.iter().filter(|key| key.contains(&format!("}}:{kind}:"))).count();
    for kind in ["embedding", "answer"] {
        assert_eq!((of(&hers, kind), of(&his, kind)), (1, 1), "{all:?}");
    }
    for key in &all {
        assert!(!key.contains("Halden") && !key.contains("turbine"), "{key}");
        let value: Vec<u8> = connection.get(key).await.expect("a value");
        let value = String::from_utf8_lossy(&value).into_owned();
        let (owner, other) = if hers.contains(key) { (&alice, &bob) } else { (&bob, &alice) };
        assert!(value.starts_with(&owner.tenant.id) && !value.contains(&other.tenant.id), "{key}: {value}");
    }
    server.stop().await;
}

async fn an_answer_of_another_tenant_stops_the_request_and_is_in_the_audit_log() {
    let (folder, redis, model) = (Folder::new(), RedisServer::start(), Model::start(Duration::ZERO).await);
    let server = Whole::start(&folder.0, &settings(&redis, &model, "")).await;
    let (alice, bob) = (Asker::new(&server).await, Asker::new(&server).await);
    for asker in [&alice, &bob] {
        asker.put("turbine", TEXT).await;
        asker.ask().await;
    }
    let mut connection = redis.connection().await;
    for kind in ["answer", "embedding"] {
        let of = |keys: Vec<String>| keys.into_iter().find(|key| key.contains(&format!("}}:{kind}:")));
        let (hers, his) = (of(alice.kept(&redis).await), of(bob.kept(&redis).await));
        let (hers, his) = (hers.expect("a key"), his.expect("a key"));
        let own: Vec<u8> = connection.get(&hers).await.expect("a value");
        let value: Vec<u8> = connection.get(&his).await.expect("a value");
        let _: () = connection.set(&hers, value).await.expect("set");
        let answer = alice.send("/query", &json!({"query": QUESTION})).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "{kind}");
        let body = answer.text().await.expect("a body");
        assert!(body.contains("isolation-alarm") && !body.contains(&bob.tenant.id), "{kind}: {body}");
        assert!(!body.contains("Answer"), "{kind}: {body}");
        assert!(bob.ask().await.1, "his own goes on");
        let _: () = connection.set(&hers, own).await.expect("set");
    }
    assert!(alice.ask().await.1);
    let alarms = "select tenant_id::text, body from audit_event where kind = 'alarm'";
    let mut database = server.superuser().await;
    let alarms: Vec<(String, String)> = sqlx::query_as(alarms).fetch_all(&mut database).await.expect("rows");
    let of_alice = alarms.iter().filter(|(tenant, _)| *tenant == alice.tenant.id).count();
    // Each in the deployment's log and in her own.
    assert_eq!((of_alice, alarms.len()), (2, 4), "{alarms:?}");
    assert!(
        alarms.iter().all(|(tenant, body)| *tenant != bob.tenant.id && !body.contains(&bob.tenant.id)),
        "{alarms:?}"
    );
    server.stop().await;
}

async fn a_suspended_tenant_gets_nothing_and_a_deleted_ones_entries_are_removed_and_counted() {
    let (folder, redis, model) = (Folder::new(), RedisServer::start(), Model::start(Duration::ZERO).await);
    let server = Whole::start(&folder.0, &settings(&redis, &model, "")).await;
    let (alice, bob) = (Asker::new(&server).await, Asker::new(&server).await);
    for asker in [&alice, &bob] {
        asker.put("turbine", TEXT).await;
        asker.ask().await;
        assert!(asker.ask().await.1);
    }
    let tenant = format!("/admin/tenants/{}", alice.tenant.id);
    let reason = json!({"reason": "a test"});
    let operate = async |method: Method, path: String| {
        let (status, body) = server.operator(method, &path, &reason).await;
        assert!(status.is_success(), "{path}: {status} {body}");
    };
    operate(Method::POST, format!("{tenant}/suspend")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!alice.kept(&redis).await.is_empty(), "it is there, for nobody");
    for path in ["/query", "/query/stream"] {
        let refused = alice.send(path, &json!({"query": QUESTION})).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let body = refused.text().await.expect("a body");
        assert!(!body.contains("Answer") && !body.contains("Mara"), "{body}");
    }
    operate(Method::POST, format!("{tenant}/resume")).await;
    assert_eq!(alice.kept(&redis).await.len(), 2, "they are there for minutes, unless they are removed");
    operate(Method::DELETE, tenant.clone()).await;
    let receipt = alice.receipt().await;
    assert!(receipt.contains("; Redis 2, left 0; kept: "), "{receipt}");
    assert!(receipt.contains(" audit events in postgres"), "{receipt}");
    assert_eq!(alice.kept(&redis).await, Vec::<String>::new());
    assert!(bob.ask().await.1, "a neighbour's are there");
    let refused = alice.send("/query", &json!({"query": QUESTION})).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    server.stop().await;
}

async fn a_deletion_while_redis_is_away_ends_and_says_that_entries_expire() {
    let (folder, redis, model) = (Folder::new(), RedisServer::start(), Model::start(Duration::ZERO).await);
    let settings = settings(&redis, &model, "cache.answer_seconds = 120");
    let server = Whole::start(&folder.0, &settings).await;
    let alice = Asker::new(&server).await;
    alice.put("turbine", TEXT).await;
    alice.ask().await;
    redis.process.pause();
    let path = format!("/admin/tenants/{}", alice.tenant.id);
    let (status, body) = server.operator(Method::DELETE, &path, &json!({"reason": "a test"})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let receipt = alice.receipt().await;
    // As long as a question's vector is kept by default.
    assert!(receipt.contains("; Redis not reached, entries expire within 300 s; kept: "), "{receipt}");
    assert!(receipt.contains("left: rows 0, indexes 0, uploads 0"), "{receipt}");
    redis.process.resume();
    assert_eq!(alice.kept(&redis).await.len(), 2, "nobody said that they are gone");
    server.stop().await;
}

async fn answers_are_right_and_in_time_while_redis_hangs_and_while_it_is_gone() {
    let (folder, mut redis) = (Folder::new(), RedisServer::start());
    let model = Model::start(Duration::ZERO).await;
    let server = Whole::start(&folder.0, &settings(&redis, &model, "")).await;
    let alice = Asker::new(&server).await;
    alice.put("turbine", TEXT).await;
    alice.ask().await;
    assert!(alice.ask().await.1);
    let without = async || {
        for _ in 0..8 {
            let begun = Instant::now();
            let (words, cached) = alice.ask().await;
            assert!(!cached && words.contains("Mara Quill"), "{words}");
            // Two look-ups of 250 ms each, and a busy machine.
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        }
    };
    let again = async || {
        let end = Instant::now() + PATIENCE;
        while !alice.ask().await.1 {
            assert!(Instant::now() < end, "Redis is not used again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    redis.process.pause();
    without().await;
    redis.process.resume();
    again().await;
    redis.process.kill();
    without().await;
    redis.restart();
    again().await;
    server.stop().await;
}

async fn the_same_question_on_two_servers_at_once_is_answered_once() {
    let (folder, redis) = (Folder::new(), RedisServer::start());
    let model = Model::start(Duration::from_secs(1)).await;
    let settings = settings(&redis, &model, "");
    let first = Whole::start(&folder.0.join("node-1"), &settings).await;
    let settings = format!("{settings}\ndatabase.url = '{}'", first.database_url());
    let second = first.beside(&folder.0.join("node-2"), &settings).await;
    let alice = Asker::new(&first).await;
    alice.put("turbine", TEXT).await;
    let elsewhere = alice.on(&second);
    let (here, there, also) = tokio::join!(alice.ask(), elsewhere.ask(), elsewhere.ask());
    assert_eq!(model.asked(), 1);
    assert!(here.0 == there.0 && here.0 == also.0, "{here:?} {there:?} {also:?}");
    assert_eq!([here.1, there.1, also.1].iter().filter(|cached| !**cached).count(), 1);
    second.stop().await;
    first.stop().await;
}
