//! The data folder: who may read what, what a server left behind, and what is not ours.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, geteuid};

use crate::domain::finding::{Finding, Report, Severity};
use crate::store::postgres::roles::Role;
use crate::store::qdrant_edge::strangers;

/// Things that are not ours, of which a report tells.
const LISTED: usize = 20;

/// Whoever uses the data folder, by its own file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// A living process.
    Process(u32),
    /// One that ended.
    Gone(u32),
    /// Nobody yet.
    Nobody,
}

/// Who wrote its number into the lock's file last.
pub(super) fn holder(data_dir: &Path) -> Holder {
    let text = fs::read_to_string(data_dir.join("lock")).unwrap_or_default();
    let Some(pid) = text.trim().parse::<u32>().ok().filter(|pid| *pid > 1) else { return Holder::Nobody };
    let alive =
        nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), None) != Err(nix::errno::Errno::ESRCH);
    if alive { Holder::Process(pid) } else { Holder::Gone(pid) }
}

/// Says what is wrong with the files below a data folder, and with the folder of uploads. `false`: there is nothing that could be looked at.
pub(super) fn examine(report: &mut Report, data_dir: &Path, uploads: &Path) -> bool {
    const CHECK: &str = "files.data_dir";
    let about = match fs::metadata(data_dir) {
        Ok(about) if about.is_dir() => about,
        Ok(_) => {
            let what = format!("{} is not a folder", data_dir.display());
            let mend = "Set data_dir to a folder, or move the file away.";
            report.findings.push(Finding::new(
                Severity::Error,
                CHECK,
                what,
                "The server does not start.",
                mend,
            ));
            return false;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = format!("{} is not there yet", data_dir.display());
            let why = "Right before the first start. After it, it means that data_dir names another folder than before.";
            report.findings.push(Finding::new(Severity::Note, CHECK, what, why, "The first start makes it."));
            return false;
        }
        Err(error) => {
            let what = format!("{} cannot be read: {error}", data_dir.display());
            let mend = "Run this command as the server's user, or give the folder to it.";
            report.findings.push(Finding::new(
                Severity::Error,
                CHECK,
                what,
                "The server does not start.",
                mend,
            ));
            return false;
        }
    };
    owner(report, data_dir, &about);
    // The database's own user may pass through it, no more.
    closed(report, CHECK, data_dir, 0o067, "0700", "Others can list and read what lies in it.");
    let documents = "Others can read every tenant's files.";
    closed(report, "files.uploads", uploads, 0o077, "0700", documents);
    closed(
        report,
        "files.shards",
        &data_dir.join("shards"),
        0o077,
        "0700",
        "Others can read every tenant's vectors.",
    );
    let socket = "Others can try operators' credentials on it.";
    closed(report, "files.socket", &data_dir.join("admin.sock"), 0o077, "0600", socket);
    secrets(report, &data_dir.join("secrets"));
    shards(report, &data_dir.join("shards"));
    true
}

fn owner(report: &mut Report, data_dir: &Path, about: &Metadata) {
    let me = geteuid().as_raw();
    if about.uid() != me {
        let place = data_dir.display();
        let what = format!("{place} belongs to user {}, and this is user {me}", about.uid());
        let why =
            "Files that two users make cannot be read by one of them, and the server stops at the first.";
        let mend = "Run server and commands as one user; if the server's is this one:";
        let finding = Finding::new(Severity::Error, "files.data_dir", what, why, mend);
        report.findings.push(finding.typing(format!("chown -R {me} {place}")));
    }
}

/// Says that somebody else may do with a path what nobody else should; one that is not there is not wrong.
fn closed(report: &mut Report, check: &str, path: &Path, forbidden: u32, mode: &str, why: &str) {
    let Ok(about) = fs::symlink_metadata(path) else { return };
    let found = about.mode() & 0o7777;
    if found & forbidden != 0 {
        let place = path.display();
        let what = format!("{place} has mode {found:04o}, and should have {mode}");
        let mend = "Find out whether anybody read it, then close it:";
        let finding = Finding::new(Severity::Error, check, what, why, mend);
        report.findings.push(finding.typing(format!("chmod {mode} {place}")));
    }
}

