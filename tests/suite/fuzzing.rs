//! The fuzzers' targets over their corpora and over what becomes of them by a few edits.
//!
//! The same functions are driven by coverage in `fuzz/`. A file that a fuzzer found goes to the target's folder in
//! `tests/corpus`, and is read here from then on. `PROPTEST_CASES` says how many edited inputs each target gets.

use std::path::{Path, PathBuf};

use bulkhead::{http, pipeline::parse, tenancy};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// What is done with an input; it panics when a promise is broken.
type Target = fn(&[u8]);

/// What a target is called, in `tests/corpus` and in `fuzz/fuzz_targets`, and what it does.
const TARGETS: [(&str, Target); 10] = [
    ("api_keys", tenancy::fuzz::api_keys),
    ("containers", parse::fuzz::containers),
    ("documents", http::fuzz::documents),
    ("hints", tenancy::fuzz::hints),
    ("messages", http::fuzz::messages),
    ("questions", http::fuzz::questions),
    ("requests", parse::fuzz::requests),
    ("signed_claims", tenancy::fuzz::signed_claims),
    ("texts", parse::fuzz::texts),
    ("tokens", tenancy::fuzz::tokens),
];

/// The longest input, bytes.
const LONGEST: usize = 1 << 16;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// A change of an input.
#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Append(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    // What parsers and readers of names stumble over.
    let token = prop::sample::select(
        [
            &b"\0"[..],
            b"\"",
            b"\\u0000",
            b"\\ud800",
            b"{",
            b"[",
            b"]",
            b"<",
            b"</",
            b"&#0;",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"1e999",
            b"-0",
            b"null",
            b"\r\n",
            b",",
            b"../",
            b".",
            b"\xe2\x80\xae",
        ]
        .map(<[u8]>::to_vec)
        .to_vec(),
    );
    let bytes = prop_oneof![token, vec(any::<u8>(), 1..9)];
    prop_oneof![
        (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (any::<Index>(), bytes).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<Index>(), 1..64_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        (any::<Index>(), 1..32_usize, 1..512_usize)
            .prop_map(|(at, count, times)| Edit::Repeat(at, count, times)),
        any::<Index>().prop_map(Edit::Append),
    ]
}

fn edited(seeds: &[Vec<u8>], first: Index, edits: &[Edit]) -> Vec<u8> {
    let mut data = first.get(seeds).clone();
    for edit in edits {
        let place = |index: &Index| index.index(data.len() + 1);
        match edit {
            Edit::Flip(at, bit) => {
                let at = place(at);
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Edit::Insert(at, bytes) => {
                let at = place(at);
                data.splice(at..at, bytes.iter().copied());
            }
            Edit::Remove(at, count) => {
                let at = place(at);
                data.drain(at..(at + count).min(data.len()));
            }
            Edit::Repeat(at, count, times) => {
                let at = place(at);
                let piece = data[at..(at + count).min(data.len())].repeat(*times);
                data.splice(at..at, piece);
            }
            Edit::Append(other) => data.extend(other.get(seeds)),
        }
        data.truncate(LONGEST);
    }
    data
}

#[test]
fn every_target_keeps_its_promise_over_its_corpus_and_what_is_made_of_it() {
    for (name, target) in TARGETS {
        let seeds: Vec<Vec<u8>> = files(&project().join("tests/corpus").join(name))
            .iter()
            .map(|file| std::fs::read(file).expect("a file"))
            .collect();
        assert!(!seeds.is_empty(), "{name} has no corpus");
        for seed in &seeds {
            target(seed);
        }
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
        let inputs =
            (any::<Index>(), vec(edit(), 0..8)).prop_map(move |(first, edits)| edited(&seeds, first, &edits));
        let verdict = runner.run(&inputs, |data| {
            std::panic::catch_unwind(|| target(&data))
                .map_err(|_| TestCaseError::fail(format!("{name} breaks over {}", data.escape_ascii())))
        });
        verdict.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn every_target_is_driven_by_coverage_too_and_nothing_else_is() {
    let stem = |path: &PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    let names = TARGETS.map(|(name, _)| name.to_owned()).to_vec();
    let driven: Vec<String> = files(&project().join("fuzz/fuzz_targets")).iter().map(stem).collect();
    assert_eq!(driven, names, "fuzz/fuzz_targets");
    let corpora: Vec<String> = files(&project().join("tests/corpus")).iter().map(stem).collect();
    assert_eq!(corpora, names, "tests/corpus");
}
