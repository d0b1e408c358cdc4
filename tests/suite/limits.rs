//! Limits of what a tenant keeps and asks: held exactly under races, given back, changed while the server runs,
//! and never felt by a neighbour.

use std::time::Duration;

use bulkhead::domain::limits::Limits;
use bulkhead::http::HttpSettings;
use bulkhead::store::CorpusWriter;
use bulkhead::store::postgres::documents::{Acceptance, OnExisting};
use bulkhead::store::postgres::usage::{Quota, Usage};
use bulkhead::tenancy::{LimitSettings, Permit, Write};
use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::database::{Database, deletion};
use crate::deployment::{Harness, accept, chunk, document, pools};
use crate::site::{Answer, Site, Tenant};

async fn usage(harness: &Harness, permit: &Permit<Write>) -> Usage {
    harness.stores.reader(permit).usage_get().await.expect("read")
}

/// What a tenant keeps by its rows, which its counters must equal.
async fn recounted(harness: &Harness, permit: &Permit<Write>) -> (i64, i64) {
    sqlx::query_as(
        "select (select count(*) from document where tenant_id = $1),
             (select coalesce(sum(coalesce(octet_length(body), bytes)), 0)::bigint from document_version
              where tenant_id = $1)",
    )
    .bind(permit.scope().tenant().0)
    .fetch_one(&mut harness.deployment.superuser().await)
    .await
    .expect("counted")
}

async fn counted(harness: &Harness, permit: &Permit<Write>) -> (i64, i64) {
    let usage = usage(harness, permit).await;
    assert_eq!((usage.documents, usage.bytes), recounted(harness, permit).await);
    (usage.documents, usage.bytes)
}

#[tokio::test]
async fn fifty_writes_at_once_pass_no_limit() {
    let harness = Harness::with(&pools(8), |_| ()).await;
    for (limits, wanted) in [
        (Limits { documents: 20, ..Limits::default() }, Acceptance::QuotaReached(Quota::Documents)),
        // Each has eight bytes.
        (Limits { bytes: 167, ..Limits::default() }, Acceptance::QuotaReached(Quota::Bytes)),
        (Limits { queued_jobs: 20, ..Limits::default() }, Acceptance::QueueFull),
    ] {
        let (permit, neighbour) = (harness.tenant().await, harness.tenant().await);
        // Several namespaces, since those of one are accepted one after the other.
        let mut corpora = Vec::new();
        for n in 0..5 {
            corpora.push(harness.namespace(&permit, &format!("space-{n}")).await);
        }
        let write = |n: usize| {
            let corpus: &CorpusWriter = &corpora[n % 5];
            let new = document(&format!("doc-{n}"), &format!("Text {n:03}"));
            let limits = &limits;
            async move {
                corpus.documents_accept(&[new], OnExisting::Refuse, "track", limits).await.expect("answered")
            }
        };
        let answers: Vec<Acceptance> =
            futures::stream::iter((0..50).map(write)).buffer_unordered(50).collect().await;
        let accepted = answers.iter().filter(|answer| matches!(answer, Acceptance::Accepted(_))).count();
        assert_eq!(accepted, 20, "{limits:?}");
        assert_eq!(answers.iter().filter(|answer| **answer == wanted).count(), 30, "{answers:?}");
        assert_eq!(counted(&harness, &permit).await, (20, 160));
        assert_eq!(usage(&harness, &permit).await.queued_jobs, 20);
        let own = harness.corpus(&neighbour).await;
        let theirs = own.documents_accept(&[document("a", "b")], OnExisting::Refuse, "track", &limits).await;
        assert!(matches!(theirs, Ok(Acceptance::Accepted(_))));
    }
    harness.close().await;
}

