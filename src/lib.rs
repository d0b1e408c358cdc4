//! Bulkhead: a retrieval server for many tenants.
//!
//! Floors; imports only point down:
//!
//! ```text
//! cli                            the command line
//! app                            composition root
//! jobs | http | eval             work off the queue | answer requests | measure
//! pipeline | retrieval | admin   documents in | answers out | operators' actions
//! store                          handles, traits, back ends
//! config | tenancy | inference
//! domain                  plain types
//! ```

/// Gives memory back that a tenant no longer needs: glibc's keeps it ([`telemetry::memory`]).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod eval;
pub mod http;
pub mod inference;
pub mod jobs;
pub mod pipeline;
pub mod retrieval;
pub mod store;
pub mod telemetry;
pub mod tenancy;
