//! Writes that are answered once, however often they are sent.
//!
//! **Invariant:** the answer is kept in the transaction that makes it true, so that a crash keeps both or neither.
//! **Invariant:** a key belongs to one tenant, namespace, principal and operation; nobody else's request meets it.

use serde_json::Value;
use sqlx::Row;

use super::documents::{Acceptance, Accepted, NewDocument, OnExisting, namespace_lock};
use super::error::failed;
use crate::domain::limits::Limits;
use crate::store::error::StoreError;
use crate::store::handles::CorpusWriter;

/// How long an answer is kept, hours.
const KEPT_HOURS: i64 = 24;

/// An answer to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

/// A write that carries a key.
pub struct Once<'a> {
    /// What is done, as `document.insert`.
    pub operation: &'static str,
    /// The caller's key.
    pub key: &'a str,
    /// SHA-256 of everything that the request says.
    pub request: [u8; 32],
    /// The answer, made from what was accepted.
    pub answer: &'a (dyn Fn(&[Accepted]) -> Answer + Send + Sync),
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done now, or refused.
    Now(Acceptance),
    /// It had been done before; this was the answer.
    Before(Answer),
    /// The key was used for another request. Nothing was written.
    KeyReused,
}

impl CorpusWriter {
    /// Accepts documents as [`CorpusWriter::documents_accept`] does, unless a request of this key was accepted
    /// within a day. Only an acceptance is kept: a request that was refused can be sent again.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Conflict`; then nothing was written.
    pub async fn documents_accept_once(
        &self,
        documents: &[NewDocument],
        existing: OnExisting,
        track_id: &str,
        limits: &Limits,
        once: Option<&Once<'_>>,
    ) -> Result<Outcome, StoreError> {
        const OPERATION: &str = "document.accept_once";
        let Some(once) = once else {
            return self.documents_accept(documents, existing, track_id, limits).await.map(Outcome::Now);
        };
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let principal = self.reader.scope().principal().as_str();
        let now = self.reader.postgres().clock.now();
        let mut tx = self.reader.begin().await?;
        // Two requests of one key come one after the other, and the second finds the first one's answer.
        namespace_lock(&mut tx, self.partition.namespace()).await?;
        sqlx::query("delete from idempotency where tenant_id = $1 and namespace_id = $2 and created_at < $3")
            .bind(tenant)
            .bind(namespace)
            .bind(now - chrono::Duration::hours(KEPT_HOURS))
            .execute(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        let kept = sqlx::query(
            "select body_hash = $6 as same, status, answer from idempotency
             where tenant_id = $1 and namespace_id = $2 and principal = $3 and operation = $4 and key = $5",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(principal)
        .bind(once.operation)
        .bind(once.key)
        .bind(once.request.as_slice())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if let Some(row) = kept {
            if !row.try_get::<bool, _>("same").map_err(failed(OPERATION))? {
                return Ok(Outcome::KeyReused);
            }
            let status: i16 = row.try_get("status").map_err(failed(OPERATION))?;
            let body = row.try_get("answer").map_err(failed(OPERATION))?;
            return Ok(Outcome::Before(Answer { status: u16::try_from(status).unwrap_or(200), body }));
        }
        let acceptance = self.accept_in(&mut tx, documents, existing, track_id, limits).await?;
        let Acceptance::Accepted(accepted) = &acceptance else { return Ok(Outcome::Now(acceptance)) };
        let answer = (once.answer)(accepted);
        let done = sqlx::query(
            "insert into idempotency (tenant_id, namespace_id, principal, operation, key, body_hash, document_ids,
                 status, answer, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(principal)
        .bind(once.operation)
        .bind(once.key)
        .bind(once.request.as_slice())
        .bind(accepted.iter().map(|document| document.document_id.as_str()).collect::<Vec<_>>())
        .bind(i16::try_from(answer.status).unwrap_or(200))
        .bind(&answer.body)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        debug_assert_eq!(done.rows_affected(), 1);
        tx.commit().await?;
        Ok(Outcome::Now(acceptance))
    }
}
