//! The settings of the private PostgreSQL and the configuration files made of them.
//!
//! **Invariant:** no TCP, no sign-in without a secret, and no row value, statement or parameter in
//! any log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ServerError;
use super::layout::Layout;
use crate::domain::seconds;

/// What may be set for the private PostgreSQL.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Memory for the page cache shared by all sessions, MiB.
    pub shared_buffers_mib: u32,
    /// Memory for one sort or hash of one query, MiB.
    pub work_mem_mib: u32,
    /// Memory for building an index or a vacuum, MiB. An HNSW graph is built fast while it fits.
    pub maintenance_work_mem_mib: u32,
    /// Write-ahead log between two checkpoints, MiB. More writes faster and recovers slower.
    pub max_wal_size_mib: u32,
    /// Sessions at the same time; the pools of one server must fit in, with 3 kept for the superuser.
    pub max_connections: u32,
    /// Whether what is committed survives a crash of the machine. Off for tests, which begin anew each
    /// time and would otherwise wait for the disk; never off for data that anybody wants back.
    pub durable: bool,
    /// How long a start may take, recovery after a crash included.
    #[serde(with = "seconds")]
    pub start_timeout: Duration,
    /// How long a stop may wait for running transactions to be rolled back, before it is forced.
    #[serde(with = "seconds")]
    pub stop_timeout: Duration,
    /// Where a root parent puts programs and data that the system user could not reach where they
    /// are. Must be reachable by every user.
    pub relocation: PathBuf,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            shared_buffers_mib: 128,
            work_mem_mib: 8,
            maintenance_work_mem_mib: 128,
            max_wal_size_mib: 1024,
            max_connections: 60,
            durable: true,
            start_timeout: Duration::from_mins(2),
            stop_timeout: Duration::from_secs(30),
            relocation: PathBuf::from("/var/lib/bulkhead"),
        }
    }
}

/// Who may connect, and how: everybody by the socket, with a secret.
pub(super) const HBA: &str = "# Written by Bulkhead at every start.\nlocal all all scram-sha-256\n";

/// Lines of `postgresql.conf` that depend on nothing.
const FIXED: &str = "\
# Written by Bulkhead at every start; changes here are lost.

# Unix socket only.
listen_addresses = ''
port = 5432
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
allow_alter_system = off
cluster_name = 'bulkhead'

# After a crash, of a session or of the machine.
full_page_writes = on
restart_after_crash = on

# Memory and planning. Queries are short: compiling them would cost more than it saves.
huge_pages = off
jit = off

# Soon after a table begins to grow: without statistics it is thought to be nearly empty, and plans are for that.
autovacuum_naptime = 5s

# The same text and time everywhere.
timezone = 'UTC'
log_timezone = 'UTC'
datestyle = 'iso, ymd'
lc_messages = 'C'
lc_monetary = 'C'
lc_numeric = 'C'
lc_time = 'C'

# Logs tell about the server, never about data. An error's primary message can quote a value, so
# errors of statements are not logged at all: who sent the statement gets them.
logging_collector = on
log_destination = 'stderr'
log_filename = 'postgres-%Y%m%d-%H%M%S.log'
log_file_mode = 0600
log_rotation_size = 8MB
log_rotation_age = 1d
log_line_prefix = '%m [%p] '
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_statement = none
log_min_duration_statement = -1
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
";

impl ServerSettings {
    /// The text of `postgresql.conf`.
    pub(super) fn render(&self, layout: &Layout, lz4: bool) -> Result<String, ServerError> {
        let compression = if lz4 { "lz4" } else { "off" };
        Ok(format!(
            "{FIXED}\n\
             # From the settings.\n\
             unix_socket_directories = {socket}\n\
             hba_file = {hba}\n\
             log_directory = {logs}\n\
             shared_buffers = {buffers}MB\n\
             work_mem = {work}MB\n\
             maintenance_work_mem = {maintenance}MB\n\
             max_wal_size = {wal}MB\n\
             max_connections = {connections}\n\
             wal_compression = {compression}\n\
             fsync = {durable}\n\
             synchronous_commit = {durable}\n",
            // This setting is a list; inside it a name with a comma needs quotes of its own.
            socket = quoted(&layout.socket_dir, |path| format!("\"{}\"", path.replace('"', "\"\"")))?,
            hba = quoted(&layout.hba_file(), str::to_owned)?,
            logs = quoted(&layout.log_dir, str::to_owned)?,
            buffers = self.shared_buffers_mib,
            work = self.work_mem_mib,
            maintenance = self.maintenance_work_mem_mib,
            wal = self.max_wal_size_mib,
            connections = self.max_connections,
            durable = if self.durable { "on" } else { "off" },
        ))
    }
}

fn quoted(path: &Path, inner: impl FnOnce(&str) -> String) -> Result<String, ServerError> {
    match path.to_str() {
        Some(text) if !text.contains(['\n', '\r', '\0']) => {
            Ok(format!("'{}'", inner(text).replace('\\', "\\\\").replace('\'', "''")))
        }
        _ => Err(ServerError::Path { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_as_the_configuration_wants_them() {
        let plain = |path: &str| quoted(Path::new(path), str::to_owned);
        assert_eq!(plain("/a b").expect("plain"), "'/a b'");
        assert_eq!(plain("/it's\\x").expect("quoted"), "'/it''s\\\\x'");
        assert!(plain("/a\nlisten_addresses='*'").is_err());
    }

    #[test]
    fn the_configuration_has_no_tcp_and_one_way_in() {
        assert!(FIXED.contains("listen_addresses = ''"));
        let rules: Vec<&str> = HBA.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rules, ["local all all scram-sha-256"]);
    }
}
