//! The audit log: who may write and read it, and the trait of what keeps it.
//!
//! Three ways in. What operators and tenants' administrators change is written by the transaction that changes it: the
//! store takes an act ([`OperatorAct`], [`TenantAct`], [`ServerAct`]) and commits both or neither. What they only read,
//! refusals by identity and alarms are in the log before the caller goes on; queries and writes are queued and follow
//! within [`AuditSettings::flush_ms`]. One task writes these, so that callers who wait together share one commit.
//!
//! **Invariant:** the tenant and the principal of an event come from a scope or a refusal, never from the caller's words.
//! **Invariant:** a tenant's log is read only with its own administrator's permit, the deployment's only by an operator.
//! An operator who exports a tenant's log is in that log, with a reason, before the first event is read.

pub(in crate::store) mod act;
pub mod chain;
pub mod export;
mod settings;
pub mod spool;
mod writer;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::sync::{mpsc, oneshot};

use super::error::{ErrorKind, StoreError};
use crate::domain::audit::{
    AuditCursor, AuditDay, AuditEntry, AuditEvent, AuditKind, AuditRecord, ChainReport, Decision,
};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::telemetry::{AlarmKind, Alarms};
use crate::tenancy::{Administer, OperatorScope, Permit, Principal, Refusal, TenantScope, Write};
pub use act::{OperatorAct, ServerAct, TenantAct};
use chain::{Chain, Link};
use export::{ExportPage, ExportPlace, Times};
pub use settings::{AuditBackend, AuditSettings};
use spool::{Spool, SpoolError};
use writer::{Message, Writer};

const OPERATION: &str = "audit.record";

/// What keeps the audit log: one chain for each tenant and server, and one for each server's own events.
///
/// Order: the events of one call follow one another in the chain, after those of every call that returned.
/// Visibility: what `append` returned for is found by the next `page`, and survives a crash.
/// Isolation: a page or report of one tenant never holds an event of another.
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// The back end's name, for logs.
    fn name(&self) -> &'static str;

    /// The name of this server's chains in PostgreSQL, where the events of its acts are written.
    fn node(&self) -> &str;

    /// Hears that events may have been written into this server's chain there, whether or not they were.
    fn appended(&self, _tenant: Option<TenantId>) {}

    /// Appends events to one chain, in order; `None` is the deployment's own. The events' own tenants are
    /// the same.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Conflict`; then either all of the events were written or none.
    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError>;

    /// A page of one tenant's events over all servers, newest first, after the one where a page ended.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, or `Damaged` when an event cannot be read.
    async fn page(
        &self,
        tenant: Option<TenantId>,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError>;

    /// A tenant's chains, ordered by server: heads, and the last event that is there. Those that have only a head,
    /// or only events, are among them.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    async fn chains(&self, tenant: Option<TenantId>) -> Result<Vec<Chain>, StoreError>;

    /// Events of one chain as they are stored, ordered by number: those after the first number of the range, up to
    /// its second. A page that is not full is the last; what stands at one number is in one page.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    async fn links(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        range: (i64, i64),
        limit: i64,
    ) -> Result<Vec<Link>, StoreError>;

    /// The numbers of the first and the last event of one chain in these times; `None`: there is none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    async fn span(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        times: Times,
    ) -> Result<Option<(i64, i64)>, StoreError>;

    /// How many events of each kind a tenant had on each day, in order. Those that wait elsewhere are not counted yet.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    async fn days(&self, tenant: Option<TenantId>, times: Times) -> Result<Vec<AuditDay>, StoreError>;

    /// Examines each of a tenant's chains, by server: is everything there, in its place and as it was written.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`. A damaged log is a report, not an error.
    async fn verify(&self, tenant: Option<TenantId>) -> Result<Vec<ChainReport>, StoreError> {
        chain::verify(self, tenant).await
    }
}

/// How the log fares, for metrics and health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditCounts {
    /// Events written since the start.
    pub written: u64,
    /// Events lost since the start: the queue was full or the log away for too long.
    pub lost: u64,
    /// Events that wait.
    pub waiting: u64,
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    lost: AtomicU64,
}

/// The audit log of a server. Clones are cheap and write to the same log.
#[derive(Clone)]
pub struct Audit {
    log: Arc<dyn AuditLog>,
    clock: Arc<dyn Clock>,
    digest: Hmac<Sha256>,
    sender: mpsc::Sender<Message>,
    counters: Arc<Counters>,
    settings: Arc<AuditSettings>,
    alarms: Option<Alarms>,
    spool: Option<Arc<Spool>>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").field("log", &self.log.name()).finish_non_exhaustive()
    }
}

