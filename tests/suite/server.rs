//! One real server for all tests that speak HTTP, and the words in which they speak.
//!
//! The server runs in this process, on threads of its own, since a test's runtime ends with the test. A shell
//! that waits for this process to end stops its PostgreSQL and removes its folder, however the process ends.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead::app::{GraphBackend, Server, Settings, VectorBackend};
use bulkhead::config;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds};
use bulkhead::store::CacheBackend;
use bulkhead::store::audit::AuditBackend;
use bulkhead::tenancy::LimitBackend;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// How long a test waits for the server to do what it was asked to, under the load of all other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);

static SHARED: OnceLock<TestServer> = OnceLock::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The server that tests share. Each makes tenants of its own.
pub fn server() -> &'static TestServer {
    SHARED.get_or_init(|| TestServer::start(&new_folder("shared"), ""))
}

/// A folder that goes when this process ends, and with it the PostgreSQL in it.
pub fn new_folder(name: &str) -> PathBuf {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
    fs::create_dir_all(&base).expect("folder");
    // Waits for the end of its input, which is this process' end, and ends only what works in the folder.
    let script = "cat >/dev/null
        for file in \"$0\"/data/postgres/postmaster.pid \"$0\"/relocated/*/postgres/postmaster.pid; do
            pid=$(head -n 1 \"$file\" 2>/dev/null) || continue
            [ \"$(readlink \"/proc/$pid/cwd\")\" = \"$(dirname \"$file\")\" ] && kill -QUIT \"$pid\"
        done
        sleep 0.3
        rm -rf \"$0\"";
    let guard = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(&base)
        // An interrupt from the terminal is not for it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    // Never dropped, so that its input ends with this process.
    std::mem::forget(guard);
    base
}

/// A running server.
pub struct TestServer {
    pub url: String,
    pub data_dir: PathBuf,
    /// Where metrics are served, when the settings say so.
    pub metrics: Option<String>,
    #[cfg(feature = "laboratory")]
    pub laboratory: bulkhead::app::Laboratory,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl TestServer {
    /// Starts a server over a folder, new or left by another, with further settings (TOML).
    pub fn start(base: &Path, further: &str) -> Self {
        let data_dir = base.join("data");
        let settings = settings(base, &data_dir, further);
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
            threads.block_on(async move {
                let server = Server::build(settings).await.expect("a server");
                #[cfg(feature = "laboratory")]
                let told = (server.address(), server.metrics_address(), server.laboratory());
                #[cfg(not(feature = "laboratory"))]
                let told = (server.address(), server.metrics_address(), ());
                tell.send(told).expect("somebody waits");
                // Of the shared server the other end is never dropped: it ends with the process.
                let _ended = stopped.await;
                server.stop().await.expect("stopped");
            });
        });
        let thread = thread.expect("a thread");
        #[cfg(feature = "laboratory")]
        let (address, metrics, laboratory) = told.recv().expect("the server starts");
        #[cfg(not(feature = "laboratory"))]
        let (address, metrics, ()) = told.recv().expect("the server starts");
        Self {
            url: format!("http://{address}"),
            data_dir,
            metrics: metrics.map(|address| format!("http://{address}")),
            #[cfg(feature = "laboratory")]
            laboratory,
            stop,
            thread,
        }
    }

    /// Stops it in order.
    pub fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.thread.join().expect("it stops");
    }

    /// The operator, at the Unix socket.
    pub fn operator(&self) -> Client {
        let key = fs::read_to_string(self.data_dir.join("secrets/operator.key")).expect("the operator's key");
        let http = reqwest::Client::builder().unix_socket(self.data_dir.join("admin.sock"));
        Client {
            http: http.build().expect("client"),
            url: "http://operators".to_owned(),
            headers: HeaderMap::new(),
        }
        .with("authorization", &format!("Bearer {}", key.trim()))
    }

    /// A caller without a credential.
    pub fn anybody(&self) -> Client {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().expect("client");
        Client { http, url: self.url.clone(), headers: HeaderMap::new() }
    }

    /// A caller with this credential.
    pub fn caller(&self, key: &str) -> Client {
        self.anybody().with("authorization", &format!("Bearer {key}"))
    }

    /// A new tenant with a key of every role.
    pub async fn tenant(&self, name: &str) -> Tenant {
        let operator = self.operator();
        let slug = format!("{name}-{}", random(8));
        let made = operator
            .post("/admin/tenants", &json!({"name": name, "slug": slug, "reason": "a test"}), 201)
            .await;
        let id = text(&made, "tenant_id");
        let mut keys = Vec::new();
        for role in ["reader", "writer", "tenant_admin"] {
            keys.push(operator.make_key(&id, &[role]).await);
        }
        let [reader, writer, admin] = keys.try_into().expect("three roles");
        Tenant {
            id,
            slug,
            reader: self.caller(&reader.secret),
            writer: self.caller(&writer.secret),
            admin: self.caller(&admin.secret),
            admin_key: admin,
        }
    }

    /// Two new tenants.
    pub async fn tenants(&self) -> (Tenant, Tenant) {
        (self.tenant("alice").await, self.tenant("bob").await)
    }
}

