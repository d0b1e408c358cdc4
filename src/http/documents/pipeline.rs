//! The queue and deletion as LightRAG's routes have them.

use std::collections::BTreeMap;

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::extract::Namespace;
use super::super::json::{ApiJson, Check, Faults};
use super::super::problem::Problem;
use super::super::state::App;
use super::accept::new_track_id;
use super::wire::{Said, written};
use super::{corpus, corpus_existing};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::tenancy::{Permit, Read, Write};

/// Documents of one deletion.
const MAX_DELETED: usize = 1000;
/// The parts whose state LightRAG tells one by one; here they change together.
const PARTS: [&str; 12] = [
    "full_docs",
    "text_chunks",
    "full_entities",
    "full_relations",
    "entity_chunks",
    "relation_chunks",
    "entities",
    "relationships",
    "chunks",
    "chunk_entity_relation",
    "llm_response_cache",
    "doc_status",
];

/// The tenant's own queue.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[expect(clippy::struct_excessive_bools, reason = "the recorded surface")]
pub(in crate::http) struct PipelineStatus {
    /// Whether any of the tenant's documents wait or are processed.
    busy: bool,
    /// A name for people.
    job_name: &'static str,
    /// When the oldest waiting document came.
    job_start: Option<String>,
    /// Documents that wait or are processed.
    docs: i64,
    /// As `docs`.
    batchs: i64,
    /// Documents that are processed at this moment.
    cur_batch: i64,
    /// For people.
    latest_message: String,
    /// For people.
    history_messages: Vec<String>,
    /// Whether a part is to be read anew; none ever is.
    #[schema(value_type = BTreeMap<String, Vec<bool>>)]
    update_status: BTreeMap<&'static str, [bool; 1]>,
    /// Never: a crash loses nothing.
    recovery_required: bool,
    /// Null.
    recovery_kind: Option<String>,
    /// Null.
    recovery_message: Option<String>,
    /// Never: deletion runs beside all else.
    destructive_busy: bool,
    /// Never: there is no folder to scan.
    scanning: bool,
    /// Never.
    scanning_exclusive: bool,
    /// Documents that wait.
    pending_enqueues: i64,
    /// Never: cancelling is done when it is answered.
    cancellation_requested: bool,
    /// Null.
    cancellation_reason: Option<String>,
    /// Null.
    cancellation_detail: Option<String>,
}

/// Tells what the caller's own tenant has in the queue.
#[utoipa::path(
    get, path = "/documents/pipeline_status", tag = "documents", responses((status = 200, body = PipelineStatus)),
)]
#[tracing::instrument(name = "http.pipeline.status", skip_all)]
pub(in crate::http) async fn pipeline_status(
    permit: Permit<Read>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let counts = app.stores.reader(&permit).job_counts().await?;
    let docs = counts.queued + counts.running;
    let message = if docs == 0 {
        "Nothing waits.".to_owned()
    } else {
        format!("{} being processed, {} waiting.", counts.running, counts.queued)
    };
    Ok(HttpResponse::Ok().json(PipelineStatus {
        busy: docs > 0,
        job_name: "ingestion",
        job_start: counts.since.map(written),
        docs,
        batchs: docs,
        cur_batch: counts.running,
        latest_message: message.clone(),
        history_messages: vec![message],
        update_status: PARTS.into_iter().map(|part| (part, [false])).collect(),
        recovery_required: false,
        recovery_kind: None,
        recovery_message: None,
        destructive_busy: false,
        scanning: false,
        scanning_exclusive: false,
        pending_enqueues: counts.queued,
        cancellation_requested: false,
        cancellation_reason: None,
        cancellation_detail: None,
    }))
}

/// Documents to delete.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(in crate::http) struct DeleteRequest {
    /// Which, at most 1000.
    doc_ids: Vec<String>,
    /// Accepted and not used: a document's file is always deleted with it.
    #[serde(default)]
    #[expect(dead_code, reason = "part of the recorded surface")]
    delete_file: bool,
    /// Accepted and not used: answers made from a document are never kept beyond it.
    #[serde(default)]
    #[expect(dead_code, reason = "part of the recorded surface")]
    delete_llm_cache: bool,
}

impl Check for DeleteRequest {
    fn check(&self, faults: &mut Faults) {
        faults.list("doc_ids", self.doc_ids.len(), 1, MAX_DELETED);
        for (at, id) in self.doc_ids.iter().enumerate() {
            faults.text_at(&[json!("doc_ids"), json!(at)], id, 1, 256);
        }
    }
}

/// What was begun.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Deletion {
    /// `deletion_started`.
    status: &'static str,
    /// For people.
    message: String,
    /// The documents, as they were named.
    doc_id: String,
}

