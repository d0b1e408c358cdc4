//! The lock on a data folder: one process at a time uses it.
//!
//! The running server holds it; a command line tool that finds it free takes it and starts
//! PostgreSQL itself. The kernel gives it up with the process, however that ends.
//!
//! **Invariant:** the lock file is never deleted: two processes could then lock two files of one name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Why a data folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process uses the folder.
    #[error("the data folder {} is in use{}", data_dir.display(), pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    LockedBy {
        /// The folder.
        data_dir: PathBuf,
        /// The other process, where it could still be read.
        pid: Option<u32>,
    },
    /// The folder or the lock file could not be made.
    #[error("cannot lock the data folder {}", data_dir.display())]
    Io {
        /// The folder.
        data_dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The right to use a data folder. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct DataLock {
    _file: Arc<Flock<File>>,
    data_dir: PathBuf,
}

impl DataLock {
    /// Locks `data_dir`, making the folder (mode 0700) and its file `lock` when they are missing.
    /// Does not wait.
    ///
    /// # Errors
    /// [`LockError::LockedBy`] when another process, or another part of this one, holds the lock.
    pub fn acquire(data_dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { data_dir: data_dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
        let data_dir = fs::canonicalize(data_dir).map_err(failed)?;
        let failed = |source| LockError::Io { data_dir: data_dir.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data_dir.join("lock"))
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| write!(file, "{}", std::process::id()))
                    .map_err(failed)?;
                Ok(Self { _file: Arc::new(file), data_dir })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                // The holder may be writing its number just now; then it stays unknown.
                let _ = file.read_to_string(&mut text);
                Err(LockError::LockedBy { data_dir, pid: text.trim().parse().ok() })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// The locked folder: absolute, without symbolic links.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().join("data");
        let lock = DataLock::acquire(&data).expect("free");
        let clone = lock.clone();
        drop(lock);
        let second = DataLock::acquire(&data);
        assert!(matches!(
            second,
            Err(LockError::LockedBy { pid: Some(pid), .. }) if pid == std::process::id()
        ));
        drop(clone);
        DataLock::acquire(&data).expect("free again");
    }
}
