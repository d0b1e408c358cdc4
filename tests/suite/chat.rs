//! OpenAI's and Ollama's protocols over the namespaces of two tenants.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::language_model::Stub;
use crate::running::{Neighbours, QUESTION, Running, assert_own, send};

fn said(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

#[tokio::test]
async fn models_are_the_callers_own_namespaces() {
    let both = Neighbours::new().await;
    both.server.insert(&both.bob, "secret", &[("plan.txt", "The Grey Heron sails at dawn.")]).await;
    let names = async |path: &str, list: &str, name: &str, key: &str| {
        let answer = both.server.get(path, key).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let models = answer.body[list].as_array().expect("a list").clone();
        models.iter().map(|model| model[name].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("/v1/models", "data", "id", &both.alice.key).await, ["default"]);
    assert_eq!(names("/v1/models", "data", "id", &both.bob.key).await, ["default", "secret"]);
    assert_eq!(
        names("/api/tags", "models", "name", &both.bob.key).await,
        ["default:latest", "secret:latest"]
    );
    assert_eq!(names("/api/ps", "models", "model", &both.alice.key).await, ["default:latest"]);
    assert_eq!(both.server.get("/v1/models/secret", &both.bob.key).await.body["id"], "secret");
    for model in ["secret", "nowhere", "lightrag", "Default"] {
        let shown = both.server.get(&format!("/v1/models/{model}"), &both.alice.key).await;
        assert_eq!(
            (shown.status, &shown.body["error"]["code"]),
            (StatusCode::NOT_FOUND, &json!("not-found"))
        );
        let body = json!({"model": model, "messages": said(QUESTION)});
        let asked = both.server.post("/v1/chat/completions", &both.alice.key, &body).await;
        assert_eq!(
            (asked.status, &asked.body["error"]["type"]),
            (StatusCode::NOT_FOUND, &json!("invalid_request_error"))
        );
        let asked = both.server.post("/api/chat", &both.alice.key, &body).await;
        assert_eq!(asked.status, StatusCode::NOT_FOUND);
        assert!(asked.body["error"].is_string());
    }
    assert_eq!(both.server.get("/api/version", &both.alice.key).await.body["version"], "0.9.3");
}

#[tokio::test]
async fn every_chat_is_answered_from_the_askers_own_documents_with_citations() {
    let both = Neighbours::new().await;
    for (tenant, own, foreign) in both.sides() {
        for content in [QUESTION.to_owned(), format!("/naive {QUESTION}"), format!("/mixcontext {QUESTION}")]
        {
            for stream in [false, true] {
                let body = json!({"model": "default", "messages": said(&content), "stream": stream, "temperature": 0});
                let answer = both.server.post("/v1/chat/completions", &tenant.key, &body).await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                assert_own(&answer, tenant, foreign);
                assert!(
                    answer.text.contains(own[0]) && answer.text.contains("turbine.txt"),
                    "{}",
                    answer.text
                );
                let body = json!({"model": "default:latest", "messages": said(&content), "stream": stream, "options": {}});
                let answer = both.server.post("/api/chat", &tenant.key, &body).await;
                assert_own(&answer, tenant, foreign);
                assert!(
                    answer.text.contains(own[0]) && answer.text.contains("turbine.txt"),
                    "{}",
                    answer.text
                );
            }
        }
    }
}

#[tokio::test]
async fn a_completion_has_openais_form_and_the_references_of_a_query() {
    let both = Neighbours::new().await;
    let body = json!({"model": "default", "messages": said(QUESTION)});
    let answer = both.server.post("/v1/chat/completions", &both.alice.key, &body).await.body;
    assert_eq!(
        (&answer["object"], &answer["choices"][0]["finish_reason"]),
        (&json!("chat.completion"), &json!("stop"))
    );
    let content = answer["choices"][0]["message"]["content"].as_str().expect("words");
    assert!(content.contains("[1]") && content.contains("- [1] turbine.txt"), "{content}");
    let query = both.server.post("/query", &both.alice.key, &json!({"query": QUESTION})).await.body;
    assert_eq!(answer["references"], query["references"]);
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );

    let body = json!({"model": "default", "messages": said(QUESTION), "stream": true, "stream_options": {"include_usage": true}});
    let streamed = both.server.post("/v1/chat/completions", &both.alice.key, &body).await;
    assert_eq!(streamed.media_type, "text/event-stream");
    assert!(streamed.text.ends_with("data: [DONE]\n\n"));
    let events = streamed.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, content);
    let last = events.iter().find(|event| event["choices"][0]["finish_reason"] == "stop").expect("an end");
    assert_eq!(last["references"], query["references"]);
    assert!(events.last().expect("counted")["usage"]["total_tokens"].is_u64());
}

