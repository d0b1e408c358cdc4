//! Files that no row names: found by comparing what is on disk with what the database says, and removed.
//!
//! **Invariant:** a file is removed only when the tenant's own rows, read after it was found, do not name it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::error::failed;
use crate::domain::ids::{NamespaceId, TenantId};
use crate::store::error::StoreError;
use crate::store::handles::{Stores, TenantReader, TenantWriter};

/// Uploads that are compared with the database in one statement.
const PAGE: usize = 1000;

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Uploaded files.
    pub uploads: u64,
    /// Indexes of namespaces that are gone.
    pub indexes: u64,
}

impl Stores {
    /// Tenants of which there are uploads or indexes on this machine.
    ///
    /// # Errors
    /// `Unavailable` when the folders cannot be read.
    pub async fn tenants_on_disk(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        let mut tenants: BTreeSet<TenantId> = self.inner.vectors.tenants().await?.into_iter().collect();
        tenants.extend(self.inner.uploads.tenants().await?);
        Ok(tenants)
    }
}

impl TenantWriter {
    /// Removes the tenant's uploads that were written before `before` and that no row names, and its indexes of
    /// namespaces that are gone.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; what is left is found again.
    pub async fn orphans_remove(&self, before: DateTime<Utc>) -> Result<Orphans, StoreError> {
        self.orphans(before, true).await
    }

    /// Counts them, and removes them if asked to.
    pub(super) async fn orphans(&self, before: DateTime<Utc>, remove: bool) -> Result<Orphans, StoreError> {
        let inner = &self.stores.inner;
        let tenant = self.scope.tenant();
        let mut orphans = Orphans::default();
        for namespace in inner.uploads.namespaces(tenant).await? {
            let files = inner.uploads.older(tenant, namespace, before).await?;
            for page in files.chunks(PAGE) {
                let uploads: Vec<Uuid> = page.iter().map(|file| file.upload).collect();
                let named: BTreeSet<Uuid> =
                    self.uploads_named(namespace, &uploads).await?.into_iter().collect();
                for file in page.iter().filter(|file| file.unfinished || !named.contains(&file.upload)) {
                    if remove {
                        inner.uploads.remove_file(file).await?;
                    }
                    orphans.uploads += 1;
                }
            }
        }
        for partition in inner.vectors.partitions(tenant).await? {
            // Identifiers are never reused: one that is not there now never will be.
            if self.corpus_get_by_id(partition.namespace()).await?.is_none() {
                if remove {
                    inner.vectors.remove(&partition).await?;
                }
                orphans.indexes += 1;
            }
        }
        Ok(orphans)
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
