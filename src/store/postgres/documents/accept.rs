//! Documents on their way in: refused, recorded as duplicates, or accepted with a job for each.
//!
//! **Invariant:** all of a batch is accepted, or nothing of it is written.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::super::error::failed;
use super::super::transaction::TenantTransaction;
use super::super::usage;
use super::{Acceptance, Accepted, Content, NewDocument, OnExisting, UNNAMED, namespace_lock};
use crate::domain::document::Status;
use crate::domain::ids::JobId;
use crate::domain::limits::Limits;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::handles::CorpusWriter;

const OPERATION: &str = "document.accept";

impl CorpusWriter {
    /// Accepts documents with a job for each, all or none.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Conflict` when the namespace was deleted meanwhile, `Invalid` when an id comes
    /// twice; then nothing was written.
    pub async fn documents_accept(
        &self,
        documents: &[NewDocument],
        existing: OnExisting,
        track_id: &str,
        limits: &Limits,
    ) -> Result<Acceptance, StoreError> {
        let mut tx = self.reader.begin().await?;
        let acceptance = self.accept_in(&mut tx, documents, existing, track_id, limits).await?;
        if matches!(acceptance, Acceptance::Accepted(_)) {
            tx.commit().await?;
        }
        Ok(acceptance)
    }

    pub(in crate::store::postgres) async fn accept_in(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
        existing: OnExisting,
        track_id: &str,
        limits: &Limits,
    ) -> Result<Acceptance, StoreError> {
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let ids: Vec<&str> = documents.iter().map(|document| document.document_id.as_str()).collect();
        if repeats(&ids).is_some() {
            return Err(StoreError::new(ErrorKind::Invalid, "postgres", OPERATION, "an id comes twice"));
        }
        // Two calls with the same name cannot both find it free.
        namespace_lock(tx, self.partition.namespace()).await?;
        let there: bool = sqlx::query_scalar(
            "select exists(select from namespace where tenant_id = $1 and namespace_id = $2)",
        )
        .bind(tenant)
        .bind(namespace)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        if !there {
            return Err(StoreError::new(ErrorKind::Conflict, "postgres", OPERATION, "the namespace is gone"));
        }
        let mut plans = Vec::with_capacity(documents.len());
        if existing == OnExisting::Refuse {
            if let Some(name) = self.name_taken(tx, documents, &ids).await? {
                return Ok(Acceptance::NameTaken(name));
            }
            let mut originals = self.originals(tx, documents).await?;
            for document in documents {
                let hash = document.content_hash.to_vec();
                plans.push(Plan::new(document, originals.get(&hash).cloned()));
                originals
                    .entry(hash)
                    .or_insert_with(|| (document.document_id.to_string(), track_id.to_owned()));
            }
        } else {
            plans.extend(documents.iter().map(|document| Plan::new(document, None)));
        }

        let postgres = self.reader.postgres();
        let now = postgres.clock.now();
        // Jobs before documents, and by identity: whoever locks them in another order would deadlock with
        // progress and commit.
        sqlx::query(
            "update job set state = 'cancelled', finished_at = $4, updated_at = $4, revision = revision + 1
             from (
                 select j.job_id from unnest($3::text[]) as n(document_id)
                 cross join lateral (
                     select job_id, state from job j
                     where j.tenant_id = $1 and j.namespace_id = $2 and j.document_id = n.document_id offset 0) j
                 where j.state in ('queued', 'running') order by job_id offset 0) older
             cross join lateral (
                 select j.ctid, j.state from job j
                 where j.tenant_id = $1 and j.job_id = older.job_id for update) j
             where job.ctid = j.ctid and j.state in ('queued', 'running')",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(&ids)
        .bind(now)
        .execute(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let versions = self.documents_upsert(tx, documents, &plans, track_id, now).await?;
        let mut accepted = Vec::with_capacity(plans.len());
        for plan in &plans {
            let (version, created) = versions.get(&plan.id).copied().unwrap_or((1, true));
            let job = (plan.status == Status::Pending).then(|| JobId(postgres.ids.uuid()));
            accepted.push(Accepted { document_id: plan.id.clone(), version, created, job });
        }
        self.versions_insert(tx, documents, &accepted, track_id, now).await?;
        self.refused(tx, documents, &accepted, limits)
            .await
            .map(|refused| refused.unwrap_or(Acceptance::Accepted(accepted)))
    }

    /// Counts what was written; the limit that it would pass, if any.
    async fn refused(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
        accepted: &[Accepted],
        limits: &Limits,
    ) -> Result<Option<Acceptance>, StoreError> {
        let tenant = self.partition.tenant();
        let made = accepted.iter().filter(|accepted| accepted.created).count();
        let kept = std::iter::zip(documents, accepted).filter(|(_, accepted)| accepted.job.is_some());
        let (jobs, bytes) = kept.fold((0, 0_u64), |(jobs, bytes), (document, _)| {
            (jobs + 1, bytes.saturating_add(document.content_length))
        });
        let counted = (i64::try_from(made).unwrap_or(i64::MAX), i64::try_from(bytes).unwrap_or(i64::MAX));
        if let Some(quota) = usage::take(tx, tenant, counted, limits).await? {
            return Ok(Some(Acceptance::QuotaReached(quota)));
        }
        let too_many = jobs > 0 && usage::too_many_jobs(tx, tenant, limits).await?;
        Ok(too_many.then_some(Acceptance::QueueFull))
    }

    /// The first name that comes twice or is taken, or whose document's id is.
    async fn name_taken(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
        ids: &[&str],
    ) -> Result<Option<String>, StoreError> {
        let names: Vec<&str> = documents.iter().map(|document| document.file_name.as_str()).collect();
        let taken: Option<String> = sqlx::query_scalar(
            "select n.file_name from unnest($3::text[], $4::text[]) as n(document_id, file_name)
             cross join lateral (
                 (select 1 from document d
                  where d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = n.document_id limit 1)
                 union all
                 (select 1 from document d
                  where d.tenant_id = $1 and d.namespace_id = $2 and d.file_name = n.file_name
                      and n.file_name <> $5 limit 1)) taken
             limit 1",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(ids)
        .bind(&names)
        .bind(UNNAMED)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        let claimed: Vec<&str> = names.into_iter().filter(|name| *name != UNNAMED).collect();
        Ok(taken.or_else(|| repeats(&claimed).map(str::to_owned)))
    }

    /// The documents whose content comes again, by its hash: identity and track.
    async fn originals(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
    ) -> Result<BTreeMap<Vec<u8>, (String, String)>, StoreError> {
        let hashes: Vec<&[u8]> = documents.iter().map(|document| document.content_hash.as_slice()).collect();
        let rows: Vec<(Vec<u8>, String, String)> = sqlx::query_as(
            "select d.content_hash, d.document_id, d.track_id from unnest($3::bytea[]) as n(content_hash)
             cross join lateral (
                 select * from document d
                 where d.tenant_id = $1 and d.namespace_id = $2 and d.content_hash = n.content_hash
                     and d.metadata ->> 'is_duplicate' is null offset 0) d",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(&hashes)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        Ok(rows.into_iter().map(|(hash, id, track)| (hash, (id, track))).collect())
    }

    /// Writes the documents as planned. Returns each one's version, and whether it is new.
    async fn documents_upsert(
        &self,
        tx: &mut TenantTransaction,
        documents: &[NewDocument],
        plans: &[Plan],
        track_id: &str,
        now: DateTime<Utc>,
    ) -> Result<BTreeMap<String, (i64, bool)>, StoreError> {
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
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(plans.iter().map(|plan| plan.id.as_str()).collect::<Vec<_>>())
        .bind(plans.iter().map(|plan| plan.status.name()).collect::<Vec<_>>())
        .bind(documents.iter().map(|document| document.file_name.as_str()).collect::<Vec<_>>())
        .bind(documents.iter().map(|document| document.content_hash.as_slice()).collect::<Vec<_>>())
        .bind(documents.iter().map(|d| i64::try_from(d.content_length).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .bind(documents.iter().map(|document| document.summary.as_str()).collect::<Vec<_>>())
        .bind(plans.iter().map(|plan| plan.error.as_deref()).collect::<Vec<_>>())
        .bind(plans.iter().map(|plan| plan.metadata.clone()).collect::<Vec<_>>())
        .bind(track_id)
        .bind(now)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(OPERATION))?;
        Ok(rows.into_iter().map(|(id, version, created)| (id, (version, created))).collect())
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
                     metadata, body, upload_id, bytes, created_at)
                 select $1, $2, document_id, version, title, file_name, metadata, body, upload_id, bytes, $12
                 from unnest($3::text[], $4::bigint[], $5::text[], $6::text[], $7::jsonb[], $8::text[], $9::uuid[],
                     $11::bigint[]) as n(document_id, version, title, file_name, metadata, body, upload_id, bytes))
             insert into job (tenant_id, job_id, namespace_id, kind, document_id, version, track_id, state, cost,
                 upload, due_at, created_at, updated_at)
             select $1, job_id, $2, 'ingest', document_id, version, $13, 'queued', cost, upload_id is not null,
                 $12, $12, $12
             from unnest($10::uuid[], $3::text[], $4::bigint[], $11::bigint[], $9::uuid[])
                 as n(job_id, document_id, version, cost, upload_id)",
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
        .map_err(failed(OPERATION))?;
        Ok(())
    }
}

/// The first that comes a second time.
fn repeats<'a>(texts: &[&'a str]) -> Option<&'a str> {
    let mut seen = HashSet::with_capacity(texts.len());
    texts.iter().copied().find(|text| !seen.insert(*text))
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
