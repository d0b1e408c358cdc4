//! A large namespace's graph, built anew beside the one that is searched.
//!
//! **Invariant:** a rebuild that breaks off leaves no second graph: PostgreSQL would keep it up with each write and
//! search it never. What a killed server left goes with the next rebuild.

use sqlx::AssertSqlSafe;

use super::{DuePartition, Owner};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::partition::Partition;
use crate::store::postgres::Postgres;
use crate::store::postgres::error::failed;

const OPERATION: &str = "partition.renew";

impl Postgres {
    /// Builds the graph of a namespace's own partition anew, beside the one that is searched. `false`: it has none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Conflict` when the partition is being worked on.
    pub(in crate::store::postgres) async fn graph_renew(
        &self,
        partition: &Partition,
    ) -> Result<bool, StoreError> {
        let due = DuePartition {
            tenant: partition.tenant(),
            namespace: partition.namespace(),
            model: partition.model().clone(),
        };
        let mut owner = Owner::connect(self).await?;
        let renewed = owner.renew(&due.leaf()).await;
        owner.close().await;
        renewed
    }
}

impl Owner {
    async fn renew(&mut self, leaf: &str) -> Result<bool, StoreError> {
        let there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(format!("{leaf}_hnsw"))
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed(OPERATION))?;
        if !there {
            return Ok(false);
        }
        if !self.lock(leaf).await? {
            let words = "the namespace's partition is being worked on";
            return Err(StoreError::new(ErrorKind::Conflict, "postgres", OPERATION, words));
        }
        self.drop_leftovers(leaf).await?;
        let built = self.run(format!("reindex index concurrently {leaf}_hnsw")).await;
        if built.is_err()
            && let Err(error) = self.drop_leftovers(leaf).await
        {
            tracing::warn!(%error, "a graph that was not finished stays until the next rebuild");
        }
        built.map(|()| true)
    }

    /// Drops graphs over a leaf that a rebuild left unfinished, or did not come to drop. They are known by what they
    /// are, since PostgreSQL cuts their names to fit.
    async fn drop_leftovers(&mut self, leaf: &str) -> Result<(), StoreError> {
        let left: Vec<String> = sqlx::query_scalar(
            "select c.oid::regclass::text from pg_index i
             join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
             where i.indrelid = to_regclass($1) and a.amname = 'hnsw' and not i.indisvalid and c.relname <> $2
             order by 1",
        )
        .bind(leaf)
        .bind(format!("{leaf}_hnsw"))
        .fetch_all(&mut self.connection)
        .await
        .map_err(failed(OPERATION))?;
        for index in left {
            self.run(format!("drop index concurrently if exists {index}")).await?;
        }
        Ok(())
    }

    async fn run(&mut self, statement: String) -> Result<(), StoreError> {
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection).await;
        done.map(drop).map_err(failed(OPERATION))
    }
}
