//! A Redis of the tests' own, and clients of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bulkhead::domain::clock::SystemClock;
use bulkhead::store::layers::OneCallSettings;
use bulkhead::store::redis::{RedisCache, RedisClient, RedisRateLimiter, RedisSettings, RedisTenants};
use tempfile::TempDir;

use crate::process::Process;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server's share of a limit while Redis is away.
pub const SHARE: f64 = 0.5;

/// A server's deadline for a call.
pub const DEADLINE: Duration = Duration::from_millis(250);

fn vendor() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor/redis")
}

/// The program with what it needs; the machine's own where set-up brought none.
pub fn program(name: &str) -> Command {
    let program = vendor().join("bin").join(name);
    if !program.exists() {
        return Command::new(name);
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
    if let Some(url) = named() {
        let version =
            version(&url).map_err(|error| format!("REDIS_URL names one that does not answer: {error}"))?;
        return Ok(format!(
            "Redis {version}, named by REDIS_URL; what stops and starts it, one of the tests' own"
        ));
    }
    let output = program("redis-server").arg("--version").output();
    let output = output.map_err(|_| "no redis-server; `make setup` brings one".to_owned())?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = words.split_whitespace().find_map(|word| word.strip_prefix("v="));
    version.map(|version| format!("Redis {version}, started by the tests")).ok_or(words)
}

/// A real one to use instead of starting one.
pub fn named() -> Option<String> {
    std::env::var("REDIS_URL").ok().filter(|url| !url.is_empty())
}

fn version(url: &str) -> redis::RedisResult<String> {
    let mut connection = redis::Client::open(url)?.get_connection_with_timeout(Duration::from_secs(5))?;
    let about: String = redis::cmd("INFO").arg("server").query(&mut connection)?;
    let version = about.lines().find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.unwrap_or("of unknown version").to_owned())
}

/// A Redis on a Unix socket, ended with this value.
pub struct RedisServer {
    folder: TempDir,
    arguments: Vec<String>,
    pub process: Process,
}

impl RedisServer {
    /// One that answers.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// One with further arguments, one or two to a setting.
    pub fn with(arguments: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let process = Self::run(folder.path(), &arguments);
        Self { folder, arguments, process }
    }

    fn run(folder: &Path, arguments: &[String]) -> Process {
        let socket = folder.join("redis.sock");
        let mut command = program("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
        command.arg("--unixsocket").arg(&socket);
        let mut process = Process::start(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()));
        // Who is not let in is answered too.
        process.answers(PATIENCE, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        process
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("redis.sock").display())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Another one in its place, which has nothing.
    pub fn restart(&mut self) {
        let _none = std::fs::remove_file(self.folder.path().join("redis.sock"));
        self.process = Self::run(self.folder.path(), &self.arguments);
    }

    /// A connection of the tests' own.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("an address");
        client.get_multiplexed_async_connection().await.expect("a connection")
    }
}

/// Settings of a client of this address.
pub fn settings(url: &str) -> RedisSettings {
    let calls = OneCallSettings {
        deadline_ms: u64::try_from(DEADLINE.as_millis()).expect("short"),
        breaker_failures: 3,
        breaker_rest_ms: 200,
    };
    RedisSettings { url: url.to_owned(), calls, ..RedisSettings::default() }
}

/// What counts for one server over a Redis. Those with equal secrets count together.
pub fn limiter(settings: &RedisSettings, secret: [u8; 32]) -> RedisRateLimiter {
    let clock = Arc::new(SystemClock);
    let client =
        RedisClient::new(settings, Arc::default(), Arc::<SystemClock>::clone(&clock)).expect("a client");
    RedisRateLimiter::new(client, &secret, SHARE, 1000, clock)
}

/// What keeps things for one server over a Redis. Those with equal secrets read each other's.
pub fn cache(settings: &RedisSettings, secret: [u8; 32]) -> RedisCache {
    let client = RedisClient::new(settings, Arc::default(), Arc::new(SystemClock)).expect("a client");
    RedisCache::new(client, &secret)
}

/// The keys of tenants in a Redis.
pub fn tenants(settings: &RedisSettings) -> RedisTenants {
    let client = RedisClient::new(settings, Arc::default(), Arc::new(SystemClock)).expect("a client");
    RedisTenants::new(client, Duration::from_mins(1))
}
