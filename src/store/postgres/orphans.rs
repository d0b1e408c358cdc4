//! Files and indexes that no row names: found by comparing what each store holds with what the database says, and
//! removed. A store that is away holds up none of the others.
//!
//! **Invariant:** a file is removed only when the tenant's own rows, read after it was found, do not name it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::error::failed;
use crate::domain::ids::{NamespaceId, TenantId};
use crate::store::error::StoreError;
use crate::store::handles::{Stores, TenantReader, TenantWriter};
use crate::store::partition::Partition;

/// Uploads that are compared with the database in one statement.
const PAGE: usize = 1000;

/// What a sweep found or removed.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Uploaded files.
    pub uploads: u64,
    /// Indexes of namespaces that are gone.
    pub indexes: u64,
    /// Why not all of them are known; what is left is found again.
    pub failed: Vec<StoreError>,
}

/// Whether what is found goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It is counted and goes.
    Removed,
    /// It is counted and stays.
    Kept,
}

impl Stores {
    /// Tenants of which there are uploads or indexes, as far as the stores tell, and why one does not.
    pub async fn tenants_on_disk(&self) -> (BTreeSet<TenantId>, Vec<StoreError>) {
        let inner = &self.inner;
        let mut told = vec![inner.uploads.tenants().await, inner.vectors.tenants().await];
        if let Some(graph) = &inner.graph {
            told.push(graph.tenants().await);
        }
        let (mut tenants, mut failed) = (BTreeSet::new(), Vec::new());
        for told in told {
            match told {
                Ok(list) => tenants.extend(list),
                Err(error) => failed.push(error),
            }
        }
        (tenants, failed)
    }
}

impl TenantWriter {
    /// Removes what each index holds of a namespace that is gone, whatever becomes of the other; returns which were
    /// away.
    pub(super) async fn indexes_remove(
        &self,
        namespace: NamespaceId,
        partitions: &[Partition],
    ) -> Result<Vec<&'static str>, StoreError> {
        let (tenant, inner) = (self.scope.tenant(), &self.stores.inner);
        let vectors = async {
            for partition in partitions {
                inner.vectors.remove(partition).await?;
            }
            Ok::<_, StoreError>(())
        };
        let mut done = vec![(inner.vectors.name(), vectors.await)];
        if let Some(graph) = &inner.graph {
            done.push((graph.name(), graph.remove(tenant, namespace).await.map(drop)));
        }
        let mut later = Vec::new();
        for (index, removed) in done {
            match removed {
                Err(error) if error.kind.is_outage() => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(%tenant, %namespace, index, error, "what it holds of a deleted namespace is swept later");
                    later.push(index);
                }
                removed => removed?,
            }
        }
        Ok(later)
    }

    /// Removes the tenant's uploads that were written before `before` and that no row names, and its indexes of
    /// namespaces that are gone.
    pub async fn orphans_remove(&self, before: DateTime<Utc>) -> Orphans {
        self.orphans(before, Found::Removed).await
    }

    /// Looks for them in each store.
    pub(super) async fn orphans(&self, before: DateTime<Utc>, found: Found) -> Orphans {
        let mut orphans = Orphans::default();
        let uploads = self.stray_uploads(before, found, &mut orphans.uploads).await;
        let vectors = self.stray_vectors(found, &mut orphans.indexes).await;
        let graphs = self.stray_graphs(found, &mut orphans.indexes).await;
        orphans.failed = [uploads, vectors, graphs].into_iter().filter_map(Result::err).collect();
        orphans
    }

    async fn stray_uploads(
        &self,
        before: DateTime<Utc>,
        found: Found,
        count: &mut u64,
    ) -> Result<(), StoreError> {
        let (tenant, uploads) = (self.scope.tenant(), &self.stores.inner.uploads);
        for namespace in uploads.namespaces(tenant).await? {
            let files = uploads.older(tenant, namespace, before).await?;
            for page in files.chunks(PAGE) {
                let ids: Vec<Uuid> = page.iter().map(|file| file.upload).collect();
                let named: BTreeSet<Uuid> = self.uploads_named(namespace, &ids).await?.into_iter().collect();
                for file in page.iter().filter(|file| file.unfinished || !named.contains(&file.upload)) {
                    if found == Found::Removed {
                        uploads.remove_file(file).await?;
                    }
                    *count += 1;
                }
            }
        }
        Ok(())
    }

    async fn stray_vectors(&self, found: Found, count: &mut u64) -> Result<(), StoreError> {
        let vectors = &self.stores.inner.vectors;
        for partition in vectors.partitions(self.scope.tenant()).await? {
            // Identifiers are never reused: one that is not there now never will be.
            if self.corpus_get_by_id(partition.namespace()).await?.is_none() {
                if found == Found::Removed {
                    vectors.remove(&partition).await?;
                }
                *count += 1;
            }
        }
        Ok(())
    }

    async fn stray_graphs(&self, found: Found, count: &mut u64) -> Result<(), StoreError> {
        let (tenant, Some(graph)) = (self.scope.tenant(), &self.stores.inner.graph) else { return Ok(()) };
        for namespace in graph.namespaces(tenant).await? {
            if self.corpus_get_by_id(namespace).await?.is_none() {
                if found == Found::Removed {
                    graph.remove(tenant, namespace).await?;
                }
                *count += 1;
            }
        }
        Ok(())
    }
}

impl TenantReader {
    /// Which of these uploads a version of a document names.
    pub(super) async fn uploads_named(
        &self,
        namespace: NamespaceId,
        uploads: &[Uuid],
    ) -> Result<Vec<Uuid>, StoreError> {
        let mut tx = self.begin().await?;
        let named = sqlx::query_scalar(
            "select upload_id from document_version
             where tenant_id = $1 and namespace_id = $2 and upload_id = any($3)",
        )
        .bind(self.scope.tenant().0)
        .bind(namespace.0)
        .bind(uploads)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("upload.named"))?;
        tx.commit().await?;
        Ok(named)
    }
}
