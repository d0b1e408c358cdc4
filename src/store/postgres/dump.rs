//! The whole database as one stream, of one snapshot, and back.
//!
//! Only the role `backup` reads past row-level security, and it may log in only as long as a [`Snapshot`] lives.
//! Should a crash leave its login open, the next start of a server closes it.
//!
//! **Invariant:** a dump is of the snapshot that was counted and asked before it.
//! **Invariant:** what only helps a server that ran (leases, how far its indexes came, the history that they follow)
//! does not come back.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use uuid::Uuid;

use super::error::failed;
use super::roles::Role;
use super::secrets::RoleSecrets;
use crate::store::error::StoreError;

/// Key of the advisory lock under which one backup at a time runs.
const LOCK: i64 = 0x6275_6c6b_6261_636b;
/// Tables whose rows are of use only to the server that wrote them.
const WITHOUT_ROWS: [&str; 2] = ["public.consumer", "public.outbox"];
/// The last bytes of a program's complaints that are told.
const WORDS: usize = 2000;

/// How the database is reached for a backup or a restore.
#[derive(Clone)]
pub struct DumpAccess {
    /// The administrator: the private server's superuser, or the operator's own address.
    pub admin: PgConnectOptions,
    /// The database.
    pub database: String,
    /// The roles' secrets.
    pub secrets: Arc<RoleSecrets>,
    /// Where `pg_dump` and `pg_restore` are: a folder with `bin` and `lib`.
    pub programs: PathBuf,
}

/// An uploaded file that a row names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, sqlx::FromRow)]
pub struct NamedUpload {
    /// Whose.
    pub tenant_id: Uuid,
    /// Where.
    pub namespace_id: Uuid,
    /// Which.
    pub upload_id: Uuid,
}

impl DumpAccess {
    /// A role's address.
    fn role(&self, role: Role) -> PgConnectOptions {
        let secret = self.secrets.of(role);
        self.admin
            .clone()
            .username(role.name())
            .password(secret.expose_secret())
            .database(&self.database)
            .disable_statement_logging()
    }

    fn administrator(&self) -> PgConnectOptions {
        self.admin.clone().database(&self.database).disable_statement_logging()
    }

    /// A program of PostgreSQL's, which connects as this role. Its environment holds the role's secret and nothing
    /// else, which its own user alone can see.
    fn program(&self, name: &str, role: Role) -> Command {
        let mut command = Command::new(self.programs.join("bin").join(name));
        let address = self.role(role);
        command
            .env_clear()
            .env("LD_LIBRARY_PATH", self.programs.join("lib"))
            .env("PGUSER", role.name())
            .env("PGPASSWORD", self.secrets.of(role).expose_secret())
            .env("PGDATABASE", &self.database)
            .env("PGPORT", address.get_port().to_string())
            .env("PGSSLMODE", ssl_mode(address.get_ssl_mode()))
            .env("PGAPPNAME", "bulkhead backup")
            .arg("--no-password");
        match address.get_socket() {
            Some(socket) => command.env("PGHOST", socket),
            None => command.env("PGHOST", address.get_host()),
        };
        command
    }

    /// Whether the database has a table of ours.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be reached.
    pub async fn is_used(&self) -> Result<bool, StoreError> {
        const OPERATION: &str = "restore.look";
        let mut admin = self.administrator().connect().await.map_err(failed(OPERATION))?;
        let used = sqlx::query_scalar(
            "select exists (select from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p'))",
        )
        .fetch_one(&mut admin)
        .await
        .map_err(failed(OPERATION))?;
        admin.close().await.map_err(failed(OPERATION))?;
        Ok(used)
    }

