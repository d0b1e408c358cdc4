//! The integration tests, in one binary so that the crate is linked once.

mod answer_times;
mod any_body;
mod architecture;
mod audit;
mod audit_export;
mod audit_mongodb;
#[cfg(feature = "laboratory")]
mod audit_outages;
#[cfg(feature = "laboratory")]
mod audit_trail;
mod authz_matrix;
#[cfg(feature = "laboratory")]
mod backup;
#[cfg(feature = "laboratory")]
mod bucket;
mod calls;
mod cancelled_futures;
mod catalogue;
mod chat;
mod command_line;
mod compile_fail;
mod conformance_audit;
#[cfg(feature = "laboratory")]
mod conformance_vectors;
mod consistency;
mod crashes;
mod damaged_files;
mod database;
mod database_roles;
mod deployment;
mod doctor;
mod effective;
mod embedding;
mod evaluation;
#[cfg(feature = "laboratory")]
mod faults;
#[cfg(feature = "laboratory")]
mod fuzzing;
mod graph;
mod graph_upkeep;
#[cfg(feature = "laboratory")]
mod growth;
mod hints;
#[cfg(feature = "laboratory")]
mod hostile;
mod http_admin;
mod http_documents;
mod http_problems;
mod ingestion;
mod isolation_page;
mod language_model;
mod limits;
mod limits_live;
#[cfg(feature = "laboratory")]
mod model;
mod mongodb;
mod names;
mod non_interference;
mod operating;
mod operations;
mod oracle;
mod ownerless_jobs;
mod parse;
mod partitions;
mod place;
#[cfg(feature = "laboratory")]
mod post_filter;
mod private_postgres;
#[cfg(feature = "laboratory")]
#[path = "../support/process.rs"]
#[expect(dead_code, reason = "as of redis_server")]
mod process;
mod projector;
#[cfg(feature = "laboratory")]
#[path = "../support/qdrant/mod.rs"]
mod qdrant_stand_in;
mod query;
mod quiet_logs;
mod receiver;
#[cfg(feature = "laboratory")]
mod recorded;
mod recovery;
#[cfg(feature = "laboratory")]
#[path = "../services/redis_server.rs"]
#[expect(dead_code, reason = "tests of Redis itself are in tests/services and use more of it")]
mod redis_server;
mod reembed;
mod refused_database;
#[cfg(feature = "laboratory")]
mod residue;
mod round_trips;
mod row_level_security;
mod running;
mod server;
mod server_on_pgvector;
#[cfg(feature = "laboratory")]
mod server_on_qdrant;
mod settings;
mod shutdown;
#[cfg(feature = "laboratory")]
mod simulation;
mod site;
mod store;
mod store_races;
mod storms;
mod streams;
mod traces;
mod transport;
mod two_tenants;
mod uploaded_files;
mod valve;
#[cfg(feature = "laboratory")]
mod vectors_edge;
#[cfg(feature = "laboratory")]
mod vectors_qdrant;
#[cfg(feature = "laboratory")]
mod verify;
mod wire;
