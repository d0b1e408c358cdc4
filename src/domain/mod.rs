//! Plain types that every floor shares: identifiers, documents, queries, time.
//!
//! **Invariant:** no input or output, no async, no import from another floor.

pub mod address;
pub mod audit;
pub mod clock;
pub mod document;
pub mod finding;
pub mod ids;
pub mod lexical;
pub mod limits;
pub mod names;
pub mod query;
pub mod seconds;
pub mod words;

/// Position in a corpus' history: incremented by every writing transaction of a namespace, without gaps.
///
/// It is also the epoch of caches, graph and streams.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub i64);

impl std::fmt::Display for Seq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
