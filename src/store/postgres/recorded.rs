//! Transactions that are committed with the audit events of what they do, and not otherwise.
//!
//! **Invariant:** what operators decide is changed by [`ControlTransaction`] alone, which has no other commit.
//! **Invariant:** the heads of chains are locked last, a tenant's before the deployment's, and nothing but their events
//! is written under these locks: whoever waits for one waits for nobody who waits for anything but the next.

use std::ops::{Deref, DerefMut};
use std::slice;

use uuid::Uuid;

use super::Postgres;
use super::audit::append_in;
use super::pools::Lane;
use super::session::Session;
use super::transaction::TenantTransaction;
use crate::config::crash_point;
use crate::domain::ids::TenantId;
use crate::store::audit::act::Act;
use crate::store::error::{ErrorKind, StoreError};

/// A transaction of the role that manages tenants, about one of them or about the deployment. One that has only read
/// is dropped, and rolled back.
pub(in crate::store) struct ControlTransaction {
    transaction: TenantTransaction,
    tenant: Option<TenantId>,
}

impl Postgres {
    /// Begins a transaction about a tenant, or about the deployment.
    pub(in crate::store) async fn control(
        &self,
        tenant: Option<TenantId>,
    ) -> Result<ControlTransaction, StoreError> {
        let shown = tenant.unwrap_or(TenantId(Uuid::nil()));
        Ok(ControlTransaction { transaction: self.begin(Lane::Deployment, shown).await?, tenant })
    }
}

impl ControlTransaction {
    /// As [`commit_recorded`].
    pub(super) async fn commit(self, act: Act) -> Result<(), StoreError> {
        commit_recorded(self.transaction, self.tenant, act).await
    }
}

/// Commits what was done to a tenant, or to the deployment, together with the events that tell of it.
///
/// # Errors
/// `Unavailable`, `Timeout` or `Conflict`; then nothing was done and nothing is recorded. Unless the answer to the
/// commit itself was lost: then it is both or neither.
pub(super) async fn commit_recorded(
    mut transaction: TenantTransaction,
    tenant: Option<TenantId>,
    act: Act,
) -> Result<(), StoreError> {
    crash_point("act-done");
    let events = act.events(tenant);
    let writing = async {
        for event in &events {
            if event.tenant.is_none() && tenant.is_some() {
                transaction.show_deployment().await?;
            }
            append_in(&mut transaction, act.node(), event.tenant, slice::from_ref(event)).await?;
        }
        Ok::<_, StoreError>(())
    };
    tokio::time::timeout(act.patience(), writing).await.unwrap_or_else(|_| {
        let words = "not written in time";
        Err(StoreError::new(ErrorKind::Timeout, "postgres", "audit.append", words))
    })?;
    crash_point("act-recorded");
    let _looked_at = act.looked_at(&events);
    transaction.commit().await?;
    act.written(&events);
    crash_point("act-committed");
    Ok(())
}

impl Deref for ControlTransaction {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.transaction
    }
}

impl DerefMut for ControlTransaction {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.transaction
    }
}
