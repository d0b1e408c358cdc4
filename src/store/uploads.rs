//! Uploaded files as they came, in a folder (or object store) by ids alone.
//!
//! **Invariant:** no name that a caller chose becomes part of a path.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
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
    folder: Arc<FilePath>,
}

/// A file as a sweep finds it.
#[derive(Debug)]
pub(in crate::store) struct Stored {
    /// Its identity.
    pub upload: Uuid,
    /// Whether its writing was broken off.
    pub unfinished: bool,
    path: PathBuf,
}

impl Uploads {
    /// Uploads in a local folder, which is created.
    ///
    /// # Errors
    /// `Unavailable` when the folder cannot be created.
    pub fn in_folder(folder: &FilePath) -> Result<Self, StoreError> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700).create(folder).map_err(|error| failed("upload.open", error))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| failed("upload.open", error))?
            .with_automatic_cleanup(true)
            .with_fsync(true);
        Ok(Self { store: Arc::new(store), folder: folder.into() })
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

    /// Tenants that have a folder.
    pub(in crate::store) async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let folder = self.folder.to_path_buf();
        let ids = off_thread("upload.tenants", move || entries(&folder, |name, _| name.parse().ok())).await?;
        Ok(ids.into_iter().map(TenantId).collect())
    }

    /// Namespaces of a tenant that have a folder.
    pub(in crate::store) async fn namespaces(
        &self,
        tenant: TenantId,
    ) -> Result<Vec<NamespaceId>, StoreError> {
        let folder = self.folder.join(tenant.to_string());
        let ids =
            off_thread("upload.namespaces", move || entries(&folder, |name, _| name.parse().ok())).await?;
        Ok(ids.into_iter().map(NamespaceId).collect())
    }

    /// Files of a namespace that were last written before `before`, those whose writing was broken off included.
    pub(in crate::store) async fn older(
        &self,
        tenant: TenantId,
        namespace: NamespaceId,
        before: DateTime<Utc>,
    ) -> Result<Vec<Stored>, StoreError> {
        let folder = self.folder.join(tenant.to_string()).join(namespace.to_string());
        let stored = move |name: &str, entry: &fs::DirEntry| {
            // A file that is being written has a number behind its name.
            let (id, unfinished) = name.split_once('#').map_or((name, false), |(id, _)| (id, true));
            let upload = id.parse().ok()?;
            let written = DateTime::<Utc>::from(entry.metadata().ok()?.modified().ok()?);
            (written < before).then(|| Stored { upload, unfinished, path: entry.path() })
        };
        off_thread("upload.older", move || entries(&folder, stored)).await
    }

    /// Removes a file that a sweep found. Removing what is not there is no error.
    pub(in crate::store) async fn remove_file(&self, file: &Stored) -> Result<(), StoreError> {
        match tokio::fs::remove_file(&file.path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("upload.remove", error)),
            _ => Ok(()),
        }
    }
}

/// What a folder holds and `read` understands; nothing when there is no folder.
fn entries<T>(folder: &FilePath, read: impl Fn(&str, &fs::DirEntry) -> Option<T>) -> io::Result<Vec<T>> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry?;
        found.extend(entry.file_name().to_str().and_then(|name| read(name, &entry)));
    }
    Ok(found)
}

async fn off_thread<T: Send + 'static>(
    operation: &'static str,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(call).await.map_err(|error| failed(operation, error))?;
    done.map_err(|error| failed(operation, error))
}

fn path(tenant: TenantId, namespace: NamespaceId, upload: Uuid) -> Path {
    Path::from_iter([tenant.to_string(), namespace.to_string(), upload.to_string()])
}

fn failed(operation: &'static str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, "uploads", operation, "the uploads cannot be reached")
        .with_source(error)
}
