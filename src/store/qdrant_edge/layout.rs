//! Where a partition's files lie, and the one small file that says which of them count.
//!
//! ```text
//! root/<tenant>/<namespace>/<model>/watermark.json   which generation is served, and up to where it is durable
//! root/<tenant>/<namespace>/<model>/<generation>/    a shard
//! root/<tenant>/<namespace>/<model>/seal             checksum of both, from a stop in order until the next opening
//! root/<tenant>/<namespace>/<model>/opening          there while the shard is being opened
//! root/.trash/                                       what is being deleted; emptied at start
//! root/.lock                                         held by the one process that uses the folder
//! ```
//!
//! **Invariant:** paths consist of identifiers, never of names that a caller chose.
//! **Invariant:** a generation that `watermark.json` does not name is a leftover.
//! **Invariant:** nothing is written to a generation while there is a seal.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::domain::Seq;
use crate::domain::ids::{ModelId, NamespaceId, TenantId};
use crate::store::partition::Partition;

const WATERMARK: &str = "watermark.json";
const SEAL: &str = "seal";
const OPENING: &str = "opening";
const TRASH: &str = ".trash";
/// Bytes of a file that are read at once for its checksum.
const PIECE: usize = 64 * 1024;

/// What is durable of a partition. Pointer and watermark in one file, so that they cannot disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watermark {
    /// The generation that is served; 0 when the partition has had no point yet and hence no shard.
    pub(super) generation: u64,
    /// Everything up to here is in its files.
    pub(super) seq: Seq,
    /// Since when its files may hold something deleted, milliseconds of Unix time.
    pub(super) deleted_since: Option<i64>,
}

/// The folder of all shards.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    _lock: File,
    trashed: AtomicU64,
    /// Held while a partition's folders are made or removed, so that a parent is not removed under a child.
    parents: Mutex<()>,
}

