//! The operators' surface: tenants, their keys and tokens. No document, no question.
//!
//! What the actions are is in [`crate::admin`]; here are their routes.

mod audit;
mod doctor;
mod keys;
mod limits;
mod metrics;
mod models;
mod tenants;
mod upkeep;

use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::web::{self, ServiceConfig};
use actix_web::{FromRequest, HttpRequest};
use uuid::Uuid;

pub(super) use audit::{
    __path_chains, __path_export, __path_tenant_chains, __path_tenant_days, __path_tenant_export, chains,
    export, tenant_chains, tenant_days, tenant_export,
};
pub(super) use doctor::{__path_diagnose, diagnose};
pub(super) use keys::{
    __path_key_create, __path_key_list, __path_key_revoke, __path_operator_create, __path_token_create,
    key_create, key_list, key_revoke, operator_create, token_create,
};
pub(super) use limits::{__path_tenant_limits, __path_tenant_usage, tenant_limits, tenant_usage};
pub(super) use metrics::{__path_tenant_metrics, __path_tenant_top, tenant_metrics, tenant_top};
pub(super) use models::{__path_reembed_create, __path_reembed_get, reembed_create, reembed_get};
pub(super) use tenants::{
    __path_tenant_create, __path_tenant_delete, __path_tenant_get, __path_tenant_list, __path_tenant_resume,
    __path_tenant_suspend, tenant_create, tenant_delete, tenant_get, tenant_list, tenant_resume,
    tenant_suspend,
};
pub(super) use upkeep::{
    __path_backup, __path_placement, __path_rebuild, __path_verify, backup, placement, rebuild, verify,
};

use super::extract::{Extraction, behind_gate, path_part};
use super::json::{Check, Faults};
use super::problem::{Kind, Problem};
use super::state::App;
use crate::admin::{
    AdminError, Administration, AuditExport, Examination, Faults as _, NewBackup, NewLimits, NewModel,
    NewOperator, NewPlacement, NewTenant, NewTenantKey, NewToken, Reason,
};
use crate::domain::ids::TenantId;

macro_rules! checked {
    ($($body:ty),*) => {$(
        impl Check for $body {
            fn check(&self, faults: &mut Faults) {
                for fault in self.faults() {
                    faults.value(fault.field, fault.rule);
                }
            }
        }
    )*};
}

checked!(
    NewTenant,
    NewLimits,
    Reason,
    NewTenantKey,
    NewToken,
    NewOperator,
    NewModel,
    Examination,
    NewPlacement,
    NewBackup,
    AuditExport
);

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Invalid(wrong) => {
                let mut faults = Faults::default();
                for fault in wrong {
                    faults.value(fault.field, fault.rule);
                }
                faults.end().err().unwrap_or_else(|| Self::internal("refused without a fault"))
            }
            AdminError::SlugTaken => {
                Self::new(Kind::Conflict).saying("A tenant of this slug is there already.")
            }
            AdminError::ModelChanging => {
                Self::new(Kind::Conflict).saying("Another change of this tenant's model is under way.")
            }
            AdminError::NotFound => Self::not_found(),
            AdminError::Store(error) => error.into(),
        }
    }
}

impl App {
    /// What operators act through.
    fn administration(&self) -> Administration {
        Administration {
            stores: self.stores.clone(),
            audit: self.audit.clone(),
            signer: Arc::clone(&self.signer),
            pepper: Arc::clone(&self.pepper),
            clock: Arc::clone(&self.clock),
            ids: Arc::clone(&self.ids),
            limits: self.quotas.clone(),
            upkeep: self.upkeep.clone(),
        }
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
        .service(web::resource("/admin/tenants/{id}/limits").route(web::patch().to(tenant_limits)))
        .service(web::resource("/admin/tenants/{id}/usage").route(web::get().to(tenant_usage)))
        .service(web::resource("/admin/tenants/{id}/metrics").route(web::get().to(tenant_metrics)))
        .service(web::resource("/admin/top").route(web::get().to(tenant_top)))
        .service(web::resource("/admin/tenants/{id}/resume").route(web::post().to(tenant_resume)))
        .service(
            web::resource("/admin/tenants/{id}/keys")
                .route(web::post().to(key_create))
                .route(web::get().to(key_list)),
        )
        .service(web::resource("/admin/tenants/{id}/keys/{key_id}").route(web::delete().to(key_revoke)))
        .service(web::resource("/admin/tenants/{id}/tokens").route(web::post().to(token_create)))
        .service(web::resource("/admin/tenants/{id}/reembed").route(web::post().to(reembed_create)))
        .service(web::resource("/admin/tenants/{id}/reembed/{job_id}").route(web::get().to(reembed_get)))
        .service(web::resource("/admin/doctor").route(web::get().to(diagnose)))
        .service(web::resource("/admin/tenants/{id}/verify").route(web::post().to(verify)))
        .service(web::resource("/admin/tenants/{id}/rebuild").route(web::post().to(rebuild)))
        .service(web::resource("/admin/tenants/{id}/placement").route(web::post().to(placement)))
        .service(web::resource("/admin/audit/chains").route(web::get().to(chains)))
        .service(web::resource("/admin/audit/export").route(web::post().to(export)))
        .service(web::resource("/admin/tenants/{id}/audit/chains").route(web::get().to(tenant_chains)))
        .service(web::resource("/admin/tenants/{id}/audit/days").route(web::get().to(tenant_days)))
        .service(web::resource("/admin/tenants/{id}/audit/export").route(web::post().to(tenant_export)))
        .service(web::resource("/admin/backups").route(web::post().to(backup)))
        .service(web::resource("/admin/operators").route(web::post().to(operator_create)));
}
