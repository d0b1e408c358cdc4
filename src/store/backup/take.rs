//! A backup of a database and its files, while both are in use.
//!
//! Uploads lie on disk before their rows and go after them, so those that a snapshot names were there when it was
//! taken. Each gets a second name (a hard link), which a deletion does not take. One that is gone before it got one
//! was deleted since: then a later snapshot is taken, until all that it names are held. One that stays away was lost
//! before, and is counted.
//!
//! **Invariant:** nothing is asked of the server that runs, and nothing that it uses is changed.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::BackupError;
use super::archive::{Manifest, Packer, Place};
use super::depot::{Archived, Depot, Outlet};
use super::seal::Seal;
use crate::store::postgres::dump::{DumpAccess, Dumping, NamedUpload, Snapshot};

/// Bytes of one piece of the dump.
const PIECE: usize = 16 << 20;
/// Snapshots after which an upload that is still missing counts as lost.
const SNAPSHOTS: usize = 5;
const STAGING: &str = "backup-";

/// Bytes that were packed so far, for whoever watches.
pub type Tally = Arc<AtomicU64>;

/// What is backed up, and how.
pub struct Backup {
    /// The database.
    pub access: DumpAccess,
    /// The folder with `secrets`.
    pub data_dir: PathBuf,
    /// The folder of uploaded files.
    pub uploads: PathBuf,
    /// For whom it is encrypted.
    pub seal: Seal,
}

/// A backup that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The archive.
    pub archive: Archived,
    /// What it holds.
    pub manifest: Manifest,
}

impl Backup {
    /// Takes it. `id` tells archives of the same second apart.
    ///
    /// # Errors
    /// [`BackupError`]; then there is no archive.
    pub async fn take(
        self,
        depot: &Depot,
        now: DateTime<Utc>,
        id: Uuid,
        tally: Tally,
    ) -> Result<Taken, BackupError> {
        let mut snapshot = Snapshot::take(&self.access).await?.ok_or(BackupError::UnderWay)?;
        let taken = self.take_in(&mut snapshot, depot, now, id, tally).await;
        let closed = snapshot.close().await;
        let taken = taken?;
        closed?;
        Ok(taken)
    }

    async fn take_in(
        &self,
        snapshot: &mut Snapshot,
        depot: &Depot,
        now: DateTime<Utc>,
        id: Uuid,
        tally: Tally,
    ) -> Result<Taken, BackupError> {
        let staging = Staging::make(&self.data_dir, id)?;
        let (uploads, lost_uploads) = self.pin(snapshot, &staging).await?;
        let (counts, schema) = snapshot.counts().await?;
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            taken_at: now,
            schema,
            counts,
            lost_uploads,
            parts: std::collections::BTreeMap::new(),
        };
        let dump = snapshot.dump().map_err(BackupError::io("pg_dump cannot be started"))?;
        let name = Depot::name(now, id, self.seal.is_encrypted());
        let (seal, secrets) = (self.seal.clone(), self.data_dir.join("secrets"));
        let contents = Contents { secrets, uploads, staging, dump, manifest };
        let (manifest, bytes) = depot.write(&name, move |out| contents.pack(out, &seal, &tally)).await?;
        Ok(Taken { archive: Archived { name, at: now, bytes }, manifest })
    }

    /// Pins every upload that the snapshot names, moving to later snapshots while one is gone. Those that are held,
    /// and how many were lost.
    async fn pin(
        &self,
        snapshot: &mut Snapshot,
        staging: &Staging,
    ) -> Result<(Vec<NamedUpload>, u64), BackupError> {
        let mut pinned = BTreeSet::new();
        for _ in 1..SNAPSHOTS {
            let named = snapshot.uploads().await?;
            let missing = self.link(&named, &mut pinned, staging)?;
            if missing == 0 {
                return Ok((named, 0));
            }
            snapshot.renew().await?;
        }
        let mut named = snapshot.uploads().await?;
        let lost = self.link(&named, &mut pinned, staging)?;
        named.retain(|upload| pinned.contains(upload));
        Ok((named, lost))
    }

    /// Gives files a second name that have none yet, and counts those that are not there.
    fn link(
        &self,
        named: &[NamedUpload],
        pinned: &mut BTreeSet<NamedUpload>,
        staging: &Staging,
    ) -> Result<u64, BackupError> {
        let mut missing = 0;
        for upload in named {
            if pinned.contains(upload) {
                continue;
            }
            match hold(&file_of(&self.uploads, upload), &staging.file(upload)) {
                Ok(()) => drop(pinned.insert(*upload)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing += 1,
                Err(error) => return Err(BackupError::io("an upload cannot be held")(error)),
            }
        }
        Ok(missing)
    }
}

