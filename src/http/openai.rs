//! OpenAI's chat protocol over the caller's namespaces, each a model.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{FromRequest, HttpRequest, dev::Payload};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chat::{self, Answered};
use super::extract::{Extraction, behind_gate, path_part};
use super::identity::Caller;
use super::json::{ApiJson, Check, Faults};
use super::problem::Problem;
use super::query::{Asking, Broken, Framing, Lines, ReferenceBody, bound_conversation, respond};
use super::state::App;
use crate::domain::ids::NamespaceName;
use crate::inference::Message;
use crate::tenancy::{Permit, Read};

/// A namespace as a model.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ModelBody {
    /// The namespace's name.
    id: String,
    /// `model`.
    object: &'static str,
    /// Always 0: a namespace changes with each document.
    created: i64,
    /// `bulkhead`.
    owned_by: &'static str,
}

impl ModelBody {
    fn new(namespace: &NamespaceName) -> Self {
        Self { id: namespace.to_string(), object: "model", created: 0, owned_by: "bulkhead" }
    }
}

/// The caller's namespaces as models.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    data: Vec<ModelBody>,
}

/// Lists the namespaces that the credential reaches, as models.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = ModelList)))]
#[tracing::instrument(name = "http.openai.models", skip_all)]
pub(super) async fn models(permit: Permit<Read>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let namespaces = app.stores.reader(&permit).namespace_list().await?;
    let data = namespaces.iter().map(|namespace| ModelBody::new(&namespace.name)).collect();
    Ok(HttpResponse::Ok().json(ModelList { object: "list", data }))
}

/// The model that the path names.
pub(super) struct ModelPath(NamespaceName);

impl FromRequest for ModelPath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "model").ok_or_else(Problem::not_found)?;
            chat::namespace(&raw).map(Self)
        })
    }
}

/// Tells whether there is such a namespace.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "openai",
    params(("model" = String, Path, description = "The namespace")), responses((status = 200, body = ModelBody)),
)]
#[tracing::instrument(name = "http.openai.model", skip_all)]
pub(super) async fn model(
    permit: Permit<Read>,
    name: ModelPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let namespaces = app.stores.reader(&permit).namespace_list().await?;
    let found =
        namespaces.iter().find(|namespace| namespace.name == name.0).ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(ModelBody::new(&found.name)))
}

/// A conversation to go on with. Unknown fields are ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(super) struct CompletionRequest {
    /// A namespace.
    #[schema(example = "default")]
    model: String,
    /// The last one asks.
    messages: Vec<ChatMessage>,
    /// Whether to answer with server-sent events.
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
struct StreamOptions {
    /// Whether the last event counts tokens.
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
struct ChatMessage {
    /// `system`, `user` or `assistant`.
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
struct Part {
    /// Parts that are no text are passed over.
    text: Option<String>,
}

impl From<ChatMessage> for Message {
    fn from(message: ChatMessage) -> Self {
        let content = match message.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                parts.into_iter().filter_map(|part| part.text).collect::<Vec<_>>().join("\n")
            }
        };
        Self { role: message.role, content }
    }
}

impl Check for CompletionRequest {
    fn check(&self, faults: &mut Faults) {
        let messages: Vec<Message> = self.messages.iter().cloned().map(Message::from).collect();
        bound_conversation(faults, "messages", &messages, &[]);
    }
}

