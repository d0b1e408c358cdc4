//! Requests in, answers out: identity, extractors, routes by resource, and problems.
//!
//! A handler's first parameter decides who may go on ([`identity`]); every other extractor waits for it.
//! Whatever fails leaves through [`problem::Problem`], in the form of the route, at the edge.
//!
//! **Invariant:** the tenant comes from the credential alone; anything else in a request can only agree or fail.

mod admin;
mod auth;
mod chat;
mod documents;
mod edge;
pub mod extract;
mod form;
#[cfg(feature = "laboratory")]
pub mod fuzz;
mod graph;
mod health;
pub mod identity;
mod jobs;
pub mod json;
mod limits;
mod metrics;
mod namespaces;
mod ollama;
mod openai;
pub mod openapi;
pub mod operations;
pub mod problem;
mod query;
mod ready;
mod room;
pub mod server;
pub mod settings;
pub mod state;
mod tls;
mod turns;
mod usage;
mod watch;

pub use edge::RequestId;
pub use problem::{Kind, Problem};
pub use server::{ServeError, Serving, serve};
pub use settings::HttpSettings;
pub use state::{App, Meters};
pub use tls::{TlsError, valid_until};

#[cfg(test)]
mod tests;
