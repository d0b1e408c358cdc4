//! A server that follows the primary and answers what questions read.
//!
//! A question opens its namespace on the primary, whichever server of ours it was sent to, and so learns how far the
//! namespace has come, and on which timeline. What it reads then, the replica answers once it has come as far: it says
//! its own position and history in the same transaction.
//!
//! **Invariant:** what the replica answers is no older than what the primary said to the same question.
//! **Invariant:** the replica follows, on the primary's own timeline. One of another cluster, one that takes writes, or
//! one that was ahead of the server that was promoted, is not read from.
//! **Invariant:** a question is never refused because of the replica: the primary answers.
//! **Invariant:** what a tenant waits for by its own doing does not count against the replica.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgRow};
use tokio::sync::OwnedSemaphorePermit;

use super::address::{AddressError, place};
use super::connections::{Opening, Planned, Ready};
use super::error::failed;
use super::pools::{PoolSettings, TenantPool};
use super::prepared::{Call, POSITION, Value};
use super::primary::{History, cluster_of};
use super::{Postgres, transaction};
use crate::domain::Seq;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::{Calls, Layers, OneCallSettings};
use crate::store::partition::Partition;

/// Its name in errors, logs and metrics.
const BACKEND: &str = "postgres-replica";

/// `[database.replica]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaSettings {
    /// Where it is, as `postgres://host:port`; empty: there is none.
    pub url: String,
    /// `[database.replica.calls]`
    pub calls: OneCallSettings,
}

impl ReplicaSettings {
    /// Its address without a role; `None`: there is no replica.
    ///
    /// # Errors
    /// [`AddressError::Place`] or [`AddressError::Unverified`].
    pub fn address(&self) -> Result<Option<PgConnectOptions>, AddressError> {
        place(&self.url)
    }
}

/// The replica, with a pool of its own.
pub(in crate::store) struct Replica {
    pool: TenantPool,
    /// The primary's.
    cluster: i64,
    layers: Layers,
}

impl Replica {
    /// The rows of each call, from the primary's timeline and no older than its position; `None`: the primary has to
    /// be asked, which it is at once where the tenant uses its share of the connections.
    pub(super) async fn read<const N: usize>(
        &self,
        partition: &Partition,
        (timeline, seq): (i64, Seq),
        calls: &[Call<'_>; N],
        operation: &'static str,
    ) -> Option<[Vec<PgRow>; N]> {
        let tenant = partition.tenant();
        let share = self.pool.share_of(tenant).try_acquire_owned().ok()?;
        let primary = Position { history: History { cluster: self.cluster, timeline }, seq };
        let read = self.read_from(share, partition, primary, calls, operation);
        match self.layers.once(operation, Some(tenant), read).await {
            Ok(rows) => rows.try_into().ok(),
            Err(error) => {
                tracing::debug!(%error, "the primary is read instead of the replica");
                None
            }
        }
    }

    async fn read_from(
        &self,
        share: OwnedSemaphorePermit,
        partition: &Partition,
        primary: Position,
        calls: &[Call<'_>],
        operation: &'static str,
    ) -> Result<Vec<Vec<PgRow>>, StoreError> {
        let (tenant, namespace) = (partition.tenant(), partition.namespace());
        let values = [Value::Id(tenant.0), Value::Id(namespace.0), Value::History(primary.history)];
        let mut all = vec![Call { statement: &POSITION, values: &values }];
        all.extend(calls);
        let results = transaction::read_holding(share, &self.pool, tenant, &all, operation).await?;
        let mut results = results.into_iter();
        let said = results.next().unwrap_or_default().first().map(Said::of).transpose();
        let said = said.map_err(failed(operation))?.unwrap_or_default();
        said.unfit(primary).map_or(Ok(results.collect()), |(kind, words)| {
            Err(StoreError::new(kind, BACKEND, operation, words))
        })
    }

    pub(super) async fn close(&self) {
        self.pool.pool.close().await;
    }
}

/// What the primary said to a question.
#[derive(Debug, Clone, Copy)]
struct Position {
    history: History,
    seq: Seq,
}

/// What a server said beside what was read there.
#[derive(Debug, Clone, Default)]
struct Said {
    follows: bool,
    reached: Option<i64>,
    history: String,
}

impl Said {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            follows: row.try_get("follows")?,
            reached: row.try_get("reached")?,
            history: row.try_get("history")?,
        })
    }

    /// Why nothing of it is used; `None`: it is.
    fn unfit(&self, primary: Position) -> Option<(ErrorKind, String)> {
        let (wanted, theirs) = (primary.history.to_string(), &self.history);
        if !self.follows {
            return Some((ErrorKind::Unavailable, "it follows no server".to_owned()));
        }
        if *theirs != wanted {
            // Either it has not told yet that it followed a promotion, or it cannot follow it.
            let words = format!("its history is cluster/timeline {theirs}, the primary's {wanted}");
            return Some((ErrorKind::Unavailable, words));
        }
        // Not a failure of the replica's: it is not left alone for that.
        let behind = self.reached.is_none_or(|reached| reached < primary.seq.0);
        behind.then(|| (ErrorKind::Conflict, "it has not come that far".to_owned()))
    }
}

