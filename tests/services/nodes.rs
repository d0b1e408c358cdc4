//! Servers as processes of their own over one set of stores, and their callers.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::limits::id;
use crate::process::Process;
use crate::stores::{Stores, free_port};

/// How long a server may take to do what it was asked to, under the load of other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How long any answer may take, whatever happens to a store.
pub const LONGEST_ANSWER: Duration = Duration::from_secs(20);

/// The model where none is meant: vectors of hashed words.
pub const HASHING: &str = "embedding.model = 'hashing'";

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead");

/// A server.
pub struct Node {
    pub name: String,
    pub url: String,
    data_dir: PathBuf,
    file: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

/// A tenant with a key that may do everything.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    pub key: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<String>,
    pub body: Value,
}

impl Answer {
    /// The texts of the chunks in the material for a question.
    pub fn texts(&self) -> Vec<&str> {
        let chunks = self.body["data"]["chunks"].as_array();
        chunks.into_iter().flatten().filter_map(|chunk| chunk["content"].as_str()).collect()
    }

    /// What answered in the place of a store that is away.
    pub fn fallback(&self) -> Option<&str> {
        self.body["metadata"]["fallback"].as_str()
    }

    /// Where a graph was walked.
    pub fn graph(&self) -> Option<&str> {
        self.body["metadata"]["graph"].as_str()
    }

    /// Whether it says that a graph was walked in memory since its index could not be used.
    pub fn is_without_graph_index(&self) -> bool {
        let degraded = self.body["metadata"]["degraded"].as_array();
        let told = degraded.is_some_and(|all| all.iter().any(|one| one == "graph_index"));
        self.graph() == Some("memory") && told
    }
}

/// A client that keeps no connection.
pub fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(LONGEST_ANSWER);
    client.build().expect("a client")
}

impl Node {
    /// The settings of a server of this name over these stores, which has not been started.
    pub fn new(stores: &Stores, name: &str, further: &str) -> Self {
        Self::of(&stores.folder, name, &format!("{}\n{further}", stores.settings()))
    }

    /// The settings of a server of this name, in a folder, which has not been started.
    pub fn of(folder: &Path, name: &str, further: &str) -> Self {
        let base = folder.join(name);
        let data_dir = base.join("data");
        std::fs::create_dir_all(&data_dir).expect("a folder");
        let (file, port) = (base.join("settings.toml"), free_port());
        let toml = format!(
            "data_dir = '{}'
            node = '{name}'
            http.address = '127.0.0.1:{port}'
            http.progress_poll_ms = 50
            {further}",
            data_dir.display(),
        );
        std::fs::write(&file, toml).expect("settings");
        let (url, log) = (format!("http://127.0.0.1:{port}"), base.join("server.log"));
        Self { name: name.to_owned(), url, data_dir, file, log, process: None }
    }

    /// A server that is ready.
    pub async fn start(stores: &Stores, name: &str, further: &str) -> Self {
        let mut node = Self::new(stores, name, further);
        node.run();
        node.ready().await;
        node
    }

    /// Another one over the same stores, with the secrets that servers share and a folder of its own.
    pub async fn beside(&self, stores: &Stores, name: &str, further: &str) -> Self {
        let mut node = Self::new(stores, name, further);
        copy(&self.data_dir.join("secrets"), &node.data_dir.join("secrets"));
        node.run();
        node.ready().await;
        node
    }

