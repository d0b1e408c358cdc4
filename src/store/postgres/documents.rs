//! Documents: accepted, listed, deleted.

mod accept;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::error::failed;
use super::transaction::TenantTransaction;
use super::usage::Quota;
use crate::config::crash_point;
use crate::domain::document::Status;
use crate::domain::ids::{DocumentId, JobId, NamespaceId};
use crate::store::error::StoreError;
use crate::store::handles::{Corpus, CorpusWriter, TenantReader};

/// Where a new version's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The text itself.
    Text(String),
    /// A file that was put into the uploads before.
    Upload(Uuid),
}

/// A version of a document, to be accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewDocument {
    /// Its identity in the namespace.
    pub document_id: DocumentId,
    /// Its title, which the model sees before each chunk.
    pub title: Option<String>,
    /// The name by which it is cited.
    pub file_name: String,
    /// What the caller wants to be told back.
    pub metadata: Value,
    /// Its content.
    pub content: Content,
    /// SHA-256 of the content.
    pub content_hash: [u8; 32],
    /// Length of the content in bytes.
    pub content_length: u64,
    /// The first words.
    pub summary: String,
}

/// The name of documents that came without one. It is never taken.
pub const UNNAMED: &str = "unknown_source";

/// How LightRAG's routes treat what is there already. `PUT` replaces instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    /// A name or an id that is taken is a conflict; a content that is there under another name is recorded as
    /// failed.
    Refuse,
    /// A document of this id gets a new version.
    Replace,
}

/// What became of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The document.
    pub document_id: String,
    /// The version that was accepted.
    pub version: i64,
    /// Whether the document is new.
    pub created: bool,
    /// The job that processes it; `None` when it is a duplicate and was recorded as failed.
    pub job: Option<JobId>,
}

/// The answer to a batch of documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// Each document's fate, in the order given.
    Accepted(Vec<Accepted>),
    /// This file name is taken, or comes twice, or the document of this name has the id of one that is there.
    /// Nothing was written.
    NameTaken(String),
    /// More jobs would wait than the tenant may have. Nothing was written.
    QueueFull,
    /// More would be kept than the tenant may. Nothing was written.
    QuotaReached(Quota),
}

/// A document, as it is listed.
#[derive(Debug, Clone)]
pub struct DocumentRow {
    /// Its identity in the namespace.
    pub document_id: String,
    /// The newest version that was accepted.
    pub version: i64,
    /// The version that answers.
    pub live_version: Option<i64>,
    /// The newest version's state.
    pub status: Status,
    /// The name by which it is cited.
    pub file_name: String,
    /// Length of the content in bytes.
    pub content_length: i64,
    /// The first words.
    pub content_summary: String,
    /// Chunks of the version that answers.
    pub chunks_count: Option<i32>,
    /// Why it failed.
    pub error: Option<String>,
    /// What the caller gave.
    pub metadata: Value,
    /// The call that brought the newest version.
    pub track_id: String,
    /// When it was first accepted.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// The namespace that it is in.
    pub namespace: String,
}

impl<'r> FromRow<'r, PgRow> for DocumentRow {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            document_id: row.try_get("document_id")?,
            version: row.try_get("version")?,
            live_version: row.try_get("live_version")?,
            status: Status::from_name(row.try_get("status")?).unwrap_or(Status::Failed),
            file_name: row.try_get("file_name")?,
            content_length: row.try_get("content_length")?,
            content_summary: row.try_get("content_summary")?,
            chunks_count: row.try_get("chunks_count")?,
            error: row.try_get("error")?,
            metadata: row.try_get("metadata")?,
            track_id: row.try_get("track_id")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            namespace: row.try_get("namespace")?,
        })
    }
}

/// By what a listing is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortField {
    /// When it was first accepted.
    CreatedAt,
    /// When it changed last.
    #[default]
    UpdatedAt,
    /// Its identity.
    Id,
    /// The name by which it is cited.
    FilePath,
}

/// A page of a listing.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Only these states; empty: all.
    pub statuses: Vec<Status>,
    /// From 1.
    pub page: i64,
    /// 10 to 200.
    pub page_size: i64,
    /// The order.
    pub sort: SortField,
    /// Largest first.
    pub descending: bool,
}

