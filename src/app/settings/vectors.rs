//! `[vectors]`: which index of vectors there is, and how it works.

use serde::Deserialize;

use crate::store::qdrant::QdrantSettings;
use crate::store::qdrant_edge::EdgeSettings;

/// Where vectors are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VectorBackend {
    /// Shards in this process.
    Edge,
    /// The rows themselves, by pgvector.
    Pgvector,
    /// A Qdrant server.
    Qdrant,
}

/// The index of vectors. Beside `backend` and `qdrant` the fields are those of [`EdgeSettings`], which a section has
/// beside its own: a flattened one could not say which fields there are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorIndexSettings {
    /// Which one is used.
    pub backend: VectorBackend,
    /// `[vectors.qdrant]`
    pub qdrant: QdrantSettings,
    /// See [`EdgeSettings::max_open`].
    pub max_open: usize,
    /// See [`EdgeSettings::idle_seconds`].
    pub idle_seconds: u64,
    /// See [`EdgeSettings::max_searches`].
    pub max_searches: usize,
    /// See [`EdgeSettings::max_writes`].
    pub max_writes: usize,
    /// See [`EdgeSettings::inline_points`].
    pub inline_points: usize,
    /// See [`EdgeSettings::hnsw_from_points`]; of a Qdrant server too.
    pub hnsw_from_points: usize,
    /// See [`EdgeSettings::hnsw_candidates`]; of a Qdrant server too.
    pub hnsw_candidates: usize,
    /// See [`EdgeSettings::log_segment_bytes`].
    pub log_segment_bytes: usize,
    /// See [`EdgeSettings::log_max_bytes`].
    pub log_max_bytes: u64,
    /// See [`EdgeSettings::purge_after_seconds`].
    pub purge_after_seconds: u64,
    /// See [`EdgeSettings::min_free_bytes`].
    pub min_free_bytes: u64,
}

impl VectorIndexSettings {
    /// What shards take from it.
    #[must_use]
    pub fn edge(&self) -> EdgeSettings {
        EdgeSettings {
            max_open: self.max_open,
            idle_seconds: self.idle_seconds,
            max_searches: self.max_searches,
            max_writes: self.max_writes,
            inline_points: self.inline_points,
            hnsw_from_points: self.hnsw_from_points,
            hnsw_candidates: self.hnsw_candidates,
            log_segment_bytes: self.log_segment_bytes,
            log_max_bytes: self.log_max_bytes,
            purge_after_seconds: self.purge_after_seconds,
            min_free_bytes: self.min_free_bytes,
        }
    }

    /// Faults of the one that is used.
    pub(super) fn faults(&self) -> Vec<String> {
        match self.backend {
            VectorBackend::Edge | VectorBackend::Pgvector => Vec::new(),
            VectorBackend::Qdrant => self.qdrant.faults(),
        }
    }
}