    /// Starts its process.
    pub fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--config"]).arg(&self.file).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.process = Some(Process::start(&mut command));
    }

    /// Waits until it says that requests should be sent to it.
    pub async fn ready(&mut self) {
        let (http, end) = (client(), Instant::now() + PATIENCE);
        loop {
            let asked = http.get(format!("{}/ready", self.url)).send().await;
            if asked.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return;
            }
            let ended = self.process.as_mut().expect("it was started").ended();
            assert!(ended.is_none(), "{} ended: {}", self.name, self.told());
            assert!(Instant::now() < end, "{} is not ready: {}", self.name, self.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The end of its log.
    pub fn told(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    /// As whom it leases jobs.
    pub fn identity(&self) -> Uuid {
        let text = std::fs::read_to_string(self.data_dir.join("node-id")).expect("an identity");
        text.trim().parse().expect("an identity")
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// Tells it to stop, and waits for that.
    pub async fn stop(&mut self) {
        self.process().signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.told());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let (mut process, end) = (self.process.take().expect("it was started"), Instant::now() + PATIENCE);
        loop {
            if let Some(status) = process.ended() {
                return status;
            }
            assert!(Instant::now() < end, "{} does not end: {}", self.name, self.told());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether anybody listens there.
    pub fn listens(&self) -> bool {
        TcpStream::connect(self.url.trim_start_matches("http://")).is_ok()
    }

    /// An operator's request, which must be answered with this status.
    pub async fn operate(&self, method: &str, path: &str, body: &Value, status: u16) -> Value {
        let answer = self.operated(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        answer.body
    }

    /// An operator's request.
    pub async fn operated(&self, method: &str, path: &str, body: &Value) -> Answer {
        let key = std::fs::read_to_string(self.data_dir.join("secrets/operator.key")).expect("a key");
        let http = reqwest::Client::builder().unix_socket(self.data_dir.join("admin.sock"));
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let http = http.timeout(LONGEST_ANSWER).build().expect("a client");
        let request = http.request(method, format!("http://operators{path}")).bearer_auth(key.trim());
        let request = if body.is_null() { request } else { request.json(body) };
        received(request.send().await.expect("an answer")).await
    }

    /// A new tenant.
    pub async fn tenant(&self) -> Tenant {
        let slug = format!("t-{}", &id().simple().to_string()[..12]);
        let new = json!({"name": slug, "slug": slug, "reason": "a test"});
        let made = self.operate("POST", "/admin/tenants", &new, 201).await;
        let id = made["tenant_id"].as_str().expect("an id").to_owned();
        let roles = json!({"name": "test", "roles": ["tenant_admin"], "reason": "a test"});
        let key = self.operate("POST", &format!("/admin/tenants/{id}/keys"), &roles, 201).await;
        Tenant { id, key: key["api_key"].as_str().expect("a key").to_owned() }
    }

    /// A tenant's request; an error when no answer came.
    pub async fn send(
        &self,
        http: &reqwest::Client,
        tenant: &Tenant,
        (method, path, body): (&str, &str, &Value),
    ) -> reqwest::Result<Answer> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = http.request(method, format!("{}{path}", self.url)).bearer_auth(&tenant.key);
        let request = if body.is_null() { request } else { request.json(body) };
        Ok(received(request.send().await?).await)
    }

    /// A tenant's request, which is answered.
    pub async fn ask(&self, tenant: &Tenant, method: &str, path: &str, body: &Value) -> Answer {
        let answer = self.send(&client(), tenant, (method, path, body)).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error:?}\n{}", self.told()))
    }

    /// A file, as a form.
    pub async fn upload(&self, tenant: &Tenant, name: &str, content: &str) -> Answer {
        let boundary = "boundary-of-the-test";
        let body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n{content}\r\n--{boundary}--\r\n"
        );
        let form = format!("multipart/form-data; boundary={boundary}");
        let request = client().post(format!("{}/documents/upload", self.url)).bearer_auth(&tenant.key);
        received(request.header("content-type", form).body(body).send().await.expect("an answer")).await
    }

    /// Waits until a tenant's graph is walked in Neo4j, as of all that was accepted, and the index answers too.
    pub async fn followed(&self, tenant: &Tenant, question: &str) {
        let (body, end) = (json!({"query": question, "mode": "mix"}), Instant::now() + PATIENCE);
        loop {
            let answer = self.ask(tenant, "POST", "/query/data", &body).await;
            let metadata = &answer.body["metadata"];
            let is_level = metadata["graph_seq"] == metadata["corpus_seq"] && answer.fallback().is_none();
            if answer.graph() == Some("neo4j") && is_level {
                let relations = answer.body["data"]["relationships"].as_array().expect("relations");
                assert!(!relations.is_empty(), "the graph is empty: {answer:?}");
                return;
            }
            assert!(Instant::now() < end, "not walked in Neo4j: {answer:?}\n{}", self.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until so many documents of a tenant are processed, and no other is there.
    pub async fn processed(&self, tenant: &Tenant, count: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let counts = self.ask(tenant, "GET", "/documents/status_counts", &Value::Null).await;
            let counts = &counts.body["status_counts"];
            let all = counts["all"].as_u64().unwrap_or_default();
            if counts["processed"].as_u64() == Some(count as u64) && all == count as u64 {
                return;
            }
            assert!(Instant::now() < end, "not {count} processed: {counts}\n{}", self.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn received(response: reqwest::Response) -> Answer {
    let status = response.status();
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let retry_after = retry_after.map(ToOwned::to_owned);
    let text = response.text().await.unwrap_or_default();
    Answer { status, retry_after, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        // Modes are copied too.
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}
