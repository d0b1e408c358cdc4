//! A server on a real database, reached as its users reach it: over TCP and the operators' socket. Its workers
//! are the test, which decides when a job is done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead::admin::Upkeep;
use bulkhead::app::Settings;
use bulkhead::domain::clock::{Clock, SystemClock};
use bulkhead::domain::ids::{IdSource, NamespaceName, SystemIds, TenantId};
use bulkhead::domain::lexical::Lexicon;
use bulkhead::http::{App, HttpSettings, Meters, Serving, serve};
use bulkhead::inference::{Embedder, EmbeddingSettings};
use bulkhead::jobs::projector::{Projector, ProjectorSettings};
use bulkhead::retrieval::Engine;
use bulkhead::store::memory::MemoryRateLimiter;
use bulkhead::store::postgres::administer::NewOperatorKey;
use bulkhead::store::postgres::ingest::ProcessedDocument;
use bulkhead::store::{Audit, AuditSettings};
use bulkhead::telemetry::Metrics;
use bulkhead::tenancy::{
    ApiKey, AuthSettings, Authenticator, Directory, KeyKind, KeyPepper, LimitSettings, Permit, TokenSigner,
    Write, reauthorise,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::database::first_operator;
use crate::deployment::{Harness, chunk};

/// A tenant with a key for each role.
pub struct Tenant {
    pub id: TenantId,
    pub slug: String,
    pub reader: String,
    pub writer: String,
    pub admin: String,
}

/// An answer: status, headers, and the body as JSON where it is.
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn slug(&self) -> &str {
        self.body["slug"].as_str().unwrap_or_default()
    }

    /// The body, but for what differs between any two answers.
    pub fn without_request_id(&self) -> Value {
        let mut body = self.body.clone();
        body.as_object_mut().map(|fields| fields.remove("request_id"));
        body
    }
}

/// A model that hashes words.
pub fn embedder() -> Embedder {
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".local");
    let embedding = EmbeddingSettings {
        model: "hashing".to_owned(),
        further: Vec::new(),
        model_dir: files.join("models"),
        cache_dir: files.join("cache"),
        onnxruntime: files.join("none"),
        max_tokens: 256,
        batch: 8,
        threads: 1,
        spinning: false,
        queue: 8,
        vector_cache: None,
    };
    Embedder::load(&embedding).expect("the model's tokenizer; run set-up")
}

/// The running server.
pub struct Site {
    pub harness: Harness,
    pub folder: TempDir,
    pub operator: String,
    pub client: Client,
    operators: Client,
    serving: Serving,
    audit: Audit,
}

impl Site {
    pub async fn new() -> Self {
        Self::with(HttpSettings::default()).await
    }

    pub async fn with(limits: HttpSettings) -> Self {
        Self::over(Harness::new().await, limits).await
    }

    /// Over a database that is reached in a way of its own.
    pub async fn over(harness: Harness, limits: HttpSettings) -> Self {
        Self::built(harness, limits, LimitSettings::default(), AuthSettings::default()).await
    }

    pub async fn with_auth(limits: HttpSettings, auth: AuthSettings) -> Self {
        Self::built(Harness::new().await, limits, LimitSettings::default(), auth).await
    }

    pub async fn limited(limits: HttpSettings, quotas: LimitSettings) -> Self {
        Self::built(Harness::new().await, limits, quotas, AuthSettings::default()).await
    }

