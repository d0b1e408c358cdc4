//! `PUT`, `GET` and `DELETE` of `/documents/{id}`: documents under identities that the caller chose.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use futures::TryFutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::extract::{DocumentPath, IdempotencyKey, Namespace, PreferWait};
use super::super::identity::Caller;
use super::super::json::{Check, Faults, StrictJson};
use super::super::problem::Problem;
use super::super::room::Room;
use super::super::state::App;
use super::super::watch::while_valid;
use super::accept::{
    Submission, Submitted, check_length, check_metadata, check_name, fingerprint, new_track_id, submit,
    text_document,
};
use super::wire::{Document, Said};
use super::{corpus, corpus_existing, corpus_writer};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::document::Status;
use crate::domain::ids::{DocumentId, JobId};
use crate::store::postgres::documents::{Accepted, OnExisting};
use crate::store::postgres::idempotency::Answer;
use crate::store::{Corpus, StoreError};
use crate::tenancy::{Permit, Read, Write};

/// A new version of a document.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PutRequest {
    /// The text. It is not only white space.
    text: String,
    /// The title, which the embedding model sees before each chunk.
    #[serde(default)]
    title: Option<String>,
    /// The name by which it is cited; the id when absent.
    #[serde(default)]
    file_name: Option<String>,
    /// What is told back with the document: an object, at most 4 deep, with at most 64 names.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
}

impl Check for PutRequest {
    fn check(&self, faults: &mut Faults) {
        faults.text("text", self.text.trim(), 1, usize::MAX);
        for (name, value) in [("title", &self.title), ("file_name", &self.file_name)] {
            if let Some(value) = value {
                check_name(faults, &[json!(name)], value);
            }
        }
    }
}

/// What became of a `PUT`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct PutAnswer {
    /// The document.
    id: String,
    /// The version that was accepted.
    version: i64,
    /// Its state.
    status: Status,
    /// Follows this version's processing.
    track_id: String,
    /// The job that processes it.
    #[schema(value_type = Option<uuid::Uuid>)]
    job_id: Option<JobId>,
}

/// Makes a document or gives it a new version.
///
/// The version before answers until the new one is processed; a new version that fails leaves it in place.
/// With `Prefer: wait=SECONDS` the answer waits for the processing: 201 (new) or 200 when it is done, else 202.
#[utoipa::path(
    put, path = "/documents/{id}", tag = "documents", request_body = PutRequest,
    params(
        ("id" = String, Path, description = "1 to 128 letters, digits and `. _ ~ : -`, unique in its namespace"),
        ("X-Namespace" = Option<String>, Header, description = "The namespace; made if there is none"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same request with the same key is answered as before, for a day"),
    ),
    responses(
        (status = 200, body = PutAnswer, description = "A new version, processed"),
        (status = 201, body = PutAnswer, description = "A new document, processed"),
        (status = 202, body = PutAnswer, description = "Accepted, to be processed"),
    ),
)]
#[tracing::instrument(name = "http.document.put", skip_all)]
pub(in crate::http) async fn document_put(
    permit: Permit<Write>,
    (caller, _room): (Caller, Room),
    (namespace, id): (Namespace, DocumentPath),
    key: IdempotencyKey,
    wait: PreferWait,
    app: Data<App>,
    body: StrictJson<PutRequest>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    check_length(&app, [body.text.as_str()])?;
    let metadata = body.metadata.clone().unwrap_or_else(|| json!({}));
    let mut faults = Faults::default();
    check_metadata(&mut faults, &metadata, app.limits.max_metadata_bytes);
    faults.end()?;
    let request = fingerprint(&(id.0.as_str(), &body))?;
    let corpus = corpus_writer(&app, &permit, &namespace).await?;
    let track_id = new_track_id(&app, "insert");
    let name = body.file_name.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| id.0.to_string());
    let title = body.title.filter(|title| !title.trim().is_empty());
    let document = text_document(id.0.clone(), title, name, metadata, body.text);
    let answer = |accepted: &[Accepted]| {
        let version = accepted.first().map_or(1, |accepted| accepted.version);
        let job_id = accepted.first().and_then(|accepted| accepted.job);
        let put = PutAnswer {
            id: id.0.to_string(),
            version,
            status: Status::Pending,
            track_id: track_id.clone(),
            job_id,
        };
        Answer { status: 202, body: serde_json::to_value(put).unwrap_or_default() }
    };
    let submission = Submission {
        permit: &permit,
        documents: std::slice::from_ref(&document),
        existing: OnExisting::Replace,
        track_id: &track_id,
        operation: "document.put",
        key: &key,
        request,
        answer: &answer,
    };
    let (mut answer, replayed) = match submit(&app, &corpus, submission).await? {
        Submitted::Now(accepted) => (answer(&accepted), false),
        Submitted::Before(answer) => (answer, true),
    };
    let seconds = wait.0.map(|seconds| seconds.min(app.limits.max_wait_seconds));
    if let Some(seconds) = seconds.filter(|seconds| *seconds > 0) {
        let version = answer.body["version"].as_i64().unwrap_or_default();
        let waited = processed(&app, &corpus, &id.0, version, Duration::from_secs(seconds));
        let status = while_valid(&app, &caller, waited.map_err(Problem::from)).await?;
        answer.body["status"] = json!(status);
        if status == Status::Processed {
            answer.status = if version == 1 { 201 } else { 200 };
        }
    }
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::ACCEPTED);
    let mut builder = HttpResponse::build(status);
    if let Some(seconds) = seconds {
        builder.insert_header(("Preference-Applied", format!("wait={seconds}")));
    }
    if replayed {
        builder.insert_header(("Idempotency-Replayed", "true"));
    }
    Ok(builder.json(&answer.body))
}

