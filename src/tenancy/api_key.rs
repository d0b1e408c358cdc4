//! API keys and operator credentials: `bk_<key id>_<secret>_<checksum>` and `bo_<...>`.
//!
//! All parts are lower-case hexadecimal, so a key is one word for a double click and one pattern for a
//! secret scanner: `b[ko]_[0-9a-f]{16}_[0-9a-f]{64}_[0-9a-f]{8}`. The key id is public; the checksum (the
//! first 32 bits of SHA-256 over all before it) tells a typing error from a wrong key without any lookup.
//!
//! **Invariant:** the secret is shown once, by [`ApiKey::expose`]; stored and compared is only its digest.

use std::fmt;
use std::path::Path;

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::secret_file::{self, SecretFileError};
use crate::domain::ids::IdSource;

const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 64;
const CHECKSUM_DIGITS: usize = 8;

/// Whom a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A tenant's key, `bk_`.
    Tenant,
    /// An operator's credential, `bo_`.
    Operator,
}

impl KeyKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Tenant => "bk",
            Self::Operator => "bo",
        }
    }
}

/// The text is no key: wrong form or wrong checksum. Says nothing of the text, which may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a key")]
pub struct MalformedKey;

/// A key with its secret.
pub struct ApiKey {
    kind: KeyKind,
    id: String,
    secret: SecretBox<[u8; 32]>,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("kind", &self.kind).field("id", &self.id).finish_non_exhaustive()
    }
}

impl ApiKey {
    /// A new key: 64 bits of public id, 256 bits of secret.
    #[must_use]
    pub fn generate(kind: KeyKind, ids: &dyn IdSource) -> Self {
        // The id is drawn apart from the secret: nothing public may be a part of it.
        let id = hex::encode(&ids.secret()[..ID_DIGITS / 2]);
        Self { kind, id, secret: SecretBox::init_with(|| ids.secret()) }
    }

