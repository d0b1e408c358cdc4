//! The walls inside the source: floors whose imports only point down, sizes, openings of modules, and bans.
//!
//! It reads text and knows nothing of types: what it needs is a path, a name or a number of lines. Code of unit
//! tests is left out of floors and bans, since a test may build what it stands on from above.
//!
//! **Invariant:** every exception has a reason and is in use; one that no longer is fails.

mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use source::{imports, module_of, production, returns, without_comments_and_strings};

/// Modules on the same floor do not import each other; any may import what lies below.
const FLOORS: &[&[&str]] = &[
    &["domain"],
    &["config", "tenancy", "inference", "telemetry"],
    &["store"],
    &["pipeline", "retrieval", "admin"],
    &["jobs", "http", "eval"],
    &["app"],
    &["cli"],
];

/// Imports that point elsewhere than down: file, module, reason.
const IMPORTS: &[(&str, &str, &str)] = &[];

/// Lines of a file, at most.
const LINES: usize = 500;

/// Longer files, with a length that may only shrink.
const LONG: &[(&str, usize)] = &[];

/// What production code does not say: the word, who may, reason.
const BANS: &[(&str, &[&str], &str)] = &[
    ("Utc::now", &["domain/clock.rs"], "time is a parameter: domain::clock::Clock"),
    ("SystemTime::now", &[], "time is a parameter: domain::clock::Clock"),
    ("Uuid::new_v4", &[], "ids are a parameter: domain::ids::IdSource"),
    ("Uuid::now_v7", &[], "ids are a parameter: domain::ids::IdSource"),
    (
        "getrandom::",
        &["domain/ids.rs", "store/postgres/secrets.rs"],
        "randomness is a parameter: domain::ids::IdSource, or Entropy where secrets are made",
    ),
    ("tokio::spawn", &["app.rs", "store/audit.rs"], "a task that nobody waits for outlives its server"),
    (
        "tokio::task::spawn(",
        &["store/postgres/transaction.rs"],
        "a task that nobody waits for outlives its server",
    ),
    (
        "Lane::Deployment",
        &["store/postgres/audit.rs", "store/postgres/mod.rs", "store/postgres/recorded.rs"],
        "a transaction of the control role is a ControlTransaction, committed with what records it",
    ),
    (
        "pools.control",
        &["store/postgres/control.rs", "store/postgres/usage.rs"],
        "outside of a ControlTransaction the control role only reads",
    ),
    ("todo!", &[], "what is not there yet is not in the source"),
    ("unimplemented!", &[], "what is not there yet is not in the source"),
    ("dbg!", &[], "what is logged is chosen"),
    ("#[allow(", &[], "#[expect(.., reason)] fails when it is no longer needed"),
    ("#![allow(", &[], "#![expect(.., reason)] fails when it is no longer needed"),
    ("unsafe {", &[], "the compiler proves memory safety"),
];

/// Tables that hold what operators decide.
const DECIDED: &str = "(?:insert into|update|delete from) (tenant|api_key|operator_key|vector_placement)\\b";

/// Who writes them: file, tables, reason.
const DECIDERS: &[(&str, &[&str], &str)] = &[
    (
        "store/postgres/administer.rs",
        &["api_key", "operator_key", "tenant", "vector_placement"],
        "by a ControlTransaction, which is committed with what records it",
    ),
    ("store/postgres/purge.rs", &["vector_placement"], "the purge, whose end is recorded"),
];

/// Files that may, and why.
type Exceptions = &'static [(&'static str, &'static str)];

/// Libraries that only one part speaks with: prefix of a path, the part, exceptions with their reason.
const OWNERS: &[(&str, &str, Exceptions)] = &[
    (
        "sqlx::",
        "store/",
        &[
            ("app.rs", "hands addresses on, holds no connection"),
            ("app/database.rs", "hands addresses on, holds no connection"),
        ],
    ),
    ("qdrant_edge::", "store/qdrant_edge/", &[]),
    ("qdrant_client::", "store/qdrant/", &[]),
    ("mongodb::", "store/mongodb/", &[]),
    ("neo4rs::", "store/neo4j/", &[]),
    ("redis::", "store/redis/", &[]),
    ("object_store::", "store/", &[]),
    ("fastembed::", "inference/", &[]),
    ("ort::", "inference/", &[]),
    ("actix_web::", "http/", &[]),
];

