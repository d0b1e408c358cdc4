//! Jobs: cancelled by their own tenant.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use serde::Serialize;

use super::extract::JobPath;
use super::problem::{Kind, Problem};
use super::state::App;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::JobId;
use crate::tenancy::{Permit, Write};

/// What became of a job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Cancelled {
    /// The job.
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    /// `cancelled`.
    status: &'static str,
}

/// Cancels a job. Its version fails with the reason `cancelled`; one that answered before goes on answering.
#[utoipa::path(
    delete, path = "/jobs/{id}", tag = "documents",
    params(("id" = uuid::Uuid, Path, description = "From the answer to an insert")),
    responses((status = 200, body = Cancelled), (status = 409, description = "It has ended")),
)]
#[tracing::instrument(name = "http.job.cancel", skip_all)]
pub(super) async fn cancel(
    permit: Permit<Write>,
    job: JobPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    match app.stores.writer(&permit).job_cancel(job.0).await? {
        None => Err(Problem::not_found()),
        Some(false) => Err(Problem::new(Kind::Conflict).saying("The job has ended.")),
        Some(true) => {
            let entry = AuditEntry::new(AuditKind::Write, "job.cancel", Decision::Allowed)
                .with_ids([job.0.to_string()]);
            app.audit.record(permit.scope(), entry).await;
            Ok(HttpResponse::Ok().json(Cancelled { job_id: job.0, status: "cancelled" }))
        }
    }
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config.service(web::resource("/jobs/{id}").route(web::delete().to(cancel)));
}
