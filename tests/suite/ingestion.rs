//! The way of a document through the API: versions, repeated and cancelled writes, progress, files, bad input,
//! and an index that is lost.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{
    Answer, Client, PATIENCE, Tenant, TestServer, new_folder, random_id, received, server, text,
};

/// A text of so many sentences, none like another.
fn long(sentences: usize) -> String {
    let sentence =
        |n: usize| format!("Entry {n} of the log says that buoy {} was passed at hour {n}. ", n * 7);
    (0..sentences).map(sentence).collect::<Vec<_>>().concat()
}

async fn put(writer: &Client, id: &str, text: &str) -> Value {
    writer.put(&format!("/documents/{id}"), &json!({"text": text}), 202).await
}

/// The texts of all chunks that are found for a question.
pub async fn found(reader: &Client, question: &str) -> Vec<String> {
    let body = json!({"query": question, "mode": "naive", "chunk_top_k": 200, "max_total_tokens": 1_000_000});
    let found = reader.post("/query/data", &body, 200).await;
    found["data"]["chunks"].as_array().expect("chunks").iter().map(|chunk| text(chunk, "content")).collect()
}

async fn until_running(reader: &Client, put: &Value) {
    let path = format!("/documents/track_status/{}", text(put, "track_id"));
    let until = Instant::now() + PATIENCE;
    loop {
        let status = reader.get(&path, 200).await;
        match status["documents"][0]["status"].as_str() {
            Some("pending") => assert!(Instant::now() < until, "never begun"),
            Some("processed" | "failed") => panic!("too fast for this test: {status}"),
            _ => return,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_old_version_answers_until_the_new_one_does_and_never_both() {
    let tenant = server().tenant("versions").await;
    let made =
        tenant.writer.put_document("price", "The price", "A ticket to the island costs four crowns.").await;
    assert_eq!(made["version"], 1);
    let changed = put(&tenant.writer, "price", "A ticket to the island costs nine crowns.").await;
    assert_eq!((&changed["version"], &changed["status"]), (&json!(2), &json!("pending")));
    let until = Instant::now() + PATIENCE;
    loop {
        let texts = found(&tenant.reader, "What does a ticket to the island cost?").await;
        assert_eq!(texts.len(), 1, "{texts:?}");
        if texts[0].contains("nine") {
            break;
        }
        assert!(texts[0].contains("four") && Instant::now() < until, "{texts:?}");
    }
    let document = tenant.reader.get("/documents/price", 200).await;
    assert_eq!((&document["version"], &document["live_version"]), (&json!(2), &json!(2)));
}

#[tokio::test]
async fn a_new_version_that_fails_leaves_the_old_one_and_can_be_tried_again() {
    let tenant = server().tenant("versions").await;
    tenant.writer.put_document("log", "The log", "The first entry is about a whale.").await;
    let changed = put(&tenant.writer, "log", &long(2000)).await;
    let job = format!("/jobs/{}", text(&changed, "job_id"));
    assert_eq!(tenant.writer.delete(&job, &Value::Null, 200).await["status"], "cancelled");
    tenant.writer.delete(&job, &Value::Null, 409).await;
    tenant.writer.delete(&format!("/jobs/{}", random_id()), &Value::Null, 404).await;
    let ended = tenant.reader.wait_ended(&text(&changed, "track_id")).await;
    let document = &ended["documents"][0];
    assert_eq!((&document["status"], &document["error_msg"]), (&json!("failed"), &json!("cancelled")));
    assert_eq!((&document["version"], &document["live_version"]), (&json!(2), &json!(1)));
    assert_eq!(found(&tenant.reader, "What is the first entry about?").await.len(), 1);
    let again = put(&tenant.writer, "log", "The first entry is about a seal.").await;
    tenant.writer.wait_processed(&text(&again, "track_id")).await;
    assert!(found(&tenant.reader, "What is the first entry about?").await[0].contains("seal"));
}

#[tokio::test]
async fn a_repeated_write_is_done_once_and_another_one_under_its_key_is_refused() {
    let tenant = server().tenant("keys").await;
    let writer = tenant.writer.with("idempotency-key", "once");
    let body = json!({"text": "The bell rings twice.", "file_source": "bell.txt"});
    let first = writer.send("POST", "/documents/text", &body).await;
    let second = writer.send("POST", "/documents/text", &body).await;
    assert_eq!((first.status, second.status, first.json()), (200, 200, second.json()));
    assert!(!first.headers.contains_key("idempotency-replayed"));
    assert_eq!(second.headers["idempotency-replayed"], "true");
    let other = writer.post("/documents/text", &json!({"text": "It rings thrice."}), 422).await;
    assert_eq!(other["slug"], "idempotency-key-reused");
    // The key belongs to the operation too.
    let put = writer.put("/documents/bell", &json!({"text": "The bell rings twice."}), 202).await;
    assert_eq!(writer.put("/documents/bell", &json!({"text": "The bell rings twice."}), 202).await, put);
    let same = writer.with("x-namespace", "elsewhere").post("/documents/text", &body, 200).await;
    assert_ne!(same["track_id"], first.json()["track_id"]);
    writer.wait_processed(&text(&first.json(), "track_id")).await;
    let counts = tenant.reader.get("/documents/status_counts", 200).await;
    assert_eq!(counts["status_counts"]["all"], 2);
}

#[tokio::test]
async fn a_deletion_and_a_new_version_win_over_a_job_that_runs() {
    let tenant = server().tenant("races").await;
    let running = put(&tenant.writer, "log", &long(4000)).await;
    until_running(&tenant.reader, &running).await;
    tenant.writer.delete("/documents/log", &Value::Null, 200).await;
    tenant.reader.get("/documents/log", 404).await;
    assert!(found(&tenant.reader, "Which buoy was passed?").await.is_empty());

    let running = put(&tenant.writer, "other", &long(4000)).await;
    until_running(&tenant.reader, &running).await;
    let newer = tenant.writer.put_document("other", "Other", "The log is closed.").await;
    assert_eq!(newer["version"], 2);
    let until = Instant::now() + PATIENCE;
    while tenant.reader.get("/documents/pipeline_status", 200).await["busy"] == true {
        assert!(Instant::now() < until, "still busy");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tenant.reader.get("/documents/log", 404).await;
    let texts = found(&tenant.reader, "Which buoy was passed?").await;
    assert!(texts.len() == 1 && texts[0].contains("closed"), "{texts:?}");
    tenant.writer.delete("/documents/other", &Value::Null, 200).await;
    tenant.writer.delete("/documents/other", &Value::Null, 404).await;
}

/// The events of a stream: id, name, data.
fn events(answer: &Answer) -> Vec<(i64, String, Value)> {
    let text = answer.text();
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        let data = serde_json::from_str(field("data: ")).expect("JSON");
        (field("id: ").parse().expect("a number"), field("event: ").to_owned(), data)
    };
    text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':')).map(event).collect()
}

#[tokio::test]
async fn progress_is_streamed_to_its_end_and_goes_on_where_it_was_broken() {
    let tenant = server().tenant("progress").await;
    let inserted = put(&tenant.writer, "log", &long(600)).await;
    let track = text(&inserted, "track_id");
    let path = format!("/documents/track_status/{track}/events");
    let answer = received(tenant.reader.request("GET", &path)).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let all = events(&answer);
    let (last, progress) = all.split_last().expect("events");
    assert_eq!(last.1, "done", "{all:?}");
    assert!(progress.iter().all(|(_, name, _)| name == "progress") && !progress.is_empty(), "{all:?}");
    assert!(all.is_sorted_by_key(|(id, ..)| *id), "{all:?}");
    for (_, _, data) in progress {
        assert_eq!(
            (&data["track_id"], &data["job_id"], &data["document_id"]),
            (&json!(track), &inserted["job_id"], &json!("log"))
        );
        assert!(data["done"].as_i64() <= data["total"].as_i64() && data["rate"].is_number(), "{data}");
        assert!(data["stage"].is_string() && data["state"].is_string(), "{data}");
    }
    let seen_all = tenant.reader.with("last-event-id", &last.0.to_string()).request("GET", &path);
    let rest = events(&received(seen_all).await);
    assert_eq!(rest.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), ["done"]);
    let seen_some = tenant.reader.with("last-event-id", "1").request("GET", &path);
    let rest = events(&received(seen_some).await);
    assert_eq!(rest.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), ["progress", "done"]);
    assert!(rest[0].0 > 1);
}