#[tokio::test]
async fn ollamas_clients_find_their_form_whatever_media_type_they_send() {
    let both = Neighbours::new().await;
    let body = json!({"model": "default:latest", "messages": said(QUESTION)}).to_string();
    let request = both.server.request(Method::POST, "/api/chat", &both.alice.key);
    let streamed = send(request.header("Content-Type", "application/octet-stream").body(body)).await;
    assert_eq!(streamed.media_type, "application/x-ndjson");
    let lines = streamed.lines();
    let (last, pieces) = lines.split_last().expect("lines");
    assert!(pieces.iter().all(|line| line["done"] == false && line["message"]["role"] == "assistant"));
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert!(last["total_duration"].is_u64() && last["eval_count"].is_u64() && last["references"].is_array());
}

#[tokio::test]
async fn what_needs_a_language_model_says_so_and_a_title_needs_none() {
    let server = Running::shared().await;
    let tenant = server.tenant().await;
    let chat = async |content: &str, stream: bool| {
        let body = json!({"model": "default:latest", "messages": said(content), "stream": stream});
        server.post("/api/chat", &tenant.key, &body).await
    };
    for stream in [false, true] {
        let bypass = chat("/bypass hello", stream).await;
        assert_eq!(
            (bypass.status, &bypass.body["slug"]),
            (StatusCode::NOT_IMPLEMENTED, &json!("no-language-model"))
        );
    }
    let generate = json!({"model": "default:latest", "prompt": "Say hi"});
    let generate = server.post("/api/generate", &tenant.key, &generate).await;
    assert_eq!(generate.status, StatusCode::NOT_IMPLEMENTED);
    assert!(generate.body["error"].is_string());
    let title =
        chat("Write a title.\n<chat_history>\nUSER: Who keeps the light?\nASSISTANT: Nobody.", false).await;
    assert_eq!(title.body["message"]["content"], "Who keeps the light?");
    let empty =
        server.post("/api/chat", &tenant.key, &json!({"model": "default:latest", "messages": []})).await;
    assert_eq!(empty.status, StatusCode::BAD_REQUEST);
    let nothing = chat(QUESTION, false).await;
    assert_eq!((nothing.status, &nothing.body["references"]), (StatusCode::OK, &json!([])));
}

#[tokio::test]
async fn a_language_model_writes_what_chat_frontends_read() {
    let stub = Stub::start(Duration::from_millis(2)).await;
    let both = Neighbours::on(stub.server().await).await;
    for (tenant, own, foreign) in both.sides() {
        for stream in [false, true] {
            let body = json!({"model": "default", "messages": said(QUESTION), "stream": stream});
            let completion = both.server.post("/v1/chat/completions", &tenant.key, &body).await;
            assert_own(&completion, tenant, foreign);
            let chat = both.server.post("/api/chat", &tenant.key, &body).await;
            assert_own(&chat, tenant, foreign);
            if !stream {
                assert_eq!(
                    (&completion.body["llm_generated"], &chat.body["llm_generated"]),
                    (&json!(true), &json!(true))
                );
                let words = chat.body["message"]["content"].as_str().expect("words");
                assert!(words.contains(own[0]), "{words}");
            }
            let body =
                json!({"model": "default", "prompt": "Say hi", "system": "be brief", "stream": stream});
            let generated = both.server.post("/api/generate", &tenant.key, &body).await;
            let text: String = generated
                .lines()
                .iter()
                .filter_map(|line| line["response"].as_str())
                .map(str::to_owned)
                .collect();
            assert_eq!(text, "be brief Say hi");
        }
    }
}

#[tokio::test]
async fn no_chat_is_had_without_a_credential() {
    let server = Running::shared().await;
    for path in ["/v1/models", "/api/tags", "/api/version", "/api/ps"] {
        assert_eq!(server.get(path, "wrong").await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let answer =
        server.post("/v1/chat/completions", "wrong", &json!({"model": "default", "messages": []})).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["type"]),
        (StatusCode::UNAUTHORIZED, &json!("authentication_error"))
    );
}
