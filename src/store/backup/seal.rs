//! Encryption of archives, in the format of age (age-encryption.org/v1): to public keys, or by a passphrase.
//!
//! **Invariant:** no secret is in a message or on a command line; they are read from files that their owner alone can
//! read.

use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::iter;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use age::stream::StreamWriter;
use age::{DecryptError, Decryptor, Encryptor, scrypt, x25519};
use secrecy::{ExposeSecret, SecretString};

use super::BackupError;

/// How every archive that is encrypted begins.
const MAGIC: &[u8] = b"age-encryption.org/";

/// For whom an archive is encrypted.
#[derive(Clone)]
pub enum Seal {
    /// For nobody: it can be read by whoever has it.
    Open,
    /// For the holders of these keys.
    Recipients(Vec<x25519::Recipient>),
    /// For whoever knows the passphrase.
    Passphrase(SecretString),
}

/// What opens an archive.
pub enum Key {
    /// Private keys, one of which it was encrypted for.
    Identities(Vec<x25519::Identity>),
    /// The passphrase.
    Passphrase(SecretString),
}

impl Seal {
    /// For these public keys, as `age1...`.
    ///
    /// # Errors
    /// `Key` for one that is none.
    pub fn recipients(keys: &[String]) -> Result<Self, BackupError> {
        let parse = |key: &String| {
            let parsed = key.trim().parse();
            parsed
                .map_err(|_| BackupError::Key(format!("{key:?} is no recipient: it should begin with age1")))
        };
        keys.iter().map(parse).collect::<Result<_, _>>().map(Self::Recipients)
    }

    /// By the passphrase in this file.
    ///
    /// # Errors
    /// `Key` when the file cannot be used.
    pub fn passphrase(file: &Path) -> Result<Self, BackupError> {
        secret(file).map(Self::Passphrase)
    }

    /// Whether it is encrypted at all.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        !matches!(self, Self::Open)
    }

    /// Encrypts what is written.
    pub(super) fn wrap<W: Write>(&self, out: W) -> io::Result<Sealed<W>> {
        let encryptor = match self {
            Self::Open => return Ok(Sealed::Open(out)),
            Self::Recipients(keys) => {
                let keys = keys.iter().map(|key| key as &dyn age::Recipient);
                Encryptor::with_recipients(keys).map_err(io::Error::other)?
            }
            Self::Passphrase(passphrase) => Encryptor::with_user_passphrase(passphrase.clone()),
        };
        Ok(Sealed::Encrypted(Box::new(encryptor.wrap_output(out)?)))
    }
}

impl Key {
    /// The private keys in a file, as `age-keygen` and `bulkhead backup-key` write them.
    ///
    /// # Errors
    /// `Key` when the file cannot be used.
    pub fn identities(file: &Path) -> Result<Self, BackupError> {
        let text = secret(file)?;
        let lines = text.expose_secret().lines().map(str::trim);
        let keys: Vec<x25519::Identity> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .filter_map(|line| line.parse().ok())
            .collect();
        if keys.is_empty() {
            let words = format!("{} holds no key that begins with AGE-SECRET-KEY-1", file.display());
            return Err(BackupError::Key(words));
        }
        Ok(Self::Identities(keys))
    }

    /// The passphrase in a file.
    ///
    /// # Errors
    /// `Key` when the file cannot be used.
    pub fn passphrase(file: &Path) -> Result<Self, BackupError> {
        secret(file).map(Self::Passphrase)
    }
}

/// The text of a file that its owner alone can read.
fn secret(file: &Path) -> Result<SecretString, BackupError> {
    let shown = file.display();
    let about =
        fs::metadata(file).map_err(|error| BackupError::Key(format!("{shown} cannot be read: {error}")))?;
    if about.mode() & 0o077 != 0 {
        return Err(BackupError::Key(format!(
            "{shown} can be read by others; allow it to its owner alone (chmod 600)"
        )));
    }
    let text = fs::read_to_string(file)
        .map_err(|error| BackupError::Key(format!("{shown} cannot be read: {error}")))?;
    let text = text.trim().to_owned();
    if text.is_empty() { Err(BackupError::Key(format!("{shown} is empty"))) } else { Ok(text.into()) }
}

/// Makes a private key in a new file of mode 0600, and returns the public one.
///
/// # Errors
/// `Io` when the file is there already or cannot be written.
pub fn new_identity(file: &Path) -> Result<String, BackupError> {
    let key = x25519::Identity::generate();
    let public = key.to_public().to_string();
    let text = format!("# public key: {public}\n{}\n", key.to_string().expose_secret());
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.and_then(|mut made| made.write_all(text.as_bytes()).and_then(|()| made.sync_all()))
        .map_err(BackupError::io(format!("a key cannot be written to {}", file.display())))?;
    Ok(public)
}

