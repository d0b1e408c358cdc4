//! The PostgreSQL programs: whether they are whole, which version they are, and a copy of them for a
//! system user that cannot read the original.
//!
//! **Invariant:** an installation is never changed, only copied.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use super::account::Account;
use super::error::ServerError;
use super::layout::make_folder;

/// What the programs say about themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Programs {
    /// 18 for 18.4.
    pub major: u32,
    /// Whether the write-ahead log can be compressed with LZ4.
    pub lz4: bool,
}

/// Whether these programs can be used. Blocking, a few milliseconds.
///
/// # Errors
/// [`ServerError::Missing`], `Version` or `File`, each with what to do.
pub fn inspect(install: &Path) -> Result<(), ServerError> {
    if !install.join("bin/postgres").exists() {
        return Err(ServerError::Missing(install.join("bin/postgres")));
    }
    programs(install).map(drop)
}

/// Asks the programs for their version. Blocking, a few milliseconds.
pub(super) fn programs(install: &Path) -> Result<Programs, ServerError> {
    let postgres = install.join("bin/postgres");
    let found = ask(&postgres, install, "--version").map_err(ServerError::file("run", &postgres))?;
    let (major, minor) = parse_version(&found).unwrap_or((0, 0));
    // The builtin locale and the lock on ALTER SYSTEM came with 17.
    if major < 17 || (major == 17 && minor < 6) {
        return Err(ServerError::Version { found });
    }
    // pg_config is not always installed; without it the log stays uncompressed.
    let lz4 = ask(&install.join("bin/pg_config"), install, "--configure")
        .is_ok_and(|options| options.contains("--with-lz4"));
    Ok(Programs { major, lz4 })
}

/// `postgres (PostgreSQL) 18.4` to (18, 4).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let (major, minor) = number.split_once('.')?;
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, digits.parse().ok()?))
}

fn ask(program: &Path, install: &Path, option: &str) -> io::Result<String> {
    let done = Command::new(program)
        .arg(option)
        .env_clear()
        .env("LD_LIBRARY_PATH", install.join("lib"))
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// The installation as the account can use it: itself, or a copy below `relocation` that is made once
/// for each content. Blocking.
pub(super) fn reachable(install: &Path, account: Account, relocation: &Path) -> Result<PathBuf, ServerError> {
    let found = fs::canonicalize(install).map_err(|_| ServerError::Missing(install.join("bin/postgres")))?;
    for program in ["bin/postgres", "bin/initdb"] {
        let path = found.join(program);
        if !fs::metadata(&path).is_ok_and(|about| about.is_file() && about.mode() & 0o111 != 0) {
            return Err(ServerError::Missing(path));
        }
    }
    let libraries = bundled_libraries(&found);
    let mut needed = std::iter::once(&found).chain(&libraries);
    if !account.switch || needed.all(|tree| account.blocked_at(tree).is_none() && account.can_read_tree(tree))
    {
        return Ok(found);
    }
    let failed = ServerError::file("copy PostgreSQL's programs from", &found);
    let mut files = Vec::new();
    let mut print = Sha256::new();
    if let Err(error) = list(&found, &found, &mut files, &mut print) {
        return Err(failed(error));
    }
    make_folder(relocation, 0o755)?;
    let copy = relocation.join(format!("postgresql-{}", hex::encode(&print.finalize()[..6])));
    if !copy.is_dir() {
        let fresh = relocation.join(format!(".postgresql-{}", std::process::id()));
        if let Err(error) = copy_files(&found, &files, &libraries, &fresh, &copy) {
            return Err(failed(error));
        }
        tracing::info!(
            from = %found.display(), to = %copy.display(),
            "PostgreSQL's system user cannot read its programs; they were copied"
        );
    }
    Ok(copy)
}

/// Lists what a server needs, relative to `base`, and takes a print of names, sizes and times.
fn list(base: &Path, folder: &Path, files: &mut Vec<PathBuf>, print: &mut Sha256) -> io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        let about = fs::metadata(&path)?;
        if about.is_dir() {
            if path != base.join("include") {
                list(base, &path, files, print)?;
            }
        } else if path.extension().is_none_or(|extension| extension != "a") {
            let name = path.strip_prefix(base).map_err(io::Error::other)?.to_owned();
            print.update(name.as_os_str().as_bytes());
            print.update(about.len().to_le_bytes());
            print.update(about.mtime().to_le_bytes());
            files.push(name);
        }
    }
    Ok(())
}

/// Folders of shared libraries that the programs look for beside their package, where Python wheels
/// keep them: `<package>.libs`.
fn bundled_libraries(install: &Path) -> Vec<PathBuf> {
    let beside = install.parent().and_then(Path::parent).map(fs::read_dir);
    let mut folders: Vec<PathBuf> = beside
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "libs") && path.is_dir())
        .collect();
    folders.sort();
    folders
}

/// Copies the files and, into `lib` where the loader is told to look, the bundled libraries; `copy`
/// appears whole or not at all.
fn copy_files(
    base: &Path,
    files: &[PathBuf],
    libraries: &[PathBuf],
    fresh: &Path,
    copy: &Path,
) -> io::Result<()> {
    if fresh.exists() {
        fs::remove_dir_all(fresh)?;
    }
    for name in files {
        let to = fresh.join(name);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(base.join(name), &to)?;
        let mode = if name.starts_with("bin") { 0o755 } else { 0o644 };
        fs::set_permissions(&to, Permissions::from_mode(mode))?;
    }
    for folder in libraries {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let to = fresh.join("lib").join(entry.file_name());
            fs::copy(entry.path(), &to)?;
            fs::set_permissions(&to, Permissions::from_mode(0o644))?;
        }
    }
    open_folders(fresh)?;
    match fs::rename(fresh, copy) {
        // Another start was faster with the same content.
        Err(_) if copy.is_dir() => fs::remove_dir_all(fresh),
        done => done,
    }
}

/// Makes the copied folders readable whatever the umask was.
fn open_folders(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_program_prints() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18.4"), Some((18, 4)));
        assert_eq!(parse_version("postgres (PostgreSQL) 17.6 (Debian 17.6-1)"), Some((17, 6)));
        assert_eq!(parse_version("postgres (PostgreSQL) 19beta1"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn an_absent_installation_is_named() {
        let me = Account { uid: 1, gid: 1, switch: false };
        let refused = reachable(Path::new("/nowhere"), me, Path::new("/nowhere"));
        assert!(matches!(refused, Err(ServerError::Missing(_))));
    }

    #[test]
    fn a_copy_has_what_a_server_needs_and_is_readable() {
        let base = tempfile::tempdir().expect("folder");
        let from = base.path().join("from");
        for name in ["bin/postgres", "lib/vector.so", "lib/dull.a", "include/x.h", "share/y"] {
            let path = from.join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(&path, name).expect("file");
        }
        let (mut files, mut print) = (Vec::new(), Sha256::new());
        list(&from, &from, &mut files, &mut print).expect("list");
        let to = base.path().join("to");
        copy_files(&from, &files, &[], &base.path().join("fresh"), &to).expect("copy");
        assert!(to.join("lib/vector.so").exists() && to.join("share/y").exists());
        assert!(!to.join("lib/dull.a").exists() && !to.join("include").exists());
        let mode = |name: &str| fs::metadata(to.join(name)).expect("there").mode() & 0o777;
        assert_eq!((mode("bin"), mode("bin/postgres"), mode("share/y")), (0o755, 0o755, 0o644));
    }
}
