//! How settings are read: the defaults, a file, the environment, in this order; then checked as a whole.
//!
//! What can be set stands beside the code that obeys it, and `app::Settings` puts the sections together.
//!
//! **Invariant:** an unknown or impossible setting is an error at start, and all impossible ones are told together.

mod crash_point;

use std::path::Path;

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::de::DeserializeOwned;

pub use crash_point::crash_point;

/// The documented defaults, as a file.
pub const DEFAULTS: &str = include_str!("default.toml");

/// Settings that can say what is wrong with them.
pub trait Validate {
    /// Every fault, each in words that name the setting.
    fn faults(&self) -> Vec<String>;
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or variable cannot be read, or names a setting that does not exist.
    #[error("{0}")]
    Load(Box<figment::Error>),
    /// Settings that cannot work, one a line.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

/// Reads the settings: [`DEFAULTS`], then the file, then `BULKHEAD__SECTION__KEY`, then `DATABASE_URL`.
///
/// # Errors
/// [`ConfigError`] with everything that is wrong.
pub fn load<S: DeserializeOwned + Validate>(file: Option<&Path>) -> Result<S, ConfigError> {
    let mut figment = Figment::from(Toml::string(DEFAULTS));
    if let Some(file) = file {
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(Env::prefixed("BULKHEAD__").split("__"));
    if let Some(url) = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        figment = figment.merge(("database.url", url));
    }
    let settings: S = figment.extract().map_err(|error| ConfigError::Load(Box::new(error)))?;
    let faults = settings.faults();
    if faults.is_empty() { Ok(settings) } else { Err(ConfigError::Invalid(faults)) }
}
