//! Documents parsed by real worker processes: the formats' way through the pipe, and the walls.

use std::path::PathBuf;

use bulkhead::{
    domain::document::Parsed,
    pipeline::parse::{Bound, FileType, Found, ParseError, ParseLimits, Parser},
};
use bytes::Bytes;

fn parser(limits: ParseLimits) -> Parser {
    Parser::new(PathBuf::from(env!("CARGO_BIN_EXE_bulkhead")), limits, 2)
}

async fn parse(limits: ParseLimits, file_type: FileType, text: &'static str) -> Result<Parsed, ParseError> {
    parser(limits).parse(file_type, Bytes::from_static(text.as_bytes())).await
}

#[tokio::test]
async fn a_document_goes_through_a_worker_and_comes_back_as_sections() {
    let found =
        parse(ParseLimits::default(), FileType::Html, "<title>T</title><h2>Head</h2><p>Some \"text\".").await;
    let found = found.unwrap();
    assert_eq!(found.title.as_deref(), Some("T"));
    assert_eq!(found.sections.len(), 1);
    assert_eq!(found.sections[0].heading.as_deref(), Some("Head"));
    assert_eq!(found.sections[0].level, 2);
    assert_eq!(found.sections[0].text, "Some \"text\".");
}

#[tokio::test]
async fn a_large_document_passes_the_pipes_whole() {
    let text = "A sentence of some length, with \"quotes\" and\ttabs.\n".repeat(200_000);
    let found = parser(ParseLimits::default()).parse(FileType::Txt, Bytes::from(text.clone())).await.unwrap();
    assert_eq!(found.sections.len(), 1);
    assert_eq!(found.sections[0].text, text.trim_end());
}

#[tokio::test]
async fn a_refusal_comes_back_with_its_reason() {
    let limits = ParseLimits::default();
    assert!(matches!(
        parse(limits, FileType::Txt, "%PDF-1.7").await,
        Err(ParseError::WrongType { expected: FileType::Txt, found: Found::Pdf })
    ));
    assert!(matches!(parse(limits, FileType::Txt, "a\0b").await, Err(ParseError::Binary { offset: 1 })));
    let error = parse(limits, FileType::Json, "[1,").await.unwrap_err();
    assert_eq!(error.to_string(), "the file is damaged: it is not valid JSON (line 1, column 3)");
    assert!(error.is_permanent());
}

#[tokio::test]
async fn empty_and_oversized_uploads_start_no_worker() {
    let limits = ParseLimits { input_bytes: 4, ..ParseLimits::default() };
    let nowhere = Parser::new(PathBuf::from("/nonexistent"), limits, 1);
    assert!(matches!(nowhere.parse(FileType::Txt, Bytes::new()).await, Err(ParseError::Empty)));
    assert!(matches!(
        nowhere.parse(FileType::Txt, Bytes::from_static(b"12345")).await,
        Err(ParseError::TooLarge { what: Bound::Input, limit: 4 })
    ));
    let error = nowhere.parse(FileType::Txt, Bytes::from_static(b"1234")).await.unwrap_err();
    assert!(matches!(error, ParseError::Worker { .. }) && !error.is_permanent());
}

#[tokio::test]
async fn too_little_memory_is_an_error_and_not_a_crash() {
    let limits = ParseLimits { memory_bytes: 400 << 20, ..ParseLimits::default() };
    let text = "[".to_owned() + &"{\"a\":[1,2,3]},".repeat(2_000_000) + "1]";
    let error = parser(limits).parse(FileType::Json, Bytes::from(text)).await.unwrap_err();
    assert!(matches!(error, ParseError::OutOfMemory { .. }), "{error:?}");
    assert!(error.is_permanent());
}

#[tokio::test]
async fn many_documents_at_once_share_a_bounded_number_of_workers() {
    let parser = parser(ParseLimits::default());
    let all = (0..12).map(|i| {
        let parser = parser.clone();
        async move { parser.parse(FileType::Txt, Bytes::from(format!("document {i}"))).await }
    });
    for (i, found) in futures::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(found.unwrap().sections[0].text, format!("document {i}"));
    }
}

/// One fixture, as `scripts/make_fixtures.py` describes it.
#[derive(serde::Deserialize)]
struct Fixture {
    file: String,
    expect: String,
    sentences: Vec<String>,
    absent: Vec<String>,
    why: String,
}

