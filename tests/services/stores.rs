//! One set of stores for several servers: PostgreSQL, the stand-ins for Qdrant and MongoDB, Redis and Neo4j, each behind a
//! proxy; and what can be done to each. Each is a process of its own, but for Neo4j, which takes 10 seconds to start: all
//! tests share one, unless a test means to halt or kill it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead::store::postgres::secrets::SystemEntropy;
use bulkhead::store::postgres::server::{DataLock, PrivateServer, ServerPaths, ServerSettings};
use sqlx::ConnectOptions as _;

use crate::neo4j_server;
use crate::process::Process;
use crate::proxy::{Mode, Proxy, Target};
use crate::qdrant_stand_in::StandIn;
use crate::redis_server;

/// The API key of the stand-in for Qdrant.
pub const API_KEY: &str = "an API key of thirty-two letters";

/// The word by which this program knows that it is the stand-in for Qdrant.
pub const STAND_IN: &str = "--stand-in-for-qdrant";

/// How long a service may take until it answers.
const PATIENCE: Duration = Duration::from_mins(3);

/// A store beside PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Qdrant,
    Mongodb,
    Redis,
    Neo4j,
}

/// What is done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Of its connections.
    Network(Mode),
    /// SIGSTOP.
    Halted,
    /// SIGKILL.
    Killed,
}

/// A store's process, and the proxy before it.
pub struct Service {
    name: Name,
    folder: PathBuf,
    port: u16,
    /// None where tests share it.
    process: Option<Process>,
    pub proxy: Proxy,
}

impl Service {
    async fn start(name: Name, folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder");
        let port = free_port();
        if name == Name::Neo4j {
            neo4j_server::prepare(&folder, port);
        }
        let process = Some(launch(name, &folder, port));
        let proxy = Proxy::start(Target::Tcp(port)).await;
        Self { name, folder, port, process, proxy }
    }

    /// The Neo4j that tests share, behind a proxy of this one's own.
    async fn shared_neo4j() -> Self {
        let port = neo4j_server::shared_port();
        let proxy = Proxy::start(Target::Tcp(port)).await;
        Self { name: Name::Neo4j, folder: PathBuf::new(), port, process: None, proxy }
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("what tests share is neither halted nor killed")
    }

    /// Does this to it, until it is mended.
    pub fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Network(mode) => self.proxy.set(mode),
            Fault::Halted => self.process().pause(),
            Fault::Killed => self.process().kill(),
        }
    }

    /// Undoes it.
    pub fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::Network(_) => self.proxy.set(Mode::Open),
            Fault::Halted => self.process().resume(),
            Fault::Killed => self.process = Some(launch(self.name, &self.folder, self.port)),
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    taken.local_addr().expect("an address").port()
}

/// Starts a store, and waits until it takes connections.
fn launch(name: Name, folder: &Path, port: u16) -> Process {
    let mut command = match name {
        Name::Qdrant => {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.arg(STAND_IN).arg(folder).arg(port.to_string());
            command
        }
        Name::Mongodb => mongodb(folder, port),
        Name::Redis => {
            let mut command = redis_server::program("redis-server");
            command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
            command.arg(port.to_string()).arg("--dir").arg(folder);
            command
        }
        Name::Neo4j => neo4j_server::program(folder),
    };
    let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    process.answers(PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    process
}

fn vendor(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor").join(name)
}

/// The stand-in for MongoDB over a file in this folder.
fn mongodb(folder: &Path, port: u16) -> Command {
    let installed = vendor("mongodb");
    let files = std::fs::read_dir(&installed).expect("the stand-in for MongoDB").flatten();
    let jars = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "jar"));
    let mut places: Vec<String> = jars.map(|path| path.display().to_string()).collect();
    places.push(installed.join("classes").display().to_string());
    let mut command = Command::new("java");
    command.args(["-XX:+UseSerialGC", "-Xmx256m", "-cp", &places.join(":"), "Launcher"]);
    command.arg(folder.join("mongodb.mv")).arg(port.to_string());
    command
}

/// What the stand-in for MongoDB is run from.
///
/// # Errors
/// Why it is not there.
pub fn mongodb_found() -> Result<String, String> {
    if vendor("mongodb/classes").exists() {
        Ok("mongo-java-server 1.47.0, a stand-in".to_owned())
    } else {
        Err("no stand-in for MongoDB; `make setup` brings one".to_owned())
    }
}

/// Serves as the stand-in for Qdrant until this process is ended, if the program was started for that.
pub fn serve_as_stand_in() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, folder, port] = words.as_slice()
        && word == STAND_IN
    {
        let _serving = StandIn::start(Path::new(folder), API_KEY, port.parse().expect("a port"));
        loop {
            std::thread::park();
        }
    }
}

