//! Connection pools, one for each kind of work, so that one cannot starve another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Semaphore;

use super::connections::{Opening, Planned, Ready};
use super::primary::Primary;
use super::session::{Pooling, RolePool};
use crate::domain::ids::TenantId;

/// Sizes and waits of the pools.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// Connections for queries.
    pub query_connections: u32,
    /// Connections for ingestion and projection.
    pub ingest_connections: u32,
    /// Of the query connections, how many one tenant may hold at once.
    pub tenant_query_connections: u32,
    /// Of the ingestion connections, how many one tenant may hold at once.
    pub tenant_ingest_connections: u32,
    /// How long to wait for a connection, milliseconds; then 503.
    pub acquire_timeout_ms: u64,
}

/// Addresses of the database, one for each role.
#[derive(Debug, Clone)]
pub struct RoleAddresses {
    /// Migrations and partitions; no connection stays open.
    pub owner: PgConnectOptions,
    /// Tenant data, under row-level security.
    pub app: PgConnectOptions,
    /// Credential columns only.
    pub auth: PgConnectOptions,
    /// Heads of jobs and outbox only.
    pub dispatch: PgConnectOptions,
    /// Tenants and keys.
    pub control: PgConnectOptions,
}

/// How the database is reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Its addresses on the server that is the primary.
    pub primary: RoleAddresses,
    /// Those on the other servers that may become it.
    pub others: Vec<RoleAddresses>,
    /// To whom the sessions behind them belong, but for the owner's, which goes around every pooler.
    pub pooling: Pooling,
    /// The app role's address on a server that follows the primary, to read there.
    pub replica: Option<PgConnectOptions>,
}

impl From<&RoleAddresses> for Reach {
    fn from(addresses: &RoleAddresses) -> Self {
        Self { primary: addresses.clone(), others: Vec::new(), pooling: Pooling::Session, replica: None }
    }
}

/// Connections for the audit log: one writer of two chains at a time, or a reader beside it.
const AUDIT_CONNECTIONS: u32 = 2;

/// What a transaction is for, which decides its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Lane {
    /// Somebody waits for the answer.
    Query,
    /// Ingestion, projection, purges.
    Ingest,
    /// A tenant's audit log, which must not wait behind any of them.
    Audit,
    /// What operators decide, and the deployment's audit log.
    Deployment,
}

/// A pool of tenant connections with a cap for each tenant.
#[derive(Clone)]
pub(in crate::store) struct TenantPool {
    pub(super) pool: PgPool,
    pub(super) pooling: Pooling,
    pub(super) primary: Option<Arc<Primary>>,
    /// Columns of a `select` by which a transaction sets what its session was not opened with.
    pub(super) session_settings: String,
    pub(super) wait: Duration,
    shares: Cache<TenantId, Arc<Semaphore>>,
    share: usize,
}

impl TenantPool {
    pub(super) fn over(
        pool: PgPool,
        opening: &Opening,
        planned: Planned,
        share: u32,
        wait: Duration,
    ) -> Self {
        Self {
            pool,
            pooling: opening.pooling(),
            primary: opening.primary().cloned(),
            session_settings: planned.per_transaction(opening.pooling()),
            wait,
            shares: Cache::builder().max_capacity(100_000).time_to_idle(Duration::from_mins(10)).build(),
            share: usize::try_from(share).unwrap_or(1).max(1),
        }
    }

    /// The tenant's share of the pool.
    pub(super) fn share_of(&self, tenant: TenantId) -> Arc<Semaphore> {
        self.shares.get_with(tenant, || Arc::new(Semaphore::new(self.share)))
    }
}

impl TenantPool {
    /// What tenants hold of their shares at this moment.
    fn held(&self) -> impl Iterator<Item = (TenantId, i64)> {
        let held = |(tenant, share): (Arc<TenantId>, Arc<Semaphore>)| {
            let held = self.share.saturating_sub(share.available_permits());
            (*tenant, i64::try_from(held).unwrap_or(i64::MAX))
        };
        self.shares.iter().map(held).filter(|(_, held)| *held > 0)
    }
}

/// How a pool is used at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// Its name.
    pub name: &'static str,
    /// Connections that somebody holds.
    pub busy: u32,
    /// Connections that wait to be used.
    pub idle: u32,
    /// The most that there may be.
    pub most: u32,
}

