//! Ollama's protocol over the caller's namespaces, each a model, for chat frontends that speak it.

use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use chrono::{SecondsFormat, TimeDelta};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::chat::{self, Answered, Said};
use super::identity::Caller;
use super::json::{AnyJson, Check, Faults};
use super::problem::{Kind, Problem};
use super::query::{
    Asked, Asking, Framing, Lines, ReferenceBody, bound_conversation, estimated_tokens, respond,
};
use super::state::App;
use crate::domain::ids::NamespaceName;
use crate::domain::query::Mode;
use crate::inference::Message;
use crate::tenancy::{Permit, Read};

/// The version of Ollama whose protocol is spoken.
const VERSION: &str = "0.9.3";
/// How long a model is said to stay loaded, seconds.
const LOADED_SECONDS: i64 = 300;

/// The protocol's version.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Version {
    version: &'static str,
}

/// Tells the version of Ollama whose protocol is spoken.
#[utoipa::path(get, path = "/api/version", tag = "ollama", responses((status = 200, body = Version)))]
#[tracing::instrument(name = "http.ollama.version", skip_all)]
pub(super) async fn version(_permit: Permit<Read>) -> HttpResponse {
    HttpResponse::Ok().json(Version { version: VERSION })
}

/// The caller's namespaces as models.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Models {
    models: Vec<Model>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[expect(clippy::struct_field_names, reason = "the protocol's words")]
struct Model {
    /// The namespace's name with `:latest` behind it.
    name: String,
    model: String,
    /// Always 0: nothing is downloaded.
    size: u64,
    /// SHA-256 of the name.
    digest: String,
    #[serde(flatten)]
    when: When,
    details: Details,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum When {
    Listed { modified_at: String },
    Running { expires_at: String, size_vram: u64 },
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: &'static str,
    families: [&'static str; 1],
    parameter_size: &'static str,
    quantization_level: &'static str,
}

impl Model {
    fn new(namespace: &NamespaceName, when: When) -> Self {
        let name = chat::tagged(namespace);
        Self {
            model: name.clone(),
            size: 0,
            digest: hex::encode(Sha256::digest(name.as_bytes())),
            name,
            when,
            details: Details {
                parent_model: "",
                format: "bulkhead",
                family: "bulkhead",
                families: ["bulkhead"],
                parameter_size: "",
                quantization_level: "",
            },
        }
    }
}

/// Lists the namespaces that the credential reaches, as models.
#[utoipa::path(get, path = "/api/tags", tag = "ollama", responses((status = 200, body = Models)))]
#[tracing::instrument(name = "http.ollama.tags", skip_all)]
pub(super) async fn tags(permit: Permit<Read>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let namespaces = app.stores.reader(&permit).namespace_list().await?;
    let listed = |name| Model::new(name, When::Listed { modified_at: now(&app) });
    let models = namespaces.iter().map(|namespace| listed(&namespace.name)).collect();
    Ok(HttpResponse::Ok().json(Models { models }))
}

/// Lists the same models as running: every namespace answers at any time.
#[utoipa::path(get, path = "/api/ps", tag = "ollama", responses((status = 200, body = Models)))]
#[tracing::instrument(name = "http.ollama.running", skip_all)]
pub(super) async fn running(permit: Permit<Read>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let namespaces = app.stores.reader(&permit).namespace_list().await?;
    let until = app.clock.now() + TimeDelta::seconds(LOADED_SECONDS);
    let until = until.to_rfc3339_opts(SecondsFormat::Micros, true);
    let models = namespaces.iter().map(|namespace| {
        Model::new(&namespace.name, When::Running { expires_at: until.clone(), size_vram: 0 })
    });
    Ok(HttpResponse::Ok().json(Models { models: models.collect() }))
}

fn now(app: &App) -> String {
    app.clock.now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A conversation to go on with. Unknown fields are ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(super) struct ChatRequest {
    /// A namespace, with or without `:latest`.
    #[schema(example = "default:latest")]
    model: String,
    /// The last one asks.
    #[serde(default)]
    messages: Vec<Message>,
    /// Whether to answer in lines; true when absent.
    stream: Option<bool>,
    /// An instruction for the language model.
    system: Option<String>,
}

impl Check for ChatRequest {
    fn check(&self, faults: &mut Faults) {
        bound_conversation(faults, "messages", &self.messages, &[self.system.as_deref().unwrap_or_default()]);
    }
}

/// A text to go on with. Unknown fields are ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(super) struct GenerateRequest {
    /// A namespace, with or without `:latest`.
    #[schema(example = "default:latest")]
    model: String,
    /// What the language model is given.
    prompt: String,
    /// Whether to answer in lines; true when absent.
    stream: Option<bool>,
    /// An instruction for the language model.
    system: Option<String>,
}

impl Check for GenerateRequest {
    fn check(&self, faults: &mut Faults) {
        let message = Message { role: "user".to_owned(), content: self.prompt.clone() };
        bound_conversation(faults, "prompt", &[message], &[self.system.as_deref().unwrap_or_default()]);
    }
}

/// An answer in Ollama's form. `/api/chat` has `message`, `/api/generate` has `response` and `context`.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Answer {
    model: String,
    /// RFC 3339.
    created_at: String,
    message: Option<Message>,
    response: Option<String>,
    done: bool,
    /// `stop`.
    done_reason: String,
    /// Nanoseconds.
    total_duration: u64,
    load_duration: u64,
    /// Estimated tokens.
    prompt_eval_count: u64,
    prompt_eval_duration: u64,
    /// Estimated tokens.
    eval_count: u64,
    eval_duration: u64,
    /// What the marks `[n]` of the answer stand for.
    references: Vec<ReferenceBody>,
    /// Whether a language model wrote it.
    llm_generated: bool,
}

/// Which of the two forms an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Chat,
    Generate,
}

