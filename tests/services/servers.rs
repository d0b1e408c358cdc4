//! Whole servers over one PostgreSQL and one Redis.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead::app::{Laboratory, Server, Settings};
use bulkhead::config;
use redis::AsyncCommands as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::Test;
use crate::limits::id;
use crate::redis_server::RedisServer;

/// Requests that a tenant may send in a minute: one comes back in two seconds.
const LIMIT: usize = 30;

/// How long the servers may take to notice that Redis is back.
const PATIENCE: Duration = Duration::from_secs(30);

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        two_servers_over_the_same_stores_have_one_limit_together_and_shares_while_redis_is_away,
        a_count_of_another_tenant_stops_the_request_and_is_in_the_audit_log,
    ]
}

/// A folder that goes with this value. Others may look into it, as the database's user does.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("servers-{}", id().simple()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// A server on threads of its own.
struct Running {
    url: String,
    data_dir: PathBuf,
    laboratory: Laboratory,
    http: reqwest::Client,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(folder: &Folder, node: &str, redis: &RedisServer, database: &str) -> Self {
        let base = folder.0.join(node);
        let data_dir = base.join("data");
        std::fs::create_dir_all(&base).expect("a folder");
        let settings = settings(&base, &data_dir, node, redis, database);
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let threads =
                tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
            threads.block_on(async move {
                let server = Server::build(settings).await.expect("a server");
                tell.send((server.address(), server.laboratory())).expect("somebody waits");
                let _told = stopped.await;
                server.stop().await.expect("stopped");
            });
        });
        let (address, laboratory) = told.recv().expect("the server starts");
        Self {
            url: format!("http://{address}"),
            data_dir,
            laboratory,
            http: reqwest::Client::new(),
            stop,
            thread,
        }
    }

    fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.thread.join().expect("it stops");
    }

    async fn operate(&self, path: &str, body: &Value) -> Value {
        let key = std::fs::read_to_string(self.data_dir.join("secrets/operator.key")).expect("a key");
        let http =
            reqwest::Client::builder().unix_socket(self.data_dir.join("admin.sock")).build().expect("http");
        let request = http.post(format!("http://operators{path}")).bearer_auth(key.trim()).json(body);
        let answer = request.send().await.expect("an answer");
        let (status, body) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, StatusCode::CREATED, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// A new tenant's id, and a key of every role.
    async fn tenant(&self) -> (String, String) {
        let slug = format!("t-{}", &id().simple().to_string()[..12]);
        let made =
            self.operate("/admin/tenants", &json!({"name": slug, "slug": slug, "reason": "a test"})).await;
        let id = made["tenant_id"].as_str().expect("an id").to_owned();
        let roles = json!({"name": "test", "roles": ["tenant_admin", "reader"], "reason": "a test"});
        let key = self.operate(&format!("/admin/tenants/{id}/keys"), &roles).await;
        (id, key["api_key"].as_str().expect("a key").to_owned())
    }

    async fn get(&self, path: &str, key: &str) -> reqwest::Response {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(key);
        request.send().await.expect("an answer")
    }
}

fn settings(base: &Path, data_dir: &Path, node: &str, redis: &RedisServer, database: &str) -> Settings {
    let file = base.join("settings.toml");
    let toml = format!(
        "data_dir = '{}'
        node = '{node}'
        http.address = '127.0.0.1:0'
        embedding.model = 'hashing'
        limits.backend = 'redis'
        limits.local_share = 0.5
        limits.tenant.requests_per_minute = {LIMIT}
        limits.address_requests_per_minute = 1000000
        redis.url = '{}'
        redis.calls.breaker_rest_ms = 200
        database.url = '{database}'
        database.server.durable = false
        database.server.shared_buffers_mib = 16
        database.server.relocation = '{}'",
        data_dir.display(),
        redis.url(),
        base.join("relocated").display(),
    );
    std::fs::write(&file, toml).expect("settings");
    let mut settings: Settings = config::load(Some(&file)).expect("settings");
    settings.program = Some(PathBuf::from(env!("CARGO_BIN_EXE_bulkhead")));
    settings
}

/// Another server over the stores of one that runs: with the secrets that servers share, and a folder of its own.
fn beside(first: &Running, folder: &Folder, redis: &RedisServer) -> Running {
    let to = folder.0.join("node-2/data/secrets");
    std::fs::create_dir_all(&to).expect("a folder");
    for entry in std::fs::read_dir(first.data_dir.join("secrets")).expect("secrets").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    let superuser = first.laboratory.superuser.clone().expect("a private database");
    Running::start(folder, "node-2", redis, superuser.to_url_lossy().as_str())
}

