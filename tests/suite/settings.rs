//! The settings: what is documented is what holds, and what is not documented does not exist.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use bulkhead::app::Settings;
use bulkhead::config::{ConfigError, DEFAULTS, load};
use bulkhead::http::HttpSettings;
use bulkhead::jobs::projector::ProjectorSettings;
use bulkhead::pipeline::parse::ParseLimits;
use bulkhead::retrieval::RetrievalSettings;
use bulkhead::store::AuditSettings;
use bulkhead::store::qdrant::QdrantSettings;
use bulkhead::store::qdrant_edge::EdgeSettings;
use bulkhead::tenancy::AuthSettings;
use tempfile::TempDir;

/// What a file of settings says when it is read, or its faults.
fn read(text: &str) -> Result<Settings, Vec<String>> {
    let folder = TempDir::new().expect("a folder");
    let file: PathBuf = folder.path().join("settings.toml");
    std::fs::write(&file, text).expect("written");
    load(Some(&file)).map_err(|error| match error {
        ConfigError::Invalid(faults) => faults,
        ConfigError::Load(error) => panic!("{error}\n{text}"),
    })
}

/// The sections of the documented defaults: name and lines. What comes before the first has no name.
fn sections() -> Vec<(String, Vec<&'static str>)> {
    let mut sections = vec![(String::new(), Vec::new())];
    for line in DEFAULTS.lines() {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => sections.push((name.to_owned(), Vec::new())),
            None => sections.last_mut().expect("one").1.push(line),
        }
    }
    sections
}

fn same(documented: &impl Debug, built_in: &impl Debug) {
    assert_eq!(format!("{documented:#?}"), format!("{built_in:#?}"));
}

#[test]
fn the_documented_defaults_are_those_of_the_program() {
    let settings = read("").expect("the defaults");
    same(&settings.http, &HttpSettings::default());
    same(&settings.auth, &AuthSettings::default());
    same(&settings.audit, &AuditSettings::default());
    same(&settings.parse, &ParseLimits::default());
    same(&settings.vectors.edge(), &EdgeSettings::default());
    same(&settings.vectors.qdrant, &QdrantSettings::default());
    same(&settings.projection, &ProjectorSettings::default());
    let documented = settings.retrieval;
    let bare = serde_json::json!({
        "candidates": documented.candidates, "chunk_top_k": documented.chunk_top_k, "top_k": documented.top_k,
        "on_foreign_row": "fail", "fusion": {}, "graph_max_lag_seconds": documented.graph_max_lag_seconds,
        "graph_memory_bytes": documented.graph_memory_bytes, "quoted_sentences": documented.quoted_sentences,
    });
    let built_in: RetrievalSettings = serde_json::from_value(bare).expect("all that has no default");
    same(&documented, &built_in);
}

/// The fields that a section has, as its own refusal of a field that it has not names them.
fn fields(section: &str) -> BTreeSet<String> {
    let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
    let faults = read(&format!("{header}no_such_setting = 1\n")).expect_err("an unknown setting is refused");
    let full = format!("{section}.no_such_setting");
    let name = full.trim_start_matches('.');
    let fault = faults.iter().find_map(|fault| fault.strip_prefix(name)?.strip_prefix(": there are only "));
    let there = fault.unwrap_or_else(|| panic!("{name} in {faults:?}"));
    let (there, _) = there.rsplit_once(" (").expect("where it is from");
    there.split(", ").map(str::to_owned).collect()
}

#[test]
fn an_unknown_setting_is_refused_in_every_section_and_every_known_one_is_documented() {
    let sections = sections();
    for (section, lines) in &sections {
        let fields = fields(section);
        assert!(!fields.is_empty(), "[{section}]");
        for field in &fields {
            let full = [section.as_str(), field.as_str()].join(".");
            let of_its_own = sections.iter().any(|(name, _)| *name == full.trim_start_matches('.'));
            // Set, or shown in a comment since its default is nothing.
            let at = lines.iter().position(|line| {
                line.trim_start_matches("# ")
                    .strip_prefix(field.as_str())
                    .is_some_and(|rest| rest.starts_with(" = "))
            });
            assert!(of_its_own || at.is_some(), "{full} is not in the documented defaults");
            let Some(at) = at else { continue };
            // Its meaning stands above it, or above the first of its group.
            let comment = lines[..at]
                .iter()
                .rev()
                .take_while(|line| !line.is_empty())
                .any(|line| line.starts_with("# "));
            assert!(comment, "{full} is not explained");
        }
    }
    for section in ["http.tls", "retrieval.fusion"] {
        for field in fields(section) {
            assert!(DEFAULTS.contains(&format!("{field} = ")), "{section}.{field}");
        }
    }
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once() {
    let faults = read(
        "node = 'no such/name'\nspeed = 1\n[http]\naddress = '0.0.0.0:80'\nworkers = 'many'\nport = 80\n\
         [auth]\nrevocation_poll = 60\n[database.pools]\nquery_connections = 0\n[embedding]\nbatch = 0\n\
         [retrieval]\non_foreign_row = 'ignore'\n[vectors]\nmax_open = 0\n",
    );
    let faults = faults.expect_err("nothing of it can work");
    for name in [
        "node: ",
        "speed: ",
        "http.address: ",
        "http.workers: ",
        "http.port: ",
        "auth.revocation_poll: ",
        "database.pools.query_connections: ",
        "embedding.batch: ",
        "retrieval.on_foreign_row: ",
        "vectors.max_open: ",
    ] {
        assert_eq!(faults.iter().filter(|fault| fault.starts_with(name)).count(), 1, "{name} in {faults:#?}");
    }
    assert_eq!(faults.len(), 10, "{faults:#?}");
}

#[test]
fn the_readmes_example_of_an_issuer_can_be_used() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let settings = read(example).expect("it can be used");
    assert_eq!(settings.auth.issuers.len(), 1);
}