impl Postgres {
    /// The same, reading from a replica what questions may read there. Asks the primary of which cluster it is.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn with_replica(
        self,
        app: &PgConnectOptions,
        settings: &OneCallSettings,
        pools: &PoolSettings,
        calls: &Arc<Calls>,
    ) -> Result<Self, StoreError> {
        const OPERATION: &str = "replica.open";
        let mut owner = self.owner().await.map_err(failed(OPERATION))?;
        let cluster = cluster_of(&mut owner).await.map_err(failed(OPERATION))?;
        drop(owner);
        let opening = Opening::of_replica();
        let wait = Duration::from_millis(settings.deadline_ms);
        let pool = opening
            .options(pools.query_connections, wait, Ready::ForCalls)
            .connect_lazy_with(opening.address(app, Planned::ByTenant));
        let share = pools.tenant_query_connections;
        let pool = TenantPool::over(pool, &opening, Planned::ByTenant, share, wait);
        let layers = Layers::new(BACKEND, &(*settings).into(), Arc::clone(calls), Arc::clone(&self.clock));
        Ok(Self { replica: Some(Arc::new(Replica { pool, cluster, layers })), ..self })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::clock::SystemClock;
    use crate::domain::ids::{ModelId, NamespaceId, TenantId};

    const PRIMARY: Position = Position { history: History { cluster: 7, timeline: 2 }, seq: Seq(5) };

    fn said(follows: bool, history: &str, reached: Option<i64>) -> Option<ErrorKind> {
        let said = Said { follows, reached, history: history.to_owned() };
        said.unfit(PRIMARY).map(|(kind, _)| kind)
    }

    #[test]
    fn what_is_read_comes_from_the_primarys_own_history_and_is_no_older() {
        assert_eq!(said(true, "7/2", Some(5)), None);
        assert_eq!(said(true, "7/2", Some(6)), None);
        for reached in [None, Some(4)] {
            assert_eq!(said(true, "7/2", reached), Some(ErrorKind::Conflict), "{reached:?}");
        }
        for (follows, history) in [(false, "7/2"), (true, "7/1"), (true, "7/3"), (true, "8/2"), (true, "")] {
            assert_eq!(said(follows, history, Some(9)), Some(ErrorKind::Unavailable), "{follows} {history}");
        }
    }

    #[tokio::test]
    async fn a_tenant_whose_share_is_in_use_waits_for_nothing_and_counts_for_nothing() {
        // Nobody listens there: who gets a share makes a call, and it fails.
        let nowhere = PgConnectOptions::new_without_pgpass().socket("/nowhere");
        let (opening, wait) = (Opening::of_replica(), Duration::from_millis(500));
        let pool = opening.options(2, wait, Ready::ForCalls).connect_lazy_with(nowhere);
        let (calls, settings) = (Arc::<Calls>::default(), OneCallSettings::default());
        let layers = Layers::new(BACKEND, &settings.into(), Arc::clone(&calls), Arc::new(SystemClock));
        let pool = TenantPool::over(pool, &opening, Planned::ByTenant, 1, wait);
        let replica = Replica { pool, cluster: 7, layers };
        let [busy, other] = [1, 2].map(|tenant| TenantId(Uuid::from_u128(tenant)));
        let read = async |tenant| {
            let model = ModelId::parse("0123456789abcdef").expect("a model");
            let partition = Partition::new(tenant, NamespaceId(Uuid::nil()), model);
            replica.read(&partition, (1, Seq(1)), &[], "test.read").await
        };
        let held = replica.pool.share_of(busy).try_acquire_owned().expect("a share");
        for _ in 0..10 {
            assert!(read(busy).await.is_none());
        }
        assert_eq!((calls.made(BACKEND), calls.left_alone()), (0, Vec::new()));
        assert!(read(other).await.is_none());
        assert_eq!(calls.made(BACKEND), 1, "another tenant's goes there");
        drop(held);
        assert!(read(busy).await.is_none());
        assert_eq!(calls.made(BACKEND), 2);
    }
}
