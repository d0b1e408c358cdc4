//! Questions over HTTP, asked by two tenants of the same things.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::language_model::Stub;
use crate::running::{Neighbours, QUESTION, Running, assert_own, send};

const MODES: [&str; 5] = ["naive", "local", "global", "hybrid", "mix"];

#[tokio::test]
async fn every_answer_is_made_of_the_askers_own_documents() {
    let both = Neighbours::new().await;
    for (tenant, own, foreign) in both.sides() {
        for mode in MODES {
            for path in ["/query", "/query/data", "/query/stream"] {
                let body = json!({"query": QUESTION, "mode": mode, "include_chunk_content": true});
                let answer = both.server.post(path, &tenant.key, &body).await;
                assert_eq!(answer.status, StatusCode::OK, "{path} {mode}: {}", answer.text);
                assert!(answer.text.contains(own[0]), "{path} {mode}: {}", answer.text);
                assert_own(&answer, tenant, foreign);
            }
        }
    }
}

#[tokio::test]
async fn a_quoted_answer_names_what_its_marks_stand_for() {
    let both = Neighbours::new().await;
    let answer = both.server.post("/query", &both.alice.key, &json!({"query": QUESTION})).await.body;
    assert_eq!(answer["llm_generated"], false);
    let response = answer["response"].as_str().expect("words");
    assert!(response.contains("Mara Quill") && response.contains("[1]"), "{response}");
    assert_eq!(answer["references"][0]["file_path"], "turbine.txt");
    assert!(answer["references"][0]["content"].is_null());
    assert_eq!(answer["references"][0]["tenant_id"], both.alice.id.as_str());
    assert!(answer["response_time"].is_f64() && answer["metadata"]["corpus_seq"].as_i64() >= Some(1));
    let wishes = json!({"query": QUESTION, "include_references": false});
    let answer = both.server.post("/query", &both.alice.key, &wishes).await.body;
    assert!(answer["references"].is_null());
}