/// The settings of a server in this folder, written into its `settings.toml` too.
pub fn settings(base: &Path, data_dir: &Path, further: &str) -> Settings {
    let file = base.join("settings.toml");
    let toml = format!(
        "data_dir = '{}'
        http.address = '127.0.0.1:0'
        http.progress_poll_ms = 50
        parse.cpu_seconds = 3
        ingestion.max_attempts = 2
        parse.wall_seconds = 20
        ingestion.max_chunks = 1000
        limits.tenant.requests_per_minute = 1000000
        limits.address_requests_per_minute = 10000000
        limits.address_refusals_per_minute = 1000000
        database.server.durable = false
        database.server.shared_buffers_mib = 16
        database.server.relocation = '{}'
        {}
        {further}",
        data_dir.display(),
        base.join("relocated").display(),
        profile(),
    );
    fs::write(&file, toml).expect("settings");
    let mut settings: Settings = config::load(Some(&file)).expect("settings");
    settings.database.url = String::new();
    if let Some(install) = std::env::var_os("BULKHEAD_POSTGRES_INSTALL") {
        settings.database.install = install.into();
    }
    settings.program = Some(PathBuf::from(env!("CARGO_BIN_EXE_bulkhead")));
    assert!(
        !is_on_services() || on_services(&settings),
        "a server of the services profile is on all of them"
    );
    settings
}

/// Whether servers are on the services that the environment points them at: the services profile.
pub fn is_on_services() -> bool {
    match std::env::var("BULKHEAD_TEST_PROFILE").as_deref() {
        Err(_) | Ok("embedded") => false,
        Ok("services") => true,
        Ok(other) => panic!("BULKHEAD_TEST_PROFILE is {other}: embedded or services"),
    }
}

/// What a server of that profile has for itself. What is in Qdrant and Redis is told apart by the server's own secrets.
fn profile() -> String {
    if is_on_services() { format!("audit.mongodb.database = 'test_{}'", random(16)) } else { String::new() }
}

/// Whether it uses every service that there is.
fn on_services(settings: &Settings) -> bool {
    settings.vectors.backend == VectorBackend::Qdrant
        && settings.audit.backend == AuditBackend::Mongodb
        && settings.graph.backend == GraphBackend::Neo4j
        && settings.limits.backend == LimitBackend::Redis
        && settings.cache.backend == CacheBackend::Redis
}

/// An identifier that nothing has.
pub fn random_id() -> String {
    SystemIds(SystemClock).uuid().to_string()
}

/// Letters and digits that nobody else has.
pub fn random(length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        text.push_str(&hex::encode(SystemIds(SystemClock).secret()));
    }
    text.truncate(length);
    text
}

/// A word in the form of a name that nobody else has.
pub fn random_name() -> String {
    let letters = SystemIds(SystemClock).secret();
    let pair = |byte: u8| ["ba", "ke", "di", "lo", "nu", "ri", "sa", "ve"][usize::from(byte % 8)];
    let name: String = letters.iter().take(7).map(|byte| pair(*byte)).collect();
    name[..1].to_uppercase() + &name[1..]
}

/// A text field.
pub fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}")).to_owned()
}

/// A tenant, and a caller for each of its keys.
#[derive(Clone)]
pub struct Tenant {
    pub id: String,
    pub slug: String,
    pub reader: Client,
    pub writer: Client,
    pub admin: Client,
    pub admin_key: Key,
}

