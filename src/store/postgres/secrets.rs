//! Owns the secrets of the database roles: made once, kept in files of mode 0600.
//!
//! **Invariant:** a secret file that exists is never overwritten, and none is ever readable by
//! anybody but its owner, not even for a moment.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use super::roles::Role;

/// Where random bytes come from.
pub trait Entropy: Send + Sync {
    /// Fills the buffer with random bytes.
    ///
    /// # Errors
    /// When the source has none to give.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()>;
}

/// The operating system's random source.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}

/// A secret that could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file or its folder could not be read or written.
    #[error("the secret file {} cannot be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others could read the secret, so it is none.
    #[error("{} is open to others (mode {mode:o}); give it mode 0600 after making sure nobody read it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content was not written by Bulkhead.
    #[error("{} does not hold a secret of 64 hexadecimal digits", .0.display())]
    Damaged(PathBuf),
    /// No randomness.
    #[error("no random bytes for a new secret")]
    Entropy(#[source] io::Error),
}

/// One secret of 256 bits for each role, and fresh salts for their verifiers.
#[derive(Debug)]
pub struct RoleSecrets {
    secrets: BTreeMap<Role, SecretString>,
    salts: BTreeMap<Role, [u8; 16]>,
}

impl RoleSecrets {
    /// Reads the secret of every role from `folder`, making those that are missing.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn load_or_create(folder: &Path, entropy: &dyn Entropy) -> Result<Self, SecretError> {
        let mut secrets = BTreeMap::new();
        let mut salts = BTreeMap::new();
        for role in Role::ALL {
            secrets.insert(role, load_or_create(folder, role.name(), entropy)?);
            let mut salt = [0; 16];
            entropy.fill(&mut salt).map_err(SecretError::Entropy)?;
            salts.insert(role, salt);
        }
        Ok(Self { secrets, salts })
    }

    /// The secret a role logs in with.
    #[must_use]
    pub fn of(&self, role: Role) -> &SecretString {
        &self.secrets[&role]
    }

    /// What the database keeps of the role's secret, see [`super::scram`].
    pub(super) fn verifier(&self, role: Role) -> String {
        super::scram::verifier(self.of(role).expose_secret(), self.salts[&role])
    }

    /// A short public mark of the secret, kept as the role's comment: it tells whether the database
    /// holds this secret without trying to log in. 128 bits of a hash of 256 random bits tell
    /// nothing else.
    pub(super) fn mark(&self, role: Role) -> String {
        let mut hash = Sha256::new();
        hash.update(b"bulkhead role secret v1\0");
        hash.update(role.name());
        hash.update(b"\0");
        hash.update(self.of(role).expose_secret());
        hex::encode(&hash.finalize()[..16])
    }
}

/// Reads the secret `name` from its file in `folder`, or makes it. The folder gets mode 0700, the
/// file 0600; it appears whole or not at all.
///
/// # Errors
/// See [`SecretError`].
pub fn load_or_create(folder: &Path, name: &str, entropy: &dyn Entropy) -> Result<SecretString, SecretError> {
    let path = folder.join(format!("postgres-{name}"));
    let failed = |source| SecretError::File { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    if let Some(found) = load(&path)? {
        return Ok(found);
    }
    let mut bytes = [0_u8; 32];
    entropy.fill(&mut bytes).map_err(SecretError::Entropy)?;
    let mut suffix = [0_u8; 8];
    entropy.fill(&mut suffix).map_err(SecretError::Entropy)?;

    let fresh = folder.join(format!(".postgres-{name}.{}", hex::encode(suffix)));
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(hex::encode(bytes).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    // A link, unlike a rename, never replaces a secret that somebody else made meanwhile.
    let linked = fs::hard_link(&fresh, &path);
    fs::remove_file(&fresh).map_err(failed)?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    load(&path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

fn load(path: &Path) -> Result<Option<SecretString>, SecretError> {
    let failed = |source| SecretError::File { path: path.to_owned(), source };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    let secret = text.trim_end();
    if secret.len() != 64 || !secret.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(SecretError::Damaged(path.to_owned()));
    }
    Ok(Some(SecretString::from(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = folder.path().join("secrets");
        let first = load_or_create(&secrets, "x", &SystemEntropy).expect("made");
        let again = load_or_create(&secrets, "x", &SystemEntropy).expect("read");
        let other = load_or_create(&secrets, "y", &SystemEntropy).expect("made");
        assert_eq!(first.expose_secret(), again.expose_secret());
        assert_ne!(first.expose_secret(), other.expose_secret());
        assert_eq!(first.expose_secret().len(), 64);
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!(mode(&secrets), 0o700);
        assert_eq!(mode(&secrets.join("postgres-x")), 0o600);
        assert_eq!(fs::read_dir(&secrets).expect("folder").count(), 2);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        load_or_create(folder.path(), "x", &SystemEntropy).expect("made");
        let path = folder.path().join("postgres-x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let refused = load_or_create(folder.path(), "x", &SystemEntropy);
        assert!(matches!(refused, Err(SecretError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn a_damaged_secret_is_reported_and_not_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        load_or_create(folder.path(), "x", &SystemEntropy).expect("made");
        let path = folder.path().join("postgres-x");
        fs::write(&path, "short").expect("write");
        let refused = load_or_create(folder.path(), "x", &SystemEntropy);
        assert!(matches!(refused, Err(SecretError::Damaged(_))));
        assert_eq!(fs::read_to_string(&path).expect("there"), "short");
    }

    #[test]
    fn marks_differ_between_roles_and_do_not_contain_the_secret() {
        let folder = tempfile::tempdir().expect("folder");
        let secrets = RoleSecrets::load_or_create(folder.path(), &SystemEntropy).expect("made");
        assert_ne!(secrets.mark(Role::App), secrets.mark(Role::Auth));
        assert!(!secrets.of(Role::App).expose_secret().contains(&secrets.mark(Role::App)));
    }
}
