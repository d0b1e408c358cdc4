//! Files of every format, damaged at random, read by real worker processes: each gets text or a reason, in time.
//!
//! `PROPTEST_CASES` says how many damaged files there are.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use bulkhead::pipeline::parse::{FileType, ParseError, ParseLimits, Parser};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::Value;

/// Damaged files where the environment says nothing.
const CASES: u32 = 64;
/// What a worker may take before it is ended, seconds.
const WALL_SECONDS: u64 = 5;
/// Ending a worker and starting the next takes time beside other tests.
const MARGIN_SECONDS: u64 = 20;

/// Right files of every format, made for this run.
fn files() -> Vec<(FileType, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/make_fixtures.py");
    let made = Command::new("python3").arg(script).arg(folder.path()).status().expect("python3");
    assert!(made.success());
    let manifest = std::fs::read(folder.path().join("manifest.json")).expect("a manifest");
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).expect("JSON");
    let right = manifest.iter().filter(|entry| entry["expect"] == "text");
    let files: Vec<_> = right
        .map(|entry| {
            let name = entry["file"].as_str().expect("a name");
            let bytes = std::fs::read(folder.path().join(name)).expect("a file");
            (FileType::from_name(name).expect("a format"), bytes)
        })
        .collect();
    for format in FileType::ALL {
        assert!(files.iter().any(|(of, _)| *of == format), "no file of {format:?}");
    }
    files
}

/// Damages a file: bytes changed, a stretch removed or repeated, the end cut off.
fn damaged(
    bytes: &[u8],
    changes: &[(Index, u8)],
    stretch: Option<(Index, usize, bool)>,
    cut: Option<Index>,
) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, with) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *with;
    }
    if let Some((at, count, again)) = stretch {
        let at = at.index(bytes.len());
        let end = (at + count).min(bytes.len());
        if again {
            let piece = bytes[at..end].repeat(4);
            bytes.splice(at..at, piece);
        } else {
            bytes.drain(at..end);
        }
    }
    if let Some(at) = cut.filter(|_| !bytes.is_empty()) {
        bytes.truncate(at.index(bytes.len()));
    }
    bytes
}

#[test]
fn a_damaged_file_of_any_format_gets_text_or_a_reason_in_time() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let limits = ParseLimits { wall_seconds: WALL_SECONDS, cpu_seconds: 3, ..ParseLimits::default() };
    let parser = Parser::new(PathBuf::from(env!("CARGO_BIN_EXE_bulkhead")), limits, 2);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 50, ..Config::default() };
    let stretch = prop::option::of((any::<Index>(), 1..200_usize, any::<bool>()));
    let damage =
        (vec((any::<Index>(), any::<u8>()), 0..6), stretch, prop::option::weighted(0.2, any::<Index>()));
    let files = files();
    let verdict =
        TestRunner::new(config).run(&(any::<Index>(), damage), |(file, (changes, stretch, cut))| {
            let (format, bytes) = file.get(&files);
            let bytes = damaged(bytes, &changes, stretch, cut);
            let begun = Instant::now();
            let outcome = runtime.block_on(parser.parse(*format, bytes.into()));
            prop_assert!(begun.elapsed().as_secs() < WALL_SECONDS + MARGIN_SECONDS, "{:?}", begun.elapsed());
            match outcome {
                // The worker did its work, or was ended for what it did; the machine is not at fault.
                Err(error @ (ParseError::Unconfined | ParseError::Worker { .. })) => {
                    Err(TestCaseError::fail(format!("{format:?}: {error}")))
                }
                Err(_) | Ok(_) => Ok(()),
            }
        });
    verdict.unwrap_or_else(|error| panic!("{error}"));
}