/// What the lines of an answer repeat, and when its parts began.
struct About {
    model: String,
    shape: Shape,
    app: Data<App>,
    begun: Instant,
    /// When the material was there.
    found: Instant,
}

impl About {
    /// Of an answer whose material is there now.
    fn new(model: String, shape: Shape, begun: Instant, asking: &Asking) -> Self {
        let app = asking.app.clone();
        Self { model, shape, found: app.clock.instant(), app, begun }
    }

    fn line(&self, text: &str) -> Value {
        let mut line = json!({"model": self.model, "created_at": now(&self.app), "done": false});
        match self.shape {
            Shape::Chat => line["message"] = json!({"role": "assistant", "content": text, "images": null}),
            Shape::Generate => line["response"] = json!(text),
        }
        line
    }

    /// The line that ends an answer, or is it whole.
    fn last(&self, said: &Said, references: &[ReferenceBody], prompt_tokens: usize) -> Value {
        let ended = self.app.clock.instant();
        let nanoseconds = |from: Instant, to: Instant| nanoseconds(to.saturating_duration_since(from));
        let mut line = self.line(&said.text);
        line["done"] = json!(true);
        line["done_reason"] = json!("stop");
        line["total_duration"] = nanoseconds(self.begun, ended);
        line["load_duration"] = json!(0);
        line["prompt_eval_count"] = json!(prompt_tokens);
        line["prompt_eval_duration"] = nanoseconds(self.begun, self.found);
        line["eval_count"] = json!(said.tokens);
        line["eval_duration"] = nanoseconds(self.found, ended);
        line["llm_generated"] = json!(said.llm_generated);
        match self.shape {
            Shape::Chat => line["references"] = json!(references),
            Shape::Generate => line["context"] = json!([]),
        }
        line
    }
}

