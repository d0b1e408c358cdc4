//! Questions are asked of whole servers, workers and models included, by tenants of whom each has words of
//! its own: what they send, what comes back, and how to see whose it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::oracle::assert_without;
use crate::server::{PATIENCE, TestServer, new_folder, server};

/// A running server: the one that tests share, or one with settings of its own.
pub struct Running {
    own: Option<TestServer>,
}

/// A tenant with one key that may do everything a tenant may.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    pub key: String,
    pub key_id: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub media_type: String,
    pub text: String,
    pub body: Value,
}

impl Answer {
    /// The values of an answer in lines.
    pub fn lines(&self) -> Vec<Value> {
        let line =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("a line of JSON: {line}"));
        self.text.lines().map(line).collect()
    }

    /// The values of server-sent events; `[DONE]` is left out.
    pub fn events(&self) -> Vec<Value> {
        let events = self.text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        events
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect()
    }
}

impl Running {
    /// The one that tests share.
    pub async fn shared() -> Arc<Self> {
        tokio::task::spawn_blocking(server).await.expect("a server");
        Arc::new(Self { own: None })
    }

    /// One of its own, with further settings (TOML).
    pub async fn with(name: &'static str, further: String) -> Arc<Self> {
        let start = move || TestServer::start(&new_folder(name), &further);
        let own = tokio::task::spawn_blocking(start).await.expect("a server");
        Arc::new(Self { own: Some(own) })
    }

    fn server(&self) -> &TestServer {
        self.own.as_ref().unwrap_or_else(|| server())
    }

    #[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
    pub fn request(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        self.server().caller(key).request(method.as_str(), path)
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        send(self.request(Method::GET, path, key)).await
    }

    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path, key).json(body)).await
    }

    /// A new tenant.
    pub async fn tenant(&self) -> Tenant {
        let tenant = self.server().tenant("asker").await;
        Tenant { id: tenant.id, key: tenant.admin_key.secret, key_id: tenant.admin_key.id }
    }

    /// Revokes a tenant's key.
    pub async fn revoke(&self, tenant: &Tenant) {
        let path = format!("/admin/tenants/{}/keys/{}", tenant.id, tenant.key_id);
        let gone = self.server().operator().send("DELETE", &path, &json!({"reason": "a test"})).await;
        assert!((200..300).contains(&gone.status), "{}", gone.text());
    }

    /// Suspends a tenant.
    pub async fn suspend(&self, tenant: &Tenant) {
        let path = format!("/admin/tenants/{}/suspend", tenant.id);
        self.server().operator().post(&path, &json!({"reason": "a test"}), 200).await;
    }

    /// Puts texts under file names into a namespace, and waits until they are found.
    pub async fn insert(&self, tenant: &Tenant, namespace: &str, files: &[(&str, &str)]) {
        for (name, text) in files {
            let body = json!({"text": text, "file_source": name});
            let request = self.request(Method::POST, "/documents/text", &tenant.key).json(&body);
            let taken = send(request.header("X-Namespace", namespace)).await;
            assert_eq!(taken.status, StatusCode::OK, "{}", taken.text);
        }
        self.processed(tenant, namespace, files.len() as u64).await;
    }

    /// Waits until so many documents of a namespace are found.
    pub async fn processed(&self, tenant: &Tenant, namespace: &str, count: u64) {
        let begun = Instant::now();
        loop {
            let request = self.request(Method::GET, "/documents/status_counts", &tenant.key);
            let counts = send(request.header("X-Namespace", namespace)).await;
            if counts.body["status_counts"]["processed"].as_u64() == Some(count) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "not processed: {}", counts.text);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            own.stop();
        }
    }
}

/// Sends a request and reads the answer to its end.
pub async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
    let media_type = media_type.unwrap_or_default().to_owned();
    let text = response.text().await.expect("a text");
    let body = serde_json::from_str(&text).unwrap_or_default();
    Answer { status, media_type, text, body }
}

/// Two tenants with files of the same names about the same things, each with words of its own.
pub struct Neighbours {
    pub server: Arc<Running>,
    pub alice: Tenant,
    pub bob: Tenant,
}

/// A question that both tenants' documents answer.
pub const QUESTION: &str = "Who inspected the Halden turbine?";
/// Words of Alice's documents alone.
pub const ALICES: [&str; 4] = ["Mara Quill", "Norvik Energy", "crack in blade", "Port Anselm"];
/// Words of Bob's documents alone.
pub const BOBS: [&str; 4] = ["Tove Lund", "Brenner Power", "replaced the gearbox", "Grey Heron"];

impl Neighbours {
    /// On the shared server.
    pub async fn new() -> Self {
        Self::on(Running::shared().await).await
    }

    /// On this server.
    pub async fn on(server: Arc<Running>) -> Self {
        let (alice, bob) = tokio::join!(server.tenant(), server.tenant());
        let hers = [
            (
                "turbine.txt",
                "The Halden turbine was inspected by Mara Quill on 3 May 2024. Norvik Energy owns the Halden turbine. Mara Quill found a crack in blade two.",
            ),
            (
                "harbour.txt",
                "The harbour of Port Anselm opened in 1990. Norvik Energy ships its blades from Port Anselm.",
            ),
        ];
        let his = [
            (
                "turbine.txt",
                "The Halden turbine was inspected by Tove Lund in winter. Brenner Power owns the Halden turbine. Tove Lund replaced the gearbox.",
            ),
            (
                "harbour.txt",
                "The harbour of the Grey Heron closed in 1971. Brenner Power bought the Grey Heron.",
            ),
        ];
        tokio::join!(server.insert(&alice, "default", &hers), server.insert(&bob, "default", &his));
        Self { server, alice, bob }
    }

    /// Each tenant with words that are its own and words that are its neighbour's.
    pub fn sides(&self) -> [(&Tenant, &'static [&'static str], &'static [&'static str]); 2] {
        [(&self.alice, &ALICES, &BOBS), (&self.bob, &BOBS, &ALICES)]
    }
}

/// Nothing of a neighbour is in an answer, and every tenant that it names is its reader's own.
pub fn assert_own(answer: &Answer, tenant: &Tenant, foreign: &[&str]) {
    assert_without(&answer.text, foreign.iter().copied(), "a neighbour's answer");
    let mut found = Vec::new();
    tenants(&answer.body, &mut found);
    assert!(found.iter().all(|id| *id == tenant.id), "a neighbour's id: {}", answer.text);
}

/// Every tenant that a value names.
fn tenants<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("tenant_id").and_then(Value::as_str));
            fields.values().for_each(|value| tenants(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| tenants(item, found)),
        _ => {}
    }
}