#[tokio::test]
async fn a_stream_ends_when_its_callers_key_is_revoked() {
    let tenant = server().tenant("revoked").await;
    let running = put(&tenant.writer, "log", &long(4000)).await;
    let path = format!("/documents/track_status/{}/events", text(&running, "track_id"));
    let stream = tokio::spawn(received(tenant.admin.request("GET", &path)));
    until_running(&tenant.reader, &running).await;
    let key = format!("/admin/tenants/{}/keys/{}", tenant.id, tenant.admin_key.id);
    server().operator().delete(&key, &json!({"reason": "a test"}), 204).await;
    let revoked = Instant::now();
    let answer = stream.await.expect("the stream ends");
    assert!(revoked.elapsed() < Duration::from_secs(2), "it went on for {:?}", revoked.elapsed());
    assert_eq!(events(&answer).last().expect("events").1, "auth_expired");
    tenant.writer.delete("/documents/log", &Value::Null, 200).await;
}

#[tokio::test]
async fn a_content_that_is_there_ends_as_a_duplicate_and_a_name_that_is_there_is_409() {
    let tenant = server().tenant("duplicates").await;
    let writer = &tenant.writer;
    let insert = async |name: &str| {
        let body = json!({"text": "The lock is opened at dawn.", "file_source": name});
        let inserted = writer.post("/documents/text", &body, 200).await;
        writer.wait_ended(&text(&inserted, "track_id")).await["documents"][0].clone()
    };
    let first = insert("lock.txt").await;
    let second = insert("sluice.txt").await;
    assert_eq!((&first["status"], &second["status"]), (&json!("processed"), &json!("failed")));
    assert_eq!(
        (&second["metadata"]["is_duplicate"], &second["metadata"]["original_doc_id"]),
        (&json!(true), &first["id"])
    );
    assert_eq!(second["metadata"]["original_track_id"], first["track_id"]);
    writer.post("/documents/text", &json!({"text": "Other.", "file_source": "lock.txt"}), 409).await;
    assert_eq!(writer.upload("lock.txt", b"Other.").await.status, 409);
    // Where the caller chooses the id, equal names and contents are documents of their own.
    for id in ["a", "b"] {
        let body =
            json!({"text": "The lock is opened at dawn.", "file_name": "lock.txt", "title": "The lock"});
        let put = received(
            writer.request("PUT", &format!("/documents/{id}")).header("prefer", "wait=60").json(&body),
        );
        assert_eq!(put.await.status, 201);
    }
    assert_eq!(found(&tenant.reader, "When is the lock opened?").await.len(), 3);
}