impl Corpus {
    /// One page of the documents, and how many there are of the asked-for states.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn document_list(&self, listing: &Listing) -> Result<(Vec<DocumentRow>, i64), StoreError> {
        const OPERATION: &str = "document.list";
        let statuses: Vec<&str> = listing.statuses.iter().map(|status| status.name()).collect();
        let sort = match listing.sort {
            SortField::CreatedAt => "created_at",
            SortField::UpdatedAt => "updated_at",
            SortField::Id => "id",
            SortField::FilePath => "file_path",
        };
        let mut tx = self.reader.begin().await?;
        let total: i64 = sqlx::query_scalar(
            "select count(*) from document where tenant_id = $1 and namespace_id = $2
                 and (cardinality($3::text[]) = 0 or status = any($3))",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(&statuses)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let rows = sqlx::query_as(
            "select d.*, n.name as namespace from document d join namespace n using (tenant_id, namespace_id)
             where d.tenant_id = $1 and d.namespace_id = $2
                 and (cardinality($3::text[]) = 0 or d.status = any($3))
             order by
                 case when $4 = 'updated_at' and $5 then d.updated_at end desc,
                 case when $4 = 'updated_at' and not $5 then d.updated_at end,
                 case when $4 = 'created_at' and $5 then d.created_at end desc,
                 case when $4 = 'created_at' and not $5 then d.created_at end,
                 case when $4 = 'file_path' and $5 then d.file_name end desc,
                 case when $4 = 'file_path' and not $5 then d.file_name end,
                 case when $4 = 'id' and $5 then d.document_id end desc,
                 d.document_id
             limit $6 offset $7",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(&statuses)
        .bind(sort)
        .bind(listing.descending)
        .bind(listing.page_size)
        .bind((listing.page - 1).saturating_mul(listing.page_size))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok((rows, total))
    }

    /// How many documents are in each state.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn document_counts(&self) -> Result<BTreeMap<&'static str, i64>, StoreError> {
        let mut tx = self.reader.begin().await?;
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select status, count(*) from document where tenant_id = $1 and namespace_id = $2 group by status",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("document.count"))?;
        tx.commit().await?;
        Ok(rows
            .into_iter()
            .filter_map(|(name, count)| Some((Status::from_name(&name)?.name(), count)))
            .collect())
    }

    /// One document.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn document_get(&self, document: &DocumentId) -> Result<Option<DocumentRow>, StoreError> {
        let mut tx = self.reader.begin().await?;
        let row = sqlx::query_as(
            "select d.*, n.name as namespace from document d join namespace n using (tenant_id, namespace_id)
             where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = $3",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(document.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("document.get"))?;
        tx.commit().await?;
        Ok(row)
    }

    /// Whether a document of this file name is there. Asked before a body is read; the answer that counts
    /// is given again when the document is accepted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn document_name_taken(&self, file_name: &str) -> Result<bool, StoreError> {
        let mut tx = self.reader.begin().await?;
        let taken = sqlx::query_scalar(
            "select exists(select from document where tenant_id = $1 and namespace_id = $2 and file_name = $3)",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(file_name)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("document.name"))?;
        tx.commit().await?;
        Ok(taken)
    }
}

impl TenantReader {
    /// The documents that one call brought, in whatever namespace the credential reaches.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn document_track(&self, track_id: &str) -> Result<Vec<DocumentRow>, StoreError> {
        let mut tx = self.begin().await?;
        let mut rows: Vec<DocumentRow> = sqlx::query_as(
            "select d.*, n.name as namespace from document d join namespace n using (tenant_id, namespace_id)
             where d.tenant_id = $1 and d.track_id = $2 order by d.created_at, d.document_id limit 1000",
        )
        .bind(self.scope.tenant().0)
        .bind(track_id)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("document.track"))?;
        tx.commit().await?;
        rows.retain(|row| self.reaches_name(&row.namespace));
        Ok(rows)
    }

    pub(super) fn reaches_name(&self, namespace: &str) -> bool {
        crate::domain::ids::NamespaceName::parse(namespace).is_ok_and(|name| self.scope.reaches(&name))
    }
}

