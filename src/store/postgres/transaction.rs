//! The one constructor of a transaction on tenant data.
//!
//! **Invariant:** a statement on tenant data runs only inside a transaction whose tenant was set with it, and stays that
//! tenant's: it can turn to the deployment's own rows, and from there to nobody's.
//! **Invariant:** a cancelled caller never leaves a transaction open on a connection that goes back.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Either, PgPool, Postgres, Transaction};
use tokio::sync::OwnedSemaphorePermit;

use super::error::failed;
use super::pools::TenantPool;
use super::prepared::Call;
use super::primary::Primary;
use super::session::Session;
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
    session: Session,
    /// Where there are several servers, how often the primary had been another one.
    primary: Option<(Arc<Primary>, u64)>,
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
        let share = share(pool, tenant).await?;
        let begin = opening(pool, tenant, plans);
        let primary = pool.primary.clone().map(|primary| (Arc::clone(&primary), primary.changes()));
        let inner = begun(pool.pool.clone(), begin).await.map_err(died(OPERATION))?;
        let session = Session::new(inner.map_err(failed(OPERATION))?, pool.pooling);
        Ok(Self { session, primary, _share: share })
    }

    /// Has what follows planned like this.
    pub(in crate::store) async fn plan(&mut self, plans: Plans) -> Result<(), StoreError> {
        let settings = settings(plans);
        if settings.is_empty() {
            return Ok(());
        }
        let set = format!("select {}", settings.trim_start_matches(", "));
        sqlx::raw_sql(AssertSqlSafe(set))
            .execute(&mut self.session)
            .await
            .map_err(failed("transaction.plan"))?;
        Ok(())
    }

    /// Shows the deployment's own rows from here on, and the tenant's no more. There is no way to another tenant.
    pub(super) async fn show_deployment(&mut self) -> Result<(), StoreError> {
        sqlx::query("select set_config('bulkhead.tenant', '00000000-0000-0000-0000-000000000000', true)")
            .execute(&mut self.session)
            .await
            .map_err(failed("transaction.show"))?;
        Ok(())
    }

    /// Commits; not on a server that is no primary any more.
    pub(in crate::store) async fn commit(self) -> Result<(), StoreError> {
        if self.primary.is_some_and(|(primary, changes)| primary.changes() != changes) {
            let words = "the primary is another server by now";
            return Err(StoreError::new(ErrorKind::Unavailable, "postgres", "transaction.commit", words));
        }
        self.session.commit().await.map_err(failed("transaction.commit"))
    }
}

/// Begins with this message, in a task of its own.
pub(super) async fn begun(
    pool: PgPool,
    message: String,
) -> Result<Result<Transaction<'static, Postgres>, sqlx::Error>, tokio::task::JoinError> {
    tokio::task::spawn(async move { pool.begin_with(AssertSqlSafe(message)).await }).await
}

/// Has prepared statements read in a transaction of their own, all of it in one message. The rows of each, as text.
///
/// A question's reads are what everybody waits for, and each message there and back costs both processes a turn:
/// docs/decisions/a-read-is-one-message.md. Runs in a task of its own, as [`TenantTransaction::begin`] does.
pub(super) async fn read(
    pool: &TenantPool,
    tenant: TenantId,
    calls: &[Call<'_>],
    operation: &'static str,
) -> Result<Vec<Vec<PgRow>>, StoreError> {
    let share = share(pool, tenant).await?;
    read_holding(share, pool, tenant, calls, operation).await
}

/// The same with a place among the tenant's connections that was found before.
pub(super) async fn read_holding(
    share: OwnedSemaphorePermit,
    pool: &TenantPool,
    tenant: TenantId,
    calls: &[Call<'_>],
    operation: &'static str,
) -> Result<Vec<Vec<PgRow>>, StoreError> {
    let mut message = opening(pool, tenant, Plans::Usual);
    for call in calls {
        message.push_str("; ");
        call.write(&mut message, pool.pooling);
    }
    message.push_str("; commit");
    let pool = pool.pool.clone();
    let task = tokio::task::spawn(async move {
        let _share = share;
        answered(&pool, message).await
    });
    let mut results = task.await.map_err(died(operation))?.map_err(failed(operation))?;
    // What `begin` and the settings answer comes first, and last what `commit` does.
    results.truncate(results.len().saturating_sub(1));
    Ok(results.split_off(2.min(results.len())))
}

/// The rows of each statement of a message. After a failure nothing of it is left on the connection.
async fn answered(pool: &PgPool, message: String) -> Result<Vec<Vec<PgRow>>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let (mut results, mut rows) = (Vec::new(), Vec::new());
    let mut stream = sqlx::raw_sql(AssertSqlSafe(message)).fetch_many(&mut *connection);
    let ended = loop {
        match stream.try_next().await {
            Ok(Some(Either::Right(row))) => rows.push(row),
            Ok(Some(Either::Left(_end))) => results.push(std::mem::take(&mut rows)),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(stream);
    if let Err(error) = ended {
        // A connection that cannot is closed by its pool.
        drop(sqlx::raw_sql("rollback").execute(&mut *connection).await);
        return Err(error);
    }
    Ok(results)
}

/// A place among the connections that the tenant may hold.
async fn share(pool: &TenantPool, tenant: TenantId) -> Result<OwnedSemaphorePermit, StoreError> {
    let busy = || {
        StoreError::new(
            ErrorKind::Unavailable,
            "postgres",
            "transaction.begin",
            "the tenant's share is in use",
        )
    };
    let share = tokio::time::timeout(pool.wait, pool.share_of(tenant).acquire_owned()).await;
    share.map_err(|_| busy())?.map_err(|_| busy())
}

/// Begins, and sets tenant and application name. A uuid has no character that could end the literal.
fn opening(pool: &TenantPool, tenant: TenantId, plans: Plans) -> String {
    let (session, plans) = (&pool.session_settings, settings(plans));
    format!(
        "begin; select set_config('bulkhead.tenant', '{tenant}', true), \
         set_config('application_name', 'bulkhead {tenant}', true){session}{plans}"
    )
}

/// What is set for these plans, each setting behind a comma.
fn settings(plans: Plans) -> String {
    match plans {
        Plans::Usual => String::new(),
        Plans::Graph { candidates } => format!(
            ", set_config('plan_cache_mode', 'force_custom_plan', true), \
             set_config('enable_sort', 'off', true), \
             set_config('hnsw.ef_search', '{candidates}', true), \
             set_config('hnsw.iterative_scan', 'strict_order', true)"
        ),
    }
}

fn died(operation: &'static str) -> impl FnOnce(tokio::task::JoinError) -> StoreError {
    move |error| {
        StoreError::new(ErrorKind::Internal, "postgres", operation, "the task died").with_source(error)
    }
}

impl Deref for TenantTransaction {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for TenantTransaction {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
