//! Settings as tests and fuzzers want them.

use crate::retrieval::RetrievalSettings;

/// Settings as they are by default.
pub(crate) fn settings() -> RetrievalSettings {
    let settings = serde_json::json!({
        "candidates": 200, "chunk_top_k": 20, "top_k": 40, "on_foreign_row": "fail", "fusion": {},
        "graph_max_lag_seconds": 5, "graph_memory_bytes": 1_000_000, "quoted_sentences": 3,
    });
    serde_json::from_value(settings).expect("settings")
}