/// An output, perhaps encrypted.
pub(super) enum Sealed<W: Write> {
    Open(W),
    Encrypted(Box<StreamWriter<W>>),
}

impl<W: Write> Sealed<W> {
    /// Writes the end, without which the rest is refused.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Open(out) => Ok(out),
            Self::Encrypted(out) => out.finish(),
        }
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(out) => out.write(bytes),
            Self::Encrypted(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Open(out) => out.flush(),
            Self::Encrypted(out) => out.flush(),
        }
    }
}

/// Opens what was sealed.
pub(super) fn unwrap<'a>(
    mut input: impl Read + 'a,
    key: Option<&Key>,
) -> Result<Box<dyn Read + 'a>, BackupError> {
    let mut head = Vec::with_capacity(MAGIC.len());
    let failed = |error: io::Error| BackupError::Damaged(error.to_string());
    input.by_ref().take(MAGIC.len() as u64).read_to_end(&mut head).map_err(failed)?;
    if head.len() < MAGIC.len() {
        return Err(BackupError::Damaged("it is too short".to_owned()));
    }
    let is_encrypted = head == MAGIC;
    let whole = Cursor::new(head).chain(input);
    let key = match (is_encrypted, key) {
        (false, None) => return Ok(Box::new(whole)),
        (false, Some(_)) => return Err(BackupError::NotEncrypted),
        (true, None) => return Err(BackupError::KeyMissing),
        (true, Some(key)) => key,
    };
    let decryptor = Decryptor::new(whole).map_err(refused)?;
    let opened = match key {
        Key::Identities(keys) => decryptor.decrypt(keys.iter().map(|key| key as &dyn age::Identity)),
        Key::Passphrase(passphrase) => {
            let identity = scrypt::Identity::new(passphrase.clone());
            decryptor.decrypt(iter::once(&identity as &dyn age::Identity))
        }
    };
    Ok(Box::new(opened.map_err(refused)?))
}

fn refused(error: DecryptError) -> BackupError {
    match error {
        DecryptError::NoMatchingKeys
        | DecryptError::DecryptionFailed
        | DecryptError::KeyDecryptionFailed
        | DecryptError::ExcessiveWork { .. } => BackupError::WrongKey,
        damaged => BackupError::Damaged(damaged.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(seal: &Seal) -> Vec<u8> {
        let mut out = seal.wrap(Vec::new()).expect("sealed");
        out.write_all(&vec![7; 100_000]).expect("written");
        out.finish().expect("finished")
    }

    fn opened(bytes: &[u8], key: Option<&Key>) -> Result<Vec<u8>, BackupError> {
        let mut text = Vec::new();
        let mut input = unwrap(bytes, key)?;
        input.read_to_end(&mut text).map_err(|error| BackupError::Damaged(error.to_string()))?;
        Ok(text)
    }

    #[test]
    fn only_the_right_key_opens_an_archive_and_a_cut_or_edited_one_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let files = [folder.path().join("right"), folder.path().join("wrong")];
        let publics = files.clone().map(|file| new_identity(&file).expect("a key"));
        let keys = files.each_ref().map(|file| Key::identities(file).expect("read back"));
        let bytes = sealed(&Seal::recipients(&publics[..1]).expect("a recipient"));
        assert_eq!(opened(&bytes, Some(&keys[0])).expect("opened"), vec![7; 100_000]);
        assert!(matches!(opened(&bytes, Some(&keys[1])), Err(BackupError::WrongKey)));
        assert!(matches!(opened(&bytes, None), Err(BackupError::KeyMissing)));
        assert!(matches!(opened(&[7; 100], Some(&keys[0])), Err(BackupError::NotEncrypted)));
        assert!(matches!(opened(&bytes[..bytes.len() - 1], Some(&keys[0])), Err(BackupError::Damaged(_))));
        let mut edited = bytes.clone();
        edited[80_000] ^= 1;
        assert!(matches!(opened(&edited, Some(&keys[0])), Err(BackupError::Damaged(_))));
        assert!(new_identity(&files[0]).is_err(), "a key that is there is not overwritten");
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed_and_no_other_does() {
        let bytes = sealed(&Seal::Passphrase("seven lamps".into()));
        assert_eq!(
            opened(&bytes, Some(&Key::Passphrase("seven lamps".into()))).expect("opened").len(),
            100_000
        );
        let wrong = opened(&bytes, Some(&Key::Passphrase("eight lamps".into())));
        assert!(matches!(wrong, Err(BackupError::WrongKey)));
    }
}
