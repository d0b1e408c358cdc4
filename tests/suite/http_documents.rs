//! The document routes over TCP, with two tenants who do the same.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::site::{Answer, Site, Tenant, send};
use bulkhead::domain::limits::Limits;
use bulkhead::http::HttpSettings;
use bulkhead::tenancy::LimitSettings;

async fn insert(site: &Site, tenant: &Tenant, text: &str, name: &str) -> Answer {
    let answer =
        site.post("/documents/text", &tenant.writer, &json!({"text": text, "file_source": name})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer
}

#[tokio::test]
async fn a_text_is_followed_from_its_insert_until_it_is_processed_and_only_by_its_tenant() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    for tenant in [&alice, &bob] {
        insert(&site, tenant, "The harbour opened in 1990.", "harbour.txt").await;
    }
    let answer = insert(&site, &alice, "The mill closed.", "mill.txt").await;
    let track = answer.body["track_id"].as_str().expect("a track").to_owned();
    assert!(
        track.starts_with("insert_20") && track.len() == "insert_YYYYMMDD_HHMMSS_12345678".len(),
        "{track}"
    );
    assert!(answer.body["job_id"].is_string());

    let path = format!("/documents/track_status/{track}");
    let tracked = site.get(&path, &alice.reader).await;
    assert_eq!(
        (&tracked.body["total_count"], &tracked.body["status_summary"]),
        (&json!(1), &json!({"DocStatus.PENDING": 1}))
    );
    let foreign = site.get(&path, &bob.reader).await;
    assert_eq!((foreign.status, &foreign.body["documents"]), (StatusCode::OK, &json!([])));
    assert_eq!(site.get("/documents/pipeline_status", &alice.reader).await.body["docs"], 2);
    assert_eq!(site.get("/documents/pipeline_status", &bob.reader).await.body["docs"], 1);

    assert_eq!(site.process(&alice, "default").await, 2);
    let page = json!({"page": 1, "page_size": 10, "sort_field": "file_path", "sort_direction": "asc"});
    let listed = site.post("/documents/paginated", &alice.reader, &page).await;
    let names: Vec<_> =
        listed.body["documents"].as_array().expect("a list").iter().map(|d| d["file_path"].clone()).collect();
    assert_eq!(names, ["harbour.txt", "mill.txt"]);
    assert_eq!(listed.body["documents"][0]["status"], "processed");
    assert_eq!(listed.body["pagination"]["total_count"], 2);
    assert_eq!(
        site.get("/documents/status_counts", &alice.reader).await.body["status_counts"]["processed"],
        2
    );
    let counts = site.get("/documents/status_counts", &bob.reader).await;
    assert_eq!(
        (&counts.body["status_counts"]["pending"], &counts.body["status_counts"]["all"]),
        (&json!(1), &json!(1))
    );
    site.stop().await;
}

#[tokio::test]
async fn a_taken_name_is_a_conflict_and_a_known_content_ends_as_a_duplicate() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let first = insert(&site, &alice, "The harbour.", "a.txt").await;
    let taken = site
        .post("/documents/text", &alice.writer, &json!({"text": "Another.", "file_source": "a.txt"}))
        .await;
    assert_eq!((taken.status, taken.slug()), (StatusCode::CONFLICT, "conflict"));
    assert!(taken.body["detail"].is_string());
    let again = insert(&site, &alice, "The harbour.", "b.txt").await;
    assert!(again.body["job_id"].is_null());
    let path = format!("/documents/track_status/{}", again.body["track_id"].as_str().expect("a track"));
    let document = &site.get(&path, &alice.reader).await.body["documents"][0];
    assert_eq!(
        (&document["status"], &document["metadata"]["is_duplicate"]),
        (&json!("failed"), &json!(true))
    );
    assert_eq!(document["metadata"]["original_track_id"], first.body["track_id"]);
    // A neighbour's name and content are nobody's business.
    assert!(insert(&site, &bob, "The harbour.", "a.txt").await.body["job_id"].is_string());
    for text in ["One without a name.", "Another without a name."] {
        let answer = site.post("/documents/text", &alice.writer, &json!({"text": text})).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    let texts = json!({"texts": ["x y", "z w"], "file_sources": ["same.txt", "same.txt"]});
    assert_eq!(site.post("/documents/texts", &alice.writer, &texts).await.status, StatusCode::CONFLICT);
    let texts = json!({"texts": ["x y", "z w"], "file_sources": ["x.txt"]});
    let answer = site.post("/documents/texts", &alice.writer, &texts).await;
    assert_eq!((answer.status, answer.body["job_ids"].as_array().map(Vec::len)), (StatusCode::OK, Some(2)));
    site.stop().await;
}