/// A key that was made.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    pub secret: String,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Every byte that the caller got, but for the request's id, the date and the numbers of its own requests,
    /// which differ in any two answers.
    pub fn all(&self) -> String {
        let mut all = format!("{}\n", self.status);
        let mut fields: Vec<_> = self.headers.iter().collect();
        fields.sort_by_key(|(name, _)| name.as_str());
        let id = self.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("no id");
        for (name, value) in fields {
            // A connection is closed when a body was not read to its end, which is a matter of timing.
            let differs = ["date", "x-request-id", "connection"].contains(&name.as_str())
                || name.as_str().starts_with("ratelimit");
            if !differs {
                let _ = writeln!(all, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
            }
        }
        all + &self.text().replace(id, "REQUEST-ID")
    }
}

/// A caller.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    headers: HeaderMap,
}

impl Client {
    /// The same with a header.
    pub fn with(&self, name: &'static str, value: &str) -> Self {
        let mut other = self.clone();
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("header");
        other.headers.insert(HeaderName::from_static(name), value);
        other
    }

    /// The same without a header.
    pub fn without(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.headers.remove(name);
        other
    }

    /// A request of this caller, not sent yet.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("method");
        self.http.request(method, format!("{}{path}", self.url)).headers(self.headers.clone())
    }

    /// Sends a request with a body of JSON, or with none when it is null.
    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let request = self.request(method, path);
        received(if body.is_null() { request } else { request.json(body) }).await
    }

    async fn expect(&self, method: &str, path: &str, body: &Value, status: u16) -> Value {
        let answer = self.send(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.text());
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    pub async fn get(&self, path: &str, status: u16) -> Value {
        self.expect("GET", path, &Value::Null, status).await
    }

    pub async fn post(&self, path: &str, body: &Value, status: u16) -> Value {
        self.expect("POST", path, body, status).await
    }

    pub async fn put(&self, path: &str, body: &Value, status: u16) -> Value {
        self.expect("PUT", path, body, status).await
    }

    pub async fn delete(&self, path: &str, body: &Value, status: u16) -> Value {
        self.expect("DELETE", path, body, status).await
    }

    /// Sends a file as a form.
    pub async fn upload(&self, name: &str, content: &[u8]) -> Answer {
        let boundary = "boundary-of-the-test";
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let body = [head.as_bytes(), content, format!("\r\n--{boundary}--\r\n").as_bytes()].concat();
        let form = format!("multipart/form-data; boundary={boundary}");
        received(self.request("POST", "/documents/upload").header("content-type", form).body(body)).await
    }

    /// Puts a document and waits until it can be found.
    pub async fn put_document(&self, id: &str, title: &str, text: &str) -> Value {
        let body = json!({"text": text, "title": title, "file_name": format!("{id}.txt")});
        let request = self.request("PUT", &format!("/documents/{id}")).header("prefer", "wait=60");
        let answer = received(request.json(&body)).await;
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
        assert_eq!(answer.json()["status"], "processed");
        answer.json()
    }

    /// Waits until every document of a call has ended, and tells how.
    pub async fn wait_ended(&self, track: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.get(&format!("/documents/track_status/{track}"), 200).await;
            let documents = status["documents"].as_array().expect("documents");
            let ended = documents
                .iter()
                .all(|document| document["status"] == "processed" || document["status"] == "failed");
            if ended && !documents.is_empty() {
                return status;
            }
            assert!(Instant::now() < until, "still not processed: {status}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until every document of a call can be found.
    pub async fn wait_processed(&self, track: &str) -> Value {
        let status = self.wait_ended(track).await;
        for document in status["documents"].as_array().expect("documents") {
            assert_eq!(document["status"], "processed", "{document}");
        }
        status
    }

    /// The material for a question.
    pub async fn query(&self, question: &str) -> Value {
        self.post("/query/data", &json!({"query": question}), 200).await
    }

    /// Makes a key. Operators can.
    pub async fn make_key(&self, tenant: &str, roles: &[&str]) -> Key {
        let body = json!({"name": "test", "roles": roles, "reason": "a test"});
        let made = self.post(&format!("/admin/tenants/{tenant}/keys"), &body, 201).await;
        Key { id: text(&made, "key_id"), secret: text(&made, "api_key") }
    }
}

/// Sends a request and receives its whole answer.
pub async fn received(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.expect("a whole answer") }
}
