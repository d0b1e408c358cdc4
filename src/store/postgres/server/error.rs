//! What can go wrong with the private PostgreSQL, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::LockError;
use crate::store::postgres::bootstrap::BootstrapError;
use crate::store::postgres::secrets::SecretError;

/// Why the private PostgreSQL does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data folder is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lock handed over is for another folder.
    #[error("the lock is for {}, not for {}", held.display(), data_dir.display())]
    OtherLock {
        /// The folder the lock is for.
        held: PathBuf,
        /// The folder that was to be used.
        data_dir: PathBuf,
    },
    /// A program is missing.
    #[error(
        "{} is missing or not executable; run `make setup`, or name a PostgreSQL server in DATABASE_URL",
        .0.display()
    )]
    Missing(PathBuf),
    /// The programs' version cannot be used.
    #[error("{found:?} cannot be used as the private PostgreSQL: version 17.6, 18.0 or newer is needed")]
    Version {
        /// What `postgres --version` says.
        found: String,
    },
    /// The cluster was made by another major version.
    #[error("the database in {} was made by PostgreSQL {cluster}, the installed one is {installed}; install {cluster} again or move the data with pg_upgrade", path.display())]
    MajorVersion {
        /// The cluster's folder.
        path: PathBuf,
        /// Its major version.
        cluster: String,
        /// The installed major version.
        installed: u32,
    },
    /// The system user could not be made.
    #[error(
        "PostgreSQL does not run as root, and the system user \"bulkhead-postgres\" could not be made ({0}); create it, or start Bulkhead as an ordinary user"
    )]
    SystemUser(String),
    /// A file or folder could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A path cannot be written into PostgreSQL's configuration.
    #[error("the path {path:?} cannot be used by PostgreSQL: it is not UTF-8 or has a line break")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// No folder for the socket was short and safe enough.
    #[error("no folder for PostgreSQL's socket: {0}")]
    Socket(String),
    /// initdb failed.
    #[error("initdb could not make the database in {}:\n{log}", path.display())]
    Initdb {
        /// The new cluster's folder.
        path: PathBuf,
        /// The last lines it printed.
        log: String,
    },
    /// PostgreSQL ended while starting.
    #[error("PostgreSQL did not start ({status}); its last words:\n{log}")]
    Exited {
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// PostgreSQL was not ready in time.
    #[error("PostgreSQL was not ready within {} s; its last words:\n{log}", waited.as_secs())]
    NotReady {
        /// The start timeout.
        waited: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// The cluster does not accept the superuser's secret.
    #[error("the database does not accept the secrets in {}; restore the secrets folder that belongs to this data", secrets.display())]
    SecretRefused {
        /// The folder.
        secrets: PathBuf,
    },
    /// PostgreSQL runs but cannot be reached.
    #[error("PostgreSQL runs but no connection succeeds; its last words:\n{log}")]
    Unreachable {
        /// The last lines of its log.
        log: String,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// PostgreSQL could not be stopped.
    #[error("PostgreSQL (process {pid}) does not stop")]
    NotStopped {
        /// Its process number.
        pid: i32,
    },
    /// A secret could not be read or made.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Roles, database or extension could not be prepared.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The task that watches PostgreSQL is gone; only a crash of the runtime does that.
    #[error("the task that watches PostgreSQL ended unexpectedly")]
    WatchLost,
}

impl ServerError {
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
