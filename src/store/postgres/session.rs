//! How statements reach PostgreSQL: on a session of one's own, or through a pooler in transaction mode.
//!
//! A statement on a session of one's own is prepared once, kept under a name, and may stand alone. Behind a pooler a
//! session is one's own from `begin` to `commit`; what is left in it, somebody else finds. There each statement is in a
//! transaction and without a name, and what a session is otherwise opened with is set by each transaction.
//!
//! **Invariant:** behind a pooler no statement leaves anything in a session, and none relies on what was left there.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, PgPool, Postgres, SqlStr, Transaction};

use super::transaction::begun;

/// To whom a session of PostgreSQL's belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// To a connection, as long as it lasts.
    #[default]
    Session,
    /// To a transaction: a pooler gives it to another connection afterwards, perhaps to another server's.
    Transaction,
}

/// A session inside a transaction. Dropped without [`Session::commit`], it is rolled back.
#[derive(Debug)]
pub(in crate::store) struct Session {
    transaction: Transaction<'static, Postgres>,
    pooling: Pooling,
}

impl Session {
    pub(super) fn new(transaction: Transaction<'static, Postgres>, pooling: Pooling) -> Self {
        Self { transaction, pooling }
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let sent = Sent { query, pooling: self.pooling };
        (&mut *self.transaction).fetch_many(sent)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let sent = Sent { query, pooling: self.pooling };
        (&mut *self.transaction).fetch_optional(sent)
    }

    fn prepare_with<'e>(
        self,
        _sql: SqlStr,
        _parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        refused()
    }

    fn describe<'e>(self, _sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        refused()
    }
}

/// A pool of a role that sees no tenant's data. Its statements stand alone.
#[derive(Debug, Clone)]
pub(in crate::store) struct RolePool {
    pub(super) pool: PgPool,
    /// Behind a pooler, what begins the transaction of a statement.
    opening: Option<String>,
}

impl RolePool {
    /// `settings` are further columns of a `select`, as [`super::pools`] writes them.
    pub(super) fn new(pool: PgPool, pooling: Pooling, settings: &str) -> Self {
        let opening = match pooling {
            Pooling::Session => None,
            Pooling::Transaction => Some(format!("begin; select true{settings}")),
        };
        Self { pool, opening }
    }

    /// Whether a connection can be had.
    pub(super) async fn reach(&self) -> Result<(), Error> {
        self.pool.acquire().await.map(drop)
    }
}

/// Begins in a task of its own: a caller who goes away cannot interrupt it.
async fn begin(pool: PgPool, opening: String) -> Result<Session, Error> {
    let transaction = begun(pool, opening).await.map_err(|_died| Error::WorkerCrashed)??;
    Ok(Session::new(transaction, Pooling::Transaction))
}

impl<'p> Executor<'p> for &'_ RolePool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let Some(opening) = self.opening.clone() else { return self.pool.fetch_many(query) };
        let pool = self.pool.clone();
        let answered = async move {
            let mut session = begin(pool, opening).await?;
            let answers: Vec<_> = (&mut session).fetch_many(query).try_collect().await?;
            session.commit().await?;
            Ok(futures::stream::iter(answers.into_iter().map(Ok)))
        };
        answered.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let Some(opening) = self.opening.clone() else { return self.pool.fetch_optional(query) };
        let pool = self.pool.clone();
        let answered = async move {
            let mut session = begin(pool, opening).await?;
            let row = (&mut session).fetch_optional(query).await?;
            session.commit().await?;
            Ok(row)
        };
        answered.boxed()
    }

    fn prepare_with<'e>(
        self,
        _sql: SqlStr,
        _parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        refused()
    }

    fn describe<'e>(self, _sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        refused()
    }
}

/// Nothing is prepared by hand: behind a pooler its name would be gone, or another's.
fn refused<'e, T: Send + 'e>() -> BoxFuture<'e, Result<T, Error>> {
    futures::future::err(Error::Configuration("statements are not prepared by hand".into())).boxed()
}

/// A statement on its way: with a name only on a session of one's own.
struct Sent<E> {
    query: E,
    pooling: Pooling,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Sent<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.pooling == Pooling::Session && self.query.persistent()
    }
}
