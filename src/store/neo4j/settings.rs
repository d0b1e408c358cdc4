//! Where Neo4j is, who this server is there, and how it is called.
//!
//! **Invariant:** beyond loopback the server's certificate is verified and a password is given.

use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::domain::address::is_on_loopback;
use crate::store::layers::CallSettings;

/// `[graph.neo4j]`; every field has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Neo4jSettings {
    /// `neo4j+s://host:port` or `bolt+s://host:port`, or without TLS on loopback; without credentials.
    pub url: String,
    /// The user.
    pub user: String,
    /// Its password.
    pub password: Option<SecretString>,
    /// A file that holds its password; read anew for each connection.
    pub password_file: Option<PathBuf>,
    /// The database.
    pub database: String,
    /// Connections at once.
    pub connections: usize,
    /// Of those, how many one tenant may have.
    pub tenant_connections: usize,
    /// How long a call waits for one, milliseconds.
    pub wait_ms: u64,
    /// Chunks that are written in one transaction.
    pub write_chunks: usize,
    /// How long such a transaction may take, milliseconds.
    pub write_ms: u64,
    /// `[graph.neo4j.calls]`
    pub calls: CallSettings,
}

impl Default for Neo4jSettings {
    fn default() -> Self {
        Self {
            url: "bolt://127.0.0.1:7687".into(),
            user: "neo4j".into(),
            password: None,
            password_file: None,
            database: "neo4j".into(),
            connections: 16,
            tenant_connections: 4,
            wait_ms: 1000,
            write_chunks: 500,
            write_ms: 30_000,
            calls: CallSettings::default(),
        }
    }
}

impl Neo4jSettings {
    /// The password, from its file if there is one; empty when there is none.
    ///
    /// # Errors
    /// Says that the file cannot be read.
    pub(super) fn secret(&self) -> Result<SecretString, std::io::Error> {
        match &self.password_file {
            Some(file) => Ok(SecretString::from(std::fs::read_to_string(file)?.trim().to_owned())),
            None => Ok(self.password.clone().unwrap_or_default()),
        }
    }

    /// All faults, each with the name of its setting. Empty: none.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.calls.validate("graph.neo4j.calls");
        let mut require = |holds: bool, fault: &str| {
            if !holds {
                faults.push(format!("graph.neo4j.{fault}"));
            }
        };
        let given = self.password.as_ref().is_some_and(|word| !word.expose_secret().is_empty());
        match place(&self.url) {
            None => require(false, "url: bolt+s://host:port or neo4j+s://host:port, without credentials"),
            Some(Place { is_loopback: true, .. }) => {}
            Some(Place { is_encrypted, .. }) => {
                require(is_encrypted, "url: beyond loopback only with TLS, as neo4j+s://");
                let credentials = given || self.password_file.is_some();
                require(credentials, "password_file: beyond loopback a password is needed");
            }
        }
        require(
            !(self.password.is_some() && self.password_file.is_some()),
            "password: here or in graph.neo4j.password_file, not both",
        );
        require(!self.user.is_empty(), "user: must not be empty");
        require(!self.database.is_empty(), "database: must not be empty");
        require((2..=1000).contains(&self.connections), "connections: 2 to 1000");
        require(
            (1..=self.connections).contains(&self.tenant_connections),
            "tenant_connections: 1 to graph.neo4j.connections",
        );
        require(self.wait_ms > 0, "wait_ms: at least 1");
        require((1..=10_000).contains(&self.write_chunks), "write_chunks: 1 to 10000");
        require(self.write_ms > 0, "write_ms: at least 1");
        faults
    }
}

struct Place {
    is_loopback: bool,
    is_encrypted: bool,
}

/// `None`: no address that is spoken with. `+ssc`, which asks for certificates that nobody verifies, is none.
fn place(url: &str) -> Option<Place> {
    let url = reqwest::Url::parse(url).ok()?;
    let plain = matches!(url.scheme(), "bolt" | "neo4j");
    let is_encrypted = matches!(url.scheme(), "bolt+s" | "neo4j+s");
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    ((plain || is_encrypted) && bare && has_host)
        .then(|| Place { is_loopback: is_on_loopback(&url), is_encrypted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(url: &str, password: Option<&str>) -> Vec<String> {
        let password = password.map(SecretString::from);
        Neo4jSettings { url: url.to_owned(), password, ..Neo4jSettings::default() }.faults()
    }

    #[test]
    fn beyond_loopback_nothing_goes_without_tls_and_a_password() {
        for url in ["bolt://127.0.0.1:7687", "neo4j://localhost", "bolt://[::1]:7687", "bolt+s://localhost"] {
            assert_eq!(faults(url, None), Vec::<String>::new(), "{url}");
        }
        for url in ["neo4j+s://graph.example", "bolt+s://10.0.0.7:7687"] {
            assert_eq!(faults(url, Some("word")), Vec::<String>::new(), "{url}");
            assert_eq!(faults(url, None).len(), 1, "{url}");
            assert_eq!(faults(url, Some("")).len(), 1, "{url}");
        }
        for url in ["bolt://graph.example", "neo4j://10.0.0.7:7687", "bolt://localhost.example"] {
            assert_eq!(faults(url, Some("word")).len(), 1, "{url}");
        }
    }

    #[test]
    fn an_address_with_credentials_or_of_nothing_is_a_fault_that_repeats_no_word_of_it() {
        for url in [
            "",
            "bolt://",
            "http://localhost",
            "bolt+ssc://localhost",
            "bolt://canary:x@localhost",
            "neo4j://localhost?policy=canary",
        ] {
            let faults = faults(url, Some("word"));
            assert_eq!(faults.len(), 1, "{url}: {faults:?}");
            assert!(!faults[0].contains("canary"), "{faults:?}");
        }
    }

    #[test]
    fn a_tenants_share_is_a_part_of_the_connections() {
        for (tenant_connections, fits) in [(0, false), (1, true), (16, true), (17, false)] {
            let settings = Neo4jSettings { tenant_connections, ..Neo4jSettings::default() };
            assert_eq!(settings.faults().is_empty(), fits, "{tenant_connections}: {:?}", settings.faults());
        }
    }
}
