//! PostgreSQL, the system of record.
//!
//! Each file holds the statements of one resource, as methods of the handles.
//!
//! **Invariant:** every statement on tenant data names the tenant beside the policy that enforces it.
//! **Invariant:** no statement per row: lists go in and out as arrays.

pub mod audit;
pub mod bootstrap;
pub mod chunks;
pub mod control;
pub mod directory;
pub mod documents;
mod error;
pub mod idempotency;
mod identifiers;
pub mod ingest;
pub mod jobs;
pub mod labels;
pub mod migrate;
pub mod namespaces;
pub(in crate::store) mod pools;
pub mod projection;
pub mod requeue;
pub mod roles;
mod scram;
pub mod secrets;
pub mod server;
pub(in crate::store) mod transaction;
pub mod usage;

use std::sync::Arc;

use pools::{Lane, Pools};
pub use pools::{PoolSettings, RoleAddresses};
use transaction::TenantTransaction;

use super::StoreError;
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, ModelId, TenantId};

/// The database, with a pool for each kind of work.
#[derive(Clone)]
pub struct Postgres {
    pub(in crate::store) pools: Pools,
    pub(in crate::store) clock: Arc<dyn Clock>,
    pub(in crate::store) ids: Arc<dyn IdSource>,
    pub(in crate::store) model: ModelId,
}

impl Postgres {
    /// Pools on a database that was migrated. Connects when first used.
    #[must_use]
    pub fn new(
        addresses: &RoleAddresses,
        settings: &PoolSettings,
        model: ModelId,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { pools: Pools::new(addresses, settings), clock, ids, model }
    }

    pub(in crate::store) async fn begin(
        &self,
        lane: Lane,
        tenant: TenantId,
    ) -> Result<TenantTransaction, StoreError> {
        let pool = match lane {
            Lane::Query => &self.pools.query,
            Lane::Ingest => &self.pools.ingest,
            Lane::Audit => &self.pools.audit,
            Lane::Deployment => &self.pools.deployment,
        };
        TenantTransaction::begin(pool, tenant).await
    }

    /// Closes every connection, after the work that holds one is done.
    pub async fn close(&self) {
        self.pools.close().await;
    }
}
