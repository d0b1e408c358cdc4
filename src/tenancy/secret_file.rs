//! Secrets of the server that live in the data folder: made once, readable by its owner alone.
//!
//! **Invariant:** a secret that exists is never replaced, and one that others can read is never used.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// A secret's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read or written.
    #[error("{path} cannot be read or written")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner can read it.
    #[error("{path} can be read by others; allow it to its owner alone (chmod 600)")]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// Its content is not what it should be.
    #[error("{path} does not hold {wanted}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
}

/// The text in the file, which is made with mode 0600 from `make` when there is none.
///
/// Whole or absent: it is written beside its place and then linked there, so a crash leaves no half secret
/// and of two that start at once both read the same.
///
/// # Errors
/// [`SecretFileError`] when it cannot be read or made, or when others can read it.
pub fn load_or_create(
    path: &Path,
    make: impl FnOnce() -> SecretString,
) -> Result<SecretString, SecretFileError> {
    let failed = |source| SecretFileError::Io { path: path.to_owned(), source };
    if let Some(secret) = read(path)? {
        return Ok(secret);
    }
    create(path, make().expose_secret()).map_err(failed)?;
    read(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

fn read(path: &Path) -> Result<Option<SecretString>, SecretFileError> {
    let failed = |source| SecretFileError::Io { path: path.to_owned(), source };
    let mode = match fs::metadata(path) {
        Ok(meta) => meta.permissions().mode(),
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Open { path: path.to_owned() });
    }
    fs::read_to_string(path).map(|text| Some(text.into())).map_err(failed)
}

fn create(path: &Path, secret: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    // Left by a crash of a process that had our number.
    fs::remove_file(&beside).ok();
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
            file.write_all(secret.as_bytes())?;
            file.sync_all()
        });
    let linked = written.and_then(|()| match fs::hard_link(&beside, path) {
        Err(made) if made.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = fs::remove_file(&beside);
    linked.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_for_its_owner_and_refused_when_others_can_read_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pepper");
        let first = load_or_create(&path, || "one".into()).expect("made");
        let second = load_or_create(&path, || "two".into()).expect("read");
        assert_eq!(first.expose_secret(), "one");
        assert_eq!(second.expose_secret(), "one");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1, "nothing is left beside it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("allowed");
        assert!(matches!(load_or_create(&path, || "three".into()), Err(SecretFileError::Open { .. })));
    }
}
