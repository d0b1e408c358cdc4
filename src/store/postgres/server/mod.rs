//! The private PostgreSQL of the embedded profile: a child process that only this server reaches.
//!
//! It is made at the first start (initdb), started, watched, restarted when it dies, and stopped with
//! the server. A parent that is killed leaves it running; the next start finds it by its
//! `postmaster.pid`, and adopts it when it is healthy and set up as it should be, or stops it.
//!
//! ```text
//! data_dir/lock               one process at a time (DataLock)
//!          secrets/           mode 0700: one file of mode 0600 for each role
//!          postgres/          the cluster                     } of PostgreSQL's own user
//!          postgres-socket/   mode 0700, no TCP               } when the parent is root
//!          postgres-logs/     bounded, without any data       }
//!          postgres-config/   written by the parent at each start
//!          postgres-location  only if the cluster had to be placed elsewhere
//! ```
//!
//! **Invariant:** reached by the Unix socket and a role's secret only. The superuser serves initdb and
//! [`bootstrap`](mod@super::bootstrap) and nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

mod account;
mod cluster;
mod error;
mod install;
mod layout;
mod lock;
mod logs;
mod process;
mod settings;
mod supervisor;

pub use error::ServerError;
pub use install::inspect;
pub use lock::{DataLock, LockError};
pub use settings::ServerSettings;

use super::RoleAddresses;
use super::bootstrap::{self, Bootstrapped, ForeignSecrets};
use super::roles::Role;
use super::secrets::{self, Entropy, RoleSecrets};
use layout::Layout;
use process::{Postmaster, Trace};
use supervisor::Supervisor;

/// How long an old server may take to show that it is healthy before it is stopped.
const ADOPTION: Duration = Duration::from_secs(3);

/// How long the sessions of a killed postmaster are waited for.
const ORPHANS: Duration = Duration::from_secs(10);

/// Where the private PostgreSQL finds its programs and keeps its data.
#[derive(Debug, Clone)]
pub struct ServerPaths {
    /// The programs: a folder with `bin`, `lib` and `share`.
    pub install: PathBuf,
    /// The server's data folder, the one the [`DataLock`] is for.
    pub data_dir: PathBuf,
}

/// What the private PostgreSQL is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// It accepts connections.
    Running,
    /// It ended and is being started again.
    Restarting {
        /// How it ended.
        reason: String,
    },
    /// Starting again failed. It is tried again for ever, at growing intervals.
    Down {
        /// Why.
        reason: String,
    },
}

/// A running private PostgreSQL. Dropped without [`PrivateServer::stop`] it runs on, unwatched, and
/// the next start adopts it.
#[derive(Debug)]
pub struct PrivateServer {
    layout: Layout,
    secrets: Arc<RoleSecrets>,
    superuser: SecretString,
    pid: i32,
    adopted: bool,
    state: watch::Receiver<ServerState>,
    stop: oneshot::Sender<()>,
    watch: JoinSet<Result<(), ServerError>>,
    _lock: DataLock,
}

