//! What is configured about serving: addresses, limits and times.
//!
//! **Invariant:** no default opens the server beyond loopback without TLS or a stated proxy.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The slowest that a body may arrive after its first seconds, bytes a second.
const SLOWEST: u64 = 64 * 1024;

/// Addresses, limits and times of the HTTP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Where tenants are served. Port 0 takes any free one.
    pub address: SocketAddr,
    /// A proxy in front ends TLS, so that plain HTTP is served beyond loopback too.
    pub behind_proxy: bool,
    /// Certificate and key; absent: plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Where operators are served besides the Unix socket; absent: nowhere.
    pub admin_address: Option<SocketAddr>,
    /// Threads that serve; 0: one for each core.
    pub workers: usize,
    /// Connections at once, for each thread.
    pub max_connections: usize,
    /// How long connections are taken after a stopping server is no longer ready, seconds.
    pub drain_seconds: u64,
    /// How long an idle connection stays open, seconds.
    pub keep_alive_seconds: u64,
    /// How long a request's head may take to arrive, seconds.
    pub head_seconds: u64,
    /// How long a request's body may take to arrive, seconds, and a second more for each 64 KiB of it.
    pub body_seconds: u64,
    /// How long running requests may go on when the server stops, seconds.
    pub shutdown_seconds: u64,
    /// The largest JSON body, bytes.
    pub max_json_bytes: usize,
    /// The longest text of one document, bytes.
    pub max_text_bytes: usize,
    /// The most texts of one call.
    pub max_texts: usize,
    /// The largest uploaded file, bytes.
    pub max_upload_bytes: usize,
    /// Files that are received at once, over all tenants; each may be held in memory.
    pub uploads: usize,
    /// Of these, how many one tenant may have.
    pub tenant_uploads: usize,
    /// Bytes of bodies that are held in memory at once, over all tenants, until each is acted on.
    pub buffered_bytes: usize,
    /// Of these, how many one tenant may have.
    pub tenant_buffered_bytes: usize,
    /// The largest metadata of one document, bytes of JSON.
    pub max_metadata_bytes: usize,
    /// Event streams at once, over all tenants.
    pub streams: usize,
    /// Of these, how many one tenant may have.
    pub tenant_streams: usize,
    /// The longest that `Prefer: wait` waits, seconds.
    pub max_wait_seconds: u64,
    /// Entities of one view of the graph.
    pub max_graph_nodes: usize,
    /// Names in the list of all entities.
    pub max_labels: usize,
    /// How often a running job's progress is looked at for streams, milliseconds.
    pub progress_poll_ms: u64,
    /// How often a silent event stream says that it lives, seconds.
    pub heartbeat_seconds: u64,
}

/// Files of certificate chain and private key, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// How often both are looked at again, seconds; what changed is in use from then on.
    #[serde(default = "reload_seconds")]
    pub reload_seconds: u64,
}

const fn reload_seconds() -> u64 {
    10
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 9621),
            behind_proxy: false,
            tls: None,
            admin_address: None,
            workers: 0,
            max_connections: 10_000,
            drain_seconds: 0,
            keep_alive_seconds: 75,
            head_seconds: 10,
            body_seconds: 120,
            shutdown_seconds: 10,
            max_json_bytes: 16 * 1024 * 1024,
            max_text_bytes: 8 * 1024 * 1024,
            max_texts: 1000,
            max_upload_bytes: 100 * 1024 * 1024,
            uploads: 16,
            tenant_uploads: 4,
            buffered_bytes: 512 * 1024 * 1024,
            tenant_buffered_bytes: 256 * 1024 * 1024,
            max_metadata_bytes: 16 * 1024,
            streams: 10_000,
            tenant_streams: 1000,
            max_wait_seconds: 60,
            max_graph_nodes: 1000,
            max_labels: 10_000,
            progress_poll_ms: 300,
            heartbeat_seconds: 15,
        }
    }
}

impl HttpSettings {
    /// All faults, as sentences for the person who wrote the configuration. Empty: none.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let listeners = [("http.address", Some(self.address)), ("http.admin_address", self.admin_address)];
        for (name, address) in listeners {
            let open = address.is_some_and(|address| !address.ip().is_loopback());
            if open && self.tls.is_none() && !self.behind_proxy {
                faults.push(format!(
                    "{name}: plain HTTP beyond loopback; set http.tls, or http.behind_proxy when a proxy ends TLS"
                ));
            }
        }
        let positive = [
            ("max_connections", self.max_connections),
            ("max_json_bytes", self.max_json_bytes),
            ("max_text_bytes", self.max_text_bytes),
            ("max_texts", self.max_texts),
            ("max_upload_bytes", self.max_upload_bytes),
            ("uploads", self.uploads),
            ("tenant_uploads", self.tenant_uploads),
            ("streams", self.streams),
            ("tenant_streams", self.tenant_streams),
        ];
        faults.extend(
            positive.iter().filter(|(_, n)| *n == 0).map(|(name, _)| format!("http.{name}: more than 0")),
        );
        if self.tenant_buffered_bytes < self.max_upload_bytes.max(self.max_json_bytes) {
            faults.push(
                "http.tenant_buffered_bytes: at least the largest body and the largest file".to_owned(),
            );
        }
        if self.buffered_bytes < self.tenant_buffered_bytes {
            faults.push("http.buffered_bytes: at least http.tenant_buffered_bytes".to_owned());
        }
        let times = [
            ("body_seconds", self.body_seconds),
            ("heartbeat_seconds", self.heartbeat_seconds),
            ("progress_poll_ms", self.progress_poll_ms),
            ("tls.reload_seconds", self.tls.as_ref().map_or(1, |tls| tls.reload_seconds)),
        ];
        faults.extend(
            times.iter().filter(|(_, n)| *n == 0).map(|(name, _)| format!("http.{name}: more than 0")),
        );
        faults
    }

    /// Connections at once for each of so many threads, where they may have so many descriptors.
    #[must_use]
    pub(super) fn connections(&self, threads: usize, descriptors: u64) -> usize {
        let share = usize::try_from(descriptors).unwrap_or(usize::MAX) / threads.max(1);
        self.max_connections.min(share.max(1))
    }

    /// How long a body may have taken of which so much has arrived.
    #[must_use]
    pub fn body_time(&self, received: usize) -> Duration {
        Duration::from_secs(self.body_seconds + received as u64 / SLOWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_beyond_loopback_is_refused_unless_a_proxy_is_stated() {
        let open =
            HttpSettings { address: "0.0.0.0:80".parse().expect("an address"), ..HttpSettings::default() };
        assert_eq!(open.validate().len(), 1);
        let proxied = HttpSettings { behind_proxy: true, ..open };
        assert_eq!(proxied.validate(), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(serde_json::from_str::<HttpSettings>(r#"{"adress": "127.0.0.1:1"}"#).is_err());
        assert_eq!(serde_json::from_str::<HttpSettings>("{}").expect("defaults"), HttpSettings::default());
    }
}
