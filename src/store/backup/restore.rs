//! An archive becomes a data folder again.
//!
//! First it is read to its end and compared with its own sums; then the folder is looked at; only then something is
//! written. A restore that was broken off leaves a mark, with which no server starts.
//!
//! **Invariant:** nothing is changed for an archive that is not whole, or for a folder that is in use or not empty.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::BackupError;
use super::archive::{Manifest, Part, Place, unpack};
use super::depot::{Archived, Depot};
use super::seal::Key;
use super::take::Tally;
use crate::store::postgres::dump::DumpAccess;
use crate::store::postgres::migrate;

/// What lies in a data folder into which nothing was restored to its end.
const MARK: &str = "restore-unfinished";
/// Where the private database was put instead, when its user cannot reach the data folder.
const LOCATION: &str = "postgres-location";

/// A restore from one archive.
pub struct Restoring {
    depot: Depot,
    archive: Archived,
    key: Option<Arc<Key>>,
    tally: Tally,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The archive.
    pub archive: Archived,
    /// What it holds.
    pub manifest: Manifest,
}

impl Restoring {
    /// The archive of this name, or the newest.
    ///
    /// # Errors
    /// `NotFound` or `Depot`.
    pub async fn open(
        depot: Depot,
        name: Option<&str>,
        key: Option<Key>,
        tally: Tally,
    ) -> Result<Self, BackupError> {
        let archive = depot.find(name).await?;
        Ok(Self { depot, archive, key: key.map(Arc::new), tally })
    }

    /// Reads the archive to its end and compares it with its sums. Changes nothing.
    ///
    /// # Errors
    /// `Damaged`, `WrongKey`, `KeyMissing`, `NotEncrypted`, `Newer` or `Depot`.
    pub async fn check(&self) -> Result<Restored, BackupError> {
        let manifest = self.unpack(|_, _| Ok(())).await?;
        if manifest.schema > migrate::newest() {
            return Err(BackupError::Newer { version: manifest.version });
        }
        Ok(Restored { archive: self.archive.clone(), manifest })
    }

    /// Reads the archive on a thread of its own, and counts what was read.
    async fn unpack(
        &self,
        visit: impl FnMut(&Place, &mut dyn io::Read) -> Result<(), BackupError> + Send + 'static,
    ) -> Result<Manifest, BackupError> {
        let (key, tally) = (self.key.clone(), Arc::clone(&self.tally));
        tally.store(0, Ordering::Relaxed);
        self.depot
            .read(&self.archive.name, move |inlet| unpack(counted(inlet, tally), key.as_deref(), visit))
            .await
    }

    /// Writes secrets and uploads into an empty data folder, which is marked as unfinished from here on.
    ///
    /// # Errors
    /// [`BackupError`]; the folder stays marked.
    pub async fn files(&self, data_dir: &Path, uploads: &Path) -> Result<(), BackupError> {
        write(&data_dir.join(MARK), &mut &b"A restore was begun and not finished.\n"[..])?;
        let (data_dir, uploads) = (data_dir.to_owned(), uploads.to_owned());
        let place = move |place: &Place, content: &mut dyn io::Read| match place.part {
            Part::Secrets => write(&data_dir.join("secrets").join(&place.path), content),
            Part::Uploads => write(&uploads.join(&place.path), content),
            Part::Database => Ok(()),
        };
        self.unpack(place).await.map(drop)
    }

    /// Writes the dump into an empty database.
    ///
    /// # Errors
    /// [`BackupError`]; the database holds nothing then.
    pub async fn database(&self, access: &DumpAccess) -> Result<(), BackupError> {
        let mut loading = access.restore().map_err(BackupError::io("pg_restore cannot be started"))?;
        let (key, tally) = (self.key.clone(), Arc::clone(&self.tally));
        tally.store(0, Ordering::Relaxed);
        let load = move |inlet| {
            let unpacked = unpack(counted(inlet, tally), key.as_deref(), |place, content| {
                if place.part == Part::Database {
                    io::copy(content, &mut loading).map_err(BackupError::io("pg_restore takes no more"))?;
                }
                Ok(())
            });
            // An archive that broke off ends the program without its end, and it takes everything back.
            let ended = match &unpacked {
                Ok(_) | Err(BackupError::Io { .. }) => loading.end(),
                Err(_) => {
                    drop(loading);
                    Ok(())
                }
            };
            ended.map_err(|(program, words)| BackupError::Program { program, words })?;
            unpacked.map(drop)
        };
        self.depot.read(&self.archive.name, load).await?;
        access.settle().await?;
        Ok(())
    }

    /// Makes everything durable and takes the mark away: the folder is whole.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(data_dir: &Path) -> Result<(), BackupError> {
        let synced = File::open(data_dir).and_then(|folder| Ok(nix::unistd::syncfs(folder)?));
        synced.map_err(BackupError::io("the data folder cannot be made durable"))?;
        fs::remove_file(data_dir.join(MARK))
            .map_err(BackupError::io("the mark of a restore cannot be removed"))
    }
}

/// What keeps a data folder from being restored into, or used.
///
/// # Errors
/// `NotEmpty` when something is in it, but for the lock of whoever asks.
pub fn require_empty(data_dir: &Path) -> Result<(), BackupError> {
    let entries = fs::read_dir(data_dir).map_err(BackupError::io("the data folder cannot be read"))?;
    for entry in entries {
        let entry = entry.map_err(BackupError::io("the data folder cannot be read"))?;
        if entry.file_name() != "lock" {
            return Err(BackupError::NotEmpty(data_dir.display().to_string()));
        }
    }
    Ok(())
}

/// Whether a restore into this data folder was begun and not finished.
#[must_use]
pub fn is_unfinished(data_dir: &Path) -> bool {
    data_dir.join(MARK).exists()
}

/// Moves a data folder aside, the private database with it where that lies elsewhere. Returns where it is now.
///
/// # Errors
/// `Io`.
pub fn move_aside(data_dir: &Path, ending: &str) -> Result<PathBuf, BackupError> {
    let failed = || BackupError::io(format!("{} cannot be moved aside", data_dir.display()));
    let aside = |path: &Path| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".before-{ending}"));
        path.with_file_name(name)
    };
    let record = data_dir.join(LOCATION);
    let elsewhere = match fs::read_to_string(&record) {
        Ok(home) => Some(PathBuf::from(home.trim_end())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed()(error)),
    };
    let home = elsewhere.as_deref().unwrap_or(data_dir);
    if home.join("postgres/postmaster.pid").exists() {
        let words = "its database did not stop in order: start the server once and stop it";
        return Err(failed()(io::Error::other(words)));
    }
    if let Some(home) = &elsewhere {
        let moved = aside(home);
        fs::rename(home, &moved).map_err(failed())?;
        fs::write(&record, moved.to_string_lossy().as_bytes()).map_err(failed())?;
    }
    let moved = aside(data_dir);
    fs::rename(data_dir, &moved).map_err(failed())?;
    Ok(moved)
}

/// Writes a new file of mode 0600, in folders of mode 0700.
fn write(path: &Path, content: &mut dyn io::Read) -> Result<(), BackupError> {
    let failed = || BackupError::io(format!("{} cannot be written", path.display()));
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed())?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed())?;
    io::copy(content, &mut file).map(drop).map_err(failed())
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    tally: Tally,
}

fn counted<R>(inner: R, tally: Tally) -> Counted<R> {
    Counted { inner, tally }
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.tally.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
