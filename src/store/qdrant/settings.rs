//! What an operator may set about a Qdrant server.

use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::token::LONGEST_LIFE_SECONDS;
use crate::domain::address::guarded;
use crate::store::layers::CallSettings;

/// By how much clocks, and a server's patience with what has just expired, may differ, seconds.
const MARGIN_SECONDS: u64 = 120;

/// The settings of [`QdrantIndex`](super::QdrantIndex); every field has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QdrantSettings {
    /// The address of its gRPC interface: https, or http on loopback.
    pub url: String,
    /// Its API key. It makes and deletes collections and signs tokens, and is sent for nothing else.
    pub api_key: Option<SecretString>,
    /// A file that holds the API key.
    pub api_key_file: Option<PathBuf>,
    /// For how long a token is valid, seconds, at most 300.
    pub token_seconds: u64,
    /// Tenants' clients that are kept ready; beyond it those not used for longest go.
    pub clients: u64,
    /// Collections that hold one tenant each. Beyond them a further tenant's vectors are in a collection that tenants
    /// share, unless an operator chose otherwise.
    pub collections: u64,
    /// Partitions of which something is remembered; beyond them it is asked for again.
    pub partitions: usize,
    /// Points in one request.
    pub request_points: usize,
    /// Seconds for which the marks of deleted points stay, and an old generation after a new one is served. It has to
    /// be longer than a token lives: until then a late write could still arrive.
    pub purge_after_seconds: u64,
    /// Size of a segment of a collection's write-ahead log, MiB.
    pub wal_capacity_mb: u64,
    /// `[vectors.qdrant.calls]`
    pub calls: CallSettings,
}

impl Default for QdrantSettings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:6334".into(),
            api_key: None,
            api_key_file: None,
            token_seconds: 300,
            clients: 10_000,
            collections: 1000,
            partitions: 100_000,
            request_points: 64,
            purge_after_seconds: 600,
            wal_capacity_mb: 1,
            calls: CallSettings::default(),
        }
    }
}

impl QdrantSettings {
    /// The API key, from its file if there is one.
    ///
    /// # Errors
    /// Says that the file cannot be read.
    pub fn secret(&self) -> Result<Option<SecretString>, std::io::Error> {
        let key = match &self.api_key_file {
            Some(file) => Some(SecretString::from(std::fs::read_to_string(file)?.trim().to_owned())),
            None => self.api_key.clone(),
        };
        Ok(key.filter(|key| !key.expose_secret().is_empty()))
    }

    /// All faults, each with the name of its setting. Empty: none.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.calls.validate("vectors.qdrant.calls");
        let mut require = |holds: bool, fault: &str| {
            if !holds {
                faults.push(format!("vectors.qdrant.{fault}"));
            }
        };
        require(guarded(&self.url).is_ok(), "url: https, or http on loopback, without credentials");
        require(
            self.api_key.is_some() || self.api_key_file.is_some(),
            "api_key_file: Qdrant is used with an API key and tokens only",
        );
        require((60..=LONGEST_LIFE_SECONDS).contains(&self.token_seconds), "token_seconds: 60 to 300");
        require(self.clients > 0, "clients: at least 1");
        require(self.partitions > 0, "partitions: at least 1");
        require((1..=1024).contains(&self.request_points), "request_points: 1 to 1024");
        require(
            self.purge_after_seconds >= self.token_seconds + MARGIN_SECONDS,
            "purge_after_seconds: at least 120 more than token_seconds",
        );
        require((1..=1024).contains(&self.wal_capacity_mb), "wal_capacity_mb: 1 to 1024");
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_in_the_clear_beyond_loopback_and_nothing_without_a_key() {
        let with = |url: &str| QdrantSettings {
            url: url.into(),
            api_key: Some("a key".into()),
            ..QdrantSettings::default()
        };
        for good in
            ["http://127.0.0.1:6334", "http://localhost:1", "http://[::1]:6334", "https://qdrant.example"]
        {
            assert_eq!(with(good).faults(), Vec::<String>::new(), "{good}");
        }
        for bad in ["http://qdrant.example:6334", "qdrant", "grpc://127.0.0.1", "https://a:b@qdrant.example"]
        {
            assert_eq!(with(bad).faults().len(), 1, "{bad}");
        }
        let keyless = QdrantSettings::default().faults();
        assert!(keyless.len() == 1 && keyless[0].contains("api_key_file"), "{keyless:?}");
    }

    #[test]
    fn marks_of_deleted_points_outlive_every_token() {
        let key = Some("a key".into());
        let settings = QdrantSettings { api_key: key, purge_after_seconds: 300, ..QdrantSettings::default() };
        assert_eq!(settings.faults().len(), 1);
        let long = QdrantSettings { token_seconds: 301, purge_after_seconds: 900, ..settings };
        assert_eq!(long.faults().len(), 1);
    }
}
