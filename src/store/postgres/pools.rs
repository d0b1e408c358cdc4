//! Connection pools, one for each kind of work, so that one cannot starve another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgPool};
use tokio::sync::Semaphore;

use super::prepared::preparation;
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

/// Connections for the audit log: one writer of two chains at a time, or a reader beside it.
const AUDIT_CONNECTIONS: u32 = 2;

/// How statements on tenant data and on the queue are planned. Each tenant is estimated as if it owned everything
/// (docs/decisions/a-tenant-may-own-everything.md), which must not make one that owns little read the rows of all, nor
/// take a second process for a question.
const PLANS: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("max_parallel_workers_per_gather", "0"), ("jit", "off")];

/// For how long a connection may rest until it is asked whether it is alive before anybody is given it. Its database may
/// have left meanwhile, which must not cost a caller an answer: shorter than PostgreSQL takes to be there again, so that
/// no connection of before is given out unasked. While the server is busy, nobody waits for the question.
const RESTED: Duration = Duration::from_millis(100);

/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 256;

/// What a transaction is for, which decides its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Lane {
    /// Somebody waits for the answer.
    Query,
    /// Ingestion, projection, purges.
    Ingest,
    /// A tenant's audit log, which must not wait behind any of them.
    Audit,
    /// The deployment's audit log.
    Deployment,
}

/// A pool of tenant connections with a cap for each tenant.
#[derive(Clone)]
pub(in crate::store) struct TenantPool {
    pub(super) pool: PgPool,
    pub(super) wait: Duration,
    shares: Cache<TenantId, Arc<Semaphore>>,
    share: usize,
}

impl TenantPool {
    fn new(options: PgConnectOptions, connections: u32, share: u32, wait: Duration) -> Self {
        let prepared = options_of(connections, wait).after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(AssertSqlSafe(preparation())).execute(connection).await.map(drop)
            })
        });
        Self::over(prepared.connect_lazy_with(options.statement_cache_capacity(STATEMENTS)), share, wait)
    }

    fn over(pool: PgPool, share: u32, wait: Duration) -> Self {
        Self {
            pool,
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
#[derive(Clone)]
pub(in crate::store) struct Pools {
    pub(super) query: TenantPool,
    pub(super) ingest: TenantPool,
    pub(super) audit: TenantPool,
    pub(super) deployment: TenantPool,
    pub(super) auth: PgPool,
    pub(super) dispatch: PgPool,
    pub(super) control: PgPool,
}

impl Pools {
    pub(in crate::store) fn new(addresses: &RoleAddresses, settings: &PoolSettings) -> Self {
        let wait = Duration::from_millis(settings.acquire_timeout_ms);
        let app = addresses.app.clone().options(PLANS);
        let control = pool(addresses.control.clone(), 3, Duration::from_secs(10));
        Self {
            audit: TenantPool::over(pool(app.clone(), AUDIT_CONNECTIONS, wait), AUDIT_CONNECTIONS, wait),
            deployment: TenantPool::over(control.clone(), 1, Duration::from_secs(10)),
            query: TenantPool::new(
                app.clone(),
                settings.query_connections,
                settings.tenant_query_connections,
                wait,
            ),
            ingest: TenantPool::new(
                app,
                settings.ingest_connections,
                settings.tenant_ingest_connections,
                Duration::from_secs(30),
            ),
            auth: pool(addresses.auth.clone(), 3, wait),
            dispatch: pool(addresses.dispatch.clone().options(PLANS), 2, Duration::from_secs(10)),
            control,
        }
    }

    /// How each is used. The deployment's audit log has no pool of its own.
    pub(super) fn uses(&self) -> [PoolUse; 6] {
        [
            ("query", &self.query.pool),
            ("ingest", &self.ingest.pool),
            ("audit", &self.audit.pool),
            ("auth", &self.auth),
            ("dispatch", &self.dispatch),
            ("control", &self.control),
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
                &self.auth,
                &self.dispatch,
                &self.control,
            ]
            .map(sqlx::Pool::close),
        )
        .await;
    }
}

/// A lazy pool whose connections are clean when they go back: one that is still inside a transaction,
/// or that cannot tell, is closed instead.
fn pool(options: PgConnectOptions, connections: u32, wait: Duration) -> PgPool {
    options_of(connections, wait).connect_lazy_with(options.statement_cache_capacity(STATEMENTS))
}

fn options_of(connections: u32, wait: Duration) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(wait)
        .idle_timeout(Duration::from_mins(5))
        .test_before_acquire(false)
        .before_acquire(|connection, about| {
            Box::pin(async move {
                if about.idle_for >= RESTED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                let clean = sqlx::query_scalar::<_, bool>(
                    "select coalesce(current_setting('bulkhead.tenant', true), '') = ''",
                );
                clean.fetch_one(connection).await
            })
        })
}
