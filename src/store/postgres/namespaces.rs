//! Namespaces: opened, created with the first write, listed, deleted with everything in them.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::documents::namespace_lock;
use super::error::failed;
use super::prepared::{Call, NAMESPACE, Value};
use super::recorded::commit_recorded;
use super::transaction::TenantTransaction;
use crate::config::crash_point;
use crate::domain::Seq;
use crate::domain::ids::{ModelId, NamespaceId, NamespaceName, TenantId};
use crate::store::TenantAct;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::handles::{Corpus, CorpusWriter, TenantReader, TenantWriter};
use crate::store::partition::Partition;

/// A namespace as its tenant lists it.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct NamespaceSummary {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NamespaceName,
    /// How many documents it has, in any state.
    pub documents: i64,
    /// How many chunks can be found.
    pub chunks: i64,
    /// The corpus' history.
    pub corpus_seq: i64,
}

/// A namespace of which no row and no file is left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Erased {
    /// Indexes that were away, by name. What they still hold is found by nobody, since no identity is given twice, and
    /// goes with the sweep of orphans.
    pub later: Vec<&'static str>,
}

/// In how many chunks of a corpus each term of a question occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TermFrequencies {
    /// Term and number of chunks, for terms that occur at all.
    pub chunks: Vec<(u32, u32)>,
}

impl TenantReader {
    /// Opens a namespace; `None` when there is none of this name, or the credential does not reach it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn corpus_get(&self, name: &NamespaceName) -> Result<Option<Corpus>, StoreError> {
        Ok(self.corpus_get_with_terms(name, &[]).await?.map(|(corpus, _)| corpus))
    }

    /// Opens a namespace and counts, in the same snapshot, in how many chunks each term occurs.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn corpus_get_with_terms(
        &self,
        name: &NamespaceName,
        terms: &[u32],
    ) -> Result<Option<(Corpus, TermFrequencies)>, StoreError> {
        if !self.scope.reaches(name) {
            return Ok(None);
        }
        let tenant = self.scope.tenant();
        let terms: Vec<i32> = terms.iter().filter_map(|term| i32::try_from(*term).ok()).collect();
        let replica = Value::Flag(self.postgres().replica.is_some());
        let values = [Value::Id(tenant.0), Value::Name(name), Value::Numbers(&terms), replica];
        let call = Call { statement: &NAMESPACE, values: &values };
        let [rows] = self.read([call], "namespace.get").await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let decode = |row: &PgRow| -> Result<_, sqlx::Error> {
            let terms: Option<Vec<i32>> = row.try_get("terms")?;
            let counts: Option<Vec<i32>> = row.try_get("counts")?;
            let frequencies = std::iter::zip(terms.unwrap_or_default(), counts.unwrap_or_default())
                .filter_map(|(term, count)| Some((u32::try_from(term).ok()?, u32::try_from(count).ok()?)))
                .collect();
            let corpus = Corpus { timeline: row.try_get("timeline")?, ..self.corpus(row, name)? };
            Ok((corpus, TermFrequencies { chunks: frequencies }))
        };
        decode(&row).map(Some).map_err(failed("namespace.get"))
    }

    fn corpus(&self, row: &PgRow, name: &NamespaceName) -> Result<Corpus, sqlx::Error> {
        let parse =
            |raw: &str| ModelId::parse(raw).map_err(|error| sqlx::Error::Decode(error.to_string().into()));
        let model = parse(row.try_get("model_id")?)?;
        let building = row.try_get::<Option<&str>, _>("building")?.map(parse).transpose()?;
        let namespace = NamespaceId(row.try_get("namespace_id")?);
        Ok(Corpus {
            reader: self.clone(),
            partition: Partition::new(self.scope.tenant(), namespace, model),
            name: name.clone(),
            seq: Seq(row.try_get("seq")?),
            timeline: None,
            chunks: u64::try_from(row.try_get::<i64, _>("chunks")?).unwrap_or_default(),
            building,
        })
    }

    /// Opens a namespace by its identity, as a job knows it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn corpus_get_by_id(&self, namespace: NamespaceId) -> Result<Option<Corpus>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "select namespace_id, name, model_id, building, seq, chunks from namespace
             where tenant_id = $1 and namespace_id = $2",
        )
        .bind(self.scope.tenant().0)
        .bind(namespace.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("namespace.get"))?;
        tx.commit().await?;
        let open = |row: &PgRow| {
            let name = NamespaceName::parse(row.try_get("name")?)
                .map_err(|error| sqlx::Error::Decode(error.to_string().into()))?;
            self.corpus(row, &name)
        };
        row.as_ref().map(open).transpose().map_err(failed("namespace.get"))
    }

    /// The tenant's namespaces that the credential reaches, by name. `default` is among them even before
    /// its first document.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn namespace_list(&self) -> Result<Vec<NamespaceSummary>, StoreError> {
        let mut tx = self.begin().await?;
        let rows: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "select n.name, n.seq, n.chunks,
                 (select count(*) from document d
                  where d.tenant_id = $1 and d.namespace_id = n.namespace_id)
             from namespace n where n.tenant_id = $1 order by n.name",
        )
        .bind(self.scope.tenant().0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("namespace.list"))?;
        tx.commit().await?;
        let mut list: Vec<_> = rows
            .into_iter()
            .filter_map(|(name, corpus_seq, chunks, documents)| {
                let name = NamespaceName::parse(&name).ok()?;
                Some(NamespaceSummary { name, documents, chunks, corpus_seq })
            })
            .collect();
        if !list.iter().any(|summary| summary.name.is_default()) {
            let name = NamespaceName::default();
            list.insert(0, NamespaceSummary { name, documents: 0, chunks: 0, corpus_seq: 0 });
        }
        list.retain(|summary| self.scope.reaches(&summary.name));
        Ok(list)
    }
}