impl CorpusWriter {
    /// Keeps an uploaded file until its document is deleted. To be called before the document is accepted.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn upload_put(&self, bytes: bytes::Bytes) -> Result<Uuid, StoreError> {
        let upload = self.reader.postgres().ids.uuid();
        let inner = &self.reader.stores.inner;
        inner.uploads.put(self.partition.tenant(), self.partition.namespace(), upload, bytes).await?;
        crash_point("upload-stored");
        Ok(upload)
    }

    /// Reads an uploaded file back.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn upload_get(&self, upload: Uuid) -> Result<Option<bytes::Bytes>, StoreError> {
        let inner = &self.reader.stores.inner;
        inner.uploads.get(self.partition.tenant(), self.partition.namespace(), upload).await
    }

    /// Removes an upload whose document was not accepted.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn upload_remove(&self, upload: Uuid) -> Result<(), StoreError> {
        let inner = &self.reader.stores.inner;
        inner.uploads.remove(self.partition.tenant(), self.partition.namespace(), upload).await
    }

    /// Deletes documents at once: no row of them stays in any table. Returns those that were there.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was deleted.
    pub async fn documents_delete(&self, documents: &[String]) -> Result<Vec<String>, StoreError> {
        const OPERATION: &str = "document.delete";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        // A version that is being accepted is waited for: its rows would not be seen, and stay.
        namespace_lock(&mut tx, self.partition.namespace()).await?;
        let seq: Option<i64> = sqlx::query_scalar(
            "update namespace set seq = seq + 1 where tenant_id = $1 and namespace_id = $2 returning seq",
        )
        .bind(tenant)
        .bind(namespace)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(seq) = seq else { return Ok(Vec::new()) };
        sqlx::query(
            "delete from job where tenant_id = $1 and job_id in (
                 select job_id from job where tenant_id = $1 and namespace_id = $2 and document_id = any($3)
                 order by job_id for update)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(documents)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let rows: Vec<(String, Vec<Option<Uuid>>, i64)> = sqlx::query_as(
            "with gone as (
                 delete from document where tenant_id = $1 and namespace_id = $2 and document_id = any($3)
                 returning document_id),
             answers as (
                 delete from idempotency where tenant_id = $1 and namespace_id = $2 and document_ids && $3),
             versions as (
                 delete from document_version
                 where tenant_id = $1 and namespace_id = $2 and document_id = any($3)
                 returning document_id, upload_id, bytes)
             select g.document_id, array_agg(v.upload_id), coalesce(sum(v.bytes), 0)::bigint
             from gone g left join versions v using (document_id) group by g.document_id",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(documents)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: i64 = rows.iter().map(|(.., bytes)| bytes).sum();
        let (deleted, uploads): (Vec<String>, Vec<_>) =
            rows.into_iter().map(|(document, uploads, _)| (document, uploads)).unzip();
        let mut terms = BTreeMap::new();
        let removed = self.chunks_remove(&mut tx, &deleted, &mut terms).await?;
        self.terms_add(&mut tx, &terms).await?;
        sqlx::query(
            "with history as (
                 insert into outbox (tenant_id, namespace_id, seq, at, removed) values ($1, $2, $3, $4, $5)),
             given_back as (
                 update tenant_usage set documents = documents - $7, bytes = bytes - $8 where tenant_id = $1)
             update namespace set chunks = chunks - $6 where tenant_id = $1 and namespace_id = $2",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(seq)
        .bind(self.reader.postgres().clock.now())
        .bind(&removed)
        .bind(i64::try_from(removed.len()).unwrap_or(i64::MAX))
        .bind(i64::try_from(deleted.len()).unwrap_or(i64::MAX))
        .bind(bytes)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        crash_point("document-not-yet-deleted");
        tx.commit().await?;
        crash_point("document-rows-deleted");
        let uploads: Vec<Uuid> = uploads.into_iter().flatten().flatten().collect();
        self.uploads_forget(&uploads).await;
        Ok(deleted)
    }

    /// Removes the files of versions that are gone. What cannot be removed now stays for the sweep.
    pub(super) async fn uploads_forget(&self, uploads: &[Uuid]) {
        for upload in uploads {
            if let Err(error) = self.upload_remove(*upload).await {
                tracing::warn!(%upload, error = &error as &dyn std::error::Error, "an upload stays behind");
            }
        }
    }
}

/// One acceptance or deletion at a time in a namespace.
pub(super) async fn namespace_lock(
    tx: &mut TenantTransaction,
    namespace: NamespaceId,
) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 7))")
        .bind(namespace.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed("namespace.lock"))?;
    Ok(())
}