/// All of them, in a folder that goes with this value.
pub struct Stores {
    pub folder: PathBuf,
    database: Option<PrivateServer>,
    /// Before PostgreSQL.
    pub postgres: Proxy,
    pub services: Vec<Service>,
}

impl Stores {
    /// All of them, with nothing in them.
    pub async fn start(name: &str) -> Self {
        Self::with(name, false).await
    }

    /// The same, with a Neo4j that may be halted and killed.
    pub async fn with_own_neo4j(name: &str) -> Self {
        Self::with(name, true).await
    }

    async fn with(name: &str, own_neo4j: bool) -> Self {
        let id = crate::limits::id().simple();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{id}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let paths = ServerPaths { install: vendor("postgresql"), data_dir: folder.join("database") };
        let settings = ServerSettings {
            shared_buffers_mib: 32,
            durable: false,
            max_connections: 200,
            relocation: folder.join("relocated"),
            ..ServerSettings::default()
        };
        let lock = DataLock::acquire(&paths.data_dir).expect("a lock");
        let started = PrivateServer::start(&paths, &settings, &SystemEntropy, &lock).await;
        let database = started.expect("PostgreSQL starts");
        let options = database.superuser();
        let socket = options.get_socket().expect("a Unix socket");
        let postgres =
            Proxy::start(Target::Unix(socket.join(format!(".s.PGSQL.{}", options.get_port())))).await;
        let of = |name| Service::start(name, folder.join(format!("{name:?}").to_lowercase()));
        let neo4j = if own_neo4j { of(Name::Neo4j).await } else { Service::shared_neo4j().await };
        let services = vec![of(Name::Qdrant).await, of(Name::Mongodb).await, of(Name::Redis).await, neo4j];
        Self { folder, database: Some(database), postgres, services }
    }

    /// A service.
    pub fn service(&mut self, name: Name) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == name).expect("each is there")
    }

    fn port(&self, name: Name) -> u16 {
        let service = self.services.iter().find(|service| service.name == name).expect("each is there");
        service.proxy.port()
    }

    /// The database, as its superuser, without a proxy.
    pub async fn connection(&self) -> sqlx::PgConnection {
        let superuser = self.database.as_ref().expect("it runs").superuser().database("bulkhead");
        superuser.connect().await.expect("a connection")
    }

    /// Settings of a server over all of them (TOML).
    pub fn settings(&self) -> String {
        let superuser = self.database.as_ref().expect("it runs").superuser();
        let url = superuser.to_url_lossy();
        let password = url.password().unwrap_or_default().to_owned();
        let names = [Name::Qdrant, Name::Mongodb, Name::Redis, Name::Neo4j];
        let [qdrant, mongodb, redis, neo4j] = names.map(|name| self.port(name));
        format!(
            "uploads_dir = '{uploads}'
            database.url = 'postgres://{user}:{password}@127.0.0.1:{postgres}/postgres?sslmode=disable'
            vectors.backend = 'qdrant'
            vectors.qdrant.url = 'http://127.0.0.1:{qdrant}'
            vectors.qdrant.api_key = '{API_KEY}'
            vectors.qdrant.calls.deadline_ms = 1000
            vectors.qdrant.calls.breaker_rest_ms = 300
            audit.backend = 'mongodb'
            audit.mongodb.url = 'mongodb://127.0.0.1:{mongodb}/?directConnection=true'
            audit.mongodb.forward_ms = 100
            audit.mongodb.deadline_ms = 1000
            limits.backend = 'redis'
            cache.backend = 'redis'
            limits.address_requests_per_minute = 10000000
            redis.url = 'redis://127.0.0.1:{redis}'
            redis.calls.breaker_rest_ms = 300
            graph.backend = 'neo4j'
            graph.sweep_ms = 200
            graph.upkeep_ms = 1000
            graph.neo4j.url = 'bolt://127.0.0.1:{neo4j}'
            graph.neo4j.password = '{password_of_neo4j}'
            graph.neo4j.calls.breaker_rest_ms = 300
            projection.longest_rest_ms = 1000",
            uploads = self.folder.join("uploads").display(),
            user = superuser.get_username(),
            password_of_neo4j = neo4j_server::PASSWORD,
            postgres = self.postgres.port(),
        )
    }

    /// Ends them.
    pub async fn stop(mut self) {
        if let Some(database) = self.database.take() {
            database.stop().await.expect("PostgreSQL stops");
        }
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        // Until they have ended, they write there.
        self.services.clear();
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}