/// All pools of a server.
pub(in crate::store) struct Pools {
    pub(super) query: TenantPool,
    pub(super) ingest: TenantPool,
    pub(super) audit: TenantPool,
    pub(super) deployment: TenantPool,
    pub(super) auth: RolePool,
    pub(super) dispatch: RolePool,
    pub(super) control: RolePool,
    pub(super) opening: Opening,
}

impl Pools {
    /// Pools that follow the primary, if there are several servers and no pooler before them.
    pub(super) fn new(reach: &Reach, primary: Option<&Arc<Primary>>, settings: &PoolSettings) -> Self {
        let (addresses, opening) = (&reach.primary, Opening::new(reach.pooling, primary));
        let wait = Duration::from_millis(settings.acquire_timeout_ms);
        let (rarely, patiently) = (Duration::from_secs(10), Duration::from_secs(30));
        let tenants = |connections, share, wait, ready| {
            let address = opening.address(&addresses.app, Planned::ByTenant);
            let pool = opening.options(connections, wait, ready).connect_lazy_with(address);
            TenantPool::over(pool, &opening, Planned::ByTenant, share, wait)
        };
        let roles = |address, connections, wait, planned| {
            let address = opening.address(address, planned);
            let pool = opening.options(connections, wait, Ready::AtOnce).connect_lazy_with(address);
            RolePool::new(pool, opening.pooling(), &planned.per_transaction(opening.pooling()))
        };
        let control = roles(&addresses.control, 3, rarely, Planned::Usually);
        let PoolSettings { query_connections, ingest_connections, .. } = *settings;
        let PoolSettings { tenant_query_connections, tenant_ingest_connections, .. } = *settings;
        Self {
            query: tenants(query_connections, tenant_query_connections, wait, Ready::ForCalls),
            ingest: tenants(ingest_connections, tenant_ingest_connections, patiently, Ready::ForCalls),
            audit: tenants(AUDIT_CONNECTIONS, AUDIT_CONNECTIONS, wait, Ready::AtOnce),
            deployment: TenantPool::over(control.pool.clone(), &opening, Planned::Usually, 1, rarely),
            auth: roles(&addresses.auth, 3, wait, Planned::Usually),
            dispatch: roles(&addresses.dispatch, 2, rarely, Planned::ByTenant),
            control,
            opening: opening.clone(),
        }
    }

    /// Connections that are opened from now on are to another server.
    pub(super) fn connect_to(&self, addresses: &RoleAddresses) {
        let app = self.opening.address(&addresses.app, Planned::ByTenant);
        for pool in [&self.query.pool, &self.ingest.pool, &self.audit.pool] {
            pool.set_connect_options(app.clone());
        }
        for (pool, address, planned) in [
            (&self.auth, &addresses.auth, Planned::Usually),
            (&self.dispatch, &addresses.dispatch, Planned::ByTenant),
            (&self.control, &addresses.control, Planned::Usually),
        ] {
            pool.pool.set_connect_options(self.opening.address(address, planned));
        }
    }

    /// How each is used. The deployment's audit log has no pool of its own.
    pub(super) fn uses(&self) -> [PoolUse; 6] {
        [
            ("query", &self.query.pool),
            ("ingest", &self.ingest.pool),
            ("audit", &self.audit.pool),
            ("auth", &self.auth.pool),
            ("dispatch", &self.dispatch.pool),
            ("control", &self.control.pool),
        ]
        .map(|(name, pool)| {
            let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
            let most = pool.options().get_max_connections();
            PoolUse { name, busy: pool.size().saturating_sub(idle), idle, most }
        })
    }

    /// Connections that tenants hold at this moment.
    pub(super) fn held(&self) -> BTreeMap<TenantId, i64> {
        let mut held = BTreeMap::new();
        for (tenant, count) in [&self.query, &self.ingest, &self.audit].into_iter().flat_map(TenantPool::held)
        {
            *held.entry(tenant).or_default() += count;
        }
        held
    }

    pub(in crate::store) async fn close(&self) {
        futures::future::join_all(
            [
                &self.query.pool,
                &self.ingest.pool,
                &self.audit.pool,
                &self.auth.pool,
                &self.dispatch.pool,
                &self.control.pool,
            ]
            .map(sqlx::Pool::close),
        )
        .await;
    }
}
