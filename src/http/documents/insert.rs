//! `POST /documents/text` and `/documents/texts`.

use std::collections::BTreeSet;

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::extract::{IdempotencyKey, Namespace};
use super::super::json::{ApiJson, Check, Faults};
use super::super::problem::Problem;
use super::super::room::Room;
use super::super::state::App;
use super::accept::{
    check_length, check_name, fingerprint, insert, name_taken, new_document_id, text_document,
};
use super::wire::Insert;
use crate::store::postgres::documents::UNNAMED;
use crate::tenancy::{Permit, Write};

/// One text.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct TextRequest {
    /// The text. It is not only white space.
    text: String,
    /// The name by which it is cited; taken names are refused.
    #[serde(default)]
    file_source: Option<String>,
    /// Accepted and not used: how a text is cut is a setting of the server.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    chunking: Option<Value>,
}

impl Check for TextRequest {
    fn check(&self, faults: &mut Faults) {
        faults.text("text", self.text.trim(), 1, usize::MAX);
        if let Some(name) = &self.file_source {
            check_name(faults, &[json!("file_source")], name);
        }
    }
}

/// Several texts.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct TextsRequest {
    /// The texts, at least one, none of them only white space.
    texts: Vec<String>,
    /// The names by which they are cited, in their order; may be fewer.
    #[serde(default)]
    file_sources: Option<Vec<Option<String>>>,
    /// Accepted and not used.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    chunking: Option<Value>,
}

impl Check for TextsRequest {
    fn check(&self, faults: &mut Faults) {
        faults.list("texts", self.texts.len(), 1, usize::MAX);
        for (at, text) in self.texts.iter().enumerate() {
            faults.text_at(&[json!("texts"), json!(at)], text.trim(), 1, usize::MAX);
        }
        let names = self.file_sources.as_deref().unwrap_or_default();
        if names.len() > self.texts.len() {
            faults.value("file_sources", "There are more names than texts");
        }
        for (at, name) in names.iter().enumerate() {
            check_name(faults, &[json!("file_sources"), json!(at)], name.as_deref().unwrap_or_default());
        }
    }
}

fn named(name: Option<String>) -> String {
    name.map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| UNNAMED.to_owned())
}

/// Takes in a text.
///
/// A name that is taken is 409. A content that is there under another name is accepted, and its document ends
/// `failed` with `metadata.is_duplicate`.
#[utoipa::path(
    post, path = "/documents/text", tag = "documents", request_body = TextRequest,
    params(
        ("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same request with the same key is answered as before, for a day"),
    ),
    responses((status = 200, body = Insert), (status = 409, description = "The name is taken")),
)]
#[tracing::instrument(name = "http.document.text", skip_all)]
pub(in crate::http) async fn text(
    permit: Permit<Write>,
    _room: Room,
    namespace: Namespace,
    key: IdempotencyKey,
    app: Data<App>,
    body: ApiJson<TextRequest>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    check_length(&app, [body.text.as_str()])?;
    let request = fingerprint(&body)?;
    let id = new_document_id(&app);
    let document = text_document(id, None, named(body.file_source), json!({}), body.text);
    insert(&app, &permit, &namespace, &key, &[document], request).await
}

/// Takes in several texts, all or none.
#[utoipa::path(
    post, path = "/documents/texts", tag = "documents", request_body = TextsRequest,
    params(
        ("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same request with the same key is answered as before, for a day"),
    ),
    responses((status = 200, body = Insert), (status = 409, description = "A name is taken, or occurs twice")),
)]
#[tracing::instrument(name = "http.document.texts", skip_all)]
pub(in crate::http) async fn texts(
    permit: Permit<Write>,
    _room: Room,
    namespace: Namespace,
    key: IdempotencyKey,
    app: Data<App>,
    body: ApiJson<TextsRequest>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let mut faults = Faults::default();
    faults.list("texts", body.texts.len(), 1, app.limits.max_texts);
    faults.end()?;
    check_length(&app, body.texts.iter().map(String::as_str))?;
    let request = fingerprint(&body)?;
    let names = body.file_sources.unwrap_or_default().into_iter().chain(std::iter::repeat(None)).map(named);
    let mut seen = BTreeSet::new();
    let mut documents = Vec::with_capacity(body.texts.len());
    for (text, name) in std::iter::zip(body.texts, names) {
        if name != UNNAMED && !seen.insert(name.clone()) {
            return Err(name_taken());
        }
        documents.push(text_document(new_document_id(&app), None, name, json!({}), text));
    }
    insert(&app, &permit, &namespace, &key, &documents, request).await
}
