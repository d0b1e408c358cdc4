//! Addresses that the server itself sends to: alarms and traces.
//!
//! **Invariant:** beyond loopback the receiver's certificate is verified; nothing is sent in the clear, and no
//! redirect is followed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use crate::domain::address::is_on_loopback;

/// A receiver cannot be spoken to as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// The file of a secret cannot be read.
    #[error("{path} cannot be read")]
    Secret {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others can read it, or it holds nothing.
    #[error("{path}: {rule}")]
    SecretRule {
        /// The file.
        path: String,
        /// What it should be.
        rule: &'static str,
    },
    /// No client can be made.
    #[error("no HTTP client can be made")]
    Client(#[source] reqwest::Error),
    /// Not an address that may be sent to.
    #[error("{0}")]
    Address(&'static str),
}

/// A client for this address.
pub(super) fn client(url: &Url, timeout: Duration) -> Result<reqwest::Client, OutsideError> {
    let mut client = reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(Duration::from_secs(5))
        .redirect(reqwest::redirect::Policy::none());
    if is_on_loopback(url) {
        client = client.no_proxy();
    }
    client.build().map_err(OutsideError::Client)
}

/// The secret in a file that its owner alone can read.
pub(super) fn secret(path: &Path) -> Result<SecretString, OutsideError> {
    let shown = || path.display().to_string();
    let failed = |source| OutsideError::Secret { path: shown(), source };
    let about = fs::metadata(path).map_err(failed)?;
    if about.permissions().mode() & 0o077 != 0 {
        let rule = "others can read it; allow it to its owner alone (chmod 600)";
        return Err(OutsideError::SecretRule { path: shown(), rule });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let text = text.trim();
    if text.len() < 16 {
        return Err(OutsideError::SecretRule { path: shown(), rule: "at least 16 characters of secret" });
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_can_read_or_that_is_none_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        fs::write(&file, "0123456789abcdef0123\n").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("opened");
        assert!(secret(&file).is_err());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("closed");
        assert!(secret(&file).is_ok());
        fs::write(&file, "short\n").expect("written");
        assert!(secret(&file).is_err());
    }
}
