//! Backups of a deployment, and data folders made of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use super::{Foundation, Settings, database};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::{IdSource, SystemIds};
use crate::inference::Embedder;
use crate::store::backup::{
    Backup, Depot, Keep, Key, Restored, Restoring, Seal, Taken, Tally, move_aside, require_empty,
};
use crate::store::postgres::address::ServerAddresses;
use crate::store::postgres::dump::DumpAccess;
use crate::store::postgres::secrets::{RoleSecrets, SystemEntropy};
use crate::store::postgres::server::{DataLock, PrivateServer, ServerPaths};

/// What a backup should be.
pub struct BackupOrder {
    /// A folder, or `s3://bucket/prefix`.
    pub to: String,
    /// For whom it is encrypted.
    pub seal: Seal,
    /// Which archives stay.
    pub keep: Keep,
}

/// What a restore should be.
pub struct RestoreOrder {
    /// A folder, or `s3://bucket/prefix`.
    pub from: String,
    /// The archive; none: the newest.
    pub archive: Option<String>,
    /// What opens it.
    pub key: Option<Key>,
    /// Whether a data folder that is there is moved aside.
    pub replace: bool,
    /// Whether the archive is read and compared, and nothing else done.
    pub check: bool,
}

/// A backup that was taken, and the archives that went.
pub struct BackedUp {
    /// The backup.
    pub taken: Taken,
    /// Names of archives that no rule keeps any more.
    pub removed: Vec<String>,
}

/// What came of a restore.
pub struct FolderRestored {
    /// The archive.
    pub restored: Restored,
    /// Where the data folder is that was there before.
    pub aside: Option<PathBuf>,
}

/// Takes a backup of the database that runs, whoever started it, and of the data folder; then removes what is not to
/// be kept.
///
/// # Errors
/// Says what is missing; then there is no archive, or one too many.
pub async fn backup(settings: &Settings, order: BackupOrder, tally: Tally) -> anyhow::Result<BackedUp> {
    // For HTTPS; a second call in one process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let clock = SystemClock;
    let depot = Depot::open(&order.to, true)?;
    let data_dir = std::fs::canonicalize(&settings.data_dir)?;
    let access = access(settings, &data_dir).await?;
    let uploads = settings.uploads_in(&data_dir);
    let backup = Backup { access, data_dir, uploads, seal: order.seal };
    let taken = backup.take(&depot, clock.now(), SystemIds(SystemClock).uuid(), tally).await?;
    let removed = depot.prune(order.keep, clock.now()).await?;
    Ok(BackedUp { taken, removed })
}

/// Makes a data folder of an archive, after all of it was read and found whole, and opens it once as a server would.
///
/// # Errors
/// Says what is wrong. Before the archive was found whole and the folder empty, nothing was changed.
pub async fn restore(
    settings: &Settings,
    order: RestoreOrder,
    tally: Tally,
) -> anyhow::Result<FolderRestored> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let depot = Depot::open(&order.from, false)?;
    let restoring = Restoring::open(depot, order.archive.as_deref(), order.key, tally).await?;
    let restored = restoring.check().await?;
    if order.check {
        return Ok(FolderRestored { restored, aside: None });
    }
    let (lock, aside) = prepare(settings, order.replace, &restored)?;
    let data_dir = lock.data_dir().to_owned();
    restoring.files(&data_dir, &settings.uploads_in(&data_dir)).await?;
    let (private, _) = database::reach(settings, &data_dir, &lock).await?;
    let filled = fill(settings, &data_dir, &restoring).await;
    if let Some(private) = private {
        private.stop().await?;
    }
    filled?;
    Restoring::finish(&data_dir)?;
    drop(lock);
    open_once(settings, &restored).await?;
    Ok(FolderRestored { restored, aside })
}

/// An empty data folder, locked; and where the one is that was there before.
fn prepare(
    settings: &Settings,
    replace: bool,
    restored: &Restored,
) -> anyhow::Result<(DataLock, Option<PathBuf>)> {
    let lock = DataLock::acquire(&settings.data_dir)?;
    if let Some(uploads) = settings.uploads_dir.as_ref().filter(|folder| folder.exists()) {
        require_empty(uploads)?;
    }
    match require_empty(lock.data_dir()) {
        Ok(()) => return Ok((lock, None)),
        Err(error) if !replace => return Err(error.into()),
        Err(_) => {}
    }
    if settings.database.administrator()?.is_some() {
        bail!(
            "with a database of your own, `--replace` is not done: name another data_dir, and another database.name \
             or drop that database"
        );
    }
    let ending = SystemClock.now().format("%Y%m%dT%H%M%SZ").to_string();
    let aside = move_aside(lock.data_dir(), &ending)?;
    tracing::info!(archive = restored.archive.name, aside = %aside.display(), "the data folder was moved aside");
    drop(lock);
    Ok((DataLock::acquire(&settings.data_dir)?, Some(aside)))
}

async fn fill(settings: &Settings, data_dir: &Path, restoring: &Restoring) -> anyhow::Result<()> {
    let access = access(settings, data_dir).await?;
    if access.is_used().await? {
        bail!(
            "the database {:?} has tables already: name another in database.name, or drop it",
            settings.database.name
        );
    }
    restoring.database(&access).await?;
    Ok(())
}

/// Opens the restored folder with everything that a server checks at its start, and writes down that it was restored.
async fn open_once(settings: &Settings, restored: &Restored) -> anyhow::Result<()> {
    let embedding = settings.embedding.clone();
    let model = tokio::task::spawn_blocking(move || Embedder::identify(&embedding)).await??;
    let foundation =
        Box::pin(Foundation::open(settings, &model)).await.context("what was restored does not open")?;
    let entry = AuditEntry::new(AuditKind::Admin, "deployment.restore", Decision::Allowed)
        .because(&format!("the state of {}", restored.manifest.taken_at.to_rfc3339()))
        .with_ids([&restored.archive.name]);
    let recorded = foundation.audit.record_server(entry).await;
    foundation.close().await?;
    Ok(recorded?)
}

/// How the database is reached that runs, whoever started it.
async fn access(settings: &Settings, data_dir: &Path) -> anyhow::Result<DumpAccess> {
    let secrets = Arc::new(RoleSecrets::load_or_create(&data_dir.join("secrets"), &SystemEntropy)?);
    let database = settings.database.name.clone();
    let install = std::path::absolute(&settings.database.install)?;
    let administrator = settings.database.administrator().context("database.url_file cannot be read")?;
    if let Some(url) = administrator {
        let servers = ServerAddresses::parse(&url).context("the database's address cannot be read")?;
        let (admin, _others) = servers.primary().await?;
        return Ok(DumpAccess { admin, database, secrets, programs: install });
    }
    let paths = ServerPaths { install, data_dir: data_dir.to_owned() };
    let (admin, programs) = PrivateServer::reach(&paths, &settings.database.server, &SystemEntropy)?;
    Ok(DumpAccess { admin, database, secrets, programs })
}
