//! The address of metrics and probes: for Prometheus and for whoever restarts and balances servers.
//!
//! It is a server of its own, so that it answers when tenants' connections are used up, and what it is asked counts
//! against nobody's limit.
//!
//! **Invariant:** numbers, ids of tenants and words of this program alone; no route of tenants or operators.

use std::net::TcpListener;
use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{self, Data};
use actix_web::{App as Routes, HttpResponse, HttpServer};

use super::state::App;
use crate::telemetry::metrics::MEDIA_TYPE;

/// Connections at once: a few scrapers and probes.
const CONNECTIONS: usize = 64;

/// Serves on this address until it is stopped.
pub(super) fn serve(data: &Data<App>, listener: TcpListener) -> std::io::Result<actix_web::dev::Server> {
    let data = data.clone();
    let routes = move || {
        Routes::new()
            .app_data(data.clone())
            .route("/metrics", web::get().to(page))
            .route("/health", web::get().to(alive))
            .route("/ready", web::get().to(ready))
    };
    let server = HttpServer::new(routes)
        .workers(1)
        .max_connections(CONNECTIONS)
        .client_request_timeout(Duration::from_secs(5))
        .shutdown_timeout(1)
        .disable_signals();
    Ok(server.listen(listener)?.run())
}

async fn page(app: Data<App>) -> HttpResponse {
    match app.metrics.page() {
        Ok(page) => HttpResponse::Ok().insert_header((header::CONTENT_TYPE, MEDIA_TYPE)).body(page),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

async fn alive() -> HttpResponse {
    HttpResponse::Ok().body("alive\n")
}

async fn ready(app: Data<App>) -> HttpResponse {
    if app.readiness.is_ready() {
        HttpResponse::Ok().body("ready\n")
    } else {
        HttpResponse::ServiceUnavailable().body("not ready\n")
    }
}
