//! Work off the queue, away from requests.

pub mod worker;
