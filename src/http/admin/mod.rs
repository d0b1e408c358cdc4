//! The operators' surface: tenants, their keys and tokens. No document, no question.
//!
//! **Invariant:** every action states a reason and is in the deployment's audit log and the tenant's before it
//! is answered as done.

mod keys;
mod tenants;

use actix_web::dev::Payload;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{FromRequest, HttpRequest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

pub(super) use keys::{
    __path_key_create, __path_key_list, __path_key_revoke, __path_token_create, key_create, key_list,
    key_revoke, token_create,
};
pub(super) use tenants::{
    __path_tenant_create, __path_tenant_delete, __path_tenant_get, __path_tenant_list, __path_tenant_resume,
    __path_tenant_suspend, tenant_create, tenant_delete, tenant_get, tenant_list, tenant_resume,
    tenant_suspend,
};

use super::extract::{Extraction, behind_gate, path_part};
use super::json::{Check, Faults};
use super::problem::Problem;
use super::state::App;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::TenantId;
use crate::tenancy::OperatorScope;

/// The longest name and reason, characters.
const MAX_WORDS: usize = 256;

/// Why something is done, for the audit log.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// At least 3 characters that a person will understand later.
    reason: String,
}

impl Check for Reason {
    fn check(&self, faults: &mut Faults) {
        check_reason(faults, &self.reason);
    }
}

fn check_reason(faults: &mut Faults, reason: &str) {
    faults.text("reason", reason.trim(), 3, MAX_WORDS);
}

fn check_words(faults: &mut Faults, name: &str, words: &str) {
    faults.text(name, words.trim(), 1, MAX_WORDS);
    if words.chars().any(char::is_control) {
        faults.body("value_error", &[json!(name)], "No control characters", &json!(null), None);
    }
}

/// The tenant that the path names.
#[derive(Debug, Clone, Copy)]
pub(super) struct TenantPath(TenantId);

impl FromRequest for TenantPath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "id").ok_or_else(Problem::not_found)?;
            let id = Uuid::try_parse(&raw).map_err(|_| Problem::not_found())?;
            Ok(Self(TenantId(id)))
        })
    }
}

/// Writes what was done into both logs. Where it cannot be written, the action is not answered as done.
async fn audited(
    app: &Data<App>,
    operator: &OperatorScope,
    tenant: TenantId,
    action: &'static str,
    reason: &str,
    ids: &[&str],
) -> Result<(), Problem> {
    let entry =
        AuditEntry::new(AuditKind::Admin, action, Decision::Allowed).because(reason.trim()).with_ids(ids);
    Ok(app.audit.record_operator(operator, Some(tenant), entry).await?)
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(
            web::resource("/admin/tenants")
                .route(web::post().to(tenant_create))
                .route(web::get().to(tenant_list)),
        )
        .service(
            web::resource("/admin/tenants/{id}")
                .route(web::get().to(tenant_get))
                .route(web::delete().to(tenant_delete)),
        )
        .service(web::resource("/admin/tenants/{id}/suspend").route(web::post().to(tenant_suspend)))
        .service(web::resource("/admin/tenants/{id}/resume").route(web::post().to(tenant_resume)))
        .service(
            web::resource("/admin/tenants/{id}/keys")
                .route(web::post().to(key_create))
                .route(web::get().to(key_list)),
        )
        .service(web::resource("/admin/tenants/{id}/keys/{key_id}").route(web::delete().to(key_revoke)))
        .service(web::resource("/admin/tenants/{id}/tokens").route(web::post().to(token_create)));
}