#[tokio::test]
async fn what_is_deleted_replaced_or_never_accepted_is_given_back() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    assert_eq!(counted(&harness, &permit).await, (0, 0));
    harness.put(&corpus, "a", vec![chunk(0, "four")]).await;
    harness.put(&corpus, "b", vec![chunk(0, "seventy")]).await;
    assert_eq!(counted(&harness, &permit).await, (2, 11));
    // A new version is kept beside the one that answers, until it answers itself.
    accept(&corpus, &[document("a", "longer")], OnExisting::Replace).await;
    assert_eq!(counted(&harness, &permit).await, (2, 17));
    accept(&corpus, &[document("a", "longest of all")], OnExisting::Replace).await;
    assert_eq!(counted(&harness, &permit).await, (2, 31));
    harness.put(&corpus, "a", vec![chunk(0, "new")]).await;
    assert_eq!(counted(&harness, &permit).await, (2, 10));
    // A duplicate is a document without content, and a name that is taken refuses the whole batch.
    accept(&corpus, &[document("c", "new")], OnExisting::Refuse).await;
    assert_eq!(counted(&harness, &permit).await, (3, 10));
    let taken = [document("d", "fresh"), document("a", "taken")];
    assert!(matches!(accept(&corpus, &taken, OnExisting::Refuse).await, Acceptance::NameTaken(_)));
    let none = Limits { documents: 3, ..Limits::default() };
    let refused =
        corpus.documents_accept(&taken[..1], OnExisting::Refuse, "t", &none).await.expect("answered");
    assert_eq!(refused, Acceptance::QuotaReached(Quota::Documents));
    assert_eq!(counted(&harness, &permit).await, (3, 10));
    // A limit below what is there lets a document be replaced, but none be added.
    let less = Limits { documents: 1, ..Limits::default() };
    let replaced = corpus.documents_accept(&[document("b", "x")], OnExisting::Replace, "t", &less).await;
    assert!(matches!(replaced, Ok(Acceptance::Accepted(_))));
    corpus.documents_delete(&["a".to_owned(), "nobody".to_owned()]).await.expect("deleted");
    assert_eq!(counted(&harness, &permit).await, (2, 8));
    let other = harness.namespace(&permit, "other").await;
    accept(&other, &[document("a", "stays")], OnExisting::Refuse).await;
    let writer = harness.stores.background(&permit);
    let act = deletion(&harness.postgres, permit.scope());
    writer.namespace_delete(act, corpus.name()).await.expect("deleted");
    assert_eq!(counted(&harness, &permit).await, (1, 5));
    writer.tenant_purge().await.expect("purged");
    assert_eq!(counted(&harness, &permit).await, (0, 0));
    harness.close().await;
}

#[tokio::test]
async fn what_is_there_when_limits_come_is_counted() {
    let database = Database::start().await;
    let (alice, bob) = (database.tenant("alice").await, database.tenant("bob").await);
    let mut superuser = database.superuser().await;
    for (permit, id, version, body) in [
        (&alice, "a", 1_i64, Some("one")),
        (&alice, "a", 2, Some("three")),
        (&alice, "b", 1, None),
        (&bob, "a", 1, Some("seven")),
    ] {
        // A file has no body; its length is the document's.
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "insert into document values ('{0}', '{1}', '{id}', {version}, null, 'pending', 'f', '', 1000, '', null,
                 null, '{{}}', 't', now(), now()) on conflict do nothing;
             insert into document_version (tenant_id, namespace_id, document_id, version, file_name, metadata, body,
                 upload_id, created_at) values ('{0}', '{1}', '{id}', {version}, 'f', '{{}}', {2}, {3}, now())",
            permit.scope().tenant(),
            uuid::Uuid::nil(),
            body.map_or("null".to_owned(), |body| format!("'{body}'")),
            if body.is_some() { "null".to_owned() } else { format!("'{}'", uuid::Uuid::nil()) },
        )))
        .execute(&mut superuser)
        .await
        .expect("stored as before the migration");
    }
    // The part of the migration that counts.
    let migration = include_str!("../../migrations/0004_limits.sql");
    let begin = migration.find("alter table document no force").expect("the part");
    let end = migration.find("alter table tenant_usage enable").expect("its end");
    let text = format!(
        "begin; alter table tenant_usage no force row level security; set local role bulkhead_owner; {} reset role;
         alter table tenant_usage force row level security; commit",
        &migration[begin..end]
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut superuser).await.expect("migrated");
    for (permit, wanted) in [(&alice, (2_i64, 1008_i64)), (&bob, (1, 5))] {
        let row: (i64, i64) =
            sqlx::query_as("select documents, bytes from tenant_usage where tenant_id = $1")
                .bind(permit.scope().tenant().0)
                .fetch_one(&mut superuser)
                .await
                .expect("counted");
        assert_eq!(row, wanted);
    }
    drop(superuser);
    database.stop().await;
}

#[test]
fn the_documented_defaults_are_those_of_the_code() {
    let settings: bulkhead::app::Settings = bulkhead::config::load(None).expect("the defaults");
    assert_eq!(settings.limits, LimitSettings::default());
}

