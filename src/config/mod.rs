//! How settings are read: the defaults, a file, the environment, in this order; then checked as a whole.
//!
//! What can be set stands beside the code that obeys it, and `app::Settings` puts the sections together.
//!
//! **Invariant:** an unknown or impossible setting is an error at start, and all impossible ones are told together.

mod crash_point;

use std::path::Path;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Toml};
use figment::value::Value;
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
    /// A file or the environment cannot be read at all.
    #[error("{0}")]
    Load(Box<figment::Error>),
    /// Settings that do not exist or cannot work, one a line.
    #[error("these settings cannot be used:\n  {}", .0.join("\n  "))]
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
    read(&figment)
}

/// The settings that a configuration holds. What cannot be read is noted and its default taken instead, so that
/// the next fault is found too; of a list, the first fault is told.
fn read<S: DeserializeOwned + Validate>(figment: &Figment) -> Result<S, ConfigError> {
    let failed = |error| ConfigError::Load(Box::new(error));
    let mut value = figment.find_value("").map_err(failed)?;
    let defaults = Figment::from(Toml::string(DEFAULTS)).find_value("").map_err(failed)?;
    let mut faults = Vec::new();
    loop {
        match value.deserialize::<S>() {
            Ok(settings) => {
                faults.extend(settings.faults());
                return if faults.is_empty() { Ok(settings) } else { Err(ConfigError::Invalid(faults)) };
            }
            Err(error) => {
                let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
                faults.push(fault(figment, &path, &error.kind));
                if !mend(&mut value, &defaults, &path) {
                    return Err(ConfigError::Invalid(faults));
                }
            }
        }
    }
}

/// A fault in words: the setting, what is wrong, and the file or variable that says so.
fn fault(figment: &Figment, path: &[&str], kind: &Kind) -> String {
    let known = (1..=path.len()).rev().find_map(|end| figment.find_metadata(&path[..end].join(".")));
    let from = known.map_or(String::new(), |known| match &known.source {
        Some(source) => format!(" ({} {source})", known.name),
        None => format!(" ({})", known.name),
    });
    let setting = path.join(".");
    match kind {
        Kind::UnknownField(_, there) => format!("{setting}: there are only {}{from}", there.join(", ")),
        other => format!("{setting}: {other}{from}"),
    }
}

/// Puts the default where the path leads, or nothing where there is no default. Whether that changed anything.
fn mend(value: &mut Value, defaults: &Value, path: &[&str]) -> bool {
    let (Some((first, rest)), Value::Dict(_, fields)) = (path.split_first(), value) else { return false };
    let default = defaults.find_ref(first);
    if !rest.is_empty()
        && let Some(inner @ Value::Dict(..)) = fields.get_mut(*first)
        && mend(inner, default.unwrap_or(&Value::from(false)), rest)
    {
        return true;
    }
    match default {
        Some(default) => fields.insert((*first).to_owned(), default.clone()).as_ref() != Some(default),
        None => fields.remove(*first).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        node: String,
        http: Http,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Http {
        address: std::net::SocketAddr,
        workers: usize,
        tls: Option<Tls>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Tls {
        #[expect(dead_code, reason = "it only has to be there")]
        key: String,
    }

    impl Validate for Part {
        fn faults(&self) -> Vec<String> {
            (self.node == "bad").then(|| "node: is bad".to_owned()).into_iter().collect()
        }
    }

    fn part(over: &str) -> Result<Part, ConfigError> {
        let base = Toml::string("node = 'n'\n[http]\naddress = '127.0.0.1:9621'\nworkers = 0\n");
        read(&Figment::from(base).merge(Toml::string(over)))
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let over = "node = 'bad'\nnud = 1\n[http]\nadress = 'x'\naddress = 'here'\nworkers = 'many'\ntls = {}\n[htp]\n";
        let Err(ConfigError::Invalid(faults)) = part(over) else { panic!("it is full of faults") };
        let named = |name: &str| faults.iter().filter(|fault| fault.starts_with(name)).count();
        for name in [
            "node: is bad",
            "nud: ",
            "http.adress: ",
            "http.address: ",
            "http.workers: ",
            "http.tls: ",
            "htp: ",
        ] {
            assert_eq!(named(name), 1, "{name} in {faults:#?}");
        }
        assert_eq!(faults.len(), 7, "{faults:#?}");
        assert!(faults.iter().filter(|fault| fault.contains("TOML")).count() >= 5, "{faults:#?}");
    }

    #[test]
    fn a_section_that_is_none_and_a_file_that_is_none_are_faults() {
        let Err(ConfigError::Invalid(faults)) = part("http = 3") else { panic!("3 is no section") };
        assert!(faults[0].starts_with("http: invalid type"), "{faults:?}");
        assert!(matches!(part("http = "), Err(ConfigError::Load(_))));
        let usable = part("").expect("the defaults");
        assert_eq!(
            (usable.http.workers, usable.http.address.port(), usable.http.tls.is_none()),
            (0, 9621, true)
        );
    }
}
