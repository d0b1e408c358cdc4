//! `/admin/tenants`: made, listed, suspended, resumed, deleted.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::super::extract::ApiQuery;
use super::super::json::{Check, Faults, StrictJson};
use super::super::problem::{FieldError, Kind, Problem};
use super::super::state::App;
use super::{Reason, TenantPath, audited, check_reason, check_words};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::{Slug, TenantId};
use crate::store::postgres::control::TenantView;
use crate::tenancy::OperatorScope;

/// Tenants of a page, when no limit is asked for.
const PAGE: i64 = 50;
/// The most tenants of a page.
const MAX_PAGE: i64 = 500;

/// A tenant to be made.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TenantRequest {
    /// Its name, for people.
    name: String,
    /// Its short name in host names; made from the name when absent.
    #[serde(default)]
    slug: Option<String>,
    /// Why, for the audit log.
    reason: String,
}

impl Check for TenantRequest {
    fn check(&self, faults: &mut Faults) {
        check_words(faults, "name", &self.name);
        check_reason(faults, &self.reason);
        if let Some(Err(rule)) = self.slug.as_deref().map(Slug::parse) {
            faults.value("slug", rule.0);
        }
    }
}

/// A page of tenants.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Tenants {
    /// By identity.
    tenants: Vec<TenantView>,
    /// `after` of the next page; null on the last.
    next: Option<Uuid>,
}

/// A deletion that was begun.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct TenantDeletion {
    /// The tenant, refused from now on.
    #[serde(flatten)]
    #[schema(inline)]
    tenant: TenantView,
    /// The job that removes what it owned.
    job_id: Uuid,
}

/// A short name made from a name: what of it can be in a host name.
fn slug_of(name: &str) -> Option<Slug> {
    let words = name.to_ascii_lowercase();
    let words: Vec<&str> =
        words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut slug = words.join("-");
    slug.truncate(40);
    Slug::parse(slug.trim_end_matches('-')).ok()
}

/// Makes a tenant. A slug that is taken is 409; one that is made from the name gets a random ending then.
#[utoipa::path(
    post, path = "/admin/tenants", tag = "operator", request_body = TenantRequest,
    responses((status = 201, body = TenantView), (status = 409, description = "The slug is taken")),
)]
#[tracing::instrument(name = "http.tenant.create", skip_all)]
pub(in crate::http) async fn tenant_create(
    operator: OperatorScope,
    app: Data<App>,
    body: StrictJson<TenantRequest>,
) -> Result<HttpResponse, Problem> {
    let name = body.name.trim();
    let stated = body.slug.as_deref().map(Slug::parse).transpose().map_err(Problem::internal)?;
    let slug = stated.clone().or_else(|| slug_of(name));
    let mut made = match &slug {
        Some(slug) => app.stores.tenant_create(&operator, name, slug).await?,
        None => None,
    };
    if made.is_none() && stated.is_none() {
        let base = slug.as_ref().map_or("tenant", Slug::as_str);
        let ending = hex::encode(&app.ids.secret()[..4]);
        let slug = Slug::parse(&format!("{base}-{ending}")).map_err(Problem::internal)?;
        made = app.stores.tenant_create(&operator, name, &slug).await?;
    }
    let tenant =
        made.ok_or_else(|| Problem::new(Kind::Conflict).saying("A tenant of this slug is there already."))?;
    audited(&app, &operator, TenantId(tenant.tenant_id), "tenant.create", &body.reason, &[&tenant.slug])
        .await?;
    Ok(HttpResponse::Created().json(tenant))
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
    responses((status = 200, body = Tenants)),
)]
#[tracing::instrument(name = "http.tenant.list", skip_all)]
pub(in crate::http) async fn tenant_list(
    operator: OperatorScope,
    page: ApiQuery<After>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let limit = page.0.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let loc = vec![json!("query"), json!("limit")];
        let msg = format!("Input should be 1 to {MAX_PAGE}");
        return Err(Problem::invalid(vec![FieldError {
            rule: "value_error",
            loc,
            msg,
            input: json!(limit),
            ctx: None,
        }]));
    }
    let tenants = app.stores.tenant_list(&operator, page.0.after.map(TenantId), limit).await?;
    let entry = AuditEntry::new(AuditKind::Admin, "tenant.list", Decision::Allowed);
    app.audit.record_operator(&operator, None, entry).await?;
    let full = i64::try_from(tenants.len()).is_ok_and(|count| count == limit);
    let next = tenants.last().filter(|_| full).map(|tenant| tenant.tenant_id);
    Ok(HttpResponse::Ok().json(Tenants { tenants, next }))
}

/// Tells of one tenant, deleted ones included.
#[utoipa::path(
    get, path = "/admin/tenants/{id}", tag = "operator",
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = TenantView)),
)]
#[tracing::instrument(name = "http.tenant.get", skip_all)]
pub(in crate::http) async fn tenant_get(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let view = app.stores.tenant_get(&operator, tenant.0).await?.ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(view))
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
    set_suspended(&app, &operator, tenant.0, true, &body.reason).await
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
    set_suspended(&app, &operator, tenant.0, false, &body.reason).await
}

async fn set_suspended(
    app: &Data<App>,
    operator: &OperatorScope,
    tenant: TenantId,
    suspended: bool,
    reason: &str,
) -> Result<HttpResponse, Problem> {
    let view =
        app.stores.tenant_set_suspended(operator, tenant, suspended).await?.ok_or_else(Problem::not_found)?;
    app.authenticator.forget();
    if !suspended {
        app.wake.notify_one();
    }
    let action = if suspended { "tenant.suspend" } else { "tenant.resume" };
    audited(app, operator, tenant, action, reason, &[]).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Deletes a tenant: refused from now on, its keys gone, and a job for everything that it owned.
#[utoipa::path(
    delete, path = "/admin/tenants/{id}", tag = "operator", request_body = Reason,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 202, body = TenantDeletion)),
)]
#[tracing::instrument(name = "http.tenant.delete", skip_all)]
pub(in crate::http) async fn tenant_delete(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<Reason>,
) -> Result<HttpResponse, Problem> {
    let deleted = app.stores.tenant_delete(&operator, tenant.0).await?;
    let (view, job_id) = deleted.ok_or_else(Problem::not_found)?;
    app.authenticator.forget();
    app.wake.notify_one();
    audited(&app, &operator, tenant.0, "tenant.delete", &body.reason, &[&job_id.to_string()]).await?;
    Ok(HttpResponse::Accepted().json(TenantDeletion { tenant: view, job_id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_made_of_what_of_a_name_can_be_in_a_host_name() {
        let made = |name: &str| slug_of(name).map(|slug| slug.as_str().to_owned());
        assert_eq!(made("Norvik Energy A/S").as_deref(), Some("norvik-energy-a-s"));
        assert_eq!(made("  Über 9 ").as_deref(), Some("ber-9"));
        assert_eq!(made("日本"), None);
        assert_eq!(made(&"a b".repeat(40)).map(|slug| slug.len()), Some(40));
    }
}