/// Gives a file a second name, or makes a second file of it where the first is on another file system.
fn hold(file: &Path, name: &Path) -> io::Result<()> {
    match fs::hard_link(file, name) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(file, name).map(drop),
        linked => linked,
    }
}

/// Where an upload lies below a folder.
pub(super) fn file_of(uploads: &Path, upload: &NamedUpload) -> PathBuf {
    uploads
        .join(upload.tenant_id.to_string())
        .join(upload.namespace_id.to_string())
        .join(upload.upload_id.to_string())
}

/// The folder of second names. Goes when it is dropped; what a crash left goes with the next one.
struct Staging(PathBuf);

impl Staging {
    fn make(data_dir: &Path, id: Uuid) -> Result<Self, BackupError> {
        let failed = || BackupError::io("the folder for a backup cannot be made");
        // Under the lock that the snapshot holds: nobody else's is in use.
        for entry in fs::read_dir(data_dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.strip_prefix(STAGING).is_some_and(|id| Uuid::parse_str(id).is_ok()) {
                fs::remove_dir_all(&path).map_err(failed())?;
            }
        }
        let folder = data_dir.join(format!("{STAGING}{id}"));
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed())?;
        Ok(Self(folder))
    }

    fn file(&self, upload: &NamedUpload) -> PathBuf {
        self.0.join(upload.upload_id.to_string())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a backup's folder stays behind");
        }
    }
}

/// Everything that goes into the archive.
struct Contents {
    secrets: PathBuf,
    uploads: Vec<NamedUpload>,
    staging: Staging,
    dump: Dumping,
    manifest: Manifest,
}

impl Contents {
    /// Blocks.
    fn pack(mut self, out: Outlet, seal: &Seal, tally: &Tally) -> Result<Manifest, BackupError> {
        let failed = || BackupError::io("the archive cannot be written");
        let mut packer = Packer::new(out, seal).map_err(failed())?;
        self.pack_secrets(&mut packer)?;
        for upload in &self.uploads {
            let file = File::open(self.staging.file(upload)).map_err(failed())?;
            let size = file.metadata().map_err(failed())?.len();
            let place = Place::upload(upload.tenant_id, upload.namespace_id, upload.upload_id);
            packer.add(&place, size, file).map_err(failed())?;
            tally.fetch_add(size, Ordering::Relaxed);
        }
        let mut piece = Vec::with_capacity(PIECE);
        for number in 0.. {
            piece.clear();
            let read = self.dump.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(failed())?;
            if read == 0 {
                break;
            }
            packer.add(&Place::dump(number), read as u64, piece.as_slice()).map_err(failed())?;
            tally.fetch_add(read as u64, Ordering::Relaxed);
        }
        // Before the end of the archive is written: what a failed program wrote is no dump.
        self.dump.end().map_err(|(program, words)| BackupError::Program { program, words })?;
        packer.finish(self.manifest).map_err(failed())
    }

    /// The files of the secrets' folder, by name.
    fn pack_secrets(&self, packer: &mut Packer<impl Write>) -> Result<(), BackupError> {
        let failed = || BackupError::io("the secrets cannot be read");
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.secrets).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            // One that is just being written begins with a dot, or ends with what none of ours does.
            let place = entry.file_name().to_str().and_then(Place::secret);
            if let Some(place) = place
                && entry.path().extension().is_none_or(|ending| ending != "new")
            {
                files.push((place, entry.path()));
            }
        }
        files.sort();
        for (place, path) in files {
            let bytes = fs::read(path).map_err(failed())?;
            packer.add(&place, bytes.len() as u64, bytes.as_slice()).map_err(failed())?;
        }
        Ok(())
    }
}
