//! Where programs, cluster, socket, configuration and logs of the private PostgreSQL are.
//!
//! Usually all is in the data folder. When the parent is root and the system user cannot reach that
//! folder (a checkout below a closed home, say), programs and cluster go below
//! [`ServerSettings::relocation`], and the file `postgres-location` in the data folder says so, for
//! ever: a later start must not make a second, empty cluster.
//!
//! **Invariant:** what the PostgreSQL user may write (cluster, socket, logs) is apart from what only
//! the parent may write (configuration, secrets, lock).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::ServerPaths;
use super::account::{Account, is_root};
use super::error::ServerError;
use super::install;
use super::settings::ServerSettings;

/// The longest path of a Unix socket, in bytes, without the closing NUL.
const SOCKET_PATH_MAX: usize = 107;
/// The name PostgreSQL gives its socket for port 5432.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The resolved places.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Who PostgreSQL runs as.
    pub account: Account,
    /// Programs, in a place that account can read.
    pub install: PathBuf,
    /// The folder of the cluster.
    pub cluster: PathBuf,
    /// The folder of the socket, mode 0700.
    pub socket_dir: PathBuf,
    /// PostgreSQL's log files.
    pub log_dir: PathBuf,
    /// Configuration, written by the parent.
    pub config_dir: PathBuf,
    /// The parent's secrets.
    pub secrets_dir: PathBuf,
}

impl Layout {
    /// Decides and creates the folders. Blocking.
    pub fn resolve(paths: &ServerPaths, settings: &ServerSettings) -> Result<Self, ServerError> {
        let data_dir = fs::canonicalize(&paths.data_dir)
            .map_err(ServerError::file("find the data folder", &paths.data_dir))?;
        let record = data_dir.join("postgres-location");
        let recorded = read_record(&record)?;
        let home = recorded.clone().unwrap_or_else(|| data_dir.clone());
        let account = Account::choose(&home.join("postgres"))?;
        let home = match recorded {
            None if account.switch => reachable_home(&data_dir, account, &record, settings)?,
            _ => home,
        };
        let install = install::reachable(&paths.install, account, &settings.relocation)?;

        let layout = Self {
            account,
            install,
            cluster: home.join("postgres"),
            socket_dir: socket_folder(&home, &data_dir, account)?,
            log_dir: home.join("postgres-logs"),
            config_dir: home.join("postgres-config"),
            secrets_dir: data_dir.join("secrets"),
        };
        account
            .own_folder(&layout.log_dir)
            .map_err(ServerError::file("prepare the log folder", &layout.log_dir))?;
        make_folder(&layout.config_dir, 0o755)?;
        Ok(layout)
    }

    /// A program of the installation.
    pub fn program(&self, name: &str) -> PathBuf {
        self.install.join("bin").join(name)
    }

    pub fn config_file(&self) -> PathBuf {
        self.config_dir.join("postgresql.conf")
    }

    pub fn hba_file(&self) -> PathBuf {
        self.config_dir.join("pg_hba.conf")
    }

    /// Where the programs print before their own log is open.
    pub fn startup_log(&self) -> PathBuf {
        self.config_dir.join("startup.log")
    }
}

/// The folder for the cluster of an account that is not the parent: the data folder, opened for the
/// account's group when it was closed to all, or a folder below the relocation.
fn reachable_home(
    data_dir: &Path,
    account: Account,
    record: &Path,
    settings: &ServerSettings,
) -> Result<PathBuf, ServerError> {
    let about = fs::metadata(data_dir).map_err(ServerError::file("read", data_dir))?;
    if account.blocked_at(data_dir).as_deref() == Some(data_dir)
        && about.uid() == 0
        && about.mode() & 0o777 == 0o700
    {
        open_for(data_dir, account)?;
    }
    let Some(blocked) = account.blocked_at(data_dir) else {
        return Ok(data_dir.to_owned());
    };
    let home = settings.relocation.join(short_hash(data_dir.as_os_str().as_bytes()));
    make_folder(&settings.relocation, 0o755)?;
    make_folder(&home, 0o700)?;
    open_for(&home, account)?;
    if let Some(blocked) = account.blocked_at(&home) {
        let closed = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(ServerError::file("let PostgreSQL's user pass", &blocked)(closed));
    }
    write_file(record, &home.to_string_lossy(), 0o600)?;
    tracing::info!(
        blocked = %blocked.display(), home = %home.display(),
        "PostgreSQL's system user cannot reach the data folder; its cluster is placed elsewhere"
    );
    Ok(home)
}