    async fn built(
        harness: Harness,
        limits: HttpSettings,
        quotas: LimitSettings,
        auth: AuthSettings,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("folder");
        let clock: Arc<dyn Clock> = Arc::new(harness.clock.clone());
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds(SystemClock));
        let pepper = KeyPepper::new([9; 32]);
        let operator = ApiKey::generate(KeyKind::Operator, ids.as_ref());
        let digest = operator.digest(&pepper);
        let stored = NewOperatorKey { key_id: operator.id(), digest, name: "test" };
        let act = first_operator(&harness.postgres);
        harness.stores.operator_require(act, stored).await.expect("operator");
        let key = folder.path().join("token-key.pem");
        let signer =
            TokenSigner::load_or_create(&key, &auth, Arc::clone(&clock), Arc::clone(&ids)).expect("signer");
        let directory: Arc<dyn Directory> = Arc::new(harness.postgres.clone());
        let authenticator =
            Authenticator::new(directory, &auth, Arc::clone(&clock), KeyPepper::new([9; 32]), Some(&signer));
        let log = Arc::new(bulkhead::store::postgres::audit::PostgresAudit::new(
            harness.postgres.clone(),
            "node-1",
        ));
        let audit = Audit::start(log, AuditSettings::default(), Arc::clone(&clock), &[3; 32]);
        let limits =
            HttpSettings { address: ([127, 0, 0, 1], 0).into(), workers: 2, shutdown_seconds: 1, ..limits };
        let embedder = embedder();
        let settings: Settings = bulkhead::config::load(None).expect("the defaults");
        let lexicon = Arc::new(Lexicon::new(settings.lexical));
        let engine =
            Engine::new(embedder.clone(), lexicon, settings.retrieval, Arc::clone(&clock), Arc::new(|_| ()));
        let directory: Arc<dyn Directory> = Arc::new(harness.postgres.clone());
        let projector = Projector::new(
            harness.stores.clone(),
            Arc::clone(&directory),
            ProjectorSettings::default(),
            "node-1",
            Arc::clone(&clock),
        );
        let upkeep = Upkeep {
            calls: Arc::default(),
            indexes: Arc::new(projector),
            directory,
            graphs: None,
            placements: None,
            margin: Duration::ZERO,
        };
        let app = App {
            engine,
            stores: harness.stores.clone(),
            authenticator: Arc::new(authenticator.expect("authenticator")),
            signer: Arc::new(signer),
            pepper: Arc::new(pepper),
            session_ttl: 3600,
            embedder,
            language_model: None,
            audit: audit.clone(),
            meters: Meters::new(&limits),
            rates: Arc::new(MemoryRateLimiter::new(1000, Arc::clone(&clock))),
            quotas,
            clock,
            ids,
            limits,
            node: "node-1".to_owned(),
            started: Instant::now(),
            configuration: json!({}),
            wake: Arc::default(),
            upkeep,
            on_change: Arc::new(|_| ()),
            metrics: Arc::new(Metrics::new(2, 10, Arc::new(SystemClock))),
            metrics_address: None,
            readiness: Arc::default(),
        };
        let socket = folder.path().join("admin.sock");
        let serving = serve(Arc::new(app), Some(&socket)).expect("served");
        let operators = Client::builder().unix_socket(socket).build().expect("client");
        let client = Client::builder().no_proxy().build().expect("client");
        let operator = operator.expose().expose_secret().to_owned();
        Self { harness, folder, operator, client, operators, serving, audit }
    }

    pub async fn stop(self) {
        self.serving.stop().await;
        self.audit.flush().await;
        drop(self.audit);
        self.harness.close().await;
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.serving.address()
    }

    /// Where operators are served besides the socket.
    pub fn admin_address(&self) -> Option<std::net::SocketAddr> {
        self.serving.admin_address()
    }

    pub fn url(&self) -> String {
        self.serving.url()
    }

    pub fn request(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.serving.url())).bearer_auth(key)
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        send(self.request(Method::GET, path, key)).await
    }

    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path, key).json(body)).await
    }

    pub async fn put(&self, path: &str, key: &str, body: &Value) -> Answer {
        send(self.request(Method::PUT, path, key).json(body)).await
    }

    pub async fn delete(&self, path: &str, key: &str) -> Answer {
        send(self.request(Method::DELETE, path, key)).await
    }

    /// Sends a file by hand-made form data.
    pub async fn upload(&self, key: &str, name: &str, bytes: &[u8]) -> Answer {
        send(self.upload_request(key, "file", name, bytes)).await
    }

    pub fn upload_request(&self, key: &str, field: &str, name: &str, bytes: &[u8]) -> RequestBuilder {
        let mut form = format!(
            "--x\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        form.extend_from_slice(bytes);
        form.extend_from_slice(b"\r\n--x--\r\n");
        self.request(Method::POST, "/documents/upload", key)
            .header("Content-Type", "multipart/form-data; boundary=x")
            .body(form)
    }

    pub async fn operate(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request =
            self.operators.request(method, format!("http://admin{path}")).bearer_auth(&self.operator);
        send(if body.is_null() { request } else { request.json(body) }).await
    }

    /// A new tenant with a key for each role, made by an operator.
    pub async fn tenant(&self, name: &str) -> Tenant {
        let body = json!({"name": name, "reason": "a test"});
        let tenant = self.operate(Method::POST, "/admin/tenants", &body).await;
        assert_eq!(tenant.status, StatusCode::CREATED, "{}", tenant.body);
        let id: uuid::Uuid = serde_json::from_value(tenant.body["tenant_id"].clone()).expect("an id");
        let mut keys = Vec::new();
        for role in ["reader", "writer", "tenant_admin"] {
            let body = json!({"name": role, "roles": [role], "reason": "a test"});
            let key = self.operate(Method::POST, &format!("/admin/tenants/{id}/keys"), &body).await;
            assert_eq!(key.status, StatusCode::CREATED, "{}", key.body);
            keys.push(key.body["api_key"].as_str().expect("a key").to_owned());
        }
        let [reader, writer, admin] = keys.try_into().expect("three keys");
        let slug = tenant.body["slug"].as_str().expect("a slug").to_owned();
        Tenant { id: TenantId(id), slug, reader, writer, admin }
    }

    pub async fn permit(&self, tenant: &Tenant) -> Permit<Write> {
        reauthorise(&self.harness.postgres, tenant.id, "test").await.expect("directory").expect("active")
    }

    /// Does what is due in a namespace, as a worker would: each document becomes one chunk of its text.
    pub async fn process(&self, tenant: &Tenant, namespace: &str) -> usize {
        let permit = self.permit(tenant).await;
        let name = NamespaceName::parse(namespace).expect("name");
        let corpus = self.harness.stores.background(&permit).corpus_require(&name).await.expect("opened");
        let corpus = corpus.expect("reached");
        let leased = self.harness.lease(&corpus).await;
        let tasks = corpus.job_open(&leased).await.expect("opened");
        for task in &tasks {
            let text = task.body.clone().unwrap_or_else(|| task.file_name.clone());
            let processed = ProcessedDocument {
                job: task.job,
                lease: task.lease,
                document_id: task.document_id.clone(),
                version: task.version,
                title: None,
                chunks: vec![chunk(0, &text)],
            };
            corpus.documents_commit(&[processed]).await.expect("committed");
        }
        tasks.len()
    }
}

pub async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await.expect("a body").to_vec();
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    Answer { status, headers, body, bytes }
}
