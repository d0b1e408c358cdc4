//! What a comparison finds, as names and numbers.
//!
//! **Invariant:** no name, text or identifier of a document.

use crate::store::digest::StoreDigest;

/// A way in which two things that should agree do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Embeddings that the index lacks.
    MissingPoints,
    /// Points of the index without an embedding.
    ExtraPoints,
    /// Points of another version than their embedding.
    WrongVersions,
    /// Points that the index holds for another tenant or namespace.
    ForeignPoints,
    /// The index cannot be read.
    DamagedIndex,
    /// Chunks, entities, titles or groups that the index of graphs lacks.
    MissingNodes,
    /// Such that the record does not lead to.
    ExtraNodes,
    /// Chunks of it that lead elsewhere than the record says, and a head that counts wrongly.
    ChangedNodes,
    /// Nodes that are there more than once, and chunks with relations that are.
    DoubledNodes,
    /// Nodes and relations around the graph that are not wholly the partition's own.
    ForeignNodes,
    /// The index of graphs cannot be read.
    DamagedGraph,
    /// Chunks without an embedding of the active model.
    MissingEmbeddings,
    /// Embeddings without a chunk.
    ExtraEmbeddings,
    /// A namespace's count of chunks is not that of its rows.
    WrongChunkCount,
    /// Uploaded files that a document names and that are not there. Nothing here can bring them back.
    LostUploads,
    /// Uploaded files that no document names.
    StrayUploads,
    /// Indexes of namespaces that are gone.
    StrayIndexes,
    /// Stores that could not be looked into for such indexes.
    UnreachedIndexes,
    /// A tenant's count of documents is not that of its rows.
    WrongDocumentCount,
    /// A tenant's count of bytes is not that of its rows.
    WrongByteCount,
}

/// Something that was found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// How many; of a counter, by how much it is off.
    pub count: u64,
    /// Whether it was put right.
    pub repaired: bool,
}

/// An index compared with the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexExamined {
    /// Points that the index holds; of graphs, nodes.
    pub points: u64,
    /// What the rows say that it should hold, and what it holds: equal when the index is.
    pub digests: Vec<StoreDigest>,
    /// What is wrong, without what is 0.
    pub findings: Vec<Finding>,
}

/// Adds what was found, unless it is nothing.
pub(in crate::store) fn note(findings: &mut Vec<Finding>, kind: FindingKind, count: usize, repaired: bool) {
    if count > 0 {
        findings.push(Finding { kind, count: count as u64, repaired });
    }
}