#[tokio::test]
async fn a_file_is_taken_in_by_its_name_and_type_or_refused_with_nothing_written() {
    let limits = HttpSettings { max_upload_bytes: 1000, ..HttpSettings::default() };
    let site = Site::with(limits).await;
    let alice = site.tenant("Alice").await;
    let answer = site.upload(&alice.writer, "notes.md", b"# Harbour\n\nIt opened.").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert!(answer.body["track_id"].as_str().is_some_and(|track| track.starts_with("upload_")));
    let cases: [(&str, &[u8], StatusCode); 6] = [
        ("notes.md", b"other", StatusCode::CONFLICT),
        ("program.exe", b"MZ", StatusCode::BAD_REQUEST),
        ("../escape.txt", b"x", StatusCode::BAD_REQUEST),
        ("..\\\\escape.txt", b"x", StatusCode::BAD_REQUEST),
        ("large.txt", &[b'x'; 1001], StatusCode::PAYLOAD_TOO_LARGE),
        ("empty.txt", b"", StatusCode::UNPROCESSABLE_ENTITY),
    ];
    for (name, bytes, status) in cases {
        let refused = site.upload(&alice.writer, name, bytes).await;
        assert_eq!(refused.status, status, "{name}: {}", refused.body);
    }
    let elsewhere = send(site.upload_request(&alice.writer, "other", "a.txt", b"x")).await;
    assert_eq!(elsewhere.status, StatusCode::UNPROCESSABLE_ENTITY);
    let tenant = send(site.upload_request(&alice.writer, "tenant_id", "a.txt", b"x")).await;
    assert_eq!(tenant.status, StatusCode::UNPROCESSABLE_ENTITY);
    let plain = site.request(Method::POST, "/documents/upload", &alice.writer).body("x");
    assert_eq!(send(plain).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let counts = site.get("/documents/status_counts", &alice.reader).await;
    assert_eq!(counts.body["status_counts"]["all"], 1);
    let types = site.get("/documents/supported_file_types", &alice.reader).await;
    assert!(types.body["supported_extensions"].as_array().is_some_and(|list| list.contains(&json!(".pdf"))));
    site.stop().await;
}

#[tokio::test]
async fn a_put_document_has_versions_and_the_old_one_stays_until_the_new_one_is_done() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let path = "/documents/chapter:1";
    let answer = site
        .put(path, &alice.writer, &json!({"text": "First.", "title": "One", "metadata": {"page": 1}}))
        .await;
    assert_eq!((answer.status, &answer.body["version"]), (StatusCode::ACCEPTED, &json!(1)));
    site.process(&alice, "default").await;
    let document = site.get(path, &alice.reader).await;
    assert_eq!(
        (&document.body["status"], &document.body["metadata"]),
        (&json!("processed"), &json!({"page": 1}))
    );
    let second = site.put(path, &alice.writer, &json!({"text": "Second."})).await;
    assert_eq!((second.status, &second.body["version"]), (StatusCode::ACCEPTED, &json!(2)));
    let document = site.get(path, &alice.reader).await;
    assert_eq!((&document.body["version"], &document.body["live_version"]), (&json!(2), &json!(1)));

    let waiting = site
        .request(Method::PUT, path, &alice.writer)
        .header("Prefer", "wait=10")
        .json(&json!({"text": "Third."}));
    let (answer, ()) = tokio::join!(send(waiting), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        site.process(&alice, "default").await;
    });
    assert_eq!((answer.status, &answer.body["status"]), (StatusCode::OK, &json!("processed")));
    assert_eq!(answer.headers["preference-applied"], "wait=10");
    let fresh = site
        .request(Method::PUT, "/documents/new", &alice.writer)
        .header("Prefer", "wait=10")
        .json(&json!({"text": "N."}));
    let (answer, ()) = tokio::join!(send(fresh), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        site.process(&alice, "default").await;
    });
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);

    assert_eq!(site.delete(path, &alice.writer).await.status, StatusCode::OK);
    assert_eq!(site.get(path, &alice.reader).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.delete(path, &alice.writer).await.status, StatusCode::NOT_FOUND);
    for (path, body, status) in [
        ("/documents/a%20b", json!({"text": "x"}), StatusCode::UNPROCESSABLE_ENTITY),
        ("/documents/text", json!({"text": "x"}), StatusCode::METHOD_NOT_ALLOWED),
        ("/documents/a", json!({"text": "x", "color": "red"}), StatusCode::UNPROCESSABLE_ENTITY),
        (
            "/documents/a",
            json!({"text": "x", "metadata": {"tenant_id": "b"}}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        ("/documents/a", json!({"text": " \n"}), StatusCode::UNPROCESSABLE_ENTITY),
        ("/documents/a", json!({"text": "a\u{0}b"}), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let refused = site.put(path, &alice.writer, &body).await;
        assert_eq!(refused.status, status, "{path} {body}: {}", refused.body);
    }
    site.stop().await;
}

#[tokio::test]
async fn what_is_somebody_elses_is_answered_as_what_is_not_there() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let answer = site.put("/documents/secret", &alice.writer, &json!({"text": "The harbour."})).await;
    let job = answer.body["job_id"].as_str().expect("a job").to_owned();
    let track = answer.body["track_id"].as_str().expect("a track").to_owned();
    let nowhere = uuid::Uuid::from_u128(5);
    let pairs = [
        (Method::GET, "/documents/secret".to_owned(), "/documents/absent".to_owned()),
        (Method::DELETE, "/documents/secret".to_owned(), "/documents/absent".to_owned()),
        (Method::DELETE, format!("/jobs/{job}"), format!("/jobs/{nowhere}")),
        (
            Method::GET,
            format!("/documents/track_status/{track}/events"),
            "/documents/track_status/insert_20200101_000000_12345678/events".to_owned(),
        ),
    ];
    for (method, theirs, nobodys) in pairs {
        let theirs = send(site.request(method.clone(), &theirs, &bob.admin)).await;
        let nobodys = send(site.request(method, &nobodys, &bob.admin)).await;
        assert_eq!((theirs.status, theirs.slug()), (StatusCode::NOT_FOUND, "not-found"));
        assert_eq!(theirs.without_request_id(), nobodys.without_request_id());
        assert_eq!(theirs.bytes.len(), nobodys.bytes.len());
        let names = |answer: &Answer| answer.headers.keys().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(names(&theirs), names(&nobodys));
    }
    let delete = |id: &str| {
        site.request(Method::DELETE, "/documents/delete_document", &bob.writer)
            .json(&json!({"doc_ids": [id]}))
    };
    let (theirs, nobodys) = (send(delete("secret")).await, send(delete("absent")).await);
    assert_eq!((theirs.status, nobodys.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(theirs.body["message"], nobodys.body["message"]);
    assert_eq!(site.get("/documents/secret", &alice.reader).await.status, StatusCode::OK);
    site.stop().await;
}

#[tokio::test]
async fn a_repeated_write_is_answered_as_the_first_and_another_body_is_refused() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let insert = |key: &str, text: &str| {
        let body = json!({"text": text, "file_source": "a.txt"});
        send(site.request(Method::POST, "/documents/text", key).header("Idempotency-Key", "k-1").json(&body))
    };
    let first = insert(&alice.writer, "The harbour.").await;
    let second = insert(&alice.writer, "The harbour.").await;
    assert_eq!((first.status, second.status, &first.body), (StatusCode::OK, StatusCode::OK, &second.body));
    assert!(
        !first.headers.contains_key("idempotency-replayed")
            && second.headers["idempotency-replayed"] == "true"
    );
    let other = insert(&alice.writer, "Another text.").await;
    assert_eq!((other.status, other.slug()), (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused"));
    // The same key of another principal and of another tenant is another key.
    assert_eq!(insert(&alice.admin, "The harbour.").await.status, StatusCode::CONFLICT);
    assert_ne!(insert(&bob.writer, "The harbour.").await.body["track_id"], first.body["track_id"]);
    let counts = site.get("/documents/status_counts", &alice.reader).await;
    assert_eq!(counts.body["status_counts"]["all"], 1);

    // Together: one writes, all are answered by it.
    let put = || {
        let request =
            site.request(Method::PUT, "/documents/together", &alice.writer).header("Idempotency-Key", "k-2");
        send(request.json(&json!({"text": "Once."})))
    };
    let answers = futures::future::join_all((0..8).map(|_| put())).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.body["version"]), (StatusCode::ACCEPTED, &json!(1)));
        assert_eq!(answer.body["job_id"], answers[0].body["job_id"]);
    }
    let upload = || {
        send(site.upload_request(&alice.writer, "file", "u.txt", b"bytes").header("Idempotency-Key", "k-3"))
    };
    let (first, second) = (upload().await, upload().await);
    assert_eq!((second.status, &first.body), (StatusCode::OK, &second.body));

    // A day later the key is new, and so it is when its document is gone.
    site.delete("/documents/together", &alice.writer).await;
    assert_eq!(put().await.headers.get("idempotency-replayed"), None);
    site.harness.clock.advance(Duration::from_hours(25));
    assert_eq!(put().await.body["version"], 2);
    site.stop().await;
}

/// The events of a stream until it ends.
async fn events(response: reqwest::Response) -> Vec<(i64, String, Value)> {
    let mut text = String::new();
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        text.push_str(std::str::from_utf8(&piece.expect("a piece")).expect("text"));
    }
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    text.split("\n\n")
        .filter_map(|event| {
            let data = serde_json::from_str(&field(event, "data")?).expect("JSON");
            Some((field(event, "id")?.parse().expect("a number"), field(event, "event")?, data))
        })
        .collect()
}

