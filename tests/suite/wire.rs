//! The recorded calls of a LightRAG server, made again here, in their order: the same status, and at least the
//! recorded names in every object of every answer.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::server::{Answer, Client, server, text};

/// What is answered otherwise on purpose: call, name in the answer (or `status`), why.
const CHANGED: [(&str, &str, &str); 7] = [
    ("POST /documents/paginated", "documents/0/metadata", METADATA),
    ("GET /documents/track_status", "documents/0/metadata", METADATA),
    ("GET /documents/supported_file_types", "engines/legacy", "the name of a parser that is not here"),
    ("GET /auth-status", "access_token", "there is never a guest token"),
    ("GET /auth-status", "token_type", "there is never a guest token"),
    ("GET /auth-status", "message", "there is never a guest token"),
    ("POST /api/generate", "status", "501 where no language model is configured"),
];

const METADATA: &str =
    "a document's metadata is the caller's; the steps of that server's parsers are not here";

/// What a file of the recording's is called and holds, by the case.
fn file(case: &str) -> (&'static str, &'static str) {
    match case {
        "unsupported type" => ("wire.exe", "MZ"),
        _ => ("wire.md", "# Bergen\n\nNorvik Energy keeps its archive in Bergen."),
    }
}

/// The recording's names of things that got other names here.
#[derive(Default)]
struct Renamed(HashMap<String, String>);

impl Renamed {
    fn apply(&self, value: &Value) -> Value {
        let mut text = value.to_string();
        for (recorded, here) in &self.0 {
            text = text.replace(recorded, here);
        }
        serde_json::from_str(&text).expect("JSON")
    }

    /// Learns what the things in an answer are called here.
    fn learn(&mut self, recorded: &Value, here: &Value) {
        let mut same = |name: &str, recorded: &Value, here: &Value| {
            if let (Some(recorded), Some(here)) = (recorded[name].as_str(), here[name].as_str())
                && !recorded.is_empty()
            {
                self.0.insert(recorded.to_owned(), here.to_owned());
            }
        };
        same("track_id", recorded, here);
        same("id", &recorded["documents"][0], &here["documents"][0]);
    }
}

async fn call(writer: &Client, recorded: &Value, renamed: &Renamed) -> Answer {
    let recorded = renamed.apply(recorded);
    let (method, path) = recorded["call"].as_str().and_then(|call| call.split_once(' ')).expect("a call");
    let body = match &recorded["body"] {
        Value::String(_) => {
            let (name, content) = file(recorded["case"].as_str().unwrap_or_default());
            return writer.upload(name, content.as_bytes()).await;
        }
        body => body,
    };
    let answer = writer.send(method, path, body).await;
    if answer.status == 200
        && let Ok(inserted) = serde_json::from_slice::<Value>(&answer.body)
        && path.starts_with("/documents/text")
    {
        writer.wait_ended(&text(&inserted, "track_id")).await;
    }
    answer
}

/// What is missing of the recorded names, each with its place.
fn missing(place: &str, recorded: &Value, here: &Value, found: &mut Vec<String>) {
    match (recorded, here) {
        (Value::Object(recorded), Value::Object(here)) => {
            for (name, value) in recorded {
                match here.get(name) {
                    Some(here) => missing(&format!("{place}/{name}"), value, here, found),
                    None => found.push(format!("{place}/{name}")),
                }
            }
        }
        (Value::Array(recorded), Value::Array(here)) => match (recorded.first(), here.first()) {
            (Some(recorded), Some(here)) => missing(&format!("{place}/0"), recorded, here, found),
            (Some(Value::Object(_)), None) => found.push(format!("{place}/0")),
            // A list of words may be empty.
            (Some(_), None) | (None, _) => {}
        },
        (recorded, here) => {
            let kind = |value: &Value| match value {
                Value::Null => None,
                value => Some(std::mem::discriminant(value)),
            };
            if kind(recorded).zip(kind(here)).is_some_and(|(recorded, here)| recorded != here) {
                found.push(format!("{place} of another type"));
            }
        }
    }
}

fn lines(answer: &Answer) -> Value {
    let text = answer.text();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect::<Vec<Value>>()
        .into()
}

#[tokio::test]
async fn recorded_calls_are_answered_with_the_recorded_status_and_names() {
    let recording: Value =
        serde_json::from_str(include_str!("../fixtures/lightrag-wire.json")).expect("the recording");
    let tenant = server().tenant("wire").await;
    let mut renamed = Renamed::default();
    // The model there has another name than the namespace that is the model here.
    renamed.0.insert("lightrag:latest".to_owned(), "default:latest".to_owned());
    let mut wrong = Vec::new();
    for recorded in recording["answers"].as_array().expect("answers") {
        let name = text(recorded, "call");
        let told = format!("{name} {}", recorded["case"].as_str().unwrap_or_default());
        let answer = call(&tenant.writer, recorded, &renamed).await;
        let changed = |what: &str| {
            CHANGED.iter().any(|(call, changed, _)| name.starts_with(call) && what.starts_with(changed))
        };
        let status = recorded["status"].as_u64().expect("a status");
        if u64::from(answer.status) != status {
            if !changed("status") {
                wrong.push(format!("{told}: {} and not {status}: {}", answer.status, answer.text()));
            }
            continue;
        }
        let kind = answer.headers["content-type"].to_str().expect("text").to_owned();
        let wanted =
            if status < 400 { text(recorded, "content_type") } else { "application/problem+json".to_owned() };
        if kind != wanted {
            wrong.push(format!("{told}: {kind} and not {wanted}"));
        }
        let streamed = kind == "application/x-ndjson";
        let here = if streamed { lines(&answer) } else { answer.json() };
        let mut absent = Vec::new();
        if streamed {
            // Line by line, but for the pieces of the answer, which may be more or fewer.
            let by_name = |lines: &Value| -> Vec<Value> {
                let mut lines = lines.as_array().expect("lines").clone();
                lines.dedup_by(|a, b| {
                    a.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>())
                        == b.as_object().map(|o| o.keys().cloned().collect())
                });
                lines
            };
            let (recorded, here) = (by_name(&recorded["answer"]), by_name(&here));
            if recorded.len() != here.len() {
                wrong.push(format!("{told}: other lines: {here:?}"));
            }
            for (recorded, here) in std::iter::zip(&recorded, &here) {
                missing("", recorded, here, &mut absent);
            }
        } else {
            missing("", &recorded["answer"], &here, &mut absent);
            renamed.learn(&recorded["answer"], &here);
        }
        absent.retain(|place| !changed(place.trim_start_matches('/')));
        if !absent.is_empty() {
            wrong.push(format!("{told}: without {}: {here}", absent.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn liveness_without_a_credential_tells_nothing_of_anybodys_queue() {
    let tenant = server().tenant("wire").await;
    let idle = server().anybody().send("GET", "/health", &Value::Null).await;
    let texts: Vec<String> =
        (0..40).map(|n| format!("Text {n} of many that keep the server busy.")).collect();
    let inserted = tenant.writer.post("/documents/texts", &json!({"texts": texts}), 200).await;
    let busy = server().anybody().send("GET", "/health", &Value::Null).await;
    assert_eq!(busy.all(), idle.all());
    let other = server().tenant("idle").await;
    let health = other.reader.get("/health", 200).await;
    assert_eq!((&health["pipeline_busy"], &health["queue"]["queued"]), (&json!(false), &json!(0)));
    tenant.writer.wait_processed(&text(&inserted, "track_id")).await;
}