impl PrivateServer {
    /// Starts PostgreSQL, or adopts the one that runs, and returns when it accepts connections.
    /// Makes the cluster and the secrets when they are missing.
    ///
    /// # Errors
    /// See [`ServerError`]; those about the programs quote the last lines of their log.
    pub async fn start(
        paths: &ServerPaths,
        settings: &ServerSettings,
        entropy: &dyn Entropy,
        lock: &DataLock,
    ) -> Result<Self, ServerError> {
        let asked = std::fs::canonicalize(&paths.data_dir)
            .map_err(ServerError::file("find the data folder", &paths.data_dir))?;
        if asked != lock.data_dir() {
            let held = lock.data_dir().to_owned();
            return Err(ServerError::OtherLock { held, data_dir: asked });
        }
        let layout = {
            let (paths, settings) = (paths.clone(), settings.clone());
            let made = tokio::task::spawn_blocking(move || Layout::resolve(&paths, &settings));
            made.await.map_err(|_| ServerError::WatchLost)??
        };
        let superuser = secrets::load_or_create(&layout.secrets_dir, cluster::SUPERUSER, entropy)?;
        let secrets = Arc::new(RoleSecrets::load_or_create(&layout.secrets_dir, entropy)?);

        let programs = install::programs(&layout.install)?;
        cluster::require(&layout, programs, &superuser, settings.durable).await?;
        let configuration = settings.render(&layout, programs.lz4)?;
        let address = connect_options(&layout, cluster::SUPERUSER, &superuser, "postgres");

        let (postmaster, adopted) = match take_over(&layout, settings, &configuration, &address).await? {
            Some(postmaster) => (postmaster, true),
            None => (launch(&layout, settings, &configuration, &address).await?, false),
        };
        let pid = postmaster.identity.pid;
        tracing::info!(pid, adopted, socket = %layout.socket_dir.display(), "PostgreSQL accepts connections");

        let (publish, state) = watch::channel(ServerState::Running);
        let (stop, stopped) = oneshot::channel();
        let supervisor = Supervisor {
            layout: layout.clone(),
            settings: settings.clone(),
            configuration,
            state: publish,
            stopped,
        };
        let mut watch = JoinSet::new();
        watch.spawn(supervisor.run(postmaster));
        Ok(Self { layout, secrets, superuser, pid, adopted, state, stop, watch, _lock: lock.clone() })
    }

    /// The superuser's address and the programs of a private PostgreSQL that runs, whoever watches it.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn reach(
        paths: &ServerPaths,
        settings: &ServerSettings,
        entropy: &dyn Entropy,
    ) -> Result<(PgConnectOptions, PathBuf), ServerError> {
        let layout = Layout::resolve(paths, settings)?;
        let superuser = secrets::load_or_create(&layout.secrets_dir, cluster::SUPERUSER, entropy)?;
        let address = connect_options(&layout, cluster::SUPERUSER, &superuser, "postgres");
        Ok((address, layout.install))
    }

    /// The address of a role's connection to `database`. It holds the role's secret, which its `Debug`
    /// form shows: never log it.
    #[must_use]
    pub fn address(&self, role: Role, database: &str) -> PgConnectOptions {
        connect_options(&self.layout, role.name(), self.secrets.of(role), database)
    }

    /// The addresses that the pools and the migrations use.
    #[must_use]
    pub fn addresses(&self, database: &str) -> RoleAddresses {
        RoleAddresses {
            owner: self.address(Role::Owner, database),
            app: self.address(Role::App, database),
            auth: self.address(Role::Auth, database),
            dispatch: self.address(Role::Dispatch, database),
            control: self.address(Role::Control, database),
        }
    }

    /// The address of the superuser, connected to the maintenance database. For [`Self::bootstrap`].
    #[must_use]
    pub fn superuser(&self) -> PgConnectOptions {
        connect_options(&self.layout, cluster::SUPERUSER, &self.superuser, "postgres")
    }

    /// Creates roles, database and extension, or corrects them; costs one connection when all is there.
    ///
    /// # Errors
    /// See [`BootstrapError`](super::bootstrap::BootstrapError).
    pub async fn bootstrap(&self, database: &str) -> Result<Bootstrapped, ServerError> {
        let admin = self.superuser();
        Ok(bootstrap::bootstrap(&admin, database, &self.secrets, ForeignSecrets::Replace).await?)
    }

    /// The secrets of the roles.
    #[must_use]
    pub fn secrets(&self) -> Arc<RoleSecrets> {
        Arc::clone(&self.secrets)
    }

    /// Follows what PostgreSQL is doing.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ServerState> {
        self.state.clone()
    }

    /// The process number it had at the start.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it was left running by an earlier parent.
    #[must_use]
    pub fn was_adopted(&self) -> bool {
        self.adopted
    }

    /// The folder of the cluster.
    #[must_use]
    pub fn cluster_dir(&self) -> &Path {
        &self.layout.cluster
    }

    /// The folder of PostgreSQL's log files.
    #[must_use]
    pub fn log_dir(&self) -> &Path {
        &self.layout.log_dir
    }

    /// Stops PostgreSQL: running transactions are rolled back, connections end. After the stop timeout
    /// it is forced, and the next start recovers from the write-ahead log.
    ///
    /// # Errors
    /// [`ServerError::NotStopped`] when even force does not help.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        // When nobody listens, the task has ended, and joining it tells how.
        let _ = self.stop.send(());
        match self.watch.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(ServerError::WatchLost),
        }
    }
}