fn quotas(tenant: Limits) -> LimitSettings {
    LimitSettings { tenant, ..LimitSettings::default() }
}

async fn text(site: &Site, tenant: &Tenant, text: &str) -> Answer {
    site.post("/documents/text", &tenant.writer, &json!({"text": text})).await
}

fn is(answer: &Answer, status: u16, slug: &str) {
    assert_eq!((answer.status.as_u16(), answer.slug()), (status, slug), "{}", answer.body);
}

#[tokio::test]
async fn exactly_the_request_after_the_limit_is_refused_while_another_tenants_succeeds() {
    let limits = Limits { requests_per_minute: 4, ..Limits::default() };
    let site = Site::limited(HttpSettings::default(), quotas(limits)).await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    for key in [&alice.reader, &alice.writer, &alice.admin, &alice.reader] {
        assert_eq!(site.get("/auth/verify", key).await.status, StatusCode::OK);
    }
    let refused = site.get("/auth/verify", &alice.reader).await;
    is(&refused, 429, "rate-limited");
    for (name, value) in [("ratelimit-limit", "4"), ("ratelimit-remaining", "0"), ("retry-after", "15")] {
        assert_eq!(refused.headers[name], value, "{name}");
    }
    let other = site.get("/auth/verify", &bob.reader).await;
    assert_eq!(
        (other.status, &other.headers["ratelimit-remaining"]),
        (StatusCode::OK, &"3".parse().expect("3"))
    );
    site.harness.clock.advance(Duration::from_secs(15));
    assert_eq!(site.get("/auth/verify", &alice.reader).await.status, StatusCode::OK);
    is(&site.get("/auth/verify", &alice.writer).await, 429, "rate-limited");
    // What is not there is answered alike each time, so that it carries no number.
    let missing = site.get("/documents/nothing", &bob.reader).await;
    is(&missing, 404, "not-found");
    assert!(missing.headers.keys().all(|name| !name.as_str().starts_with("ratelimit")));
    let counted =
        site.operate(Method::GET, &format!("/admin/tenants/{}/usage", alice.id), &Value::Null).await;
    assert_eq!((&counted.body["requests"], &counted.body["refused_requests"]), (&json!(7), &json!(2)));
    site.stop().await;
}

#[tokio::test]
async fn an_operator_changes_a_tenants_limits_and_only_its_own() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let path = format!("/admin/tenants/{}", alice.id);
    let limits = format!("{path}/limits");
    let before = site.get("/auth/whoami", &alice.reader).await.body["limits"].clone();
    assert_eq!((&before["requests_per_minute"], &before["documents"]), (&json!(1000), &json!(1_000_000)));
    let body = json!({"documents": 1, "bytes": 100, "reason": "a trial"});
    let set = site.operate(Method::PATCH, &limits, &body).await;
    assert_eq!(set.status, StatusCode::OK, "{}", set.body);
    assert_eq!(set.body["limits_set"], json!({"documents": 1, "bytes": 100}));
    let told = site.get("/auth/whoami", &alice.reader).await;
    assert_eq!((&told.body["limits"]["documents"], &told.body["limits"]["bytes"]), (&json!(1), &json!(100)));
    assert_eq!(site.get("/auth/whoami", &bob.reader).await.body["limits"], before);

    let first = || {
        let request = site.request(Method::POST, "/documents/text", &alice.writer);
        let request = request.header("Idempotency-Key", "first").json(&json!({"text": "The first."}));
        crate::site::send(request)
    };
    let answered = first().await;
    assert_eq!(answered.status, StatusCode::OK, "{}", answered.body);
    // Sent again, it meets its own answer and not the room that it took.
    assert_eq!(first().await.body, answered.body);
    let refused = text(&site, &alice, "The second.").await;
    is(&refused, 429, "quota-reached");
    assert!(refused.headers.contains_key("retry-after"));
    // Before a body is read at all.
    let unread = site.request(Method::POST, "/documents/text", &alice.writer).body("no JSON");
    is(&crate::site::send(unread).await, 429, "quota-reached");
    is(&site.upload(&alice.writer, "a.txt", b"x").await, 429, "quota-reached");
    is(&site.upload(&alice.writer, "b.txt", &vec![b'x'; 70_000]).await, 413, "too-large");
    assert_eq!(text(&site, &bob, "The first.").await.status, StatusCode::OK);

    let body = json!({"documents": null, "reason": "they pay"});
    let set = site.operate(Method::PATCH, &limits, &body).await;
    assert_eq!(set.body["limits_set"], json!({"bytes": 100}));
    let view = site.operate(Method::GET, &path, &Value::Null).await;
    assert_eq!((&view.body["name"], &view.body["limits"]["documents"]), (&json!("Alice"), &json!(1_000_000)));
    assert_eq!(text(&site, &alice, "The second.").await.status, StatusCode::OK);
    is(&text(&site, &alice, &"x".repeat(80)).await, 429, "quota-reached");
    for (used, limit) in [("documents", 2), ("bytes", 21), ("queued_jobs", 2)] {
        let usage = site.get("/usage", &alice.admin).await;
        assert_eq!(usage.body[used], json!(limit), "{used}: {}", usage.body);
        let seen = site.operate(Method::GET, &format!("{path}/usage"), &Value::Null).await;
        assert_eq!(seen.body[used], json!(limit), "{used}: {}", seen.body);
    }
    is(&site.get("/usage", &alice.writer).await, 403, "missing-role");

    for (body, place) in [
        (json!({"documents": -1, "reason": "a trial"}), "documents"),
        (json!({"requests_per_minute": 0, "reason": "a trial"}), "requests_per_minute"),
        (json!({"gold": 1, "reason": "a trial"}), "no such limit"),
        (json!({"documents": 1}), "reason"),
        (json!({"reason": "a trial"}), "at least one"),
    ] {
        let refused = site.operate(Method::PATCH, &limits, &body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert!(refused.body.to_string().contains(place), "{}", refused.body);
    }
    let nobody = format!("/admin/tenants/{}/limits", uuid::Uuid::from_u128(7));
    let refused = site.operate(Method::PATCH, &nobody, &json!({"documents": 1, "reason": "a trial"})).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    site.stop().await;
}

