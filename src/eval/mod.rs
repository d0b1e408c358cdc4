//! Measuring: retrieval quality and leakage.
//!
//! **Invariant:** figures come with their uncertainty, and with the seed that repeats them.

pub mod quality;
