//! Makes the cluster at the first start and writes its configuration at every start.
//!
//! **Invariant:** a folder named `postgres` is a whole cluster: it gets that name only when initdb is
//! done. An existing cluster is never made anew.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};

use super::error::ServerError;
use super::install::Programs;
use super::layout::{Layout, write_file};
use super::process::command;
use super::settings::HBA;

/// The superuser of the private cluster, for initdb and extensions only.
pub(super) const SUPERUSER: &str = "bulkhead_superuser";

/// Makes sure that there is a cluster of the installed major version.
pub(super) async fn require(
    layout: &Layout,
    programs: Programs,
    secret: &SecretString,
    durable: bool,
) -> Result<(), ServerError> {
    let version = layout.cluster.join("PG_VERSION");
    match fs::read_to_string(&version) {
        Ok(text) if text.trim() == programs.major.to_string() => Ok(()),
        Ok(text) => Err(ServerError::MajorVersion {
            path: layout.cluster.clone(),
            cluster: text.trim().to_owned(),
            installed: programs.major,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !layout.cluster.exists() => {
            init(layout, secret, durable).await
        }
        Err(error) => Err(ServerError::file("read", &version)(error)),
    }
}

async fn init(layout: &Layout, secret: &SecretString, durable: bool) -> Result<(), ServerError> {
    let fresh = Layout { cluster: layout.cluster.with_extension("new"), ..layout.clone() };
    if fresh.cluster.exists() {
        // An initdb that was interrupted.
        fs::remove_dir_all(&fresh.cluster).map_err(ServerError::file("remove", &fresh.cluster))?;
    }
    layout
        .account
        .own_folder(&fresh.cluster)
        .map_err(ServerError::file("make the folder", &fresh.cluster))?;
    let password = PasswordFile::write(layout, secret)?;
    let program = fresh.program("initdb");
    let done = command(&fresh, "initdb")
        .arg("-D")
        .arg(&fresh.cluster)
        .arg(format!("--username={SUPERUSER}"))
        .arg("--pwfile")
        .arg(&password.0)
        .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
        .args(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"])
        .args(["--data-checksums", "--no-instructions"])
        .args((!durable).then_some("--no-sync"))
        .output()
        .await
        .map_err(ServerError::file("run", &program))?;
    drop(password);
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let log = lines[lines.len().saturating_sub(12)..].join("\n");
        return Err(ServerError::Initdb { path: layout.cluster.clone(), log });
    }
    fs::rename(&fresh.cluster, &layout.cluster)
        .map_err(ServerError::file("name the new cluster", &layout.cluster))?;
    tracing::info!(path = %layout.cluster.display(), "a database cluster was made");
    Ok(())
}

/// The file initdb reads the superuser's password from; gone when this value is.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn write(layout: &Layout, secret: &SecretString) -> Result<Self, ServerError> {
        let path = layout.cluster.with_extension("password");
        let failed = || ServerError::file("write", &path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed())?;
        let guard = Self(path.clone());
        if layout.account.switch {
            fchown(&file, Some(layout.account.uid), Some(layout.account.gid)).map_err(failed())?;
        }
        writeln!(file, "{}", secret.expose_secret()).map_err(failed())?;
        Ok(guard)
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        // Should this fail, the next start finds and removes the file; its mode keeps it private.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether the files say what they should.
pub(super) fn is_configured(layout: &Layout, text: &str) -> bool {
    let same = |path: &Path, wanted: &str| fs::read_to_string(path).is_ok_and(|found| found == wanted);
    same(&layout.config_file(), text) && same(&layout.hba_file(), HBA)
}

/// Writes the configuration. PostgreSQL's user may read it; only the parent may write it.
pub(super) fn configure(layout: &Layout, text: &str) -> Result<(), ServerError> {
    write_file(&layout.config_file(), text, 0o644)?;
    write_file(&layout.hba_file(), HBA, 0o644)
}