#[tokio::test]
async fn a_stream_tells_every_change_in_order_and_ends_when_all_is_done() {
    let site = Site::with(HttpSettings { progress_poll_ms: 50, ..HttpSettings::default() }).await;
    let alice = site.tenant("Alice").await;
    let texts = json!({"texts": ["One.", "Two.", "Three."], "file_sources": ["1.txt", "2.txt", "3.txt"]});
    let track = site.post("/documents/texts", &alice.writer, &texts).await.body["track_id"].clone();
    let path = format!("/documents/track_status/{}/events", track.as_str().expect("a track"));
    let response = site.request(Method::GET, &path, &alice.reader).send().await.expect("a stream");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (told, done) = tokio::join!(events(response), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        site.process(&alice, "default").await
    });
    assert_eq!(done, 3);
    let ids: Vec<i64> = told.iter().map(|(id, ..)| *id).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    let names: Vec<&str> = told.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names.last(), Some(&"done"));
    assert!(names[..names.len() - 1].iter().all(|name| *name == "progress") && names.len() >= 7, "{names:?}");
    let first = &told[0].2;
    for key in ["track_id", "job_id", "document_id", "stage", "done", "total", "rate", "state"] {
        assert!(first.get(key).is_some(), "{key}");
    }
    assert_eq!((&first["track_id"], &first["state"]), (&track, &json!("queued")));

    let last = ids.last().expect("an id").to_string();
    let resumed = site.request(Method::GET, &path, &alice.reader).header("Last-Event-ID", last).send().await;
    let resumed = events(resumed.expect("a stream")).await;
    assert_eq!(resumed.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), ["done"]);
    let missed = site.request(Method::GET, &path, &alice.reader).header("Last-Event-ID", "2").send().await;
    assert_eq!(events(missed.expect("a stream")).await.len(), 4);
    site.stop().await;
}

