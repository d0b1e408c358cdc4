//! A primary and a standby that streams from it, from the programs that set-up brings.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::database::{NAME, connect, install};
use crate::whole::{Folder, PATIENCE};

const ADMINISTRATOR: &str = "administrator";

/// Settings of both. Nothing has to survive a crash of the machine.
const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "shared_buffers=16MB",
    "max_connections=60",
    "fsync=off",
    "wal_retrieve_retry_interval=200ms",
    "wal_receiver_status_interval=1s",
];

/// A program of PostgreSQL's. It refuses to run as root.
fn program(name: &str) -> Command {
    let mut command = Command::new(install().join("bin").join(name));
    command.env_clear().env("LD_LIBRARY_PATH", install().join("lib")).current_dir("/");
    if geteuid().is_root() {
        let user = nobody();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn nobody() -> User {
    User::from_name("nobody").expect("users").expect("every system has it")
}

fn done(mut command: Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}");
}

/// A server of its own data.
pub struct Cluster {
    folder: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    fn new(base: &Path, name: &str) -> Self {
        let folder = base.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        if geteuid().is_root() {
            let user = nobody();
            chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("given");
        }
        Self { folder, process: None }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its data is a copy of another server's, which it follows once it is started.
    pub fn copy(&self, of: &Self) {
        let _none_yet = std::fs::remove_dir_all(self.data());
        let mut copied = program("pg_basebackup");
        copied.arg("-D").arg(self.data()).arg("-h").arg(&of.folder).args(["-U", ADMINISTRATOR]);
        copied.args(["--write-recovery-conf", "--no-sync", "--checkpoint=fast"]);
        done(copied);
    }

    /// It follows another server from now on.
    pub async fn follow(&self, other: &Self) {
        let place = format!("host={} user={ADMINISTRATOR}", other.folder.display());
        self.run(&format!("alter system set primary_conninfo = '{place}'")).await;
        self.run("select pg_reload_conf()").await;
    }

    /// Starts it, as whatever its data says it is.
    pub async fn start(&mut self) {
        let mut command = program("postgres");
        command.arg("-D").arg(self.data());
        command.arg("-c").arg(format!("unix_socket_directories={}", self.folder.display()));
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        self.process = Some(command.spawn().expect("it starts"));
        let end = Instant::now() + PATIENCE;
        while PgConnection::connect_with(&self.administrator()).await.is_err() {
            assert!(Instant::now() < end, "it does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// It is gone at once.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it runs");
        process.wait().expect("it ended");
    }

    /// It ends recovery and takes writes.
    pub fn promote(&self) {
        let mut command = program("pg_ctl");
        command.args(["promote", "--wait", "-D"]).arg(self.data());
        done(command);
    }

    pub fn administrator(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().socket(&self.folder).port(5432);
        options.username(ADMINISTRATOR).database("postgres")
    }

    /// Its place in an address.
    fn place(&self) -> String {
        format!("{}:5432", self.folder.display().to_string().replace('/', "%2F"))
    }

    /// Its administrator's address.
    pub fn url(&self) -> String {
        format!("postgres://{ADMINISTRATOR}@{}/postgres", self.place())
    }

    /// Its place as an address to read from.
    pub fn read_url(&self) -> String {
        format!("postgres://{}", self.place())
    }

    /// A connection that no policy binds, to the servers' database.
    pub async fn superuser(&self) -> PgConnection {
        connect(&self.administrator().database(NAME)).await
    }

    pub async fn run(&self, statement: &str) {
        let mut connection = connect(&self.administrator()).await;
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.expect("done");
        connection.close().await.expect("closed");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = Pid::from_raw(i32::try_from(process.id()).expect("a process id"));
            let _ended = kill(pid, Signal::SIGQUIT);
            let _ended = process.wait();
        }
    }
}

/// A primary, a standby that has each write before it is acknowledged, and a folder for what uses them.
pub struct Pair {
    pub primary: Cluster,
    pub standby: Cluster,
    pub folder: Folder,
}

impl Pair {
    pub async fn start() -> Self {
        let folder = Folder::new();
        let (mut primary, mut standby) = (Cluster::new(&folder.0, "a"), Cluster::new(&folder.0, "b"));
        let mut made = program("initdb");
        made.arg("-D").arg(primary.data()).args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        made.arg(format!("--username={ADMINISTRATOR}"));
        done(made);
        primary.start().await;
        standby.copy(&primary);
        standby.start().await;
        primary.run("alter system set synchronous_standby_names = '*'").await;
        primary.run("select pg_reload_conf()").await;
        Self { primary, standby, folder }
    }

    /// A third server, which follows the primary. Writes wait for neither any more.
    pub async fn third(&self) -> Cluster {
        self.primary.run("alter system set synchronous_standby_names = ''").await;
        self.primary.run("select pg_reload_conf()").await;
        let mut third = Cluster::new(&self.folder.0, "c");
        third.copy(&self.primary);
        third.start().await;
        third
    }

    /// The address of whichever of them is the primary.
    pub fn url(&self) -> String {
        let (a, b) = (self.primary.place(), self.standby.place());
        format!("postgres://{ADMINISTRATOR}@{a},{b}/postgres?target_session_attrs=read-write")
    }
}
