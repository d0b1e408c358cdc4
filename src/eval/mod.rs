//! Measuring: retrieval quality, leakage, and what the server adds to its raw parts.
//!
//! **Invariant:** figures come with their uncertainty, and with the seed that repeats them.

pub mod bench;
pub mod client;
pub mod dataset;
pub mod figures;
pub mod judge;
pub mod neighbours;
pub mod passages;
pub mod quality;
pub mod retrieval;
