//! `/admin/tenants/{id}/limits` and `/usage`: what a tenant may, and what it uses of it. Numbers alone.

use actix_web::HttpResponse;
use actix_web::web::Data;

use super::super::json::StrictJson;
use super::super::problem::Problem;
use super::super::state::App;
use super::super::usage::UsageBody;
use super::TenantPath;
use crate::admin::{NewLimits, TenantDetails};
use crate::tenancy::OperatorScope;

/// Sets limits of a tenant; those that are not named stay, null gives one back to the configuration.
///
/// They hold within two seconds, on every server. A limit below what is kept removes nothing: it refuses more.
#[utoipa::path(
    patch, path = "/admin/tenants/{id}/limits", tag = "operator", request_body = NewLimits,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = TenantDetails)),
)]
#[tracing::instrument(name = "http.tenant.limits", skip_all)]
pub(in crate::http) async fn tenant_limits(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<NewLimits>,
) -> Result<HttpResponse, Problem> {
    let details = app.administration().tenant_set_limits(&operator, tenant.0, &body).await?;
    app.authenticator.forget();
    Ok(HttpResponse::Ok().json(details))
}

/// Tells what a tenant keeps, how long its queue is, and how much it asked of this server.
#[utoipa::path(
    get, path = "/admin/tenants/{id}/usage", tag = "operator",
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = UsageBody)),
)]
#[tracing::instrument(name = "http.tenant.usage", skip_all)]
pub(in crate::http) async fn tenant_usage(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let (usage, limits) = app.administration().tenant_usage(&operator, tenant.0).await?;
    Ok(HttpResponse::Ok().json(UsageBody::new(&app, tenant.0, usage, limits)))
}
