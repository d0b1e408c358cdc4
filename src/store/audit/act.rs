//! Acts: what an operator, a tenant's administrator or the server itself is about to do, and what the log will say of
//! it. The store commits a change together with its act, in one transaction, or not at all.
//!
//! **Invariant:** who acts comes from a scope or is the server, and an act is spent by the change that it records.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::{Audit, AuditLog};
use crate::domain::audit::{AuditEntry, AuditEvent};
use crate::domain::ids::TenantId;
use crate::tenancy::{OperatorScope, TenantScope};

/// What an operator does.
#[derive(Debug)]
pub struct OperatorAct(pub(in crate::store) Act);

/// What a tenant's own administrator or writer does to the tenant.
#[derive(Debug)]
pub struct TenantAct(pub(in crate::store) Act);

/// What the server does of itself.
#[derive(Debug)]
pub struct ServerAct(pub(in crate::store) Act);

/// Who acts.
#[derive(Debug)]
enum By {
    Operator(String),
    Tenant(String),
    Server,
}

/// An act by anybody.
#[derive(Debug)]
pub(in crate::store) struct Act {
    audit: Audit,
    by: By,
    entry: AuditEntry,
}

impl Audit {
    /// What an operator is about to do.
    #[must_use]
    pub fn operator_act(&self, operator: &OperatorScope, entry: AuditEntry) -> OperatorAct {
        OperatorAct(self.act(By::Operator(operator.principal().as_str().to_owned()), entry))
    }

    /// What somebody of a tenant is about to do to it.
    #[must_use]
    pub fn tenant_act(&self, scope: &TenantScope, entry: AuditEntry) -> TenantAct {
        TenantAct(self.act(By::Tenant(scope.principal().as_str().to_owned()), entry))
    }

    /// What the server is about to do.
    #[must_use]
    pub fn server_act(&self, entry: AuditEntry) -> ServerAct {
        ServerAct(self.act(By::Server, entry))
    }

    fn act(&self, by: By, entry: AuditEntry) -> Act {
        Act { audit: self.clone(), by, entry }
    }
}

impl Act {
    /// The same, about what the change has made.
    pub(in crate::store) fn making(mut self, id: Uuid) -> Self {
        self.entry.ids.insert(0, id.to_string());
        self
    }

    /// What the log says of it: in the log of the tenant that it is done to, and, unless it is somebody's of that
    /// tenant, in the deployment's, which names the tenant. The deployment's comes last.
    pub(in crate::store) fn events(&self, tenant: Option<TenantId>) -> Vec<AuditEvent> {
        let naming = |entry: &AuditEntry| match tenant {
            Some(tenant) if entry.asked_for.is_empty() => entry.clone().asking_for([tenant.to_string()]),
            _ => entry.clone(),
        };
        let (principal, own, deployment) = match &self.by {
            By::Operator(principal) => {
                let entry = naming(&self.entry);
                (principal.as_str(), entry.clone(), Some(entry))
            }
            By::Tenant(principal) => (principal.as_str(), self.entry.clone(), None),
            By::Server => ("server", self.entry.clone(), Some(naming(&self.entry))),
        };
        let own = tenant.map(|tenant| self.audit.event(Some(tenant), principal, own));
        own.into_iter().chain(deployment.map(|entry| self.audit.event(None, principal, entry))).collect()
    }

    /// The name of this server's chains.
    pub(in crate::store) fn node(&self) -> &str {
        self.audit.log.node()
    }

    /// How long its events may take to be written.
    pub(in crate::store) fn patience(&self) -> Duration {
        Duration::from_millis(self.audit.settings.write_wait_ms)
    }

    /// Has the log look at the chains of these events when what it returns goes.
    pub(in crate::store) fn looked_at(&self, events: &[AuditEvent]) -> LookedAt {
        LookedAt {
            log: Arc::clone(&self.audit.log),
            chains: events.iter().map(|event| event.tenant).collect(),
        }
    }

    /// Counts what is written.
    pub(in crate::store) fn written(&self, events: &[AuditEvent]) {
        self.audit.counters.written.fetch_add(events.len() as u64, Ordering::Relaxed);
    }
}

/// Tells the log of what may have been written, however that ended.
pub(in crate::store) struct LookedAt {
    log: Arc<dyn AuditLog>,
    chains: Vec<Option<TenantId>>,
}

impl Drop for LookedAt {
    fn drop(&mut self) {
        self.chains.iter().for_each(|tenant| self.log.appended(*tenant));
    }
}
