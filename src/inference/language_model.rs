//! A language model behind any endpoint that speaks OpenAI's chat protocol.

use std::time::Duration;

use futures::{Stream, StreamExt};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Where the language model is. Without a URL there is none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageModelSettings {
    /// Base address, as `https://host/v1`; empty: no language model.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// Its credential.
    pub api_key: Option<SecretString>,
    /// A file that holds its credential.
    pub api_key_file: Option<std::path::PathBuf>,
    /// Seconds until an answer must be complete.
    pub timeout_seconds: u64,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// Why there is no answer. Never holds what was asked or answered.
#[derive(Debug, thiserror::Error)]
pub enum LanguageModelError {
    /// The settings cannot work.
    #[error("{0}")]
    Settings(String),
    /// The endpoint is away or refuses.
    #[error("the language model cannot be reached")]
    Unavailable(#[source] reqwest::Error),
    /// The endpoint answered with an error.
    #[error("the language model answered with status {0}")]
    Status(u16),
    /// The endpoint's answer is not what the protocol says.
    #[error("the language model's answer cannot be read")]
    Malformed,
}

/// A configured language model.
#[derive(Clone)]
pub struct LanguageModel {
    client: reqwest::Client,
    url: String,
    model: String,
    api_key: Option<SecretString>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The words.
    pub text: String,
    /// Whether it ended by itself: there are words, and no bound or filter cut them off.
    pub finished: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: &'a [Message],
    stream: bool,
}

#[derive(Deserialize)]
struct Piece {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "message")]
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

impl LanguageModel {
    /// The language model of these settings; `None` when they name none.
    ///
    /// # Errors
    /// [`LanguageModelError::Settings`] names what cannot work.
    pub fn new(settings: &LanguageModelSettings) -> Result<Option<Self>, LanguageModelError> {
        if settings.url.is_empty() {
            return Ok(None);
        }
        let api_key = match &settings.api_key_file {
            Some(path) => {
                let read = std::fs::read_to_string(path).map_err(|error| {
                    LanguageModelError::Settings(format!("language_model.api_key_file: {error}"))
                })?;
                Some(SecretString::from(read.trim().to_owned()))
            }
            None => settings.api_key.clone(),
        };
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(settings.timeout_seconds))
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(LanguageModelError::Unavailable)?;
        let url = format!("{}/chat/completions", settings.url.trim_end_matches('/'));
        Ok(Some(Self { client, url, model: settings.model.clone(), api_key }))
    }

    /// The model's name at its endpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.model
    }

    /// Where it is asked.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.url
    }

    async fn post(
        &self,
        messages: &[Message],
        stream: bool,
    ) -> Result<reqwest::Response, LanguageModelError> {
        let mut request = self.client.post(&self.url).json(&Request { model: &self.model, messages, stream });
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key.expose_secret());
        }
        let answer = request.send().await.map_err(LanguageModelError::Unavailable)?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(LanguageModelError::Status(status.as_u16())),
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// `Unavailable`, `Status` or `Malformed`.
    pub async fn complete(&self, messages: &[Message]) -> Result<Completion, LanguageModelError> {
        let answer: Piece =
            self.post(messages, false).await?.json().await.map_err(|_| LanguageModelError::Malformed)?;
        let choice = answer.choices.into_iter().next().ok_or(LanguageModelError::Malformed)?;
        let text = choice.delta.and_then(|delta| delta.content).ok_or(LanguageModelError::Malformed)?;
        // Endpoints that do not say why it ended are taken at their word that it did.
        let stopped = choice.finish_reason.is_none_or(|reason| reason == "stop");
        Ok(Completion { finished: stopped && !text.trim().is_empty(), text })
    }

    /// The answer in pieces, as they come.
    ///
    /// # Errors
    /// Before the first piece `Unavailable` or `Status`; in the stream `Unavailable` or `Malformed`.
    pub async fn stream(
        &self,
        messages: &[Message],
    ) -> Result<impl Stream<Item = Result<String, LanguageModelError>> + Send + use<>, LanguageModelError>
    {
        let answer = self.post(messages, true).await?;
        let mut buffer = Vec::new();
        let pieces = answer.bytes_stream().map(move |bytes| {
            let bytes = bytes.map_err(LanguageModelError::Unavailable)?;
            buffer.extend_from_slice(&bytes);
            let mut text = String::new();
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let Some(data) = line.trim().strip_prefix("data:").map(str::trim) else { continue };
                if data == "[DONE]" {
                    break;
                }
                let piece: Piece = serde_json::from_str(data).map_err(|_| LanguageModelError::Malformed)?;
                for choice in piece.choices {
                    text.push_str(
                        choice.delta.and_then(|delta| delta.content).as_deref().unwrap_or_default(),
                    );
                }
            }
            Ok(text)
        });
        Ok(pieces.filter(|piece| std::future::ready(!matches!(piece, Ok(text) if text.is_empty()))))
    }
}
