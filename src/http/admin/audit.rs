//! `/admin/audit` and `/admin/tenants/{id}/audit`: the chains of the audit log, examined and exported.

use actix_web::HttpResponse;
use actix_web::web::Data;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::super::extract::ApiQuery;
use super::super::json::StrictJson;
use super::super::problem::Problem;
use super::super::state::App;
use super::TenantPath;
use crate::admin::AuditExport;
use crate::domain::audit::{AuditDay, ChainReport};
use crate::store::audit::export::{ExportPage, Times};
use crate::tenancy::OperatorScope;

/// Examines the deployment's own audit log: one chain for each server.
#[utoipa::path(
    get, path = "/admin/audit/chains", tag = "operator",
    responses((status = 200, body = Vec<ChainReport>)),
)]
#[tracing::instrument(name = "http.audit.chains", skip_all)]
pub(in crate::http) async fn chains(
    operator: OperatorScope,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().chains(&operator).await?))
}

/// Examines a tenant's audit log: one chain for each server.
#[utoipa::path(
    get, path = "/admin/tenants/{id}/audit/chains", tag = "operator",
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = Vec<ChainReport>)),
)]
#[tracing::instrument(name = "http.tenant.audit.chains", skip_all)]
pub(in crate::http) async fn tenant_chains(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().tenant_chains(&operator, tenant.0).await?))
}

/// The times that are asked about.
#[derive(Debug, Deserialize)]
pub(in crate::http) struct Period {
    #[serde(default)]
    since: Option<DateTime<Utc>>,
    #[serde(default)]
    until: Option<DateTime<Utc>>,
}

/// Counts a tenant's questions, writes and other events by day and kind, from its audit log.
#[utoipa::path(
    get, path = "/admin/tenants/{id}/audit/days", tag = "operator",
    params(
        ("id" = Uuid, Path, description = "The tenant"),
        ("since" = Option<String>, Query, description = "Events of this time and later, RFC 3339"),
        ("until" = Option<String>, Query, description = "Events before this time, RFC 3339"),
    ),
    responses((status = 200, body = Vec<AuditDay>)),
)]
#[tracing::instrument(name = "http.tenant.audit.days", skip_all)]
pub(in crate::http) async fn tenant_days(
    operator: OperatorScope,
    tenant: TenantPath,
    period: ApiQuery<Period>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let times = Times { since: period.0.since, until: period.0.until };
    Ok(HttpResponse::Ok().json(app.administration().tenant_days(&operator, tenant.0, times).await?))
}

/// Exports the deployment's own audit log, a page a call (`after`: `next` of the one before).
#[utoipa::path(
    post, path = "/admin/audit/export", tag = "operator", request_body = AuditExport,
    responses((status = 200, body = ExportPage)),
)]
#[tracing::instrument(name = "http.audit.export", skip_all)]
pub(in crate::http) async fn export(
    operator: OperatorScope,
    app: Data<App>,
    body: StrictJson<AuditExport>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().audit_export(&operator, None, &body).await?))
}

/// Exports a tenant's audit log, a page a call. Each call is in both logs, with its reason.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/audit/export", tag = "operator", request_body = AuditExport,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = ExportPage)),
)]
#[tracing::instrument(name = "http.tenant.audit.export", skip_all)]
pub(in crate::http) async fn tenant_export(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<AuditExport>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().audit_export(&operator, Some(tenant.0), &body).await?))
}
