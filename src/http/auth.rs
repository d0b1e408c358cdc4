//! What a caller can learn of its own credential, and the key by which others verify our tokens.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::health::{API_VERSION, CORE_VERSION};
use super::identity::Caller;
use super::state::App;
use crate::tenancy::Role;

/// How callers are let in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AuthStatus {
    /// Always true: there is no way in without a credential.
    auth_configured: bool,
    /// `enabled`.
    auth_mode: &'static str,
    /// The version of LightRAG whose surface is spoken.
    core_version: &'static str,
    /// The version of its API.
    api_version: &'static str,
    /// The web page's title.
    webui_title: Option<String>,
    /// The web page's description.
    webui_description: Option<String>,
    /// Whether answers carry a notice that a model wrote them.
    ai_content_notice_enabled: bool,
}

/// Tells how callers are let in. Never gives a token.
#[utoipa::path(get, path = "/auth-status", tag = "auth", responses((status = 200, body = AuthStatus)))]
#[tracing::instrument(name = "http.auth.status", skip_all)]
pub(super) async fn auth_status() -> HttpResponse {
    HttpResponse::Ok().json(AuthStatus {
        auth_configured: true,
        auth_mode: "enabled",
        core_version: CORE_VERSION,
        api_version: API_VERSION,
        webui_title: None,
        webui_description: None,
        ai_content_notice_enabled: false,
    })
}

/// A word.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Verified {
    /// `ok`.
    status: &'static str,
}

/// Tells whether the credential is accepted.
#[utoipa::path(get, path = "/auth/verify", tag = "auth", responses((status = 200, body = Verified)))]
#[tracing::instrument(name = "http.auth.verify", skip_all)]
pub(super) async fn verify(_caller: Caller) -> HttpResponse {
    HttpResponse::Ok().json(Verified { status: "ok" })
}

/// What a credential is and may.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct WhoAmI {
    /// The credential's tenant.
    tenant_id: uuid::Uuid,
    /// The tenant's short name.
    slug: String,
    /// Who acts, as the audit log names it.
    principal: String,
    /// Every role that the credential includes.
    roles: Vec<Role>,
    /// The namespaces it is confined to; null: all of the tenant's.
    namespaces: Option<Vec<String>>,
    /// The tenant's limits.
    limits: Limits,
    /// When the credential ends; null: never.
    expires_at: Option<DateTime<Utc>>,
}

/// What a tenant may use.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Limits {
    #[serde(flatten)]
    #[schema(inline)]
    tenant: crate::domain::limits::Limits,
    /// The largest uploaded file, bytes.
    upload_bytes: usize,
    /// The longest text of one document, bytes.
    text_bytes: usize,
    /// Event streams at once.
    streams: usize,
}

/// Tells a caller its tenant, roles, namespaces, limits and expiry.
#[utoipa::path(get, path = "/auth/whoami", tag = "auth", responses((status = 200, body = WhoAmI)))]
#[tracing::instrument(name = "http.auth.whoami", skip_all)]
pub(super) async fn whoami(caller: Caller, app: Data<App>) -> HttpResponse {
    let scope = caller.scope();
    let roles = [Role::Reader, Role::Writer, Role::TenantAdmin];
    HttpResponse::Ok().json(WhoAmI {
        tenant_id: scope.tenant().0,
        slug: scope.slug().to_owned(),
        principal: scope.principal().as_str().to_owned(),
        roles: roles.into_iter().filter(|role| scope.role() >= Some(*role)).collect(),
        namespaces: scope.namespaces().map(|names| names.iter().map(ToString::to_string).collect()),
        limits: Limits {
            tenant: app.quotas.of(scope),
            upload_bytes: app.limits.max_upload_bytes,
            text_bytes: app.limits.max_text_bytes,
            streams: app.limits.tenant_streams,
        },
        expires_at: caller.authenticated().expires_at(),
    })
}

/// The public key of this server's own tokens (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "auth", responses((status = 200, body = Object)))]
#[tracing::instrument(name = "http.auth.jwks", skip_all)]
pub(super) async fn jwks(app: Data<App>) -> HttpResponse {
    HttpResponse::Ok().json(app.signer.jwks())
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/auth-status").route(web::get().to(auth_status)))
        .service(web::resource("/auth/verify").route(web::get().to(verify)))
        .service(web::resource("/auth/whoami").route(web::get().to(whoami)))
        .service(web::resource("/.well-known/jwks.json").route(web::get().to(jwks)));
}
