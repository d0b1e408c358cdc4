//! What a server tells of its work, told to say everything: no document, no question, no secret in its log, its
//! metrics and its spans.

use std::net::TcpListener;

use serde_json::json;

use crate::crashes::child::Ground;
use crate::oracle::assert_without;
use crate::receiver::Receiver;
use crate::server::random;

#[tokio::test]
async fn logs_at_their_most_verbose_hold_no_document_no_question_and_no_secret() {
    let ground = Ground::logging("hashing", "trace").await;
    let collector = Receiver::answering(&[]);
    let metrics = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    ground
        .set(&format!("telemetry.metrics_address = '{metrics}'\ntelemetry.traces.url = '{}'", collector.url));
    let server = ground.start(None).await;
    let mark = random(16);
    let word = |what: &str| format!("{what}{mark}");
    let body = json!({
        "text": format!("The word of the document is {}.", word("document")),
        "file_source": format!("{}.txt", word("file")),
    });
    ground.try_post(&server, "/documents/text", &body, "").await.expect("an answer");
    let settled = ground.settled(&server).await;
    assert_eq!(settled[0]["status"], "processed");
    for (path, key) in [("/query", "query"), ("/query/data", "query"), ("/query/stream", "query")] {
        let question = format!("Is {} the word of {}?", word("question"), word("document"));
        let asked = ground.http.post(format!("{}{path}", server.url())).bearer_auth(ground.key());
        let answer = asked.json(&json!({key: question})).send().await.expect("an answer");
        assert!(answer.status().is_success());
        assert!(answer.text().await.expect("text").contains(&word("document")));
    }
    let chat = json!({"model": "default", "messages": [{"role": "user", "content": word("question")}]});
    ground.try_post(&server, "/v1/chat/completions", &chat, "").await.expect("an answer");
    // Refusals and mistakes are told without what was sent.
    let wrong = format!("bk_{}", word("secret"));
    for (key, path, text) in [
        (wrong.as_str(), "/query", format!("{{\"query\": \"{}\"}}", word("question"))),
        (ground.key(), "/query", format!("{{\"query\": 1, \"{}\": \"{}\"", word("field"), word("question"))),
        (ground.key(), "/documents/text", format!("{{\"text\": \"{}\\u0000\"}}", word("document"))),
    ] {
        let request = ground.http.post(format!("{}{path}", server.url())).bearer_auth(key);
        let answer =
            request.header("Content-Type", "application/json").body(text).send().await.expect("an answer");
        assert!(answer.status().is_client_error());
    }
    let page = ground.http.get(format!("http://{metrics}/metrics")).send().await.expect("an answer");
    let page = page.text().await.expect("a page");
    assert!(
        page.contains(&format!("bulkhead_tenant_requests_total{{tenant=\"{}\"}}", ground.tenant)),
        "{page}"
    );
    server.terminate();
    let log = ground.whole_log();
    assert!(
        log.len() > 10_000 && log.contains("TRACE") && log.contains("http.request"),
        "it says everything"
    );
    let secret = ground.key().rsplit('_').nth(1).expect("the secret part").to_owned();
    assert!(secret.len() > 30);
    let words = ["document", "question", "file", "secret", "field"].map(word);
    let secrets = [secret, ground.key().to_owned()];
    let told = |line: &&str| line.contains(&mark) || secrets.iter().any(|secret| line.contains(secret));
    assert_eq!(log.lines().find(told), None);
    let canaries = || words.iter().chain(&secrets).chain([&mark]).map(String::as_str);
    assert_without(&page, canaries(), "the page of metrics");
    let spans = collector.kept();
    assert!(!spans.is_empty(), "spans were sent");
    for sent in spans {
        assert_without(&sent.body, canaries(), "the spans");
    }
    // In any other writing as well; by parts, since the whole is long.
    for part in log.lines().collect::<Vec<_>>().chunks(500) {
        let canaries = words.iter().chain(&secrets).map(String::as_str);
        assert_without(part.join("\n"), canaries, "the log");
    }
}