/// What a public function or field must not hand out.
const RAW: &[&str] = &[
    "PgPool",
    "Pool",
    "PoolConnection",
    "PgConnection",
    "Transaction",
    "TenantTransaction",
    "EdgeShard",
    "Qdrant",
];

/// What `retrieval` must not name: it reads, and only what it was handed.
const WRITERS: &[&str] = &["TenantWriter", "CorpusWriter", "Stores", "Postgres", "Permit", "OperatorScope"];

/// A file of `src`, by its path below it.
struct File {
    path: String,
    text: String,
    /// Without comments, strings and unit tests.
    code: String,
}

fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let path = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
                let code = if is_test(&path) {
                    String::new()
                } else {
                    production(&without_comments_and_strings(&text))
                };
                found.push(File { path, text, code });
            }
        }
    }
    assert!(found.len() > 100, "the sources were not found");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Files that only unit tests or the laboratory compile.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "traps.rs" | "laboratory.rs"))
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The imports of a file that do not point down.
fn misdirected(path: &str, code: &str) -> BTreeSet<String> {
    let here = module_of(path);
    let Some(own) = here.first().filter(|own| !matches!(own.as_str(), "lib" | "main")) else {
        return BTreeSet::new();
    };
    let below = |module: &str| match (floor(own), floor(module)) {
        (Some(own), Some(module)) => module < own,
        _ => false,
    };
    imports(&here, code).into_iter().filter(|module| module != own && !below(module)).collect()
}

fn report(title: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{title}:\n  {}", findings.join("\n  "));
}

#[test]
fn imports_point_down() {
    let mut used = BTreeSet::new();
    let mut findings = Vec::new();
    for file in files() {
        for module in misdirected(&file.path, &file.code) {
            match IMPORTS.iter().find(|(path, name, _)| *path == file.path && *name == module) {
                Some(exception) => drop(used.insert(exception)),
                None => findings.push(format!("src/{} imports {module}", file.path)),
            }
        }
    }
    let idle = IMPORTS.iter().filter(|exception| !used.contains(exception));
    findings.extend(idle.map(|(path, module, _)| format!("unused exception: {path} imports {module}")));
    report("these do not point down", &findings);
}

#[test]
fn every_module_has_a_floor() {
    let lib = files().into_iter().find(|file| file.path == "lib.rs").expect("lib.rs");
    let modules = lib.code.split("mod ").skip(1).filter_map(|rest| rest.split(';').next());
    let lost: Vec<String> = modules.filter(|name| floor(name).is_none()).map(str::to_owned).collect();
    report("these are on no floor", &lost);
}

#[test]
fn every_module_says_what_it_owns() {
    let silent: Vec<String> =
        files().into_iter().filter(|file| !file.text.starts_with("//!")).map(|file| file.path).collect();
    report("these do not open with //!", &silent);
}

#[test]
fn no_file_is_too_long() {
    let mut findings = Vec::new();
    for file in files() {
        let lines = file.text.lines().count();
        match LONG.iter().find(|(path, _)| *path == file.path) {
            Some((_, limit)) if lines > *limit => {
                findings.push(format!("src/{}: {lines} lines, {limit} before", file.path));
            }
            Some(_) if lines <= LINES => findings.push(format!("src/{} is no longer too long", file.path)),
            None if lines > LINES => findings.push(format!("src/{}: {lines} lines", file.path)),
            _ => {}
        }
    }
    report("at most 500 lines", &findings);
}

