//! Whether requests should be sent here, for load balancers.
//!
//! **Invariant:** no part of the request is looked at, and the answer is one of two constants: it tells nothing of
//! any tenant, and not what is wrong.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use serde::Serialize;

use super::problem::{Kind, Problem};
use super::state::App;

/// The answer of a server that is ready.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Ready {
    /// `ready`.
    status: &'static str,
}

/// Tells whether requests should be sent here: the database answers, the models run, and the server is not about to
/// stop.
///
/// It is looked after in the background, so that asking costs nothing. A server that is not ready still lives:
/// restarting it would not help.
#[utoipa::path(
    get, path = "/ready", tag = "service",
    responses((status = 200, body = Ready), (status = 503, description = "Not at the moment")),
)]
#[tracing::instrument(name = "http.ready.get", skip_all)]
pub(super) async fn ready(app: Data<App>) -> Result<HttpResponse, Problem> {
    if app.readiness.is_ready() {
        Ok(HttpResponse::Ok().json(Ready { status: "ready" }))
    } else {
        Err(Problem::new(Kind::Unavailable))
    }
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config.service(web::resource("/ready").route(web::get().to(ready)));
}
