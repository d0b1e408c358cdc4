//! The postmaster as a process: found, started, awaited, ended.
//!
//! A postmaster is either our child or one that an earlier, killed parent left behind. Both are known
//! by process number *and* start time, so that a number which the kernel gave to somebody else
//! meanwhile is never mistaken for ours.
//!
//! **Invariant:** no signal goes to a process that was not just identified as PostgreSQL in our
//! cluster's folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::error::ServerError;
use super::layout::Layout;
use super::logs;

/// How often files and foreign processes are looked at while waiting.
const GLANCE: Duration = Duration::from_millis(5);
/// How often the health of a process that is not our child is looked at.
const WATCH: Duration = Duration::from_millis(200);
/// How long PostgreSQL has after SIGQUIT; it kills its own children after 5 s.
const IMMEDIATE: Duration = Duration::from_secs(10);

/// A process, distinguished from later ones of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to its start.
    started: u64,
}

impl Identity {
    /// The living process of this number. One that only waits to be reaped is not living.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses, which may contain anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// The path of the running program.
    pub fn program(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// Whether this is PostgreSQL working in `cluster`.
    fn serves(self, cluster: &Path) -> bool {
        let named = self.program().is_some_and(|program| {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The kernel appends this when the file was replaced by an update.
            name.trim_end_matches(" (deleted)") == "postgres"
        });
        let place = fs::read_link(format!("/proc/{}/cwd", self.pid)).ok();
        named && place.is_some() && place == fs::canonicalize(cluster).ok() && self.is_alive()
    }
}

/// What `postmaster.pid` in a cluster points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    /// No file, or no living process of that number.
    Nobody,
    /// PostgreSQL of this cluster.
    Ours(Identity),
    /// Another process, which happens to have the number.
    Foreign(i32),
}

/// Reads `postmaster.pid` and looks who that is.
pub(super) fn trace(cluster: &Path) -> Trace {
    let text = fs::read_to_string(pid_file(cluster)).unwrap_or_default();
    let Some(pid) = first_number(&text) else { return Trace::Nobody };
    match Identity::of(pid) {
        None => Trace::Nobody,
        Some(identity) if identity.serves(cluster) => Trace::Ours(identity),
        Some(_) => Trace::Foreign(pid),
    }
}

pub(super) fn pid_file(cluster: &Path) -> PathBuf {
    cluster.join("postmaster.pid")
}

fn first_number(text: &str) -> Option<i32> {
    text.lines().next()?.trim().parse().ok().filter(|&pid| pid > 1)
}

/// Whether the text of `postmaster.pid` says that the server of this number accepts connections.
fn says_ready(text: &str, pid: i32) -> bool {
    first_number(text) == Some(pid) && text.lines().nth(7).is_some_and(|status| status.trim() == "ready")
}

/// A running postmaster.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub identity: Identity,
    /// Present when it is our child, which must be reaped.
    child: Option<Child>,
}

impl Postmaster {
    /// One that an earlier parent started.
    pub fn adopted(identity: Identity) -> Self {
        Self { identity, child: None }
    }

    /// Starts PostgreSQL without waiting for it.
    pub fn spawn(layout: &Layout) -> Result<Self, ServerError> {
        let log = layout.startup_log();
        let output = File::create(&log).map_err(ServerError::file("write", &log))?;
        let program = layout.program("postgres");
        let child = command(layout, "postgres")
            .arg("-D")
            .arg(&layout.cluster)
            .arg("-c")
            .arg(format!("config_file={}", layout.config_file().display()))
            .stdout(output.try_clone().map_err(ServerError::file("write", &log))?)
            .stderr(output)
            .spawn()
            .map_err(ServerError::file("run", &program))?;
        let identity = child.id().and_then(|pid| Identity::of(i32::try_from(pid).ok()?));
        match identity {
            Some(identity) => Ok(Self { identity, child: Some(child) }),
            None => Err(exited("at once".to_owned(), layout)),
        }
    }

    /// Waits until it accepts connections. May be cancelled.
    pub async fn ready(&mut self, layout: &Layout, limit: Duration) -> Result<(), ServerError> {
        let deadline = Instant::now() + limit;
        let path = pid_file(&layout.cluster);
        loop {
            if says_ready(&fs::read_to_string(&path).unwrap_or_default(), self.identity.pid) {
                return Ok(());
            }
            if let Ok(status) = timeout(GLANCE, self.exited()).await {
                return Err(exited(status, layout));
            }
            if Instant::now() > deadline {
                let log = logs::last_words(&layout.startup_log(), &layout.log_dir);
                return Err(ServerError::NotReady { waited: limit, log });
            }
        }
    }

