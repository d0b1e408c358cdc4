//! What the audit log may hold and how long it waits, and where it is kept.

use serde::Deserialize;

use crate::store::mongodb::settings::MongoSettings;

/// Bounds and times of the audit log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// Events that wait to be written.
    pub queue: usize,
    /// Events written at once.
    pub batch: usize,
    /// How long a queued event waits for others, milliseconds.
    pub flush_ms: u64,
    /// How long a query or write waits for a place in the queue, milliseconds; then its event is lost and counted.
    pub queue_wait_ms: u64,
    /// How long an administrative action waits for its event to be written, milliseconds; then it is not done and is
    /// answered 503.
    pub write_wait_ms: u64,
    /// How often a batch is tried before its events are lost and counted.
    pub attempts: u32,
    /// Where the log is kept.
    pub backend: AuditBackend,
    /// `[audit.mongodb]`
    pub mongodb: MongoSettings,
}

/// What keeps the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditBackend {
    /// The database.
    #[default]
    Postgres,
    /// MongoDB, with a local spool and the database before it.
    Mongodb,
}

impl AuditSettings {
    /// All faults, each in words that name the setting.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let positive = [("audit.queue", self.queue), ("audit.batch", self.batch)];
        let none = positive.iter().filter(|(_, number)| *number == 0);
        let mut faults: Vec<String> = none.map(|(name, _)| format!("{name}: at least 1")).collect();
        if self.backend == AuditBackend::Mongodb {
            faults.extend(self.mongodb.validate());
        }
        faults
    }
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            queue: 4096,
            batch: 500,
            flush_ms: 200,
            queue_wait_ms: 250,
            write_wait_ms: 5000,
            attempts: 8,
            backend: AuditBackend::default(),
            mongodb: MongoSettings::default(),
        }
    }
}