    /// Has a dump written into the empty database from what is written to the answer.
    ///
    /// # Errors
    /// When `pg_restore` cannot be started.
    pub fn restore(&self) -> io::Result<Loading> {
        let mut command = self.program("pg_restore", Role::Owner);
        command.args(["--single-transaction", "--exit-on-error", "--dbname"]).arg(&self.database);
        let mut program = Program::start("pg_restore", command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
        Ok(Loading { input: program.child.stdin.take(), program })
    }

    /// Gives back what a server held when the snapshot was taken, and looks at the tables as the planner should.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn settle(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "restore.settle";
        let mut dispatch = self.role(Role::Dispatch).connect().await.map_err(failed(OPERATION))?;
        sqlx::query(
            "update job set state = 'queued', lease = null, leased_until = null, leased_by = null
             where state = 'running'",
        )
        .execute(&mut dispatch)
        .await
        .map_err(failed(OPERATION))?;
        dispatch.close().await.map_err(failed(OPERATION))?;
        let mut owner = self.role(Role::Owner).connect().await.map_err(failed(OPERATION))?;
        sqlx::query("analyze").execute(&mut owner).await.map_err(failed(OPERATION))?;
        owner.close().await.map_err(failed(OPERATION))
    }
}

fn ssl_mode(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
}

/// A moment of the database that can be read as often as needed. To be [closed](Snapshot::close).
pub struct Snapshot {
    access: DumpAccess,
    admin: PgConnection,
    reader: PgConnection,
    id: String,
}

impl Snapshot {
    /// Opens the role's login and takes a snapshot. `None`: another backup runs.
    ///
    /// # Errors
    /// `Unavailable`, or what keeps the role from reading.
    pub async fn take(access: &DumpAccess) -> Result<Option<Self>, StoreError> {
        const OPERATION: &str = "backup.snapshot";
        let mut admin = access.administrator().connect().await.map_err(failed(OPERATION))?;
        let is_free: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut admin)
            .await
            .map_err(failed(OPERATION))?;
        if !is_free {
            admin.close().await.map_err(failed(OPERATION))?;
            return Ok(None);
        }
        sqlx::query("alter role bulkhead_backup login")
            .execute(&mut admin)
            .await
            .map_err(failed(OPERATION))?;
        let taken = async {
            let mut reader = access.role(Role::Backup).connect().await?;
            let id = Self::begin(&mut reader).await?;
            Ok((reader, id))
        };
        match taken.await {
            Ok((reader, id)) => Ok(Some(Self { access: access.clone(), admin, reader, id })),
            Err(error) => {
                shut(admin).await?;
                Err(failed(OPERATION)(error))
            }
        }
    }

    async fn begin(reader: &mut PgConnection) -> Result<String, sqlx::Error> {
        sqlx::query("begin isolation level repeatable read read only").execute(&mut *reader).await?;
        sqlx::query_scalar("select pg_export_snapshot()").fetch_one(reader).await
    }

    /// Moves to the present moment.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        const OPERATION: &str = "backup.snapshot";
        sqlx::query("commit").execute(&mut self.reader).await.map_err(failed(OPERATION))?;
        self.id = Self::begin(&mut self.reader).await.map_err(failed(OPERATION))?;
        Ok(())
    }

    /// Every upload that a row names, in order.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn uploads(&mut self) -> Result<Vec<NamedUpload>, StoreError> {
        sqlx::query_as(
            "select tenant_id, namespace_id, upload_id from document_version where upload_id is not null
             order by tenant_id, namespace_id, upload_id",
        )
        .fetch_all(&mut self.reader)
        .await
        .map_err(failed("backup.uploads"))
    }

    /// How many rows there are of what an operator counts, and the newest migration.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn counts(&mut self) -> Result<(BTreeMap<String, i64>, i64), StoreError> {
        const OPERATION: &str = "backup.count";
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select 'tenants', count(*) from tenant where state <> 'deleted'
             union all select 'namespaces', count(*) from namespace
             union all select 'documents', count(*) from document
             union all select 'chunks', count(*) from chunk
             union all select 'embeddings', count(*) from chunk_embedding
             union all select 'uploads', count(*) from document_version where upload_id is not null
             union all select 'audit_events', count(*) from audit_event",
        )
        .fetch_all(&mut self.reader)
        .await
        .map_err(failed(OPERATION))?;
        let schema: i64 = sqlx::query_scalar("select max(version) from _sqlx_migrations where success")
            .fetch_one(&mut self.reader)
            .await
            .map_err(failed(OPERATION))?;
        Ok((rows.into_iter().collect(), schema))
    }

    /// Begins the dump.
    ///
    /// # Errors
    /// When `pg_dump` cannot be started.
    pub fn dump(&self) -> io::Result<Dumping> {
        let mut command = self.access.program("pg_dump", Role::Backup);
        command
            .args(["--format=custom", "--compress=none", "--exclude-extension=*"])
            .args(WITHOUT_ROWS.map(|table| format!("--exclude-table-data={table}")))
            .arg(format!("--snapshot={}", self.id));
        let mut program = Program::start("pg_dump", command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        Ok(Dumping { output: program.child.stdout.take(), program })
    }

    /// Ends the snapshot and closes the role's login.
    ///
    /// # Errors
    /// `Unavailable`; then the next start of a server closes it.
    pub async fn close(self) -> Result<(), StoreError> {
        let ended = self.reader.close().await.map_err(failed("backup.end"));
        shut(self.admin).await?;
        ended
    }
}

