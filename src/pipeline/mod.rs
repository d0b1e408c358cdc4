//! From an uploaded file to chunks, entities and embeddings.
//!
//! **Invariant:** parsing of foreign bytes happens in a child process; everything else here works on plain text.

pub mod chunk;
pub mod extract;
pub mod parse;
pub mod process;
