//! Whether the server lives, and to callers with a credential how it is made and what their own queue does.
//!
//! **Invariant:** without a credential the answer is a constant; with one it counts the caller's own tenant alone.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use serde::Serialize;
use serde_json::{Value, json};

use super::identity::PossibleCaller;
use super::problem::Problem;
use super::state::App;
use crate::tenancy::Read;

/// The version of LightRAG whose surface is spoken.
pub(super) const CORE_VERSION: &str = "1.5.7";
/// The version of its API.
pub(super) const API_VERSION: &str = "0344";

/// What everybody may know.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Liveness {
    /// `healthy`.
    status: &'static str,
    /// `enabled`: every other call needs a credential.
    auth_mode: &'static str,
    /// The version of LightRAG whose surface is spoken.
    core_version: &'static str,
    /// The version of its API.
    api_version: &'static str,
    /// Whether there is a web page to use.
    webui_available: bool,
    /// Its title.
    webui_title: Option<String>,
    /// Its description.
    webui_description: Option<String>,
    /// What callers with a credential see besides.
    #[serde(flatten)]
    #[schema(inline)]
    own: Option<OwnHealth>,
}

/// What a caller with a credential sees besides.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct OwnHealth {
    /// Whether any of the tenant's documents wait or are processed.
    pipeline_busy: bool,
    /// Whether any of them is processed at this moment.
    pipeline_active: bool,
    /// How many of them wait.
    pipeline_pending_enqueues: i64,
    /// The tenant's queue.
    #[schema(value_type = Object)]
    queue: Value,
    /// Models and back ends.
    #[schema(value_type = Object)]
    configuration: Value,
    /// This server's own version.
    bulkhead_version: &'static str,
    /// Whether the API is documented here.
    api_docs_available: bool,
}

/// Tells whether the server lives.
///
/// Without a credential the answer is always the same. With one it also tells the configuration and the
/// caller's own queue.
#[utoipa::path(get, path = "/health", tag = "service", responses((status = 200, body = Liveness)))]
#[tracing::instrument(name = "http.health.get", skip_all)]
pub(super) async fn health(caller: PossibleCaller, app: Data<App>) -> Result<HttpResponse, Problem> {
    let own = match &caller.0 {
        None => None,
        Some(caller) => {
            // A credential without a role has no queue to be told of.
            let counts = match caller.scope().permit::<Read>() {
                Ok(permit) => Some(app.stores.reader(&permit).job_counts().await?),
                Err(_) => None,
            };
            let (queued, running) = counts.map_or((0, 0), |counts| (counts.queued, counts.running));
            Some(OwnHealth {
                pipeline_busy: queued + running > 0,
                pipeline_active: running > 0,
                pipeline_pending_enqueues: queued,
                queue: json!({"queued": queued, "running": running, "limit": app.quotas.of(caller.scope()).queued_jobs}),
                configuration: app.configuration.clone(),
                bulkhead_version: env!("CARGO_PKG_VERSION"),
                api_docs_available: true,
            })
        }
    };
    Ok(HttpResponse::Ok().json(Liveness {
        status: "healthy",
        auth_mode: "enabled",
        core_version: CORE_VERSION,
        api_version: API_VERSION,
        webui_available: false,
        webui_title: None,
        webui_description: None,
        own,
    }))
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config.service(web::resource("/health").route(web::get().to(health)));
}
