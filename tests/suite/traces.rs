//! Spans at a collector, and lines of the log: both say whose they are, by an id alone.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};

use crate::crashes::child::Ground;
use crate::oracle::assert_without;
use crate::receiver::Receiver;
use crate::server::random;

/// The value of a span's attribute, as text.
fn attribute(span: &Span, name: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    let value = span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value?;
    Some(match value {
        Any::StringValue(text) => text,
        Any::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

#[tokio::test]
async fn every_span_and_line_of_a_tenants_work_names_it_by_its_id_and_says_nothing_else() {
    let ground = Ground::logging("hashing", "warn,bulkhead=debug").await;
    let collector = Receiver::answering(&[]);
    ground.set(&format!("telemetry.format = 'json'\ntelemetry.traces.url = '{}'", collector.url));
    let quiet_until = ground.whole_log().len();
    let server = ground.start(None).await;
    let mark = random(16);
    let word = |what: &str| format!("{what}{mark}");
    let body = json!({
        "text": format!("The word of the document is {}.", word("Document")),
        "file_source": format!("{}.txt", word("file")),
    });
    ground.try_post(&server, "/documents/text", &body, "").await.expect("an answer");
    assert_eq!(ground.settled(&server).await[0]["status"], "processed");
    let question = json!({"query": format!("Is {} the word of {}?", word("question"), word("Document"))});
    ground.try_post(&server, "/query", &question, "").await.expect("an answer");
    let missing = ground.request(&server, "GET", &format!("/documents/{}", word("missing")), "default");
    assert_eq!(ground.answered(missing).await.expect("an answer").0, 404);
    let wrong = ground.http.get(format!("{}/namespaces", server.url())).bearer_auth(word("bk_"));
    assert_eq!(wrong.send().await.expect("an answer").status(), 401);
    assert!(server.terminate().success());

    // What waits at the end is sent before the server ends.
    let received = collector.kept();
    assert!(!received.is_empty(), "nothing came");
    let canaries: Vec<String> = ["Document", "file", "question", "missing", "bk_"]
        .map(word)
        .into_iter()
        .chain([mark.clone()])
        .collect();
    let mut spans = Vec::new();
    for request in &received {
        assert_eq!(request.headers["content-type"], "application/x-protobuf");
        assert_without(
            String::from_utf8_lossy(&request.body).into_owned(),
            canaries.iter().map(String::as_str),
            "spans",
        );
        let request = ExportTraceServiceRequest::decode(request.body.as_slice()).expect("OTLP");
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        spans.extend(scopes.flat_map(|scope| scope.spans));
    }
    let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    for name in ["http.request", "jobs.batch", "jobs.project", "inference.embed_question", "retrieval.rank"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    let known =
        BTreeSet::from(["request_id", "method", "route", "tenant", "status", "level", "backend", "outcome"]);
    for span in &spans {
        let keys: BTreeSet<&str> = span.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        assert!(keys.is_subset(&known), "{keys:?}");
        assert!(span.events.is_empty(), "{span:?}");
        let tenant = attribute(span, "tenant");
        let whose = match tenant.as_deref() {
            // Open to everybody, or refused before anybody knew whose it was.
            // A service is asked about an address, too, which is nobody's.
            None if attribute(span, "backend").is_some() => true,
            None => ["/health", "/namespaces"].contains(&attribute(span, "route").expect("a route").as_str()),
            Some(tenant) => tenant == ground.tenant,
        };
        assert!(whose, "{span:?}");
    }
    // The steps of a question belong to its request.
    let of = |name: &'static str| spans.iter().filter(move |span| span.name == name);
    let asked = of("http.request").find(|span| attribute(span, "route").as_deref() == Some("/query"));
    let asked = asked.expect("the question's request");
    assert_eq!(attribute(asked, "status").as_deref(), Some("200"));
    let rank = of("retrieval.rank").find(|span| span.trace_id == asked.trace_id).expect("its ranking");
    assert!(!rank.parent_span_id.is_empty());

    let log = ground.whole_log();
    let mut told = 0;
    for line in log[quiet_until..].lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let spans = line["spans"].as_array().cloned().unwrap_or_default();
        for span in &spans {
            let open = ["/health", "/namespaces"].iter().any(|route| span["route"] == *route);
            if ["http.request", "jobs.batch", "jobs.project"].iter().any(|name| span["name"] == *name)
                && !open
            {
                assert_eq!(span["tenant"], json!(ground.tenant), "{line}");
                told += 1;
            }
        }
    }
    assert!(told >= 4, "{told} lines say whose they are");
    assert_without(&log, canaries.iter().map(String::as_str), "the log");
}
