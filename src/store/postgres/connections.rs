//! How the connections of pools are opened, given out and taken back.
//!
//! **Invariant:** a connection that is still inside a transaction, or cannot tell, does not go back to its pool.
//! **Invariant:** where there are several servers, a connection to another one than the primary is not given out.

use std::sync::Arc;
use std::time::Duration;

use pgvector::{SparseVector, Vector};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use super::prepared::preparation;
use super::primary::Primary;
use super::session::{Pooling, RolePool};

/// How statements on tenant data and on the queue are planned. Each tenant is estimated as if it owned everything
/// (docs/decisions/a-tenant-may-own-everything.md), which must not make one that owns little read the rows of all, nor
/// take a second process for a question.
const PLANS: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("max_parallel_workers_per_gather", "0"), ("jit", "off")];

/// Whether a pool's statements are planned by [`PLANS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planned {
    Usually,
    ByTenant,
}

impl Planned {
    /// Behind a pooler each transaction sets them: further columns of the `select` that begins it.
    pub(super) fn per_transaction(self, pooling: Pooling) -> String {
        match (self, pooling) {
            (Self::ByTenant, Pooling::Transaction) => {
                PLANS.map(|(name, value)| format!(", set_config('{name}', '{value}', true)")).concat()
            }
            _ => String::new(),
        }
    }
}

/// What a connection needs before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// Nothing.
    AtOnce,
    /// What [`super::prepared`] calls.
    ForCalls,
}

/// For how long a connection may rest until it is asked whether it is alive before anybody is given it. Its database may
/// have left meanwhile, which must not cost a caller an answer: shorter than PostgreSQL takes to be there again, so that
/// no connection of before is given out unasked. While the server is busy, nobody waits for the question.
const RESTED: Duration = Duration::from_millis(100);

/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 256;

/// How the connections of a server's pools are opened.
#[derive(Clone)]
pub(super) struct Opening {
    pooling: Pooling,
    /// Where several servers are followed from here.
    primary: Option<Arc<Primary>>,
    /// To a server that only reads, where each read asks of it what it has to be.
    follows: bool,
}

impl Opening {
    pub(super) fn new(pooling: Pooling, primary: Option<&Arc<Primary>>) -> Self {
        // A pooler leads to one server by itself, and its own connections are older than they look from here.
        let primary = primary.filter(|_| pooling == Pooling::Session).cloned();
        Self { pooling, primary, follows: false }
    }

    /// Of connections to a replica. None is refused here, which the driver would tell in the log each time: whoever
    /// reads asks the server what it is in the same message.
    pub(super) fn of_replica() -> Self {
        Self { pooling: Pooling::Session, primary: None, follows: true }
    }

    pub(super) fn pooling(&self) -> Pooling {
        self.pooling
    }

    pub(super) fn primary(&self) -> Option<&Arc<Primary>> {
        self.primary.as_ref()
    }

    /// An address as connections are opened: a pooler knows no settings of a session's start, and keeps no statement.
    pub(super) fn address(&self, address: &PgConnectOptions, planned: Planned) -> PgConnectOptions {
        let address = address.clone();
        match self.pooling {
            Pooling::Session => {
                let address = address.statement_cache_capacity(STATEMENTS);
                if planned == Planned::ByTenant { address.options(PLANS) } else { address }
            }
            Pooling::Transaction => address.statement_cache_capacity(0).extra_float_digits(None),
        }
    }

    /// How a pool of so many connections opens, gives out and takes back.
    pub(super) fn options(&self, connections: u32, wait: Duration, ready: Ready) -> PgPoolOptions {
        let (opened, given, taken) = (self.clone(), self.primary.clone(), self.clone());
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(wait)
            .idle_timeout(Duration::from_mins(5))
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let opening = opened.clone();
                Box::pin(async move { opening.opened(connection, ready).await })
            })
            .before_acquire(move |connection, about| {
                let is_of_before = is_of_before(given.as_deref(), about.age);
                Box::pin(async move {
                    if !is_of_before && about.idle_for >= RESTED {
                        connection.ping().await?;
                    }
                    Ok(!is_of_before)
                })
            })
            .after_release(move |connection, about| {
                let is_of_before = is_of_before(taken.primary.as_deref(), about.age);
                let (pooling, follows) = (taken.pooling, taken.follows);
                Box::pin(async move { Ok(!is_of_before && is_clean(connection, pooling, follows).await?) })
            })
    }

    async fn opened(&self, connection: &mut PgConnection, ready: Ready) -> Result<(), sqlx::Error> {
        if let Some(primary) = &self.primary {
            primary.require(connection).await?;
        }
        match (ready, self.pooling) {
            (Ready::AtOnce, _) => Ok(()),
            (Ready::ForCalls, Pooling::Session) => {
                sqlx::raw_sql(AssertSqlSafe(preparation())).execute(connection).await.map(drop)
            }
            (Ready::ForCalls, Pooling::Transaction) => learn_types(connection).await,
        }
    }
}

fn is_of_before(primary: Option<&Primary>, age: Duration) -> bool {
    primary.is_some_and(|primary| primary.is_of_before(age))
}

/// One connection of a role, on a session of its own.
pub(super) fn single(address: &PgConnectOptions) -> RolePool {
    let opening = Opening::new(Pooling::Session, None);
    let pool = opening.options(1, Duration::from_secs(10), Ready::AtOnce).connect_lazy_with(address.clone());
    RolePool::new(pool, Pooling::Session, "")
}

/// Has the driver look up the types of pgvector now. It asks by a statement of its own, which behind a pooler would
/// replace the one without a name that it is about to run.
async fn learn_types(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let types = sqlx::query("select $1 as embedding, $2 as terms")
        .bind(Vector::from(vec![0.0]))
        .bind(SparseVector::from_dense(&[0.0]))
        .persistent(false);
    (&mut *transaction).execute(types).await?;
    transaction.commit().await
}

/// Whether a connection is outside of every transaction, and its server still what it was: one that only reads is no
/// primary any more, wherever its name leads to by now, and one that writes is no replica.
async fn is_clean(
    connection: &mut PgConnection,
    pooling: Pooling,
    follows: bool,
) -> Result<bool, sqlx::Error> {
    const CLEAN: &str = "select coalesce(current_setting('bulkhead.tenant', true), '') = '' as outside, pg_is_in_recovery() as follows";
    let row = match pooling {
        Pooling::Session => sqlx::query(CLEAN).fetch_one(connection).await?,
        // One message, and no statement that would have to be there for the next one.
        Pooling::Transaction => sqlx::raw_sql(CLEAN).fetch_one(connection).await?,
    };
    Ok(row.try_get::<bool, _>("outside")? && row.try_get::<bool, _>("follows")? == follows)
}
