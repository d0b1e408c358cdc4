//! What a tenant keeps and how much it asks, for its own administrators and for operators.
//!
//! **Invariant:** numbers of one tenant alone; none of them depends on a neighbour.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::problem::Problem;
use super::state::{App, Traffic};
use crate::domain::ids::TenantId;
use crate::domain::limits::Limits;
use crate::store::postgres::usage::Usage;
use crate::tenancy::{Administer, Permit};

/// What a tenant uses of what it may.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct UsageBody {
    #[serde(flatten)]
    #[schema(inline)]
    usage: Usage,
    /// Requests that this server counted, refused ones among them.
    requests: u64,
    /// Requests that it refused for their rate.
    refused_requests: u64,
    /// Since when it counts requests: since it began to serve.
    counted_since: DateTime<Utc>,
    /// Which of several servers this is.
    node: String,
    /// What the tenant may.
    limits: Limits,
}

impl UsageBody {
    pub(super) fn new(app: &App, tenant: TenantId, usage: Usage, limits: Limits) -> Self {
        let Traffic { requests, refused } = app.meters.traffic(tenant);
        let served = app.clock.instant().saturating_duration_since(app.started);
        Self {
            usage,
            requests,
            refused_requests: refused,
            counted_since: app.clock.now() - served,
            node: app.node.clone(),
            limits,
        }
    }
}

/// Tells what the caller's tenant keeps, how long its queue is, and how much it asked.
#[utoipa::path(get, path = "/usage", tag = "tenant", responses((status = 200, body = UsageBody)))]
#[tracing::instrument(name = "http.usage.get", skip_all)]
pub(super) async fn usage(permit: Permit<Administer>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let usage = app.stores.reader(&permit).usage_get().await?;
    let scope = permit.scope();
    Ok(HttpResponse::Ok().json(UsageBody::new(&app, scope.tenant(), usage, app.quotas.of(scope))))
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config.service(web::resource("/usage").route(web::get().to(usage)));
}
