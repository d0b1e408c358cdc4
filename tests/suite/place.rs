//! A data folder of its own for each test, in which private PostgreSQL servers are started and stopped.
//!
//! The programs are those of `BULKHEAD_POSTGRES_INSTALL`, or those that set-up puts into `.local`.

use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bulkhead::store::postgres::secrets::SystemEntropy;
use bulkhead::store::postgres::server::{DataLock, PrivateServer, ServerError, ServerPaths, ServerSettings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::Connection as _;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;

fn install() -> PathBuf {
    let path = std::env::var_os("BULKHEAD_POSTGRES_INSTALL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor/postgresql"),
        PathBuf::from,
    );
    assert!(path.join("bin/postgres").exists(), "no PostgreSQL in {}; run set-up", path.display());
    path
}

/// A data folder of its own, in which a test starts and stops servers.
pub struct Place {
    pub base: TempDir,
    pub paths: ServerPaths,
    pub settings: ServerSettings,
}

impl Place {
    pub fn new() -> Self {
        let base = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("folder");
        let paths = ServerPaths { install: install(), data_dir: base.path().join("data") };
        let relocation = base.path().join("relocated");
        let settings = ServerSettings {
            shared_buffers_mib: 16,
            durable: false,
            relocation,
            ..ServerSettings::default()
        };
        Self { base, paths, settings }
    }

    pub async fn try_start(&self) -> Result<PrivateServer, ServerError> {
        let lock = DataLock::acquire(&self.paths.data_dir)?;
        PrivateServer::start(&self.paths, &self.settings, &SystemEntropy, &lock).await
    }

    pub async fn start(&self) -> PrivateServer {
        self.try_start().await.expect("PostgreSQL starts")
    }
}

impl Drop for Place {
    /// Ends a server that a failed test left running, found by its own folder's file only.
    fn drop(&mut self) {
        let cluster = self.base.path().join("data/postgres");
        let text = fs::read_to_string(cluster.join("postmaster.pid")).unwrap_or_default();
        let pid = text.lines().next().and_then(|line| line.parse().ok());
        if let Some(pid) = pid
            && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == cluster)
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        }
    }
}

pub async fn connect(options: &PgConnectOptions) -> PgConnection {
    PgConnection::connect_with(options).await.expect("connection")
}

pub async fn text(connection: &mut PgConnection, query: &'static str) -> String {
    sqlx::query_scalar(query).fetch_one(connection).await.expect(query)
}

pub fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.map(Cow::into_owned).unwrap_or_default()
}
