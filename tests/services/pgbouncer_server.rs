//! A `PgBouncer` of a test's own, on the file that `deploy/` has as an example.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

use crate::database::{Database, NAME};
use crate::process::Process;

/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// It has its place in the name of its socket.
const PORT: u16 = 6432;

fn vendor() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor/pgbouncer")
}

/// The program with what it needs; the machine's own where set-up brought none.
fn program() -> Command {
    let program = vendor().join("bin/pgbouncer");
    if !program.exists() {
        return Command::new("pgbouncer");
    }
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", vendor().join("lib"));
    command
}

/// What the tests run against.
///
/// # Errors
/// Why there is none.
pub fn found() -> Result<String, String> {
    let output = program().arg("--version").output();
    let output = output.map_err(|_| "no pgbouncer; `make setup` brings one".to_owned())?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = words.lines().find_map(|line| line.strip_prefix("PgBouncer "));
    version.map(|version| format!("PgBouncer {version}, started by the tests")).ok_or(words)
}

/// A `PgBouncer` before a database, ended with this value.
pub struct PgBouncer {
    folder: TempDir,
    pub process: Process,
}

impl PgBouncer {
    /// One with so many sessions for each role. The servers' database is there already.
    pub async fn start(database: &Database, sessions: u32) -> Self {
        let folder = TempDir::new().expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("opened");
        let roles: Vec<String> = sqlx::query_scalar(USERS)
            .fetch_all(&mut database.superuser().await)
            .await
            .expect("the roles' verifiers");
        assert_eq!(roles.len(), 4);
        std::fs::write(folder.path().join("userlist.txt"), roles.join("\n")).expect("written");
        let settings = configured(folder.path(), &database.server.superuser(), sessions);
        std::fs::write(folder.path().join("pgbouncer.ini"), settings).expect("written");
        let process = run(folder.path());
        Self { folder, process }
    }

    /// Its address, as `database.pooler.url` has it.
    pub fn url(&self) -> String {
        format!("postgres://{}:{PORT}", self.folder.path().display().to_string().replace('/', "%2F"))
    }

    /// Another's address through it.
    pub fn before(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.socket(self.folder.path()).port(PORT).statement_cache_capacity(0).extra_float_digits(None)
    }

    /// Another one in its place.
    pub fn restart(&mut self) {
        for left in [".s.PGSQL.6432", ".s.PGSQL.6432.lock"] {
            let _none = std::fs::remove_file(self.folder.path().join(left));
        }
        self.process = run(self.folder.path());
    }
}

/// As docs/services.md tells.
const USERS: &str = r#"select format('"%s" "%s"', rolname, rolpassword) from pg_authid
    where rolname in ('bulkhead_app', 'bulkhead_auth', 'bulkhead_dispatch', 'bulkhead_control') order by 1"#;

/// The example with places of a test's own and without TLS.
fn configured(folder: &Path, database: &PgConnectOptions, sessions: u32) -> String {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/pgbouncer.ini");
    let mut text = std::fs::read_to_string(example).expect("the example");
    let socket = database.get_socket().expect("a Unix socket");
    let place = format!("host={} port={} dbname={NAME}", socket.display(), database.get_port());
    for (setting, value) in [
        (NAME, place),
        ("listen_addr", String::new()),
        ("unix_socket_dir", folder.display().to_string()),
        ("auth_file", folder.join("userlist.txt").display().to_string()),
        ("client_tls_sslmode", "disable".to_owned()),
        ("client_tls_cert_file", String::new()),
        ("client_tls_key_file", String::new()),
        ("server_tls_sslmode", "disable".to_owned()),
        ("server_tls_ca_file", String::new()),
        ("default_pool_size", sessions.to_string()),
    ] {
        let start = format!("\n{setting} =");
        let from = text.find(&start).unwrap_or_else(|| panic!("{setting} is in the example"));
        let to = text[from + 1..].find('\n').expect("a line") + from + 1;
        text.replace_range(from..to, &format!("{start} {value}"));
    }
    text
}

fn run(folder: &Path) -> Process {
    let mut command = program();
    if nix::unistd::geteuid().is_root() {
        // It refuses to run as root, and the private database lets nobody else near its socket.
        command.arg("--user=bulkhead-postgres");
    }
    command.arg("--quiet").arg(folder.join("pgbouncer.ini"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process::start(&mut command);
    let socket = folder.join(format!(".s.PGSQL.{PORT}"));
    process.answers(PATIENCE, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    process
}
