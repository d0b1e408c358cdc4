//! Work off the queue, away from requests.
//!
//! **Invariant:** a job's authority is looked up again before it runs; none is carried over from a request.

pub mod graph_keeper;
pub mod graphs;
pub mod orphans;
pub mod partitions;
pub mod placements;
mod places;
pub mod projector;
pub mod runtime;
pub mod stages;
pub mod worker;
