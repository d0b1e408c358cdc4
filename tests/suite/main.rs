//! The integration tests, in one binary so that the crate is linked once.

mod any_body;
mod architecture;
mod audit;
mod authz_matrix;
mod calls;
mod cancelled_futures;
mod catalogue;
mod chat;
mod command_line;
mod compile_fail;
#[cfg(feature = "laboratory")]
mod conformance_vectors;
mod consistency;
mod crashes;
mod damaged_files;
mod database;
mod database_roles;
mod deployment;
#[cfg(feature = "laboratory")]
mod fuzzing;
mod graph;
#[cfg(feature = "laboratory")]
mod hostile;
mod http_admin;
mod http_documents;
mod http_problems;
mod ingestion;
mod language_model;
mod limits;
mod limits_live;
mod operations;
mod parse;
mod partitions;
mod place;
mod private_postgres;
mod projector;
mod query;
mod recovery;
mod reembed;
mod round_trips;
mod row_level_security;
mod running;
mod server;
mod settings;
mod site;
mod store;
mod store_races;
mod streams;
mod transport;
mod two_tenants;
mod uploaded_files;
#[cfg(feature = "laboratory")]
mod vectors_edge;
mod wire;
