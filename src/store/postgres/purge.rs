//! The end of a tenant: everything that it owned goes from every store that keeps it, is counted, and looked for again.
//!
//! **Invariant:** the audit log stays, and the row of the tenant, by which its id is never given again.

use std::collections::HashSet;

use super::error::failed;
use super::namespaces::partitions;
use crate::config::crash_point;
use crate::domain::ids::{NamespaceId, TenantId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::graph::GraphIndex;
use crate::store::handles::TenantWriter;
use crate::store::partition::Partition;

/// Entries of an index that are counted at once.
const ENTRIES: usize = 4096;

/// What of a deleted tenant was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// Rows by table.
    pub rows: Vec<(&'static str, u64)>,
    /// Indexes of vectors, one for each namespace, and of graphs.
    pub indexes: usize,
    /// Uploaded files.
    pub uploads: usize,
    /// The back end of the indexes, and how many points they held, as far as they could be read.
    pub points: (&'static str, u64),
    /// The index of graphs, if there is one, and how many nodes it held.
    pub nodes: Option<(&'static str, u64)>,
    /// What each store was found to hold afterwards.
    pub left: Left,
}

/// What was found of a tenant after it was removed: nothing, unless somebody wrote meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Rows, but those of the audit log and the job that deletes.
    pub rows: i64,
    /// Indexes of vectors and of graphs.
    pub indexes: usize,
    /// Namespaces with uploaded files.
    pub uploads: usize,
}

impl std::fmt::Display for Purged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((store, points), left) = (self.points, self.left);
        write!(f, "removed {} indexes, {} uploads; points in {store} {points}", self.indexes, self.uploads)?;
        if let Some((store, nodes)) = self.nodes {
            write!(f, "; nodes in {store} {nodes}")?;
        }
        write!(f, "; left: rows {}, indexes {}, uploads {}; rows:", left.rows, left.indexes, left.uploads)?;
        self.rows
            .iter()
            .filter(|(_, count)| *count > 0)
            .try_for_each(|(table, count)| write!(f, " {table} {count}"))
    }
}

impl TenantWriter {
    /// Deletes everything that a deleted tenant owns, files included, and counts it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; to be called again.
    pub async fn tenant_purge(&self) -> Result<Purged, StoreError> {
        let tenant = self.scope.tenant();
        let mut tx = self.begin().await?;
        // Waits for namespaces that are being made; later ones find the purge and are not.
        sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 8))")
            .bind(tenant.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("tenant.purge"))?;
        // As `namespace_lock`, for each of them.
        sqlx::query(
            "select pg_advisory_xact_lock(hashtextextended(namespace_id::text, 7)) from namespace
             where tenant_id = $1 order by namespace_id",
        )
        .bind(tenant.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("tenant.purge"))?;
        // Locked, so that whoever holds one of them ends first and leaves nothing behind its back.
        let partitions = partitions(&mut tx, tenant, None).await?;
        let mut rows = Vec::with_capacity(PURGE_TENANT.len());
        for (table, statement) in PURGE_TENANT {
            let done = sqlx::query(statement).bind(tenant.0).execute(&mut *tx).await;
            rows.push((table, done.map_err(failed("tenant.purge"))?.rows_affected()));
        }
        tx.commit().await?;
        crash_point("tenant-rows-purged");
        let inner = &self.stores.inner;
        // Before what may be away.
        let uploads = inner.uploads.remove_all(tenant, None).await?;
        // Called again after a failure, the rows no longer say which indexes there were; the index itself does.
        let held = inner.vectors.partitions(tenant).await?;
        let partitions: HashSet<Partition> = partitions.into_iter().chain(held).collect();
        let mut points = 0;
        for partition in &partitions {
            points += self.points_held(partition).await?;
            inner.vectors.remove(partition).await?;
        }
        // What a move was writing can go once nothing is served.
        for partition in inner.vectors.partitions(tenant).await? {
            inner.vectors.remove(&partition).await?;
        }
        let (mut graphs, mut nodes) = (0, None);
        if let Some(graph) = &inner.graph {
            let (removed, held) = graphs_remove(graph.as_ref(), tenant, &partitions).await?;
            (graphs, nodes) = (removed, Some((graph.name(), held)));
        }
        let (indexes, points) = (partitions.len() + graphs, (inner.vectors.name(), points));
        Ok(Purged { rows, indexes, uploads, points, nodes, left: self.left().await? })
    }

    /// How many points an index holds; one that cannot be read counts nothing.
    async fn points_held(&self, partition: &Partition) -> Result<u64, StoreError> {
        let (mut points, mut from) = (0, None);
        loop {
            match self.stores.inner.vectors.entries(partition, from, ENTRIES).await {
                Ok(Some(page)) => {
                    points += page.list.len() as u64;
                    from = page.next;
                }
                Ok(None) => return Ok(points),
                Err(error) if error.kind == ErrorKind::Damaged => return Ok(points),
                Err(error) => return Err(error),
            }
            if from.is_none() {
                return Ok(points);
            }
        }
    }

    /// Looks what every store holds of a tenant that was removed.
    async fn left(&self) -> Result<Left, StoreError> {
        const OPERATION: &str = "tenant.left";
        let (tenant, inner) = (self.scope.tenant(), &self.stores.inner);
        let mut tx = self.begin().await?;
        let rows =
            sqlx::query_scalar(LEFT).bind(tenant.0).fetch_one(&mut *tx).await.map_err(failed(OPERATION))?;
        tx.commit().await?;
        let graphs = match &inner.graph {
            Some(graph) => graph.namespaces(tenant).await?.len(),
            None => 0,
        };
        let indexes = inner.vectors.partitions(tenant).await?.len() + graphs;
        Ok(Left { rows, indexes, uploads: inner.uploads.namespaces(tenant).await?.len() })
    }
}

