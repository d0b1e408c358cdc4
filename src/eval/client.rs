//! A tenant's way to a server that is measured: its API, and nothing else.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

/// A tenant's key at a server's address, in one namespace.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: SecretString,
    namespace: String,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server did not answer.
    #[error("the server did not answer")]
    Http(#[from] reqwest::Error),
    /// The server answered otherwise than it should.
    #[error("the server answered {0}")]
    Answer(String),
    /// What was asked for is not there.
    #[error("the server answered {0}")]
    Missing(String),
}

/// How many documents are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// In any state.
    pub all: usize,
    /// That can be found.
    pub processed: usize,
    /// That came to nothing.
    pub failed: usize,
}

/// How often a call is repeated that was refused since there were too many.
const TRIES: u32 = 120;
/// How long to wait before.
const PAUSE: Duration = Duration::from_millis(500);
/// How many times as long as counting takes it is not counted.
const COUNTED_EVERY: u32 = 15;

impl Client {
    /// A client of the server at `url`, as `http://127.0.0.1:9621`.
    #[must_use]
    pub fn new(url: &str, key: SecretString, namespace: &str) -> Self {
        Self::over(reqwest::Client::new(), url, key, namespace)
    }

    /// The same over these connections.
    #[must_use]
    pub fn over(http: reqwest::Client, url: &str, key: SecretString, namespace: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        Self { http, url, key, namespace: namespace.to_owned() }
    }

    /// The same, with connections of its own.
    #[must_use]
    pub fn on_connections_of_its_own(&self) -> Self {
        Self { http: reqwest::Client::new(), ..self.clone() }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Posts a body.
    ///
    /// # Errors
    /// [`ClientError`]; whatever is not 2xx is `Answer`.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send(path, || self.request(Method::POST, path).json(body)).await
    }

    /// Puts a document under an id of the caller's. Returns when it is accepted.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub async fn put(&self, id: &str, title: Option<&str>, text: &str) -> Result<(), ClientError> {
        let path = format!("/documents/{id}");
        let body = json!({"title": title, "text": text});
        self.send(&path, || self.request(Method::PUT, &path).json(&body)).await.map(drop)
    }

    /// Deletes a document.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub async fn delete(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("/documents/{id}");
        self.send(&path, || self.request(Method::DELETE, &path)).await.map(drop)
    }

    /// How many documents there are.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub async fn counts(&self) -> Result<Counts, ClientError> {
        let path = "/documents/status_counts";
        let answer = match self.send(path, || self.request(Method::GET, path)).await {
            // A namespace begins with its first document.
            Err(ClientError::Missing(_)) => Value::Null,
            answer => answer?,
        };
        let count = |name: &str| {
            let count = answer["status_counts"][name].as_u64();
            usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX)
        };
        Ok(Counts { all: count("all"), processed: count("processed"), failed: count("failed") })
    }

    /// Waits until so many documents can be found, telling how many there are.
    ///
    /// # Errors
    /// As [`Client::post`]; `Answer` too when one failed.
    pub async fn processed(&self, documents: usize, tell: impl Fn(usize)) -> Result<(), ClientError> {
        loop {
            let counting = tokio::time::Instant::now();
            let counts = self.counts().await?;
            if counts.failed > 0 {
                return Err(ClientError::Answer(format!("{} failed documents", counts.failed)));
            }
            tell(counts.processed);
            if counts.processed >= documents {
                return Ok(());
            }
            // Counting takes longer the more there is to count, and must not be what is measured.
            tokio::time::sleep(counting.elapsed() * COUNTED_EVERY).await;
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        request.bearer_auth(self.key.expose_secret()).header("X-Namespace", &self.namespace)
    }

    /// Sends; waits and repeats what is refused since there are too many.
    async fn send(&self, path: &str, request: impl Fn() -> RequestBuilder) -> Result<Value, ClientError> {
        for _ in 0..TRIES {
            let answer = request().send().await?;
            let status = answer.status();
            if status == StatusCode::TOO_MANY_REQUESTS {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let body = answer.bytes().await?;
            if !status.is_success() {
                let words = format!("{path}: {status} {}", String::from_utf8_lossy(&body));
                return Err(match status {
                    StatusCode::NOT_FOUND => ClientError::Missing(words),
                    _ => ClientError::Answer(words),
                });
            }
            return serde_json::from_slice(&body)
                .map_err(|error| ClientError::Answer(format!("{path}: {error}")));
        }
        Err(ClientError::Answer(format!("{path}: too many requests, again and again")))
    }
}
