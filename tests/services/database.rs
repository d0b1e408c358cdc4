//! A PostgreSQL of a test's own, whose address servers are given.

use std::path::{Path, PathBuf};

use bulkhead::store::postgres::secrets::SystemEntropy;
use bulkhead::store::postgres::server::{DataLock, PrivateServer, ServerPaths, ServerSettings};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::whole::Folder;

/// The database that servers make.
pub const NAME: &str = "bulkhead";

/// Where set-up put PostgreSQL.
pub fn install() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor/postgresql")
}

/// A PostgreSQL that no server of ours started.
pub struct Database {
    pub server: PrivateServer,
    pub folder: Folder,
}

impl Database {
    pub async fn start() -> Self {
        let folder = Folder::new();
        let paths = ServerPaths { install: install(), data_dir: folder.0.join("postgres-data") };
        let settings = ServerSettings {
            shared_buffers_mib: 16,
            durable: false,
            relocation: folder.0.join("relocated"),
            ..ServerSettings::default()
        };
        let lock = DataLock::acquire(&paths.data_dir).expect("a lock");
        let server = PrivateServer::start(&paths, &settings, &SystemEntropy, &lock).await;
        Self { server: server.expect("PostgreSQL starts"), folder }
    }

    /// Its administrator's address.
    pub fn url(&self) -> String {
        self.server.superuser().to_url_lossy().to_string()
    }

    /// A connection that no policy binds, to the servers' database.
    pub async fn superuser(&self) -> PgConnection {
        connect(&self.server.superuser().database(NAME)).await
    }

    pub async fn stop(self) {
        self.server.stop().await.expect("stopped");
    }
}

pub async fn connect(options: &PgConnectOptions) -> PgConnection {
    options.connect().await.expect("a connection")
}
