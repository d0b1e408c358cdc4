//! What can go wrong below an index call, sorted by what is to be done about it.
//!
//! **Invariant:** a want of disk, memory, descriptors or permission is never taken for damage: a shard that
//! cannot be opened for such a reason is left alone.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use qdrant_edge::OperationResult;

use crate::store::error::{ErrorKind, StoreError};

/// The name of this back end.
pub(super) const BACKEND: &str = "qdrant_edge";

/// A failure, sorted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Nothing was done; the machine lacks something.
    #[error("{0}")]
    Refused(String),
    /// Something was perhaps half done; the machine lacks something. Memory no longer agrees with the files.
    #[error("{0}")]
    Interrupted(String),
    /// The shard is not to be trusted.
    #[error("{0}")]
    Damaged(String),
}

/// Error numbers that speak of the machine, not of the shard, and what an operator can do about each.
const MACHINE: [(i32, &str); 10] = [
    (28, "the disk that holds the vector shards is full: free space or move the data folder"),
    (122, "the disk quota of the vector shards is used up: raise it or move the data folder"),
    (30, "the disk that holds the vector shards is mounted read-only"),
    (
        13,
        "no permission on the files of the vector shards: they must belong to the user that runs the server",
    ),
    (1, "no permission on the files of the vector shards: they must belong to the user that runs the server"),
    (24, "too many open files: raise the limit on open files or lower vectors.max_open"),
    (23, "the machine has too many open files: lower vectors.max_open"),
    (12, "no memory left to map a vector shard: lower vectors.max_open"),
    (11, "another process uses these vector shards: two servers must not share a data folder"),
    (5, "the disk that holds the vector shards reports input/output errors"),
];

/// The same where only the kind of an `io::Error` was kept.
const KINDS: [(&str, i32); 5] = [
    ("WouldBlock", 11),
    ("StorageFull", 28),
    ("QuotaExceeded", 122),
    ("ReadOnlyFilesystem", 30),
    ("PermissionDenied", 13),
];

fn machine(number: i32) -> Option<&'static str> {
    MACHINE.iter().find(|(n, _)| *n == number).map(|(_, words)| *words)
}

/// The error number in the words of an `io::Error`, displayed or debugged: qdrant-edge keeps only words.
fn number_in(words: &str) -> Option<i32> {
    let after = |mark: &str| {
        let rest = &words[words.find(mark)? + mark.len()..];
        rest[..rest.find(|c: char| !c.is_ascii_digit())?].parse().ok()
    };
    let kind = || KINDS.iter().find(|(kind, _)| words.contains(kind)).map(|(_, number)| *number);
    after("(os error ").or_else(|| after("Os { code: ")).or_else(kind)
}

impl Fault {
    /// Sorts by the words of an error.
    pub(super) fn from_words(words: &str) -> Self {
        match number_in(words).and_then(machine) {
            Some(advice) => Self::Interrupted(format!("{advice} ({})", first_line(words))),
            None => Self::Damaged(first_line(words).to_owned()),
        }
    }

    /// A failure of our own files, named.
    pub(super) fn from_io(doing: &str, error: &io::Error) -> Self {
        let number = error.raw_os_error().or_else(|| number_in(&format!("{:?}", error.kind())));
        match number.and_then(machine) {
            Some(advice) => Self::Interrupted(format!("{doing}: {advice} ({error})")),
            None => Self::Interrupted(format!("{doing}: {error}")),
        }
    }

    /// As the floor's error.
    pub(super) fn into_store(self, operation: &'static str) -> StoreError {
        let kind = match self {
            Self::Refused(_) | Self::Interrupted(_) => ErrorKind::Unavailable,
            Self::Damaged(_) => ErrorKind::Damaged,
        };
        StoreError::new(kind, BACKEND, operation, self.to_string())
    }
}

/// Blocks for a moment. Refuses when a folder's disk has less left than so many bytes.
pub(super) fn require_free(folder: &Path, bytes: u64) -> Result<(), Fault> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .map_err(|error| Fault::from_io("measuring the disk of the vector shards", &error.into()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free < bytes {
        return Err(Fault::Refused(format!(
            "the disk that holds the vector shards has {free} bytes left and {bytes} are kept free: free space, \
             move the data folder or lower vectors.min_free_bytes"
        )));
    }
    Ok(())
}

/// Runs a call into qdrant-edge, which panics where others return errors.
pub(super) fn guarded<T>(call: impl FnOnce() -> OperationResult<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::from_words(&error.to_string())),
        Err(panic) => Err(Fault::from_words(&format!("panicked: {}", words_of(panic.as_ref())))),
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
}

fn first_line(words: &str) -> &str {
    words.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_taken_for_damage() {
        let full = io::Error::from_raw_os_error(28);
        for words in [format!("Service runtime error: {full}"), format!("panicked: flushed: {full:?}")] {
            match Fault::from_words(&words) {
                Fault::Interrupted(advice) => assert!(advice.contains("free space"), "{advice}"),
                other => panic!("{other:?}"),
            }
        }
        let locked = "failed to open WAL 7/1/wal: Can't init WAL: Kind(WouldBlock)";
        assert!(matches!(Fault::from_words(locked), Fault::Interrupted(_)));
        assert!(matches!(Fault::from_words("Inconsistent storage: id 7"), Fault::Damaged(_)));
    }

    #[test]
    fn a_panic_becomes_damage() {
        let fault = guarded::<()>(|| panic!("index out of bounds")).unwrap_err();
        assert!(matches!(&fault, Fault::Damaged(words) if words.contains("out of bounds")), "{fault:?}");
    }
}
