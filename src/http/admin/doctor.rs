//! `GET /admin/doctor`: what is wrong with the stores, as the running server sees them.

use actix_web::HttpResponse;
use actix_web::web::Data;

use super::super::problem::Problem;
use super::super::state::App;
use crate::domain::finding::Report;
use crate::tenancy::OperatorScope;

/// Tells what is wrong with the database and with what this server did, why it matters and how to mend it. Changes
/// nothing. `bulkhead doctor` adds what is wrong with the machine, the files and the configuration.
#[utoipa::path(get, path = "/admin/doctor", tag = "operator", responses((status = 200, body = Report)))]
#[tracing::instrument(name = "http.doctor.get", skip_all)]
pub(in crate::http) async fn diagnose(
    operator: OperatorScope,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(app.administration().diagnose(&operator).await?))
}