/// Removes all graphs of a tenant, those included that its rows do not tell of any more; counts them and their nodes.
async fn graphs_remove(
    graph: &dyn GraphIndex,
    tenant: TenantId,
    known: &HashSet<Partition>,
) -> Result<(usize, u64), StoreError> {
    let held = graph.namespaces(tenant).await?;
    let known = known.iter().map(Partition::namespace);
    let namespaces: HashSet<NamespaceId> = held.into_iter().chain(known).collect();
    let mut nodes = 0;
    for namespace in &namespaces {
        nodes += graph.remove(tenant, *namespace).await?;
    }
    Ok((namespaces.len(), nodes))
}

/// Everything of a tenant but its audit log and the job that deletes it.
const PURGE_TENANT: [(&str, &str); 13] = [
    (
        "job",
        "delete from job where tenant_id = $1 and job_id in (
             select job_id from job where tenant_id = $1 and kind <> 'purge_tenant' order by job_id for update)",
    ),
    ("idempotency", "delete from idempotency where tenant_id = $1"),
    ("chunk_mention", "delete from chunk_mention where tenant_id = $1"),
    ("chunk_embedding", "delete from chunk_embedding where tenant_id = $1"),
    ("chunk", "delete from chunk where tenant_id = $1"),
    ("document_version", "delete from document_version where tenant_id = $1"),
    ("document", "delete from document where tenant_id = $1"),
    ("term_frequency", "delete from term_frequency where tenant_id = $1"),
    ("outbox", "delete from outbox where tenant_id = $1"),
    ("consumer", "delete from consumer where tenant_id = $1"),
    ("namespace", "delete from namespace where tenant_id = $1"),
    ("tenant_usage", "delete from tenant_usage where tenant_id = $1"),
    ("vector_placement", "delete from vector_placement where tenant_id = $1"),
];

/// Rows of what [`PURGE_TENANT`] deletes.
const LEFT: &str = "select (select count(*) from job where tenant_id = $1 and kind <> 'purge_tenant')
     + (select count(*) from idempotency where tenant_id = $1)
     + (select count(*) from chunk_mention where tenant_id = $1)
     + (select count(*) from chunk_embedding where tenant_id = $1)
     + (select count(*) from chunk where tenant_id = $1)
     + (select count(*) from document_version where tenant_id = $1)
     + (select count(*) from document where tenant_id = $1)
     + (select count(*) from term_frequency where tenant_id = $1)
     + (select count(*) from outbox where tenant_id = $1)
     + (select count(*) from consumer where tenant_id = $1)
     + (select count(*) from namespace where tenant_id = $1)
     + (select count(*) from tenant_usage where tenant_id = $1)
     + (select count(*) from vector_placement where tenant_id = $1)";
