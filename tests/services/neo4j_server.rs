//! A Neo4j of the tests' own, and what they do there without the server's code.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::TenantId;
use bulkhead::store::layers::CallSettings;
use bulkhead::store::neo4j::{Neo4jGraph, Neo4jSettings};
use neo4rs::{ConfigBuilder, Graph, Query};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::process::Process;
use crate::stores::free_port;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_mins(3);

/// A deadline for what reads: each tenant's statements are planned when they are first asked.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The password of its one user.
pub const PASSWORD: &str = "for-the-tests-alone";

/// What Neo4j's own start script opens of Java.
const OPENED: [&str; 4] =
    ["java.base/java.nio", "java.base/java.io", "java.base/sun.nio.ch", "java.base/java.util.concurrent"];

fn vendor() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor/neo4j")
}

/// What the tests run against.
///
/// # Errors
/// Why there is none.
pub fn found() -> Result<String, String> {
    if let Some(url) = named() {
        return Ok(format!("the server at {url}, named by NEO4J_URL; what stops it, one of the tests' own"));
    }
    if !vendor().join("checked").exists() {
        return Err("no Neo4j; `make setup` brings one".to_owned());
    }
    let jars = std::fs::read_dir(vendor()).map_err(|error| error.to_string())?.flatten();
    let names = jars.map(|jar| jar.file_name().to_string_lossy().into_owned());
    let version = names.filter_map(|name| {
        Some(name.strip_prefix("neo4j-server-")?.strip_suffix(".jar").unwrap_or_default().to_owned())
    });
    let version = version.max().ok_or("its server is not among the files")?;
    Ok(format!("Neo4j Community {version}, started by the tests"))
}

/// A real one to use instead of starting one.
fn named() -> Option<String> {
    std::env::var("NEO4J_URL").ok().filter(|url| !url.is_empty())
}

/// The Neo4j that tests share; their tenants are their own.
static SHARED: Mutex<Option<Neo4jServer>> = Mutex::new(None);

/// Ends it: a static is never dropped.
pub fn end_shared() {
    drop(SHARED.lock().take());
}

fn with_shared<T>(of: impl FnOnce(&Neo4jServer) -> T) -> T {
    of(SHARED.lock().get_or_insert_with(Neo4jServer::start))
}

/// The port of the one that tests share, whatever is named.
pub fn shared_port() -> u16 {
    with_shared(|server| server.port)
}

/// Settings of the shared one, or of the one that `NEO4J_URL` names.
pub fn shared() -> Neo4jSettings {
    let Some(url) = named() else {
        return with_shared(Neo4jServer::settings);
    };
    let word = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (user, password) = (word("NEO4J_USER", "neo4j"), word("NEO4J_PASSWORD", ""));
    Neo4jSettings { url, user, password: Some(password.into()), ..patient() }
}

/// Settings of a client that waits for a small machine.
fn patient() -> Neo4jSettings {
    let calls = CallSettings {
        deadline_ms: u64::try_from(DEADLINE.as_millis()).expect("short"),
        attempts: 2,
        pause_ms: 10,
        breaker_failures: 3,
        breaker_rest_ms: 200,
    };
    Neo4jSettings { write_ms: 60_000, calls, ..Neo4jSettings::default() }
}

/// An index over a Neo4j.
pub fn index(settings: Neo4jSettings) -> Neo4jGraph {
    Neo4jGraph::new(settings, Arc::default(), Arc::new(SystemClock))
}

/// The tests' own connection.
pub async fn raw(settings: &Neo4jSettings) -> Graph {
    let password = settings.password.as_ref().map(secrecy::ExposeSecret::expose_secret).unwrap_or_default();
    let config = ConfigBuilder::default().uri(settings.url.as_str()).user("neo4j").password(password);
    Graph::connect(config.build().expect("settings")).await.expect("a connection")
}

/// A number that a query gives.
pub async fn number(raw: &Graph, query: Query) -> i64 {
    let mut rows = raw.execute(query).await.expect("rows");
    let row = rows.next().await.expect("an answer").expect("a row");
    let number = row.get("n").expect("a number");
    while rows.next().await.expect("an answer").is_some() {}
    number
}

/// Nodes that bear a tenant's label or property.
pub async fn nodes_of(raw: &Graph, tenant: TenantId) -> i64 {
    let label = format!("T_{}", tenant.0.simple());
    let query =
        Query::new(format!("MATCH (n) WHERE n.tenant_id = $tenant OR n:{label} RETURN count(n) AS n"));
    number(raw, query.param("tenant", tenant.to_string())).await
}

fn java(folder: &Path) -> Command {
    let mut java = Command::new("java");
    java.env("NEO4J_HOME", folder).env("NEO4J_CONF", folder.join("conf"));
    java.args(["-XX:+UseSerialGC", "-Xmx384m", "-cp"]).arg(vendor().join("*"));
    java.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    java
}

/// Gives a folder what a Neo4j on this port of loopback starts with: settings, and the password.
pub fn prepare(folder: &Path, port: u16) {
    let conf = folder.join("conf");
    std::fs::create_dir_all(&conf).expect("a folder");
    let settings = format!(
        "server.bolt.listen_address=127.0.0.1:{port}
server.http.enabled=false
server.https.enabled=false
server.memory.heap.max_size=384m
server.memory.pagecache.size=32m
db.tx_log.preallocate=false
dbms.usage_report.enabled=false
"
    );
    std::fs::write(conf.join("neo4j.conf"), settings).expect("settings");
    let mut first = java(folder);
    first.args(["org.neo4j.cli.AdminTool", "dbms", "set-initial-password", PASSWORD]);
    assert!(first.status().expect("java runs").success(), "the password is not set");
}

/// What runs the Neo4j of a folder that was prepared.
pub fn program(folder: &Path) -> Command {
    let mut server = java(folder);
    server.args(OPENED.map(|module| format!("--add-opens={module}=ALL-UNNAMED")));
    server.arg("org.neo4j.server.CommunityEntryPoint");
    server.arg(format!("--home-dir={}", folder.display()));
    server.arg(format!("--config-dir={}", folder.join("conf").display()));
    server
}

/// A Neo4j on a port of loopback, ended with this value.
pub struct Neo4jServer {
    folder: TempDir,
    port: u16,
    pub process: Process,
}

impl Neo4jServer {
    /// One that answers.
    pub fn start() -> Self {
        let (folder, port) = (TempDir::new().expect("a folder"), free_port());
        prepare(folder.path(), port);
        let process = Self::run(folder.path(), port);
        Self { folder, port, process }
    }

    fn run(folder: &Path, port: u16) -> Process {
        let mut process = Process::start(&mut program(folder));
        process.answers(PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        process
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("bolt://127.0.0.1:{}", self.port)
    }

    /// Settings of a client of it.
    pub fn settings(&self) -> Neo4jSettings {
        Neo4jSettings { url: self.url(), password: Some(PASSWORD.into()), ..patient() }
    }

    /// Another one over its files.
    pub fn restart(&mut self) {
        self.process = Self::run(self.folder.path(), self.port);
    }
}
