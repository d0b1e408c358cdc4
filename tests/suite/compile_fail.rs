//! What must not compile: each file of `tests/compile_fail` is one way around a wall, and `NAME.expected` beside it
//! holds the errors that stop it. `BULKHEAD_BLESS=1` writes them anew.
//!
//! The compiler is run on the library that this test was linked with, so that nothing is built a second time.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The one file that must compile: it shows that the others fail for their own reason.
const CONTROL: &str = "allowed";

/// The folder of compiled libraries, and the newest of ours that is not newer than this test.
fn library() -> (PathBuf, PathBuf) {
    let test = std::env::current_exe().expect("this program");
    let folder = test.parent().expect("a folder").to_owned();
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).expect("a time");
    let linked = changed(&test);
    let libraries = fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let ours = libraries
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libbulkhead-") && name.ends_with(".rlib")
        })
        .filter(|path| changed(path) <= linked);
    let newest = ours.max_by_key(|path| changed(path)).expect("the library that this test was linked with");
    (folder, newest)
}

/// The compiler's errors about a file, one a line: place, code and message.
fn errors(case: &Path, folder: &Path, library: &Path) -> String {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let mut dependencies = OsString::from("dependency=");
    dependencies.push(folder);
    let mut ours = OsString::from("bulkhead=");
    ours.push(library);
    let output = Command::new(compiler)
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--cap-lints=allow"])
        .args(["--error-format=short", "--out-dir"])
        .arg(env!("CARGO_TARGET_TMPDIR"))
        .arg("-L")
        .arg(dependencies)
        .arg("--extern")
        .arg(ours)
        .arg(case)
        .output()
        .expect("the compiler runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let place = format!("{}/", case.parent().expect("a folder").display());
    let lines: Vec<String> =
        said.lines().filter(|line| line.contains(": error")).map(|line| line.replace(&place, "")).collect();
    assert!(output.status.success() == lines.is_empty(), "{}: the compiler said\n{said}", case.display());
    lines.join("\n")
}

/// What is wrong with one case, if anything.
fn fault(case: &Path, folder: &Path, library: &Path) -> Option<String> {
    let name = case.file_stem().unwrap_or_default().to_string_lossy();
    let found = errors(case, folder, library);
    if name == CONTROL {
        return (!found.is_empty()).then(|| format!("{name} must compile:\n{found}"));
    }
    if found.is_empty() {
        return Some(format!("{name} compiles, and must not"));
    }
    let expected = case.with_extension("expected");
    if std::env::var_os("BULKHEAD_BLESS").is_some() {
        fs::write(&expected, format!("{found}\n")).expect("written");
    }
    let known = fs::read_to_string(&expected).unwrap_or_default();
    (known.trim_end() != found).then(|| format!("{name}: expected\n{known}found\n{found}"))
}

#[test]
fn no_way_around_the_walls_compiles() {
    let (folder, library) = library();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let cases: Vec<PathBuf> = fs::read_dir(cases)
        .expect("the cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    assert!(cases.len() > 20, "the cases were not found");
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(fault) = fault(case, &folder, &library) {
                        faults.lock().expect("faults").push(fault);
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().expect("faults");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
