//! `/admin/tenants/{id}/verify` and `/rebuild`: what is kept twice, compared and written anew, a namespace a call; and
//! `/placement`: where a tenant's vectors are.

use actix_web::HttpResponse;
use actix_web::web::Data;

use super::super::json::StrictJson;
use super::super::problem::Problem;
use super::super::state::App;
use super::TenantPath;
use crate::admin::{Examination, Examined, NewBackup, NewPlacement, Placed, Rebuilt};
use crate::tenancy::OperatorScope;

/// Compares what is kept of a tenant: the first call its counters, files and audit log and the first namespace, each
/// further one (`after`: `next` of the one before) the next. With `repair`, puts right what can be.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/verify", tag = "operator", request_body = Examination,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = Examined)),
)]
#[tracing::instrument(name = "http.tenant.verify", skip_all)]
pub(in crate::http) async fn verify(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<Examination>,
) -> Result<HttpResponse, Problem> {
    let examined = app.administration().verify(&operator, tenant.0, &body).await?;
    if body.repair {
        // Documents that are to be processed again.
        app.wake.notify_one();
    }
    Ok(HttpResponse::Ok().json(examined))
}

/// Writes the indexes of a tenant's first namespace anew, or of the one after `after`: of vectors, and of graphs where
/// there is one, or the one that is named. Questions go on meanwhile.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/rebuild", tag = "operator", request_body = Examination,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = Rebuilt)),
)]
#[tracing::instrument(name = "http.tenant.rebuild", skip_all)]
pub(in crate::http) async fn rebuild(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<Examination>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().rebuild(&operator, tenant.0, &body).await?))
}

/// Chooses whether a tenant's vectors are in a collection of its own or in one that tenants share, and moves those it
/// has; questions and writes go on. What was written is compared with the rows before it is served.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/placement", tag = "operator", request_body = NewPlacement,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = Placed), (status = 422, description = "The index has one placement only")),
)]
#[tracing::instrument(name = "http.tenant.placement", skip_all)]
pub(in crate::http) async fn placement(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<NewPlacement>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().place(&operator, tenant.0, &body).await?))
}

/// Writes into the audit log that a backup is taken, as `bulkhead backup` asks before it takes one.
#[utoipa::path(
    post, path = "/admin/backups", tag = "operator", request_body = NewBackup,
    responses((status = 204, description = "It may be taken")),
)]
#[tracing::instrument(name = "http.backup.create", skip_all)]
pub(in crate::http) async fn backup(
    operator: OperatorScope,
    app: Data<App>,
    body: StrictJson<NewBackup>,
) -> Result<HttpResponse, Problem> {
    app.administration().backup(&operator, &body).await?;
    Ok(HttpResponse::NoContent().finish())
}