fn connect_options(layout: &Layout, user: &str, secret: &SecretString, database: &str) -> PgConnectOptions {
    // Everything is set, so that PG* variables of the environment change nothing.
    PgConnectOptions::new_without_pgpass()
        .socket(&layout.socket_dir)
        .port(5432)
        .username(user)
        .password(secret.expose_secret())
        .database(database)
        .application_name("bulkhead")
        .disable_statement_logging()
}

/// Finds a server that an earlier parent left in the cluster. It is adopted when it runs the same
/// program with the same configuration and accepts our secret; else it is stopped.
async fn take_over(
    layout: &Layout,
    settings: &ServerSettings,
    configuration: &str,
    address: &PgConnectOptions,
) -> Result<Option<Postmaster>, ServerError> {
    let identity = match process::trace(&layout.cluster) {
        Trace::Nobody => return Ok(None),
        Trace::Foreign(pid) => {
            tracing::warn!(pid, "postmaster.pid names a process that is not our PostgreSQL; left alone");
            process::forget(&layout.cluster)?;
            return Ok(None);
        }
        Trace::Ours(identity) => identity,
    };
    let postmaster = Postmaster::adopted(identity);
    let same = identity.program() == Some(layout.program("postgres"))
        && cluster::is_configured(layout, configuration);
    let healthy = same && matches!(timeout(ADOPTION, greet(address)).await, Ok(Ok(())));
    if healthy {
        return Ok(Some(postmaster));
    }
    tracing::info!(pid = identity.pid, same, "an earlier PostgreSQL runs and cannot be adopted; stopping it");
    postmaster.terminate(layout, settings.stop_timeout).await?;
    Ok(None)
}

/// Starts PostgreSQL and waits until it accepts connections.
async fn launch(
    layout: &Layout,
    settings: &ServerSettings,
    configuration: &str,
    address: &PgConnectOptions,
) -> Result<Postmaster, ServerError> {
    let deadline = Instant::now() + ORPHANS;
    let postmaster = loop {
        let mut postmaster = supervisor::spawn(layout, configuration)?;
        let Err(error) = postmaster.ready(layout, settings.start_timeout).await else { break postmaster };
        postmaster.terminate(layout, settings.stop_timeout).await?;
        // The sessions of a postmaster that was killed end a moment after it and hold its memory.
        let orphans =
            matches!(&error, ServerError::Exited { log, .. } if log.contains("shared memory block"));
        if !orphans || Instant::now() > deadline {
            return Err(error);
        }
        sleep(Duration::from_millis(100)).await;
    };
    match greet(address).await {
        Ok(()) => Ok(postmaster),
        Err(source) => {
            postmaster.terminate(layout, settings.stop_timeout).await?;
            let code = source.as_database_error().and_then(DatabaseError::code);
            Err(if code.as_deref() == Some("28P01") {
                ServerError::SecretRefused { secrets: layout.secrets_dir.clone() }
            } else {
                let log = logs::last_words(&layout.startup_log(), &layout.log_dir);
                ServerError::Unreachable { log, source }
            })
        }
    }
}

async fn greet(address: &PgConnectOptions) -> Result<(), sqlx::Error> {
    PgConnection::connect_with(address).await?.close().await
}