#[tokio::test]
async fn every_fixture_is_read_or_refused_as_its_manifest_says() {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/make_fixtures.py");
    let made = std::process::Command::new("python3").arg(script).arg(folder.path()).status().unwrap();
    assert!(made.success());
    let manifest = std::fs::read(folder.path().join("manifest.json")).unwrap();
    let fixtures: Vec<Fixture> = serde_json::from_slice(&manifest).unwrap();
    assert!(fixtures.len() > 50);
    let parser = parser(ParseLimits { cpu_seconds: 3, wall_seconds: 60, ..ParseLimits::default() });
    let mut wrong = Vec::new();
    for fixture in &fixtures {
        let bytes = std::fs::read(folder.path().join(&fixture.file)).unwrap();
        let file_type = FileType::from_name(&fixture.file).unwrap();
        let started = std::time::Instant::now();
        let outcome = parser.parse(file_type, Bytes::from(bytes)).await;
        println!("{:>7.0?} {}: {}", started.elapsed(), fixture.file, summary(&outcome));
        let fault = match (&outcome, fixture.expect.as_str()) {
            (Ok(_), "refused") => Some("was read".to_owned()),
            (Err(error), "text") => Some(format!("was refused: {error}")),
            (Err(error @ ParseError::Worker { .. }), _) => Some(format!("did not reach a worker: {error:?}")),
            (Ok(parsed), _) => misread(parsed, fixture),
            (Err(_), _) => None,
        };
        wrong.extend(fault.map(|fault| format!("{} ({}) {fault}", fixture.file, fixture.why)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn summary(outcome: &Result<Parsed, ParseError>) -> String {
    match outcome {
        Ok(parsed) => format!("{} sections", parsed.sections.len()),
        Err(error) => error.to_string(),
    }
}

/// What is missing from a document's text, or should not be in it.
fn misread(parsed: &Parsed, fixture: &Fixture) -> Option<String> {
    let mut text = parsed.title.clone().unwrap_or_default();
    for section in &parsed.sections {
        text.push(' ');
        text.push_str(section.heading.as_deref().unwrap_or_default());
        text.push(' ');
        text.push_str(&section.text);
    }
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let missing = fixture.sentences.iter().find(|sentence| !words.contains(*sentence));
    let unwanted = fixture.absent.iter().find(|word| text.contains(*word));
    missing
        .map(|sentence| format!("lacks {sentence:?}"))
        .or_else(|| unwanted.map(|word| format!("holds {word:?}")))
}

/// Workers that misbehave on command. They need the program built with the feature `laboratory`.
#[cfg(feature = "laboratory")]
mod misbehaviour {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_worker_sees_no_environment_no_files_no_network_and_no_descriptors() {
        // A descriptor that is inheritable on purpose: what some C library might leave behind.
        let file = std::fs::File::open(env!("CARGO_BIN_EXE_bulkhead")).unwrap();
        let inheritable = nix::unistd::dup(&file).unwrap();
        let found =
            parse(ParseLimits::default(), FileType::Txt, "bulkhead laboratory: report").await.unwrap();
        drop(inheritable);
        let report = &found.sections[0].text;
        for fact in ["variables 0", "descriptors 4", "file false", "socket false", "thread false"] {
            assert!(report.lines().any(|line| line == fact), "{fact} is missing in:\n{report}");
        }
        assert!(!report.contains("user 0\n") && !report.ends_with("user 0"), "{report}");
    }

    #[tokio::test]
    async fn what_a_library_prints_does_not_reach_the_reply() {
        let found = parse(ParseLimits::default(), FileType::Txt, "bulkhead laboratory: print").await.unwrap();
        assert!(found.sections[0].text.starts_with("variables"));
    }

    #[tokio::test]
    async fn a_parser_that_panics_or_aborts_is_an_error_of_the_document() {
        let limits = ParseLimits::default();
        let panicked = parse(limits, FileType::Txt, "bulkhead laboratory: panic").await.unwrap_err();
        assert!(matches!(panicked, ParseError::Damaged { .. }), "{panicked:?}");
        let aborted = parse(limits, FileType::Txt, "bulkhead laboratory: abort").await.unwrap_err();
        assert!(matches!(aborted, ParseError::Crashed { signal: Some(6) }), "{aborted:?}");
    }

    #[tokio::test]
    async fn a_parser_that_hoards_memory_is_stopped_at_its_limit() {
        let limits = ParseLimits { memory_bytes: 512 << 20, ..ParseLimits::default() };
        let error = parse(limits, FileType::Txt, "bulkhead laboratory: grow").await.unwrap_err();
        assert!(
            matches!(error, ParseError::OutOfMemory { limit_bytes } if limit_bytes == 512 << 20),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_parser_that_computes_for_ever_is_stopped_by_its_processor_time() {
        let limits = ParseLimits { cpu_seconds: 1, wall_seconds: 30, ..ParseLimits::default() };
        let error = parse(limits, FileType::Txt, "bulkhead laboratory: spin").await.unwrap_err();
        assert!(matches!(error, ParseError::TooSlow { seconds: 1 }), "{error:?}");
    }

    #[tokio::test]
    async fn a_parser_that_hangs_is_killed_at_its_deadline_and_blocks_nobody_meanwhile() {
        let limits = ParseLimits { wall_seconds: 1, ..ParseLimits::default() };
        let hanging = parse(limits, FileType::Txt, "bulkhead laboratory: sleep");
        let beat = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::pin!(hanging);
        // One thread serves both: the beat ends first only if waiting for the worker does not hold it.
        tokio::select! {
            biased;
            _ = &mut hanging => panic!("the hanging parser ended before its deadline"),
            () = beat => {}
        }
        let error = hanging.await.unwrap_err();
        assert!(matches!(error, ParseError::Timeout { seconds: 1 }), "{error:?}");
        assert!(!error.is_permanent());
    }

    #[tokio::test]
    async fn dropping_the_call_ends_the_worker() {
        let hanging = parse(ParseLimits::default(), FileType::Txt, "bulkhead laboratory: sleep");
        assert!(tokio::time::timeout(Duration::from_millis(300), hanging).await.is_err());
        for _ in 0..100 {
            if children() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a worker outlived its call");
    }

    /// Workers that sleep, started by this thread.
    fn children() -> usize {
        let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        listed.split_whitespace().count()
    }
}