/// A request that must be refused: method, path, content type, body, status.
type Bad = (&'static str, &'static str, &'static str, Vec<u8>, u16);

fn bad_input() -> Vec<Bad> {
    const JSON: &str = "application/json";
    const FORM: &str = "multipart/form-data; boundary=b";
    let part = |head: &str, content: &[u8]| {
        [
            format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes(),
            content,
            b"\r\n--b--\r\n",
        ]
        .concat()
    };
    let json = |value: Value| value.to_string().into_bytes();
    let text = "/documents/text";
    let huge = "x".repeat(9 * 1024 * 1024);
    vec![
        ("POST", text, JSON, Vec::new(), 422),
        ("POST", text, JSON, b"{".to_vec(), 422),
        ("POST", text, JSON, b"[]".to_vec(), 422),
        ("POST", text, JSON, b"{\"text\": \"\xff\xfe\"}".to_vec(), 422),
        ("POST", text, JSON, json(json!({})), 422),
        ("POST", text, JSON, json(json!({"text": ""})), 422),
        ("POST", text, JSON, json(json!({"text": " \n\t "})), 422),
        ("POST", text, JSON, json(json!({"text": 7})), 422),
        ("POST", text, JSON, json(json!({"text": null})), 422),
        ("POST", text, JSON, json(json!({"text": "a\0b"})), 422),
        ("POST", text, JSON, json(json!({"text": "a", "tenant_id": "b"})), 422),
        ("POST", text, JSON, json(json!({"text": "a", "file_source": "x\ny"})), 422),
        ("POST", text, JSON, json(json!({"text": huge})), 413),
        ("POST", text, JSON, json(json!({"text": "x".repeat(17 * 1024 * 1024)})), 413),
        ("POST", text, "text/plain", b"hello".to_vec(), 415),
        ("POST", text, "", json(json!({"text": "hello"})), 415),
        ("PUT", text, JSON, json(json!({"text": "hello"})), 405),
        ("GET", text, "", Vec::new(), 405),
        ("POST", "/documents/texts", JSON, json(json!({"texts": []})), 422),
        ("POST", "/documents/texts", JSON, json(json!({"texts": ["one", ""]})), 422),
        ("POST", "/documents/texts", JSON, json(json!({"texts": "one"})), 422),
        ("POST", "/documents/texts", JSON, json(json!({"texts": ["one"], "file_sources": ["a", "b"]})), 422),
        (
            "POST",
            "/documents/texts",
            JSON,
            json(json!({"texts": ["one", "two"], "file_sources": ["a", "a"]})),
            409,
        ),
        ("POST", "/documents/texts", JSON, json(json!({"texts": vec!["t"; 1001]})), 422),
        ("POST", "/documents/upload", JSON, b"{}".to_vec(), 415),
        ("POST", "/documents/upload", FORM, part("name=\"other\"", b"x"), 422),
        ("POST", "/documents/upload", FORM, part("name=\"file\"; filename=\"a.exe\"", b"x"), 400),
        ("POST", "/documents/upload", FORM, part("name=\"file\"; filename=\"../a.txt\"", b"x"), 400),
        ("POST", "/documents/upload", FORM, part("name=\"file\"; filename=\"\"", b"x"), 400),
        ("POST", "/documents/upload", FORM, part("name=\"file\"; filename=\"a.txt\"", b""), 422),
        ("POST", "/documents/upload", FORM, b"--b\r\nbroken".to_vec(), 400),
        ("PUT", "/documents/a%2Fb", JSON, json(json!({"text": "a"})), 422),
        ("PUT", "/documents/upload", JSON, json(json!({"text": "a"})), 405),
        ("PUT", "/documents/a", JSON, json(json!({"text": "a", "unknown": 1})), 422),
        ("PUT", "/documents/a", JSON, json(json!({"text": "a", "metadata": {"tenant_id": "b"}})), 422),
        ("PUT", "/documents/a", JSON, json(json!({"text": "a", "metadata": []})), 422),
        ("PUT", "/documents/a", JSON, json(json!({"title": "a"})), 422),
        ("POST", "/documents/paginated", JSON, json(json!({"page": 0})), 422),
        ("POST", "/documents/paginated", JSON, json(json!({"page_size": 5})), 422),
        ("POST", "/documents/paginated", JSON, json(json!({"page_size": 201})), 422),
        ("POST", "/documents/paginated", JSON, json(json!({"sort_field": "secret"})), 422),
        ("POST", "/documents/paginated", JSON, json(json!({"status_filter": "nope"})), 422),
        ("DELETE", "/documents/delete_document", JSON, json(json!({"doc_ids": []})), 422),
        ("POST", "/query", JSON, json(json!({"query": "ab"})), 422),
        ("POST", "/query", JSON, json(json!({"query": "what?", "mode": "nope"})), 422),
        ("POST", "/query", JSON, json(json!({"query": "what?", "top_k": 0})), 422),
        ("POST", "/query", JSON, json(json!({"query": "what?", "tenant": "b"})), 422),
        ("POST", "/query/data", JSON, json(json!({"query": "ab"})), 400),
        ("POST", "/query/stream", JSON, b"nonsense".to_vec(), 422),
        ("GET", "/graphs", "", Vec::new(), 422),
        ("GET", "/graphs?label=x&max_depth=0", "", Vec::new(), 422),
        ("GET", "/graph/label/popular?limit=0", "", Vec::new(), 422),
        ("GET", "/graph/label/search?q=%00", "", Vec::new(), 422),
        ("POST", "/v1/chat/completions", JSON, json(json!({"model": "default", "messages": []})), 400),
        (
            "POST",
            "/v1/chat/completions",
            JSON,
            json(json!({"model": "none", "messages": [{"role": "user", "content": "why?"}]})),
            404,
        ),
        ("POST", "/api/chat", JSON, json(json!({"model": "default", "messages": []})), 400),
        ("POST", "/api/generate", JSON, json(json!({"model": "default"})), 422),
        ("GET", "/no/such", "", Vec::new(), 404),
        ("PATCH", "/query", JSON, b"{}".to_vec(), 405),
    ]
}

#[tokio::test]
async fn bad_input_gets_the_right_4xx_in_words_and_nothing_is_half_written() {
    let tenant = server().tenant("bad").await;
    let mut wrong = Vec::new();
    for (method, path, kind, body, status) in bad_input() {
        let mut request = tenant.admin.request(method, path);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let shown = format!("{method} {path} {}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        let answer = received(request.body(body)).await;
        if answer.status != status {
            wrong.push(format!("{shown}: {} and not {status}: {}", answer.status, answer.text()));
            continue;
        }
        let problem = answer.json();
        let person =
            if problem["detail"].is_array() { &problem["detail"][0]["msg"] } else { &problem["detail"] };
        let words = person.as_str().unwrap_or_default().split_whitespace().count();
        if words < 2 || problem["request_id"] != answer.headers["x-request-id"].to_str().expect("an id") {
            wrong.push(format!("{shown}: {problem}"));
        }
    }
    for (name, value, status) in
        [("x-namespace", "../up", 400), ("x-namespace", "UPPER", 400), ("idempotency-key", "", 400)]
    {
        let body = json!({"text": "a text"});
        let answer = tenant.writer.with(name, value).send("POST", "/documents/text", &body).await;
        if answer.status != status {
            wrong.push(format!("{name}: {value}: {}", answer.text()));
        }
    }
    let two = tenant.writer.with("x-namespace", "one").with("lightrag-workspace", "two");
    two.post("/documents/text", &json!({"text": "a text"}), 400).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed = tenant.reader.post("/documents/paginated", &json!({}), 200).await;
    assert_eq!(listed["pagination"]["total_count"], 0, "{listed}");
    let spaces = tenant.reader.get("/namespaces", 200).await;
    assert!(
        spaces["namespaces"].as_array().expect("a list").iter().all(|space| space["documents"] == 0),
        "{spaces}"
    );
    let uploads = server().data_dir.join("uploads").join(&tenant.id);
    assert!(files(&uploads).is_empty(), "{:?}", files(&uploads));
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn ask(server: &TestServer, tenant: &Tenant) -> (Vec<String>, Value) {
    let reader = server.caller(&tenant.admin_key.secret);
    let body = json!({"query": "Who paints the boats?", "mode": "naive"});
    let answer = reader.post("/query/data", &body, 200).await;
    let chunks = answer["data"]["chunks"].as_array().expect("chunks");
    (chunks.iter().map(|chunk| text(chunk, "content")).collect(), answer["metadata"]["fallback"].clone())
}

#[tokio::test]
async fn a_lost_or_damaged_shard_is_answered_for_by_the_database_and_rebuilt() {
    let base = new_folder("lost");
    let mut server = tokio::task::spawn_blocking({
        let base = base.clone();
        move || TestServer::start(&base, "")
    })
    .await
    .expect("a server");
    let tenant = server.tenant("boats").await;
    for (id, who) in [("a", "Ottoline"), ("b", "Barnaby")] {
        tenant.writer.put_document(id, "Boats", &format!("{who} paints the boats in spring.")).await;
    }
    let (chunks, _) = ask(&server, &tenant).await;
    assert_eq!(chunks.len(), 2);
    for damage in ["lost", "damaged"] {
        let folder = server.data_dir.join("shards").join(&tenant.id);
        let until = Instant::now() + PATIENCE;
        while ask(&server, &tenant).await.1 != Value::Null {
            assert!(Instant::now() < until, "the index never answers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server = tokio::task::spawn_blocking({
            let base = base.clone();
            move || {
                server.stop();
                let shards = files(&folder);
                assert!(!shards.is_empty(), "no shard in {}", folder.display());
                if damage == "lost" {
                    std::fs::remove_dir_all(&folder).expect("removed");
                } else {
                    let content = shards
                        .iter()
                        .filter(|file| file.file_name().is_some_and(|name| name != "watermark.json"));
                    content.for_each(|file| std::fs::write(file, b"damaged").expect("damaged"));
                }
                TestServer::start(&base, "")
            }
        })
        .await
        .expect("a server");
        let (mut again, fallback) = ask(&server, &tenant).await;
        let mut before = chunks.clone();
        again.sort();
        before.sort();
        assert_eq!((again, fallback), (before, json!("pgvector")), "{damage}");
    }
    let until = Instant::now() + PATIENCE;
    while ask(&server, &tenant).await.1 != Value::Null {
        assert!(Instant::now() < until, "the index is never rebuilt");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}
