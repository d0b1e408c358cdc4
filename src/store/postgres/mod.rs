//! PostgreSQL, the system of record.
//!
//! Each file holds the statements of one resource, as methods of the handles.
//!
//! **Invariant:** every statement on tenant data names the tenant beside the policy that enforces it.
//! **Invariant:** no statement per row: lists go in and out as arrays.

pub mod address;
pub mod administer;
pub mod audit;
pub(in crate::store) mod audit_anchor;
pub mod bootstrap;
pub mod chunks;
pub mod collections;
mod connections;
pub mod control;
pub mod diagnose;
pub mod directory;
pub mod documents;
pub mod dump;
mod error;
pub mod examine;
pub mod idempotency;
mod identifiers;
pub mod ingest;
pub mod jobs;
pub mod labels;
#[cfg(feature = "laboratory")]
pub mod laboratory;
pub mod leases;
pub mod migrate;
pub mod models;
pub mod namespaces;
pub mod orphans;
pub mod partitions;
pub(in crate::store) mod pools;
pub(in crate::store) mod prepared;
mod primary;
pub mod projection;
pub mod purge;
mod recorded;
pub mod reembed;
pub mod replica;
pub mod requeue;
pub mod roles;
mod scram;
pub mod secrets;
pub mod server;
pub(in crate::store) mod session;
pub(in crate::store) mod transaction;
pub mod usage;
pub mod vector_index;

use std::sync::Arc;

use error::failed;
use partitions::VectorSettings;
use pools::{Lane, Pools, TenantPool};
pub use pools::{PoolSettings, PoolUse, Reach, RoleAddresses};
use prepared::Call;
use primary::Primary;
use replica::Replica;
pub use session::Pooling;
use sqlx::postgres::{PgConnectOptions, PgRow};
use transaction::{Plans, TenantTransaction};

use super::{ErrorKind, StoreError};
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, ModelId, TenantId};

/// The database, with a pool for each kind of work.
#[derive(Clone)]
pub struct Postgres {
    pub(in crate::store) pools: Arc<Pools>,
    pub(in crate::store) clock: Arc<dyn Clock>,
    pub(in crate::store) ids: Arc<dyn IdSource>,
    pub(in crate::store) model: ModelId,
    pub(in crate::store) vectors: VectorSettings,
    /// Names and identities of the models that this server has.
    models: Arc<[(String, ModelId)]>,
    /// For what is made later than the schema; no connection stays open.
    owner: Arc<PgConnectOptions>,
    /// Where the database may be on several servers.
    primary: Option<Arc<Primary>>,
    /// What questions are read from, where it has come as far as they ask.
    pub(in crate::store) replica: Option<Arc<Replica>>,
}

impl Postgres {
    /// Pools on a database that was migrated. Connects when first used.
    #[must_use]
    pub fn new(
        reach: impl Into<Reach>,
        settings: &PoolSettings,
        model: ModelId,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        let reach = reach.into();
        let owner = Arc::new(reach.primary.owner.clone());
        let primary = (!reach.others.is_empty()).then(|| Arc::new(Primary::new(&reach)));
        let pools = Arc::new(Pools::new(&reach, primary.as_ref(), settings));
        Self {
            pools,
            clock,
            ids,
            model,
            vectors: VectorSettings::default(),
            models: Arc::default(),
            owner,
            primary,
            replica: None,
        }
    }

    /// The same with these bounds on how vectors are searched.
    #[must_use]
    pub fn with_vectors(self, vectors: VectorSettings) -> Self {
        Self { vectors, ..self }
    }

    /// The same, knowing these models by their names.
    #[must_use]
    pub fn with_models(self, models: Vec<(String, ModelId)>) -> Self {
        Self { models: models.into(), ..self }
    }

    pub(in crate::store) async fn begin(
        &self,
        lane: Lane,
        tenant: TenantId,
    ) -> Result<TenantTransaction, StoreError> {
        self.begin_with(lane, tenant, Plans::Usual).await
    }

    pub(in crate::store) async fn begin_with(
        &self,
        lane: Lane,
        tenant: TenantId,
        plans: Plans,
    ) -> Result<TenantTransaction, StoreError> {
        TenantTransaction::begin(self.pool(lane), tenant, plans).await
    }

    pub(in crate::store) async fn read<const N: usize>(
        &self,
        lane: Lane,
        tenant: TenantId,
        calls: [Call<'_>; N],
        operation: &'static str,
    ) -> Result<[Vec<PgRow>; N], StoreError> {
        let results = transaction::read(self.pool(lane), tenant, &calls, operation).await?;
        results.try_into().map_err(|_| {
            StoreError::new(ErrorKind::Internal, "postgres", operation, "not as many results as statements")
        })
    }

    fn pool(&self, lane: Lane) -> &TenantPool {
        match lane {
            Lane::Query => &self.pools.query,
            Lane::Ingest => &self.pools.ingest,
            Lane::Audit => &self.pools.audit,
            Lane::Deployment => &self.pools.deployment,
        }
    }

    /// How each pool is used.
    #[must_use]
    pub fn pool_uses(&self) -> [PoolUse; 6] {
        self.pools.uses()
    }

    /// Asks whether the database answers, over the connections that every request needs first.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.pools.auth).await.map_err(failed("ping"))?;
        Ok(())
    }

    /// Closes every connection, after the work that holds one is done.
    pub async fn close(&self) {
        self.pools.close().await;
        if let Some(replica) = &self.replica {
            replica.close().await;
        }
    }
}
