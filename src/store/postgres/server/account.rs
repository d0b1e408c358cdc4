//! The system user that PostgreSQL runs as, and what that user can reach.
//!
//! PostgreSQL refuses to run as root. A parent that is root therefore uses a system user of its own,
//! made at the first start; any other parent runs PostgreSQL as itself.
//!
//! **Invariant:** nothing of an existing user is ever changed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Uid, User};

use super::error::ServerError;

/// The system user of a root parent.
pub(super) const SYSTEM_USER: &str = "bulkhead-postgres";

/// A user that PostgreSQL runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Whether it is another user than the parent, so that a child must switch to it.
    pub switch: bool,
}

impl Account {
    /// Who PostgreSQL runs as, given the cluster that is there, if any: the parent itself, or for
    /// root the owner of the cluster, or else the system user.
    pub fn choose(cluster: &Path) -> Result<Self, ServerError> {
        let me = nix::unistd::geteuid();
        if !me.is_root() {
            let gid = nix::unistd::getegid().as_raw();
            return Ok(Self { uid: me.as_raw(), gid, switch: false });
        }
        if let Ok(owner) = fs::metadata(cluster.join("PG_VERSION"))
            && owner.uid() != 0
        {
            return Ok(Self { uid: owner.uid(), gid: owner.gid(), switch: true });
        }
        let user = match look_up()? {
            Some(user) => user,
            None => create()?,
        };
        Ok(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), switch: true })
    }

    /// The first folder on the way to `path`, or `path` itself, that this account cannot pass.
    /// `path` is absolute and without symbolic links.
    pub fn blocked_at(self, path: &Path) -> Option<PathBuf> {
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter().find(|step| !self.has(step, 0o1)).map(Path::to_path_buf)
    }

    /// Whether the account can read all of the tree at `path`.
    pub fn can_read_tree(self, path: &Path) -> bool {
        let Ok(about) = fs::symlink_metadata(path) else { return false };
        if about.is_dir() {
            self.has(path, 0o5)
                && fs::read_dir(path).is_ok_and(|mut entries| {
                    entries.all(|entry| entry.is_ok_and(|entry| self.can_read_tree(&entry.path())))
                })
        } else {
            about.is_symlink() || self.has(path, 0o4)
        }
    }

    fn has(self, path: &Path, bits: u32) -> bool {
        let Ok(about) = fs::metadata(path) else { return false };
        let granted = if about.uid() == self.uid {
            about.mode() >> 6
        } else if about.gid() == self.gid {
            about.mode() >> 3
        } else {
            about.mode()
        };
        granted & bits == bits
    }

    /// Makes sure that `path` is a folder of this account with mode 0700. One that is there and
    /// belongs to somebody else is refused: in a folder like `/tmp` anybody could have made it first.
    pub fn own_folder(self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) if self.switch => chown(path, Some(self.uid), Some(self.gid))?,
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let about = fs::symlink_metadata(path)?;
        if !about.is_dir() {
            return Err(io::Error::other(format!("{} is not a folder", path.display())));
        }
        if about.uid() == 0 && self.switch {
            // Made by us a moment before a crash that kept us from giving it away.
            chown(path, Some(self.uid), Some(self.gid))?;
        } else if about.uid() != self.uid {
            return Err(io::Error::other(format!("{} belongs to another user", path.display())));
        }
        if about.mode() & 0o777 != 0o700 {
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        Ok(())
    }
}

fn look_up() -> Result<Option<User>, ServerError> {
    User::from_name(SYSTEM_USER).map_err(|errno| ServerError::SystemUser(errno.to_string()))
}

fn create() -> Result<User, ServerError> {
    let shell = "/usr/sbin/nologin";
    // Two useradd at once can make the user twice, the second under another number: it looks for the
    // name before it waits for its own lock.
    let turn = File::open("/etc/passwd")
        .and_then(|file| Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into()))
        .map_err(|error| ServerError::SystemUser(error.to_string()))?;
    if let Some(user) = look_up()? {
        return Ok(user);
    }
    let mut refusals = Vec::new();
    for (program, arguments) in [
        ("useradd", ["--system", "--user-group", "--no-create-home", "--shell", shell]),
        ("adduser", ["--system", "--group", "--no-create-home", "--shell", shell]),
    ] {
        let run = Command::new(program).args(arguments).arg(SYSTEM_USER).stdin(Stdio::null()).output();
        match run {
            Ok(done) => refusals.push(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(error) => refusals.push(format!("{program}: {error}")),
        }
        if let Some(user) = look_up()? {
            tracing::info!(user = SYSTEM_USER, "PostgreSQL runs as a system user of its own");
            return Ok(user);
        }
    }
    drop(turn);
    Err(ServerError::SystemUser(refusals.join("; ")))
}

/// Whether the parent is root.
pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger() -> Account {
        Account { uid: 54_321, gid: 54_321, switch: false }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn a_closed_ancestor_is_found() {
        let base = tempfile::tempdir().expect("folder");
        let base = fs::canonicalize(base.path()).expect("path");
        let inner = base.join("closed/inner");
        fs::create_dir_all(&inner).expect("folders");
        chmod(&base, 0o755);
        chmod(&base.join("closed"), 0o700);
        assert_eq!(stranger().blocked_at(&inner), Some(base.join("closed")));
        chmod(&base.join("closed"), 0o711);
        chmod(&inner, 0o711);
        assert_eq!(stranger().blocked_at(&inner), None);
    }

    #[test]
    fn one_unreadable_file_makes_a_tree_unreadable() {
        let base = tempfile::tempdir().expect("folder");
        chmod(base.path(), 0o755);
        fs::write(base.path().join("file"), "x").expect("file");
        chmod(&base.path().join("file"), 0o644);
        assert!(stranger().can_read_tree(base.path()));
        chmod(&base.path().join("file"), 0o600);
        assert!(!stranger().can_read_tree(base.path()));
    }

    #[test]
    fn a_folder_that_somebody_made_first_is_not_taken() {
        let base = tempfile::tempdir().expect("folder");
        let path = base.path().join("socket");
        fs::create_dir(&path).expect("folder");
        assert!(stranger().own_folder(&path).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        let me = Account { uid: Uid::effective().as_raw(), gid: 0, switch: false };
        assert!(me.own_folder(&link).is_err());
        me.own_folder(&path).expect("own folder");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o700);
    }
}
