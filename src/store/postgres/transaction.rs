//! The one constructor of a transaction on tenant data.
//!
//! **Invariant:** a statement on tenant data runs only inside a transaction whose tenant was set with it.
//! **Invariant:** a cancelled caller never leaves a transaction open on a connection that goes back.

use std::ops::{Deref, DerefMut};

use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};
use tokio::sync::OwnedSemaphorePermit;

use super::error::failed;
use super::pools::TenantPool;
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};

/// How a transaction's statements are planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Plans {
    /// As PostgreSQL sees fit.
    Usual,
    /// Each for its own values, so that the planner knows which partition and index they lead to, and by an index
    /// where there is one for the order; a search of an HNSW graph keeps this many candidates, and goes on when
    /// they do not suffice.
    Graph {
        /// `hnsw.ef_search`
        candidates: u16,
    },
}

/// A transaction in which row-level security shows one tenant. Dropped without [`TenantTransaction::commit`],
/// it is rolled back.
pub(in crate::store) struct TenantTransaction {
    inner: Transaction<'static, Postgres>,
    _share: OwnedSemaphorePermit,
}

impl TenantTransaction {
    /// Begins, and sets tenant and application name in the same round trip.
    ///
    /// Runs in a task of its own: a caller who goes away cannot interrupt between `begin` and the driver's
    /// own book-keeping, which would hand the connection back inside an open transaction.
    pub(in crate::store) async fn begin(
        pool: &TenantPool,
        tenant: TenantId,
        plans: Plans,
    ) -> Result<Self, StoreError> {
        const OPERATION: &str = "transaction.begin";
        let busy =
            || StoreError::new(ErrorKind::Unavailable, "postgres", OPERATION, "the tenant's share is in use");
        let share = tokio::time::timeout(pool.wait, pool.share_of(tenant).acquire_owned())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let pool = pool.pool.clone();
        // A uuid has no character that could end the literal.
        let plans = match plans {
            Plans::Usual => String::new(),
            Plans::Graph { candidates } => format!(
                ", set_config('plan_cache_mode', 'force_custom_plan', true), \
                 set_config('enable_sort', 'off', true), \
                 set_config('hnsw.ef_search', '{candidates}', true), \
                 set_config('hnsw.iterative_scan', 'strict_order', true)"
            ),
        };
        let begin = format!(
            "begin; select set_config('bulkhead.tenant', '{tenant}', true), \
             set_config('application_name', 'bulkhead {tenant}', true){plans}"
        );
        let task = tokio::task::spawn(async move { pool.begin_with(AssertSqlSafe(begin)).await });
        let inner = task
            .await
            .map_err(|error| {
                StoreError::new(ErrorKind::Internal, "postgres", OPERATION, "the task died")
                    .with_source(error)
            })?
            .map_err(failed(OPERATION))?;
        Ok(Self { inner, _share: share })
    }

    /// Commits.
    pub(in crate::store) async fn commit(self) -> Result<(), StoreError> {
        self.inner.commit().await.map_err(failed("transaction.commit"))
    }
}

impl Deref for TenantTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for TenantTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}
