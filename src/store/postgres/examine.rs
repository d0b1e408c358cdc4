//! What is kept twice, compared while it changes: rows with index, with files and with the counters beside them.
//!
//! **Invariant:** each comparison reads one snapshot, or looks again at what seemed wrong; a write that is under way
//! is never taken for a fault.
//! **Invariant:** numbers go out, and no name, text or identifier of a document.

mod findings;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::Row;
use uuid::Uuid;

pub(in crate::store) use self::findings::note;
pub use self::findings::{Finding, FindingKind, IndexExamined};
use super::documents::namespace_lock;
use super::error::failed;
use super::orphans::Found;
use super::transaction::TenantTransaction;
use crate::domain::Seq;
use crate::domain::ids::NamespaceId;
use crate::store::digest::{Digest, IndexKind};
use crate::store::error::StoreError;
use crate::store::handles::{Corpus, CorpusWriter, TenantReader, TenantWriter};

/// Entries of an index read at once.
const PAGE: usize = 4096;
/// How long a comparison may read, milliseconds: a statement over a whole namespace.
const PATIENCE: &str = "900000";

/// How rows and points differ, and what the rows say that the index should hold.
#[derive(Default)]
struct Compared {
    missing: usize,
    wrong: usize,
    extra: usize,
    expected: Digest,
}

impl TenantReader {
    /// The namespace after this one, by identity.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn namespace_after(
        &self,
        after: Option<NamespaceId>,
    ) -> Result<Option<NamespaceId>, StoreError> {
        let mut tx = self.begin().await?;
        let next: Option<Uuid> = sqlx::query_scalar(
            "select namespace_id from namespace where tenant_id = $1 and namespace_id > $2
             order by namespace_id limit 1",
        )
        .bind(self.scope.tenant().0)
        .bind(after.map_or(Uuid::nil(), |namespace| namespace.0))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("namespace.next"))?;
        tx.commit().await?;
        Ok(next.map(NamespaceId))
    }
}

