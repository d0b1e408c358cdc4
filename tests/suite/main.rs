//! The integration tests, in one binary so that the crate is linked once.

mod audit;
mod database;
mod database_roles;
mod parse;
mod place;
mod private_postgres;