#[test]
fn banned_words_are_said_only_where_they_may_be() {
    let files = files();
    let mut findings = Vec::new();
    for (word, allowed, reason) in BANS {
        for file in &files {
            match (file.code.contains(word), allowed.contains(&file.path.as_str())) {
                (true, false) => findings.push(format!("src/{}: {word}: {reason}", file.path)),
                (false, true) => findings.push(format!("src/{} no longer says {word}", file.path)),
                _ => {}
            }
        }
    }
    report("banned", &findings);
}

#[test]
fn a_library_is_spoken_with_in_one_part() {
    let mut findings = Vec::new();
    for file in files() {
        for (library, owner, exceptions) in OWNERS {
            let speaks = source::says_path(&file.code, library);
            let excepted = exceptions.iter().any(|(path, _)| *path == file.path);
            if speaks && !file.path.starts_with(owner) && !excepted {
                findings.push(format!("src/{}: {library}", file.path));
            } else if !speaks && excepted {
                findings.push(format!("src/{} no longer says {library}", file.path));
            }
        }
    }
    report("outside the part that owns it", &findings);
}

#[test]
fn nothing_public_hands_out_a_pool_or_a_connection() {
    let mut findings = Vec::new();
    for file in files() {
        for (name, given) in returns(&file.code) {
            if RAW.iter().any(|raw| source::says_word(&given, raw)) {
                findings.push(format!("src/{}: {name} -> {}", file.path, given.trim()));
            }
        }
    }
    report("raw", &findings);
}

#[test]
fn what_operators_decide_is_written_where_it_is_recorded() {
    let statement = Regex::new(DECIDED).expect("a pattern");
    let (files, mut written) = (files(), Vec::new());
    for file in files.iter().filter(|file| !is_test(&file.path)) {
        let tables: BTreeSet<&str> =
            statement.captures_iter(&file.text).filter_map(|found| Some(found.get(1)?.as_str())).collect();
        if !tables.is_empty() {
            written.push((file.path.clone(), tables));
        }
    }
    let known = DECIDERS.iter().map(|(path, tables, _)| {
        let tables: BTreeSet<&str> = tables.iter().copied().collect();
        ((*path).to_owned(), tables)
    });
    // Both ways: a listed one that writes nothing any more fails too.
    assert_eq!(format!("{written:?}"), format!("{:?}", known.collect::<Vec<_>>()));
}

#[test]
fn retrieval_names_no_writer() {
    let mut findings = Vec::new();
    for file in files().iter().filter(|file| file.path.starts_with("retrieval/")) {
        let named = WRITERS.iter().filter(|word| source::says_word(&file.code, word));
        findings.extend(named.map(|word| format!("src/{}: {word}", file.path)));
    }
    report("retrieval only reads", &findings);
}

#[test]
fn the_domain_does_nothing_but_hold() {
    let words = ["async fn", "std::fs", "std::net", "std::process", "std::env", "tokio::", "tracing::"];
    let mut findings = Vec::new();
    for file in files().iter().filter(|file| file.path.starts_with("domain/")) {
        let said = words.iter().filter(|word| file.code.contains(**word));
        findings.extend(said.map(|word| format!("src/{}: {word}", file.path)));
    }
    report("input, output or async in the domain", &findings);
}

#[test]
fn an_import_that_points_up_or_aside_is_seen() {
    let up = "use crate::{domain::ids::TenantId, http::{Problem, auth}};";
    assert_eq!(misdirected("store/handles.rs", up), BTreeSet::from(["http".to_owned()]));
    let aside = "fn f() { crate::pipeline::parse::parse_text(\"\") }";
    assert_eq!(misdirected("retrieval/search.rs", aside), BTreeSet::from(["pipeline".to_owned()]));
    let roundabout = "use super::super::jobs::worker::Workers;";
    assert_eq!(misdirected("retrieval/search.rs", roundabout), BTreeSet::from(["jobs".to_owned()]));
    assert_eq!(misdirected("retrieval/graph/walk.rs", "use super::super::search;"), BTreeSet::new());
    assert_eq!(misdirected("retrieval/mod.rs", "use crate::store::Corpus;"), BTreeSet::new());
}
