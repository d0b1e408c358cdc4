//! Where Redis is, who this server is there, and how it is called.
//!
//! **Invariant:** beyond loopback the server's certificate is verified and a password is given.

use std::path::PathBuf;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use secrecy::SecretString;
use serde::Deserialize;

use crate::domain::address::is_loopback;
use crate::store::layers::OneCallSettings;

/// `[redis]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSettings {
    /// `redis://host:port/database`, with TLS `rediss://host:port/database`, or `unix:///path`; without credentials.
    pub url: String,
    /// The user of Redis' access rules; empty: the one that is there by default.
    pub user: String,
    /// Its password.
    pub password: Option<SecretString>,
    /// A file that holds its password.
    pub password_file: Option<PathBuf>,
    /// Certificates, PEM, of the authorities that are believed, in place of the machine's.
    pub ca_file: Option<PathBuf>,
    /// `[redis.calls]`
    pub calls: OneCallSettings,
}

impl RedisSettings {
    /// All faults, as sentences for the person who wrote the configuration. Empty: none.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut faults = self.calls.validate("redis.calls");
        let credentials = self.password.is_some() || self.password_file.is_some();
        match self.address() {
            Err(rule) => faults.push(format!("redis.url: {rule}")),
            Ok(info) => match info.addr() {
                ConnectionAddr::Tcp(host, _) if !is_loopback(host) => {
                    faults.push("redis.url: beyond loopback only with TLS, as rediss://".to_owned());
                }
                ConnectionAddr::TcpTls { host, .. } if !is_loopback(host) && !credentials => {
                    faults.push("redis.password_file: beyond loopback a password is needed".to_owned());
                }
                _ => {}
            },
        }
        if !self.user.is_empty() && !credentials {
            faults.push("redis.user: a password belongs to it; name redis.password_file".to_owned());
        }
        if self.password.is_some() && self.password_file.is_some() {
            faults.push("redis.password: here or in redis.password_file, not both".to_owned());
        }
        faults
    }

    /// Where Redis is.
    pub(super) fn address(&self) -> Result<ConnectionInfo, &'static str> {
        let rule = "redis://host:port, rediss://host:port or unix:///path";
        // The library's own words may repeat what stands there.
        let info = self.url.as_str().into_connection_info().map_err(|_| rule)?;
        if info.redis_settings().username().is_some() || info.redis_settings().password().is_some() {
            return Err("without credentials; they belong into redis.user and redis.password_file");
        }
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => Err("certificates are verified"),
            _ => Ok(info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(url: &str, user: &str, password: Option<&str>) -> Vec<String> {
        let password = password.map(SecretString::from);
        RedisSettings { url: url.to_owned(), user: user.to_owned(), password, ..RedisSettings::default() }
            .validate()
    }

    #[test]
    fn beyond_loopback_nothing_goes_without_tls_and_a_password() {
        for url in
            ["redis://127.0.0.1:6379", "redis://localhost", "redis://[::1]:6379/1", "unix:///run/r.sock"]
        {
            assert_eq!(faults(url, "", None), Vec::<String>::new(), "{url}");
        }
        assert_eq!(faults("rediss://redis.example:6380", "bulkhead", Some("word")), Vec::<String>::new());
        for (url, password) in [
            ("redis://redis.example", Some("word")),
            ("redis://10.0.0.7:6379", Some("word")),
            ("redis://localhost.example", Some("word")),
            ("rediss://redis.example", None),
            ("rediss://redis.example/#insecure", Some("word")),
        ] {
            assert_eq!(faults(url, "", password).len(), 1, "{url}: {:?}", faults(url, "", password));
        }
    }

    #[test]
    fn an_address_with_credentials_or_of_nothing_is_a_fault_that_repeats_no_word_of_it() {
        for url in
            ["", "redis://", "http://localhost", "redis://:canary@localhost", "redis://canary:x@localhost"]
        {
            let faults = faults(url, "", None);
            assert_eq!(faults.len(), 1, "{url}: {faults:?}");
            assert!(!faults[0].contains("canary"), "{faults:?}");
        }
        assert_eq!(faults("redis://localhost", "bulkhead", None).len(), 1);
    }
}
