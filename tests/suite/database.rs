//! A migrated database of its own for each test, as the server sees it and as its superuser does.

use std::path::Path;
use std::sync::Arc;

use bulkhead::domain::audit::{AuditEntry, AuditKind, Decision};
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource, ModelId, SystemIds, TenantId};
use bulkhead::store::postgres::audit::PostgresAudit;
use bulkhead::store::postgres::server::PrivateServer;
use bulkhead::store::postgres::{PoolSettings, Postgres, migrate};
use bulkhead::store::{Audit, AuditSettings, ServerAct, TenantAct};
use bulkhead::tenancy::{Permit, TenantScope, Write, reauthorise};
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::place::{Place, connect};

/// The model whose partition exists.
pub const MODEL: &str = "0123456789abcdef";

/// The log of what tests change.
fn log(postgres: &Postgres) -> Audit {
    let log = Arc::new(PostgresAudit::new(postgres.clone(), "node-1"));
    Audit::start(log, AuditSettings::default(), Arc::new(SystemClock), &[1; 32])
}

/// The deletion of a namespace by somebody of a tenant.
pub fn deletion(postgres: &Postgres, scope: &TenantScope) -> TenantAct {
    let entry = AuditEntry::new(AuditKind::Admin, "namespace.delete", Decision::Allowed);
    log(postgres).tenant_act(scope, entry)
}

/// The making of an operator's credential.
pub fn first_operator(postgres: &Postgres) -> ServerAct {
    log(postgres).server_act(AuditEntry::new(AuditKind::Admin, "operator.create", Decision::Allowed))
}

/// A running server with a migrated database.
pub struct Database {
    // Dropped after the server, whose leavings it ends.
    pub server: PrivateServer,
    pub postgres: Postgres,
    place: Place,
}

impl Database {
    pub async fn start() -> Self {
        let place = Place::new();
        let server = place.start().await;
        server.bootstrap("bulkhead").await.expect("bootstrap");
        let addresses = server.addresses("bulkhead");
        let model = ModelId::parse(MODEL).expect("model");
        migrate::migrate(&addresses.owner, &model).await.expect("migrated");
        let settings = PoolSettings {
            query_connections: 4,
            ingest_connections: 4,
            tenant_query_connections: 3,
            tenant_ingest_connections: 3,
            acquire_timeout_ms: 5000,
        };
        let ids = Arc::new(SystemIds(SystemClock));
        let postgres = Postgres::new(&addresses, &settings, model, Arc::new(SystemClock), ids);
        Self { server, postgres, place }
    }

    /// A folder that goes with the database.
    pub fn folder(&self) -> &Path {
        self.place.base.path()
    }

    /// A connection that no policy binds.
    pub async fn superuser(&self) -> PgConnection {
        connect(&self.server.superuser().database("bulkhead")).await
    }

    /// An active tenant, and the authority of its jobs.
    pub async fn tenant(&self, slug: &str) -> Permit<Write> {
        let id = SystemIds(SystemClock).uuid();
        sqlx::query(
            "insert into tenant (tenant_id, name, slug, state, created_at, updated_at)
             values ($1, $2, $2, 'active', now(), now())",
        )
        .bind(id)
        .bind(slug)
        .execute(&mut self.superuser().await)
        .await
        .expect("tenant");
        self.permit(id).await.expect("active")
    }

    /// The authority of a tenant's jobs, if it is active.
    pub async fn permit(&self, tenant: Uuid) -> Option<Permit<Write>> {
        reauthorise(&self.postgres, TenantId(tenant), "test").await.expect("directory")
    }

    pub async fn stop(self) {
        self.postgres.close().await;
        self.server.stop().await.expect("stopped");
    }
}
