//! `docs/isolation.md` names, for every leak, the test that shows it stopped, and `docs/faults.md` for every fault. The
//! names are those of tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

static TEST: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)^\s*#\[(?:test|tokio::test|actix_web::test)(?:\([^)]*\))?\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn (\w+)")
        .expect("a pattern")
});
static CITED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"`(\w+)::(\w+)`").expect("a pattern"));
/// Checks of suites that several back ends run, which are plain functions.
static CHECK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)^pub async fn (\w+)").expect("a pattern"));
/// Tests on services, which are listed by name.
static LISTED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)^async fn (\w+)").expect("a pattern"));

/// Adds the tests below a folder, as `file::test`; a file named `tests.rs` or in a folder `tests` also by its folder.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, found);
            continue;
        }
        let Some(stem) = path.file_stem().filter(|_| path.extension().is_some_and(|kind| kind == "rs"))
        else {
            continue;
        };
        let code = fs::read_to_string(&path).expect("code");
        let stem = stem.to_string_lossy().into_owned();
        let module = if ["tests", "mod"].contains(&stem.as_str()) {
            let folders = path.parent().into_iter().flat_map(Path::components).rev();
            let mut names = folders.map(|name| name.as_os_str().to_string_lossy().into_owned());
            names.find(|name| name != "tests").unwrap_or_default()
        } else {
            stem
        };
        let pattern = match &path {
            _ if module.starts_with("conformance_") => &*CHECK,
            path if path.components().any(|part| part.as_os_str() == "services") => &*LISTED,
            _ => &*TEST,
        };
        found.extend(pattern.captures_iter(&code).map(|name| format!("{module}::{}", &name[1])));
    }
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    tests_below(&root.join("tests"), &mut tests);
    tests_below(&root.join("src"), &mut tests);
    assert!(tests.len() > 300 && tests.contains("isolation_page::every_test_that_a_page_names_is_there"));
    for (page, least) in [("docs/isolation.md", 80), ("docs/faults.md", 25), ("ARCHITECTURE.md", 30)] {
        let text = fs::read_to_string(root.join(page)).expect("a page");
        let cited: BTreeSet<String> =
            CITED.captures_iter(&text).map(|name| format!("{}::{}", &name[1], &name[2])).collect();
        // A name with a capital letter is a type's.
        let cited: Vec<&String> = cited
            .iter()
            .filter(|name| !name.contains(char::is_uppercase) && name.matches('_').count() > 2)
            .collect();
        assert!(cited.len() >= least, "{page} names {} tests", cited.len());
        let missing: Vec<_> = cited.into_iter().filter(|name| !tests.contains(*name)).collect();
        assert!(missing.is_empty(), "{page} names tests that are not there: {missing:?}");
    }
}
