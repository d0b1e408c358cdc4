//! Models: embedding, and the language model where one is configured.
//!
//! **Invariant:** a batch holds texts of one tenant only, and results go back on the caller's own channel.

mod embedder;
mod fair_queue;
mod fastembed_model;
mod hashing;
mod language_model;
mod models;
mod priority;
mod vector_cache;

pub use embedder::{
    Embedded, Embedder, EmbedderError, EmbeddingSettings, ModelInfo, RawModel, SessionCounts,
};
pub use language_model::{Completion, LanguageModel, LanguageModelError, LanguageModelSettings, Message};
pub use models::Models;
pub use priority::{GivenUp, in_background};

/// The model fails on a text with these words, in laboratory builds alone.
#[cfg(feature = "laboratory")]
pub const FAULTY: &str = "bulkhead laboratory: no vector";
