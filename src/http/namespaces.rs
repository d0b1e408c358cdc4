//! The caller's namespaces: listed, deleted with everything in them.

use actix_web::HttpResponse;
use actix_web::dev::Payload;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{FromRequest, HttpRequest};
use serde::Serialize;

use super::extract::{behind_gate, path_part};
use super::problem::Problem;
use super::state::App;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::NamespaceName;
use crate::store::postgres::namespaces::NamespaceSummary;
use crate::tenancy::{Administer, Permit, Read};

/// The caller's namespaces.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Namespaces {
    /// By name.
    namespaces: Vec<NamespaceSummary>,
}

/// A deletion of which something is left to do, and nothing for the caller.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Deleted {
    /// `deleted`: no row and no file is left, nothing is found any more, and it is recorded.
    status: &'static str,
    /// Indexes that were away. What they still hold goes with the sweep of orphans.
    swept_later: Vec<&'static str>,
}

/// Lists the namespaces that the credential reaches.
#[utoipa::path(get, path = "/namespaces", tag = "namespaces", responses((status = 200, body = Namespaces)))]
#[tracing::instrument(name = "http.namespace.list", skip_all)]
pub(super) async fn list(permit: Permit<Read>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let namespaces = app.stores.reader(&permit).namespace_list().await?;
    Ok(HttpResponse::Ok().json(Namespaces { namespaces }))
}

/// The namespace that the path names. One that cannot exist is not there.
pub(super) struct NamespacePath(NamespaceName);

impl FromRequest for NamespacePath {
    type Error = Problem;
    type Future = super::extract::Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "name").ok_or_else(Problem::not_found)?;
            NamespaceName::parse(&raw).map(Self).map_err(|_| Problem::not_found())
        })
    }
}

/// Deletes a namespace with all its documents. A namespace made again under the name meets nothing old.
///
/// With 204 nothing of it is left anywhere; with 202 nothing but what an index holds that was away.
#[utoipa::path(
    delete, path = "/namespaces/{name}", tag = "namespaces",
    params(("name" = String, Path, description = "The namespace")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 202, body = Deleted, description = "It is gone; what an index holds goes later"),
    ),
)]
#[tracing::instrument(name = "http.namespace.delete", skip_all)]
pub(super) async fn remove(
    permit: Permit<Administer>,
    name: NamespacePath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let writer = app.stores.writer(&permit);
    let corpus = writer.corpus_get(&name.0).await?;
    let entry =
        AuditEntry::new(AuditKind::Admin, "namespace.delete", Decision::Allowed).with_ids([name.0.as_str()]);
    let act = app.audit.tenant_act(permit.scope(), entry);
    let erased = writer.namespace_delete(act, &name.0).await?.ok_or_else(Problem::not_found)?;
    if let Some(corpus) = corpus {
        app.changed(&corpus);
    }
    if erased.later.is_empty() {
        return Ok(HttpResponse::NoContent().finish());
    }
    Ok(HttpResponse::Accepted().json(Deleted { status: "deleted", swept_later: erased.later }))
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/namespaces").route(web::get().to(list)))
        .service(web::resource("/namespaces/{name}").route(web::delete().to(remove)));
}
