//! What an operator may set about shards.

use serde::Deserialize;

/// The settings of [`EdgeIndex`](super::EdgeIndex); every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeSettings {
    /// Shards held open at once. Beyond it the one unused for longest is closed; one in use never is.
    pub max_open: usize,
    /// A shard that was not used for this long is closed, seconds, so that a tenant who rests takes no memory and
    /// no descriptor. Opening it again takes a few milliseconds.
    pub idle_seconds: u64,
    /// Searches, openings and closings that run at once on the blocking pool; the rest wait.
    pub max_searches: usize,
    /// Writes, flushes and rebuilds that run at once; the rest wait.
    pub max_writes: usize,
    /// Partitions of up to this many points are searched on the calling thread: below half a
    /// millisecond the way to the blocking pool and back costs more than the search delays others.
    pub inline_points: usize,
    /// Partitions with more points than this get an HNSW graph; smaller ones are searched exactly.
    pub hnsw_from_points: usize,
    /// Candidates that a search of an HNSW graph keeps: more is slower and finds more of the true neighbours.
    pub hnsw_candidates: usize,
    /// Size of one segment of a shard's log, bytes.
    pub log_segment_bytes: usize,
    /// A shard whose log is longer than this has it cut at the next flush, bytes.
    pub log_max_bytes: u64,
    /// A generation is to be rewritten when it has held something deleted for this long, seconds. It has to
    /// lie well below the deadline for purging, since the rewriting comes after.
    pub purge_after_seconds: u64,
    /// Nothing is written while the disk has less than this left, bytes: the shards' files are mapped into
    /// memory, where a full disk ends the process instead of failing a call.
    pub min_free_bytes: u64,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            max_open: 512,
            idle_seconds: 60,
            max_searches: 8,
            max_writes: 2,
            inline_points: 5_000,
            hnsw_from_points: 20_000,
            hnsw_candidates: 256,
            log_segment_bytes: 256 * 1024,
            log_max_bytes: 8 * 1024 * 1024,
            purge_after_seconds: 900,
            min_free_bytes: 128 * 1024 * 1024,
        }
    }
}

impl EdgeSettings {
    /// The length beyond which a log is cut: cutting leaves the newest two segments, so not less than those.
    pub(super) fn log_bound(&self) -> u64 {
        self.log_max_bytes.max(4 * self.log_segment_bytes as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        // Beside them the section has what is not the shards': app::settings reads it whole.
        #[derive(Deserialize)]
        struct Vectors {
            #[serde(flatten)]
            edge: EdgeSettings,
        }
        #[derive(Deserialize)]
        struct Sections {
            vectors: Vectors,
        }
        use figment::providers::{Format, Toml};
        let text = include_str!("../../config/default.toml");
        let sections: Sections = figment::Figment::from(Toml::string(text)).extract().unwrap();
        assert_eq!(sections.vectors.edge, EdgeSettings::default());
    }
}
