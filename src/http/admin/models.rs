//! `/admin/tenants/{id}/reembed`: another embedding model for a tenant's namespaces.

use actix_web::dev::Payload;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use uuid::Uuid;

use super::super::extract::{Extraction, behind_gate, path_part};
use super::super::json::StrictJson;
use super::super::problem::Problem;
use super::super::state::App;
use super::TenantPath;
use crate::admin::NewModel;
use crate::store::postgres::models::ReembedView;
use crate::tenancy::OperatorScope;

/// Has namespaces embedded by another model, in the background; they answer by the old one until each has switched.
/// Asked again, it tells of the change that is under way; one to something else is 409.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/reembed", tag = "operator", request_body = NewModel,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 202, body = ReembedView), (status = 409, description = "Another change is under way")),
)]
#[tracing::instrument(name = "http.reembed.create", skip_all)]
pub(in crate::http) async fn reembed_create(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<NewModel>,
) -> Result<HttpResponse, Problem> {
    let view = app.administration().reembed(&operator, tenant.0, &body).await?;
    app.wake.notify_one();
    Ok(HttpResponse::Accepted().json(view))
}

/// The change that the path names.
pub(in crate::http) struct ChangePath(Uuid);

impl FromRequest for ChangePath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "job_id").ok_or_else(Problem::not_found)?;
            Uuid::try_parse(&raw).map(Self).map_err(|_| Problem::not_found())
        })
    }
}

/// Tells how far a change of model has come.
#[utoipa::path(
    get, path = "/admin/tenants/{id}/reembed/{job_id}", tag = "operator",
    params(("id" = Uuid, Path, description = "The tenant"), ("job_id" = Uuid, Path, description = "The change")),
    responses((status = 200, body = ReembedView)),
)]
#[tracing::instrument(name = "http.reembed.get", skip_all)]
pub(in crate::http) async fn reembed_get(
    operator: OperatorScope,
    tenant: TenantPath,
    change: ChangePath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().reembed_get(&operator, tenant.0, change.0).await?))
}
