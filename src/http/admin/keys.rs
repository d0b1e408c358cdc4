//! `/admin/tenants/{id}/keys` and `/tokens`, `/admin/operators`: credentials, each shown once.

use actix_web::HttpResponse;
use actix_web::dev::Payload;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest};
use serde::Serialize;

use super::super::extract::{Extraction, behind_gate, path_part};
use super::super::json::StrictJson;
use super::super::problem::Problem;
use super::super::state::App;
use super::TenantPath;
use crate::admin::{CreatedKey, CreatedOperator, CreatedToken, NewOperator, NewTenantKey, NewToken, Reason};
use crate::store::postgres::control::KeyView;
use crate::tenancy::OperatorScope;

/// A tenant's keys.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Keys {
    /// Newest first, without secrets.
    keys: Vec<KeyView>,
}

/// Makes a key for a tenant.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/keys", tag = "operator", request_body = NewTenantKey,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 201, body = CreatedKey)),
)]
#[tracing::instrument(name = "http.key.create", skip_all)]
pub(in crate::http) async fn key_create(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<NewTenantKey>,
) -> Result<HttpResponse, Problem> {
    let made = app.administration().key_create(&operator, tenant.0, &body).await?;
    app.authenticator.forget();
    Ok(HttpResponse::Created().json(made))
}

/// Lists a tenant's keys.
#[utoipa::path(
    get, path = "/admin/tenants/{id}/keys", tag = "operator",
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 200, body = Keys)),
)]
#[tracing::instrument(name = "http.key.list", skip_all)]
pub(in crate::http) async fn key_list(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let keys = app.administration().key_list(&operator, tenant.0).await?;
    Ok(HttpResponse::Ok().json(Keys { keys }))
}

/// The key that the path names.
pub(in crate::http) struct KeyPath(String);

impl FromRequest for KeyPath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let id = path_part(request, "key_id").ok_or_else(Problem::not_found)?;
            let known_form = id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric());
            if known_form { Ok(Self(id)) } else { Err(Problem::not_found()) }
        })
    }
}

/// Revokes a key, everywhere within two seconds.
#[utoipa::path(
    delete, path = "/admin/tenants/{id}/keys/{key_id}", tag = "operator", request_body = Reason,
    params(("id" = Uuid, Path, description = "The tenant"), ("key_id" = String, Path, description = "The key")),
    responses((status = 204, description = "It is revoked")),
)]
#[tracing::instrument(name = "http.key.revoke", skip_all)]
pub(in crate::http) async fn key_revoke(
    operator: OperatorScope,
    tenant: TenantPath,
    key: KeyPath,
    app: Data<App>,
    body: StrictJson<Reason>,
) -> Result<HttpResponse, Problem> {
    app.administration().key_revoke(&operator, tenant.0, &key.0, &body).await?;
    app.authenticator.forget();
    Ok(HttpResponse::NoContent().finish())
}

/// Makes a short-lived token for a tenant, signed by this server.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/tokens", tag = "operator", request_body = NewToken,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 201, body = CreatedToken)),
)]
#[tracing::instrument(name = "http.token.create", skip_all)]
pub(in crate::http) async fn token_create(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<NewToken>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Created().json(app.administration().token_create(&operator, tenant.0, &body).await?))
}

/// Makes another operator's credential.
#[utoipa::path(
    post, path = "/admin/operators", tag = "operator", request_body = NewOperator,
    responses((status = 201, body = CreatedOperator)),
)]
#[tracing::instrument(name = "http.operator.create", skip_all)]
pub(in crate::http) async fn operator_create(
    operator: OperatorScope,
    app: Data<App>,
    body: StrictJson<NewOperator>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Created().json(app.administration().operator_create(&operator, &body).await?))
}