/// Waits until this version was processed or failed, or the time has passed. A version that is gone, because a
/// later one or a deletion overtook it, has failed.
async fn processed(
    app: &App,
    corpus: &Corpus,
    id: &DocumentId,
    version: i64,
    time: Duration,
) -> Result<Status, StoreError> {
    let until = app.clock.instant() + time;
    let mut pause = Duration::from_millis(15);
    loop {
        let status = match corpus.document_get(id).await? {
            Some(row) if row.version == version => row.status,
            _ => Status::Failed,
        };
        let left = until.saturating_duration_since(app.clock.instant());
        if matches!(status, Status::Processed | Status::Failed) || left.is_zero() {
            return Ok(status);
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}

/// Tells a document's state.
#[utoipa::path(
    get, path = "/documents/{id}", tag = "documents",
    params(
        ("id" = String, Path, description = "The document"),
        ("X-Namespace" = Option<String>, Header, description = "The namespace"),
    ),
    responses((status = 200, body = Document)),
)]
#[tracing::instrument(name = "http.document.get", skip_all)]
pub(in crate::http) async fn document_get(
    permit: Permit<Read>,
    namespace: Namespace,
    id: DocumentPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let corpus = corpus(&app, &permit, &namespace).await?.ok_or_else(Problem::not_found)?;
    let row = corpus.document_get(&id.0).await?.ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(Document::from(row)))
}

/// Deletes a document with all its versions, at once and for good.
#[utoipa::path(
    delete, path = "/documents/{id}", tag = "documents",
    params(
        ("id" = String, Path, description = "The document"),
        ("X-Namespace" = Option<String>, Header, description = "The namespace"),
    ),
    responses((status = 200, body = Said, description = "It is gone")),
)]
#[tracing::instrument(name = "http.document.delete", skip_all)]
pub(in crate::http) async fn document_delete(
    permit: Permit<Write>,
    namespace: Namespace,
    id: DocumentPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let corpus = corpus_existing(&app, &permit, &namespace).await?.ok_or_else(Problem::not_found)?;
    let deleted = corpus.documents_delete(&[id.0.to_string()]).await?;
    if deleted.is_empty() {
        return Err(Problem::not_found());
    }
    app.changed(&corpus);
    let entry = AuditEntry::new(AuditKind::Write, "document.delete", Decision::Allowed).with_ids(&deleted);
    app.audit.record(permit.scope(), entry).await;
    Ok(HttpResponse::Ok().json(Said { status: "deleted", message: "The document is gone.".to_owned() }))
}