/// Deletes documents. The answer is the same for those that are not there.
#[utoipa::path(
    delete, path = "/documents/delete_document", tag = "documents", request_body = DeleteRequest,
    params(("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace")),
    responses((status = 200, body = Deletion)),
)]
#[tracing::instrument(name = "http.document.delete_list", skip_all)]
pub(in crate::http) async fn delete_document(
    permit: Permit<Write>,
    namespace: Namespace,
    app: Data<App>,
    body: ApiJson<DeleteRequest>,
) -> Result<HttpResponse, Problem> {
    if let Some(corpus) = corpus_existing(&app, &permit, &namespace).await? {
        let deleted = corpus.documents_delete(&body.doc_ids).await?;
        if !deleted.is_empty() {
            app.changed(&corpus);
            let entry =
                AuditEntry::new(AuditKind::Write, "document.delete", Decision::Allowed).with_ids(&deleted);
            app.audit.record(permit.scope(), entry).await;
        }
    }
    Ok(HttpResponse::Ok().json(Deletion {
        status: "deletion_started",
        message: "Whatever was there of these documents is gone.".to_owned(),
        doc_id: body.doc_ids.join(", "),
    }))
}

/// Deletes every document of the namespace.
#[utoipa::path(
    delete, path = "/documents", tag = "documents",
    params(("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace")),
    responses((status = 200, body = Said)),
)]
#[tracing::instrument(name = "http.document.clear", skip_all)]
pub(in crate::http) async fn clear(
    permit: Permit<Write>,
    namespace: Namespace,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let mut message = "Every document is gone.".to_owned();
    if let Some(corpus) = corpus(&app, &permit, &namespace).await? {
        let entry = AuditEntry::new(AuditKind::Write, "document.clear", Decision::Allowed)
            .with_ids([namespace.0.as_str()]);
        let act = app.audit.tenant_act(permit.scope(), entry);
        let erased =
            app.stores.writer(&permit).namespace_delete(act, &namespace.0).await?.unwrap_or_default();
        if !erased.later.is_empty() {
            message +=
                &[" What ", &erased.later.join(" and "), " holds of their indexes is swept later."].concat();
        }
        app.changed(&corpus);
    }
    Ok(HttpResponse::Ok().json(Said { status: "success", message }))
}

/// What was begun, with a track.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Started {
    /// What was begun.
    status: &'static str,
    /// For people.
    message: String,
    /// Names the call.
    track_id: String,
}

/// There is no input folder here: documents come by the other routes, and a scan finds nothing.
#[utoipa::path(post, path = "/documents/scan", tag = "documents", responses((status = 200, body = Started)))]
#[tracing::instrument(name = "http.document.scan", skip_all)]
pub(in crate::http) async fn scan(_permit: Permit<Write>, app: Data<App>) -> HttpResponse {
    HttpResponse::Ok().json(Started {
        status: "scanning_started",
        message: "There is no input folder; upload documents instead.".to_owned(),
        track_id: new_track_id(&app, "scan"),
    })
}

/// Every cached answer ends with the corpus it was made from, so that there is nothing to clear.
#[utoipa::path(post, path = "/documents/clear_cache", tag = "documents", responses((status = 200, body = Said)))]
#[tracing::instrument(name = "http.document.clear_cache", skip_all)]
pub(in crate::http) async fn clear_cache(_permit: Permit<Write>) -> HttpResponse {
    HttpResponse::Ok().json(Said { status: "success", message: "No answer outlives its corpus.".to_owned() })
}

/// Puts documents back into the queue that failed or were cancelled.
#[utoipa::path(
    post, path = "/documents/reprocess_failed", tag = "documents",
    params(("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace")),
    responses((status = 200, body = Started)),
)]
#[tracing::instrument(name = "http.document.reprocess", skip_all)]
pub(in crate::http) async fn reprocess_failed(
    permit: Permit<Write>,
    namespace: Namespace,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let again = match corpus_existing(&app, &permit, &namespace).await? {
        Some(corpus) => corpus.documents_requeue().await?,
        None => 0,
    };
    if again > 0 {
        app.wake.notify_one();
        let entry = AuditEntry::new(AuditKind::Write, "document.reprocess", Decision::Allowed);
        app.audit.record(permit.scope(), entry).await;
    }
    Ok(HttpResponse::Ok().json(Started {
        status: "reprocessing_started",
        message: format!("Documents that are tried again: {again}."),
        track_id: String::new(),
    }))
}

/// Cancels every document of the namespace that waits or is processed.
#[utoipa::path(
    post, path = "/documents/cancel_pipeline", tag = "documents",
    params(("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace")),
    responses((status = 200, body = Said)),
)]
#[tracing::instrument(name = "http.pipeline.cancel", skip_all)]
pub(in crate::http) async fn cancel_pipeline(
    permit: Permit<Write>,
    namespace: Namespace,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let cancelled = match corpus_existing(&app, &permit, &namespace).await? {
        Some(corpus) => corpus.jobs_cancel().await?,
        None => 0,
    };
    if cancelled == 0 {
        return Ok(HttpResponse::Ok().json(Said { status: "not_busy", message: "Nothing waits.".to_owned() }));
    }
    let entry = AuditEntry::new(AuditKind::Write, "job.cancel_all", Decision::Allowed);
    app.audit.record(permit.scope(), entry).await;
    let message = format!("Documents that were cancelled: {cancelled}.");
    Ok(HttpResponse::Ok().json(Said { status: "cancellation_requested", message }))
}
