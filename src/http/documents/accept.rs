//! From what a caller sends to a document in the queue: names, ids, bounds, and the answer that is kept.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::extract::{IdempotencyKey, Namespace};
use super::super::json::Faults;
use super::super::problem::{Kind, Problem};
use super::super::room::{queue_full, quota_reached};
use super::super::state::App;
use super::corpus_writer;
use super::wire::Insert;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::DocumentId;
use crate::store::CorpusWriter;
use crate::store::postgres::documents::{Acceptance, Accepted, Content, NewDocument, OnExisting};
use crate::store::postgres::idempotency::{Answer, Once, Outcome};
use crate::tenancy::{Permit, Write};

/// The longest name by which a document is cited, characters.
pub(super) const MAX_NAME: usize = 512;
/// Names of metadata that say where a row belongs.
const RESERVED: [&str; 6] = ["tenant_id", "tenant", "namespace", "groups", "is_duplicate", "workspace"];
/// Names in one document's metadata, at any depth.
const MAX_METADATA_NAMES: usize = 64;
/// How deep metadata is nested.
const MAX_METADATA_DEPTH: usize = 4;
/// Characters of a document's summary.
const SUMMARY: usize = 250;

/// A new document's identity: `doc-` and 128 random bits.
pub(super) fn new_document_id(app: &App) -> DocumentId {
    DocumentId::stored(format!("doc-{}", hex::encode(&app.ids.secret()[..16])))
}

/// A new track: `insert_YYYYMMDD_HHMMSS_` and 32 random bits.
pub(super) fn new_track_id(app: &App, kind: &str) -> String {
    let at = app.clock.now().format("%Y%m%d_%H%M%S");
    format!("{kind}_{at}_{}", hex::encode(&app.ids.secret()[..4]))
}

/// The first words of a text.
pub(super) fn summary(text: &str) -> String {
    let words = text.split_whitespace();
    let mut summary = String::with_capacity(SUMMARY + 4);
    for word in words {
        if !summary.is_empty() {
            summary.push(' ');
        }
        summary.extend(word.chars().take(SUMMARY));
        if summary.chars().count() >= SUMMARY {
            break;
        }
    }
    match summary.char_indices().nth(SUMMARY) {
        Some((end, _)) => format!("{}...", &summary[..end]),
        None => summary,
    }
}

/// A version of a document whose content is a text.
pub(super) fn text_document(
    id: DocumentId,
    title: Option<String>,
    name: String,
    metadata: Value,
    text: String,
) -> NewDocument {
    NewDocument {
        document_id: id,
        title,
        file_name: name,
        metadata,
        content_hash: Sha256::digest(text.as_bytes()).into(),
        content_length: text.len() as u64,
        summary: summary(&text),
        content: Content::Text(text),
    }
}

/// Checks a name by which a document is to be cited.
pub(super) fn check_name(faults: &mut Faults, path: &[Value], name: &str) {
    faults.text_at(path, name, 0, MAX_NAME);
    if name.chars().any(char::is_control) {
        faults.body("value_error", path, "A name has no control characters", &Value::Null, None);
    }
}

/// Checks that a text is not too long, which is 413 and not 422.
pub(super) fn check_length<'a>(app: &App, texts: impl IntoIterator<Item = &'a str>) -> Result<(), Problem> {
    let most = app.limits.max_text_bytes;
    if texts.into_iter().any(|text| text.len() > most) {
        return Err(Problem::new(Kind::TooLarge).saying(format!("A text has at most {most} bytes.")));
    }
    Ok(())
}

/// Checks metadata: an object without reserved names, bounded in depth, names and bytes.
pub(super) fn check_metadata(faults: &mut Faults, metadata: &Value, max_bytes: usize) {
    fn walk(value: &Value, depth: usize, names: &mut usize, wrong: &mut Option<&'static str>) {
        if depth > MAX_METADATA_DEPTH {
            *wrong = Some("Metadata is nested at most 4 deep");
            return;
        }
        match value {
            Value::Object(fields) => {
                *names += fields.len();
                for (name, value) in fields {
                    if RESERVED.contains(&name.trim().to_ascii_lowercase().as_str()) {
                        *wrong = Some(
                            "`tenant_id`, `tenant`, `namespace`, `workspace`, `groups` and `is_duplicate` are reserved",
                        );
                    }
                    walk(value, depth + 1, names, wrong);
                }
            }
            Value::Array(items) => {
                *names += items.len();
                for item in items {
                    walk(item, depth + 1, names, wrong);
                }
            }
            _ => {}
        }
    }
    let (mut names, mut wrong) = (0, None);
    if metadata.is_object() {
        walk(metadata, 0, &mut names, &mut wrong);
    } else {
        wrong = Some("Metadata is an object");
    }
    if names > MAX_METADATA_NAMES {
        wrong = Some("Metadata has at most 64 names and items");
    }
    if metadata.to_string().len() > max_bytes {
        wrong = Some("Metadata is too large");
    }
    if let Some(msg) = wrong {
        faults.value("metadata", msg);
    }
}

/// What a key stands for: SHA-256 of everything that the request says.
pub(super) fn fingerprint(request: &impl Serialize) -> Result<[u8; 32], Problem> {
    let bytes = serde_json::to_vec(request).map_err(Problem::internal)?;
    Ok(Sha256::digest(bytes).into())
}