impl Layout {
    /// Makes the root, closed to other users, takes it for this process alone, and empties the trash.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        make_private(&root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(root.join(".lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            TryLockError::Error(error) => error,
        })?;
        let trash = root.join(TRASH);
        if trash.exists() {
            fs::remove_dir_all(&trash)?;
        }
        make_private(&trash)?;
        Ok(Self { root, _lock: lock, trashed: AtomicU64::new(0), parents: Mutex::new(()) })
    }

    /// The folder of all shards.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The partition's folder, there or not.
    pub(super) fn partition(&self, partition: &Partition) -> PathBuf {
        self.root
            .join(partition.tenant().to_string())
            .join(partition.namespace().to_string())
            .join(partition.model().as_str())
    }

    /// Tenants that have a folder.
    pub(super) fn tenants(&self) -> io::Result<Vec<TenantId>> {
        Ok(names(&self.root)?.iter().filter_map(|name| name.parse().ok().map(TenantId)).collect())
    }

    /// Partitions of a tenant that have a folder.
    pub(super) fn partitions(&self, tenant: TenantId) -> io::Result<Vec<Partition>> {
        let folder = self.root.join(tenant.to_string());
        let mut found = Vec::new();
        for name in names(&folder)? {
            let Ok(namespace) = name.parse().map(NamespaceId) else { continue };
            let models = names(&folder.join(name))?;
            let models = models.into_iter().filter_map(|model| ModelId::parse(&model).ok());
            found.extend(models.map(|model| Partition::new(tenant, namespace, model)));
        }
        Ok(found)
    }

    /// Makes the folder of a new generation.
    pub(super) fn create_generation(&self, partition: &Path, generation: u64) -> io::Result<PathBuf> {
        let path = partition.join(generation.to_string());
        let _parents = self.parents.lock();
        make_private(&path)?;
        Ok(path)
    }

    /// Moves a folder out of the way in one step, then deletes it. What is not there is no error.
    pub(super) fn discard(&self, path: &Path) -> io::Result<()> {
        let number = self.trashed.fetch_add(1, Ordering::Relaxed);
        let aside = self.root.join(TRASH).join(number.to_string());
        match fs::rename(path, &aside) {
            Ok(()) => fs::remove_dir_all(&aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a partition's folder, and those of its namespace and tenant when it was their last.
    pub(super) fn discard_partition(&self, partition: &Path) -> io::Result<()> {
        let _parents = self.parents.lock();
        self.discard(partition)?;
        for parent in partition.ancestors().skip(1).take(2) {
            // Fails when another partition lives there, as it should.
            if parent == self.root || fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Records what is durable. Returns only once the record itself is.
    pub(super) fn write_watermark(&self, partition: &Path, watermark: Watermark) -> io::Result<()> {
        {
            let _parents = self.parents.lock();
            make_private(partition)?;
        }
        break_seal(partition)?;
        let draft = partition.join("watermark.json.new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&serde_json::to_vec(&watermark)?)?;
        file.sync_all()?;
        fs::rename(&draft, partition.join(WATERMARK))?;
        sync_folder(partition)
    }
}

/// What was recorded as durable; `None` when nothing was. Unreadable content is `InvalidData`.
pub(super) fn read_watermark(partition: &Path) -> io::Result<Option<Watermark>> {
    match fs::read(partition.join(WATERMARK)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(io::Error::from)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes back the record of what is durable: nothing is.
pub(super) fn discard_watermark(partition: &Path) -> io::Result<()> {
    match fs::remove_file(partition.join(WATERMARK)) {
        Ok(()) => sync_folder(partition),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Notes what a partition's record and files are, for [`is_as_sealed`]. Nobody writes to them any more.
pub(super) fn seal(partition: &Path, generation: u64) -> io::Result<()> {
    let checksum = checksum(partition, generation)?;
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(partition.join(SEAL))?;
    file.write_all(checksum.to_string().as_bytes())?;
    file.sync_all()?;
    sync_folder(partition)
}

/// Whether record and files are what they were when they were sealed; true of those that never were.
pub(super) fn is_as_sealed(partition: &Path, generation: u64) -> io::Result<bool> {
    match fs::read(partition.join(SEAL)) {
        Ok(sealed) => Ok(sealed == checksum(partition, generation)?.to_string().as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Forgets what a partition's files were: they are about to change.
pub(super) fn break_seal(partition: &Path) -> io::Result<()> {
    match fs::remove_file(partition.join(SEAL)) {
        Ok(()) => sync_folder(partition),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// CRC-32 of a record and, below its generation's folder, of every name and every byte.
fn checksum(partition: &Path, generation: u64) -> io::Result<u32> {
    let mut sum = crc32fast::Hasher::new();
    add_file(&partition.join(WATERMARK), &mut sum)?;
    add_folder(&partition.join(generation.to_string()), &mut sum)?;
    Ok(sum.finalize())
}

fn add_folder(folder: &Path, sum: &mut crc32fast::Hasher) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    for entry in entries {
        sum.update(entry.file_name().as_bytes());
        if entry.file_type()?.is_dir() {
            add_folder(&entry.path(), sum)?;
        } else {
            add_file(&entry.path(), sum)?;
        }
    }
    Ok(())
}

/// Adds a file's length, and every piece of it that is not all zeros with its place: a shard's files are mostly holes,
/// which a copy may have filled in.
fn add_file(path: &Path, sum: &mut crc32fast::Hasher) -> io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    sum.update(&length.to_le_bytes());
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some(data) = next_data(&file, at)? {
        // Of a whole piece, whatever the file system's blocks are.
        at = data - data % PIECE as u64;
        let count = file.read_at(&mut piece, at)?;
        if piece[..count].iter().any(|byte| *byte != 0) {
            sum.update(&at.to_le_bytes());
            sum.update(&piece[..count]);
        }
        at += PIECE as u64;
        if at >= length {
            break;
        }
    }
    Ok(())
}

/// Where a file's data goes on; nothing when only a hole or its end is there.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let place = i64::try_from(at).map_err(io::Error::other)?;
    match lseek(file, place, Whence::SeekData) {
        Ok(data) => u64::try_from(data).map(Some).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Notes that the shard is about to be opened. `false`: whoever was about to before did not come to an end.
pub(super) fn begin_opening(partition: &Path) -> bool {
    let note = OpenOptions::new().create_new(true).write(true).mode(0o600).open(partition.join(OPENING));
    // A disk that takes no note must not keep a shard from being opened.
    note.map_or_else(|error| error.kind() != io::ErrorKind::AlreadyExists, |_file| true)
}

/// Notes that the opening came to an end, good or bad.
pub(super) fn end_opening(partition: &Path) {
    // There is none when the disk took none.
    let _gone = fs::remove_file(partition.join(OPENING));
}

/// The folder itself, which one that was put in its place is not.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let about = fs::metadata(path)?;
    Ok((about.dev(), about.ino()))
}

/// The generations that have a folder.
pub(super) fn generations(partition: &Path) -> io::Result<Vec<u64>> {
    Ok(names(partition)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// What lies in a folder of shards and is not of its making: no tenant's, namespace's, model's or generation's. At
/// most `limit` of them. Reads only; inside of a generation nothing is looked at.
///
/// # Errors
/// When a folder cannot be read.
pub fn strangers(root: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
    type Own = fn(&str) -> bool;
    const UUID: Own = |name| name.parse::<uuid::Uuid>().is_ok_and(|id| id.to_string() == name);
    const LEVELS: [Own; 4] = [
        |name| UUID(name) || name == TRASH || name == ".lock",
        UUID,
        |name| ModelId::parse(name).is_ok(),
        |name| name.parse::<u64>().is_ok() || name == WATERMARK || name == "watermark.json.new",
    ];
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    for own in LEVELS {
        let mut inner = Vec::new();
        for folder in folders {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let known = name.to_str().is_some_and(own);
                let hidden = name.as_encoded_bytes().starts_with(b".");
                match entry.file_type()? {
                    kind if !known || kind.is_symlink() => found.push(entry.path()),
                    kind if kind.is_dir() && !hidden => inner.push(entry.path()),
                    _ => {}
                }
                if found.len() >= limit {
                    return Ok(found);
                }
            }
        }
        folders = inner;
    }
    Ok(found)
}

/// What lies in a folder; nothing when there is none.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry?.file_name().into_string().ok());
    }
    Ok(found)
}

/// Makes the entries of a folder and of those below it durable: a shard syncs its files, not their names.
pub(super) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_folder(path)
}

/// The bytes of the files directly in a folder; 0 when there is none.
pub(super) fn folder_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_a_shards_making_is_found_at_every_level() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("shards");
        let layout = Layout::open(root.clone()).expect("opened");
        let id = uuid::Uuid::from_u128;
        let model = ModelId::parse("0123456789abcdef").expect("a model");
        let partition = layout.partition(&Partition::new(TenantId(id(1)), NamespaceId(id(2)), model));
        let shard = layout.create_generation(&partition, 1).expect("made");
        fs::write(shard.join("segment"), "qdrant's own").expect("written");
        let seq = Watermark { generation: 1, seq: Seq(1), deleted_since: None };
        layout.write_watermark(&partition, seq).expect("written");
        assert_eq!(strangers(&root, 10).expect("read"), Vec::<PathBuf>::new());

        let tenant = root.join(id(1).to_string());
        let mut planted = vec![
            root.join("note.txt"),
            tenant.join("acme"),
            tenant.join(id(2).to_string()).join("other-model"),
            partition.join("2.bak"),
        ];
        for path in &planted {
            fs::create_dir(path).expect("planted");
        }
        let link = root.join(id(3).to_string());
        std::os::unix::fs::symlink("/", &link).expect("planted");
        planted.insert(1, link);
        let mut found = strangers(&root, 10).expect("read");
        found.sort();
        planted.sort();
        assert_eq!(found, planted);
        assert_eq!(strangers(&root, 2).expect("read").len(), 2);
    }
}
