//! `/admin/tenants`: made, listed, suspended, resumed, deleted.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::super::extract::ApiQuery;
use super::super::json::StrictJson;
use super::super::problem::{FieldError, Problem};
use super::super::state::App;
use super::TenantPath;
use crate::admin::{Deletion, MAX_TENANTS, NewTenant, Reason, TenantDetails, TenantPage};
use crate::domain::ids::TenantId;
use crate::store::postgres::control::TenantView;
use crate::tenancy::OperatorScope;

/// Tenants of a page, when no limit is asked for.
const PAGE: i64 = 50;

/// Makes a tenant. A slug that is taken is 409; one that is made from the name gets a random ending then.
#[utoipa::path(
    post, path = "/admin/tenants", tag = "operator", request_body = NewTenant,
    responses((status = 201, body = TenantView), (status = 409, description = "The slug is taken")),
)]
#[tracing::instrument(name = "http.tenant.create", skip_all)]
pub(in crate::http) async fn tenant_create(
    operator: OperatorScope,
    app: Data<App>,
    body: StrictJson<NewTenant>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Created().json(app.administration().tenant_create(&operator, &body).await?))
}

/// Where a list goes on.
#[derive(Debug, Deserialize)]
pub(in crate::http) struct After {
    #[serde(default)]
    after: Option<Uuid>,
    #[serde(default)]
    limit: Option<i64>,
}

/// Lists the tenants that are not deleted.
#[utoipa::path(
    get, path = "/admin/tenants", tag = "operator",
    params(
        ("after" = Option<Uuid>, Query, description = "`next` of the page before"),
        ("limit" = Option<i64>, Query, description = "1 to 500; 50 when absent"),
    ),
    responses((status = 200, body = TenantPage)),
)]
#[tracing::instrument(name = "http.tenant.list", skip_all)]
pub(in crate::http) async fn tenant_list(
    operator: OperatorScope,
    page: ApiQuery<After>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let limit = page.0.limit.unwrap_or(PAGE);
    if !(1..=MAX_TENANTS).contains(&limit) {
        let loc = vec![json!("query"), json!("limit")];
        let msg = format!("Input should be 1 to {MAX_TENANTS}");
        return Err(Problem::invalid(vec![FieldError {
            rule: "value_error",
            loc,
            msg,
            input: json!(limit),
            ctx: None,
        }]));
    }
    let page = app.administration().tenant_list(&operator, page.0.after.map(TenantId), limit).await?;
    Ok(HttpResponse::Ok().json(page))
}

/// Tells of one tenant and its limits, deleted ones included.
#[utoipa::path(
    get, path = "/admin/tenants/{id}", tag = "operator",
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = TenantDetails)),
)]
#[tracing::instrument(name = "http.tenant.get", skip_all)]
pub(in crate::http) async fn tenant_get(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().tenant_get(&operator, tenant.0).await?))
}

/// Refuses a tenant's callers until it is resumed. Its data stays; its jobs wait.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/suspend", tag = "operator", request_body = Reason,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = TenantView)),
)]
#[tracing::instrument(name = "http.tenant.suspend", skip_all)]
pub(in crate::http) async fn tenant_suspend(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<Reason>,
) -> Result<HttpResponse, Problem> {
    let view = app.administration().tenant_suspend(&operator, tenant.0, &body).await?;
    app.authenticator.forget();
    Ok(HttpResponse::Ok().json(view))
}

/// Serves a suspended tenant again.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/resume", tag = "operator", request_body = Reason,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = TenantView)),
)]
#[tracing::instrument(name = "http.tenant.resume", skip_all)]
pub(in crate::http) async fn tenant_resume(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<Reason>,
) -> Result<HttpResponse, Problem> {
    let view = app.administration().tenant_resume(&operator, tenant.0, &body).await?;
    app.authenticator.forget();
    app.wake.notify_one();
    Ok(HttpResponse::Ok().json(view))
}

/// Deletes a tenant: refused from now on, its keys gone, and a job for everything that it owned.
#[utoipa::path(
    delete, path = "/admin/tenants/{id}", tag = "operator", request_body = Reason,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 202, body = Deletion)),
)]
#[tracing::instrument(name = "http.tenant.delete", skip_all)]
pub(in crate::http) async fn tenant_delete(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<Reason>,
) -> Result<HttpResponse, Problem> {
    let deletion = app.administration().tenant_delete(&operator, tenant.0, &body).await?;
    app.authenticator.forget();
    app.wake.notify_one();
    Ok(HttpResponse::Accepted().json(deletion))
}