/// A secret that others can read stops the start; one that is missing is made anew there, and no longer fits.
fn secrets(report: &mut Report, folder: &Path) {
    const CHECK: &str = "files.secrets";
    closed(report, CHECK, folder, 0o077, "0700", "Others can look for secrets in it.");
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in &paths {
        let why = "Whoever has this secret has what it guards: every tenant's data. A server does not start with it.";
        closed(report, CHECK, path, 0o077, "0600", why);
    }
    for (missing, why) in [
        ("api-key-pepper", "Every API key and operators' credential is refused without it."),
        ("token-key.pem", "Tokens that were signed with it are refused, and a new key is made."),
    ] {
        if !paths.iter().any(|path| path.ends_with(missing)) && paths.len() > Role::ALL.len() {
            let what = format!("{} is missing", folder.join(missing).display());
            let mend = "Bring it back from a backup before the next start, which makes a new one.";
            report.findings.push(Finding::new(Severity::Error, CHECK, what, why, mend));
        }
    }
}

fn shards(report: &mut Report, folder: &Path) {
    const CHECK: &str = "files.shards";
    match strangers(folder, LISTED) {
        Ok(found) => report.findings.extend(found.into_iter().map(|path| {
            let place = path.display();
            let why = "Nothing of ours made it. It takes room, and it may be a copy of a tenant's vectors that no deletion \
                       reaches.";
            let mend = "Find out whose it is; then move it away:";
            let finding = Finding::new(Severity::Warning, CHECK, format!("{place} is not of the shards"), why, mend);
            finding.typing(format!("mv {place} SOMEWHERE"))
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => report.skip(CHECK, format!("{}: {error}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn found(data_dir: &Path) -> Vec<(Severity, String, String)> {
        let mut report = Report::default();
        examine(&mut report, data_dir, &data_dir.join("uploads"));
        assert!(report.skipped.is_empty(), "{report:?}");
        let told = |finding: Finding| (finding.severity, finding.what, finding.command.unwrap_or_default());
        report.findings.into_iter().map(told).collect()
    }

    #[test]
    fn what_others_may_read_and_what_is_not_ours_is_named_with_the_line_that_mends_it() {
        let base = tempfile::tempdir().expect("a folder");
        let data = base.path().join("data");
        assert_eq!(found(&data)[0].0, Severity::Note);
        for folder in ["", "uploads", "shards", "secrets"] {
            fs::create_dir(data.join(folder)).expect("made");
            chmod(&data.join(folder), 0o700);
        }
        assert_eq!(found(&data), []);
        let secret = data.join("secrets/audit-key");
        fs::write(&secret, "x").expect("written");
        fs::write(data.join("shards/README"), "x").expect("written");
        for (path, mode) in [(&data, 0o755), (&data.join("uploads"), 0o750), (&secret, 0o644)] {
            chmod(path, mode);
        }
        let found = found(&data);
        for (mode, path, wanted) in [
            ("0755", &data, "chmod 0700"),
            ("0750", &data.join("uploads"), "chmod 0700"),
            ("0644", &secret, "chmod 0600"),
        ] {
            let what = format!("{} has mode {mode}", path.display());
            let (severity, _, command) = found
                .iter()
                .find(|(_, found, _)| found.starts_with(&what))
                .unwrap_or_else(|| panic!("{found:?}"));
            assert_eq!((*severity, command), (Severity::Error, &format!("{wanted} {}", path.display())));
        }
        assert!(
            found.iter().any(|(severity, what, _)| *severity == Severity::Warning && what.contains("README"))
        );
        assert_eq!(found.len(), 4, "{found:?}");
        fs::remove_dir_all(&data).expect("removed");
        fs::write(&data, "x").expect("written");
        assert!(self::found(&data)[0].1.ends_with("is not a folder"));
    }

    #[test]
    fn the_lock_tells_who_held_it_last() {
        let data = tempfile::tempdir().expect("a folder");
        assert_eq!(holder(data.path()), Holder::Nobody);
        fs::write(data.path().join("lock"), std::process::id().to_string()).expect("written");
        assert_eq!(holder(data.path()), Holder::Process(std::process::id()));
        // Beyond what the kernel gives.
        fs::write(data.path().join("lock"), "1073741824").expect("written");
        assert_eq!(holder(data.path()), Holder::Gone(1_073_741_824));
    }
}