#[tokio::test]
async fn the_material_says_where_each_part_of_it_is_from() {
    let both = Neighbours::new().await;
    let body = json!({"query": QUESTION, "mode": "mix", "chunk_top_k": 1, "top_k": 5, "ll_keywords": ["Mara Quill"]});
    let answer = both.server.post("/query/data", &both.alice.key, &body).await.body;
    let chunks = answer["data"]["chunks"].as_array().expect("chunks");
    assert_eq!(chunks.len(), 1);
    assert_eq!((&chunks[0]["rank"], &chunks[0]["document_version"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&chunks[0]["namespace"], &chunks[0]["file_path"]),
        (&json!("default"), &json!("turbine.txt"))
    );
    assert_eq!(chunks[0]["reference_id"], answer["data"]["references"][0]["reference_id"]);
    let entities = answer["data"]["entities"].as_array().expect("entities");
    assert!(
        entities.len() <= 5 && entities.iter().any(|entity| entity["entity_name"] == "Mara Quill"),
        "{answer}"
    );
    assert!(
        entities.iter().all(|entity| entity["document_ids"].as_array().is_some_and(|ids| !ids.is_empty()))
    );
    let metadata = &answer["metadata"];
    assert_eq!(
        (&metadata["query_mode"], &metadata["keywords"]["low_level"]),
        (&json!("mix"), &json!(["Mara Quill"]))
    );
    for key in ["corpus_seq", "graph_seq", "fallback", "degraded"] {
        assert!(metadata.get(key).is_some(), "{key}");
    }
    let words = json!({"query": QUESTION, "mode": "naive", "lexical": false});
    let dense = both.server.post("/query/data", &both.alice.key, &words).await;
    assert_eq!(dense.status, StatusCode::OK);
}

#[tokio::test]
async fn an_unknown_namespace_is_not_there_and_the_default_one_is_empty() {
    let server = Running::shared().await;
    let tenant = server.tenant().await;
    for path in ["/query", "/query/data", "/query/stream"] {
        let body = json!({"query": QUESTION});
        let empty = server.post(path, &tenant.key, &body).await;
        assert_eq!(empty.status, StatusCode::OK, "{path}: {}", empty.text);
        let request = server.request(Method::POST, path, &tenant.key).json(&body);
        let unknown = send(request.header("LIGHTRAG-WORKSPACE", "nowhere")).await;
        assert_eq!(
            (unknown.status, &unknown.body["slug"]),
            (StatusCode::NOT_FOUND, &json!("not-found")),
            "{path}"
        );
    }
    let data = server.post("/query/data", &tenant.key, &json!({"query": QUESTION})).await.body;
    assert_eq!((&data["status"], &data["data"]["chunks"]), (&json!("success"), &json!([])));
}

#[tokio::test]
async fn a_neighbours_namespace_is_answered_as_one_that_is_nowhere() {
    let both = Neighbours::new().await;
    both.server.insert(&both.bob, "secret", &[("plan.txt", "The Grey Heron sails at dawn.")]).await;
    let mut answers = Vec::new();
    for namespace in ["secret", "nowhere"] {
        let request = both.server.request(Method::POST, "/query", &both.alice.key);
        let answer = send(request.header("X-Namespace", namespace).json(&json!({"query": QUESTION}))).await;
        let mut body = answer.body.clone();
        body.as_object_mut().expect("a problem").remove("request_id");
        answers.push((answer.status, answer.media_type.clone(), body));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_in_the_form_of_its_route() {
    let server = Running::shared().await;
    let tenant = server.tenant().await;
    let refused = |path: &'static str, body: Value| {
        let (server, key) = (server.clone(), tenant.key.clone());
        async move { server.post(path, &key, &body).await }
    };
    for body in [json!({"query": "ab"}), json!({"query": "why so", "mode": "nope"}), json!({})] {
        let answer = refused("/query/data", body.clone()).await;
        assert_eq!((answer.status, &answer.body["status"]), (StatusCode::BAD_REQUEST, &json!("failure")));
        assert!(answer.body["message"].is_string() && answer.body["data"] == json!({}));
        let answer = refused("/query", body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(answer.body["detail"][0]["loc"].is_array(), "{}", answer.text);
    }
    let named = refused("/query", json!({"query": QUESTION, "tenant_id": "x"})).await;
    assert_eq!(named.status, StatusCode::UNPROCESSABLE_ENTITY);
    for path in ["/query", "/query/stream"] {
        let bypass = refused(path, json!({"query": QUESTION, "mode": "bypass"})).await;
        assert_eq!(
            (bypass.status, &bypass.body["slug"]),
            (StatusCode::NOT_IMPLEMENTED, &json!("no-language-model"))
        );
    }
}

#[tokio::test]
async fn a_stream_tells_its_progress_when_it_is_asked_to() {
    let both = Neighbours::new().await;
    let body = json!({"query": QUESTION, "include_progress": true});
    let request = both.server.request(Method::POST, "/query/stream", &both.alice.key).json(&body);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.headers().get("x-accel-buffering").expect("stated"), "no");
    assert_eq!(response.headers().get("content-type").expect("stated"), "application/x-ndjson");
    let text = response.text().await.expect("a text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.as_object()?.keys().find(|key| *key != "llm_generated"))
        .map(String::as_str)
        .collect();
    assert_eq!(kinds[..6], ["progress"; 6]);
    assert_eq!(kinds[6..], ["references", "response", "response_time"]);
    let one = both
        .server
        .post("/query/stream", &both.alice.key, &json!({"query": QUESTION, "stream": false}))
        .await;
    let lines = one.lines();
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0]["response"].is_string()
            && lines[0]["references"].is_array()
            && lines[0]["llm_generated"] == false
    );
}

#[tokio::test]
async fn a_language_model_answers_from_the_askers_own_context_in_pieces() {
    let stub = Stub::start(Duration::from_millis(5)).await;
    let both = Neighbours::on(stub.server().await).await;
    for (tenant, own, foreign) in both.sides() {
        let streamed = both.server.post("/query/stream", &tenant.key, &json!({"query": QUESTION})).await;
        let lines = streamed.lines();
        assert!(lines[0]["references"].is_array() && lines[0].get("response").is_none());
        let text: String = lines[1..].iter().filter_map(|line| line["response"].as_str()).collect();
        assert!(lines.len() > 3, "in pieces");
        // The stub says what it was given: the context is the asker's own.
        assert!(text.contains(own[0]), "{text}");
        assert_own(&streamed, tenant, foreign);
        let whole = both.server.post("/query", &tenant.key, &json!({"query": QUESTION})).await;
        assert_eq!(whole.body["llm_generated"], true);
        assert_own(&whole, tenant, foreign);
        let bypass = json!({"query": "Say hi", "mode": "bypass", "conversation_history": [{"role": "user", "content": "earlier"}]});
        let bypass = both.server.post("/query", &tenant.key, &bypass).await;
        let said = bypass.body["response"].as_str().expect("words");
        assert!(said.contains("earlier") && !said.contains(own[0]), "{said}");
        let prompt = json!({"query": QUESTION, "only_need_prompt": true, "user_prompt": "in verse"});
        let prompt = both.server.post("/query", &tenant.key, &prompt).await;
        assert!(
            prompt.body["response"]
                .as_str()
                .is_some_and(|text| text.contains("in verse") && text.contains(own[0]))
        );
        assert_eq!(prompt.body["llm_generated"], false);
    }
}

#[tokio::test]
async fn a_revoked_credential_ends_a_running_stream_within_two_seconds() {
    let stub = Stub::start(Duration::from_millis(200)).await;
    let server = stub.server().await;
    let (alice, bob) = (server.tenant().await, server.tenant().await);
    let files = [("turbine.txt", "The Halden turbine was inspected by Mara Quill on 3 May 2024. ")];
    server.insert(&alice, "default", &files).await;
    server.insert(&bob, "default", &files).await;
    let long = json!({"query": QUESTION, "user_prompt": "long"});
    let open = async |key: &str| {
        let request = server.request(Method::POST, "/query/stream", key).json(&long);
        request.send().await.expect("an answer").bytes_stream()
    };
    let (mut hers, mut his) = (open(&alice.key).await, open(&bob.key).await);
    hers.next().await.expect("a line").expect("read");
    server.revoke(&alice).await;
    let revoked = Instant::now();
    let mut text = String::new();
    while let Some(piece) = hers.next().await {
        text.push_str(&String::from_utf8_lossy(&piece.expect("read")));
    }
    assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert!(last["error"].is_string(), "{text}");
    assert_eq!(
        server.post("/query", &alice.key, &json!({"query": QUESTION})).await.status,
        StatusCode::UNAUTHORIZED
    );
    // The neighbour's stream goes on.
    let piece = his.next().await.expect("a line").expect("read");
    assert!(!String::from_utf8_lossy(&piece).contains("error"));
}

#[tokio::test]
async fn streams_that_run_together_are_never_swapped() {
    let stub = Stub::start(Duration::from_millis(1)).await;
    let both = Neighbours::on(stub.server().await).await;
    let asked = (0..200).map(|n| {
        let both = &both;
        async move {
            let (tenant, _, foreign) = both.sides()[n % 2];
            let canary = format!("canary-{n}-of-{}", tenant.id);
            let body = json!({"query": format!("{QUESTION} {canary}"), "mode": "naive"});
            let answer = both.server.post("/query/stream", &tenant.key, &body).await;
            assert_own(&answer, tenant, foreign);
            let text: String = answer
                .lines()
                .iter()
                .filter_map(|line| line["response"].as_str())
                .map(str::to_owned)
                .collect();
            assert!(text.contains(&canary), "{text}");
            assert_eq!(text.matches("canary-").count(), 1, "{text}");
        }
    });
    futures::stream::iter(asked).buffer_unordered(50).collect::<Vec<()>>().await;
}
