//! The server as a child process, over a folder that outlives it, and the words in which it is spoken to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::place::Place;

/// How long anything may take under the load of all other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A data folder, the settings of the servers over it, and the key of its one tenant.
pub struct Ground {
    place: Place,
    settings: PathBuf,
    key: String,
    /// The tenant's identity.
    pub tenant: String,
    pub http: reqwest::Client,
}

impl Ground {
    /// A new folder in which a server ran once, made a tenant and stopped in order.
    pub async fn new(model: &str) -> Self {
        Self::logging(model, "warn").await
    }

    /// The same, and what its servers log.
    pub async fn logging(model: &str, filter: &str) -> Self {
        // Another test may have installed it; either way there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place = Place::new();
        let settings = place.base.path().join("settings.toml");
        let http = reqwest::Client::builder().timeout(PATIENCE).build().expect("client");
        let mut ground = Self { place, settings, key: String::new(), tenant: String::new(), http };
        let toml = format!(
            r#"data_dir = "{}"
            telemetry.filter = '{filter}'
            [orphans]
            every_seconds = 1
            margin_seconds = 3
            [limits.tenant]
            requests_per_minute = 1000000
            [embedding]
            model = {model:?}
            [database]
            install = "{}"
            [database.server]
            shared_buffers_mib = 16
            relocation = "{}""#,
            ground.place.paths.data_dir.display(),
            ground.place.paths.install.display(),
            ground.place.settings.relocation.display(),
        );
        fs::write(&ground.settings, toml).expect("settings");
        let server = ground.start(None).await;
        (ground.tenant, ground.key) = server.tenant(&ground).await;
        assert!(server.terminate().success(), "a server that is told to stop ends well");
        ground
    }

    /// Starts a server, which ends at a crash point if one is named, and waits until it answers.
    pub async fn start(&self, crash_at: Option<&str>) -> Running {
        self.start_with(&crash_at.map(|point| ("BULKHEAD_CRASH_AT", point)).into_iter().collect::<Vec<_>>())
            .await
    }

    /// Starts a server with these variables in its environment, and waits until it answers.
    pub async fn start_with(&self, environment: &[(&str, &str)]) -> Running {
        self.start_by(&[], environment).await
    }

    /// The same by a program that becomes the server, with its arguments.
    pub async fn start_by(&self, program: &[&str], environment: &[(&str, &str)]) -> Running {
        let begun = Instant::now();
        let mut running = self.launched(program, environment);
        while self.http.get(format!("{}/health", running.url)).send().await.is_err() {
            let ended = running.child.try_wait().expect("its state");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "it does not answer: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.took = begun.elapsed();
        running
    }

    /// Starts a server that ends at a crash point by itself, perhaps before it answers, and waits for that.
    pub fn one_life(&self, crash_at: &str) -> ExitStatus {
        self.launched(&[], &[("BULKHEAD_CRASH_AT", crash_at)]).ended()
    }

    fn launched(&self, program: &[&str], environment: &[(&str, &str)]) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let path = self.place.base.path().join("server.log");
        let log = File::options().create(true).append(true).open(path).expect("log");
        let mut words = program.iter().copied().chain([env!("CARGO_BIN_EXE_bulkhead")]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg("serve")
            .env("BULKHEAD_CONFIG", &self.settings)
            .env("BULKHEAD__HTTP__ADDRESS", address.to_string())
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(environment.iter().copied());
        let child = command.spawn().expect("the server");
        Running { child, url: format!("http://{address}"), took: Duration::ZERO }
    }

    /// The key of its tenant.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// All that the servers logged.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.place.base.path().join("server.log")).unwrap_or_default()
    }

    /// The end of what the servers logged.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The PostgreSQL that its own file names and that works in this folder.
    pub fn postgres(&self) -> Option<i32> {
        let cluster = self.place.paths.data_dir.join("postgres");
        let text = fs::read_to_string(cluster.join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.parse().ok()?;
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == cluster).then_some(pid)
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.place.paths.data_dir
    }

    /// A call of the tenant in a namespace.
    pub fn request(&self, server: &Running, method: &str, path: &str, namespace: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self.http.request(method, format!("{}{path}", server.url)).bearer_auth(&self.key);
        request.header("X-Namespace", namespace)
    }

    /// A file as a form.
    pub fn upload(&self, server: &Running, namespace: &str, name: &str, content: &str) -> RequestBuilder {
        let head = format!("Content-Disposition: form-data; name=\"file\"; filename=\"{name}\"");
        let body = format!("--edge\r\n{head}\r\n\r\n{content}\r\n--edge--\r\n");
        let request = self.request(server, "POST", "/documents/upload", namespace);
        request.header("Content-Type", "multipart/form-data; boundary=edge").body(body)
    }