/// Lets the account, and nobody else, pass through a folder of root.
fn open_for(folder: &Path, account: Account) -> Result<(), ServerError> {
    chown(folder, None, Some(account.gid))
        .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o710)))
        .map_err(ServerError::file("let PostgreSQL's user pass", folder))
}

fn read_record(record: &Path) -> Result<Option<PathBuf>, ServerError> {
    match fs::read_to_string(record) {
        Ok(text) => Ok(Some(PathBuf::from(text.trim_end()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ServerError::file("read", record)(error)),
    }
}

/// The first folder in which the socket's path is short enough, which the account can reach, and
/// which nobody else holds.
fn socket_folder(home: &Path, data_dir: &Path, account: Account) -> Result<PathBuf, ServerError> {
    let name = format!("bulkhead-{}", short_hash(data_dir.as_os_str().as_bytes()));
    let mut candidates = vec![home.join("postgres-socket")];
    if is_root() {
        candidates.push(Path::new("/run").join(&name));
    } else if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
        candidates.push(PathBuf::from(runtime).join(&name));
    }
    candidates.push(Path::new("/tmp").join(format!("{name}-{}", account.uid)));

    let mut refusals = Vec::new();
    for folder in candidates {
        if folder.join(SOCKET_NAME).as_os_str().len() > SOCKET_PATH_MAX {
            refusals.push(format!("{} is too long", folder.display()));
        } else if let Some(blocked) = folder.parent().and_then(|parent| account.blocked_at(parent)) {
            refusals.push(format!("{} cannot be passed", blocked.display()));
        } else {
            match account.own_folder(&folder) {
                Ok(()) => return Ok(folder),
                Err(error) => refusals.push(format!("{}: {error}", folder.display())),
            }
        }
    }
    Err(ServerError::Socket(refusals.join("; ")))
}

/// 48 bits of a hash, in hexadecimal digits.
pub(super) fn short_hash(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..6])
}

/// Makes a folder of the parent's own with exactly this mode, unless it is there.
pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), ServerError> {
    let failed = || ServerError::file("make the folder", path);
    match DirBuilder::new().mode(0o700).create(path) {
        // The mode is set afterwards because the umask takes from the one given to create.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(failed()(error)),
    }
}

/// Writes a file whole or not at all, with exactly this mode.
pub(super) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), ServerError> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)
        .and_then(|()| fs::set_permissions(&fresh, Permissions::from_mode(mode)))
        .and_then(|()| fs::File::open(&fresh)?.sync_all())
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(ServerError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Account {
        let uid = nix::unistd::geteuid().as_raw();
        Account { uid, gid: nix::unistd::getegid().as_raw(), switch: false }
    }

    #[test]
    fn a_socket_in_a_deep_folder_moves_to_a_short_one_of_our_own() {
        let base = tempfile::tempdir().expect("folder");
        let shallow = socket_folder(base.path(), base.path(), me()).expect("shallow");
        assert_eq!(shallow, base.path().join("postgres-socket"));

        let deep = base.path().join("x".repeat(90));
        fs::create_dir(&deep).expect("deep folder");
        let short = socket_folder(&deep, &deep, me()).expect("short");
        assert!(short.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_MAX);
        let about = fs::metadata(&short).expect("there");
        assert_eq!((about.mode() & 0o777, about.uid()), (0o700, me().uid));
        assert_eq!(socket_folder(&deep, &deep, me()).expect("again"), short);
        fs::remove_dir(&short).expect("cleaned");
    }

    #[test]
    fn the_record_of_a_relocation_is_read_back() {
        let base = tempfile::tempdir().expect("folder");
        let record = base.path().join("postgres-location");
        assert_eq!(read_record(&record).expect("absent"), None);
        write_file(&record, "/somewhere/else", 0o600).expect("written");
        assert_eq!(read_record(&record).expect("there"), Some(PathBuf::from("/somewhere/else")));
    }
}
