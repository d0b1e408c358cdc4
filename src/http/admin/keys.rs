//! `/admin/tenants/{id}/keys` and `/tokens`: credentials, each shown once.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::dev::Payload;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest};
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::extract::{Extraction, behind_gate, path_part};
use super::super::json::{Check, Faults, StrictJson};
use super::super::problem::Problem;
use super::super::state::App;
use super::{Reason, TenantPath, audited, check_reason, check_words};
use crate::domain::ids::{NamespaceName, TenantId};
use crate::store::postgres::control::{KeyView, NewKey};
use crate::tenancy::{ApiKey, KeyKind, OperatorScope, Role};

/// The longest life of a key that has one, seconds: ten years.
const MAX_KEY_LIFE: i64 = 10 * 366 * 86_400;
/// The most namespaces that a key is confined to.
const MAX_NAMESPACES: usize = 100;

/// A key to be made.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct KeyRequest {
    /// Its name, for people.
    name: String,
    /// What it allows; each role includes those before it: `reader`, `writer`, `tenant_admin`.
    roles: Vec<Role>,
    /// The namespaces it is confined to; absent: all.
    #[serde(default)]
    namespaces: Option<Vec<String>>,
    /// Its life in seconds; absent: without end.
    #[serde(default)]
    expires_in: Option<i64>,
    /// Why, for the audit log.
    reason: String,
}

impl Check for KeyRequest {
    fn check(&self, faults: &mut Faults) {
        check_words(faults, "name", &self.name);
        check_reason(faults, &self.reason);
        faults.list("roles", self.roles.len(), 1, 3);
        if let Some(seconds) = self.expires_in {
            faults.number("expires_in", seconds, 1, MAX_KEY_LIFE);
        }
        if let Some(names) = &self.namespaces {
            faults.list("namespaces", names.len(), 1, MAX_NAMESPACES);
            for (at, name) in names.iter().enumerate() {
                if let Err(rule) = NamespaceName::parse(name) {
                    faults.body("value_error", &[json!("namespaces"), json!(at)], rule.0, &json!(name), None);
                }
            }
        }
    }
}

/// A new key. Its secret is not shown again.
#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::http) struct MadeKey {
    /// Its public identifier.
    key_id: String,
    /// The key itself.
    api_key: String,
    /// What it allows.
    roles: Vec<Role>,
    /// When it ends; null: never.
    expires_at: Option<DateTime<Utc>>,
}

/// A tenant's keys.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Keys {
    /// Newest first, without secrets.
    keys: Vec<KeyView>,
}

/// A token to be made.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TokenRequest {
    /// For whom.
    subject: String,
    /// What it allows.
    roles: Vec<Role>,
    /// Its life in seconds, at most `auth.session_ttl`.
    expires_in: i64,
    /// Why, for the audit log.
    #[serde(default)]
    reason: Option<String>,
}

impl Check for TokenRequest {
    fn check(&self, faults: &mut Faults) {
        check_words(faults, "subject", &self.subject);
        faults.list("roles", self.roles.len(), 1, 3);
        if let Some(reason) = &self.reason {
            check_reason(faults, reason);
        }
    }
}

/// A new token. It is not shown again.
#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::http) struct MadeToken {
    /// The token.
    token: String,
    /// When it ends.
    expires_at: DateTime<Utc>,
}

/// 404 unless the tenant is there and not deleted.
async fn require(app: &Data<App>, operator: &OperatorScope, tenant: TenantId) -> Result<(), Problem> {
    let view = app.stores.tenant_get(operator, tenant).await?;
    view.filter(|view| view.state != "deleted").map(drop).ok_or_else(Problem::not_found)
}

/// Makes a key for a tenant.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/keys", tag = "operator", request_body = KeyRequest,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 201, body = MadeKey)),
)]
#[tracing::instrument(name = "http.key.create", skip_all)]
pub(in crate::http) async fn key_create(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<KeyRequest>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let key = ApiKey::generate(KeyKind::Tenant, app.ids.as_ref());
    let life = body.expires_in.and_then(chrono::TimeDelta::try_seconds);
    let expires_at = life.map(|life| app.clock.now() + life);
    let new = NewKey {
        key_id: key.id().to_owned(),
        digest: key.digest(&app.pepper),
        name: body.name.trim().to_owned(),
        roles: body.roles.iter().map(|role| role.name().to_owned()).collect(),
        namespaces: body.namespaces,
        expires_at,
    };
    if !app.stores.key_create(&operator, tenant.0, &new).await? {
        return Err(Problem::not_found());
    }
    app.authenticator.forget();
    audited(&app, &operator, tenant.0, "key.create", &body.reason, &[key.id()]).await?;
    let api_key = key.expose().expose_secret().to_owned();
    Ok(HttpResponse::Created().json(MadeKey { key_id: new.key_id, api_key, roles: body.roles, expires_at }))
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
    require(&app, &operator, tenant.0).await?;
    let keys = app.stores.key_list(&operator, tenant.0).await?;
    audited(&app, &operator, tenant.0, "key.list", "", &[]).await?;
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
    if !app.stores.key_revoke(&operator, tenant.0, &key.0).await? {
        return Err(Problem::not_found());
    }
    app.authenticator.forget();
    audited(&app, &operator, tenant.0, "key.revoke", &body.reason, &[&key.0]).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Makes a short-lived token for a tenant, signed by this server.
#[utoipa::path(
    post, path = "/admin/tenants/{id}/tokens", tag = "operator", request_body = TokenRequest,
    params(("id" = Uuid, Path, description = "The tenant")),
    responses((status = 201, body = MadeToken)),
)]
#[tracing::instrument(name = "http.token.create", skip_all)]
pub(in crate::http) async fn token_create(
    operator: OperatorScope,
    tenant: TenantPath,
    app: Data<App>,
    body: StrictJson<TokenRequest>,
) -> Result<HttpResponse, Problem> {
    let mut faults = Faults::default();
    faults.number("expires_in", body.expires_in, 1, i64::try_from(app.session_ttl).unwrap_or(i64::MAX));
    faults.end()?;
    require(&app, &operator, tenant.0).await?;
    let life = Duration::from_secs(body.expires_in.unsigned_abs());
    let minted =
        app.signer.mint(&operator, tenant.0, body.subject.trim(), &body.roles, life).map_err(|error| {
            let mut faults = Faults::default();
            faults.value("subject", error.to_string());
            faults.end().err().unwrap_or_else(|| Problem::internal(error))
        })?;
    let reason = body.reason.as_deref().unwrap_or_default();
    audited(&app, &operator, tenant.0, "token.create", reason, &[body.subject.trim()]).await?;
    let token = minted.token.expose_secret().to_owned();
    Ok(HttpResponse::Created().json(MadeToken { token, expires_at: minted.expires_at }))
}
