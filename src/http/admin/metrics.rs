//! `/admin/tenants/{id}/metrics` and `/admin/top`: how tenants fare, one and side by side. Ids and numbers alone.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Deserialize;
use serde_json::json;

use super::super::extract::ApiQuery;
use super::super::problem::{FieldError, Problem};
use super::super::state::App;
use super::TenantPath;
use crate::admin::{Comparison, MAX_TENANTS, Resource, TenantMetrics};
use crate::tenancy::OperatorScope;

/// Tenants of an answer, when no limit is asked for.
const TOP: usize = 20;

/// Tells a tenant's requests, errors and times of the last minutes at this server, what it keeps and how long its
/// queue is, and of what it uses more than twice the median.
#[utoipa::path(
    get, path = "/admin/tenants/{id}/metrics", tag = "operator",
    params(("id" = uuid::Uuid, Path, description = "The tenant")),
    responses((status = 200, body = TenantMetrics)),
)]
#[tracing::instrument(name = "http.tenant.metrics", skip_all)]
pub(in crate::http) async fn tenant_metrics(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let recent = app.metrics.tenants().all();
    Ok(HttpResponse::Ok().json(app.administration().tenant_metrics(&operator, tenant.0, &recent).await?))
}

/// What a list is sorted by, and how long it is.
#[derive(Debug, Deserialize)]
pub(in crate::http) struct Wanted {
    #[serde(default)]
    by: Option<Resource>,
    #[serde(default)]
    limit: Option<usize>,
}

/// Lists the tenants that use the most of a resource, and names those that use more than twice the median of one.
#[utoipa::path(
    get, path = "/admin/top", tag = "operator",
    params(
        ("by" = Option<Resource>, Query, description = "`requests` when absent"),
        ("limit" = Option<usize>, Query, description = "1 to 500; 20 when absent"),
    ),
    responses((status = 200, body = Comparison)),
)]
#[tracing::instrument(name = "http.tenant.top", skip_all)]
pub(in crate::http) async fn tenant_top(
    operator: OperatorScope,
    wanted: ApiQuery<Wanted>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let limit = wanted.0.limit.unwrap_or(TOP);
    let most = usize::try_from(MAX_TENANTS).unwrap_or(usize::MAX);
    if !(1..=most).contains(&limit) {
        let loc = vec![json!("query"), json!("limit")];
        let msg = format!("Input should be 1 to {most}");
        let field = FieldError { rule: "value_error", loc, msg, input: json!(limit), ctx: None };
        return Err(Problem::invalid(vec![field]));
    }
    let compared = app.administration().tenant_compare(&operator, &app.metrics.tenants().all()).await?;
    Ok(HttpResponse::Ok().json(compared.top(wanted.0.by.unwrap_or(Resource::Requests), limit)))
}