impl TenantWriter {
    /// Opens a namespace for writing, and creates it when there is none of this name. `None` when the
    /// credential does not reach it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Conflict` when the tenant or the namespace was deleted meanwhile.
    pub async fn corpus_require(&self, name: &NamespaceName) -> Result<Option<CorpusWriter>, StoreError> {
        if !self.scope.reaches(name) {
            return Ok(None);
        }
        if let Some(corpus) = self.corpus_get(name).await? {
            return Ok(Some(CorpusWriter { corpus }));
        }
        let postgres = self.postgres();
        let mut tx = self.begin().await?;
        // Before the statement that looks for a purge: either the purge waits for this namespace and takes it
        // too, or what this statement sees has the purge in it.
        sqlx::query("select pg_advisory_xact_lock_shared(hashtextextended($1, 8))")
            .bind(self.scope.tenant().to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("namespace.create"))?;
        sqlx::query(
            "insert into namespace (tenant_id, namespace_id, name, model_id, created_at)
             select $1, $2, $3, $4, $5
             where not exists(select from job where tenant_id = $1 and kind = 'purge_tenant')
             on conflict (tenant_id, name) do nothing",
        )
        .bind(self.scope.tenant().0)
        .bind(postgres.ids.uuid())
        .bind(name.as_str())
        .bind(postgres.model.as_str())
        .bind(postgres.clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed("namespace.create"))?;
        tx.commit().await?;
        let Some(corpus) = self.corpus_get(name).await? else {
            // Deleted again at once, or the tenant is.
            let words = "the namespace is gone";
            return Err(StoreError::new(ErrorKind::Conflict, "postgres", "namespace.create", words));
        };
        Ok(Some(CorpusWriter { corpus }))
    }

    /// Opens a namespace for writing by its identity, as a job knows it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn corpus_writer(&self, namespace: NamespaceId) -> Result<Option<CorpusWriter>, StoreError> {
        Ok(self.corpus_get_by_id(namespace).await?.map(|corpus| CorpusWriter { corpus }))
    }

    /// Deletes a namespace with all that it holds. The name can be used again and meets nothing old.
    /// `None` when there is none. An index that is away holds up nothing: it is swept later.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was deleted, or everything in the database was, which is recorded, and
    /// only files remain, which the sweep of orphans removes.
    pub async fn namespace_delete(
        &self,
        act: TenantAct,
        name: &NamespaceName,
    ) -> Result<Option<Erased>, StoreError> {
        let Some(corpus) = self.corpus_get(name).await? else { return Ok(None) };
        let tenant = self.scope.tenant();
        let namespace = corpus.partition.namespace();
        let mut tx = self.begin().await?;
        namespace_lock(&mut tx, namespace).await?;
        let partitions = partitions(&mut tx, tenant, Some(namespace)).await?;
        for statement in PURGE_NAMESPACE {
            sqlx::query(statement)
                .bind(tenant.0)
                .bind(namespace.0)
                .execute(&mut *tx)
                .await
                .map_err(failed("namespace.delete"))?;
        }
        commit_recorded(tx, Some(tenant), act.0).await?;
        crash_point("namespace-rows-deleted");
        let files = self.stores.inner.uploads.remove_all(tenant, Some(namespace)).await;
        crash_point("namespace-files-deleted");
        // Whatever became of the files: without rows, nobody asks for this again.
        let later = self.indexes_remove(namespace, &partitions).await?;
        files?;
        Ok(Some(Erased { later }))
    }
}

