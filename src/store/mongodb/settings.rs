//! How the audit log's MongoDB is reached.
//!
//! **Invariant:** beyond loopback nothing is sent without verified TLS and credentials.
//! **Invariant:** no address is told anywhere: it may hold a password.

use std::path::PathBuf;

use mongodb::options::{ConnectionString, HostInfo, ServerAddress, Tls};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::domain::address::is_loopback;
use crate::store::audit::spool::LEAST_BYTES;

/// `[audit.mongodb]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MongoSettings {
    /// Its address, as `mongodb://host/`; empty: it is in a file.
    pub url: SecretString,
    /// A file that holds the address.
    pub url_file: Option<PathBuf>,
    /// A file that holds the address of an account that reads; absent: whoever writes reads, too.
    pub reader_url_file: Option<PathBuf>,
    /// The database of the events.
    pub database: String,
    /// How long a call may take, milliseconds.
    pub deadline_ms: u64,
    /// How long a spooled event waits for others before they are forwarded, milliseconds.
    pub forward_ms: u64,
    /// Bytes of events that wait on the local disk; then further ones are lost and counted.
    pub spool_bytes: u64,
}

impl Default for MongoSettings {
    fn default() -> Self {
        Self {
            url: SecretString::default(),
            url_file: None,
            reader_url_file: None,
            database: "bulkhead".to_owned(),
            deadline_ms: 5000,
            forward_ms: 500,
            spool_bytes: 256 << 20,
        }
    }
}

/// Why MongoDB cannot be spoken to as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum MongoError {
    /// The file of an address cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address is none, or names what may not be spoken to so.
    #[error("{setting}: {rule}")]
    Address {
        /// Where it is from.
        setting: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The driver refuses it. Its words are left out: they may quote the address.
    #[error("audit.mongodb: the driver does not take the address")]
    Driver,
}

impl MongoSettings {
    /// All faults of the section, when it is in use.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let url = self.url.expose_secret();
        match (url.is_empty(), &self.url_file) {
            (true, None) => faults.push("audit.mongodb: url or url_file is needed".to_owned()),
            (false, Some(_)) => faults.push("audit.mongodb: url or url_file, not both".to_owned()),
            (true, Some(_)) => {}
            (false, None) => {
                let checked = guarded(url, "audit.mongodb.url");
                faults.extend(checked.err().map(|fault| fault.to_string()));
            }
        }
        let name = self.database.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            faults.push("audit.mongodb.database: 1 to 63 of A-Z a-z 0-9 - _".to_owned());
        }
        if !(100..=60_000).contains(&self.deadline_ms) {
            faults.push("audit.mongodb.deadline_ms: 100 to 60000".to_owned());
        }
        if !(10..=60_000).contains(&self.forward_ms) {
            faults.push("audit.mongodb.forward_ms: 10 to 60000".to_owned());
        }
        if self.spool_bytes < LEAST_BYTES {
            faults.push(format!("audit.mongodb.spool_bytes: at least {LEAST_BYTES}"));
        }
        faults
    }

    /// The addresses of who writes and who reads, each guarded.
    pub(super) fn addresses(&self) -> Result<(SecretString, SecretString), MongoError> {
        let writer = match &self.url_file {
            Some(path) => from_file(path, "audit.mongodb.url_file")?,
            None => self.url.clone(),
        };
        guarded(writer.expose_secret(), "audit.mongodb.url")?;
        let reader = match &self.reader_url_file {
            Some(path) => from_file(path, "audit.mongodb.reader_url_file")?,
            None => writer.clone(),
        };
        Ok((writer, reader))
    }
}

fn from_file(path: &PathBuf, setting: &'static str) -> Result<SecretString, MongoError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| MongoError::File { path: path.clone(), source })?;
    let url = text.trim();
    guarded(url, setting)?;
    Ok(url.into())
}

/// Checks that an address may be spoken to: everything on loopback, or verified TLS and credentials.
fn guarded(url: &str, setting: &'static str) -> Result<(), MongoError> {
    let refused = |rule| Err(MongoError::Address { setting, rule });
    // The driver's words may quote what it read.
    let Ok(parsed) = ConnectionString::parse(url) else {
        return refused("an address as mongodb://host:27017/ or mongodb+srv://host/");
    };
    let is_srv = matches!(parsed.host_info, HostInfo::DnsRecord(_));
    let is_local = match &parsed.host_info {
        HostInfo::HostIdentifiers(hosts) => !hosts.is_empty() && hosts.iter().all(is_local),
        _ => false,
    };
    let is_verified = match &parsed.tls {
        Some(Tls::Enabled(options)) => options.allow_invalid_certificates != Some(true),
        // The form with a service record has TLS unless it says otherwise.
        None => is_srv,
        Some(Tls::Disabled) => false,
    };
    if is_local || (is_verified && parsed.credential.is_some()) {
        return Ok(());
    }
    refused("beyond loopback it wants credentials and tls=true, with certificates that are verified")
}

fn is_local(address: &ServerAddress) -> bool {
    match address {
        ServerAddress::Tcp { host, .. } => is_loopback(host),
        // A socket is on this machine.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_tls_that_is_verified_and_credentials_are_demanded() {
        for good in [
            "mongodb://127.0.0.1:27017/",
            "mongodb://localhost,[::1]:27018/",
            "mongodb://u:p@db.example:27017/?tls=true",
            "mongodb+srv://u:p@db.example/",
        ] {
            assert!(guarded(good, "url").is_ok(), "{good}");
        }
        for bad in [
            "",
            "http://127.0.0.1/",
            "mongodb://db.example/",
            "mongodb://u:p@db.example/",
            "mongodb://db.example/?tls=true",
            "mongodb://u:p@db.example/?tls=true&tlsAllowInvalidCertificates=true",
            "mongodb://u:p@127.0.0.1,db.example/",
            "mongodb+srv://db.example/",
            "mongodb+srv://u:p@db.example/?tls=false",
        ] {
            assert!(guarded(bad, "url").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_address() {
        let settings = MongoSettings {
            url: "mongodb://u:hunter2@db.example/".into(),
            database: "a.b".to_owned(),
            deadline_ms: 0,
            forward_ms: 0,
            spool_bytes: 1,
            ..Default::default()
        };
        let faults = settings.validate();
        assert_eq!(faults.len(), 5, "{faults:?}");
        assert!(!format!("{faults:?} {settings:?}").contains("hunter2"));
        assert_eq!(MongoSettings::default().validate().len(), 1);
    }
}
