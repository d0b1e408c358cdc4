//! One archive of everything that cannot be made again: the database, the uploads it names, and the secrets that
//! keys and tokens hang on. Shards are not in it: they are written anew.
//!
//! ```text
//! bulkhead-<time>-<id>.tar.zst[.age]   a tar, compressed, perhaps encrypted
//!     about.json                        which format, by which version
//!     secrets/<name>
//!     uploads/<tenant>/<namespace>/<upload>
//!     database/<number>                 pieces of what pg_dump writes
//!     manifest.json                     counts, and size and hash of each part
//! ```
//!
//! It is written in one stream, and read as a whole before anything is done with it.
//!
//! **Invariant:** database and uploads are of one moment: the uploads are those that the dump's own snapshot names,
//! and were pinned while they were there.
//! **Invariant:** an archive appears whole or not at all; what was cut, changed or is of a newer format is refused
//! before anything is changed.

mod archive;
mod depot;
mod restore;
mod seal;
mod take;

use std::io;

pub use archive::{Manifest, Part, Parts};
pub use depot::{Archived, Depot, Keep};
pub use restore::{Restored, Restoring, is_unfinished, move_aside, require_empty};
pub use seal::{Key, Seal, new_identity};
pub use take::{Backup, Taken, Tally};

use super::error::StoreError;

/// Why there is no backup, or none that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The archive is not what was written.
    #[error("the archive is damaged or incomplete: {0}; nothing was changed")]
    Damaged(String),
    /// The key does not open it.
    #[error("the archive cannot be opened with this key or passphrase; nothing was changed")]
    WrongKey,
    /// It is encrypted, and no key was given.
    #[error("the archive is encrypted: name the key (--identity) or the passphrase (--passphrase-file)")]
    KeyMissing,
    /// A key was given for an archive that is not encrypted: it may have been put in the place of one that was.
    #[error("the archive is not encrypted, though a key was given: it may be another than yours")]
    NotEncrypted,
    /// It was written by a later version.
    #[error(
        "the archive was written by Bulkhead {version}, which is newer than this one; nothing was changed"
    )]
    Newer {
        /// That version.
        version: String,
    },
    /// A recipient, identity or passphrase that cannot be used.
    #[error("{0}")]
    Key(String),
    /// There is no such archive.
    #[error("there is no archive {0:?}")]
    NotFound(String),
    /// The place of the archives cannot be used.
    #[error("{place}: {words}")]
    Place {
        /// Where.
        place: String,
        /// Why not.
        words: String,
    },
    /// The place of the archives failed.
    #[error("the place of the archives failed to {doing}")]
    Depot {
        /// What it should do.
        doing: &'static str,
        /// Its own words.
        #[source]
        source: object_store::Error,
    },
    /// What it is restored into is not empty.
    #[error("{0} is not empty; `--replace` moves what is there aside")]
    NotEmpty(String),
    /// `pg_dump` or `pg_restore` failed.
    #[error("{program} failed: {words}")]
    Program {
        /// Which.
        program: &'static str,
        /// Its last words.
        words: String,
    },
    /// Another backup runs.
    #[error("another backup of this database is under way")]
    UnderWay,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be read or written.
    #[error("{doing}")]
    Io {
        /// What was done.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl BackupError {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