impl Audit {
    /// Starts the task that writes. It ends, having written what was queued, when the last clone is gone.
    ///
    /// `key` is a secret of the deployment; query texts are hashed with it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        log: Arc<dyn AuditLog>,
        settings: AuditSettings,
        clock: Arc<dyn Clock>,
        key: &[u8; 32],
    ) -> Self {
        let (sender, receiver) = mpsc::channel(settings.queue.max(1));
        let counters = Arc::new(Counters::default());
        let settings = Arc::new(settings);
        let writer = Writer {
            log: Arc::clone(&log),
            receiver,
            counters: Arc::clone(&counters),
            settings: Arc::clone(&settings),
        };
        tokio::spawn(writer.run());
        let digest = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
        Self { log, clock, digest, sender, counters, settings, alarms: None, spool: None }
    }

    /// The same log, whose queries and writes go through a spool, from which the log itself takes them.
    #[must_use]
    pub fn with_spool(self, spool: Arc<Spool>) -> Self {
        Self { spool: Some(spool), ..self }
    }

    /// The same log, whose alarms are raised here too.
    #[must_use]
    pub fn with_alarms(self, alarms: Alarms) -> Self {
        Self { alarms: Some(alarms), ..self }
    }

    /// The keyed hash by which the log names a query's text. The same text of two tenants has two hashes.
    #[must_use]
    pub fn query_hash(&self, scope: &TenantScope, text: &str) -> [u8; 32] {
        let mut digest = self.digest.clone();
        digest.update(scope.tenant().0.as_bytes());
        digest.update(text.as_bytes());
        digest.finalize().into_bytes().into()
    }

    /// Queues an event of a tenant: queries and writes. When there is no room in time the event is lost,
    /// which is counted and logged; the request goes on.
    pub async fn record(&self, scope: &TenantScope, entry: AuditEntry) {
        let event = self.event(Some(scope.tenant()), scope.principal().as_str(), entry);
        if let Some(spool) = &self.spool {
            return self.spooled(spool, &event);
        }
        let wait = Duration::from_millis(self.settings.queue_wait_ms);
        if self.sender.send_timeout(Message::Event(Box::new(event), None), wait).await.is_err() {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!(backend = self.log.name(), "an audit event was lost: the queue is full");
        }
    }

    /// Writes what an operator does that changes no row of this database, into the deployment's log and into that of
    /// the tenant that it is done to: what is read, and what takes longer than a transaction, before it is begun.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; what it tells of is not to be answered. After `Timeout` the event may be written
    /// nevertheless.
    pub async fn record_operator(
        &self,
        operator: &OperatorScope,
        tenant: Option<TenantId>,
        entry: AuditEntry,
    ) -> Result<(), StoreError> {
        self.write(self.operator_act(operator, entry).0.events(tenant)).await
    }

    /// Writes a refusal by identity into the log of the verified credential's tenant; without one into
    /// the deployment's. `action` is what was asked for.
    ///
    /// # Errors
    /// As [`Audit::record_operator`]. The request stays refused.
    pub async fn record_refusal(
        &self,
        refusal: &Refusal,
        action: impl Into<Cow<'static, str>>,
    ) -> Result<(), StoreError> {
        let facts = refusal.facts();
        let principal = facts.principal.as_ref().map_or("anonymous", Principal::as_str);
        let reason = format!("{}: {}", refusal.kind().slug(), facts.reason);
        let entry = AuditEntry::new(AuditKind::Refusal, action, Decision::Denied)
            .because(&reason)
            .asking_for(facts.asked_for.iter().map(ToString::to_string))
            .with_ids(&facts.presented);
        self.write(vec![self.event(facts.tenant, principal, entry)]).await
    }

    /// Raises an alarm, and writes it: into the deployment's log with all that is known, into the caller's own
    /// without identifiers, which may be a neighbour's.
    ///
    /// # Errors
    /// As [`Audit::record_operator`]. The request fails in any case.
    pub async fn record_alarm(&self, scope: &TenantScope, entry: AuditEntry) -> Result<(), StoreError> {
        if let Some(alarms) = &self.alarms {
            let stopped = entry.decision == Decision::Denied;
            let kind = if stopped { AlarmKind::RequestStopped } else { AlarmKind::RowsDropped };
            alarms.raise(kind, scope.tenant(), &entry.action, entry.rows_dropped);
        }
        let principal = scope.principal().as_str();
        let own = self.event(Some(scope.tenant()), principal, entry.without_names());
        let entry =
            if entry.asked_for.is_empty() { entry.asking_for([scope.tenant().to_string()]) } else { entry };
        self.write(vec![self.event(None, principal, entry), own]).await
    }

    /// Writes what the server did of itself outside of this database, as restoring a backup.
    ///
    /// # Errors
    /// As [`Audit::record_operator`].
    pub async fn record_server(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.write(vec![self.event(None, "server", entry)]).await
    }

    /// Returns when everything that was recorded before is written, or was given up.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.sender.send(Message::Flush(done)).await.is_ok() {
            let _ended = written.await;
        }
    }

    /// The name of what keeps it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.log.name()
    }

    /// How the log fares.
    #[must_use]
    pub fn counts(&self) -> AuditCounts {
        AuditCounts {
            written: self.counters.written.load(Ordering::Relaxed),
            lost: self.counters.lost.load(Ordering::Relaxed)
                + self.spool.as_ref().map_or(0, |spool| spool.lost_count()),
            waiting: (self.sender.max_capacity() - self.sender.capacity()) as u64
                + self.spool.as_ref().map_or(0, |spool| spool.waiting()),
        }
    }

    /// A page of the tenant's own log, newest first.
    ///
    /// # Errors
    /// As [`AuditLog::page`].
    pub async fn page(
        &self,
        permit: &Permit<Administer>,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        self.log.page(Some(permit.scope().tenant()), after, limit).await
    }

    /// Examines the tenant's own log.
    ///
    /// # Errors
    /// As [`AuditLog::verify`].
    pub async fn verify(&self, permit: &Permit<Administer>) -> Result<Vec<ChainReport>, StoreError> {
        self.log.verify(Some(permit.scope().tenant())).await
    }

    /// A page of the deployment's log, newest first.
    ///
    /// # Errors
    /// As [`AuditLog::page`].
    pub async fn deployment_page(
        &self,
        _operator: &OperatorScope,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        self.log.page(None, after, limit).await
    }

    /// Examines the log of a tenant, or the deployment's. Tells an operator numbers and hashes, no event.
    ///
    /// # Errors
    /// As [`AuditLog::verify`].
    pub async fn attest(
        &self,
        _operator: &OperatorScope,
        tenant: Option<TenantId>,
    ) -> Result<Vec<ChainReport>, StoreError> {
        self.log.verify(tenant).await
    }

    /// How many events of each kind a tenant had on each day: numbers, no event.
    ///
    /// # Errors
    /// As [`AuditLog::days`].
    pub async fn days(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
        times: Times,
    ) -> Result<Vec<AuditDay>, StoreError> {
        self.log.days(Some(tenant), times).await
    }

    /// How many events of a deleted tenant are in the log, for its receipt: a number, no event. Those that wait elsewhere
    /// are not counted yet.
    ///
    /// # Errors
    /// As [`AuditLog::chains`].
    pub async fn count(&self, permit: &Permit<Write>) -> Result<i64, StoreError> {
        // Numbers are from 1, without gaps.
        let chains = self.log.chains(Some(permit.scope().tenant())).await?;
        Ok(chains.iter().map(|chain| chain.last).sum())
    }

    /// A page of an export of a tenant's log, or of the deployment's. The call itself is in the log before.
    ///
    /// # Errors
    /// As [`AuditLog::links`].
    pub async fn export(
        &self,
        _operator: &OperatorScope,
        tenant: Option<TenantId>,
        times: Times,
        after: Option<&ExportPlace>,
    ) -> Result<ExportPage, StoreError> {
        export::page(self.log.as_ref(), tenant, times, after).await
    }

    /// Into the spool, before the caller goes on: it survives the end of this process.
    fn spooled(&self, spool: &Spool, event: &AuditEvent) {
        let record = serde_json::to_vec(&AuditRecord::new(event, "", 0)).map_err(std::io::Error::from);
        match record.map_err(SpoolError::from).and_then(|record| spool.append(&record)) {
            Ok(()) => drop(self.counters.written.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                tracing::error!(backend = self.log.name(), %error, ?error, "an audit event was lost");
            }
        }
    }

    fn event(&self, tenant: Option<TenantId>, principal: &str, entry: AuditEntry) -> AuditEvent {
        AuditEvent { tenant, principal: principal.to_owned(), at: self.clock.now(), entry }
    }

    async fn write(&self, events: Vec<AuditEvent>) -> Result<(), StoreError> {
        let wait = Duration::from_millis(self.settings.write_wait_ms);
        tokio::time::timeout(wait, self.write_all(events)).await.unwrap_or_else(|_| {
            Err(StoreError::new(ErrorKind::Timeout, self.log.name(), OPERATION, "not written in time"))
        })
    }

    async fn write_all(&self, events: Vec<AuditEvent>) -> Result<(), StoreError> {
        let ended =
            || StoreError::new(ErrorKind::Unavailable, self.log.name(), OPERATION, "the audit log has ended");
        let mut answers = Vec::with_capacity(events.len());
        for event in events {
            let (done, written) = oneshot::channel();
            let message = Message::Event(Box::new(event), Some(done));
            self.sender.send(message).await.map_err(|_| ended())?;
            answers.push(written);
        }
        for answer in answers {
            answer.await.map_err(|_| ended())??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
