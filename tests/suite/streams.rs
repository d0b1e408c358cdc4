//! What is sent as it comes to be: a line for each step of a question when it begins, the words of an answer as
//! they are written, signs of life while nothing happens.

use std::time::{Duration, Instant};

use bulkhead::http::HttpSettings;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::language_model::Stub;
use crate::server::PATIENCE;
use crate::site::Site;

/// Reads a stream until a text has come, and returns everything so far. Fails at its end.
async fn until(response: &mut Response, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let piece = tokio::time::timeout(PATIENCE, response.chunk()).await;
        let piece = piece.unwrap_or_else(|_| panic!("no {text} after {all}")).expect("a stream");
        all += std::str::from_utf8(&piece.unwrap_or_else(|| panic!("it ended without {text}: {all}")))
            .expect("text");
    }
    all
}

#[cfg(feature = "laboratory")]
#[tokio::test]
async fn each_step_of_a_question_is_told_when_it_begins() {
    // Of its own, since its database is held up.
    let start = || crate::server::TestServer::start(&crate::server::new_folder("steps"), "");
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let alice = server.tenant("alice").await;
    alice.writer.put_document("turbine", "Turbine", "The Halden turbine was inspected by Mara Quill.").await;
    let mut body = json!({"query": "Who inspected the turbine?", "mode": "naive", "include_progress": true});
    let ask = async |body: &Value| {
        let request = alice.reader.request("POST", "/query/stream").json(body);
        request.send().await.expect("an answer")
    };

    // While somebody holds the texts, the question comes as far as reading them and no further.
    let superuser = server.laboratory.superuser.clone().expect("a private database");
    let mut holder = sqlx::PgConnection::connect_with(&superuser).await.expect("connected");
    let mut held = holder.begin().await.expect("begun");
    sqlx::query("LOCK TABLE chunk IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.expect("held");
    let mut response = ask(&body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let before = until(&mut response, "retrieving_chunks").await;
    assert!(before.starts_with("{\"progress\":\"extracting_keywords\"}\n"), "{before}");
    let more = tokio::time::timeout(Duration::from_millis(300), response.chunk()).await;
    assert!(more.is_err(), "something came although nothing could be read: {more:?}");
    held.rollback().await.expect("let go");
    let after = until(&mut response, "response_time").await;
    let keys: Vec<&str> = after.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert_eq!(keys, ["progress", "references", "response", "response_time"], "{after}");
    assert!(after.contains("generating_response") && after.contains("Mara Quill"), "{after}");

    // What cannot be answered has a status that says so, before the first byte.
    body["mode"] = json!("mix");
    let request = alice.reader.with("x-namespace", "nowhere").request("POST", "/query/stream");
    assert_eq!(request.json(&body).send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
    body["mode"] = json!("bypass");
    assert_eq!(ask(&body).await.status(), StatusCode::NOT_IMPLEMENTED);
    holder.close().await.expect("closed");
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

#[tokio::test]
async fn the_words_of_an_answer_are_sent_as_they_are_written() {
    let pause = Duration::from_millis(100);
    let stub = Stub::start(pause).await;
    let server = stub.server().await;
    let tenant = server.tenant().await;
    server
        .insert(&tenant, "default", &[("lamp.txt", "The lamp of the Osterkai was lit by Maren Voss.")])
        .await;
    let body = json!({"query": "Who lit the lamp of the Osterkai?", "include_progress": true});
    let request = server.request(Method::POST, "/query/stream", &tenant.key).json(&body);
    let mut response = request.send().await.expect("an answer");
    let first = until(&mut response, "\"response\"").await;
    let begun = Instant::now();
    assert!(!first.contains("response_time"), "{first}");
    let rest = until(&mut response, "response_time").await;
    let pieces = rest.lines().filter(|line| line.starts_with("{\"response\"")).count();
    assert!(pieces >= 5, "{rest}");
    // Each piece was made a pause after the one before it; sent together, they would be here at once.
    let least = pause * u32::try_from(pieces / 2).expect("few");
    assert!(begun.elapsed() >= least, "{pieces} pieces in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stream_of_events_says_that_it_lives_while_nothing_happens() {
    let site = Site::with(HttpSettings { heartbeat_seconds: 1, ..HttpSettings::default() }).await;
    let alice = site.tenant("Alice").await;
    let text = json!({"text": "Nobody has read this yet.", "file_source": "a.txt"});
    let track = site.post("/documents/text", &alice.writer, &text).await.body["track_id"].clone();
    let path = format!("/documents/track_status/{}/events", track.as_str().expect("a track"));
    let mut response = site.request(Method::GET, &path, &alice.reader).send().await.expect("a stream");
    let silent = until(&mut response, ": alive\n\n").await;
    assert_eq!(silent.matches("event: ").count(), 1, "{silent}");
    until(&mut response, ": alive\n\n").await;
    assert_eq!(site.process(&alice, "default").await, 1);
    until(&mut response, "event: done").await;
    site.stop().await;
}