/// The address of every index that a namespace has, or all of a tenant's: of the active model, of one that is being
/// filled, and of those that were left.
pub(super) async fn partitions(
    tx: &mut TenantTransaction,
    tenant: TenantId,
    namespace: Option<NamespaceId>,
) -> Result<Vec<Partition>, StoreError> {
    const OPERATION: &str = "namespace.partitions";
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select n.namespace_id, m.model from namespace n
         cross join lateral unnest(array_remove(array[n.model_id, n.building] || n.retired, null)) as m(model)
         where n.tenant_id = $1 and ($2::uuid is null or n.namespace_id = $2)
         order by n.namespace_id for update of n",
    )
    .bind(tenant.0)
    .bind(namespace.map(|namespace| namespace.0))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed(OPERATION))?;
    let partition = |(namespace, model): (Uuid, String)| {
        let model = ModelId::parse(&model).map_err(|error| {
            StoreError::new(ErrorKind::Internal, "postgres", OPERATION, error.to_string())
        })?;
        Ok(Partition::new(tenant, NamespaceId(namespace), model))
    };
    rows.into_iter().map(partition).collect()
}

/// Everything of a namespace; its own row last, whose lock orders this after running commits.
const PURGE_NAMESPACE: [&str; 9] = [
    "update namespace set seq = seq + 1 where tenant_id = $1 and namespace_id = $2",
    "delete from job where tenant_id = $1 and job_id in (
         select job_id from job where tenant_id = $1 and namespace_id = $2 order by job_id for update)",
    "delete from idempotency where tenant_id = $1 and namespace_id = $2",
    "delete from chunk_mention where tenant_id = $1 and namespace_id = $2",
    "delete from chunk_embedding where tenant_id = $1 and namespace_id = $2 and home in
         ('00000000-0000-0000-0000-000000000000', $2)",
    "delete from chunk where tenant_id = $1 and namespace_id = $2",
    "delete from term_frequency where tenant_id = $1 and namespace_id = $2",
    "with o as (delete from outbox where tenant_id = $1 and namespace_id = $2)
     delete from consumer where tenant_id = $1 and namespace_id = $2",
    "with d as (delete from document where tenant_id = $1 and namespace_id = $2 returning 1),
         v as (delete from document_version where tenant_id = $1 and namespace_id = $2 returning bytes),
         n as (delete from namespace where tenant_id = $1 and namespace_id = $2)
     update tenant_usage set documents = documents - (select count(*) from d),
         bytes = bytes - (select coalesce(sum(bytes), 0) from v)
     where tenant_id = $1",
];

/// The server's timeline where it is asked for ($4): what comes from a replica has to be of the same.
pub(super) const NAMESPACE_TERMS: &str =
    "select n.namespace_id, n.model_id, n.building, n.seq, n.chunks, f.terms, f.counts,
         case when $4 and not pg_is_in_recovery()
             then ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::bigint
         end as timeline
     from namespace n left join lateral (
         select array_agg(f.term) as terms, array_agg(f.chunks) as counts from unnest($3) as wanted(term)
         cross join lateral (
             select term, chunks from term_frequency f
             where f.tenant_id = $1 and f.namespace_id = n.namespace_id and f.term = wanted.term
                 and f.chunks > 0 offset 0) f
     ) f on cardinality($3) > 0
     where n.tenant_id = $1 and n.name = $2";