fn nanoseconds(time: Duration) -> Value {
    json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Sends an answer, in lines or as one.
fn send(answered: Answered, about: About, asking: Asking, stream: bool) -> Result<HttpResponse, Problem> {
    let Answered { reply, references, prompt_tokens, list } = answered;
    if !stream {
        return Ok(HttpResponse::Ok().json(about.last(&reply.whole(&list)?, &references, prompt_tokens)));
    }
    let work = move |lines: Lines| async move {
        let said = reply.in_pieces(list, async |text: String| lines.send(&about.line(&text)).await).await?;
        lines.send(&about.last(&said, &references, prompt_tokens)).await?;
        Ok(())
    };
    Ok(respond(asking.app, asking.caller, Framing::Lines, work))
}

/// Answers the last message of a conversation from the documents of the namespace that the model names.
///
/// A prefix as `/naive`, `/context` or `/mix[in two sentences]` chooses how. The answer holds marks as `[1]` and
/// ends with the list of what they stand for; `references` in the last line holds the same for programs.
#[utoipa::path(
    post, path = "/api/chat", tag = "ollama", request_body = ChatRequest,
    responses(
        (status = 200, body = Answer, description = "Unless `stream` is false: lines of JSON"),
        (status = 400, description = "The last message is not the user's"), (status = 404, description = "No such model"),
    ),
)]
#[tracing::instrument(name = "http.ollama.chat", skip_all)]
pub(super) async fn chat(
    permit: Permit<Read>,
    caller: Caller,
    app: Data<App>,
    body: AnyJson<ChatRequest>,
) -> Result<HttpResponse, Problem> {
    let begun = app.clock.instant();
    let body = body.into_inner();
    let stream = body.stream.unwrap_or(true);
    let namespace = chat::tagged_namespace(&body.model)?;
    let mut turn = chat::turn(body.messages, stream, app.engine.settings())?;
    if let Some(content) = body.system.filter(|system| !system.trim().is_empty()) {
        turn.asked.history.insert(0, Message { role: "system".to_owned(), content });
    }
    let asking = Asking::new(app, &permit, caller, namespace, turn.asked, "chat.create");
    let answered = chat::answer(&asking, turn.task, stream).await?;
    let about = About::new(body.model, Shape::Chat, begun, &asking);
    send(answered, about, asking, stream)
}

/// Gives a text to the language model. Never looks for anything; without a language model it is 501.
#[utoipa::path(
    post, path = "/api/generate", tag = "ollama", request_body = GenerateRequest,
    responses(
        (status = 200, body = Answer, description = "Unless `stream` is false: lines of JSON"),
        (status = 404, description = "No such model"), (status = 501, description = "No language model"),
    ),
)]
#[tracing::instrument(name = "http.ollama.generate", skip_all)]
pub(super) async fn generate(
    permit: Permit<Read>,
    caller: Caller,
    app: Data<App>,
    body: AnyJson<GenerateRequest>,
) -> Result<HttpResponse, Problem> {
    let begun = app.clock.instant();
    let body = body.into_inner();
    let stream = body.stream.unwrap_or(true);
    let namespace = chat::tagged_namespace(&body.model)?;
    if body.prompt.trim().is_empty() {
        return Err(Problem::new(Kind::BadRequest).saying("`prompt` is empty."));
    }
    let mut asked = Asked::new(body.prompt, Mode::Bypass, app.engine.settings());
    asked.user_prompt = body.system.filter(|system| !system.trim().is_empty());
    let prompt_tokens = estimated_tokens(&asked.text);
    let asking = Asking::new(app, &permit, caller, namespace, asked, "chat.generate");
    let reply = asking
        .while_valid(async {
            let found = asking.find().await?;
            asking.reply(&found, stream).await
        })
        .await?;
    let answered = Answered { reply, references: Vec::new(), prompt_tokens, list: String::new() };
    let about = About::new(body.model, Shape::Generate, begun, &asking);
    send(answered, about, asking, stream)
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/api/version").route(web::get().to(version)))
        .service(web::resource("/api/tags").route(web::get().to(tags)))
        .service(web::resource("/api/ps").route(web::get().to(running)))
        .service(web::resource("/api/chat").route(web::post().to(chat)))
        .service(web::resource("/api/generate").route(web::post().to(generate)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::parse;

    #[test]
    fn what_clients_send_besides_is_ignored_unless_it_names_a_tenant() {
        let body = json!({"model": "default:latest", "keep_alive": "5m", "options": {"num_ctx": 1}, "format": "",
            "messages": [{"role": "user", "content": "hello", "images": null}]});
        let read: ChatRequest = parse(body.to_string().as_bytes()).expect("a good body");
        assert_eq!((read.messages.len(), read.stream), (1, None));
        let mut named = body;
        named["tenant"] = json!("b");
        assert!(parse::<ChatRequest>(named.to_string().as_bytes()).is_err());
        assert!(parse::<GenerateRequest>(br#"{"model": "default"}"#).is_err());
    }

    #[test]
    fn a_model_is_described_as_clients_expect() {
        let model = Model::new(&NamespaceName::default(), When::Listed { modified_at: "x".into() });
        let body = serde_json::to_value(model).expect("JSON");
        assert_eq!((&body["name"], &body["modified_at"]), (&json!("default:latest"), &json!("x")));
        assert_eq!(body["digest"].as_str().map(str::len), Some(64));
    }
}