/// A write on its way into the queue.
pub(super) struct Submission<'a> {
    pub(super) permit: &'a Permit<Write>,
    pub(super) documents: &'a [NewDocument],
    pub(super) existing: OnExisting,
    pub(super) track_id: &'a str,
    /// What is done, for audit and the key.
    pub(super) operation: &'static str,
    pub(super) key: &'a IdempotencyKey,
    /// What the key stands for.
    pub(super) request: [u8; 32],
    pub(super) answer: &'a (dyn Fn(&[Accepted]) -> Answer + Send + Sync),
}

/// What became of a submission.
pub(super) enum Submitted {
    /// The documents are in the queue.
    Now(Vec<Accepted>),
    /// The same request was answered before.
    Before(Answer),
}

/// Accepts documents, tells the workers and the audit log.
pub(super) async fn submit(
    app: &Data<App>,
    corpus: &CorpusWriter,
    submission: Submission<'_>,
) -> Result<Submitted, Problem> {
    let once = submission.key.0.as_deref().map(|key| Once {
        operation: submission.operation,
        key,
        request: submission.request,
        answer: submission.answer,
    });
    let limits = app.quotas.of(submission.permit.scope());
    let outcome = corpus
        .documents_accept_once(
            submission.documents,
            submission.existing,
            submission.track_id,
            &limits,
            once.as_ref(),
        )
        .await?;
    match outcome {
        Outcome::Now(Acceptance::Accepted(accepted)) => {
            app.wake.notify_one();
            let entry = AuditEntry::new(AuditKind::Write, submission.operation, Decision::Allowed)
                .with_ids(accepted.iter().map(|document| document.document_id.as_str()));
            app.audit.record(submission.permit.scope(), entry).await;
            Ok(Submitted::Now(accepted))
        }
        Outcome::Now(Acceptance::NameTaken(_)) => Err(name_taken()),
        Outcome::Now(Acceptance::QueueFull) => Err(queue_full()),
        Outcome::Now(Acceptance::QuotaReached(quota)) => Err(quota_reached(quota, &limits)),
        Outcome::Before(answer) => Ok(Submitted::Before(answer)),
        Outcome::KeyReused => Err(Problem::new(Kind::IdempotencyKeyReused)),
    }
}

pub(super) fn name_taken() -> Problem {
    Problem::new(Kind::Conflict).saying("A document of this file name is there already.")
}

/// The answer to an insert.
pub(super) fn inserted(accepted: &[Accepted], track_id: &str) -> Answer {
    let job_ids: Vec<_> = accepted.iter().filter_map(|document| document.job).collect();
    let insert = Insert {
        status: "success",
        message: format!("{} accepted; follow the processing by the track id.", plural(accepted.len())),
        track_id: track_id.to_owned(),
        job_id: accepted.first().and_then(|document| document.job),
        job_ids,
        document_ids: accepted.iter().map(|document| document.document_id.clone()).collect(),
    };
    Answer { status: 200, body: serde_json::to_value(insert).unwrap_or_default() }
}

fn plural(documents: usize) -> String {
    if documents == 1 { "One document was".to_owned() } else { format!("{documents} documents were") }
}

/// An answer, made now or kept from before.
pub(super) fn respond(answer: &Answer, replayed: bool) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut builder = HttpResponse::build(status);
    if replayed {
        builder.insert_header(("Idempotency-Replayed", "true"));
    }
    builder.json(&answer.body)
}

/// Accepts documents of LightRAG's routes and answers as they do.
pub(super) async fn insert(
    app: &Data<App>,
    permit: &Permit<Write>,
    namespace: &Namespace,
    key: &IdempotencyKey,
    documents: &[NewDocument],
    request: [u8; 32],
) -> Result<HttpResponse, Problem> {
    let corpus = corpus_writer(app, permit, namespace).await?;
    let track_id = new_track_id(app, "insert");
    let answer = |accepted: &[Accepted]| inserted(accepted, &track_id);
    let submission = Submission {
        permit,
        documents,
        existing: OnExisting::Refuse,
        track_id: &track_id,
        operation: "document.insert",
        key,
        request,
        answer: &answer,
    };
    match submit(app, &corpus, submission).await? {
        Submitted::Now(accepted) => Ok(respond(&answer(&accepted), false)),
        Submitted::Before(answer) => Ok(respond(&answer, true)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_is_the_first_words_on_one_line() {
        assert_eq!(summary(" a\n\nb  c "), "a b c");
        let long = summary(&"wörd ".repeat(200));
        assert_eq!(long.chars().count(), SUMMARY + 3);
        assert!(long.ends_with("..."));
        assert_eq!(summary(&"x".repeat(1000)).chars().count(), SUMMARY);
    }

    #[test]
    fn metadata_is_bounded_and_cannot_say_where_a_row_belongs() {
        let wrong = |metadata: Value| {
            let mut faults = Faults::default();
            check_metadata(&mut faults, &metadata, 1000);
            faults.end().is_err()
        };
        assert!(!wrong(json!({"author": "a", "tags": ["b"], "x": {"y": {"z": 1}}})));
        for metadata in [
            json!({"tenant_id": "b"}),
            json!({"Namespace ": "b"}),
            json!({"deep": {"groups": []}}),
            json!({"a": {"b": {"c": {"d": {"e": 1}}}}}),
            json!({"a": "x".repeat(1000)}),
            json!({"a": vec![0; 65]}),
            json!([]),
            json!("text"),
        ] {
            assert!(wrong(metadata.clone()), "{metadata}");
        }
    }
}