/// Sends so many requests to the servers in turn; how many were answered with which status.
async fn send(servers: &[&Running], key: &str, requests: usize) -> BTreeMap<u16, usize> {
    let sent = (0..requests).map(|n| servers[n % servers.len()].get("/auth/whoami", key));
    let mut counted = BTreeMap::new();
    for answer in futures::future::join_all(sent).await {
        *counted.entry(answer.status().as_u16()).or_default() += 1;
    }
    counted
}

fn as_many_as_the_limit(counted: &BTreeMap<u16, usize>, requests: usize, since: Instant) {
    let came_back = usize::try_from(since.elapsed().as_secs() / 2 + 1).expect("few");
    let allowed = counted.get(&200).copied().unwrap_or_default();
    assert!(
        (LIMIT..=LIMIT + came_back).contains(&allowed),
        "{counted:?}, of which {came_back} may have come back"
    );
    assert_eq!(allowed + counted.get(&429).copied().unwrap_or_default(), requests, "{counted:?}");
}

/// The limit that a server tells a tenant that was not there before.
async fn limit_of_another(server: &Running) -> usize {
    let (_, key) = server.tenant().await;
    let answer = server.get("/auth/whoami", &key).await;
    answer.headers()["ratelimit-limit"].to_str().expect("text").parse().expect("a number")
}

async fn two_servers_over_the_same_stores_have_one_limit_together_and_shares_while_redis_is_away() {
    let (folder, mut redis) = (Folder::new(), RedisServer::start());
    let first = Running::start(&folder, "node-1", &redis, "");
    let second = beside(&first, &folder, &redis);
    let servers = [&first, &second];
    for server in servers {
        assert_eq!(limit_of_another(server).await, LIMIT, "Redis counts");
    }
    let (_, key) = first.tenant().await;
    let since = Instant::now();
    as_many_as_the_limit(&send(&servers, &key, 80).await, 80, since);

    // Each has its share of another tenant's limit, and none is answered by less than yes or no.
    let (_, key) = first.tenant().await;
    redis.kill();
    let since = Instant::now();
    as_many_as_the_limit(&send(&servers, &key, 80).await, 80, since);

    for server in servers {
        assert_eq!(limit_of_another(server).await, LIMIT / 2, "it counts alone");
    }

    redis.restart();
    let end = Instant::now() + PATIENCE;
    for server in servers {
        while limit_of_another(server).await != LIMIT {
            assert!(Instant::now() < end, "Redis is not used again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (_, key) = second.tenant().await;
    let since = Instant::now();
    as_many_as_the_limit(&send(&servers, &key, 80).await, 80, since);
    second.stop();
    first.stop();
}

async fn a_count_of_another_tenant_stops_the_request_and_is_in_the_audit_log() {
    let (folder, redis) = (Folder::new(), RedisServer::start());
    let server = Running::start(&folder, "node-1", &redis, "");
    let ((alice, hers), (bob, his)) = (server.tenant().await, server.tenant().await);
    for key in [&hers, &his] {
        assert_eq!(server.get("/auth/whoami", key).await.status(), StatusCode::OK);
    }
    let mut connection = redis.connection().await;
    let mut key_of = async |tenant: &str| -> String {
        let keys: Vec<String> = connection.keys(format!("bulkhead:{{{tenant}}}:*")).await.expect("keys");
        keys.into_iter().next().expect("a key")
    };
    let (to, from) = (key_of(&alice).await, key_of(&bob).await);
    let value: String = connection.get(from).await.expect("a value");
    let _: () = connection.set(&to, value).await.expect("set");
    let answer = server.get("/auth/whoami", &hers).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = answer.text().await.expect("a body");
    assert!(body.contains("isolation-alarm") && !body.contains(&bob), "{body}");
    assert_eq!(server.get("/auth/whoami", &his).await.status(), StatusCode::OK);
    let superuser = server.laboratory.superuser.clone().expect("a private database");
    let alarms = "select tenant_id::text, body from audit_event where kind = 'alarm' order by tenant_id";
    let mut database = superuser.connect().await.expect("a connection");
    let alarms: Vec<(String, String)> = sqlx::query_as(alarms).fetch_all(&mut database).await.expect("rows");
    let whose: Vec<&str> = alarms.iter().map(|(tenant, _)| tenant.as_str()).collect();
    // In the deployment's log and in her own.
    assert_eq!(whose, [Uuid::nil().to_string(), alice], "{alarms:?}");
    assert!(!alarms[1].1.contains(&bob), "{alarms:?}");
    server.stop();
}