    /// Waits until it has ended and says how. May be cancelled.
    pub async fn exited(&mut self) -> String {
        if let Some(child) = &mut self.child {
            return match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
        }
        while self.identity.is_alive() {
            sleep(WATCH).await;
        }
        "the process has gone".to_owned()
    }

    /// Ends it: fast shutdown, which rolls transactions back; after `patience` an immediate one, whose
    /// next start recovers from the log; at last by force.
    pub async fn terminate(mut self, layout: &Layout, patience: Duration) -> Result<(), ServerError> {
        for (signal, limit) in
            [(Signal::SIGINT, patience), (Signal::SIGQUIT, IMMEDIATE), (Signal::SIGKILL, IMMEDIATE)]
        {
            // A child is known to be ours, and its number is given to nobody before it is reaped.
            let present = match &self.child {
                Some(child) => child.id().is_some(),
                None => self.identity.serves(&layout.cluster),
            };
            if !present {
                return Ok(());
            }
            if signal != Signal::SIGINT {
                tracing::warn!(pid = self.identity.pid, %signal, "PostgreSQL does not stop; insisting");
            }
            // It may have gone in this very moment, which the wait below notices.
            let _ = kill(Pid::from_raw(self.identity.pid), signal);
            if self.gone_within(limit).await {
                return Ok(());
            }
        }
        Err(ServerError::NotStopped { pid: self.identity.pid })
    }

    async fn gone_within(&mut self, limit: Duration) -> bool {
        if self.child.is_some() {
            return timeout(limit, self.exited()).await.is_ok();
        }
        let deadline = Instant::now() + limit;
        while self.identity.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(GLANCE).await;
        }
        true
    }
}

/// A program of the installation, to be run as PostgreSQL's user with an empty environment, away from
/// the terminal's signals: Ctrl-C is for the parent, which then stops PostgreSQL last.
pub(super) fn command(layout: &Layout, name: &str) -> Command {
    let mut command = Command::new(layout.program(name));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LD_LIBRARY_PATH", layout.install.join("lib"))
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .current_dir(&layout.cluster)
        .stdin(Stdio::null())
        .process_group(0);
    if layout.account.switch {
        command.uid(layout.account.uid).gid(layout.account.gid);
    }
    command
}

fn exited(status: String, layout: &Layout) -> ServerError {
    let log = logs::last_words(&layout.startup_log(), &layout.log_dir);
    ServerError::Exited { status, log }
}

/// Removes a `postmaster.pid` whose number belongs to another process now. PostgreSQL itself would
/// refuse to start as long as that process lives.
pub(super) fn forget(cluster: &Path) -> Result<(), ServerError> {
    let path = pid_file(cluster);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServerError::file("remove the stale", &path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_is_not_postgres() {
        let pid = i32::try_from(std::process::id()).expect("pid");
        let me = Identity::of(pid).expect("alive");
        assert!(me.is_alive());
        assert!(!Identity { pid, started: me.started + 1 }.is_alive());
        let here = std::env::current_dir().expect("folder");
        assert!(!me.serves(&here), "the folder alone is not enough");
    }

    #[test]
    fn a_pid_file_of_another_process_is_foreign() {
        let base = tempfile::tempdir().expect("folder");
        assert_eq!(trace(base.path()), Trace::Nobody);
        let pid = i32::try_from(std::process::id()).expect("pid");
        fs::write(pid_file(base.path()), format!("{pid}\n/somewhere\n")).expect("file");
        assert_eq!(trace(base.path()), Trace::Foreign(pid));
        for damaged in ["", "x\n", "-5\n", "1\n", "999999999\n"] {
            fs::write(pid_file(base.path()), damaged).expect("file");
            assert_eq!(trace(base.path()), Trace::Nobody);
        }
    }

    #[test]
    fn readiness_is_read_from_the_eighth_line_of_the_right_process() {
        let text = "77\n/data\n1\n5432\n/sock\n\n12 34\nready   \n";
        assert!(says_ready(text, 77));
        assert!(!says_ready(text, 78));
        assert!(!says_ready(&text.replace("ready", "starting"), 77));
        assert!(!says_ready("77\n", 77));
    }
}
