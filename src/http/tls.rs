//! Certificate and key of the servers, read from their files and read again when these change.
//!
//! **Invariant:** a pair of files that cannot be used never takes the place of one that could.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::{MissedTickBehavior, interval};

use super::settings::TlsSettings;

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("http.tls: {0}")]
pub struct TlsError(String);

/// The certificate in use.
#[derive(Debug)]
pub(super) struct Certificate {
    settings: TlsSettings,
    current: RwLock<(Files, Arc<CertifiedKey>)>,
}

/// The bytes of certificate and key.
#[derive(PartialEq, Eq)]
struct Files(Vec<u8>, Vec<u8>);

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // One of them is a secret.
        f.write_str("Files")
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().1))
    }
}

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub(super) fn load(settings: &TlsSettings) -> Result<Arc<Self>, TlsError> {
        let files = Files::read(settings)?;
        let key = files.certified(settings)?;
        Ok(Arc::new(Self { settings: settings.clone(), current: RwLock::new((files, key)) }))
    }

    /// What a server needs to know of TLS.
    ///
    /// # Errors
    /// [`TlsError`] when the provider lacks a version of the protocol.
    pub(super) fn config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(error.to_string()))?;
        Ok(builder.with_no_client_auth().with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>))
    }

    /// Looks at the files again and again, and takes up what they hold. Never returns.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut looks = interval(Duration::from_secs(self.settings.reload_seconds));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A fault is told once, not at every look.
        let mut told = String::new();
        loop {
            looks.tick().await;
            let certificate = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || certificate.look()).await;
            match looked {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    told.clear();
                    tracing::info!(certificate = %self.settings.certificate.display(), "a new certificate is in use");
                }
                Ok(Err(error)) => {
                    let fault = error.to_string();
                    if fault != told {
                        tracing::error!(fault, "the certificate in use stays: its files cannot be used");
                        told = fault;
                    }
                }
                Err(error) => tracing::error!(%error, "the certificate's files were not looked at"),
            }
        }
    }

    /// Whether the files held something new, which is then in use.
    fn look(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.settings)?;
        if self.current.read().0 == files {
            return Ok(false);
        }
        let key = files.certified(&self.settings)?;
        *self.current.write() = (files, key);
        Ok(true)
    }
}

/// Until when the certificate of these files is valid; that they can be used is checked first.
///
/// # Errors
/// [`TlsError`], which names the file.
pub fn valid_until(settings: &TlsSettings) -> Result<DateTime<Utc>, TlsError> {
    let key = Files::read(settings)?.certified(settings)?;
    let until = key.cert.first().and_then(|certificate| not_after(certificate));
    until.ok_or_else(|| wrong(&settings.certificate, &"its time of expiry cannot be read"))
}

/// `notAfter` of an X.509 certificate (RFC 5280, 4.1): the second time of the fourth field, the version not counted.
fn not_after(certificate: &[u8]) -> Option<DateTime<Utc>> {
    let mut outer = certificate;
    let mut signed = element(&mut outer)?.1;
    let mut fields = element(&mut signed)?.1;
    if fields.first() == Some(&0xA0) {
        element(&mut fields)?;
    }
    for _serial_algorithm_issuer in 0..3 {
        element(&mut fields)?;
    }
    let mut validity = element(&mut fields)?.1;
    element(&mut validity)?;
    let (tag, time) = element(&mut validity)?;
    let text = std::str::from_utf8(time).ok()?;
    // UTCTime has two digits of the year, of 1950 to 2049; GeneralizedTime has four.
    let text = match (tag, text.get(..2)?.parse::<u8>().ok()?) {
        (0x17, 50..) => format!("19{text}"),
        (0x17, _) => format!("20{text}"),
        _ => text.to_owned(),
    };
    chrono::NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok().map(|time| time.and_utc())
}

/// Takes an element of DER off the front: its tag and content.
fn element<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    // Below 128 it is the length, above the number of its digits.
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
        let add = |length: usize, digit: &u8| length.checked_mul(256)?.checked_add(usize::from(*digit));
        (digits.iter().try_fold(0, add)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some((tag, content))
}

fn wrong(path: &Path, error: &dyn Display) -> TlsError {
    TlsError(format!("{}: {error}", path.display()))
}

impl Files {
    fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| wrong(path, &error));
        Ok(Self(read(&settings.certificate)?, read(&settings.key)?))
    }

    /// Certificate and key, which belong together.
    fn certified(&self, settings: &TlsSettings) -> Result<Arc<CertifiedKey>, TlsError> {
        let chain = CertificateDer::pem_slice_iter(&self.0).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| wrong(&settings.certificate, &error))?;
        if chain.is_empty() {
            return Err(wrong(&settings.certificate, &"there is no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.1).map_err(|error| wrong(&settings.key, &error))?;
        let pair = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
        pair.map(Arc::new).map_err(|error| wrong(&settings.certificate, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_pair_are_refused_and_the_wrong_one_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        let settings = TlsSettings { certificate: chain.clone(), key: key.clone(), reload_seconds: 1 };
        let made = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let (one, other) = (made(), made());
        let load = |certificate: &str, secret: &str| {
            std::fs::write(&chain, certificate).expect("written");
            std::fs::write(&key, secret).expect("written");
            Certificate::load(&settings).map(drop).map_err(|error| error.to_string())
        };
        let (pem, secret) = (one.cert.pem(), one.signing_key.serialize_pem());
        assert_eq!(load(&pem, &secret), Ok(()));
        let names = |refused: Result<(), String>, file: &str| refused.expect_err("refused").contains(file);
        assert!(names(load(&pem, &other.signing_key.serialize_pem()), "chain.pem"));
        assert!(names(load("", &secret), "chain.pem"));
        assert!(names(load(&pem, &pem), "key.pem"));
        std::fs::remove_file(&key).expect("removed");
        assert!(names(Certificate::load(&settings).map(drop).map_err(|error| error.to_string()), "key.pem"));
    }

    #[test]
    fn the_time_of_expiry_is_that_of_the_certificate() {
        let folder = tempfile::tempdir().expect("a folder");
        let (chain, secret) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        let settings = TlsSettings { certificate: chain.clone(), key: secret.clone(), reload_seconds: 1 };
        for (year, month, day) in [(1975, 5, 1), (2031, 12, 30), (2075, 1, 31)] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let mut made = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
            made.not_after = rcgen::date_time_ymd(year, month, day);
            std::fs::write(&chain, made.self_signed(&key).expect("signed").pem()).expect("written");
            std::fs::write(&secret, key.serialize_pem()).expect("written");
            let until = valid_until(&settings).expect("read");
            assert_eq!(until.format("%F %T").to_string(), format!("{year}-{month:02}-{day:02} 00:00:00"));
        }
        assert_eq!(not_after(b""), None);
        assert_eq!(not_after(&[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF, 0]), None);
    }
}
