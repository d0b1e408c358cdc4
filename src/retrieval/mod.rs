//! Answers: found in the indexes, checked against the record, cited.
//!
//! **Invariant:** retrieval is handed readers only, and text comes from PostgreSQL alone.
//! **Invariant:** every hit passes the post-filter before anything is said of it.

pub mod answer;
mod asked;
pub mod engine;
pub mod entities;
pub mod fusion;
pub mod graph;
mod graphs;
mod over;
mod post_filter;
mod search;
pub mod view;

pub use answer::Answer;
pub use engine::{
    Engine, Material, Metadata, Question, RankedChunk, Reference, RetrievalError, RetrievalSettings, Stage,
};
pub use entities::{Entity, Relation};
pub use graphs::graph_of_record;
pub use search::term_weights;
pub use view::{GraphView, entity_keys};
