//! `[graph]`: where graphs are walked.

use serde::Deserialize;

use crate::store::neo4j::Neo4jSettings;

/// Where graphs are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphBackend {
    /// In this process.
    Memory,
    /// In a Neo4j server; in this process while that is behind or away.
    Neo4j,
}

/// Where graphs are walked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphSettings {
    /// Which one is used.
    pub backend: GraphBackend,
    /// How often namespaces are looked for whose graph lags, milliseconds.
    pub sweep_ms: u64,
    /// How often some are looked at whether they seem to lag or not, milliseconds.
    pub upkeep_ms: u64,
    /// Namespaces that are listed at once.
    pub page: usize,
    /// `[graph.neo4j]`
    pub neo4j: Neo4jSettings,
}

impl GraphSettings {
    /// Faults of the one that is used.
    pub(super) fn faults(&self) -> Vec<String> {
        if self.backend == GraphBackend::Memory {
            return Vec::new();
        }
        let mut faults = self.neo4j.faults();
        let positive =
            [("sweep_ms", self.sweep_ms > 0), ("upkeep_ms", self.upkeep_ms > 0), ("page", self.page > 0)];
        let none = positive.iter().filter(|(_, holds)| !holds);
        faults.extend(none.map(|(name, _)| format!("graph.{name}: at least 1")));
        faults
    }
}
