//! Documents: accepted, listed, deleted.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::error::failed;
use super::transaction::TenantTransaction;
use crate::domain::document::Status;
use crate::domain::ids::{DocumentId, JobId};
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

/// How LightRAG's routes treat what is there already. `PUT` replaces instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    /// A name that is taken is a conflict; a content that is there under another name is recorded as failed.
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
    /// This file name is taken. Nothing was written.
    NameTaken(String),
    /// More jobs would wait than the tenant may have. Nothing was written.
    QueueFull,
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

    /// Accepts documents with a job for each, all or none.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Conflict`; then nothing was written.
    pub async fn documents_accept(
        &self,
        documents: &[NewDocument],
        existing: OnExisting,
        track_id: &str,
        max_queued: i64,
    ) -> Result<Acceptance, StoreError> {
        let mut tx = self.reader.begin().await?;
        let acceptance = self.accept_in(&mut tx, documents, existing, track_id, max_queued).await?;
        if matches!(acceptance, Acceptance::Accepted(_)) {
            tx.commit().await?;
        }
        Ok(acceptance)
    }

    pub(super) async fn accept_in(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
        existing: OnExisting,
        track_id: &str,
        max_queued: i64,
    ) -> Result<Acceptance, StoreError> {
        const OPERATION: &str = "document.accept";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let names: Vec<&str> = documents.iter().map(|document| document.file_name.as_str()).collect();
        let hashes: Vec<&[u8]> = documents.iter().map(|document| document.content_hash.as_slice()).collect();
        let ids: Vec<&str> = documents.iter().map(|document| document.document_id.as_str()).collect();
        // One acceptance at a time in a namespace: two calls with the same name cannot both find it free.
        sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 7))")
            .bind(namespace.to_string())
            .execute(&mut **tx)
            .await
            .map_err(failed(OPERATION))?;
        let queued: i64 = sqlx::query_scalar(
            "select count(*) from job where tenant_id = $1 and state in ('queued', 'running')",
        )
        .bind(tenant)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        if queued + i64::try_from(documents.len()).unwrap_or(i64::MAX) > max_queued {
            return Ok(Acceptance::QueueFull);
        }
        let mut originals: BTreeMap<Vec<u8>, (String, String)> = BTreeMap::new();
        if existing == OnExisting::Refuse {
            let taken: Option<String> = sqlx::query_scalar(
                "select file_name from document where tenant_id = $1 and namespace_id = $2 and file_name = any($3) limit 1",
            )
            .bind(tenant)
            .bind(namespace)
            .bind(&names)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed(OPERATION))?;
            if let Some(name) = taken {
                return Ok(Acceptance::NameTaken(name));
            }
            let rows: Vec<(Vec<u8>, String, String)> = sqlx::query_as(
                "select content_hash, document_id, track_id from document
                 where tenant_id = $1 and namespace_id = $2 and content_hash = any($3)
                     and metadata ->> 'is_duplicate' is null",
            )
            .bind(tenant)
            .bind(namespace)
            .bind(&hashes)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(OPERATION))?;
            originals.extend(rows.into_iter().map(|(hash, id, track)| (hash, (id, track))));
        }

        let postgres = self.reader.postgres();
        let now = postgres.clock.now();
        let mut plans = Vec::with_capacity(documents.len());
        for document in documents {
            let original = (existing == OnExisting::Refuse)
                .then(|| originals.get(document.content_hash.as_slice()).cloned())
                .flatten();
            originals
                .entry(document.content_hash.to_vec())
                .or_insert_with(|| (document.document_id.to_string(), track_id.to_owned()));
            plans.push(Plan::new(document, original));
        }
        let rows: Vec<(String, i64, bool)> = sqlx::query_as(
            "insert into document as d (tenant_id, namespace_id, document_id, version, status, file_name,
                 content_hash, content_length, content_summary, error, metadata, track_id, created_at, updated_at)
             select $1, $2, document_id, 1, status, file_name, content_hash, content_length, content_summary,
                 error, metadata, $11, $12, $12
             from unnest($3::text[], $4::text[], $5::text[], $6::bytea[], $7::bigint[], $8::text[], $9::text[],
                 $10::jsonb[]) as n(document_id, status, file_name, content_hash, content_length,
                 content_summary, error, metadata)
             on conflict (tenant_id, namespace_id, document_id) do update set
                 version = d.version + 1, status = excluded.status, file_name = excluded.file_name,
                 content_hash = excluded.content_hash, content_length = excluded.content_length,
                 content_summary = excluded.content_summary, error = excluded.error,
                 metadata = excluded.metadata, track_id = excluded.track_id, updated_at = excluded.updated_at
             returning d.document_id, d.version, d.version = 1",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(plans.iter().map(|plan| plan.id.as_str()).collect::<Vec<_>>())
        .bind(plans.iter().map(|plan| plan.status.name()).collect::<Vec<_>>())
        .bind(&names)
        .bind(&hashes)
        .bind(documents.iter().map(|d| i64::try_from(d.content_length).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .bind(documents.iter().map(|document| document.summary.as_str()).collect::<Vec<_>>())
        .bind(plans.iter().map(|plan| plan.error.as_deref()).collect::<Vec<_>>())
        .bind(plans.iter().map(|plan| plan.metadata.clone()).collect::<Vec<_>>())
        .bind(track_id)
        .bind(now)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let versions: BTreeMap<&str, (i64, bool)> =
            rows.iter().map(|(id, version, created)| (id.as_str(), (*version, *created))).collect();

        sqlx::query(
            "update job set state = 'cancelled', finished_at = $4, updated_at = $4, revision = revision + 1
             where tenant_id = $1 and namespace_id = $2 and document_id = any($3) and state in ('queued', 'running')",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(&ids)
        .bind(now)
        .execute(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;

        let mut accepted = Vec::with_capacity(plans.len());
        for plan in &plans {
            let (version, created) = versions.get(plan.id.as_str()).copied().unwrap_or((1, true));
            let job = (plan.status == Status::Pending).then(|| JobId(postgres.ids.uuid()));
            accepted.push(Accepted { document_id: plan.id.clone(), version, created, job });
        }
        self.versions_insert(tx, documents, &accepted, track_id, now).await?;
        Ok(Acceptance::Accepted(accepted))
    }

    /// The versions' content and their jobs, for those that are processed.
    async fn versions_insert(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
        accepted: &[Accepted],
        track_id: &str,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let work: Vec<(&NewDocument, &Accepted, Uuid)> = std::iter::zip(documents, accepted)
            .filter_map(|(document, accepted)| Some((document, accepted, accepted.job?.0)))
            .collect();
        let text = |document: &NewDocument| match &document.content {
            Content::Text(text) => (Some(text.clone()), None),
            Content::Upload(upload) => (None, Some(*upload)),
        };
        let (bodies, uploads): (Vec<_>, Vec<_>) = work.iter().map(|(document, ..)| text(document)).unzip();
        sqlx::query(
            "with v as (
                 insert into document_version (tenant_id, namespace_id, document_id, version, title, file_name,
                     metadata, body, upload_id, created_at)
                 select $1, $2, document_id, version, title, file_name, metadata, body, upload_id, $12
                 from unnest($3::text[], $4::bigint[], $5::text[], $6::text[], $7::jsonb[], $8::text[], $9::uuid[])
                     as n(document_id, version, title, file_name, metadata, body, upload_id))
             insert into job (tenant_id, job_id, namespace_id, kind, document_id, version, track_id, state, cost,
                 due_at, created_at, updated_at)
             select $1, job_id, $2, 'ingest', document_id, version, $13, 'queued', cost, $12, $12, $12
             from unnest($10::uuid[], $3::text[], $4::bigint[], $11::bigint[])
                 as n(job_id, document_id, version, cost)",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(work.iter().map(|(_, accepted, _)| accepted.document_id.as_str()).collect::<Vec<_>>())
        .bind(work.iter().map(|(_, accepted, _)| accepted.version).collect::<Vec<_>>())
        .bind(work.iter().map(|(document, ..)| document.title.as_deref()).collect::<Vec<_>>())
        .bind(work.iter().map(|(document, ..)| document.file_name.as_str()).collect::<Vec<_>>())
        .bind(work.iter().map(|(document, ..)| document.metadata.clone()).collect::<Vec<_>>())
        .bind(&bodies)
        .bind(&uploads)
        .bind(work.iter().map(|(_, _, job)| *job).collect::<Vec<_>>())
        .bind(work.iter().map(|(d, ..)| i64::try_from(d.content_length).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .bind(now)
        .bind(track_id)
        .execute(&mut **tx)
        .await
        .map_err(failed("document.accept"))?;
        Ok(())
    }

    /// Deletes documents at once: no row of them stays in any table. Returns those that were there.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was deleted.
    pub async fn documents_delete(&self, documents: &[String]) -> Result<Vec<String>, StoreError> {
        const OPERATION: &str = "document.delete";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        let seq: Option<i64> = sqlx::query_scalar(
            "update namespace set seq = seq + 1 where tenant_id = $1 and namespace_id = $2 returning seq",
        )
        .bind(tenant)
        .bind(namespace)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(seq) = seq else { return Ok(Vec::new()) };
        let rows: Vec<(String, Vec<Option<Uuid>>)> = sqlx::query_as(
            "with gone as (
                 delete from document where tenant_id = $1 and namespace_id = $2 and document_id = any($3)
                 returning document_id),
             jobs as (
                 delete from job where tenant_id = $1 and namespace_id = $2 and document_id = any($3)),
             answers as (
                 delete from idempotency where tenant_id = $1 and namespace_id = $2 and document_ids && $3),
             versions as (
                 delete from document_version
                 where tenant_id = $1 and namespace_id = $2 and document_id = any($3)
                 returning document_id, upload_id)
             select g.document_id, array_agg(v.upload_id) from gone g left join versions v using (document_id)
             group by g.document_id",
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
        let (deleted, uploads): (Vec<String>, Vec<_>) = rows.into_iter().unzip();
        let mut terms = BTreeMap::new();
        let removed = self.chunks_remove(&mut tx, &deleted, &mut terms).await?;
        self.terms_add(&mut tx, &terms).await?;
        sqlx::query(
            "with history as (
                 insert into outbox (tenant_id, namespace_id, seq, at, removed) values ($1, $2, $3, $4, $5))
             update namespace set chunks = chunks - $6 where tenant_id = $1 and namespace_id = $2",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(seq)
        .bind(self.reader.postgres().clock.now())
        .bind(&removed)
        .bind(i64::try_from(removed.len()).unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
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

/// What is written for one document.
struct Plan {
    id: String,
    status: Status,
    error: Option<String>,
    metadata: Value,
}

impl Plan {
    fn new(document: &NewDocument, original: Option<(String, String)>) -> Self {
        match original {
            None => Self {
                id: document.document_id.to_string(),
                status: Status::Pending,
                error: None,
                metadata: document.metadata.clone(),
            },
            Some((original_doc_id, original_track_id)) => Self {
                id: document.document_id.to_string(),
                status: Status::Failed,
                error: Some("The same content is there under another name".to_owned()),
                metadata: serde_json::json!({
                    "is_duplicate": true,
                    "original_doc_id": original_doc_id,
                    "original_track_id": original_track_id,
                }),
            },
        }
    }
}