#[tokio::test]
async fn a_limit_that_another_server_set_holds_here_within_two_seconds() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    assert_eq!(site.get("/auth/verify", &alice.reader).await.headers["ratelimit-limit"], "1000");
    // Past every server but the database.
    sqlx::query("update tenant set limits = '{\"requests_per_minute\": 7}' where tenant_id = $1")
        .bind(alice.id.0)
        .execute(&mut site.harness.deployment.superuser().await)
        .await
        .expect("set");
    let begun = std::time::Instant::now();
    while site.get("/auth/verify", &alice.reader).await.headers["ratelimit-limit"] != "7" {
        assert!(begun.elapsed() < Duration::from_secs(2), "still the old limit");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.stop().await;
}

#[tokio::test]
async fn a_question_beyond_those_that_may_be_asked_at_once_is_refused_or_waits() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let path = format!("/admin/tenants/{}/limits", alice.id);
    let one = json!({"concurrent_queries": 1, "queued_queries": 1, "reason": "a trial"});
    site.operate(Method::PATCH, &path, &one).await;
    let ask = |tenant: &Tenant| {
        let request = site.request(Method::POST, "/query/data", &tenant.reader);
        crate::site::send(request.json(&json!({"query": "Who keeps the light?", "mode": "naive"})))
    };
    // While nothing can be read, one is answered, one waits, and every other is refused: a stream that tells its
    // progress before it begins, too.
    let mut holder = site.harness.deployment.superuser().await;
    let mut held = holder.begin().await.expect("begun");
    sqlx::query("LOCK TABLE namespace IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.expect("held");
    let (one, other, ()) = tokio::join!(ask(&alice), ask(&alice), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let telling = json!({"query": "Who keeps the light?", "mode": "naive", "include_progress": true});
        for refused in [ask(&alice).await, site.post("/query/stream", &alice.reader, &telling).await] {
            is(&refused, 429, "rate-limited");
            assert!(refused.headers.contains_key("retry-after"));
        }
        held.rollback().await.expect("let go");
    });
    assert_eq!(one.status, StatusCode::OK);
    assert!([200, 429].contains(&other.status.as_u16()), "{}", other.body);
    holder.close().await.expect("closed");
    let theirs = futures::future::join_all((0..30).map(|_| ask(&bob))).await;
    assert!(theirs.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(ask(&alice).await.status, StatusCode::OK);
    site.stop().await;
}
