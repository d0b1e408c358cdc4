//! Requests in, answers out: identity, extractors, routes by resource, and problems.
//!
//! A handler's first parameter decides who may go on ([`identity`]); every other extractor waits for it.
//! Whatever fails leaves through [`problem::Problem`], in the form of the route, at the edge.
//!
//! **Invariant:** the tenant comes from the credential alone; anything else in a request can only agree or fail.

mod edge;
pub mod extract;
mod form;
pub mod identity;
pub mod json;
pub mod problem;
pub mod settings;
pub mod state;

pub use edge::RequestId;
pub use problem::{Kind, Problem};
pub use settings::HttpSettings;
pub use state::{App, Meters};
