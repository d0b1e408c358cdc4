//! Uploaded files as they came, in a folder (or object store) by ids alone.
//!
//! **Invariant:** no name that a caller chose becomes part of a path.

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;

use super::error::{ErrorKind, StoreError};
use crate::domain::ids::{NamespaceId, TenantId};

/// The uploads' store.
#[derive(Clone)]
pub struct Uploads {
    store: Arc<dyn ObjectStore>,
}

impl Uploads {
    /// Uploads in a local folder, which is created.
    ///
    /// # Errors
    /// `Unavailable` when the folder cannot be created.
    pub fn in_folder(folder: &FilePath) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|error| failed("upload.open", error))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| failed("upload.open", error))?
            .with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// Keeps a file. It is durable when this returns.
    pub(in crate::store) async fn put(
        &self,
        tenant: TenantId,
        namespace: NamespaceId,
        upload: Uuid,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let path = path(tenant, namespace, upload);
        self.store.put(&path, bytes.into()).await.map_err(|error| failed("upload.put", error))?;
        Ok(())
    }

    /// Reads a file back; `None` when it is gone.
    pub(in crate::store) async fn get(
        &self,
        tenant: TenantId,
        namespace: NamespaceId,
        upload: Uuid,
    ) -> Result<Option<Bytes>, StoreError> {
        match self.store.get(&path(tenant, namespace, upload)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(|error| failed("upload.get", error)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("upload.get", error)),
        }
    }

    /// Removes a file. Removing what is not there is no error.
    pub(in crate::store) async fn remove(
        &self,
        tenant: TenantId,
        namespace: NamespaceId,
        upload: Uuid,
    ) -> Result<(), StoreError> {
        match self.store.delete(&path(tenant, namespace, upload)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("upload.remove", error)),
        }
    }

    /// Removes every file of a namespace, or of a whole tenant, and counts them.
    pub(in crate::store) async fn remove_all(
        &self,
        tenant: TenantId,
        namespace: Option<NamespaceId>,
    ) -> Result<usize, StoreError> {
        let prefix = match namespace {
            Some(namespace) => Path::from_iter([tenant.to_string(), namespace.to_string()]),
            None => Path::from_iter([tenant.to_string()]),
        };
        let mut removed = 0;
        let mut files = self.store.list(Some(&prefix));
        while let Some(file) = files.try_next().await.map_err(|error| failed("upload.list", error))? {
            match self.store.delete(&file.location).await {
                Ok(()) => removed += 1,
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed("upload.remove", error)),
            }
        }
        Ok(removed)
    }
}

fn path(tenant: TenantId, namespace: NamespaceId, upload: Uuid) -> Path {
    Path::from_iter([tenant.to_string(), namespace.to_string(), upload.to_string()])
}

fn failed(operation: &'static str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, "uploads", operation, "the uploads cannot be reached")
        .with_source(error)
}
