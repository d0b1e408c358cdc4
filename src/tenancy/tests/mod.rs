//! Tests of authentication as a whole: a directory in memory, a clock that stands, issuers of every algorithm.

mod refusals;
mod revocation;
mod rotation;
mod tokens;
mod world;