    /// Status and body; none when the server is gone or going. A server that cannot says when to come again.
    pub async fn answered(&self, request: RequestBuilder) -> Option<(u16, Value)> {
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        if status == 503 {
            assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
            return None;
        }
        // An answer that breaks off is none.
        let text = answer.text().await.ok()?;
        assert!(status < 500, "{status} {text}\n{}", self.log());
        Some((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    /// Sends a call of the tenant; no answer when the server is gone or going.
    pub async fn try_post(&self, server: &Running, path: &str, body: &Value, once: &str) -> Option<Value> {
        let request = self.request(server, "POST", path, "default").json(body);
        let request = if once.is_empty() { request } else { request.header("Idempotency-Key", once) };
        let (status, answer) = self.answered(request).await?;
        assert!(status < 300, "{path}: {status} {answer}\n{}", self.log());
        Some(answer)
    }

    /// Every document that is listed, as soon as none waits any more.
    pub async fn settled(&self, server: &Running) -> Vec<Value> {
        self.settled_in(server, "default").await
    }

    /// The same of any namespace.
    pub async fn settled_in(&self, server: &Running, namespace: &str) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let mut documents = Vec::new();
            for page in 1.. {
                let asked =
                    json!({"page": page, "page_size": 200, "sort_field": "id", "sort_direction": "asc"});
                let request = self.request(server, "POST", "/documents/paginated", namespace).json(&asked);
                let (status, listed) = self.answered(request).await.expect("an answer");
                if status == 404 {
                    // The namespace is not there.
                    return documents;
                }
                documents.extend(listed["documents"].as_array().expect("documents").iter().cloned());
                if listed["pagination"]["has_next"] != true {
                    break;
                }
            }
            let ended =
                |document: &Value| ["processed", "failed"].iter().any(|state| document["status"] == *state);
            if documents.iter().all(ended) {
                return documents;
            }
            assert!(begun.elapsed() < PATIENCE, "documents wait without end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many chunks the namespace says it has.
    pub async fn chunks(&self, server: &Running) -> i64 {
        let request = self.http.get(format!("{}/namespaces", server.url)).bearer_auth(&self.key);
        let answer: Value = request.send().await.expect("answer").json().await.expect("JSON");
        answer["namespaces"]
            .as_array()
            .expect("namespaces")
            .iter()
            .filter_map(|one| one["chunks"].as_i64())
            .sum()
    }

    /// How often each name is among what a word finds.
    pub async fn found(&self, server: &Running, word: &str) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for (name, _) in self.texts(server, "default", word).await {
            *names.entry(name).or_default() += 1;
        }
        names
    }

    /// The default namespace's history.
    pub async fn history(&self, server: &Running) -> i64 {
        let answer = self.answered(self.request(server, "GET", "/namespaces", "default")).await;
        answer.expect("an answer").1["namespaces"][0]["corpus_seq"].as_i64().expect("a number")
    }

    /// Name and text of every chunk that a word finds and that holds it.
    pub async fn texts(&self, server: &Running, namespace: &str, word: &str) -> Vec<(String, String)> {
        let asked =
            json!({"query": word, "mode": "naive", "chunk_top_k": 200, "max_total_tokens": 1_000_000});
        let request = self.request(server, "POST", "/query/data", namespace).json(&asked);
        let (status, answer) = self.answered(request).await.expect("an answer");
        assert!(status == 200 || status == 404, "{status} {answer}");
        let chunks = answer["data"]["chunks"].as_array().cloned().unwrap_or_default();
        let field = |chunk: &Value, name: &str| chunk[name].as_str().expect("a text").to_owned();
        let texts = chunks.iter().map(|chunk| (field(chunk, "file_path"), field(chunk, "content")));
        texts.filter(|(_, text)| text.contains(word)).collect()
    }

    /// Every file and folder below a part of the data folder.
    pub fn below(&self, part: &str) -> Vec<PathBuf> {
        let mut folders = vec![self.data().join(part)];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            // What goes meanwhile is not there.
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found
    }

    /// Adds to the settings of the servers that start from now on.
    pub fn set(&self, further: &str) {
        let settings = fs::read_to_string(&self.settings).expect("settings");
        // Before the first section.
        fs::write(&self.settings, format!("{further}\n{settings}")).expect("settings");
    }

    /// Halts every process of the private PostgreSQL, or lets them go on.
    pub fn halt_postgres(&self, halt: bool) {
        let cluster = self.place.paths.data_dir.join("postgres");
        let signal = if halt { Signal::SIGSTOP } else { Signal::SIGCONT };
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let inside = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == cluster);
            if let Some(pid) = pid.filter(|_| inside) {
                // One that ended meanwhile is gone either way.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    /// Ends the private PostgreSQL without a warning.
    pub fn kill_postgres(&self) {
        let pid = self.postgres().expect("PostgreSQL runs");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    }

    /// Does what an operator does, at the socket; no answer when the server is gone.
    pub async fn operate(&self, method: &str, path: &str, body: &Value) -> Option<Value> {
        let operator =
            fs::read_to_string(self.data().join("secrets/operator.key")).expect("the operator's key");
        let socket = reqwest::Client::builder().unix_socket(self.data().join("admin.sock")).build();
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = socket.expect("client").request(method, format!("http://operators{path}"));
        let answer = request.bearer_auth(operator.trim()).json(body).send().await.ok()?;
        answer.json().await.ok()
    }
}

/// A server that answers. Killed when it is let go.
pub struct Running {
    child: Child,
    url: String,
    /// From its start to its first answer.
    pub took: Duration,
}

impl Running {
    /// Where it answers.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number"))
    }

    /// Kills it without a warning.
    pub fn kill(mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Asks it to stop, without waiting.
    pub fn ask_to_stop(&self) {
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_some()
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop and waits for its end.
    pub fn terminate(mut self) -> ExitStatus {
        self.ask_to_stop();
        self.ended()
    }

    /// Makes a tenant and a key that may do everything a tenant may.
    pub async fn tenant(&self, ground: &Ground) -> (String, String) {
        let tenant = json!({"name": "Crash", "reason": "a test"});
        let tenant = ground.operate("POST", "/admin/tenants", &tenant).await.expect("an answer");
        let id = tenant["tenant_id"].as_str().expect("a tenant").to_owned();
        let key = json!({"name": "all", "roles": ["tenant_admin"], "reason": "a test"});
        let key =
            ground.operate("POST", &format!("/admin/tenants/{id}/keys"), &key).await.expect("an answer");
        (id, key["api_key"].as_str().expect("a key").to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