async fn shut(mut admin: PgConnection) -> Result<(), StoreError> {
    const OPERATION: &str = "backup.end";
    sqlx::query("alter role bulkhead_backup nologin").execute(&mut admin).await.map_err(failed(OPERATION))?;
    // The lock goes with its connection.
    admin.close().await.map_err(failed(OPERATION))
}

/// A program of PostgreSQL's at work. Killed when it is dropped before its end.
struct Program {
    name: &'static str,
    child: Child,
    complaints: Option<JoinHandle<String>>,
}

impl Program {
    fn start(name: &'static str, command: &mut Command) -> io::Result<Self> {
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let complaints = child.stderr.take().map(|stderr| std::thread::spawn(move || last_words(stderr)));
        Ok(Self { name, child, complaints })
    }

    /// Waits for its end. Its complaints when it failed.
    fn end(mut self) -> Result<(), (&'static str, String)> {
        let status = self.child.wait().map_err(|error| (self.name, error.to_string()))?;
        let words = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        if status.success() { Ok(()) } else { Err((self.name, format!("{status}: {}", words.trim()))) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already, as it should have: then there is nobody to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end, and keeps the last of it.
fn last_words(mut stderr: ChildStderr) -> String {
    let (mut words, mut bytes) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = stderr.read(&mut bytes) {
        words.extend_from_slice(&bytes[..read]);
        let excess = words.len().saturating_sub(WORDS);
        words.drain(..excess);
    }
    String::from_utf8_lossy(&words).into_owned()
}

/// A dump that is being written by `pg_dump`.
pub struct Dumping {
    program: Program,
    output: Option<ChildStdout>,
}

impl Dumping {
    /// Waits for its end.
    ///
    /// # Errors
    /// The program, and what it said.
    pub fn end(self) -> Result<(), (&'static str, String)> {
        drop(self.output);
        self.program.end()
    }
}

impl Read for Dumping {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.output.as_mut().map_or(Ok(0), |output| output.read(bytes))
    }
}

/// A dump that is being read by `pg_restore`.
pub struct Loading {
    program: Program,
    input: Option<ChildStdin>,
}

impl Loading {
    /// Tells it that this was all, and waits for its end.
    ///
    /// # Errors
    /// The program, and what it said.
    pub fn end(self) -> Result<(), (&'static str, String)> {
        drop(self.input);
        self.program.end()
    }
}

impl Write for Loading {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.as_mut().map_or(Err(io::ErrorKind::BrokenPipe.into()), |input| input.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}