/// An answer in OpenAI's form, with its references.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Completion {
    id: String,
    /// `chat.completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    model: String,
    choices: [Choice; 1],
    usage: Usage,
    /// What the marks `[n]` of the answer stand for.
    references: Vec<ReferenceBody>,
    /// Whether a language model wrote it.
    llm_generated: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Choice {
    index: u8,
    message: Answer,
    /// `stop`.
    finish_reason: &'static str,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Answer {
    /// `assistant`.
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// Estimated numbers of tokens.
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
#[expect(clippy::struct_field_names, reason = "the protocol's words")]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// Answers the last message of a conversation from the documents of the namespace that the model names.
///
/// The answer holds marks as `[1]` and ends with the list of what they stand for; the field `references` holds
/// the same for programs. A prefix as `/naive` chooses the mode.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = CompletionRequest,
    responses(
        (status = 200, body = Completion, description = "With `stream`: server-sent events, each a `chat.completion.chunk`, then `[DONE]`"),
        (status = 404, description = "No such model"),
    ),
)]
#[tracing::instrument(name = "http.openai.complete", skip_all)]
pub(super) async fn complete(
    permit: Permit<Read>,
    caller: Caller,
    app: Data<App>,
    body: ApiJson<CompletionRequest>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let stream = body.stream.unwrap_or(false);
    let namespace = chat::namespace(&body.model)?;
    let messages = body.messages.into_iter().map(Message::from).collect();
    let turn = chat::turn(messages, stream, app.engine.settings())?;
    let asking = Asking::new(app, &permit, caller, namespace, turn.asked, "chat.create");
    let answered = chat::answer(&asking, turn.task, stream).await?;
    let about = About {
        id: format!("chatcmpl-{}", asking.app.ids.uuid().simple()),
        created: asking.app.clock.now().timestamp(),
        model: body.model,
    };
    if stream {
        let usage = body.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        let work = move |lines: Lines| async move { write(&about, answered, usage, &lines).await };
        return Ok(respond(asking.app, asking.caller, Framing::Events, work));
    }
    let said = answered.reply.whole(&answered.list)?;
    Ok(HttpResponse::Ok().json(Completion {
        id: about.id,
        object: "chat.completion",
        created: about.created,
        model: about.model,
        usage: Usage::new(answered.prompt_tokens, said.tokens),
        choices: [Choice {
            index: 0,
            message: Answer { role: "assistant", content: said.text, refusal: None },
            finish_reason: "stop",
            logprobs: None,
        }],
        references: answered.references,
        llm_generated: said.llm_generated,
    }))
}

/// What every chunk of an answer repeats.
struct About {
    id: String,
    created: i64,
    model: String,
}

impl About {
    fn chunk(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": null}],
        })
    }
}

async fn write(about: &About, answered: Answered, usage: bool, lines: &Lines) -> Result<(), Broken> {
    lines.send(&about.chunk(&json!({"role": "assistant", "content": ""}), None)).await?;
    let piece = async |text: String| lines.send(&about.chunk(&json!({"content": text}), None)).await;
    let said = answered.reply.in_pieces(answered.list, piece).await?;
    let mut last = about.chunk(&json!({}), Some("stop"));
    last["references"] = json!(answered.references);
    last["llm_generated"] = json!(said.llm_generated);
    lines.send(&last).await?;
    if usage {
        let mut counted = about.chunk(&json!({}), None);
        counted["choices"] = json!([]);
        counted["usage"] = json!(Usage::new(answered.prompt_tokens, said.tokens));
        lines.send(&counted).await?;
    }
    lines.raw(Bytes::from_static(b"data: [DONE]\n\n")).await?;
    Ok(())
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/v1/models").route(web::get().to(models)))
        .service(web::resource("/v1/models/{model}").route(web::get().to(model)))
        .service(web::resource("/v1/chat/completions").route(web::post().to(complete)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::parse;

    fn read(body: &Value) -> Result<CompletionRequest, Problem> {
        parse(body.to_string().as_bytes())
    }

    #[test]
    fn content_may_be_text_parts_or_nothing() {
        let body = json!({"model": "default", "temperature": 0.2, "user": "u", "messages": [
            {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ]});
        let read = read(&body).expect("a good body");
        let said: Vec<String> =
            read.messages.into_iter().map(|message| Message::from(message).content).collect();
        assert_eq!(said, ["", "a\nb", "c"]);
    }

    #[test]
    fn a_tenant_in_the_body_is_refused_and_so_is_a_conversation_without_end() {
        let message = json!({"role": "user", "content": "hello"});
        assert!(read(&json!({"model": "default", "messages": [message], "tenant_id": "b"})).is_err());
        assert!(read(&json!({"model": "default", "messages": vec![message; 129]})).is_err());
        assert!(read(&json!({"messages": []})).is_err());
    }

    #[test]
    fn every_chunk_is_of_one_completion() {
        let about = About { id: "chatcmpl-1".into(), created: 7, model: "default".into() };
        let chunk = about.chunk(&json!({"content": "x"}), None);
        assert_eq!(
            (&chunk["object"], &chunk["choices"][0]["delta"]["content"]),
            (&json!("chat.completion.chunk"), &json!("x"))
        );
        assert!(chunk["choices"][0]["finish_reason"].is_null());
    }
}