#[tokio::test]
async fn a_revoked_key_ends_its_running_stream_within_two_seconds() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let track = insert(&site, &alice, "Never processed.", "a.txt").await.body["track_id"].clone();
    let path = format!("/documents/track_status/{}/events", track.as_str().expect("a track"));
    let response = site.request(Method::GET, &path, &alice.reader).send().await.expect("a stream");
    let key_id = alice.reader.split('_').nth(1).expect("an id");
    let keys = format!("/admin/tenants/{}/keys/{key_id}", alice.id);
    let begun = std::time::Instant::now();
    let revoked = site.operate(Method::DELETE, &keys, &json!({"reason": "a test"})).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let told = events(response).await;
    assert_eq!(told.last().map(|(_, name, _)| name.as_str()), Some("auth_expired"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(site.get("/auth/verify", &alice.reader).await.status, StatusCode::UNAUTHORIZED);
    site.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_before_the_body_is_read() {
    let tenant = Limits { queued_jobs: 2, ..Limits::default() };
    let quotas = LimitSettings { tenant, ..LimitSettings::default() };
    let site = Site::limited(HttpSettings::default(), quotas).await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    for name in ["1.txt", "2.txt"] {
        insert(&site, &alice, &format!("Text {name}."), name).await;
    }
    let broken = site
        .request(Method::POST, "/documents/text", &alice.writer)
        .header("Content-Type", "application/json")
        .body("{");
    let refused = send(broken).await;
    assert_eq!((refused.status, refused.slug()), (StatusCode::TOO_MANY_REQUESTS, "rate-limited"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(site.upload(&alice.writer, "3.txt", b"x").await.status, StatusCode::TOO_MANY_REQUESTS);
    insert(&site, &bob, "Bob's own.", "1.txt").await;
    site.process(&alice, "default").await;
    insert(&site, &alice, "Room again.", "3.txt").await;
    let three = json!({"texts": ["a b", "c d", "e f"]});
    assert_eq!(
        site.post("/documents/texts", &bob.writer, &three).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(site.get("/documents/status_counts", &bob.reader).await.body["status_counts"]["all"], 1);
    site.stop().await;
}

#[tokio::test]
async fn what_waits_can_be_cancelled_and_what_failed_can_be_tried_again() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let job = insert(&site, &alice, "One.", "1.txt").await.body["job_id"].as_str().expect("a job").to_owned();
    insert(&site, &alice, "Two.", "2.txt").await;
    insert(&site, &bob, "Bob's.", "1.txt").await;
    let cancelled = site.delete(&format!("/jobs/{job}"), &alice.writer).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (StatusCode::OK, &json!("cancelled")));
    assert_eq!(site.delete(&format!("/jobs/{job}"), &alice.writer).await.status, StatusCode::CONFLICT);
    let all = site.post("/documents/cancel_pipeline", &alice.writer, &json!({})).await;
    assert_eq!(all.body["status"], "cancellation_requested");
    assert_eq!(
        site.post("/documents/cancel_pipeline", &alice.writer, &json!({})).await.body["status"],
        "not_busy"
    );
    assert_eq!(site.get("/documents/status_counts", &alice.reader).await.body["status_counts"]["failed"], 2);
    assert_eq!(site.get("/documents/pipeline_status", &bob.reader).await.body["busy"], true);
    let again = site.post("/documents/reprocess_failed", &alice.writer, &json!({})).await;
    assert_eq!(
        (&again.body["status"], &again.body["track_id"]),
        (&json!("reprocessing_started"), &json!(""))
    );
    assert_eq!(site.process(&alice, "default").await, 2);
    assert_eq!(
        site.get("/documents/status_counts", &alice.reader).await.body["status_counts"]["processed"],
        2
    );
    assert_eq!(site.delete("/documents", &alice.writer).await.body["status"], "success");
    assert_eq!(site.get("/documents/status_counts", &alice.reader).await.body["status_counts"]["all"], 0);
    assert_eq!(site.get("/documents/status_counts", &bob.reader).await.body["status_counts"]["all"], 1);
    site.stop().await;
}

#[tokio::test]
async fn a_namespace_is_named_by_a_header_and_lives_inside_its_tenant() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let insert = |key: &str, name: &str, value: &str| {
        send(
            site.request(Method::POST, "/documents/text", key)
                .header(name.to_owned(), value.to_owned())
                .json(&json!({"text": "Harbour."})),
        )
    };
    assert_eq!(insert(&alice.writer, "LIGHTRAG-WORKSPACE", "ports").await.status, StatusCode::OK);
    assert_eq!(insert(&alice.writer, "X-Namespace", "a_b").await.status, StatusCode::OK);
    for value in ["-x", "A", "a/b", "", "a b"] {
        let refused = insert(&alice.writer, "X-Namespace", value).await;
        assert_eq!(
            (refused.status, refused.slug()),
            (StatusCode::BAD_REQUEST, "namespace-malformed"),
            "{value}"
        );
    }
    let both = |a: &str, b: &str| {
        let request = site.request(Method::GET, "/documents/status_counts", &alice.reader);
        send(request.header("LIGHTRAG-WORKSPACE", a.to_owned()).header("X-Namespace", b.to_owned()))
    };
    assert_eq!(both("ports", "ports").await.body["status_counts"]["all"], 1);
    assert_eq!(both("ports", "a_b").await.status, StatusCode::BAD_REQUEST);
    let listed = site.get("/namespaces", &alice.reader).await;
    let names: Vec<&str> = listed.body["namespaces"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|n| n["name"].as_str())
        .collect();
    assert_eq!(names, ["default", "a_b", "ports"]);
    assert_eq!(
        site.get("/namespaces", &bob.reader).await.body["namespaces"].as_array().map(Vec::len),
        Some(1)
    );
    let read = |key: &str| {
        send(site.request(Method::GET, "/documents/status_counts", key).header("X-Namespace", "ports"))
    };
    assert_eq!(read(&bob.reader).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.delete("/namespaces/ports", &alice.writer).await.slug(), "missing-role");
    assert_eq!(site.delete("/namespaces/ports", &bob.admin).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.delete("/namespaces/ports", &alice.admin).await.status, StatusCode::NO_CONTENT);
    assert_eq!(read(&alice.reader).await.status, StatusCode::NOT_FOUND);
    site.stop().await;
}