    /// Reads a key as it is sent. Only the exact form that [`ApiKey::expose`] gives is accepted.
    ///
    /// # Errors
    /// [`MalformedKey`] for any other text.
    pub fn parse(raw: &str) -> Result<Self, MalformedKey> {
        let mut parts = raw.split('_');
        let (Some(prefix), Some(id), Some(secret), Some(checksum), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(MalformedKey);
        };
        let kind = [KeyKind::Tenant, KeyKind::Operator]
            .into_iter()
            .find(|kind| kind.prefix() == prefix)
            .ok_or(MalformedKey)?;
        let hexadecimal = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if !hexadecimal(id, ID_DIGITS)
            || !hexadecimal(secret, SECRET_DIGITS)
            || !hexadecimal(checksum, CHECKSUM_DIGITS)
        {
            return Err(MalformedKey);
        }
        let bytes = SecretBox::try_init_with(|| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(secret, &mut bytes).map(|()| bytes).map_err(|_| MalformedKey)
        })?;
        let key = Self { kind, id: id.to_owned(), secret: bytes };
        if key.checksum() == checksum { Ok(key) } else { Err(MalformedKey) }
    }

    /// Whom it is for.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The public identifier: 16 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole key as text, to be shown to its new owner once.
    #[must_use]
    pub fn expose(&self) -> SecretString {
        format!("{}_{}", self.body().expose_secret(), self.checksum()).into()
    }

    /// What is stored of it: HMAC-SHA-256 under the server's pepper, over kind, id and secret.
    #[must_use]
    pub fn digest(&self, pepper: &KeyPepper) -> [u8; 32] {
        let mut mac = pepper.mac();
        mac.update(self.body().expose_secret().as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Whether this is the key of which `stored` was kept. Does the same work when none is stored, so that
    /// an unknown id and a wrong secret take the same time.
    #[must_use]
    pub fn matches(&self, pepper: &KeyPepper, stored: Option<&[u8; 32]>) -> bool {
        let digest = self.digest(pepper);
        let equal = digest.ct_eq(stored.unwrap_or(&[0; 32]));
        bool::from(equal) && stored.is_some()
    }

    fn body(&self) -> SecretString {
        format!("{}_{}_{}", self.kind.prefix(), self.id, hex::encode(self.secret.expose_secret())).into()
    }

    fn checksum(&self) -> String {
        let sum = Sha256::digest(self.body().expose_secret().as_bytes());
        hex::encode(&sum[..CHECKSUM_DIGITS / 2])
    }
}

/// The server's own key under which the digests of all keys are made. Without it a copy of the database
/// is not enough to test guesses; if it is lost, every key must be made anew.
#[derive(Debug)]
pub struct KeyPepper(SecretBox<[u8; 32]>);

impl KeyPepper {
    /// Of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(SecretBox::init_with(|| bytes))
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(self.0.expose_secret()).expect("HMAC takes a key of any length")
    }

    /// A secret for another purpose: the same for all who hold this pepper, and telling nothing of it.
    #[must_use]
    pub fn derived(&self, purpose: &'static str) -> [u8; 32] {
        // No key's body begins so.
        self.mac().chain_update("purpose: ").chain_update(purpose).finalize().into_bytes().into()
    }

    /// From the file, 64 hexadecimal digits, which is made with mode 0600 when there is none.
    ///
    /// # Errors
    /// [`SecretFileError`] when it cannot be read or written, is open to others or holds something else.
    pub fn load_or_create(path: &Path, ids: &dyn IdSource) -> Result<Self, SecretFileError> {
        let text = secret_file::load_or_create(path, || format!("{}\n", hex::encode(ids.secret())).into())?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.expose_secret().trim_end(), &mut bytes).map_err(|_| {
            SecretFileError::Content { path: path.to_owned(), wanted: "64 hexadecimal digits" }
        })?;
        Ok(Self::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::clock::SystemClock;
    use crate::domain::ids::SystemIds;

    fn key(kind: KeyKind) -> ApiKey {
        ApiKey::generate(kind, &SystemIds(SystemClock))
    }

    #[test]
    fn a_key_is_read_back_as_it_was_shown() {
        for kind in [KeyKind::Tenant, KeyKind::Operator] {
            let made = key(kind);
            let text = made.expose();
            assert_eq!(text.expose_secret().len(), 93);
            let read = ApiKey::parse(text.expose_secret()).expect("a key");
            let pepper = KeyPepper::new([7; 32]);
            assert_eq!((read.kind(), read.id()), (kind, made.id()));
            assert!(read.matches(&pepper, Some(&made.digest(&pepper))));
        }
    }

    #[test]
    fn another_secret_another_pepper_and_no_stored_key_do_not_match() {
        let (ours, other) = (key(KeyKind::Tenant), key(KeyKind::Tenant));
        let pepper = KeyPepper::new([7; 32]);
        assert!(!ours.matches(&pepper, Some(&other.digest(&pepper))));
        assert!(!ours.matches(&pepper, Some(&ours.digest(&KeyPepper::new([8; 32])))));
        assert!(!ours.matches(&pepper, None));
    }

    #[test]
    fn nothing_that_is_printed_holds_the_secret() {
        let key = key(KeyKind::Tenant);
        let secret = hex::encode(key.secret.expose_secret());
        for printed in [format!("{key:?}"), format!("{:?}", key.expose()), format!("{:?}", key.secret)] {
            assert!(!printed.contains(&secret), "{printed}");
        }
        assert!(!format!("{:?}", KeyPepper::new([0x5a; 32])).contains("90"));
    }

    #[test]
    fn every_single_typing_error_is_noticed() {
        let text = key(KeyKind::Tenant).expose().expose_secret().to_owned();
        for place in 0..text.len() {
            for letter in ['0', 'f', 'A', '_', 'é'] {
                let mut wrong: Vec<char> = text.chars().collect();
                if wrong[place] != letter {
                    wrong[place] = letter;
                    assert!(ApiKey::parse(&wrong.iter().collect::<String>()).is_err(), "place {place}");
                }
            }
        }
        assert!(ApiKey::parse(&text.to_uppercase()).is_err());
        assert!(ApiKey::parse(&format!("{text}_")).is_err());
        assert!(ApiKey::parse(&format!(" {text}")).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(raw in "\\PC{0,120}") {
            prop_assert!(ApiKey::parse(&raw).is_err());
        }

        #[test]
        fn no_text_of_the_right_shape_passes_without_its_checksum(
            raw in "b[ko]_[0-9a-f]{16}_[0-9a-f]{64}_[0-9a-f]{8}",
        ) {
            prop_assert!(ApiKey::parse(&raw).is_err());
        }
    }

    #[test]
    fn the_pepper_outlives_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pepper");
        let ids = SystemIds(SystemClock);
        let key = key(KeyKind::Tenant);
        let first = key.digest(&KeyPepper::load_or_create(&path, &ids).expect("made"));
        let second = key.digest(&KeyPepper::load_or_create(&path, &ids).expect("read"));
        assert_eq!(first, second);
        std::fs::write(&path, "short").expect("written");
        let wrong = KeyPepper::load_or_create(&path, &ids);
        assert!(matches!(wrong, Err(SecretFileError::Content { .. })));
    }
}
