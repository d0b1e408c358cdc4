//! The shapes of LightRAG's document routes, with what we add to them.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::domain::document::Status;
use crate::domain::ids::JobId;
use crate::store::postgres::documents::DocumentRow;

/// A time as LightRAG writes it: microseconds and an offset.
pub(super) fn written(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, false)
}

/// The answer to an insert.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Insert {
    /// `success`: accepted, and processed from now on.
    pub(super) status: &'static str,
    /// For people.
    pub(super) message: String,
    /// Names the documents of this call.
    pub(super) track_id: String,
    /// The job of the first document; null for a duplicate, which is recorded as failed.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub(super) job_id: Option<JobId>,
    /// The jobs of all documents, in their order, duplicates left out.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub(super) job_ids: Vec<JobId>,
    /// All documents, in their order.
    pub(super) document_ids: Vec<String>,
}

/// A document as it is listed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Document {
    /// Its identity in the namespace.
    id: String,
    /// The first words.
    content_summary: String,
    /// Length of the content in bytes.
    content_length: i64,
    /// The newest version's state.
    status: Status,
    /// When it was first accepted.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// The call that brought the newest version.
    track_id: String,
    /// Chunks of the version that answers.
    chunks_count: Option<i32>,
    /// Why it failed.
    error_msg: Option<String>,
    /// What the caller gave, or of a duplicate what it repeats.
    #[schema(value_type = Object)]
    metadata: Value,
    /// The name by which it is cited.
    file_path: String,
    /// The newest version that was accepted.
    version: i64,
    /// The version that answers; null while none does.
    live_version: Option<i64>,
    /// The namespace it is in.
    namespace: String,
}

impl From<DocumentRow> for Document {
    fn from(row: DocumentRow) -> Self {
        Self {
            id: row.document_id,
            content_summary: row.content_summary,
            content_length: row.content_length,
            status: row.status,
            created_at: written(row.created_at),
            updated_at: written(row.updated_at),
            track_id: row.track_id,
            chunks_count: row.chunks_count,
            error_msg: row.error,
            metadata: row.metadata,
            file_path: row.file_name,
            version: row.version,
            live_version: row.live_version,
            namespace: row.namespace,
        }
    }
}

/// How many documents are in each state, with `preprocessed` as LightRAG has it, and `all`.
pub(super) fn counts(counted: &BTreeMap<&'static str, i64>) -> BTreeMap<&'static str, i64> {
    let mut counts: BTreeMap<&'static str, i64> = Status::ALL
        .iter()
        .map(|status| (status.name(), counted.get(status.name()).copied().unwrap_or(0)))
        .collect();
    counts.insert("preprocessed", 0);
    counts.insert("all", counted.values().sum());
    counts
}

/// A word and a sentence, as several routes answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Said {
    /// What was done.
    pub(super) status: &'static str,
    /// For people.
    pub(super) message: String,
}
