//! PostgreSQL's own log files: a bounded number of them, and their last lines for error messages.
//!
//! **Invariant:** a file that is no regular file is not opened; the folder belongs to another user.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Log files kept. PostgreSQL begins a new one at each start, each day and every 8 MB.
pub(super) const FILES_KEPT: usize = 5;
/// Lines quoted in an error.
const LINES_QUOTED: usize = 12;
/// The part of a file in which these lines are looked for, bytes.
const TAIL: u64 = 8 * 1024;

/// Deletes the oldest files beyond [`FILES_KEPT`].
pub(super) fn prune(folder: &Path) {
    let files = list(folder);
    for path in files.iter().rev().skip(FILES_KEPT) {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(%error, path = %path.display(), "an old log of PostgreSQL stays");
        }
    }
}

/// The last lines of what PostgreSQL printed before and after its log was open.
pub(super) fn last_words(startup: &Path, folder: &Path) -> String {
    let newest = list(folder).pop();
    let mut lines = Vec::new();
    for path in [Some(startup.to_owned()), newest].into_iter().flatten() {
        if let Ok(text) = tail(&path) {
            lines.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        }
    }
    let from = lines.len().saturating_sub(LINES_QUOTED);
    if lines.is_empty() { "(it said nothing)".to_owned() } else { lines[from..].join("\n") }
}

/// Log files, oldest first: their names are their times.
fn list(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    files
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_go_and_the_newest_speaks() {
        let base = tempfile::tempdir().expect("folder");
        let startup = base.path().join("startup");
        assert_eq!(last_words(&startup, base.path()), "(it said nothing)");
        for day in 10..20 {
            fs::write(base.path().join(format!("postgres-202601{day}.log")), format!("day {day}\n"))
                .expect("log");
        }
        fs::write(&startup, "opened\n").expect("startup");
        prune(base.path());
        assert_eq!(list(base.path()).len(), FILES_KEPT);
        assert_eq!(last_words(&startup, base.path()), "opened\nday 19");
    }
}
