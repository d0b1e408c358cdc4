//! Whole servers on threads of this process, over a database of their own or one that they are given.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead::app::{Laboratory, Server, Settings};
use bulkhead::config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnection;
use tokio::sync::oneshot;

use crate::database::connect;
use crate::limits::id;

/// How long what is waited for may take.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// No limit that a test could come to.
pub const UNLIMITED: &str = "limits.tenant.requests_per_minute = 1000000
    limits.tenant.concurrent_queries = 1000
    limits.tenant.queued_queries = 1000
    limits.address_requests_per_minute = 1000000";

/// A folder that goes with this value. Others may look into it, as the database's user does.
pub struct Folder(pub PathBuf);

impl Folder {
    /// A new one.
    pub fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("whole-{}", id().simple()));
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
pub struct Whole {
    url: String,
    metrics: String,
    /// Its files.
    pub data_dir: PathBuf,
    laboratory: Laboratory,
    http: reqwest::Client,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// A tenant with a key that may do everything a tenant may.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    key: String,
}

impl Whole {
    /// One in this folder, with further settings (TOML): over a database of its own, unless they name one.
    pub async fn start(folder: &Path, further: &str) -> Self {
        let data_dir = folder.join("data");
        std::fs::create_dir_all(folder).expect("a folder");
        let settings = settings(folder, &data_dir, further);
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            threads.expect("a runtime").block_on(async move {
                let server = Server::build(settings).await.expect("a server");
                let metrics = server.metrics_address().expect("metrics are served");
                tell.send((server.address(), metrics, server.laboratory())).expect("somebody waits");
                let _told = stopped.await;
                server.stop().await.expect("stopped");
            });
        });
        let told = tokio::task::spawn_blocking(move || told.recv()).await.expect("waited");
        let (address, metrics, laboratory) = told.expect("the server starts");
        let (url, metrics) = (format!("http://{address}"), format!("http://{metrics}/metrics"));
        Self { url, metrics, data_dir, laboratory, http: reqwest::Client::new(), stop, thread }
    }

    /// Another one over the same stores: with the secrets that servers share, and a folder of its own.
    pub async fn beside(&self, folder: &Path, further: &str) -> Self {
        let to = folder.join("data/secrets");
        std::fs::create_dir_all(&to).expect("a folder");
        for entry in std::fs::read_dir(self.data_dir.join("secrets")).expect("secrets").flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
        Self::start(folder, &format!("node = 'node-2'\n{further}")).await
    }

    /// The folder of its settings and files.
    pub fn base(&self) -> PathBuf {
        self.data_dir.parent().expect("a folder").to_owned()
    }

    /// Runs the program with its settings.
    pub async fn program(&self, arguments: &[&str]) -> Output {
        program(&self.base(), arguments).await
    }

    /// The sum of a metric's values whose labels contain all of these.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page =
            self.http.get(&self.metrics).send().await.expect("an answer").text().await.expect("a page");
        let values = page.lines().filter_map(|line| {
            let (labelled, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            labels
                .iter()
                .all(|label| labelled.contains(label))
                .then(|| value.parse::<f64>().expect("a number"))
        });
        values.sum()
    }

    /// Ends it.
    pub async fn stop(self) {
        self.stop.send(()).expect("it runs");
        let thread = self.thread;
        tokio::task::spawn_blocking(move || thread.join().expect("it stops")).await.expect("waited");
    }

    /// The address of the database that it has for itself.
    pub fn database_url(&self) -> String {
        self.laboratory.superuser.as_ref().expect("a private database").to_url_lossy().to_string()
    }

    /// That database, as its superuser.
    pub async fn superuser(&self) -> PgConnection {
        connect(self.laboratory.superuser.as_ref().expect("a private database")).await
    }

    /// What an operator is answered.
    pub async fn operator(&self, method: Method, path: &str, body: &Value) -> (StatusCode, String) {
        let key = std::fs::read_to_string(self.data_dir.join("secrets/operator.key")).expect("a key");
        let http = reqwest::Client::builder().unix_socket(self.data_dir.join("admin.sock"));
        let http = http.build().expect("a client");
        let request = http.request(method, format!("http://operators{path}"));
        let answer = request.bearer_auth(key.trim()).json(body).send().await.expect("an answer");
        (answer.status(), answer.text().await.expect("a body"))
    }

    async fn make(&self, path: &str, body: &Value) -> Value {
        let (status, body) = self.operator(Method::POST, path, body).await;
        assert_eq!(status, StatusCode::CREATED, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// A new tenant.
    pub async fn tenant(&self) -> Tenant {
        let slug = format!("t-{}", &id().simple().to_string()[..12]);
        let made =
            self.make("/admin/tenants", &json!({"name": slug, "slug": slug, "reason": "a test"})).await;
        let id = made["tenant_id"].as_str().expect("an id").to_owned();
        let roles =
            json!({"name": "test", "roles": ["tenant_admin", "writer", "reader"], "reason": "a test"});
        let key = self.make(&format!("/admin/tenants/{id}/keys"), &roles).await;
        Tenant { id, key: key["api_key"].as_str().expect("a key").to_owned() }
    }

    /// A tenant's request.
    pub fn request(&self, method: &str, path: &str, tenant: &Tenant) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&tenant.key)
    }

    /// The answer's status, whether it says when to come again, and its body.
    pub async fn post(&self, path: &str, tenant: &Tenant, body: &Value) -> (u16, bool, Value) {
        let answer = self.request("POST", path, tenant).json(body).send().await.expect("an answer");
        let (status, again) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        (status, again, answer.json().await.unwrap_or_default())
    }

    /// Puts a text into the tenant's namespace. The answer's status, and whether it says when to come again.
    pub async fn put(&self, tenant: &Tenant, name: &str, text: &str) -> (u16, bool) {
        let (status, again, _) =
            self.post("/documents/text", tenant, &json!({"text": text, "file_source": name})).await;
        (status, again)
    }

    /// Waits until so many documents are found.
    pub async fn processed(&self, tenant: &Tenant, count: u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.request("GET", "/documents/status_counts", tenant).send().await;
            let counts: Value = answer.expect("an answer").json().await.unwrap_or_default();
            if counts["status_counts"]["processed"].as_u64() == Some(count) {
                return;
            }
            assert!(Instant::now() < end, "not processed: {counts}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a question finds, as text.
    pub async fn found(&self, tenant: &Tenant, question: &str) -> String {
        let body = json!({"query": question, "mode": "mix", "chunk_top_k": 20});
        let (status, _, answer) = self.post("/query/data", tenant, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["data"]["chunks"].to_string()
    }
}

/// Runs the program with the settings of a server in this folder, which may run or not.
pub async fn program(base: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(arguments).arg("--config").arg(base.join("settings.toml"));
    tokio::task::spawn_blocking(move || command.output().expect("it starts")).await.expect("it ends")
}

fn settings(base: &Path, data_dir: &Path, further: &str) -> Settings {
    let file = base.join("settings.toml");
    let toml = format!(
        "data_dir = '{}'
        http.address = '127.0.0.1:0'
        telemetry.metrics_address = '127.0.0.1:0'
        embedding.model = 'hashing'
        database.server.durable = false
        database.server.shared_buffers_mib = 16
        database.server.relocation = '{}'
        {further}",
        data_dir.display(),
        base.join("relocated").display(),
    );
    std::fs::write(&file, toml).expect("settings");
    let mut settings: Settings = config::load(Some(&file)).expect("settings");
    settings.program = Some(PathBuf::from(env!("CARGO_BIN_EXE_bulkhead")));
    settings
}