impl Corpus {
    /// Compares the index with the rows. Nothing may be applied to the index meanwhile; rows may come and go: what
    /// the index has not seen yet is left out by its place in the history.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Damaged` when the index cannot be read.
    pub async fn index_examine(&self) -> Result<IndexExamined, StoreError> {
        let applied = self.index_position().await?.map_or(Seq(0), |position| position.applied);
        let mut held: Vec<(Uuid, i64)> = Vec::new();
        let (mut foreign, mut from) = (0, None);
        while let Some(page) = self.vectors().entries(&self.partition, from, PAGE).await? {
            for entry in page.list {
                if (entry.tenant, entry.namespace) == (self.partition.tenant(), self.partition.namespace()) {
                    held.push((entry.chunk.0, entry.version));
                } else {
                    foreign += 1;
                }
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        held.sort_unstable();
        let compared = self.rows_compare(applied, &held).await?;
        let mut own = Digest::default();
        for (chunk, version) in &held {
            own.add(*chunk, *version);
        }
        let digests = vec![
            compared.expected.of_store(IndexKind::Vectors, "postgres"),
            own.of_store(IndexKind::Vectors, self.vectors().name()),
        ];
        let mut examined = IndexExamined { points: held.len() as u64, digests, findings: Vec::new() };
        for (kind, count) in [
            (FindingKind::MissingPoints, compared.missing),
            (FindingKind::WrongVersions, compared.wrong),
            (FindingKind::ExtraPoints, compared.extra),
            (FindingKind::ForeignPoints, foreign),
        ] {
            note(&mut examined.findings, kind, count, false);
        }
        Ok(examined)
    }

    /// Rows that the index should hold and does not, or in another version, and points without a row.
    async fn rows_compare(&self, applied: Seq, held: &[(Uuid, i64)]) -> Result<Compared, StoreError> {
        const OPERATION: &str = "index.examine";
        let mut tx = self.reader.begin().await?;
        patient(&mut tx, OPERATION).await?;
        // One statement, hence one snapshot: what went since `applied` and what is there agree.
        let mut rows = sqlx::query(
            "select r.id, o.seq, null::bigint as version from outbox o cross join lateral unnest(o.removed) r(id)
             where o.tenant_id = $1 and o.namespace_id = $2 and o.seq > $4
             union all
             select chunk_id, seq, version from chunk_embedding
             where tenant_id = $1 and namespace_id = $2 and model_id = $3
                 and home in ('00000000-0000-0000-0000-000000000000', $2)",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .bind(self.partition.model().as_str())
        .bind(applied.0)
        .fetch(&mut *tx);
        let (mut compared, mut known) = (Compared::default(), vec![false; held.len()]);
        while let Some(row) = rows.try_next().await.map_err(failed(OPERATION))? {
            let id: Uuid = row.try_get("id").map_err(failed(OPERATION))?;
            let seq: i64 = row.try_get("seq").map_err(failed(OPERATION))?;
            let version: Option<i64> = row.try_get("version").map_err(failed(OPERATION))?;
            match (held.binary_search_by_key(&id, |(chunk, _)| *chunk), version) {
                // It went since: the index still has it, in whatever version.
                (Ok(at), None) => {
                    compared.expected.add(id, held[at].1);
                    known[at] = true;
                }
                (Ok(at), Some(version)) => {
                    compared.expected.add(id, version);
                    compared.wrong += usize::from(held[at].1 != version);
                    known[at] = true;
                }
                (Err(_), Some(version)) if seq <= applied.0 => {
                    compared.expected.add(id, version);
                    compared.missing += 1;
                }
                (Err(_), _) => {}
            }
        }
        drop(rows);
        tx.commit().await?;
        compared.extra = known.iter().filter(|known| !**known).count();
        Ok(compared)
    }
}

impl CorpusWriter {
    /// Compares chunks, embeddings and the count of chunks, and the uploads with their files.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn corpus_examine(&self, repair: bool) -> Result<Vec<Finding>, StoreError> {
        const OPERATION: &str = "corpus.examine";
        let mut tx = self.reader.begin().await?;
        patient(&mut tx, OPERATION).await?;
        let found: Option<(i64, i64, i64)> = sqlx::query_as(
            "select n.chunks - (select count(*) from chunk where tenant_id = $1 and namespace_id = $2),
                 (select count(*) from chunk c where c.tenant_id = $1 and c.namespace_id = $2 and not exists (
                     select from chunk_embedding e where e.tenant_id = $1 and e.namespace_id = $2
                         and e.model_id = n.model_id and e.chunk_id = c.chunk_id and e.version = c.version)),
                 (select count(*) from chunk_embedding e where e.tenant_id = $1 and e.namespace_id = $2
                     and not exists (select from chunk c where c.tenant_id = $1 and c.namespace_id = $2
                         and c.chunk_id = e.chunk_id))
             from namespace n where n.tenant_id = $1 and n.namespace_id = $2",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        let (count_off, missing, extra) = found.unwrap_or_default();
        let mut findings = Vec::new();
        if extra > 0 && repair {
            self.embeddings_clear().await?;
        }
        let again = if missing > 0 && repair { self.embeddings_requeue().await? } else { 0 };
        if count_off != 0 && repair {
            self.chunks_recount().await?;
        }
        let size = |count: i64| usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        note(&mut findings, FindingKind::MissingEmbeddings, size(missing), again > 0);
        note(&mut findings, FindingKind::ExtraEmbeddings, size(extra), repair);
        note(&mut findings, FindingKind::WrongChunkCount, size(count_off), repair);
        note(&mut findings, FindingKind::LostUploads, self.uploads_lost().await?, false);
        Ok(findings)
    }

    /// Removes embeddings without a chunk, from the index too, and counts the terms anew.
    async fn embeddings_clear(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "embedding.clear";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        patient(&mut tx, OPERATION).await?;
        let Some(seq) = self.seq_next(&mut tx).await? else { return Ok(()) };
        sqlx::query(
            "with gone as (
                 delete from chunk_embedding e where e.tenant_id = $1 and e.namespace_id = $2
                     and not exists (select from chunk c where c.tenant_id = $1 and c.namespace_id = $2
                         and c.chunk_id = e.chunk_id)
                 returning e.chunk_id),
             unmentioned as (
                 delete from chunk_mention m using gone
                 where m.tenant_id = $1 and m.namespace_id = $2 and m.chunk_id = gone.chunk_id)
             insert into outbox (tenant_id, namespace_id, seq, at, removed)
             select $1, $2, $3, $4, coalesce(array_agg(distinct chunk_id), '{}') from gone",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(seq)
        .bind(self.reader.postgres().clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        self.terms_recount(&mut tx).await?;
        tx.commit().await
    }

    async fn chunks_recount(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "chunk.recount";
        let mut tx = self.reader.begin().await?;
        // Locked before it is counted: whoever writes counts under the same lock.
        for statement in [
            "select from namespace where tenant_id = $1 and namespace_id = $2 for update",
            "update namespace set chunks = (select count(*) from chunk where tenant_id = $1 and namespace_id = $2)
             where tenant_id = $1 and namespace_id = $2",
        ] {
            sqlx::query(statement)
                .bind(self.partition.tenant().0)
                .bind(self.partition.namespace().0)
                .execute(&mut *tx)
                .await
                .map_err(failed(OPERATION))?;
        }
        tx.commit().await
    }

    /// Has documents processed again of which a chunk lacks its embedding, and counts them. Such a chunk goes until
    /// then; one whose version is not kept any more, or not the newest, stays as it is.
    async fn embeddings_requeue(&self) -> Result<u64, StoreError> {
        const OPERATION: &str = "embedding.requeue";
        let (tenant, namespace) = (self.partition.tenant().0, self.partition.namespace().0);
        let mut tx = self.reader.begin().await?;
        patient(&mut tx, OPERATION).await?;
        namespace_lock(&mut tx, self.partition.namespace()).await?;
        let Some(seq) = self.seq_next(&mut tx).await? else { return Ok(0) };
        let lacking: Vec<(String, i64)> = sqlx::query_as(
            "with bare as (
                 delete from chunk c using namespace n, document d, document_version v
                 where n.tenant_id = $1 and n.namespace_id = $2 and c.tenant_id = $1 and c.namespace_id = $2
                     and d.tenant_id = $1 and d.namespace_id = $2 and d.document_id = c.document_id
                     and d.version = c.version and d.status = 'processed'
                     and v.tenant_id = $1 and v.namespace_id = $2 and v.document_id = c.document_id
                     and v.version = c.version
                     and not exists (
                         select from chunk_embedding e where e.tenant_id = $1 and e.namespace_id = $2
                             and e.model_id = n.model_id and e.chunk_id = c.chunk_id and e.version = c.version)
                 returning c.chunk_id, c.document_id, c.version),
             unmentioned as (
                 delete from chunk_mention m using bare
                 where m.tenant_id = $1 and m.namespace_id = $2 and m.chunk_id = bare.chunk_id),
             smaller as (
                 update namespace set chunks = chunks - (select count(*) from bare)
                 where tenant_id = $1 and namespace_id = $2),
             history as (
                 insert into outbox (tenant_id, namespace_id, seq, at, removed)
                 select $1, $2, $3, $4, coalesce(array_agg(chunk_id), '{}') from bare)
             select distinct document_id, version from bare",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(seq)
        .bind(self.reader.postgres().clock.now())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        self.terms_recount(&mut tx).await?;
        let again = self.process_again(&mut tx, lacking, "processed").await?;
        tx.commit().await?;
        Ok(again)
    }

    /// The next place in the namespace's history, whose row whoever writes to it waits for; `None`: it is gone.
    async fn seq_next(&self, tx: &mut TenantTransaction) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar(
            "update namespace set seq = seq + 1 where tenant_id = $1 and namespace_id = $2 returning seq",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("namespace.advance"))
    }

    /// Counts the terms anew, under the lock of the namespace's row.
    async fn terms_recount(&self, tx: &mut TenantTransaction) -> Result<(), StoreError> {
        const OPERATION: &str = "term.recount";
        for statement in [
            "delete from term_frequency where tenant_id = $1 and namespace_id = $2",
            // The text of a sparse vector counts its places from 1.
            "insert into term_frequency (tenant_id, namespace_id, term, chunks)
             select $1, $2, split_part(entry, ':', 1)::int - 1, count(*)::int
             from namespace n join chunk_embedding e on e.tenant_id = $1 and e.namespace_id = $2
                 and e.model_id = n.model_id,
                 regexp_split_to_table(trim(both '{}' from split_part(e.terms::text, '/', 1)), ',') entry
             where n.tenant_id = $1 and n.namespace_id = $2 and entry <> '' group by 3",
        ] {
            sqlx::query(statement)
                .bind(self.partition.tenant().0)
                .bind(self.partition.namespace().0)
                .execute(&mut **tx)
                .await
                .map_err(failed(OPERATION))?;
        }
        Ok(())
    }

    /// Uploads that rows name and that are not on disk, counted.
    async fn uploads_lost(&self) -> Result<usize, StoreError> {
        let mut tx = self.reader.begin().await?;
        let named: Vec<Uuid> = sqlx::query_scalar(
            "select upload_id from document_version
             where tenant_id = $1 and namespace_id = $2 and upload_id is not null",
        )
        .bind(self.partition.tenant().0)
        .bind(self.partition.namespace().0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("upload.examine"))?;
        tx.commit().await?;
        if named.is_empty() {
            return Ok(0);
        }
        let (tenant, namespace) = (self.partition.tenant(), self.partition.namespace());
        let uploads = &self.reader.stores.inner.uploads;
        let there = uploads.older(tenant, namespace, DateTime::<Utc>::MAX_UTC).await?;
        let there: HashSet<Uuid> =
            there.into_iter().filter(|file| !file.unfinished).map(|file| file.upload).collect();
        let missing: Vec<Uuid> = named.into_iter().filter(|upload| !there.contains(upload)).collect();
        // Deleted since the rows were read, perhaps: a file goes after its rows.
        Ok(if missing.is_empty() { 0 } else { self.reader.uploads_named(namespace, &missing).await?.len() })
    }
}

impl TenantWriter {
    /// Compares what the tenant's counters say with its rows, and its files with what names them; those that were
    /// written after `before` may be about to be named.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_examine(
        &self,
        before: DateTime<Utc>,
        repair: bool,
    ) -> Result<Vec<Finding>, StoreError> {
        let mut findings = Vec::new();
        let (documents, bytes) = self.usage_compare().await?;
        if repair && (documents, bytes) != (0, 0) {
            self.usage_recount().await?;
        }
        let size = |off: i64| usize::try_from(off.unsigned_abs()).unwrap_or(usize::MAX);
        note(&mut findings, FindingKind::WrongDocumentCount, size(documents), repair);
        note(&mut findings, FindingKind::WrongByteCount, size(bytes), repair);
        let found = if repair { Found::Removed } else { Found::Kept };
        let orphans = self.orphans(before, found).await;
        let mut unreached = 0;
        for error in orphans.failed {
            // Without it everything else can be compared.
            let is_graph = self.stores.graph_name() == Some(error.backend);
            if !(is_graph && error.kind.is_outage()) {
                return Err(error);
            }
            unreached += 1;
        }
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        note(&mut findings, FindingKind::StrayUploads, size(orphans.uploads), repair);
        note(&mut findings, FindingKind::StrayIndexes, size(orphans.indexes), repair);
        note(&mut findings, FindingKind::UnreachedIndexes, unreached, false);
        Ok(findings)
    }

    /// By how much the counters are too high. They change with the rows, so that one snapshot tells.
    async fn usage_compare(&self) -> Result<(i64, i64), StoreError> {
        const OPERATION: &str = "usage.examine";
        let mut tx = self.begin().await?;
        patient(&mut tx, OPERATION).await?;
        let off = sqlx::query_as(
            "select coalesce(sum(documents), 0)::bigint - (select count(*) from document where tenant_id = $1),
                 coalesce(sum(bytes), 0)::bigint
                     - (select coalesce(sum(bytes), 0)::bigint from document_version where tenant_id = $1)
             from tenant_usage where tenant_id = $1",
        )
        .bind(self.scope.tenant().0)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(off)
    }

    async fn usage_recount(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "usage.recount";
        let mut tx = self.begin().await?;
        patient(&mut tx, OPERATION).await?;
        // Locked before it is counted: whoever wrote and did not pass this lock yet counts for himself behind it.
        for statement in [
            "insert into tenant_usage (tenant_id, documents, bytes) values ($1, 0, 0)
             on conflict (tenant_id) do update set documents = tenant_usage.documents",
            "update tenant_usage set documents = (select count(*) from document where tenant_id = $1),
                 bytes = (select coalesce(sum(bytes), 0)::bigint from document_version where tenant_id = $1)
             where tenant_id = $1",
        ] {
            sqlx::query(statement)
                .bind(self.scope.tenant().0)
                .execute(&mut *tx)
                .await
                .map_err(failed(OPERATION))?;
        }
        tx.commit().await
    }
}

/// Lets the statements of this transaction read for long.
pub(super) async fn patient(tx: &mut TenantTransaction, operation: &'static str) -> Result<(), StoreError> {
    sqlx::query("select set_config('statement_timeout', $1, true)")
        .bind(PATIENCE)
        .execute(&mut **tx)
        .await
        .map_err(failed(operation))?;
    Ok(())
}
