//! Questions, answered from the caller's own documents: in words, as a stream, or as the material itself.

mod asking;
mod kept;
mod request;
mod stream;
#[cfg(any(test, feature = "laboratory"))]
pub(super) mod usual;
mod wire;

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use serde_json::json;

use asking::Found;
pub(super) use asking::{Asking, Pieces, Reply, estimated_tokens, generate};
pub(super) use request::{Asked, Output, bound_conversation};
pub(super) use stream::{Broken, Framing, Gone, Lines, respond};
pub(super) use wire::{ReferenceBody, SourceBody, references};

use super::extract::Namespace;
use super::identity::Caller;
use super::json::ApiJson;
use super::problem::Problem;
use super::state::App;
use crate::domain::query::Mode;
use crate::retrieval::Stage;
use crate::tenancy::{Permit, Read};
pub(super) use request::QueryRequest;
use request::Shown;
use wire::{MetadataBody, QueryData, QueryReply, ReplyMetadata};

/// Answers a question from the caller's own documents.
///
/// Without a language model the answer quotes the sentences that say most, with references.
#[utoipa::path(
    post, path = "/query", tag = "query", request_body = QueryRequest,
    responses((status = 200, body = QueryReply), (status = 404, description = "No such namespace")),
)]
#[tracing::instrument(name = "http.query.create", skip_all)]
pub(super) async fn create(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    app: Data<App>,
    body: ApiJson<QueryRequest>,
) -> Result<HttpResponse, Problem> {
    let begun = app.clock.instant();
    let shown = body.shown();
    let asked = body.into_inner().asked(app.engine.settings());
    let asking = Asking::new(app, &permit, caller, namespace.0, asked, "query.create");
    let (found, answer) = asking
        .while_valid(async {
            let found = asking.find().await?;
            let Reply::Whole(answer) = asking.reply(&found, false).await? else {
                return Err(Problem::internal("a whole answer came in pieces"));
            };
            Ok((found, answer))
        })
        .await?;
    let elapsed = asking.app.clock.instant().saturating_duration_since(begun);
    Ok(HttpResponse::Ok().json(QueryReply {
        response: answer.text,
        references: shown.references.then(|| references(&found.material, shown.content)),
        response_time: elapsed.as_secs_f64(),
        llm_generated: answer.llm_generated,
        metadata: ReplyMetadata {
            found: MetadataBody::from(&found.material.metadata),
            cached: answer.cached,
        },
    }))
}

/// Finds the material of an answer, and makes none.
///
/// A body that is not valid is answered with 400 and `{"status": "failure"}`.
#[utoipa::path(
    post, path = "/query/data", tag = "query", request_body = QueryRequest,
    responses(
        (status = 200, body = QueryData), (status = 400, description = "The body is not valid"),
        (status = 404, description = "No such namespace"),
    ),
)]
#[tracing::instrument(name = "http.query.data", skip_all)]
pub(super) async fn data(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    app: Data<App>,
    body: ApiJson<QueryRequest>,
) -> Result<HttpResponse, Problem> {
    let asked = body.into_inner().asked(app.engine.settings());
    let asking = Asking::new(app, &permit, caller, namespace.0, asked, "query.data");
    let found = asking.while_valid(asking.find()).await?;
    Ok(HttpResponse::Ok().json(QueryData::new(&asking.asked, &found)))
}

/// Answers a question in lines of JSON.
///
/// First `{references}`, then `{response}` pieces, `{error}` on failure. With `include_progress`, a `{progress}`
/// line is sent as each step begins, before anything else, and `{response_time}` comes last. An answer that is whole from the start, since no language model
/// writes it, since it wrote it earlier, or since `stream` is false, is one line `{response, llm_generated, references}`,
/// with `cached` for the second.
#[utoipa::path(
    post, path = "/query/stream", tag = "query", request_body = QueryRequest,
    responses(
        (status = 200, content_type = "application/x-ndjson", body = String),
        (status = 404, description = "No such namespace"),
    ),
)]
#[tracing::instrument(name = "http.query.stream", skip_all)]
pub(super) async fn streamed(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    app: Data<App>,
    body: ApiJson<QueryRequest>,
) -> Result<HttpResponse, Problem> {
    let begun = app.clock.instant();
    let shown = body.shown();
    let asked = body.into_inner().asked(app.engine.settings());
    let asking = Asking::new(app, &permit, caller, namespace.0, asked, "query.stream");
    // Before the first byte, so that what cannot be answered has a status that says so.
    let found = if shown.progress && asking.asked.question.mode != Mode::Bypass {
        asking.require_answerable().await?;
        None
    } else {
        let found = asking.while_valid(asking.find()).await?;
        if asking.asked.question.mode == Mode::Bypass && asking.app.language_model.is_none() {
            asking.reply(&found, false).await?;
        }
        Some(found)
    };
    let (app, caller) = (asking.app.clone(), asking.caller.clone());
    let work = move |lines: Lines| async move {
        let progress = |step: &str| lines.tell(&json!({"progress": step}));
        let found = if let Some(found) = found {
            found
        } else {
            let mode = asking.asked.question.mode;
            let told = |stage| steps(mode, stage).iter().copied().for_each(progress);
            asking.find_telling(&told).await?
        };
        if shown.progress {
            progress("generating_response");
        }
        write(&asking, &found, shown, &lines).await?;
        if shown.progress {
            let elapsed = asking.app.clock.instant().saturating_duration_since(begun);
            lines.send(&json!({"response_time": elapsed.as_secs_f64()})).await?;
        }
        Ok(())
    };
    Ok(respond(app, caller, Framing::Lines, work))
}

/// What begins with a stage, in the words that LightRAG's clients know.
fn steps(mode: Mode, stage: Stage) -> &'static [&'static str] {
    match stage {
        Stage::Ranking => &["extracting_keywords"],
        Stage::Walking => &["retrieving_entities", "retrieving_relations"],
        Stage::Reading => &["retrieving_chunks"],
        Stage::Ordering if mode == Mode::Naive => &[],
        Stage::Ordering => &["reranking"],
    }
}

async fn write(asking: &Asking, found: &Found, shown: Shown, lines: &Lines) -> Result<(), Broken> {
    let named = shown.references.then(|| json!(references(&found.material, shown.content)));
    let reply = asking.reply(found, shown.stream).await?;
    let apart = shown.progress || matches!(reply, Reply::Pieces(_));
    if apart && let Some(named) = &named {
        lines.send(&json!({"references": named})).await?;
    }
    match reply {
        Reply::Whole(answer) => {
            let mut line = json!({"response": answer.text, "llm_generated": answer.llm_generated});
            if answer.cached {
                line["cached"] = json!(true);
            }
            if let Some(named) = named.filter(|_| !apart) {
                line["references"] = named;
            }
            lines.send(&line).await?;
        }
        Reply::Pieces(pieces) => {
            each(pieces, async |piece: String| lines.send(&json!({"response": piece})).await).await?;
        }
    }
    Ok(())
}

/// Hands on each piece of an answer.
pub(super) async fn each(
    mut pieces: Pieces,
    write: impl AsyncFn(String) -> Result<(), Gone>,
) -> Result<(), Broken> {
    use futures::StreamExt;
    while let Some(piece) = pieces.next().await {
        write(piece?).await?;
    }
    Ok(())
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/query").route(web::post().to(create)))
        .service(web::resource("/query/data").route(web::post().to(data)))
        .service(web::resource("/query/stream").route(web::post().to(streamed)));
}
